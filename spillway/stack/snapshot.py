"""The running stack at one moment: what the status line and `spillway status` show."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from spillway.rdsproxy.settings import RdsProxyError
from workers.runtime.telemetry import OUTCOME_METRICS

if TYPE_CHECKING:
    import psycopg
    from mypy_boto3_sqs import SQSClient

    from spillway.rdsproxy.metrics import Snapshot as ProxySnapshot
    from spillway.stack.local import LocalStack


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


class Snapshot(msgspec.Struct, kw_only=True, frozen=True):
    """Counts since the stack started. `taken_at` is seconds since the epoch; `outcomes` are messages by outcome.

    `failed` counts messages by why their batch gave them back, as the event source saw it (partial_response.Reason).
    `connections` are the database's, from the workers or from their proxy. `proxy` is None where there is none.
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


def take(stack: LocalStack, admin: psycopg.Connection[tuple[Any, ...]]) -> Snapshot:
    """What `stack` is doing now. An SQS endpoint that does not answer shows as the last error."""
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
    outcomes = {outcome: int(stack.metrics.sum(name)) for outcome, name in OUTCOME_METRICS.items()}
    return Snapshot(
        taken_at=time.time(),
        queues=queues,
        done=sum(one.succeeded for one in stats),
        failed=dict(sum((one.failed_by_reason for one in stats), Counter[str]())),
        invocations=sum(one.invocations for one in stats),
        environments=sum(one.environments for one in stats),
        connections=stack.connections(admin),
        proxy=proxy,
        outcomes={outcome: count for outcome, count in outcomes.items() if count},
        last_error=errors[-1] if errors else None,
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


def _counts(client: SQSClient, url: str) -> tuple[int, int]:
    answer = client.get_queue_attributes(
        QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    )["Attributes"]
    return int(answer["ApproximateNumberOfMessages"]), int(answer["ApproximateNumberOfMessagesNotVisible"])
