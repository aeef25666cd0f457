"""Sends poison to the dead-letter queue at once, with the reason, instead of letting it fail maxReceiveCount times.

A dead letter is the message itself, body and attributes byte for byte, and one attribute more: `spillway.dead-letter`,
a JSON object that says why it is here and where it came from (spillway/dead_letters.py reads it). `spillway.reason`
repeats the reason as plain text where there is room, for consoles and filters.
"""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workers.runtime.envelope import identify
from workers.runtime.sqs import MAX_ATTRIBUTES, MAX_BATCH_BYTES, MAX_ENTRIES, REQUEST_S, Sqs
from workers.runtime.version import worker_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from workers.runtime.failures import Poison
    from workers.runtime.sqs import Record

#: Ours, so that a redrive can take exactly these off again.
ATTRIBUTE = "spillway.dead-letter"
REASON = "spillway.reason"
#: On a message whose sender wants to know what becomes of it; its value comes back in the log (telemetry.py, `canary`).
CANARY = "spillway.canary"
#: In our JSON: the attribute that made room for it.
FOLDED = "folded-attribute"

#: What must be left of the invocation before a batch is sent: importing boto3 once, connecting, and the answer.
SEND_BUDGET_S = 1.0 + REQUEST_S


class DeadLetterQueue:
    """The dead-letter queue of one worker."""

    def __init__(
        self, url: str, worker: str, sqs: Sqs, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._url = url
        self._worker = worker
        self._sqs = sqs
        self._now = now

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
                ids = {entry["Id"]: message_id for message_id, entry in entries}
                answer = self._sqs.client.send_message_batch(
                    QueueUrl=self._url, Entries=[entry for _, entry in entries]
                )
            except Exception as error:  # whatever it was, the messages are still in their queue
                trouble = f"{type(error).__name__}"
                continue
            confirmed.update(ids[sent["Id"]] for sent in answer.get("Successful", ()))
            for failed in answer.get("Failed", ()):
                trouble = str(failed.get("Code", "unknown"))
        return confirmed, trouble

    def _entry(self, record: Record, poison: Poison) -> tuple[str, dict[str, Any]]:
        attributes = record.get("attributes") or {}
        entry: dict[str, Any] = {"MessageBody": record["body"]}
        if "AWSTraceHeader" in attributes:
            entry["MessageSystemAttributes"] = {
                "AWSTraceHeader": {"DataType": "String", "StringValue": attributes["AWSTraceHeader"]}
            }
        if "MessageGroupId" in attributes:
            entry["MessageGroupId"] = attributes["MessageGroupId"]
        if self._url.endswith(".fifo"):
            # By message id alone: a second sending, because the first one's confirmation was lost, is then recognised
            # whichever receive it belongs to. A redrive makes a new message id, so that is another dead letter.
            entry["MessageDeduplicationId"] = f"dead-letter-{record['messageId']}"
        own = _own_attributes(record)
        for added in self._additions(record, poison, own):
            entry["MessageAttributes"] = added
            if _size(entry) <= MAX_BATCH_BYTES:
                break
        return record["messageId"], entry

    def _additions(self, record: Record, poison: Poison, own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The message's own attributes and ours, in shapes that take less and less room, down to none of ours."""
        reasons = self._reasons(record, poison)
        kept = dict(own)
        if len(own) >= MAX_ATTRIBUTES:
            # No room for even one more: the smallest travels inside ours, and can be taken out of it again.
            name = min(own, key=lambda each: len(json.dumps(_folded(each, own[each]))))
            reasons[FOLDED] = _folded(name, kept.pop(name))
        ours = kept | {ATTRIBUTE: _text(json.dumps(reasons))}
        if len(ours) < MAX_ATTRIBUTES:
            yield ours | {REASON: _text(poison.reason.value)}
        yield ours
        yield dict(own)  # better a dead letter without a reason than none

    def _reasons(self, record: Record, poison: Poison) -> dict[str, Any]:
        attributes = record.get("attributes") or {}
        event_id, event_type = identify(record["body"])
        reasons = {
            "reason": poison.reason.value,
            "detail": poison.detail,
            "sqlstate": poison.sqlstate,
            "worker": self._worker,
            "worker-version": worker_version(),
            "source-queue": record.get("eventSourceARN", ""),
            "message-id": record["messageId"],
            "event-id": event_id,
            "event-type": event_type,
            "first-seen": _moment(attributes.get("ApproximateFirstReceiveTimestamp", "")),
            "last-seen": _iso(self._now()),
            "receive-count": attributes.get("ApproximateReceiveCount", ""),
        }
        return {name: value for name, value in reasons.items() if value}


def _own_attributes(record: Record) -> dict[str, Any]:
    """The message's own attributes in the form that SendMessage takes; Lambda's has other names and base64.

    If it has been a dead letter before, what was added then is taken off.
    """
    attributes: Mapping[str, Any] = record.get("messageAttributes") or {}
    return own_attributes(
        {
            name: {"DataType": value["dataType"]}
            | (
                {"BinaryValue": base64.b64decode(value["binaryValue"])}
                if value.get("binaryValue") is not None
                else {"StringValue": value.get("stringValue", "")}
            )
            for name, value in attributes.items()
        }
    )


def own_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`attributes` (as SQS's API has them) without ours, and with the one that had to make room for ours."""
    own = {name: value for name, value in attributes.items() if name not in (ATTRIBUTE, REASON, CANARY)}
    folded = reasons_in(attributes).get(FOLDED)
    with suppress(AttributeError, KeyError, TypeError, ValueError):  # somebody else's, not as we write it
        own |= _unfolded(folded) if folded else {}
    return own


def reasons_in(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What our attribute among `attributes` (as SQS's API has them) says; {} if there is none that we wrote."""
    try:
        reasons = json.loads(attributes[ATTRIBUTE]["StringValue"])
    except (KeyError, TypeError, ValueError):
        return {}
    return reasons if isinstance(reasons, dict) else {}


def _folded(name: str, value: Mapping[str, Any]) -> dict[str, str]:
    content = value["BinaryValue"] if "BinaryValue" in value else value["StringValue"].encode()
    return {"name": name, "type": value["DataType"], "value": base64.b64encode(content).decode()}


def _unfolded(folded: Mapping[str, str]) -> dict[str, Any]:
    content = base64.b64decode(folded["value"], validate=True)
    binary = folded["type"].startswith("Binary")
    value = {"BinaryValue": content} if binary else {"StringValue": content.decode()}
    return {folded["name"]: {"DataType": folded["type"]} | value}


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def _moment(milliseconds: str) -> str:
    """SQS's timestamp, milliseconds since the epoch, in ISO 8601; '' where there is none."""
    if not (milliseconds.isascii() and milliseconds.isdigit()):
        return ""
    return _iso(datetime.fromtimestamp(int(milliseconds) / 1000, UTC))


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
