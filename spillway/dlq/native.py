"""SQS's own way to redrive: a move task. Fast to start and runs without this process, but it moves everything."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec

from spillway.aws_errors import code_of
from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mypy_boto3_sqs import SQSClient

#: "StartMessageMoveTask", SQS API reference.
MAX_RATE = 500
_POLL_S = 1.0
RUNNING, CANCELLING, COMPLETED, CANCELLED, FAILED = "RUNNING", "CANCELLING", "COMPLETED", "CANCELLED", "FAILED"

#: What one should know before ("StartMessageMoveTask" and "Configuring a dead-letter queue redrive", SQS guides).
LIMITS = (
    "It moves every message of the dead-letter queue, also those that arrive meanwhile: no filter, no edit, no canary.",
    f"At most {MAX_RATE} messages a second, for at most 36 hours; one task for a queue at a time.",
    "Messages get new message ids, and keep the attributes that say why they were dead letters.",
    "What fails again comes back to the dead-letter queue while the task runs, and is moved again.",
)


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A move task. `moved` and `to_move` are SQS's own approximate counts, `to_move` None until it is known."""

    status: str
    moved: int = 0
    to_move: int | None = None
    failure: str = ""
    handle: str = ""

    @property
    def over(self) -> bool:
        return self.status not in (RUNNING, CANCELLING)


def arn_of(client: SQSClient, queue_url: str) -> str:
    """A queue's ARN."""
    return client.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]


def start(client: SQSClient, source_arn: str, destination_arn: str, rate: int | None) -> str:
    """Start a task and return its handle. `rate` is in messages per second; without it SQS chooses.

    The destination is always named: SQS knows where it moved a message from, and nothing of those that workers sent.
    Raises SpillwayError where there are no move tasks.
    """
    limits: Any = {} if rate is None else {"MaxNumberOfMessagesPerSecond": rate}
    with _Explained():
        answer = client.start_message_move_task(SourceArn=source_arn, DestinationArn=destination_arn, **limits)
    return answer["TaskHandle"]


def latest(client: SQSClient, source_arn: str) -> Task | None:
    """The latest task of a dead-letter queue; None if it never had one. Raises SpillwayError where there are none."""
    with _Explained():
        results = client.list_message_move_tasks(SourceArn=source_arn, MaxResults=1).get("Results", [])
    return _task(results[0]) if results else None


def follow(
    client: SQSClient,
    source_arn: str,
    handle: str,
    *,
    on_progress: Callable[[Task], object],
    stop: threading.Event,
    poll_s: float = _POLL_S,
) -> Task:
    """Wait for the end of the task that was just started; when `stop` is set, cancel it. Returns how it ended.

    What was moved before a cancellation stays moved.
    """
    task = Task(status=RUNNING, handle=handle)
    while True:
        # The newest is ours: there is only one at a time.
        task = latest(client, source_arn) or task
        on_progress(task)
        if task.over:
            return task
        if stop.wait(poll_s):
            return _cancelled(client, source_arn, task, handle)


def _cancelled(client: SQSClient, source_arn: str, task: Task, handle: str) -> Task:
    from botocore.exceptions import ClientError  # noqa: PLC0415  (0.1 s)

    try:
        moved = client.cancel_message_move_task(TaskHandle=handle)["ApproximateNumberOfMessagesMoved"]
    except ClientError:
        # Only a task that runs can be cancelled; this one may have come to its end in this second.
        if (ended := latest(client, source_arn)) is not None and ended.over:
            return ended
        raise
    return Task(status=CANCELLED, moved=moved, to_move=task.to_move, handle=handle)


def _task(result: Mapping[str, Any]) -> Task:
    return Task(
        status=result["Status"],
        moved=result.get("ApproximateNumberOfMessagesMoved", 0),
        to_move=result.get("ApproximateNumberOfMessagesToMove"),
        failure=result.get("FailureReason", ""),
        handle=result.get("TaskHandle", ""),
    )


class _Explained:
    """What an SQS server says that has no move tasks."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from botocore.exceptions import ClientError  # noqa: PLC0415  (0.1 s)

        if isinstance(error, ClientError) and code_of(error) == "InvalidAction":
            raise SpillwayError(
                "This SQS server has no message move tasks; only AWS has.", "Redrive without --native."
            ) from error
