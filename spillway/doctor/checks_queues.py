"""Queues and dead-letter queues: that nothing is lost on the way from one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.doctor.finding import Finding, fail, passed, skip, warn
from spillway.doctor.fixes import set_attribute, set_back, spillway
from spillway.doctor.registry import check, deployed
from spillway.stack.template import QUEUE_ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_queues import Queue
    from spillway.stack.template import Queue as WantedQueue

AREA = "queues"

#: The safety net is for what no worker could send away itself. Lambda advises at least 5 ("Using Lambda with Amazon
#: SQS"); a fleet whose outages give messages back for hours needs far more, and the template has SQS's largest, 1,000.
LEAST_RECEIVES = 5
SAFE_RECEIVES = 100
#: SQS's longest retention, 14 days (SQS API reference, SetQueueAttributes).
LONGEST_RETENTION_S = 14 * 86_400
DAY_S = 86_400


@check("queues-exist", area=AREA)
def queues_exist(facts: Facts) -> Iterator[Finding]:
    """Every worker's queue and dead-letter queue exists."""
    for worker in facts.fleet.workers.values():
        for name in (worker.queue, worker.dead_letter_queue):
            if name in facts.queues:
                yield passed(name, "exists")
            else:
                yield fail(
                    name, "does not exist (any more)", "Create it again under this name, as the template has it."
                )


@check("redrive-policy", area=AREA)
def redrive_policy(facts: Facts) -> Iterator[Finding]:
    """Every queue moves what is received too often to its own dead-letter queue."""
    for queue, dead in _pairs(facts):
        target = str(queue.redrive.get("deadLetterTargetArn", ""))
        if not target:
            said = "has no redrive policy: what kills its worker is received for ever, until SQS drops it"
            yield fail(queue.name, said, _set_redrive(queue, dead))
        elif target != dead.arn:
            said = f"sends what is received too often to {target.rpartition(':')[2]}, and not to {dead.name}"
            yield fail(queue.name, said, _set_redrive(queue, dead))
        else:
            yield passed(queue.name, f"leads to {dead.name}")
    yield from _none(facts)


@check("max-receive-count", area=AREA)
def max_receive_count(facts: Facts) -> Iterator[Finding]:
    """maxReceiveCount is a safety net that an outage does not use up."""
    for queue, dead in _pairs(facts):
        count = int(queue.redrive.get("maxReceiveCount", 0))
        if not count:
            yield skip(queue.name, "has no redrive policy")
        elif count < LEAST_RECEIVES:
            said = f"dead-letters after {count} receives: one outage of minutes sends healthy messages there"
            yield fail(queue.name, said, _set_redrive(queue, dead))
        elif count < SAFE_RECEIVES:
            said = f"dead-letters after {count} receives; an outage of hours sends healthy messages there"
            yield warn(queue.name, said, _set_redrive(queue, dead))
        else:
            yield passed(queue.name, f"dead-letters after {count:,} receives")
    yield from _none(facts)


@check("dlq-retention", area=AREA)
def dlq_retention(facts: Facts) -> Iterator[Finding]:
    """A dead-letter queue keeps messages longer than its source, and as long as SQS can."""
    # What SQS moves to a standard queue keeps its first timestamp, so its age in the source counts ("Setting up
    # dead-letter queues", SQS developer guide); in a FIFO queue it is reset.
    for queue, dead in _pairs(facts):
        days, source_days = dead.retention_s / DAY_S, queue.retention_s / DAY_S
        fix = set_attribute(facts, dead.url, "MessageRetentionPeriod=1209600")
        if dead.retention_s <= queue.retention_s and not dead.fifo:
            said = f"keeps messages for {days:g} days, {queue.name} for {source_days:g}: what SQS moves may go at once"
            yield fail(dead.name, said, fix)
        elif dead.retention_s < LONGEST_RETENTION_S:
            yield warn(dead.name, f"keeps messages for {days:g} days; SQS can for 14", fix)
        else:
            yield passed(dead.name, f"keeps messages for {days:g} days, {queue.name} for {source_days:g}")
    yield from _none(facts)


@check("dlq-allows-source", area=AREA, needs=deployed)
def dlq_allows_source(facts: Facts) -> Iterator[Finding]:
    """A dead-letter queue takes what its own queue sends, and nobody else's."""
    for queue, dead in _pairs(facts):
        permission = dead.allowed.get("redrivePermission", "allowAll")
        allowed = dead.allowed.get("sourceQueueArns", [])
        fix = (
            f"Set its RedriveAllowPolicy to byQueue with {queue.arn}: "
            "`aws sqs set-queue-attributes`, or deploy the template again."
        )
        if permission == "denyAll" or (permission == "byQueue" and queue.arn not in allowed):
            yield fail(dead.name, f"does not let {queue.name} use it as its dead-letter queue", fix)
        elif permission == "allowAll":
            yield warn(dead.name, "lets every queue of the account use it as its dead-letter queue", fix)
        elif others := [arn.rpartition(":")[2] for arn in allowed if arn != queue.arn]:
            yield warn(dead.name, f"lets {', '.join(others)} use it as well as {queue.name}", fix)
        else:
            yield passed(dead.name, f"takes from {queue.name} only")
    yield from _none(facts)


