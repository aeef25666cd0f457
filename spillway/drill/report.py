"""What a drill found: as JSON, and as a screen. Moments in JSON are ISO 8601 in UTC, everything else is in seconds."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spillway.rdsproxy.watch import one_line
from spillway.screens import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Kinds of trouble that the screen lists for each side.
LISTED = 5


class Seen(msgspec.Struct, kw_only=True, frozen=True):
    """An interruption as one side saw it. `usual_s` is the longest gap before the failover, measured in the same way.

    `of` says what was counted, `well` and `badly` how often it went well and did not, `troubles` why.
    """

    by: str
    interruption_s: float
    since: datetime | None
    until: datetime | None
    usual_s: float
    of: str
    well: int
    badly: int
    troubles: dict[str, int] = {}


class Moment(msgspec.Struct, frozen=True):
    """A line of the timeline."""

    at: datetime
    what: str


class Check(msgspec.Struct, frozen=True):
    """A part of the verdict."""

    name: str
    holds: bool
    statement: str


class DrillReport(msgspec.Struct, kw_only=True, frozen=True):
    """A whole drill. `lost` and `doubled` are order ids; `rows` is None where the rows cannot be seen from here."""

    run: str
    fleet: str
    worker: str
    failover: str
    started_at: datetime
    failover_at: datetime
    ended_at: datetime
    goal_s: float
    rate: float
    sent: int
    done: int
    dead_lettered: int
    lost: list[str]
    doubled: list[str]
    rows: int | None
    given_back: dict[str, int]
    longest_wait_s: float
    producers: Seen
    consumers: Seen
    database: Seen
    timeline: list[Moment]
    checks: list[Check]
    goal_met: bool
    find: str
    remove: str


def screen(report: DrillReport) -> RenderableType:
    """The report for a terminal of 100 columns."""
    heading = Text.assemble(
        ("Failover drill ", "bold"), f"{report.run} of {report.fleet}, worker {report.worker}: {report.failover}"
    )
    parts: list[RenderableType] = [heading, "", Padding(_timeline(report), (0, 0, 0, 2)), "", _views(report), ""]
    parts += [_aside(report), "", _verdict(report), ""]
    parts.append("The probes stay as rows until you remove them:")
    parts += [Padding(Text(one), (0, 0, 0, 2)) for one in (report.find, report.remove)]
    return Group(*parts)


def _timeline(report: DrillReport) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for one in report.timeline:
        after = (one.at - report.failover_at).total_seconds()
        table.add_row(f"{one.at.astimezone():%H:%M:%S}", f"{after:+.1f} s", one_line(one.what))
    return table


def _views(report: DrillReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("seen by", no_wrap=True)
    table.add_column("interrupted", justify="right", no_wrap=True)
    table.add_column("usual gap", justify="right", no_wrap=True)
    table.add_column("", overflow="fold", style="dim")
    for one in (report.producers, report.consumers, report.database):
        style = "" if one.interruption_s <= report.goal_s else "bold red"
        told = f"{one.well:,} of {one.well + one.badly:,} {one.of}"
        table.add_row(one.by, Text(_gap(one.interruption_s), style=style), _gap(one.usual_s), told)
        for trouble, times in sorted(one.troubles.items(), key=lambda item: -item[1])[:LISTED]:
            table.add_row("", "", "", Text(f"{times:,} x {one_line(trouble)}", style="yellow"))
    return table


def _aside(report: DrillReport) -> Text:
    back = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(report.given_back.items())) or "none"
    return Text(f"given back and tried again: {back}; the longest wait of a probe: {duration(report.longest_wait_s)}")


def _verdict(report: DrillReport) -> Table:
    table = Table.grid(padding=(0, 1))
    for check in report.checks:
        mark = Text("ok", style="bold green") if check.holds else Text("MISSED", style="bold red")
        table.add_row(mark, check.statement)
    return table


def _gap(seconds: float) -> str:
    return "none" if seconds < 0.05 else f"{seconds:.1f} s"
