"""Event source mappings: that batches reach the right version, and as many at once as the fleet can take."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from spillway.doctor.facts_functions import ALIAS, function_of
from spillway.doctor.finding import Finding, fail, passed, skip, warn
from spillway.doctor.fixes import spillway
from spillway.doctor.registry import check, deployed
from workers.governor.decision import MANUAL
from workers.governor.record import NOTE_TAG, RECORD_TAG, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_functions import EventSource, Function

AREA = "mappings"

#: A person who keeps the governor off is at work on something; after a day it was forgotten.
FORGOTTEN = timedelta(days=1)


@check("mapping-exists", area=AREA)
def mapping_exists(facts: Facts) -> Iterator[Finding]:
    """Every queue is read by its own consumer, and by nobody else."""
    for worker in facts.fleet.workers.values():
        mapping = facts.mappings.get(worker.name)
        if mapping is None:
            said = f"has no event source mapping to {worker.function}: nobody reads it"
            yield fail(worker.queue, said, f"Create it again with the template's settings, for {worker.function}:live.")
        elif mapping.others:
            names = ", ".join(sorted(function_of(arn) for arn in mapping.others))
            said = f"is read by another mapping as well, to {names}: each takes messages away from the other"
            yield fail(worker.queue, said, "Delete it: aws lambda delete-event-source-mapping --uuid UUID.")
        else:
            yield passed(worker.queue, f"is read by {worker.function}")


@check("mapping-enabled", area=AREA, needs=deployed)
def mapping_enabled(facts: Facts) -> Iterator[Finding]:
    """Every event source mapping is enabled."""
    for name, mapping in _named(facts):
        if mapping.state == "Enabled":
            yield passed(name, "is enabled")
        elif mapping.state != "Disabled":
            yield warn(name, f"is {mapping.state.lower()}", "Look again in a minute.")
        elif (record := Record.decode(mapping.tags.get(RECORD_TAG))) is not None and not record.to.enabled:
            said = "is disabled by the governor, because the proxy's target is unavailable: the queue waits"
            yield fail(name, said, "See docs/operations.md#proxy-availability; the governor enables it again.")
        else:
            said = f"is disabled: the queue waits ({mapping.state_reason or 'no reason given'})"
            yield fail(name, said, f"aws lambda update-event-source-mapping --uuid {mapping.uuid} --enabled")
    yield from _none(facts)


@check("mapping-target", area=AREA, needs=deployed)
def mapping_target(facts: Facts) -> Iterator[Finding]:
    """Every mapping invokes the alias, which rollouts move."""
    for name, mapping in _named(facts):
        qualifier = mapping.target.split(":")[7:]
        if qualifier == [ALIAS]:
            yield passed(name, f"invokes {ALIAS}")
        else:
            said = f"invokes {qualifier[0] if qualifier else '$LATEST'} and not {ALIAS}: rollouts do not reach it"
            function = facts.fleet.workers[mapping.worker].function
            command = f"aws lambda update-event-source-mapping --uuid {mapping.uuid} --function-name {function}:{ALIAS}"
            yield fail(name, said, command)
    yield from _none(facts)


@check("partial-batch-responses", area=AREA)
def partial_batch_responses(facts: Facts) -> Iterator[Finding]:
    """Lambda takes the workers' word for which messages of a batch failed."""
    for name, mapping in _named(facts):
        if mapping.partial_responses:
            yield passed(name, "takes partial batch responses")
        else:
            said = (
                "ignores partial batch responses: messages that were given back are deleted with their batch, and lost"
            )
            command = (
                f"aws lambda update-event-source-mapping --uuid {mapping.uuid} "
                "--function-response-types ReportBatchItemFailures"
            )
            yield fail(name, said, command)
    yield from _none(facts)


@check("mapping-drift", area=AREA, needs=deployed)
def mapping_drift(facts: Facts) -> Iterator[Finding]:
    """Batch size, window and MaximumConcurrency are as the template set them."""
    wanted = {one.logical_id: one for one in facts.stack.wanted.mappings}
    for name, mapping in _named(facts):
        if (one := wanted.get(mapping.logical_id)) is None:
            yield warn(
                name, "is not the stack's own: deployments do not reach it", "Delete it and deploy the template."
            )
            continue
        pairs = {"BatchSize": (mapping.batch_size, one.batch_size), "the window": (mapping.window_s, one.window_s)}
        different = [f"{what} is {is_} and not {was}" for what, (is_, was) in pairs.items() if is_ != was]
        fix = f"aws lambda update-event-source-mapping --uuid {mapping.uuid} sets it back; or deploy the new value."
        if mapping.maximum_concurrency != one.maximum_concurrency:
            said = f"MaximumConcurrency is {mapping.maximum_concurrency or 'not set'} and not {one.maximum_concurrency}"
            record = Record.decode(mapping.tags.get(RECORD_TAG))
            if record is not None and not record.manual and record.to.concurrency == mapping.maximum_concurrency:
                said += ", which the governor did"
                fix = f"It raises it again by itself; see the pool that it protects: {spillway(facts, 'status')}"
            different.append(said)
        if different:
            yield warn(name, f"was changed since it was deployed: {'; '.join(different)}", fix)
        else:
            yield passed(name, "is as the template made it")
    yield from _none(facts)


