"""How the pool is doing: a judgement of each of the last minutes, and of the proxy's target. No I/O.

The pool is shared, so the judgement is the fleet's, not a worker's: whoever fills it, all of them wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PERIOD_S = 60
#: How many complete minutes are looked at: more than SETTLED_S and three calm ones.
WINDOW = 10
#: After this a minute without a value had none. RDS and EMF metrics show up within one to three minutes; until then a
#: missing value is unknown, neither calm nor busy. Afterwards it means that nothing was written: a queue at rest
#: publishes nothing, and its mapping must get back to its maximum all the same.
SETTLED_S = 300

#: The average wait for a connection, as a share of the borrow timeout, at which it is too long, and below which it is
#: no matter. Waits in a queue spread about exponentially: at a tenth, one in e^10 = 22,000 times out; at a fourth,
#: one in 55.
HIGH_WAIT = 0.10
CALM_WAIT = 0.05
#: The share of messages given back as saturated, at which more is turned away than a moment's bad luck.
HIGH_SATURATION = 0.05


class Level(IntEnum):
    """How a minute was; the larger, the worse. UNKNOWN minutes are passed over."""

    UNKNOWN = 0
    CALM = 1
    BUSY = 2  # nothing to lower for, too much to raise on
    WAITING = 3  # the wait for a connection is too long
    SATURATED = 4  # messages are being turned away


@dataclass(frozen=True, slots=True)
class Minute:
    """start: seconds since the epoch."""

    start: int
    level: Level


@dataclass(frozen=True, slots=True)
class Values:
    """What CloudWatch has of one minute; None: no value. wait_us: average borrow latency in microseconds."""

    wait_us: float | None = None
    messages: float | None = None
    saturated: float | None = None


def judge(values: Values, *, age_s: float, borrow_timeout: int) -> Level:
    """The level of a minute that ended `age_s` seconds ago; borrow_timeout 0: no proxy publishes a wait."""
    share = (values.saturated or 0.0) / max(values.messages or 0.0, 1.0)
    wait = (values.wait_us or 0.0) / 1_000_000 / borrow_timeout if borrow_timeout else 0.0
    if share >= HIGH_SATURATION:
        return Level.SATURATED
    if wait >= HIGH_WAIT:
        return Level.WAITING
    if share > 0 or wait >= CALM_WAIT:
        return Level.BUSY
    # What is there is calm, and what is missing may not be.
    missing = values.messages is None or (borrow_timeout > 0 and values.wait_us is None)
    return Level.UNKNOWN if missing and age_s < SETTLED_S else Level.CALM


def last_minutes(values: Mapping[int, Values], *, now: float, borrow_timeout: int) -> tuple[Minute, ...]:
    """The last complete minutes, newest first. values: by the minute's start in seconds since the epoch."""
    newest = int(now) // PERIOD_S * PERIOD_S - PERIOD_S
    return tuple(
        Minute(start, judge(values.get(start, Values()), age_s=now - start - PERIOD_S, borrow_timeout=borrow_timeout))
        for start in range(newest, newest - WINDOW * PERIOD_S, -PERIOD_S)
    )


class Health(Enum):
    """The proxy's target as the proxy sees it. UNKNOWN: nothing is enabled, disabled or raised on it."""

    AVAILABLE = "available"
    DOWN = "down"
    UNKNOWN = "unknown"


#: Reasons of an UNAVAILABLE target that mean an outage (RDS API reference, TargetHealth). Not among them, because a
#: fleet that is stopped by mistake costs more than receive counts: AUTH_FAILURE may be one secret of several, waiting
#: does not cure it, and its alarm calls somebody; PENDING_PROXY_CAPACITY is the proxy growing;
#: INVALID_REPLICATION_STATE and PROMOTED are states of a replica.
OUTAGE_REASONS = frozenset({"UNREACHABLE", "CONNECTION_FAILED"})


def target_health(targets: Iterable[Mapping[str, Any]]) -> tuple[Health, str]:
    """The health of what is written to, and why, from DescribeDBProxyTargets' Targets.

    Readers do not count, nor does the entry of an Aurora cluster itself (TRACKED_CLUSTER), which has no health. A
    target that cannot be reached may have lost its role, so UNKNOWN counts as a writer.
    """
    writers = [
        target.get("TargetHealth") or {}
        for target in targets
        if target.get("Role") != "READ_ONLY" and target.get("Type") != "TRACKED_CLUSTER"
    ]
    states = {":".join(filter(None, (w.get("State"), w.get("Reason")))) or "no state" for w in writers}
    said = ", ".join(sorted(states)) or "no writer"
    if any(writer.get("State") == "AVAILABLE" for writer in writers):
        return Health.AVAILABLE, said
    if writers and all(w.get("State") == "UNAVAILABLE" and w.get("Reason") in OUTAGE_REASONS for w in writers):
        return Health.DOWN, said
    return Health.UNKNOWN, said
