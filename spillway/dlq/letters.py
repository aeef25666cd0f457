"""What a dead letter says: why it is one, since when, and which event it holds, whatever put it there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from spillway.dead_letters import original_attributes, reasons_of
from spillway.packing import MAX_MESSAGE_BYTES
from workers.runtime.envelope import MAX_WRAPPERS, identify, unwrap

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import MessageTypeDef

#: The reasons of letters that no worker gave one: SQS itself moved it after maxReceiveCount receives, or neither SQS
#: nor a worker says anything about it.
MOVED = "moved by SQS"
FOREIGN = "foreign"
#: A worker sends a letter without its reasons where they do not fit. They take a few hundred bytes, 2 KiB at most.
_REASONS_BYTES = 2048
NO_ROOM = "too large to carry a reason"

#: What differs between two letters of the same cause, in the details that msgspec, PostgreSQL and the workers write.
#: Numbers that stay are the contract's.
_VARYING = (
    (re.compile(r"\[\d+\]"), "[*]"),
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "*"),
    (re.compile(r"\b(byte|character|char|column|line|position|row|sequence|got)( |: )-?\d+(?:\.\d+)?\b"), r"\1\2*"),
    (re.compile(r"=\([^()]*\)"), "=(*)"),  # PostgreSQL: Key (order_id)=(42) already exists
    (re.compile(r"'(?:[^'\\]|\\.)*'(?!\w)"), "'*'"),
    (re.compile(r'"(?:[^"\\]|\\.)*"'), '"*"'),
)
#: Where in the body msgspec stopped, at the end of its messages.
_PLACE = re.compile(r" - at `(?P<path>[^`]*)`\Z|\((?P<byte>byte \d+)\)\Z")


class Cause(msgspec.Struct, frozen=True, order=True):
    """Why letters are dead, and what they have in common; letters of one cause are mended together.

    `reason` is one of docs/outcomes.md, MOVED or FOREIGN. `code` is a SQLSTATE or ''. `detail` has `*` for whatever
    differs from message to message. Each is '' where nobody said.
    """

    reason: str
    code: str = ""
    detail: str = ""
    event_type: str = ""
    worker_version: str = ""

    @property
    def key(self) -> str:
        """Eight hexadecimal digits that stand for this cause, in every run and on every machine."""
        return hashlib.sha256("\0".join(msgspec.structs.astuple(self)).encode(errors="surrogatepass")).hexdigest()[:8]


class Letter(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One message of a dead-letter queue.

    `attributes` are its message attributes as ReceiveMessage gives them, the workers' included; `system` are SQS's own;
    `reasons` what a worker wrote down (docs/outcomes.md), {} if none did.
    """

    message_id: str
    receipt_handle: str
    body: str
    attributes: dict[str, Any] = {}
    system: dict[str, str] = {}
    reasons: dict[str, str] = {}

    @cached_property
    def cause(self) -> Cause:
        """Why it is here."""
        return Cause(
            self.reason, self.reasons.get("sqlstate", ""), self._detail, self.event_type or "", self._worker_version
        )

    @property
    def reason(self) -> str:
        """The worker's reason, MOVED or FOREIGN."""
        if reason := self.reasons.get("reason", ""):
            return reason
        return MOVED if "DeadLetterQueueSourceArn" in self.system else FOREIGN

    @property
    def place(self) -> str:
        """Where in the body the trouble is, such as `$.data.items[3].sku` or `byte 17`; '' where nobody said."""
        found = _PLACE.search(self.reasons.get("detail", ""))
        return (found["path"] or found["byte"]) if found else ""

    @cached_property
    def sent_at(self) -> datetime:
        """When it was sent. A standard dead-letter queue keeps the time at which a letter that SQS moved was sent to
        its first queue; a FIFO queue does not ("Dead-letter queues", SQS developer guide)."""
        return _moment(self.system.get("SentTimestamp", ""))

    @cached_property
    def dead_since(self) -> datetime:
        """When a worker dead-lettered it; where none did, `sent_at`."""
        try:
            moment = datetime.fromisoformat(self.reasons["last-seen"])
        except (KeyError, ValueError):
            return self.sent_at
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @property
    def receives(self) -> int:
        """How often it was received from the dead-letter queue, by anybody; looking counts, too."""
        count = self.system.get("ApproximateReceiveCount", "")
        return int(count) if count.isascii() and count.isdigit() else 1

    @property
    def group_id(self) -> str | None:
        return self.system.get("MessageGroupId")

    @cached_property
    def event(self) -> dict[str, Any] | None:
        """The CloudEvent, taken out of the envelopes of SNS and EventBridge; None if the body is no JSON object."""
        body: str | bytes = self.body
        for _ in range(MAX_WRAPPERS + 1):
            try:
                event = msgspec.json.decode(body)
                inner = unwrap(body)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                return None
            if inner is None:
                return event if isinstance(event, dict) else None
            body = inner
        return None

    @property
    def event_id(self) -> str | None:
        """The event's id, if it is a UUID."""
        return self.reasons.get("event-id") or self._identity[0] or None

    @property
    def event_type(self) -> str | None:
        """The event's type, if it looks like one."""
        return self.reasons.get("event-type") or self._identity[1] or None

    @property
    def subject(self) -> str | None:
        subject = (self.event or {}).get("subject")
        return subject if isinstance(subject, str) else None

    @property
    def size(self) -> int:
        """Bytes that count to SQS's limit: the body, and the attributes' names, types and values."""
        return len(self.body.encode(errors="surrogatepass")) + sum(map(_attribute_size, self.attributes.items()))

    @property
    def own_attributes(self) -> dict[str, Any]:
        """The attributes that the message had before it was dead, as SendMessage takes them."""
        return original_attributes({"MessageAttributes": self.attributes})

    @property
    def _detail(self) -> str:
        if not self.reasons and self.size > MAX_MESSAGE_BYTES - _REASONS_BYTES:
            return NO_ROOM
        return template_of(self.reasons.get("detail", ""))

    @property
    def _worker_version(self) -> str:
        return self.reasons.get("worker-version", "")

    @cached_property
    def _identity(self) -> tuple[str, str]:
        return identify(self.body)


def read_letter(message: Mapping[str, Any] | MessageTypeDef) -> Letter:
    """The letter in one of ReceiveMessage's messages; all message and system attributes should have been asked for."""
    return Letter(
        message_id=message["MessageId"],
        receipt_handle=message["ReceiptHandle"],
        body=message.get("Body", ""),
        attributes=dict(message.get("MessageAttributes", {})),
        system={str(name): value for name, value in message.get("Attributes", {}).items()},
        reasons=reasons_of(message),
    )


def template_of(detail: str) -> str:
    """`detail` with `*` for array indices, byte offsets, quoted values, ids and sequence numbers."""
    for varying, instead in _VARYING:
        detail = varying.sub(instead, detail)
    return detail


def _moment(milliseconds: str) -> datetime:
    number = int(milliseconds) if milliseconds.isascii() and milliseconds.isdigit() else 0
    return datetime.fromtimestamp(number / 1000, UTC)


def _attribute_size(attribute: tuple[str, Mapping[str, Any]]) -> int:
    name, value = attribute
    content = (
        value["BinaryValue"] if "BinaryValue" in value else value.get("StringValue", "").encode(errors="surrogatepass")
    )
    return len(name.encode(errors="surrogatepass")) + len(value.get("DataType", "")) + len(content)
