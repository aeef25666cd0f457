"""Sends poison to the dead-letter queue at once, with the reason, instead of letting it fail maxReceiveCount times."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from workers.runtime.failures import Poison

#: SQS quotas: entries per SendMessageBatch, bytes per batch (and message), attributes per message.
MAX_ENTRIES = 10
MAX_BATCH_BYTES = 1_048_576
MAX_ATTRIBUTES = 10

#: Our attributes' names start with this, so that a redrive can take exactly these off again.
PREFIX = "spillway."

#: Seconds for the client to connect, and for each read. It tries once: what fails stays in its queue and comes again.
CLIENT_TIMEOUT_S = 1.0
#: What must be left of the invocation before a batch is sent: importing boto3 once, connecting, and the answer.
SEND_BUDGET_S = 1.0 + 2 * CLIENT_TIMEOUT_S

Record = dict[str, Any]


class DeadLetterQueue:
    """The dead-letter queue of one worker. The SQS client is made at the first poison, not at cold start."""

    def __init__(self, url: str, worker: str, client: Callable[[], Any] | None = None) -> None:
        self._url = url
        self._worker = worker
        self._make_client = client or _sqs_client
        self._client: Any = None

    def send(self, poisoned: Iterable[tuple[Record, Poison]], remaining_s: Callable[[], float]) -> tuple[set[str], str]:
        """Send `poisoned`; returns the message ids that SQS confirmed, and why the others were not ('' if none).

        Raises nothing: what is not confirmed stays in its queue and is reported as failed.
        """
        confirmed: set[str] = set()
        trouble = ""
        if not self._url:
            return confirmed, "DEAD_LETTER_QUEUE_URL is not set"
        for entries in _batches(self._entry(record, poison) for record, poison in poisoned):
            if remaining_s() < SEND_BUDGET_S:
                return confirmed, "no time left in this invocation"
            try:
                if self._client is None:
                    self._client = self._make_client()
                ids = {entry["Id"]: message_id for message_id, entry in entries}
                answer = self._client.send_message_batch(QueueUrl=self._url, Entries=[entry for _, entry in entries])
            except Exception as error:  # whatever it was, the messages are still in their queue
                trouble = f"{type(error).__name__}"
                continue
            confirmed.update(ids[sent["Id"]] for sent in answer.get("Successful", ()))
            for failed in answer.get("Failed", ()):
                trouble = str(failed.get("Code", "unknown"))
        return confirmed, trouble

    def _entry(self, record: Record, poison: Poison) -> tuple[str, dict[str, Any]]:
        attributes = record.get("attributes", {})
        entry: dict[str, Any] = {
            "MessageBody": record["body"],
            "MessageAttributes": _own_attributes(record) | self._reasons(record, poison),
        }
        if "AWSTraceHeader" in attributes:
            entry["MessageSystemAttributes"] = {
                "AWSTraceHeader": {"DataType": "String", "StringValue": attributes["AWSTraceHeader"]}
            }
        if "MessageGroupId" in attributes:
            entry["MessageGroupId"] = attributes["MessageGroupId"]
        if self._url.endswith(".fifo"):
            # The message id: sending again after a crash is then recognised as the same dead letter.
            entry["MessageDeduplicationId"] = record["messageId"]
        return record["messageId"], entry

    def _reasons(self, record: Record, poison: Poison) -> dict[str, Any]:
        attributes = record.get("attributes", {})
        reasons = {
            "reason": poison.reason.value,
            "detail": poison.detail,
            "sqlstate": poison.sqlstate,
            "worker": self._worker,
            "source-queue": record.get("eventSourceARN", ""),
            "message-id": record["messageId"],
            "receive-count": attributes.get("ApproximateReceiveCount", ""),
        }
        named = {f"{PREFIX}{name}": _text(value) for name, value in reasons.items() if value}
        if len(named) + len(record.get("messageAttributes") or ()) <= MAX_ATTRIBUTES:
            return named
        # The message brought so many attributes of its own that ours only fit as one.
        return {f"{PREFIX}dead-letter": _text(json.dumps({name: value for name, value in reasons.items() if value}))}


def _own_attributes(record: Record) -> dict[str, Any]:
    """The message's own attributes in the form that SendMessage takes; Lambda's has other names and base64."""
    attributes: Mapping[str, Any] = record.get("messageAttributes") or {}
    return {
        name: {"DataType": value["dataType"]}
        | (
            {"BinaryValue": base64.b64decode(value["binaryValue"])}
            if value.get("binaryValue") is not None
            else {"StringValue": value.get("stringValue", "")}
        )
        for name, value in attributes.items()
        if not name.startswith(PREFIX)
    }


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def _batches(entries: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Groups of at most 10 entries and 1 MiB, each entry with an Id that is its place in the group."""
    group: list[tuple[str, dict[str, Any]]] = []
    size = 0
    for message_id, entry in entries:
        entry_size = _size(entry)
        if group and (len(group) == MAX_ENTRIES or size + entry_size > MAX_BATCH_BYTES):
            yield group
            group, size = [], 0
        group.append((message_id, entry | {"Id": str(len(group))}))
        size += entry_size
    if group:
        yield group


def _size(entry: Mapping[str, Any]) -> int:
    """Bytes that count to SQS's limit: body and attributes' names, types and values."""
    total = len(entry["MessageBody"].encode("utf-8", "surrogatepass"))
    for name, value in entry["MessageAttributes"].items():
        content = value.get("BinaryValue") or value.get("StringValue", "").encode()
        total += len(name.encode()) + len(value["DataType"]) + len(content)
    return total


def _sqs_client() -> Any:
    # boto3 more than doubles a cold start, and most environments never see poison.
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    config = Config(connect_timeout=CLIENT_TIMEOUT_S, read_timeout=CLIENT_TIMEOUT_S, retries={"total_max_attempts": 1})
    return boto3.client("sqs", config=config)
