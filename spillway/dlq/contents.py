"""One dead letter in full, in a shape that can be printed: its event and body with what is to be hidden taken out."""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

import msgspec

from spillway.dlq.letters import Cause
from spillway.dlq.redaction import HIDDEN
from workers.runtime.envelope import MAX_WRAPPERS, unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from spillway.dlq.letters import Letter
    from spillway.dlq.redaction import Path

#: Decimal keeps the digits of a number as they were written: 1.10 does not become 1.1.
_decoder = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")
_plain_decoder = msgspec.json.Decoder(float_hook=lambda text: float(text) if isfinite(float(text)) else text)


class Attribute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message attribute: `text`, or `hex` of a binary one."""

    type: str
    text: str | None = None
    hex: str | None = None


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter. `attributes` are those that the message had before it was dead.

    `body` is the text byte for byte where nothing is hidden; else JSON without what is hidden, or None where it could
    not be read, so that nobody knows what is in it. `body_bytes` is the true size. `event` is the CloudEvent in it,
    None if there is none. `missing` are the paths at which this letter has nothing.
    """

    message_id: str
    event_id: str | None
    event_type: str | None
    group: str
    cause: Cause
    dead_since: datetime
    reasons: dict[str, str]
    sqs: dict[str, str]
    attributes: dict[str, Attribute]
    event: Any
    body: str | None
    body_bytes: int
    missing: list[str] = []


def contents_of(letter: Letter, hidden: Sequence[Path] = ()) -> Contents:
    """What is in `letter`, without what is at `hidden`: of the event, of the body, and of `attributes.NAME`."""
    attributes = {name: _attribute(value) for name, value in letter.own_attributes.items()}
    body: str | None = letter.body
    root, event = _decoded(letter.body)
    missing: list[str] = []
    if hidden:
        named: dict[str, Any] = {"attributes": dict(attributes)}
        missing = [path.text for path in hidden if not sum(path.hide(place) for place in _places(root, event, named))]
        attributes = _hidden(attributes, named["attributes"])
        body = _encoder.encode(root).decode() if root is not None else None
    return Contents(
        message_id=letter.message_id,
        event_id=letter.event_id,
        event_type=letter.event_type,
        group=letter.cause.key,
        cause=letter.cause,
        dead_since=letter.dead_since,
        reasons=letter.reasons,
        sqs=letter.system,
        attributes=attributes,
        event=_plain_decoder.decode(_encoder.encode(event)) if isinstance(event, dict) else None,
        body=body,
        body_bytes=len(letter.body.encode(errors="surrogatepass")),
        missing=missing,
    )


def indented(text: str) -> str:
    """JSON with two blanks for each level, every number and text as it is written; other text as it is."""
    try:
        root, event = _decoded(text)
        if root is not event:  # within SNS's envelope the event is text: more readable as what it is
            text = _encoder.encode(root).decode()
        return msgspec.json.format(text, indent=2)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def _decoded(body: str) -> tuple[Any, Any]:
    """The body as JSON, and the event in it, which is a part of it; both None if it is no JSON."""
    try:
        root = event = _decoder.decode(body)
        text: str | bytes = body
        for _ in range(MAX_WRAPPERS):
            wrapped = unwrap(text)
            if wrapped is None or not isinstance(event, dict):
                break
            text = wrapped
            inner = _decoder.decode(text)
            event["Message" if event.get("Message") == text else "detail"] = inner
            event = inner
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None, None
    return root, event


def _places(root: Any, event: Any, named: dict[str, Any]) -> list[Any]:
    return [named, root] if root is event else [named, root, event]


def _hidden(attributes: dict[str, Attribute], left: Any) -> dict[str, Attribute]:
    """`attributes` with HIDDEN for the values that `left` has it for, or for all of them."""
    return {
        name: one if isinstance(left, dict) and left[name] is one else Attribute(type=one.type, text=HIDDEN)
        for name, one in attributes.items()
    }


def _attribute(value: Mapping[str, Any]) -> Attribute:
    if "BinaryValue" in value:
        return Attribute(type=value["DataType"], hex=bytes(value["BinaryValue"]).hex())
    return Attribute(type=value["DataType"], text=value.get("StringValue", ""))