@check("reserved-concurrency", area=AREA, needs=deployed)
def reserved_concurrency(facts: Facts) -> Iterator[Finding]:
    """A function's reserved concurrency has room for its mapping's MaximumConcurrency."""
    for name, mapping in _named(facts):
        function = _function(facts, mapping)
        most = mapping.maximum_concurrency
        if function is None or function.reserved is None:
            yield passed(name, "its function reserves no concurrency, and is not limited by it")
        elif most is None or most > function.reserved:
            said = (
                f"may invoke {most or 'any number of'} batches at once and {function.name} runs {function.reserved}: "
                "throttled messages use up their receives without having run"
            )
            least = max(most or 0, 1)
            fix = (
                f"aws lambda put-function-concurrency --function-name {function.name} "
                f"--reserved-concurrent-executions {least}"
            )
            yield fail(name, said, fix)
        else:
            yield passed(name, f"invokes up to {most} at once, {function.reserved} are reserved")
    yield from _none(facts)


@check("account-concurrency", area=AREA, needs=deployed)
def account_concurrency(facts: Facts) -> Iterator[Finding]:
    """The account has room for what the mappings may invoke at once."""
    where = facts.fleet.name
    unlimited = [name for name, mapping in _named(facts) if mapping.maximum_concurrency is None]
    for name in unlimited:
        said = "has no MaximumConcurrency: one flood of it takes the account's concurrency, and every connection"
        yield fail(name, said, "Set one: --scaling-config MaximumConcurrency=N, or deploy the template again.")
    free = [
        mapping
        for _, mapping in _named(facts)
        if (function := _function(facts, mapping)) is None or function.reserved is None
    ]
    needed = sum(mapping.maximum_concurrency or 0 for mapping in free)
    room = facts.account.unreserved
    if needed > room:
        said = f"mappings without reserved concurrency may invoke {needed} batches at once, the account has {room} left"
        yield fail(where, said, "Ask for more under Service Quotas (Lambda, concurrent executions), or lower them.")
    elif not unlimited:
        yield passed(where, f"up to {needed} batches at once, and the account has {room:,} left for them")


@check("governor-tags", area=AREA, needs=deployed)
def governor_tags(facts: Facts) -> Iterator[Finding]:
    """Nobody keeps the governor off a mapping and has forgotten it."""
    for name, mapping in _named(facts):
        note = mapping.tags.get(NOTE_TAG, "").strip().lower()
        fix = f"aws lambda untag-resource --resource {mapping.arn} --tag-keys {NOTE_TAG}"
        if note.startswith(MANUAL):
            said = "the governor keeps off it, because somebody else changed the mapping"
            yield warn(name, said, f"When that is done: {fix}")
        elif note == "off":
            # A tag has no date; whoever sets it changes the mapping next.
            age = facts.now - mapping.last_modified if mapping.last_modified else FORGOTTEN
            if age >= FORGOTTEN:
                yield warn(name, f"the governor is kept off it, for {age.days} days or more", f"When done: {fix}")
            else:
                yield passed(name, "the governor is kept off it, for less than a day")
        else:
            yield passed(name, "is the governor's to steer")
    yield from _none(facts)


def _named(facts: Facts) -> Iterator[tuple[str, EventSource]]:
    """The mappings, each by its queue's name: an operator knows that and not a UUID."""
    for worker, mapping in facts.mappings.items():
        if worker in facts.fleet.workers:
            yield facts.fleet.workers[worker].queue, mapping


def _function(facts: Facts, mapping: EventSource) -> Function | None:
    return facts.functions.get(facts.fleet.workers[mapping.worker].function)


def _none(facts: Facts) -> Iterator[Finding]:
    if not facts.mappings:
        yield skip(facts.fleet.name, "has no event source mapping to look at")
