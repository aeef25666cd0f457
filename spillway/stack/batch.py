"""From ReceiveMessage results to the event a function is invoked with, without I/O.

Record fields: AWS Lambda Developer Guide, "Using Lambda with Amazon SQS", example standard and FIFO queue events
(https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PAYLOAD_BYTES = 6 * 1024 * 1024
"""Synchronous invocation payload, request: 6 MB (Lambda quotas page); counted over the whole JSON event."""

_HEAD, _TAIL = b'{"Records":[', b"]}"


@dataclass(frozen=True, slots=True)
class Received:
    """One received message: its keys, and its record as JSON bytes, encoded once and measured.

    `sent_at` is SQS's SentTimestamp in seconds since the epoch, None where a server does not say.
    """

    message_id: str
    receipt_handle: str
    group_id: str | None
    record: bytes
    sent_at: float | None = None


def received(message: Mapping[str, Any], *, queue_arn: str, region: str) -> Received:
    """Encode one entry of ReceiveMessage's `Messages` (as boto3 returns it) as a Lambda record.

    Text goes out as UTF-8, not escaped, as Lambda sends it; only a lone surrogate, which SQS itself would refuse but a
    local server may let through, is escaped, because UTF-8 cannot carry it.
    """
    attributes = {name: str(value) for name, value in message.get("Attributes", {}).items()}
    record: dict[str, Any] = {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message.get("Body", ""),
        "attributes": attributes,
        "messageAttributes": {
            name: _message_attribute(value) for name, value in message.get("MessageAttributes", {}).items()
        },
        "md5OfBody": message.get("MD5OfBody", ""),
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": region,
    }
    if "MD5OfMessageAttributes" in message:
        record["md5OfMessageAttributes"] = message["MD5OfMessageAttributes"]
    try:
        encoded = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        encoded = json.dumps(record, separators=(",", ":")).encode()
    sent = attributes.get("SentTimestamp", "")
    return Received(
        message["MessageId"],
        message["ReceiptHandle"],
        attributes.get("MessageGroupId"),
        encoded,
        int(sent) / 1000 if sent.isascii() and sent.isdigit() else None,
    )


def _message_attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    """Lower the names, encode binary as base64; the list forms are reserved by SQS and always empty."""
    attribute: dict[str, Any] = {}
    if "StringValue" in value:
        attribute["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        attribute["binaryValue"] = _base64(value["BinaryValue"])
    attribute["stringListValues"] = list(value.get("StringListValues", ()))
    attribute["binaryListValues"] = [_base64(one) for one in value.get("BinaryListValues", ())]
    attribute["dataType"] = value["DataType"]
    return attribute


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


class Batch:
    """The messages of one invocation, in the order received."""

    __slots__ = ("_payload_bytes", "messages")

    def __init__(self) -> None:
        self.messages: list[Received] = []
        self._payload_bytes = len(_HEAD) + len(_TAIL)

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def groups(self) -> frozenset[str]:
        """The message groups it holds; empty for messages that have none."""
        return frozenset(message.group_id for message in self.messages if message.group_id is not None)

    def size_with(self, message: Received) -> int:
        """How many bytes the payload would have, were `message` added."""
        return self._payload_bytes + len(message.record) + (1 if self.messages else 0)  # 1: the comma

    def add(self, message: Received) -> None:
        self._payload_bytes = self.size_with(message)
        self.messages.append(message)

    def payload(self) -> bytes:
        """Return the invocation's payload: the JSON event, UTF-8."""
        return _HEAD + b",".join(message.record for message in self.messages) + _TAIL


class Gathering:
    """The batch being filled: closes it when it is full, when its window ends, or when the next message does not fit.

    The three conditions are Lambda's ("Batching behavior", Lambda Developer Guide, event source mappings). The window
    counts from the first message received, in seconds of the caller's clock. A message larger than the payload limit
    on its own (SQS allows 1 MiB, so no real one) travels alone rather than never.
    """

    def __init__(self, *, max_messages: int, window_s: float, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._max_messages = max_messages
        self._window_s = window_s
        self._max_payload_bytes = max_payload_bytes
        self._batch = Batch()
        self._due_at: float | None = None

    def __len__(self) -> int:
        return len(self._batch)

    @property
    def due_at(self) -> float | None:
        """When the window ends; None while there is no message."""
        return self._due_at

    @property
    def groups(self) -> frozenset[str]:
        return self._batch.groups

    def fits(self, message: Received) -> bool:
        """Whether the batch being filled can take `message`."""
        return not self._batch or self._batch.size_with(message) <= self._max_payload_bytes

    def add(self, message: Received, now: float) -> list[Batch]:
        """Take `message`; return the batches that this closed, oldest first (0, 1 or 2)."""
        closed = [] if self.fits(message) else self.close()
        if not self._batch:
            self._due_at = now + self._window_s
        self._batch.add(message)
        return closed + self.close() if len(self._batch) >= self._max_messages else closed

    def close_if_due(self, now: float) -> list[Batch]:
        """Return the batch if its window has ended, at most one."""
        return self.close() if self._due_at is not None and now >= self._due_at else []

    def close(self) -> list[Batch]:
        """Return the batch as it is, at most one, none if it is empty; the next message starts a new one."""
        if not self._batch:
            return []
        batch, self._batch, self._due_at = self._batch, Batch(), None
        return [batch]
