"""What the readers hand over, and what becomes of it: a finding, unless a comment allows it."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from spillway.rdsproxy.rules import RULES, Certainty, Rule

#: A statement in a report is cut here: enough to recognise it.
MAX_SQL = 200

_ALLOW = re.compile(r"(?:--|#)\s*pins:\s*allow(?P<file>-file)?(?![\w-])(?P<reason>.*)")
_COMMENT_LINE = re.compile(r"\s*(?:--|#)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report."""

    file: str
    line: int
    rule: str
    reason: str
    certainty: Certainty
    fix: str
    sql: str


@dataclass(frozen=True, slots=True)
class Spot:
    """A construct in a file: `line` is its own, `first` the first line of the statement around it.

    `times` is how often a log has it; `certainty` differs from the rule's where the place makes it less sure.
    """

    rule: Rule
    line: int
    first: int
    sql: str
    times: int = 1
    certainty: Certainty | None = None


class Lines:
    """Byte offsets of a UTF-8 text as line numbers, from 1."""

    def __init__(self, text: bytes) -> None:
        self._starts = [0, *(match.end() for match in re.finditer(rb"\n", text))]

    def __call__(self, offset: int) -> int:
        return bisect_right(self._starts, offset)


def judge(file: str, text: str, spots: list[Spot], *, strict: bool, seen_by_people: bool = True) -> list[Finding]:
    """The findings among `spots` of one file, by line. `seen_by_people` is off for logs: nobody comments there."""
    allowed = Allowed(text) if seen_by_people else None
    chosen = [spot for spot in spots if spot.rule.counts(strict=strict)]
    if allowed:
        chosen = [spot for spot in chosen if not allowed.covers(spot)]
        if not allowed.whole_file:
            chosen += [Spot(RULES["allow-without-reason"], line, line, sql) for line, sql in allowed.without_reason]
    findings = {_finding(file, spot): None for spot in chosen}
    return sorted(findings, key=lambda finding: (finding.line, finding.rule))


def _finding(file: str, spot: Spot) -> Finding:
    reason = spot.rule.why if spot.times == 1 else f"{spot.rule.why} {spot.times:,} times in this log."
    return Finding(
        file, spot.line, spot.rule.id, reason, spot.certainty or spot.rule.certainty, spot.rule.fix, shortened(spot.sql)
    )


def shortened(sql: str) -> str:
    """`sql` on one line, cut where it is long."""
    line = " ".join(sql.split())
    return line if len(line) <= MAX_SQL else line[: MAX_SQL - 1] + "…"


class Allowed:
    """The `pins: allow <reason>` comments of one file.

    One counts for its own line, and, where it has a line or a block of comment lines to itself, for the line below.
    `pins: allow-file <reason>` counts for the whole file.
    """

    def __init__(self, text: str) -> None:
        self.whole_file = False
        self.without_reason: list[tuple[int, str]] = []
        self._lines: set[int] = set()
        pending = False
        for number, line in enumerate(text.split("\n"), 1):
            match = _ALLOW.search(line)
            # A word: a closing quote or */ behind the comment is no reason.
            valid = bool(match and re.search(r"\w", match["reason"]))
            if match and not valid:
                self.without_reason.append((number, line.strip()))
            self.whole_file |= bool(match and valid and match["file"])
            alone = _COMMENT_LINE.match(line) is not None
            if valid or (pending and not alone):
                self._lines.add(number)
            pending = alone and (valid or pending)

    def covers(self, spot: Spot) -> bool:
        """Whether a comment allows `spot`."""
        return self.whole_file or spot.line in self._lines or spot.first in self._lines
