"""The emulator at a glance: a live view of clients, the pool and what pins it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from spillway.screens import duration

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from spillway.rdsproxy.metrics import Latency, PinRecord, Snapshot

#: How often the view is refreshed in a terminal, in seconds.
REFRESH_S = 0.5
#: How often a line is printed, if it changed, where there is no terminal.
PRINT_S = 10.0
#: Lines above the pins, their heading included.
HEADER_LINES = 13
#: From this width on, the table of pins shows the client's application as well.
WIDE = 100
#: Pins shown where the height is not known to limit them.
MAX_SHOWN = 20


def watch(fetch: Callable[[], Snapshot], console: Console, stop: threading.Event) -> None:
    """Show what `fetch` gives until `stop` is set; where there is no terminal, print a line now and then."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            for snapshot, previous in _pairs(fetch, stop, REFRESH_S):
                live.update(render(snapshot, previous), refresh=True)
        return
    shown = ""
    for snapshot, previous in _pairs(fetch, stop, PRINT_S):
        if (text := line(snapshot, previous)) != shown:
            console.print(text, soft_wrap=True, markup=False)
            shown = text


def render(snapshot: Snapshot, previous: Snapshot | None) -> RenderableType:
    """The view of one moment; `previous` is an earlier one, from which rates are told."""
    return _View(snapshot, previous)


def line(snapshot: Snapshot, previous: Snapshot | None) -> str:
    """The same in one line."""
    value = snapshot.cloudwatch
    return (
        f"clients {value['ClientConnections']:,.0f}  waiting {snapshot.waiting:,}  "
        f"database {value['DatabaseConnections']:,.0f}/{value['MaxDatabaseConnectionsAllowed']:,.0f} "
        f"({value['DatabaseConnectionsCurrentlyBorrowed']:,.0f} borrowed, "
        f"{value['DatabaseConnectionsCurrentlySessionPinned']:,.0f} pinned)  "
        f"requests {value['QueryRequests']:,.0f} ({_rate(snapshot, previous)}/s)  "
        f"borrow p99 {duration(snapshot.borrow_latency.p99)}  "
        f"query p99 {duration(snapshot.query_response_latency.p99)}" + ("" if _available(snapshot) else "  no database")
    )


def age(seconds: float) -> str:
    """How long ago, or for how long, in one or two units."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def one_line(text: str) -> str:
    """`text` without line breaks, runs of blanks and characters that would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def without_digest(reason: str) -> str:
    """A pin's reason without the digest of its statement, for where the statement itself is shown."""
    return reason.partition(" Digest: ")[0]


