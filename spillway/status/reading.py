"""A fleet at one moment, as `spillway status --json` shows it, and what is worth doing about it.

Whatever could not be found out is None; `problems` then says why.
"""

from __future__ import annotations

import shlex

import msgspec

from spillway.errors import SpillwayError
from spillway.stack.snapshot import QueueDepth
from workers.runtime.writer import DONE

#: What an operator has to look at when messages are given back for it: it does not pass by itself.
OURS = ("misconfigured", "unknown", "poison")
#: A state of a mapping in which nothing is wrong, and those that lead to it (Lambda API reference,
#: EventSourceMappingConfiguration).
RUNNING_STATES = ("Enabled", "Creating", "Enabling", "Updating")


class FleetGoneError(SpillwayError):
    """There is nothing left to look at."""


class MappingReading(msgspec.Struct, kw_only=True, frozen=True):
    """An event source mapping. `invoking` is the concurrency now, `maximum` its MaximumConcurrency.

    `reserved` is the function's reserved concurrency, None where it has none. `limit` is how far a local mapping has
    scaled up; on AWS nobody can tell.
    """

    state: str
    invoking: int | None = None
    maximum: int | None = None
    reserved: int | None = None
    limit: int | None = None


class WorkerReading(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a worker beside its queues' depths.

    `oldest_s` is the age of the oldest message in seconds; locally that of the latest batches. `per_s` are messages in
    each second by outcome (docs/outcomes.md), over at most the last minute; what is 0 is left out. `turned_away` are
    the batches that its breakers turned away in the last five minutes.
    """

    oldest_s: float | None = None
    per_s: dict[str, float] | None = None
    turned_away: int | None = None
    mapping: MappingReading | None = None


class ProxyReading(msgspec.Struct, kw_only=True, frozen=True):
    """The RDS Proxy. Latencies are in seconds; on AWS they are the last minute's, locally those since the start.

    `target` is the state of the database as the proxy sees it, and the reason; `available` is None where it is neither
    good nor an outage. `waiting`, `pinned_total`, `borrow_timeouts` and `borrow_p50_s` only the local one tells.
    """

    name: str
    client_connections: int | None = None
    database_connections: int | None = None
    max_database_connections: int | None = None
    borrowed: int | None = None
    pinned: int | None = None
    borrow_average_s: float | None = None
    borrow_p99_s: float | None = None
    target: str | None = None
    available: bool | None = None
    waiting: int | None = None
    pinned_total: int | None = None
    borrow_timeouts: int | None = None
    borrow_p50_s: float | None = None

    @property
    def use(self) -> float | None:
        """The share of the pool that is open, 0 to 1."""
        if self.database_connections is None or not self.max_database_connections:
            return None
        return self.database_connections / self.max_database_connections


class GovernorReading(msgspec.Struct, kw_only=True, frozen=True):
    """The governor: its mode (off, observe, on), the workers that it holds down, and those that it keeps off.

    Both are by worker: what a mapping is set to, of what was deployed; and what the mapping's tag says.
    """

    mode: str
    holds: dict[str, str] = {}
    hands_off: dict[str, str] = {}


class Alarm(msgspec.Struct, kw_only=True, frozen=True):
    """An alarm in ALARM. `since` is ISO 8601."""

    name: str
    since: str


class Reading(msgspec.Struct, kw_only=True, frozen=True):
    """A fleet at one moment. `taken_at` is seconds since the epoch.

    `queues` and `workers` are by worker. `proxy` is None where there is none, `governor` where none runs. `problems`
    are the parts that could not be read, and why; what they would have told is missing. `next_commands` are worth
    running, the most useful first.

    The local stack's only, None on AWS: `done` and `failed` (messages by why their batch gave them back), `outcomes`
    (messages), `invocations`, `environments` and `connections` (to the database) since it started, `running_s`, `pid`
    and `logs`; `last_error` is what went wrong last, and still does.
    """

    fleet: str
    local: bool
    region: str | None
    taken_at: float
    queues: dict[str, QueueDepth]
    workers: dict[str, WorkerReading]
    proxy: ProxyReading | None = None
    governor: GovernorReading | None = None
    alarms: list[Alarm] = []
    problems: dict[str, str] = {}
    next_commands: list[str] = []
    done: int | None = None
    failed: dict[str, int] | None = None
    outcomes: dict[str, int] | None = None
    invocations: int | None = None
    environments: int | None = None
    connections: int | None = None
    running_s: float | None = None
    pid: int | None = None
    logs: str | None = None
    last_error: str | None = None


def per_second(per_s: dict[str, float] | None) -> tuple[float, float, float]:
    """Messages that were done, given back and dead-lettered in each second."""
    per_s = per_s or {}
    done = sum(rate for outcome, rate in per_s.items() if outcome in DONE)
    dead = per_s.get("dead-lettered", 0.0)
    back = sum(rate for outcome, rate in per_s.items() if outcome not in DONE and outcome != "dead-lettered")
    return done, back, dead


def is_down(reading: Reading) -> bool:
    """Whether something does not work that should: what `spillway doctor` finds the cause of."""
    stopped = any(
        one.mapping is not None and one.mapping.state not in RUNNING_STATES for one in reading.workers.values()
    )
    ours = any((one.per_s or {}).get(outcome) for one in reading.workers.values() for outcome in OURS)
    proxy = reading.proxy is not None and reading.proxy.available is False
    return stopped or ours or proxy or bool(reading.alarms or reading.last_error)


def with_next_commands(reading: Reading, *, stack: str | None, region: str | None, profile: str | None) -> Reading:
    """`reading` with the commands that it calls for; the rest are the options that named the fleet."""
    said = {"--stack": stack, "--region": region, "--profile": profile}
    options = "".join(f" {name} {shlex.quote(value)}" for name, value in said.items() if value is not None)
    commands = []
    fullest = max(reading.queues.items(), key=lambda one: one[1].dead, default=None)
    if fullest is not None and fullest[1].dead:
        commands.append(f"spillway dlq show {fullest[0]}{options}")
    if reading.proxy is not None and (reading.proxy.pinned or reading.proxy.pinned_total):
        commands.append(f"spillway pinned{options}")
    if is_down(reading):
        commands.append(f"spillway doctor{options}")
    return msgspec.structs.replace(reading, next_commands=commands)
