"""The running stack at one moment: what the status line and `spillway status` show."""

from __future__ import annotations

import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from spillway.rdsproxy.settings import RdsProxyError
from workers.runtime.telemetry import BREAKER_OPEN, OUTCOME_METRICS

if TYPE_CHECKING:
    import psycopg
    from mypy_boto3_sqs import SQSClient

    from spillway.rdsproxy.metrics import Snapshot as ProxySnapshot
    from spillway.stack.event_source import EventSourceMapping
    from spillway.stack.local import LocalStack
    from spillway.stack.metrics import MetricStore


#: How far back a snapshot looks: for rates, in seconds, and for what should not happen at all.
MINUTE_S = 60.0
MINUTES_S = 300.0


class QueueDepth(msgspec.Struct, frozen=True):
    """What SQS says about a worker's queue: messages waiting, in flight, and in the dead-letter queue."""

    waiting: int
    in_flight: int
    dead: int


class ProxyUse(msgspec.Struct, kw_only=True, frozen=True):
    """What the RDS Proxy says. `pinned` are sessions that are pinned now, `pinned_total` those that ever were.

    Borrow latencies are in seconds, None while nobody has borrowed.
    """

    client_connections: int
    database_connections: int
    max_database_connections: int
    waiting: int
    pinned: int
    pinned_total: int
    borrow_timeouts: int
    borrow_p50_s: float | None
    borrow_p99_s: float | None


class MappingUse(msgspec.Struct, kw_only=True, frozen=True):
    """What an event source mapping is doing. `invoking` batches at once, of `limit` to which it has scaled up.

    `maximum` is its MaximumConcurrency. `oldest_sent_at` is when the oldest message of its latest batches was sent, as
    seconds since the epoch, None where none of theirs is waiting. `last_error` is None while it receives well.
    """

    state: str
    invoking: int
    limit: int
    maximum: int | None
    oldest_sent_at: float | None
    last_error: str | None


class Counts(msgspec.Struct, frozen=True):
    """The metrics of each worker since the stack started, by worker and metric, at a moment (seconds since the epoch).

    Metrics that are zero are left out. They are those of `OUTCOME_METRICS`, and `BreakerOpen`.
    """

    at: float
    metrics: dict[str, dict[str, int]]


class Snapshot(msgspec.Struct, kw_only=True, frozen=True):
    """Counts since the stack started. `taken_at` is seconds since the epoch; `outcomes` are messages by outcome.

    `failed` counts messages by why their batch gave them back, as the event source saw it (partial_response.Reason).
    `connections` are the database's, from the workers or from their proxy. `proxy` is None where there is none.
    `mappings` are by worker. `minute_ago` and `minutes_ago` are earlier counts, at most MINUTE_S and MINUTES_S old;
    None where nobody kept any.
    """

    taken_at: float
    queues: dict[str, QueueDepth]
    done: int
    failed: dict[str, int]
    invocations: int
    environments: int
    connections: int
    proxy: ProxyUse | None
    outcomes: dict[str, int]
    last_error: str | None
    mappings: dict[str, MappingUse] = {}
    counts: Counts = Counts(0.0, {})
    minute_ago: Counts | None = None
    minutes_ago: Counts | None = None

    def line(self) -> str:
        """Everything in one line."""
        waiting = sum(queue.waiting for queue in self.queues.values())
        in_flight = sum(queue.in_flight for queue in self.queues.values())
        dead = sum(queue.dead for queue in self.queues.values())
        line = (
            f"waiting {waiting:,}  in flight {in_flight:,}  done {self.done:,}  dead letters {dead:,}  "
            f"environments {self.environments}  connections {self.connections}"
        )
        if self.proxy is not None:
            line += f"  clients {self.proxy.client_connections}  pinned {self.proxy.pinned}"
        if self.failed:
            line += "  failed " + ", ".join(f"{count:,} ({reason})" for reason, count in self.failed.items())
        return f"{line}  last error: {self.last_error}" if self.last_error else line


class History:
    """The counts of the last minutes, so that one snapshot tells rates."""

    def __init__(self) -> None:
        self._counts: deque[Counts] = deque()

    def add(self, counts: Counts) -> None:
        """Take in counts that are later than all before, and forget those that are too old."""
        self._counts.append(counts)
        while counts.at - self._counts[0].at > MINUTES_S:
            self._counts.popleft()

    def before(self, seconds: float) -> Counts | None:
        """The oldest counts that are at most `seconds` older than the latest; None where there are only those."""
        latest = self._counts[-1]
        return next((one for one in self._counts if one is not latest and latest.at - one.at <= seconds), None)


