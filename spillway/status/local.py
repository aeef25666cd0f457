"""Reads the local stack: the counts that its owner leaves in a file, its SQS server, its RDS Proxy's admin."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from spillway.errors import SpillwayError
from spillway.rdsproxy.admin import AdminClient
from spillway.rdsproxy.settings import RdsProxyError
from spillway.stack.snapshot import Counts, MappingUse, QueueDepth, Snapshot, depth, status_file
from spillway.stack.state import read_state
from spillway.status.reading import FleetGoneError, MappingReading, ProxyReading, Reading, WorkerReading
from workers.runtime.telemetry import BREAKER_OPEN, OUTCOME_METRICS

if TYPE_CHECKING:
    from spillway.fleet.fleet import Fleet
    from spillway.rdsproxy.metrics import Snapshot as ProxySnapshot
    from spillway.stack.state import StackState

#: The owner writes its counts every second; when they are older than this, in seconds, it is busy or stopped.
STALE_S = 10.0


class LocalReader:
    """Reads one local stack, as often as asked."""

    def __init__(self, fleet: Fleet) -> None:
        if fleet.local is None:
            raise ValueError("expected the local stack")
        self._fleet = fleet
        self._state: StackState = fleet.local
        self._sqs = fleet.sqs()

    def read(self) -> Reading:
        """What the stack is doing now. Raises FleetGoneError when it has ended, SpillwayError when it does not answer.

        Its queues and its proxy are asked now, the counts are up to a second old.
        """
        self._require_running()
        now = time.time()
        snapshot = self._snapshot()
        queues = self._queues()
        problems: dict[str, str] = {}
        if (late_s := now - snapshot.taken_at) > STALE_S:
            problems["counts"] = f"the stack's process {self._state.pid} has not told any for {late_s:,.0f} s"
        return Reading(
            fleet=self._fleet.name,
            local=True,
            region=self._fleet.region,
            taken_at=now,
            queues=queues,
            workers={name: _worker(name, snapshot, queues[name], now) for name in queues},
            proxy=self._proxy(problems),
            problems=problems,
            done=snapshot.done,
            failed=snapshot.failed,
            outcomes=snapshot.outcomes,
            invocations=snapshot.invocations,
            environments=snapshot.environments,
            connections=snapshot.connections,
            running_s=now - self._state.started_at,
            pid=self._state.pid,
            logs=self._state.log_dir,
            last_error=snapshot.last_error,
        )

    def _require_running(self) -> None:
        running = read_state()
        if running is None or (running.pid, running.started_at) != (self._state.pid, self._state.started_at):
            raise FleetGoneError("The local stack has ended.", "Start one with `spillway up`.")

    def _snapshot(self) -> Snapshot:
        try:
            return msgspec.json.decode(status_file(self._state.log_dir).read_bytes(), type=Snapshot)
        except (OSError, msgspec.DecodeError) as error:
            raise SpillwayError("The local stack is still starting.", "Try again in a moment.") from error

    def _queues(self) -> dict[str, QueueDepth]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (with boto3, 0.2 s)

        dead_letters = self._state.dead_letter_queues
        try:
            return {name: depth(self._sqs, url, dead_letters.get(name)) for name, url in self._state.queues.items()}
        except (BotoCoreError, ClientError) as error:
            raise SpillwayError(
                f"The stack's SQS endpoint {self._state.endpoint_url} does not answer as SQS does: {error}.",
                f"Look at what `spillway up` says; it is process {self._state.pid}.",
            ) from error

    def _proxy(self, problems: dict[str, str]) -> ProxyReading | None:
        if self._state.proxy_admin_url is None:
            return None
        try:
            return _proxy(AdminClient(self._state.proxy_admin_url).snapshot())
        except RdsProxyError as error:
            problems["proxy"] = error.message
            return None


def _worker(name: str, snapshot: Snapshot, queue: QueueDepth, now: float) -> WorkerReading:
    mapping = snapshot.mappings.get(name)
    return WorkerReading(
        # An empty queue has no oldest message, whatever the latest batches were.
        oldest_s=_age(mapping, now) if queue.waiting or queue.in_flight else None,
        per_s=_rates(name, snapshot.counts, snapshot.minute_ago),
        turned_away=_since(BREAKER_OPEN, name, snapshot.counts, snapshot.minutes_ago),
        mapping=None if mapping is None else _mapping(mapping),
    )


def _mapping(mapping: MappingUse) -> MappingReading:
    return MappingReading(state=mapping.state, invoking=mapping.invoking, maximum=mapping.maximum, limit=mapping.limit)


def _age(mapping: MappingUse | None, now: float) -> float | None:
    return None if mapping is None or mapping.oldest_sent_at is None else max(now - mapping.oldest_sent_at, 0.0)


def _rates(worker: str, latest: Counts, earlier: Counts | None) -> dict[str, float] | None:
    if earlier is None or latest.at <= earlier.at:
        return None
    counts = {name: _since(metric, worker, latest, earlier) for name, metric in OUTCOME_METRICS.items()}
    return {name: count / (latest.at - earlier.at) for name, count in counts.items() if count}


def _since(metric: str, worker: str, latest: Counts, earlier: Counts | None) -> int:
    """How much a count has grown; from the start, where there is nothing earlier."""
    before = earlier.metrics.get(worker, {}).get(metric, 0) if earlier is not None else 0
    return latest.metrics.get(worker, {}).get(metric, 0) - before


def _proxy(proxy: ProxySnapshot) -> ProxyReading:
    value, borrow = proxy.cloudwatch, proxy.borrow_latency
    available = value["AvailabilityPercentage"] > 0
    return ProxyReading(
        name=proxy.proxy,
        client_connections=int(value["ClientConnections"]),
        database_connections=int(value["DatabaseConnections"]),
        max_database_connections=int(value["MaxDatabaseConnectionsAllowed"]),
        borrowed=int(value["DatabaseConnectionsCurrentlyBorrowed"]),
        pinned=int(value["DatabaseConnectionsCurrentlySessionPinned"]),
        borrow_average_s=borrow.sum / borrow.count if borrow.count else None,
        borrow_p50_s=borrow.p50,
        borrow_p99_s=borrow.p99,
        target="AVAILABLE" if available else "UNAVAILABLE",
        available=available,
        waiting=proxy.waiting,
        pinned_total=proxy.pinned_sessions_total,
        borrow_timeouts=proxy.borrow_timeouts,
    )
