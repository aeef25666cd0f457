"""The chain of times, worked out on what is deployed: a timeout changed by hand breaks it without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.doctor.finding import Finding, fail, passed, skip
from spillway.doctor.fixes import deploy_again, set_attribute
from spillway.doctor.registry import check
from workers.runtime.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_functions import Function
    from spillway.doctor.facts_queues import Queue

AREA = "times"

#: "Using Lambda with Amazon SQS": the visibility timeout is at least six times the function's, and the window.
VISIBILITY_FACTOR = 6
_DERIVED = "the template derives all times from DatabaseBorrowTimeout and DatabaseStatementTimeout"


@check("visibility-timeout", area=AREA)
def visibility_timeout(facts: Facts) -> Iterator[Finding]:
    """A queue's visibility timeout is at least six function timeouts and the batching window."""
    for function, queue in _consumers(facts):
        mapping = facts.mappings.get(function.worker)
        window = mapping.window_s if mapping else 0
        needed = VISIBILITY_FACTOR * function.timeout_s + window
        told = f"{VISIBILITY_FACTOR} x {function.timeout_s} s + window {window} s = {needed} s"
        if queue.visibility_s < needed:
            said = (
                f"hides a message for {queue.visibility_s} s, less than {told}: it may come again while it is processed"
            )
            yield fail(queue.name, said, set_attribute(facts, queue.url, f"VisibilityTimeout={needed}"))
        else:
            yield passed(queue.name, f"hides a message for {queue.visibility_s} s, at least {told}")
    yield from _none(facts)


@check("chain-of-times", area=AREA)
def chain_of_times(facts: Facts) -> Iterator[Finding]:
    """A first attempt, with all its waits, fits into the function's timeout."""
    for function, queue in _consumers(facts):
        told = dict(function.environment)
        real = {
            "FUNCTION_TIMEOUT": str(function.timeout_s),
            "QUEUE_VISIBILITY_TIMEOUT": str(queue.visibility_s),
            "AWS_REGION": facts.fleet.region or "",
        }
        try:
            settings = Settings.from_env(told | real)
        except SettingsError as error:
            said = f"would not work with its real timeouts: {error}"
            yield fail(function.name, said, deploy_again(facts, _DERIVED))
            continue
        longest = settings.attempt + settings.connect_timeout
        yield passed(function.name, f"a first attempt takes {longest:g} s at most, of {function.timeout_s} s")
    yield from _none(facts)


@check("told-times", area=AREA)
def told_times(facts: Facts) -> Iterator[Finding]:
    """What functions are told of their own and their queue's timeout is true."""
    for function, queue in _consumers(facts):
        real = {"FUNCTION_TIMEOUT": function.timeout_s, "QUEUE_VISIBILITY_TIMEOUT": queue.visibility_s}
        wrong = [
            f"{name} says {function.environment.get(name, 'nothing')}, it is {value}"
            for name, value in real.items()
            if function.environment.get(name) != str(value)
        ]
        if wrong:
            said = f"plans with wrong times: {'; '.join(wrong)}"
            yield fail(function.name, said, deploy_again(facts, _DERIVED))
        else:
            yield passed(function.name, "knows its own timeout and its queue's")
    yield from _none(facts)


def _consumers(facts: Facts) -> Iterator[tuple[Function, Queue]]:
    for function in facts.functions.values():
        worker = facts.fleet.workers.get(function.worker)
        if worker is not None and worker.queue in facts.queues:
            yield function, facts.queues[worker.queue]


def _none(facts: Facts) -> Iterator[Finding]:
    if not any(True for _ in _consumers(facts)):
        yield skip(facts.fleet.name, "has no consumer with a queue")
