"""Events in a JSONL file: its lines, what is wrong with them in a person's words, and ids for those that have none."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple
from uuid import UUID

import msgspec

from spillway.errors import SpillwayError
from spillway.ids import id_of_text
from spillway.packing import MAX_MESSAGE_BYTES, Prepared
from spillway.preparing import EventRefused, Preparer

#: A line may be padded with spaces and still hold an event that fits; beyond this it is not even read.
MAX_LINE_BYTES = 4 * MAX_MESSAGE_BYTES

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_AT_FIELD = re.compile(r"(?P<what>.*) - at `(?P<path>[^`]*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


class Line(NamedTuple):
    """One line that is not blank: its number in the file, from 1, and its text without the line end."""

    number: int
    text: bytes


class BadLine(NamedTuple):
    """A line that cannot be sent; `reason` and `detail` as EventRefused has them."""

    line: Line
    reason: str
    detail: str

    def describe(self, source: str) -> str:
        """`orders.jsonl:17: $.data.version: Expected ...`"""
        path, what = None, self.detail
        if match := _AT_FIELD.fullmatch(self.detail):
            path, what = match["path"], match["what"]
        if match := _MISSING.fullmatch(what):
            path, what = f"{path or '$'}.{match['name']}", "Expected a value, the field is missing"
        place = f"{source}:{self.line.number}"
        return f"{place}: {path}: {what}" if path else f"{place}: {what}"


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """The lines of `file`, without blank ones. A line beyond MAX_LINE_BYTES comes cut off there, one byte too long."""
    number = 0
    while text := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        if number == 1:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        # Only what JSON calls white space: bytes.strip() would also take \v and \f.
        if text := text.strip(b" \t\r\n"):
            yield Line(number, text)


def read_events(file: BinaryIO, prepare: Preparer) -> Iterator[tuple[Line, Prepared] | BadLine]:
    """Every line of `file`, prepared or found bad.

    A line without `id` gets one from its text and how many equal lines came before it, so the same file always gives
    the same events and sending it again has no second effect. Costs about 100 bytes of memory for each such line.
    """
    seen: Counter[bytes] = Counter()
    for line in read_lines(file):
        if len(line.text) > MAX_LINE_BYTES:
            yield BadLine(line, "too_large", f"Expected at most {MAX_MESSAGE_BYTES} bytes, got over {MAX_LINE_BYTES}")
            continue
        try:
            yield line, prepare.prepare(line.text, new_id=_from_text(line.text, seen))
        except EventRefused as refused:
            yield BadLine(line, refused.reason, refused.detail)


def _from_text(text: bytes, seen: Counter[bytes]) -> Callable[[], UUID]:
    def new_id() -> UUID:
        first = id_of_text(text, 0)
        occurrence = seen[first.bytes]
        seen[first.bytes] += 1
        return id_of_text(text, occurrence) if occurrence else first

    return new_id


class BadLineFile:
    """Keeps bad lines with their reason, one JSON object per line; there is no file until there is a bad line.

    The text goes under `text`, or under `base64` where it is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def write(self, bad: BadLine) -> None:
        """Add one line. Raises SpillwayError when the file cannot be written."""
        entry: dict[str, object] = {"line": bad.line.number, "reason": bad.reason, "detail": bad.detail}
        try:
            entry["text"] = bad.line.text.decode()
        except UnicodeDecodeError:
            entry["base64"] = base64.b64encode(bad.line.text).decode()
        try:
            if self._file is None:
                self._file = self.path.open("wb")
            self._file.write(msgspec.json.encode(entry) + b"\n")
        except OSError as error:
            raise SpillwayError(
                f"Cannot write bad lines to {self.path}: {error.strerror}.", "Name another file with --invalid-to."
            ) from error

    def __enter__(self) -> BadLineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
