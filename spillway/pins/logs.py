"""Statement logs: what an application really sent. PostgreSQL's stderr, CSV and JSON logs, and pg_stat_statements.

The same construct in the same statement is one finding, at its first line, with a count.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from spillway.pins.bodies import leaks
from spillway.pins.findings import Spot
from spillway.pins.statements import examine
from spillway.rdsproxy.rules import RULES

#: `statement: ...`, `execute <unnamed>: ...`, `execute name/portal: ...`, with or without a duration before it.
_SENT = re.compile(
    r"(?:duration: [\d.]+ ms\s+)?"
    r"(?:(?P<simple>statement)|(?:execute|parse|bind)(?: fetch from)? (?P<name>.+?)): (?P<sql>.*)",
    re.DOTALL,
)
_LOG_LINE = re.compile(r".*?\bLOG:  (?P<message>.*)", re.DOTALL)
#: Another severity ends a statement that runs over several lines.
_ANY_LINE = re.compile(r".*?\b(?:LOG|ERROR|WARNING|NOTICE|INFO|FATAL|PANIC|DETAIL|HINT|STATEMENT|CONTEXT|DEBUG\d?):  ")
#: The column of the message in PostgreSQL's CSV log, which has no heading.
_CSV_MESSAGE = 13


@dataclass(frozen=True, slots=True)
class Sent:
    """A statement that an application sent, from `line`; `named` when through a named prepared statement."""

    sql: str
    line: int
    named: bool = False
    times: int = 1


def spots(text: str, *, table: bool) -> list[Spot]:
    """What is in one log. `table`: it is a CSV file."""
    found: dict[tuple[str, str], Spot] = {}
    for sent in _rows(text) if table else _messages(text):
        for spot in _in_statement(sent):
            key = (spot.rule.id, spot.sql)
            before = found.get(key)
            found[key] = replace(before, times=before.times + spot.times) if before else spot
    return list(found.values())


def _in_statement(sent: Sent) -> Iterator[Spot]:
    if sent.named:
        yield Spot(RULES["named-statement"], sent.line, sent.line, sent.sql, sent.times)
    examination = examine(sent.sql)
    for match in examination.matches:
        yield Spot(match.rule, sent.line, sent.line, sent.sql, sent.times)
    for leak in leaks(examination.parsed or ""):
        certainty = "unsettled" if leak.anonymous else leak.rule.certainty
        yield Spot(leak.rule, sent.line, sent.line, sent.sql, sent.times, certainty)


def _messages(text: str) -> Iterator[Sent]:
    """The statements of a stderr or JSON log."""
    message, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("{"):
            yield from _of_message(_json_message(line), number)
            continue
        opens = _LOG_LINE.match(line)
        if opens or _ANY_LINE.match(line) or not line.startswith("\t"):
            yield from _of_message(message, start)
            message, start = (opens["message"], number) if opens else ("", 0)
        elif message:
            message += "\n" + line
    yield from _of_message(message, start)


def _json_message(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    return str(record.get("message", "")) if isinstance(record, dict) else ""


def _rows(text: str) -> Iterator[Sent]:
    """The statements of a CSV log, or of pg_stat_statements exported with its heading."""
    reader = csv.reader(io.StringIO(text, newline=""))
    line, heading = 1, None
    for row in reader:
        if heading is None:
            heading = [name.strip().lower() for name in row]
        elif "query" in heading:
            yield from _of_table(dict(zip(heading, row, strict=False)), line)
        if "query" not in heading and len(row) > _CSV_MESSAGE:
            yield from _of_message(row[_CSV_MESSAGE], line)
        line = reader.line_num + 1


def _of_table(row: dict[str, str], line: int) -> Iterable[Sent]:
    calls = row.get("calls", "")
    return [Sent(row["query"], line, times=int(calls) if calls.isdigit() else 1)] if row.get("query") else []


def _of_message(message: str, line: int) -> Iterable[Sent]:
    match = _SENT.match(message)
    if not match:
        return []
    named = not match["simple"] and match["name"].partition("/")[0] != "<unnamed>"
    return [Sent(match["sql"], line, named)]
