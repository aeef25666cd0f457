"""The table of many runs, by fault."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from tests.chaos.checker import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.chaos.runner import Report

TOGETHER = "several at once"
_HEAD = (
    "Fault",
    "Runs",
    "Injected",
    "Lost",
    "Applied twice",
    "Healthy dead-lettered",
    "Other violations",
    "First commit p50 / max",
    "90 % p50 / max",
)


def _rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    by_fault: dict[str, list[Report]] = {}
    # What did not happen proves nothing.
    for report in reports:
        if report.happened or report.violations:
            name = report.faults[0] if len(report.faults) == 1 else TOGETHER if report.faults else "(no fleet)"
            by_fault.setdefault(name, []).append(report)
    names = sorted(by_fault, key=lambda name: (name == TOGETHER, name))
    return [_row(name, by_fault[name]) for name in names] + [
        _row("all", [one for name in names for one in by_fault[name]])
    ]


def _row(name: str, reports: Sequence[Report]) -> tuple[str, ...]:
    kinds = [violation.kind for report in reports for violation in report.violations]
    special = (Kind.LOST, Kind.TWICE, Kind.HEALTHY)
    return (
        name,
        str(len(reports)),
        str(sum(sum(report.injected.values()) for report in reports)),
        *(str(kinds.count(kind)) for kind in special),
        str(sum(kind not in special for kind in kinds)),
        _times(report.first_commit_s for report in reports),
        _times(report.ninety_s for report in reports),
    )


def _times(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.1f} / {max(known):.1f} s" if known else "-"


def markdown(reports: Sequence[Report], seed: int, took_s: float) -> str:
    """The table as it goes into docs/reliability.md."""
    rows = [_HEAD, tuple("---" if index == 0 else "--:" for index in range(len(_HEAD))), *_rows(reports)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", _foot(reports, seed, took_s), ""])


def summary(reports: Sequence[Report], seed: int, took_s: float) -> str:
    """The table for a terminal."""
    rows = [_HEAD, *_rows(reports)] if reports else [_HEAD]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*lines, "", _foot(reports, seed, took_s)])


def _foot(reports: Sequence[Report], seed: int, took_s: float) -> str:
    violated = sum(bool(report.violations) for report in reports)
    missing = sum(not report.happened and not report.violations for report in reports)
    again = sum(report.attempts - 1 for report in reports)
    return (
        f"Seed {seed}: {len(reports)} runs in {took_s / 60:.1f} minutes, {violated} violated, "
        f"{missing} without their fault (not counted above), {again} made again for that reason."
    )
