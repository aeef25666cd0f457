"""What must hold once a run is drained. Pure functions over what was found, so that a test can feed them lies.

lost                every valid event was decided upon, or its message is still in the queue
applied twice       every invariant of every worker holds (its history compares the database with the truth)
dead letters        exactly the broken messages, each with its reason; a second copy of one is allowed, because SQS does
                    not send exactly once
healthy messages    none is dead-lettered, whatever happened; only what killed its environment is, as `crashed`
the rest            no pinned session, no deadlock, no invocation that raised, misreported or ran out of time
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mypy_boto3_sqs.type_defs import MessageTypeDef

_SHOWN = 3
#: How an invocation may end, beside success: what it gave back, and what happens when its process dies.
ORDINARY = frozenset({"success", "partial", "crash"})
CRASHED = "crashed"


class Kind(StrEnum):
    """What kind of promise was broken: the columns of the report."""

    LOST = "lost"
    TWICE = "applied twice"
    HEALTHY = "healthy message dead-lettered"
    DEAD_LETTER = "dead letter wrong"
    STUCK = "stuck"
    OTHER = "other"


class Violation(NamedTuple):
    """A promise that was broken. `what` is one sentence."""

    kind: Kind
    what: str


class Letter(NamedTuple):
    """A dead letter: the body, and the reason that it gives."""

    body: str
    reason: str


@dataclass(kw_only=True)
class Found:
    """What one worker has come to. Ids are text; `broken` says how often each broken body was sent.

    `claimed` are those of `event_ids` that were decided upon. `invariants` are the history's own sentences.
    """

    worker: str
    event_ids: frozenset[str]
    broken: Mapping[str, int]
    reasons: Mapping[str, str]
    claimed: Sequence[str]
    letters: Sequence[Letter]
    invariants: Sequence[str]
    killers: Mapping[str, str] = field(default_factory=dict)  # body -> event id
    killers_claimed: Sequence[str] = ()
    left: int = 0
    batches: Mapping[str, int] = field(default_factory=dict)
    may_time_out: bool = False


def check(found: Found) -> list[Violation]:
    """What is wrong with what one worker has come to."""
    name = found.worker
    result: list[Violation] = []
    if found.left:
        result.append(Violation(Kind.STUCK, f"{name}: {found.left} messages are still not done"))
    lost = sorted(found.event_ids - set(found.claimed))
    # Still in the queue is not lost; which ones those are, nobody can tell from outside.
    if len(lost) > found.left:
        result.append(Violation(Kind.LOST, f"{name}: {len(lost)} events are lost, {_some(lost)}"))
    if twice := [one for one, times in Counter(found.claimed).items() if times > 1]:
        result.append(Violation(Kind.TWICE, f"{name}: {len(twice)} events were claimed twice, {_some(twice)}"))
    if not found.left:
        result += [Violation(Kind.TWICE, f"{name}: {sentence}") for sentence in found.invariants[:_SHOWN]]
    if found.killers_claimed:
        result.append(Violation(Kind.OTHER, f"{name}: a message that kills took effect: {found.killers_claimed}"))
    result += _dead_letters(found)
    odd = {reason: count for reason, count in found.batches.items() if count and reason not in ORDINARY}
    if found.may_time_out:
        odd.pop("timeout", None)
    if odd:
        result.append(Violation(Kind.OTHER, f"{name}: invocations ended in {odd}"))
    return result


def _dead_letters(found: Found) -> list[Violation]:
    name = found.worker
    expected = {**found.reasons, **dict.fromkeys(found.killers, CRASHED)}
    reasons: dict[str, set[str]] = defaultdict(set)
    for letter in found.letters:
        reasons[letter.body].add(letter.reason)
    result = [
        Violation(Kind.HEALTHY, f"{name}: {_short(body)} is in the dead-letter queue because {sorted(why)}")
        for body, why in reasons.items()
        if body not in expected
    ][:_SHOWN]
    result += [
        Violation(Kind.DEAD_LETTER, f"{name}: {_short(body)} is dead because {sorted(why)}, not {expected[body]!r}")
        for body, why in reasons.items()
        if body in expected and why != {expected[body]}
    ][:_SHOWN]
    sent = Counter(found.broken) + Counter(found.killers.keys())
    missing = sent - Counter(letter.body for letter in found.letters)
    if missing and missing.total() > found.left:
        bodies = _some([_short(body) for body in missing])
        result.append(Violation(Kind.DEAD_LETTER, f"{name}: {missing.total()} broken messages are gone: {bodies}"))
    return result


def check_fleet(*, pins: int, deadlocks: int) -> list[Violation]:
    """What is wrong with the fleet as a whole."""
    result = []
    if pins:
        result.append(Violation(Kind.OTHER, f"{pins} sessions were pinned to their connection"))
    if deadlocks:
        result.append(Violation(Kind.OTHER, f"PostgreSQL found {deadlocks} deadlocks"))
    return result


def letters_of(messages: Iterable[MessageTypeDef]) -> list[Letter]:
    """Dead letters as they were received."""
    return [Letter(message["Body"], _reason(message.get("MessageAttributes", {}))) for message in messages]


def _reason(attributes: Mapping[str, Any]) -> str:
    if plain := attributes.get("spillway.reason", {}).get("StringValue"):
        return str(plain)
    try:
        return str(json.loads(attributes["spillway.dead-letter"]["StringValue"])["reason"])
    except (LookupError, ValueError):
        return ""


def _some(values: Sequence[str]) -> str:
    return ", ".join(values[:_SHOWN]) + (" ..." if len(values) > _SHOWN else "")


def _short(body: str) -> str:
    return repr(body if len(body) < 160 else body[:160] + "...")