def take(stack: LocalStack, admin: psycopg.Connection[tuple[Any, ...]], history: History | None = None) -> Snapshot:
    """What `stack` is doing now. An SQS endpoint that does not answer shows as the last error.

    With a `history`, which is the caller's to keep, the snapshot says what was a while ago, too.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    stats = stack.stats()
    errors = [one.last_error for one in stats if one.last_error and not one.healthy]
    # As long as the last run is the one that failed.
    errors += [error for one in stack.schedules.values() if (error := one.stats.last_error)]
    queues = {}
    for name, (queue, dead) in stack.workers().items():
        try:
            queues[name] = depth(stack.client, stack.queue_urls[queue], stack.queue_urls.get(dead))
        except (BotoCoreError, ClientError) as error:
            errors.append(str(error))
    proxy = None
    if stack.proxy is not None:
        try:
            proxy = proxy_use(stack.proxy.snapshot())
        except RdsProxyError as error:
            stack.check_alive()
            errors.append(str(error))
    now = time.time()
    counts = Counts(now, _by_worker(stack.metrics))
    outcomes = Counter[str]()
    for metrics in counts.metrics.values():
        outcomes.update({outcome: metrics.get(name, 0) for outcome, name in OUTCOME_METRICS.items()})
    history = history or History()
    history.add(counts)
    return Snapshot(
        taken_at=now,
        queues=queues,
        done=sum(one.succeeded for one in stats),
        failed=dict(sum((one.failed_by_reason for one in stats), Counter[str]())),
        invocations=sum(one.invocations for one in stats),
        environments=sum(one.environments for one in stats),
        connections=stack.connections(admin),
        proxy=proxy,
        outcomes={outcome: count for outcome, count in outcomes.items() if count},
        last_error=errors[-1] if errors else None,
        mappings={name: _mapping_use(stack.mapping_of(name)) for name in stack.workers()},
        counts=counts,
        minute_ago=history.before(MINUTE_S),
        minutes_ago=history.before(MINUTES_S),
    )


def proxy_use(proxy: ProxySnapshot) -> ProxyUse:
    """The part of a proxy's snapshot that a line or a table has room for."""
    value = proxy.cloudwatch
    return ProxyUse(
        client_connections=int(value["ClientConnections"]),
        database_connections=int(value["DatabaseConnections"]),
        max_database_connections=int(value["MaxDatabaseConnectionsAllowed"]),
        waiting=proxy.waiting,
        pinned=int(value["DatabaseConnectionsCurrentlySessionPinned"]),
        pinned_total=proxy.pinned_sessions_total,
        borrow_timeouts=proxy.borrow_timeouts,
        borrow_p50_s=proxy.borrow_latency.p50,
        borrow_p99_s=proxy.borrow_latency.p99,
    )


def depth(client: SQSClient, url: str, dead_letter_url: str | None) -> QueueDepth:
    """Ask SQS for the depth of one worker's queue and dead-letter queue."""
    waiting, in_flight = _counts(client, url)
    return QueueDepth(waiting, in_flight, sum(_counts(client, dead_letter_url)) if dead_letter_url else 0)


def status_file(log_dir: Path | str) -> Path:
    """Where the process that owns the stack leaves its latest snapshot."""
    return Path(log_dir) / "status.json"


def _by_worker(metrics: MetricStore) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name in (*OUTCOME_METRICS.values(), BREAKER_OPEN):
        for worker, value in metrics.by_dimension(name, "service").items():
            if value:
                found.setdefault(worker, {})[name] = int(value)
    return found


def _mapping_use(mapping: EventSourceMapping) -> MappingUse:
    stats = mapping.stats
    return MappingUse(
        state="Enabled",  # the local stack knows no other
        invoking=stats.invoking,
        limit=stats.concurrency_limit,
        maximum=mapping.config.maximum_concurrency,
        oldest_sent_at=stats.oldest_sent_at,
        last_error=None if stats.healthy else stats.last_error,
    )


def _counts(client: SQSClient, url: str) -> tuple[int, int]:
    answer = client.get_queue_attributes(
        QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    )["Attributes"]
    return int(answer["ApproximateNumberOfMessages"]), int(answer["ApproximateNumberOfMessagesNotVisible"])
