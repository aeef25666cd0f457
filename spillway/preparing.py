"""From what a caller has to what may be sent: complete the envelope, hold it against the contract, measure it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn
from uuid import UUID

import msgspec

from spillway.errors import SpillwayError
from spillway.ids import uuid7
from spillway.packing import MAX_ATTRIBUTES, MAX_MESSAGE_BYTES, Prepared, message_size
from workers.runtime.envelope import CloudEvent, EventDecoder
from workers.runtime.failures import Poison, Reason

#: "SendMessage", API reference: MessageGroupId and MessageDeduplicationId.
_GROUP_ID = re.compile(r"[A-Za-z0-9!-/:-@\[-`{-~]{1,128}")
#: "Amazon SQS message metadata": an attribute's name.
_ATTRIBUTE_NAME = re.compile(r"(?!(?i:aws|amazon)\.)(?!\.)(?!.*\.\.)[A-Za-z0-9_.-]{1,256}(?<!\.)")
#: The two characters JSON allows in a string and SQS does not allow in a body ("SendMessage": #x20 to #xD7FF,
#: #xE000 to #xFFFD, #x10000 to #x10FFFF).
_NONCHARACTERS = str.maketrans({"\ufffe": "\\ufffe", "\uffff": "\\uffff"})


class EventRefused(SpillwayError):
    """An event that cannot be sent. `reason` is `undecodable` or `contract`, as a worker would say it, or `too_large`,
    `group`, `attributes` for what SQS would not take; `detail` names the place and what was expected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class _Head(msgspec.Struct):
    """The attributes that may be missing."""

    specversion: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    time: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_head = msgspec.json.Decoder(_Head)

GroupBy = str | Callable[[Any], str]


class Preparer:
    """Prepares events of one contract for one queue.

    `group_by` gives the MessageGroupId: a path in the event such as `subject` or `data.customer`, or a function of it.
    Text that SQS does not take as a group id is replaced by its SHA-256.
    With `fifo` the event id becomes the deduplication id.
    """

    def __init__(self, contract: Any, *, fifo: bool, group_by: GroupBy | None) -> None:
        self._decoder: EventDecoder[CloudEvent] = EventDecoder(contract)
        self._fifo = fifo
        self._group_by = group_by

    def prepare(
        self,
        event: Mapping[str, Any] | bytes | str | CloudEvent,
        *,
        new_id: Callable[[], UUID] = uuid7,
        trace_header: str | None = None,
        attributes: Mapping[str, str | bytes] | None = None,
    ) -> Prepared:
        """`event` as compact JSON that its contract accepts.

        Missing `specversion`, `id` (from `new_id`) and `time` (now) are filled in; nothing else is invented, and what
        is given is sent as it is written. Raises EventRefused.
        """
        body = _compact(_completed(_text(event), new_id))
        try:
            decoded = self._decoder.decode(body)
        except Poison as poison:
            raise EventRefused(poison.reason, poison.detail) from None
        text = body.decode().translate(_NONCHARACTERS)
        attributes = _checked(attributes)
        size = message_size(text.encode(), attributes)
        if size > MAX_MESSAGE_BYTES:
            raise EventRefused("too_large", f"Expected at most {MAX_MESSAGE_BYTES} bytes, got {size}")
        event_id = str(decoded.id)
        return Prepared(
            body=text,
            size=size,
            event_id=event_id,
            group_id=self._group(decoded),
            dedup_id=event_id if self._fifo else None,
            trace_header=trace_header,
            attributes=attributes,
            event=decoded,
        )

    def _group(self, event: CloudEvent) -> str | None:
        match self._group_by:
            case None:
                return None
            case str() as path:
                group = _at(event, path)
            case function:
                group = function(event)
        # What SQS does not take as a group id is hashed: the same text is still the same group.
        return group if _GROUP_ID.fullmatch(group) else hashlib.sha256(group.encode()).hexdigest()


def _text(event: Mapping[str, Any] | bytes | str | CloudEvent) -> bytes:
    try:
        match event:
            case bytes():
                event.decode()  # msgspec does not look into strings that no contract asks for
                return event
            case str():
                return event.encode()
            case _:
                return msgspec.json.encode(event)
    except UnicodeError:
        raise EventRefused(Reason.UNDECODABLE, "Text is not valid UTF-8") from None
    except RecursionError:
        _too_deep()
    except (TypeError, ValueError, OverflowError) as error:
        raise EventRefused(Reason.UNDECODABLE, f"Expected what JSON can hold: {error}") from None


def _completed(text: bytes, new_id: Callable[[], UUID]) -> bytes:
    """`text` with the attributes it lacks written in front; other bytes stay as they are."""
    try:
        head = _head.decode(text)
    except msgspec.DecodeError as error:
        reason = Reason.CONTRACT if isinstance(error, msgspec.ValidationError) else Reason.UNDECODABLE
        raise EventRefused(reason, str(error)) from None
    except RecursionError:
        _too_deep()
    missing = {}
    if head.specversion is msgspec.UNSET:
        missing["specversion"] = "1.0"
    if head.id is msgspec.UNSET:
        missing["id"] = str(new_id())
    if head.time is msgspec.UNSET:
        missing["time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    if not missing:
        return text
    rest = text.partition(b"{")[2].lstrip()
    comma = b"" if rest.startswith(b"}") else b","
    return msgspec.json.encode(missing)[:-1] + comma + rest


def _compact(text: bytes) -> bytes:
    try:
        return msgspec.json.format(text, indent=-1)
    except RecursionError:
        _too_deep()
    except msgspec.DecodeError as error:
        raise EventRefused(Reason.UNDECODABLE, str(error)) from None


def _too_deep() -> NoReturn:
    raise EventRefused(Reason.UNDECODABLE, "JSON is nested too deeply") from None


def _at(event: CloudEvent, path: str) -> str:
    value: Any = event
    for name in path.split("."):
        value = getattr(value, name, None) if isinstance(value, msgspec.Struct) else None
    if value is None:
        raise EventRefused("group", f"Expected a group id - at `$.{path}`")
    return value if isinstance(value, str) else str(value)


def _checked(attributes: Mapping[str, str | bytes] | None) -> dict[str, str | bytes]:
    if not attributes:
        return {}
    if len(attributes) > MAX_ATTRIBUTES:
        raise EventRefused("attributes", f"Expected at most {MAX_ATTRIBUTES} attributes, got {len(attributes)}")
    for name, value in attributes.items():
        if not _ATTRIBUTE_NAME.fullmatch(name):
            raise EventRefused("attributes", "Expected attribute names of letters, digits, `_`, `-` and single `.`")
        if not value:
            raise EventRefused("attributes", f"Expected a value - at attribute `{name}`")
    return dict(attributes)