@check("queue-encryption", area=AREA, needs=deployed)
def queue_encryption(facts: Facts) -> Iterator[Finding]:
    """Messages are encrypted at rest."""
    for queue in facts.queues.values():
        if queue.encrypted:
            yield passed(queue.name, "encrypts messages at rest")
        else:
            fix = set_attribute(facts, queue.url, "SqsManagedSseEnabled=true")
            yield fail(queue.name, "keeps messages unencrypted", fix)
    yield from _none(facts)


@check("queue-tls", area=AREA, needs=deployed)
def queue_tls(facts: Facts) -> Iterator[Finding]:
    """Queues refuse requests without TLS."""
    for queue in facts.queues.values():
        if any(_denies_plain(statement) for statement in _statements(queue)):
            yield passed(queue.name, "refuses requests without TLS")
        else:
            yield warn(queue.name, "takes requests without TLS: its policy denies none", set_back(facts))
    yield from _none(facts)


@check("fifo-match", area=AREA)
def fifo_match(facts: Facts) -> Iterator[Finding]:
    """A FIFO queue has a FIFO dead-letter queue, and a standard queue a standard one."""
    for queue, dead in _pairs(facts):
        if queue.fifo != dead.fifo:
            fifo, other = (queue, dead) if queue.fifo else (dead, queue)
            said = f"is FIFO and {other.name} is not: SQS moves nothing between them"
            yield fail(fifo.name, said, set_back(facts))
        else:
            yield passed(queue.name, f"is {'FIFO' if queue.fifo else 'standard'}, and so is {dead.name}")
    yield from _none(facts)


@check("queue-drift", area=AREA)
def queue_drift(facts: Facts) -> Iterator[Finding]:
    """Queues are as the template made them."""
    wanted = _wanted(facts)
    for queue in facts.queues.values():
        if (one := wanted.get(queue.name)) is None:
            yield skip(queue.name, "the template has no queue of this name")
            continue
        expected = {name: value for name, value in one.attributes.items() if name in QUEUE_ATTRIBUTES}
        different = [
            f"{name} is {queue.attributes.get(name, 'not set')} and not {value}"
            for name, value in expected.items()
            if queue.attributes.get(name, "false" if value == "false" else None) != value
        ]
        count = queue.redrive.get("maxReceiveCount")
        if one.max_receive_count is not None and count is not None and int(count) != one.max_receive_count:
            different.append(f"maxReceiveCount is {count} and not {one.max_receive_count}")
        if different:
            yield warn(queue.name, f"was changed since it was deployed: {'; '.join(different)}", set_back(facts))
        else:
            yield passed(queue.name, "is as the template made it")
    yield from _none(facts)


@check("dlq-empty", area=AREA)
def dlq_empty(facts: Facts) -> Iterator[Finding]:
    """No dead letter waits for an operator."""
    for queue in facts.queues.values():
        if not queue.dead_letter:
            continue
        if queue.messages:
            letters = f"about {queue.messages:,} dead letter{'s' * (queue.messages != 1)}"
            yield warn(queue.name, f"holds {letters}", spillway(facts, f"dlq show {queue.worker}"))
        else:
            yield passed(queue.name, "is empty")
    yield from _none(facts)


def _pairs(facts: Facts) -> Iterator[tuple[Queue, Queue]]:
    """Queue and dead-letter queue of every worker that has both; `queues-exist` tells of the others."""
    for worker in facts.fleet.workers.values():
        queue, dead = facts.queues.get(worker.queue), facts.queues.get(worker.dead_letter_queue)
        if queue is not None and dead is not None:
            yield queue, dead


def _none(facts: Facts) -> Iterator[Finding]:
    if not facts.queues:
        yield skip(facts.fleet.name, "has no queue to look at")


def _wanted(facts: Facts) -> dict[str, WantedQueue]:
    """The template's queues, by the names that they were deployed under."""
    names = {one.physical_id: one.logical_id for one in facts.fleet.of_type("AWS::SQS::Queue", "")}
    if facts.fleet.local is not None:
        return {one.name: one for one in facts.stack.wanted.queues.values()}
    wanted = facts.stack.wanted.queues
    return {queue.name: wanted[names[queue.url]] for queue in facts.queues.values() if names.get(queue.url) in wanted}


def _statements(queue: Queue) -> list[dict[str, object]]:
    found = queue.policy.get("Statement", [])
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


def _denies_plain(statement: dict[str, object]) -> bool:
    condition = statement.get("Condition")
    if statement.get("Effect") != "Deny" or not isinstance(condition, dict):
        return False
    values = condition.get("Bool", {}).get("aws:SecureTransport", "")
    return str(values[0] if isinstance(values, list) and values else values).lower() == "false"


def _set_redrive(queue: Queue, dead: Queue) -> str:
    return (
        f"Set the RedrivePolicy of {queue.name} to deadLetterTargetArn {dead.arn} and maxReceiveCount 1000, "
        "or deploy the template again."
    )
