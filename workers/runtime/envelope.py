"""The CloudEvents 1.0 envelope every event travels in, and the way out of the envelopes around it.

An event is one JSON object: the envelope's attributes and, under ``data``, what happened. A worker's contract
subclasses :class:`CloudEvent` once per event type (``tag=`` is the CloudEvents ``type``) and joins them in a union.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, get_args
from uuid import UUID

import msgspec
from msgspec import Meta

from workers.runtime.failures import Poison, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

#: EventBridge behind SNS is two envelopes; nothing wraps deeper on purpose.
MAX_WRAPPERS = 2

#: PostgreSQL's timestamptz takes UTC offsets below 16 hours (MAX_TZDISP_HOUR in its datatype/timestamp.h).
MAX_UTC_OFFSET = timedelta(hours=16)

#: Characters of a poison's detail: it becomes a log field and an attribute of the dead letter.
MAX_DETAIL = 512

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Timestamp = Annotated[datetime, Meta(tz=True)]


class CloudEvent(msgspec.Struct, kw_only=True, frozen=True, gc=False, tag_field="type"):
    """The attributes all events share. ``id`` is the idempotency key: the same id is the same event, for ever.

    gc=False, here and in the contracts: decoded JSON has no cycles, and thousands of tracked objects a batch would make
    the collector run for nothing.
    """

    specversion: Annotated[Literal["1.0"], Meta(description="CloudEvents version.")]
    id: Annotated[UUID, Meta(description="Event id, a UUID (version 7 is fastest). Sending it again changes nothing.")]
    source: Annotated[Text, Meta(description="URI reference of the producer.", examples=["/shop/checkout"])]
    subject: Annotated[Text, Meta(description="What the event is about.")]
    time: Annotated[Timestamp, Meta(description="When the event was made, with UTC offset.")]
    datacontenttype: Annotated[Literal["application/json"], Meta(description="Media type of `data`.")] = (
        "application/json"
    )

    def __post_init__(self) -> None:
        if self.time.tzinfo is not UTC:
            require_storable(self.time, "time")


Event = TypeVar("Event", bound=CloudEvent)


def require_storable(moment: datetime, field: str) -> None:
    """Refuse a timestamp that RFC 3339 allows and PostgreSQL does not.

    Raises ValueError, which msgspec turns into a field-level ValidationError while decoding.
    """
    offset = moment.utcoffset()
    if offset and not -MAX_UTC_OFFSET < offset < MAX_UTC_OFFSET:
        raise ValueError(f"Expected `{field}` with a UTC offset below 16:00")


class EventDecoder(Generic[Event]):
    """Turns a message body into one of a contract's events, or says why it never will be one."""

    def __init__(self, contract: Any) -> None:
        self._decode_json: Callable[[str | bytes], Event] = msgspec.json.Decoder(contract).decode
        self._types = " | ".join(str(event.__struct_config__.tag) for event in get_args(contract) or (contract,))

    def decode(self, body: str | bytes) -> Event:
        """The event in `body`, which SNS or EventBridge may have wrapped.

        Raises Poison with reason `undecodable` (no JSON text in UTF-8) or `contract` (JSON, but not an event of this
        contract); its detail names the place and what was expected, never the value.
        """
        try:
            # A few hundred nanoseconds here are a tenth of a worker's own time, so the plain case makes no more calls
            # than it must.
            event = self._decode_json(body)
        except Exception:
            return self._decode_carefully(body)
        if _NUL in body if isinstance(body, str) else _NUL_BYTES in body:
            _require_no_nul(event)
        return event

    def _decode_carefully(self, body: str | bytes) -> Event:
        try:
            return self._unwrapped(body, MAX_WRAPPERS)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Poison(Reason.UNDECODABLE, _describe(error)) from None
        except RecursionError:
            raise Poison(Reason.UNDECODABLE, "JSON is nested too deeply") from None

    def _unwrapped(self, body: str | bytes, wrappers_left: int) -> Event:
        try:
            event = self._decode_json(body)
        except msgspec.ValidationError as violation:
            inner = unwrap(body) if wrappers_left else None
            if inner is None:
                raise Poison(Reason.CONTRACT, self._describe_violation(str(violation))) from None
            return self._unwrapped(inner, wrappers_left - 1)
        _require_no_nul(event)
        return event

    def _describe_violation(self, message: str) -> str:
        # msgspec quotes unknown tags, constants and fields. Details go to logs and dead letters; payload must not.
        if _UNKNOWN_TYPE.match(message):
            return f"Expected {self._types} - at `$.type`"
        message = _QUOTED_VALUE.sub("Expected the contract's constant", message)
        return _QUOTED_FIELD.sub("Expected no field but the contract's", message)[:MAX_DETAIL]


