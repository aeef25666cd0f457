"""The running stack at one moment: what the status line and `spillway status` show."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from workers.runtime.telemetry import OUTCOME_METRICS

if TYPE_CHECKING:
    import psycopg
    from mypy_boto3_sqs import SQSClient

    from spillway.stack.local import LocalStack


class QueueDepth(msgspec.Struct, frozen=True):
    """What SQS says about a worker's queue: messages waiting, in flight, and in the dead-letter queue."""

    waiting: int
    in_flight: int
    dead: int


class Snapshot(msgspec.Struct, kw_only=True, frozen=True):
    """Counts since the stack started. `taken_at` is seconds since the epoch; `outcomes` are messages by outcome.

    `failed` counts messages by why their batch gave them back, as the event source saw it (partial_response.Reason).
    """

    taken_at: float
    queues: dict[str, QueueDepth]
    done: int
    failed: dict[str, int]
    invocations: int
    environments: int
    connections: int
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
        if self.failed:
            line += "  failed " + ", ".join(f"{count:,} ({reason})" for reason, count in self.failed.items())
        return f"{line}  last error: {self.last_error}" if self.last_error else line


def take(stack: LocalStack, admin: psycopg.Connection[tuple[Any, ...]]) -> Snapshot:
    """What `stack` is doing now. An SQS endpoint that does not answer shows as the last error."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    stats = stack.stats()
    errors = [one.last_error for one in stats if one.last_error and not one.healthy]
    queues = {}
    for name, (queue, dead) in stack.workers().items():
        try:
            queues[name] = depth(stack.client, stack.queue_urls[queue], stack.queue_urls.get(dead))
        except (BotoCoreError, ClientError) as error:
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
        outcomes={outcome: count for outcome, count in outcomes.items() if count},
        last_error=errors[-1] if errors else None,
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
