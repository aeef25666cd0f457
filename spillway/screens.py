"""What the demo and the running stack show in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from spillway.demo import Result

MEANINGS = {
    "applied": "became its order's row",
    "stale": "a newer version was there, or came with it",
    "duplicate": "the same event again, nothing changed",
    "rejected": "refused by a business rule, recorded",
    "dead-lettered": "can never be processed",
}
#: How many causes are listed for each reason of dead letters.
LISTED_DETAILS = 8


def console() -> Console:
    """The terminal; where there is none, lines are wide enough not to be broken."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=140)


#: How many pins are listed.
LISTED_PINS = 5


def duration(seconds: float | None) -> str:
    """Seconds with a unit that suits them, in three digits or so; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.{1 if seconds < 0.01 else 0}f} ms"
    return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:,.0f} s"


def summary(result: Result, *, seed: int, seconds: float, peak_connections: int, concurrency: int) -> RenderableType:
    """The demo's last screen. `seconds` run from the first send to the last message done."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")
    table.add_row("sent", f"{result.sent:,}", f"seed {seed}")
    for outcome, count in result.outcomes.items():
        table.add_row(outcome, f"{count:,}", MEANINGS[outcome])
    by_reason: dict[str, list[tuple[str, int]]] = {}
    for (reason, detail), count in result.dead_letters.items():
        by_reason.setdefault(reason or "no reason given", []).append((detail, count))
    for reason, details in by_reason.items():
        table.add_row(f"  {reason}", f"{sum(count for _, count in details):,}", style="yellow")
        for detail, count in details[:LISTED_DETAILS]:
            table.add_row("", f"{count:,}", detail, style="yellow")
        if hidden := details[LISTED_DETAILS:]:
            table.add_row("", f"{sum(count for _, count in hidden):,}", f"{len(hidden)} more causes", style="yellow")
    for failure, count in result.given_back.items():
        table.add_row("given back", f"{count:,}", f"{failure}: went back to the queue and came again", style="yellow")
    table.add_row("rows", f"{result.rows:,}", "orders in the database")
    table.add_row("throughput", f"{result.sent / seconds:,.0f}", f"messages/s over {seconds:.1f} s")
    if (proxy := result.proxy) is None:
        table.add_row(
            "connections", f"{peak_connections:,}", f"most database connections at once (limit {concurrency})"
        )
        table.add_row("proxy", "none", "the workers connected to PostgreSQL directly: no pool, no pins, no borrowing")
    else:
        size = proxy.cloudwatch["MaxDatabaseConnectionsAllowed"]
        table.add_row(
            "clients",
            f"{proxy.peaks.client_connections:,}",
            f"most connections to the RDS Proxy at once (limit {concurrency})",
        )
        table.add_row(
            "connections",
            f"{proxy.peaks.database_connections:,}",
            f"most database connections at once (the proxy's pool has {size:,.0f})",
        )
        borrow = proxy.borrow_latency
        table.add_row(
            "borrowing", duration(borrow.p50), f"to borrow a database connection, median (p99 {duration(borrow.p99)})"
        )
        table.add_row(
            "pinned", f"{proxy.pinned_sessions_total:,}", "sessions that had a database connection to themselves"
        )
        for pin in proxy.pins[:LISTED_PINS]:
            table.add_row("", pin.rule, f"{pin.reason} {pin.sql}", style="yellow")
    checks = Table.grid(padding=(0, 1))
    for check in result.checks:
        mark = Text("ok", style="bold green") if check.holds else Text("WRONG", style="bold red")
        checks.add_row(mark, check.statement)
    return Group(table, "", checks)