class _Wrapper(msgspec.Struct):
    """The few fields that tell an SNS notification and an EventBridge event from a CloudEvent."""

    type_: Any = msgspec.field(name="Type", default=None)
    topic: Any = msgspec.field(name="TopicArn", default=None)
    message: Any = msgspec.field(name="Message", default=None)
    detail_type: Any = msgspec.field(name="detail-type", default=None)
    detail: msgspec.Raw = msgspec.Raw()
    specversion: Any = None


_wrapper_decoder = msgspec.json.Decoder(_Wrapper)


def unwrap(body: str | bytes) -> str | bytes | None:
    """What one SNS or EventBridge envelope holds; None where `body` is neither."""
    try:
        wrapper = _wrapper_decoder.decode(body)
    except msgspec.ValidationError:
        return None
    if wrapper.specversion is not None:
        return None
    if wrapper.type_ == "Notification" and wrapper.topic is not None and isinstance(wrapper.message, str):
        return wrapper.message
    if wrapper.detail_type is not None and bytes(wrapper.detail):
        return bytes(wrapper.detail)
    return None


class _Identity(msgspec.Struct):
    """The two fields that name an event, whatever else is wrong with it."""

    id: Any = None
    type: Any = None


_identity_decoder = msgspec.json.Decoder(_Identity)
# Names that event types have; anything longer or stranger could be payload in the wrong place.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")


def identify(body: str | bytes) -> tuple[str, str]:
    """The event id and type in `body`, each '' unless it is a UUID and a name. For messages that are no valid event."""
    for _ in range(MAX_WRAPPERS + 1):
        try:
            identity = _identity_decoder.decode(body)
            inner = unwrap(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return "", ""
        if inner is None:
            return _uuid(identity.id), _name(identity.type)
        body = inner
    return "", ""


def _uuid(value: Any) -> str:
    try:
        return str(UUID(value)) if isinstance(value, str) and len(value) == len(str(UUID(int=0))) else ""
    except ValueError:
        return ""


def _name(value: Any) -> str:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


# How JSON text has to spell the character; an escaped backslash before "u0000" looks the same, so this only raises
# the suspicion.
_NUL, _NUL_BYTES = "\\u0000", b"\\u0000"


def _require_no_nul(event: CloudEvent) -> None:
    """Refuse U+0000: PostgreSQL's text has no such character, and one would abort the whole batch's JSON parameter."""
    if path := _nul_path(msgspec.to_builtins(event), "$"):
        raise Poison(Reason.CONTRACT, f"Expected text without the character U+0000 - at `{path}`"[:MAX_DETAIL])


def _nul_path(value: Any, path: str) -> str | None:
    match value:
        case str():
            return path if "\0" in value else None
        case dict():
            if any("\0" in key for key in value):
                return path
            children = [(child, f"{path}.{key}") for key, child in value.items()]
        case list():
            children = [(child, f"{path}[{index}]") for index, child in enumerate(value)]
        case _:
            return None
    return next((found for child, where in children if (found := _nul_path(child, where))), None)


# What is quoted may hold anything, backquotes and line feeds too: only the path at the very end is msgspec's own.
_REST = r".*?(?= - at `[^`]*`\Z|\Z)"
_UNKNOWN_TYPE = re.compile(r"Invalid value .* - at `\$\.type`\Z", re.DOTALL)
_QUOTED_VALUE = re.compile(rf"\AInvalid (?:enum )?value {_REST}", re.DOTALL)
_QUOTED_FIELD = re.compile(rf"\AObject contains unknown field {_REST}", re.DOTALL)


def _describe(error: Exception) -> str:
    return "Text is not valid UTF-8 (a lone surrogate)" if isinstance(error, UnicodeError) else str(error)
