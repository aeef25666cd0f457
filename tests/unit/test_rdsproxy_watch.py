"""The live view of the RDS Proxy emulator, as text of several widths."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from spillway.rdsproxy import watch as module
from spillway.rdsproxy.metrics import Metrics, PinRecord, Snapshot
from spillway.rdsproxy.settings import RdsProxyError, Target
from spillway.rdsproxy.watch import age, duration, one_line, render, watch

if TYPE_CHECKING:
    from collections.abc import Callable

SQL = "PREPARE [bold]plan[/bold] AS\n  SELECT '\x1b[31mred\x1b[0m',\t'日本語' " + "x" * 400


class Gauges:
    client_connections = 1204
    database_connections = 14
    borrowed = 9
    in_transaction = 8
    session_pinned = 3
    waiting = 6
    max_database_connections = 75
    available = True


def snapshot(pins: int = 0, **changes: Any) -> Snapshot:
    metrics = Metrics()
    metrics.peak_client_connections, metrics.query_requests, metrics.pinned_sessions_total = 1300, 5000, pins
    for _ in range(100):
        metrics.borrow_latency.add(0.000_2)
        metrics.query_response_latency.add(0.05)
    metrics.borrow_latency.add(2.5)
    for number in range(pins):
        sql = SQL if number == pins - 1 else f"SET search_path TO tenant_{number}"
        reason = 'A [red]parameter[/red] was set. Digest: "set".'
        metrics.record_pin(PinRecord("set", reason, "documented", sql, "app", "db", "check[out]", "c", 1, 1_000.0))
    target = Target(host="127.0.0.1", port=5433, database="orders", user="app", password="hunter2")
    one = metrics.snapshot(Gauges(), proxy="default", endpoint="127.0.0.1:5432", target=target)
    one = msgspec.structs.replace(one, taken_at=1_075.0, uptime_s=3_725.0)
    cloudwatch = one.cloudwatch | changes.pop("cloudwatch", {})
    return msgspec.structs.replace(one, cloudwatch=cloudwatch, **changes)


def text_of(
    shown: Snapshot, previous: Snapshot | None = None, *, width: int = 80, height: int = 24, encoding: str = "utf-8"
) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    console = Console(file=file, width=width, height=height, highlight=False, color_system=None)
    console.print(render(shown, previous))
    file.seek(0)
    return file.read()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 250])
def test_no_line_is_broken_or_too_long(width: int) -> None:
    lines = text_of(snapshot(3), width=width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert sum("documented" in line or "…" in line for line in lines) >= 3
    assert len(lines) == len(text_of(snapshot(3), width=80).splitlines())


def test_what_it_says() -> None:
    earlier = snapshot(uptime_s=3_723.0, cloudwatch={"QueryRequests": 3_000})
    text = text_of(snapshot(), earlier)
    for words in (
        "RDS Proxy emulator default",
        "up 1 h 02 min",
        "127.0.0.1:5432 → postgresql://app@127.0.0.1:5433/orders",
        "1,204   peak 1,300",
        "] 14 of 75",
        "█ 6 borrowed   ▓ 3 pinned   ░ 5 idle",
        "in transaction  8",
        "6   peak 0, timed out 0",
        "1,000   5,000 in all",
        f"p50 {duration(snapshot().borrow_latency.p50)}  p99",
        "max 2.5 s",
        "p50 50 ms   p99 50 ms",
        "no session is pinned",
    ):
        assert words in text, words
    assert "hunter2" not in text
    assert "reached" not in text
    assert "the database cannot be reached" in text_of(snapshot(cloudwatch={"AvailabilityPercentage": 0}))


def test_the_bar_is_drawn_to_scale() -> None:
    def bar(**cloudwatch: int) -> tuple[int, int, int, int]:
        values = {
            "DatabaseConnections": cloudwatch["opened"],
            "DatabaseConnectionsCurrentlyBorrowed": cloudwatch["borrowed"],
            "DatabaseConnectionsCurrentlySessionPinned": cloudwatch["pinned"],
            "MaxDatabaseConnectionsAllowed": cloudwatch["most"],
        }
        line = next(line for line in text_of(snapshot(cloudwatch=values)).splitlines() if "[" in line)
        cells = line[line.index("[") + 1 : line.index("]")]
        assert len(cells) == 40
        assert cells == "".join(sorted(cells, key="█▓░·".index))
        return cells.count("█"), cells.count("▓"), cells.count("░"), cells.count("·")

    assert bar(opened=40, borrowed=20, pinned=10, most=80) == (5, 5, 10, 20)
    assert bar(opened=0, borrowed=0, pinned=0, most=80) == (0, 0, 0, 40)
    assert bar(opened=80, borrowed=80, pinned=0, most=80) == (40, 0, 0, 0)
    assert bar(opened=1000, borrowed=2, pinned=1, most=1000) == (1, 1, 38, 0)
    assert bar(opened=0, borrowed=0, pinned=0, most=0) == (0, 0, 0, 40)
    assert bar(opened=90, borrowed=90, pinned=0, most=80) == (40, 0, 0, 0)


def test_where_only_ascii_can_be_printed() -> None:
    text = text_of(snapshot(), encoding="ascii")
    assert "127.0.0.1:5432 -> postgresql" in text
    assert "= 6 borrowed   # 3 pinned   - 5 idle" in text
    text.encode("ascii")


def test_sql_is_shown_as_it_is_but_on_one_line() -> None:
    text = text_of(snapshot(1), width=140)
    assert "PREPARE [bold]plan[/bold] AS SELECT '?[31mred" in text
    assert "A [red]parameter[/red] was set." in text
    assert "Digest" not in text
    assert "check[out]" in text
    assert "1 min" in text
    assert "\x1b" not in text
    assert "check[out]" not in text_of(snapshot(1), width=80)


def test_pins_that_are_alike_share_a_line_and_the_latest_is_first() -> None:
    one = snapshot(2)
    again = msgspec.structs.replace(one, pins=[*one.pins[:1] * 40, one.pins[1]], pinned_sessions_total=41)
    lines = text_of(again, width=140).splitlines()
    (first,), (second,) = ([n for n, line in enumerate(lines) if what in line] for what in ("PREPARE", "SET search"))
    assert first < second
    assert " 40 " in lines[second]
    assert "3 pinned now, 41 since the start" in "\n".join(lines)


@pytest.mark.parametrize("height", [14, 16, 20, 24, 40])
def test_it_fits_the_screen(height: int) -> None:
    lines = text_of(snapshot(100), height=height).splitlines()
    shown = sum("documented" in line for line in lines)
    assert shown == min(max(height - 15, 1), 20)
    assert f"and {100 - shown} other reasons" in lines[-1]
    assert len(lines) <= max(height, 16)


def test_a_rate_needs_two_snapshots_of_one_process() -> None:
    assert "requests/s      -   5,000" in text_of(snapshot())
    assert "requests/s      -   5,000" in text_of(snapshot(), snapshot())
    restarted = snapshot(uptime_s=2.0)
    assert "requests/s      -   5,000" in text_of(restarted, snapshot())


def test_watching_without_a_terminal_prints_a_line_when_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRINT_S", 0.001)
    output = io.StringIO()
    stop = threading.Event()
    watch(_in_turn([snapshot(), snapshot(), snapshot(waiting=77)], stop), Console(file=output, width=40), stop)
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("clients 1,204  waiting 6  database 14/75 (9 borrowed, 3 pinned)  requests 5,000 (-/s)")
    assert "waiting 77" in lines[1]


def test_watching_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.001)
    output = io.StringIO()
    stop = threading.Event()
    console = Console(file=output, width=80, height=24, force_terminal=True, color_system=None, highlight=False)
    watch(_in_turn([snapshot(5), snapshot(waiting=77)], stop), console, stop)
    assert "5 since the start" in output.getvalue()
    assert "no session is pinned" in output.getvalue()
    assert output.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def test_what_fetching_raises_ends_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch() -> Snapshot:
        raise RdsProxyError("gone")

    output = io.StringIO()
    with pytest.raises(RdsProxyError, match="gone"):
        watch(fetch, Console(file=output, force_terminal=True), threading.Event())
    assert output.getvalue().endswith("\x1b[?25h")


def test_nothing_is_fetched_once_stopped() -> None:
    stop = threading.Event()
    stop.set()
    watch(pytest.fail, Console(file=io.StringIO()), stop)


def _in_turn(snapshots: list[Snapshot], stop: threading.Event) -> Callable[[], Snapshot]:
    def fetch() -> Snapshot:
        one = snapshots.pop(0)
        if not snapshots:
            stop.set()
        return one

    return fetch


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 us"),
        (0.000_356, "356 us"),
        (0.000_999_6, "1.0 ms"),
        (0.0042, "4.2 ms"),
        (0.036, "36 ms"),
        (0.9996, "1.0 s"),
        (12.34, "12.3 s"),
        (5000.0, "5,000 s"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_599, "59 min"), (3_725, "1 h 02 min"), (90_000, "1 d 1 h")],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_one_line() -> None:
    assert one_line(" a\r\n\tb \x00c\x9b2J\u202e ") == "a b ?c?2J?"