class _View:
    def __init__(self, snapshot: Snapshot, previous: Snapshot | None) -> None:
        self._snapshot = snapshot
        self._previous = previous

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        snapshot, value = self._snapshot, self._snapshot.cloudwatch
        yield self._heading()
        yield Text(
            f"{one_line(snapshot.endpoint)} {'->' if options.ascii_only else '→'} {one_line(snapshot.target)}",
            style="dim",
            overflow="ellipsis",
            no_wrap=True,
        )
        yield ""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        peaks = snapshot.peaks
        rows.add_row("clients", f"{value['ClientConnections']:,.0f}   peak {peaks.client_connections:,}")
        for row in self._pool(options):
            rows.add_row("database" if row.plain.startswith("[") else "", row)
        waiting = Text(f"{snapshot.waiting:,}", style="yellow" if snapshot.waiting else "")
        waiting.append(f"   peak {peaks.waiting:,}, timed out {snapshot.borrow_timeouts:,}", style="not yellow")
        in_transaction = value["DatabaseConnectionsCurrentlyInTransaction"]
        rows.add_row("in transaction", f"{in_transaction:,.0f}")
        rows.add_row("waiting", waiting)
        rows.add_row("requests/s", f"{_rate(snapshot, self._previous)}   {value['QueryRequests']:,.0f} in all")
        rows.add_row("borrow", _latency(snapshot.borrow_latency))
        rows.add_row("query", _latency(snapshot.query_response_latency))
        yield rows
        yield ""
        room = (options.height or console.height) - HEADER_LINES - 2
        yield from self._pins(options.max_width, max(min(room, MAX_SHOWN), 1))

    def _heading(self) -> Table:
        heading = Table.grid(expand=True)
        heading.add_column(no_wrap=True, overflow="ellipsis")
        heading.add_column(justify="right", no_wrap=True)
        title = Text.assemble(("RDS Proxy emulator ", "bold"), one_line(self._snapshot.proxy))
        if not _available(self._snapshot):
            title.append("  the database cannot be reached", style="bold red")
        heading.add_row(title, Text(f"up {age(self._snapshot.uptime_s)}", style="dim"))
        return heading

    def _pool(self, options: ConsoleOptions) -> Iterator[Text]:
        """The pool as a bar, and in words."""
        value = self._snapshot.cloudwatch
        opened, most = int(value["DatabaseConnections"]), int(value["MaxDatabaseConnectionsAllowed"])
        pinned = int(value["DatabaseConnectionsCurrentlySessionPinned"])
        borrowed = max(int(value["DatabaseConnectionsCurrentlyBorrowed"]) - pinned, 0)
        idle = max(opened - borrowed - pinned, 0)
        shades = "=#-." if options.ascii_only else "█▓░·"
        parts = ((borrowed, shades[0], "green"), (pinned, shades[1], "red"), (idle, shades[2], "cyan"))
        width = max(min(options.max_width - 40, 60), 10)
        bar = Text("[")
        for (_, shade, style), cells in zip(parts, _share(width, [count for count, _, _ in parts], most), strict=True):
            bar.append(shade * cells, style=style)
        bar.append(shades[3] * (width + 1 - len(bar)), style="dim")
        bar.append(f"] {opened:,} of {most:,}")
        bar.append(f"   peak {self._snapshot.peaks.database_connections:,}")
        yield bar
        legend = Text()
        for (count, shade, style), name in zip(parts, ("borrowed", "pinned", "idle"), strict=True):
            legend.append(f"{shade} ", style=style).append(f"{count:,} {name}   ")
        yield legend

    def _pins(self, width: int, rows: int) -> Iterator[RenderableType]:
        snapshot = self._snapshot
        if not snapshot.pins:
            yield Text("no session is pinned", style="green")
            return
        now = int(snapshot.cloudwatch["DatabaseConnectionsCurrentlySessionPinned"])
        yield Text(f"{now:,} pinned now, {snapshot.pinned_sessions_total:,} since the start", style="bold")
        latest: dict[tuple[str, str, str, str], PinRecord] = {}
        times: Counter[tuple[str, str, str, str]] = Counter()
        for pin in reversed(snapshot.pins):
            key = (without_digest(pin.reason), pin.certainty, pin.sql, pin.application_name)
            latest.setdefault(key, pin)
            times[key] += 1
        table = Table(box=None, pad_edge=False, expand=True, header_style="dim")
        table.add_column("last", justify="right", no_wrap=True)
        table.add_column("times", justify="right", no_wrap=True)
        table.add_column("reason", ratio=3, no_wrap=True, overflow="ellipsis")
        table.add_column("certainty", no_wrap=True, overflow="ellipsis", max_width=12)
        table.add_column("SQL", ratio=4, no_wrap=True, overflow="ellipsis")
        if width >= WIDE:
            table.add_column("application", no_wrap=True, overflow="ellipsis", max_width=20)
        for key, pin in list(latest.items())[:rows]:
            cells = [age(snapshot.taken_at - pin.at), f"{times[key]:,}", *key[:3]]
            if width >= WIDE:
                cells.append(pin.application_name or pin.client)
            table.add_row(*(Text(one_line(cell)) for cell in cells))
        yield table
        if (hidden := len(latest) - rows) > 0:
            yield Text(f"and {hidden:,} other reasons", style="dim")


def _pairs(
    fetch: Callable[[], Snapshot], stop: threading.Event, every_s: float
) -> Iterator[tuple[Snapshot, Snapshot | None]]:
    previous = None
    due = time.monotonic()
    while not stop.is_set():
        snapshot = fetch()
        yield snapshot, previous
        previous = snapshot
        due = max(due + every_s, time.monotonic())
        stop.wait(due - time.monotonic())


def _available(snapshot: Snapshot) -> bool:
    return snapshot.cloudwatch["AvailabilityPercentage"] > 0


def _rate(snapshot: Snapshot, previous: Snapshot | None) -> str:
    """Requests in each second since `previous`; a dash where there is none, or it is of an earlier process."""
    if previous is None or snapshot.uptime_s <= previous.uptime_s:
        return "-"
    requests = snapshot.cloudwatch["QueryRequests"] - previous.cloudwatch["QueryRequests"]
    return "-" if requests < 0 else f"{requests / (snapshot.uptime_s - previous.uptime_s):,.0f}"


def _latency(latency: Latency) -> str:
    return f"p50 {duration(latency.p50):<8}p99 {duration(latency.p99):<8}max {duration(latency.max or None)}"


def _share(width: int, counts: list[int], most: int) -> list[int]:
    """How many of `width` cells each count gets of `most`: at least one where there is any."""
    whole = max(most, sum(counts), 1)
    cells = [max(round(count * width / whole), 1) if count else 0 for count in counts]
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    return cells
