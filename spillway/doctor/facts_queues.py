"""The fleet's queues, as SQS describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spillway.aws_errors import NO_QUEUE, code_of
from spillway.fleet.fleet import queue_name

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

    from spillway.fleet.fleet import Fleet, Worker


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue; `attributes` are GetQueueAttributes's, as text. `dead_letter` is whether it is `worker`'s DLQ."""

    worker: str
    dead_letter: bool
    url: str
    attributes: Mapping[str, str]

    @property
    def name(self) -> str:
        return queue_name(self.url)

    @property
    def arn(self) -> str:
        return self.attributes["QueueArn"]

    @property
    def fifo(self) -> bool:
        return self.attributes.get("FifoQueue") == "true"

    @property
    def visibility_s(self) -> int:
        return int(self.attributes["VisibilityTimeout"])

    @property
    def retention_s(self) -> int:
        return int(self.attributes["MessageRetentionPeriod"])

    @property
    def messages(self) -> int:
        """How many there are, about: visible, in flight and delayed."""
        counts = ("", "NotVisible", "Delayed")
        return sum(int(self.attributes.get(f"ApproximateNumberOfMessages{one}", 0)) for one in counts)

    @property
    def redrive(self) -> dict[str, Any]:
        """The redrive policy: deadLetterTargetArn, maxReceiveCount; {} without one."""
        return _decoded(self.attributes.get("RedrivePolicy", ""))

    @property
    def allowed(self) -> dict[str, Any]:
        """The redrive allow policy: redrivePermission, sourceQueueArns; {} without one, which allows every queue."""
        return _decoded(self.attributes.get("RedriveAllowPolicy", ""))

    @property
    def encrypted(self) -> bool:
        return self.attributes.get("SqsManagedSseEnabled") == "true" or bool(self.attributes.get("KmsMasterKeyId"))

    @property
    def policy(self) -> dict[str, Any]:
        """Who may do what; {} without a policy."""
        return _decoded(self.attributes.get("Policy", ""))


def load(fleet: Fleet) -> dict[str, Queue]:
    """The queues by name; those that do not exist any more are missing. Raises botocore's errors."""
    client = fleet.sqs()
    found = [
        queue
        for worker in fleet.workers.values()
        for dead_letter in (False, True)
        if (queue := _queue(client, worker, dead_letter=dead_letter)) is not None
    ]
    return {queue.name: queue for queue in found}


def _queue(client: SQSClient, worker: Worker, *, dead_letter: bool) -> Queue | None:
    from botocore.exceptions import ClientError  # noqa: PLC0415

    url = worker.dead_letter_url if dead_letter else worker.queue_url
    try:
        attributes = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    except ClientError as error:
        if code_of(error) in NO_QUEUE:
            return None
        raise
    return Queue(worker.name, dead_letter, url, {str(name): value for name, value in attributes.items()})


def _decoded(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
