"""Dead letters in a file: one JSON object a line, so that a body comes back byte for byte.

    {"spillway": "dead letters", "version": 1, "queue": "prod-orders-dlq", "worker": "orders", ...}
    {"message_id": "...", "body": "...", "attributes": {...}, "reasons": {...}, "sqs": {...}}
    {"end": {"letters": 1, "complete": true}}

Lines end with a line feed. A text that UTF-8 cannot carry, which is one with a lone surrogate, stands under `base64`
instead, as its UTF-8 with surrogates ("WTF-8"). `reasons` repeats for readers what the attribute `spillway.dead-letter`
says, and is not read again. The last line tells a whole file from one that was cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

import msgspec

from spillway.dead_letters import original_attributes
from spillway.dlq.letters import Letter

FORMAT = "dead letters"
VERSION = 1
#: A message has 1 MiB at most, and JSON needs six bytes for a control character.
MAX_LINE_BYTES = 8 * 1_048_576
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Header(msgspec.Struct, kw_only=True, frozen=True):
    """The first line: what was exported, when. `filter` is in words, [] for everything."""

    spillway: str = FORMAT
    version: int = VERSION
    queue: str
    worker: str = ""
    fleet: str = ""
    exported_at: datetime | None = None
    filter: list[str] = []


class End(msgspec.Struct, kw_only=True, frozen=True):
    """The last line: how many letters there are in the file, and whether those are all that were asked for."""

    letters: int
    complete: bool


class _LastLine(msgspec.Struct, frozen=True):
    end: End


class Attribute(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message attribute. Binary ones have their value in `base64`, others where UTF-8 cannot carry them."""

    type: str
    value: str | None = None
    base64: bytes | None = None


class Entry(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A letter's line. `attributes` are all message attributes, the workers' included; `sqs` are SQS's own."""

    message_id: str
    body: str | None = None
    base64: bytes | None = None
    attributes: dict[str, Attribute] = {}
    reasons: dict[str, str] = {}
    sqs: dict[str, str] = {}

    @property
    def text(self) -> str:
        """The body."""
        return _text(self.body, self.base64)

    @property
    def message_attributes(self) -> dict[str, Any]:
        """As SendMessage takes them, and as they were received."""
        return {name: _value(one) for name, one in self.attributes.items()}

    @property
    def own_attributes(self) -> dict[str, Any]:
        """Those that the message had before it was dead, as SendMessage takes them."""
        return original_attributes({"MessageAttributes": self.message_attributes})


class BadLine(NamedTuple):
    """A line, numbered from 1, that is no letter, and why."""

    number: int
    why: str


class Numbered(NamedTuple):
    """A letter and its line's number."""

    number: int
    entry: Entry


Line = Header | End | Numbered | BadLine

_header = msgspec.json.Decoder(Header)
_entry = msgspec.json.Decoder(Entry)
_end = msgspec.json.Decoder(_LastLine)


def entry_of(letter: Letter) -> Entry:
    """The line of `letter`."""
    body, base64 = _carried(letter.body)
    return Entry(
        message_id=letter.message_id,
        body=body,
        base64=base64,
        attributes={name: _attribute(value) for name, value in letter.attributes.items()},
        reasons={_legible(name): _legible(value) for name, value in letter.reasons.items()},
        sqs={_legible(name): _legible(value) for name, value in letter.system.items()},
    )


def line_of(part: Header | Entry | End) -> bytes:
    """`part` with its line feed."""
    return msgspec.json.encode({"end": part} if isinstance(part, End) else part) + b"\n"


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """Every line of `file` that is not blank; a header may only be the first."""
    number = 0
    while text := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield BadLine(number, f"expected at most {MAX_LINE_BYTES:,} bytes")
            continue
        text = (text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text).strip(b" \t\r\n")
        if text:
            yield _read_line(number, text)


def _read_line(number: int, text: bytes) -> Line:
    try:
        if number == 1 and text.startswith(b'{"spillway"'):
            return _checked(_header.decode(text))
        if text.startswith(b'{"end"'):
            return _end.decode(text).end
        entry = _entry.decode(text)
        if (entry.body is None) == (entry.base64 is None):
            return BadLine(number, "expected one of `body` and `base64`")
        entry.text, entry.message_attributes  # noqa: B018  (raise for bytes that are no text)
    except UnicodeDecodeError as error:
        return BadLine(number, f"expected UTF-8, got another byte at {error.start}")
    except (msgspec.DecodeError, ValueError) as error:
        return BadLine(number, str(error))
    return Numbered(number, entry)


def _checked(header: Header) -> Header:
    if header.spillway != FORMAT:
        raise ValueError(f"expected a file of {FORMAT}, got one of {header.spillway!r}")
    if header.version > VERSION:
        raise ValueError(f"expected version {VERSION} of the format, got {header.version}: a newer Spillway wrote it")
    return header


def _carried(text: str) -> tuple[str | None, bytes | None]:
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, text.encode(errors="surrogatepass")
    return text, None


def _text(value: str | None, base64: bytes | None) -> str:
    return value if value is not None else (base64 or b"").decode(errors="surrogatepass")


def _attribute(value: Mapping[str, Any]) -> Attribute:
    if "BinaryValue" in value:
        return Attribute(value["DataType"], base64=bytes(value["BinaryValue"]))
    return Attribute(value["DataType"], *_carried(value.get("StringValue", "")))


def _value(attribute: Attribute) -> dict[str, Any]:
    if attribute.type.split(".")[0] == "Binary":
        if attribute.base64 is None:
            raise ValueError("expected `base64` for a binary attribute")
        return {"DataType": attribute.type, "BinaryValue": attribute.base64}
    return {"DataType": attribute.type, "StringValue": _text(attribute.value, attribute.base64)}


def _legible(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
