"""`.sql` files: cut into statements as psql would, so its commands and COPY data are nothing to lint."""

from __future__ import annotations

import re
from collections.abc import Iterator

from spillway.pins.bodies import leaks
from spillway.pins.findings import Lines, Spot
from spillway.pins.statements import examine
from spillway.rdsproxy.rules import RULES

_TOKEN = re.compile(
    rb"""(?P<comment>--[^\n]*) | (?P<block>/\*) | (?P<blank>\s+)
    | (?P<quoted>[eE]'(?:[^'\\]|\\.|'')*'? | '(?:[^']|'')*'? | "(?:[^"]|"")*"?)
    | (?P<dollar>\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$)
    | (?P<word>[A-Za-z_\x80-\xff][\w$\x80-\xff]*) | (?P<command>\\) | (?P<open>\() | (?P<close>\)) | (?P<end>;) | .""",
    re.VERBOSE | re.DOTALL,
)
_BLOCK_EDGE = re.compile(rb"/\*|\*/")
_COPY_DATA = re.compile(rb"COPY\b.*\bFROM\s+STDIN\b", re.IGNORECASE | re.DOTALL)
_END_OF_DATA = re.compile(rb"^\\\.[^\n]*$", re.MULTILINE)
#: psql commands that send what was typed so far, as a semicolon does.
_SENDING = re.compile(rb"\\(g|gx|gset|gexec|gdesc|crosstabview|watch|;)(?![A-Za-z])")


def statements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Every statement with its offset; psql's commands inside one are blanked out."""
    cutter = _Cutter(data)
    while cutter.position < len(data):
        yield from cutter.step()
    yield from cutter.cut(len(data))


class _Cutter:
    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.position = 0
        self._start: int | None = None
        self._parentheses = 0
        # The first words and the last one, to see CREATE FUNCTION ... BEGIN ATOMIC, whose semicolons end nothing.
        self._words: list[bytes] = []
        self._word = b""
        self._blocks = 0

    def step(self) -> Iterator[tuple[int, bytes]]:
        match = _TOKEN.match(self.data, self.position)
        if match is None:
            raise AssertionError("the last alternative takes any byte")
        kind, start, self.position = match.lastgroup, match.start(), match.end()
        if kind == "block":
            self.position = self._end_of_block(start)
        elif kind == "dollar":
            close = self.data.find(match[0], self.position)
            self.position = len(self.data) if close < 0 else close + len(match[0])
        elif kind == "command":
            yield from self._command(start)
        elif kind == "end" and self._parentheses <= 0 and not self._blocks:
            yield from self.cut(start)
        if self._start is None and kind not in {"comment", "block", "blank", "command", "end"}:
            self._start = start
        self._parentheses += (kind == "open") - (kind == "close")
        if kind == "word":
            self._count(bytes(match[0]).lower())

    def cut(self, end: int) -> Iterator[tuple[int, bytes]]:
        if self._start is None:
            return
        text = bytes(self.data[self._start : end])
        yield self._start, text
        self._start, self._parentheses, self._words, self._blocks = None, 0, [], 0
        if _COPY_DATA.match(text):
            data_end = _END_OF_DATA.search(self.data, end)
            self.position = data_end.end() if data_end else len(self.data)

    def _end_of_block(self, start: int) -> int:
        depth = 0
        for edge in _BLOCK_EDGE.finditer(self.data, start):
            depth += 1 if edge[0] == b"/*" else -1
            if depth == 0:
                return edge.end()
        return len(self.data)

    def _command(self, start: int) -> Iterator[tuple[int, bytes]]:
        line_end = self.data.find(b"\n", start)
        line_end = len(self.data) if line_end < 0 else line_end
        sending = _SENDING.match(self.data, start)
        if sending and sending[1] == b";":
            line_end = start + 2
        self.data[start:line_end] = b" " * (line_end - start)
        self.position = line_end
        if sending:
            yield from self.cut(start)

    def _count(self, word: bytes) -> None:
        before, self._word = self._word, word
        if len(self._words) < 4:
            self._words.append(word)
        defines = self._words[:1] == [b"create"] and {b"function", b"procedure"} & set(self._words)
        if (defines and before == b"begin" and word == b"atomic") or (self._blocks and word in {b"case", b"begin"}):
            self._blocks += 1
        elif self._blocks and word == b"end":
            self._blocks -= 1


def spots(data: bytes) -> list[Spot]:
    """What is in one file, given as UTF-8."""
    line = Lines(data)
    found = []
    for start, raw in statements(data):
        sql = raw.decode()
        first = line(start)
        examination = examine(sql)
        for match in examination.matches:
            found.append(Spot(match.rule, line(start + match.offset), line(start + match.statement), sql))
        if examination.parsed is not None:
            for leak in leaks(examination.parsed):
                certainty = "unsettled" if leak.anonymous else leak.rule.certainty
                found.append(Spot(leak.rule, line(start + leak.offset), first, sql, certainty=certainty))
        elif not examination.matches:
            found.append(Spot(RULES["unparseable"], first, first, sql))
    return found
