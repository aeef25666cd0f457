"""SQS events as Lambda hands them to a worker. Every value is fixed, so a file changes only when its source does."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from spillway.samples.events import Event, body_of

REGION = "eu-central-1"
ACCOUNT = "123456789012"
#: 2026-01-15T09:30:00Z in milliseconds.
SENT_AT = 1_768_469_400_000


@dataclass(frozen=True)
class Sample:
    """One file: what it shows and what a worker makes of it on an empty database."""

    name: str
    shows: str
    outcome: str
    event: dict[str, Any]


def record(
    body: str,
    index: int = 0,
    *,
    queue: str,
    attributes: dict[str, str] | None = None,
    message_attributes: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One element of `Records`, with every field Lambda sends for SQS (facts.md lists them)."""
    message_id = str(UUID(bytes=uuid5(NAMESPACE_URL, f"{queue}/{index}/{body}").bytes, version=4))
    sent_at = SENT_AT + 100 * index
    return {
        "messageId": message_id,
        "receiptHandle": base64.b64encode(hashlib.sha512(message_id.encode()).digest()).decode(),
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": "1",
            "AWSTraceHeader": f"Root=1-{sent_at // 1000:08x}-{index:024x};Parent={index + 1:016x};Sampled=0",
            "SentTimestamp": str(sent_at),
            "SenderId": "AIDAEXAMPLESENDERID00",
            "ApproximateFirstReceiveTimestamp": str(sent_at + 25),
        }
        | (attributes or {}),
        "messageAttributes": message_attributes or {},
        "md5OfBody": hashlib.md5(body.encode(), usedforsecurity=False).hexdigest(),
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}",
        "awsRegion": REGION,
    }


def events_of(queue: str, bodies: list[str]) -> dict[str, Any]:
    """An SQS event of one record for each of `bodies`; on a FIFO queue each is a group of its own."""
    fifo = queue.endswith(".fifo")
    return {
        "Records": [
            record(
                body,
                index,
                queue=queue,
                attributes=fifo_attributes(f"group-{index}", f"sent-{index}", index) if fifo else None,
            )
            for index, body in enumerate(bodies)
        ]
    }


def fifo_events_of(queue: str, events: list[Event], received: int = 1) -> dict[str, Any]:
    """An SQS event of a FIFO queue: the group is the event's subject, the deduplication id its id."""
    return {
        "Records": [
            record(
                body_of(event),
                index,
                queue=queue,
                attributes=fifo_attributes(event["subject"], event["id"], index)
                | {"ApproximateReceiveCount": str(received)},
            )
            for index, event in enumerate(events)
        ]
    }


def fifo_attributes(group: str, deduplication_id: str, index: int) -> dict[str, str]:
    """The system attributes that only a FIFO queue's messages have."""
    return {
        "MessageGroupId": group,
        "MessageDeduplicationId": deduplication_id,
        "SequenceNumber": str(18_870_000_000_000_000_000 + 256 * index),
    }


def message_attribute(data_type: str, **value: str) -> dict[str, Any]:
    """One of `messageAttributes`, in Lambda's spelling."""
    return value | {"stringListValues": [], "binaryListValues": [], "dataType": data_type}
