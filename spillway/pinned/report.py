"""What is pinned, by what: as JSON, and as a screen."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from rich.console import Group as Lines
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spillway.pinned.groups import Group
from spillway.rdsproxy.rules import RULES
from spillway.rdsproxy.watch import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Characters of a statement or reason on the screen.
SHOWN = 120
ENDS = (
    "A pin ends when its client disconnects: after IdleClientTimeout without a request, after 24 h, or when Lambda "
    "starts new environments (a rollout, or any change of the function's configuration)."
)
NO_TEXT = (
    "Some lines name no statement. ProxyDebugLogging=true makes the proxy log every statement, payloads too, for a day "
    "at most; `spillway pins` finds statements in sources without it."
)


class PinnedReport(msgspec.Struct, kw_only=True, frozen=True):
    """The pins since `since`. `pinned_now` is None where no metric tells. `complete` is false if there were more lines
    than could be read: then these are the latest. `groups` are the most frequent of `group_count`."""

    fleet: str
    proxy: str
    since: datetime
    until: datetime
    pinned_now: int | None
    pins: int
    complete: bool
    group_count: int
    groups: list[Group]


def screen(report: PinnedReport) -> RenderableType:
    """The report for a terminal of 100 columns."""
    since = f"{report.since.astimezone():%Y-%m-%d %H:%M}"
    now = "unknown" if report.pinned_now is None else f"{report.pinned_now:,}"
    connections = "connection" if report.pinned_now == 1 else "connections"
    heading = Text.assemble(("Proxy ", "bold"), f"{report.proxy} of {report.fleet}: {now} {connections} pinned now")
    if not report.pins:
        return Lines(heading, Text(f"The log has no pin since {since}.", style="green"))
    much = f"{report.pins:,}" if report.complete else f"at least {report.pins:,} (the latest)"
    heading.append(f", {much} pin{'s' * (report.pins != 1)} since {since}")
    parts: list[RenderableType] = [heading, "", _table(report)]
    if hidden := report.group_count - len(report.groups):
        parts.append(Text(f"and {hidden:,} more kinds: --limit {report.group_count}", style="dim"))
    parts += ["", *_ways_out(report.groups), Text(ENDS)]
    if any(not (one.statement or one.example) for one in report.groups):
        parts += ["", Text(NO_TEXT)]
    return Lines(*parts)


def _table(report: PinnedReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("pins", "conns"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("first", no_wrap=True)
    table.add_column("last", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("statement, or what the proxy says", overflow="fold", ratio=1)
    for one in report.groups:
        said = one.example or one.statement or one.reason
        table.add_row(
            f"{one.times:,}",
            f"{one.connections:,}",
            _time(one.first, report.until),
            _time(one.last, report.until),
            one.rule or "?",
            Text(_cut(one_line(said)), style="" if one.statement or one.example else "dim"),
        )
    return table


def _ways_out(groups: list[Group]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for rule in dict.fromkeys(one.rule for one in groups):
        its = next(one for one in groups if one.rule == rule)
        title = RULES[rule].title if rule else "No rule fits"
        lines.append(Text(title, style="bold"))
        lines.append(Padding(Text(its.fix or "Look for the statement in the document."), (0, 0, 0, 2)))
        lines.append(Padding(Text(its.link, style="dim"), (0, 0, 0, 2)))
        lines.append("")
    return lines


def _time(at: datetime | None, now: datetime) -> str:
    if at is None:
        return "-"
    local = at.astimezone()
    return f"{local:%H:%M:%S}" if local.date() == now.astimezone().date() else f"{local:%m-%d %H:%M}"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
