"""A reading as one screen, and as one line. It fits 100 x 40 with eight workers, and says the same in 80 columns."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from spillway.rdsproxy.watch import age, one_line
from spillway.screens import duration
from spillway.status.reading import OURS, RUNNING_STATES, per_second
from workers.runtime.telemetry import OUTCOME_METRICS
from workers.runtime.writer import DONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, ConsoleOptions, RenderResult

    from spillway.stack.snapshot import QueueDepth
    from spillway.status.reading import MappingReading, ProxyReading, Reading, WorkerReading

#: Alarms that are listed; the rest are counted.
LISTED_ALARMS = 6
#: A share of the pool from which it is nearly used up: the default of the alarm on it (infra/observability.yaml).
HIGH_USE = 0.8
#: From this width on, headings are whole.
WIDE = 100
#: Of the columns beside the queue's name and its dead letters, at their widest, and of the labels.
_NUMBERS, _LABEL = 66, 14


class Screen:
    """What a terminal shows of a reading; `note` says what went wrong since.

    `live` leaves out what does not change, so that a fleet of four workers fits 24 lines.
    """

    def __init__(self, reading: Reading, note: str = "", *, live: bool = False) -> None:
        self._reading = reading
        self._note = note
        self._live = live

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        reading = self._reading
        yield self._heading()
        if self._note:
            yield Text(one_line(self._note), style="bold red")
        yield ""
        yield self._queues(options.max_width)
        yield ""
        yield Text("messages/s of the last minute", style="dim")
        yield _labelled((name, _outcomes(worker.per_s)) for name, worker in reading.workers.items())
        yield ""
        yield _labelled(self._facts(), style="bold")
        if reading.next_commands:
            yield ""
            # Not cut and not wrapped by us: they are there to be copied.
            for position, command in enumerate(reading.next_commands):
                text = Text(f"{'' if position else 'next':<{_LABEL}}{command}", style="cyan", overflow="ignore")
                text.no_wrap = True
                yield text

    def _heading(self) -> Table:
        reading = self._reading
        where = "local stack" if reading.local else (reading.region or "")
        heading = Table.grid(expand=True)
        heading.add_column(no_wrap=True, overflow="ellipsis")
        heading.add_column(justify="right", no_wrap=True)
        at = datetime.fromtimestamp(reading.taken_at).astimezone()
        heading.add_row(Text.assemble((reading.fleet, "bold"), f"  {where}"), Text(f"{at:%Y-%m-%d %H:%M:%S}"))
        return heading

    def _queues(self, width: int) -> Table:
        reading = self._reading
        reserves = any(_reserved(worker.mapping) for worker in reading.workers.values())
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        dead = "dead letters" if width >= WIDE else "dead"
        name_width = max(width - _NUMBERS - len(dead), 8)
        table.add_column("queue", no_wrap=True, overflow="ellipsis", max_width=name_width)
        for heading in ("waiting", "in flight", "oldest", dead):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("mapping", no_wrap=True)
        table.add_column("running", justify="right", no_wrap=True)
        if reserves:
            table.add_column("reserved", justify="right", no_wrap=True)
        for name, worker in reading.workers.items():
            cells = [Text(name), *_depth(reading.queues.get(name), worker)]
            cells += [_state(worker.mapping), _running(worker.mapping)]
            table.add_row(*cells, *[Text(_reserved(worker.mapping), style="yellow")] * reserves)
        return table

    def _facts(self) -> Iterator[tuple[str, Text]]:
        reading = self._reading
        if reading.proxy is not None:
            yield from _proxy(reading.proxy)
        elif reading.local and "proxy" not in reading.problems:
            yield "RDS Proxy", Text(f"none, {reading.connections} connections to the database")
        yield "breaker", _breaker(reading)
        yield "governor", _governor(reading)
        if not reading.local and "alarms" not in reading.problems:
            yield from _alarms(reading)
        if reading.local:
            yield from _messages(reading)
            if not self._live:
                yield from _process(reading)
        if reading.last_error:
            yield "last error", Text(one_line(reading.last_error), style="red")
        for part, why in reading.problems.items():
            yield f"? {part}", Text(one_line(why), style="yellow")


def line(reading: Reading) -> str:
    """The reading in one line."""
    at = datetime.fromtimestamp(reading.taken_at).astimezone()
    rates = [per_second(worker.per_s) for worker in reading.workers.values()]
    done, back, dead = (sum(rate[index] for rate in rates) for index in range(3))
    queues = reading.queues.values()
    words = [
        f"{at:%H:%M:%S}",
        f"waiting {sum(queue.waiting for queue in queues):,}",
        f"in flight {sum(queue.in_flight for queue in queues):,}",
        f"dead letters {sum(queue.dead for queue in queues):,}",
        f"done {_rate(done)}/s  given back {_rate(back)}/s  dead-lettered {_rate(dead)}/s",
    ]
    if (proxy := reading.proxy) is not None:
        words.append(
            f"database connections {_count(proxy.database_connections)} of {_count(proxy.max_database_connections)}"
            f"  pinned {_count(proxy.pinned)}"
        )
        if proxy.available is False:
            words.append(f"proxy target {proxy.target}")
    stopped = [
        f"{name} {one.mapping.state}"
        for name, one in reading.workers.items()
        if one.mapping and one.mapping.state not in RUNNING_STATES
    ]
    words += stopped
    if reading.alarms:
        words.append(f"in ALARM {len(reading.alarms)}")
    if reading.last_error:
        words.append(f"last error: {one_line(reading.last_error)}")
    words += [f"{part}: {one_line(why)}" for part, why in reading.problems.items()]
    return "  ".join(words)


def _labelled(rows: Iterable[tuple[str, Text]], style: str = "") -> Table:
    table = Table.grid()
    table.add_column(min_width=_LABEL, no_wrap=True, style=style)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(f"{label}  ", text)
    return table


def _depth(queue: QueueDepth | None, worker: WorkerReading) -> tuple[Text, ...]:
    oldest = Text("-" if worker.oldest_s is None else age(worker.oldest_s))
    if queue is None:
        return Text("-"), Text("-"), oldest, Text("-")
    dead = Text(f"{queue.dead:,}", style="red" if queue.dead else "")
    return Text(f"{queue.waiting:,}"), Text(f"{queue.in_flight:,}"), oldest, dead


def _state(mapping: MappingReading | None) -> Text:
    if mapping is None:
        return Text("-")
    return Text(mapping.state, style="" if mapping.state in RUNNING_STATES else "bold red")


def _running(mapping: MappingReading | None) -> Text:
    """The concurrency now, of the maximum."""
    if mapping is None:
        return Text("-")
    return Text(f"{_count(mapping.invoking)} of {'any' if mapping.maximum is None else f'{mapping.maximum:,}'}")


def _reserved(mapping: MappingReading | None) -> str:
    """What is reserved for the function, where that is not what its mapping may use."""
    if mapping is None or mapping.reserved in (None, mapping.maximum):
        return ""
    return f"{mapping.reserved:,}"


def _outcomes(per_s: dict[str, float] | None) -> Text:
    if per_s is None:
        return Text("-")
    text = Text()
    for outcome in OUTCOME_METRICS:
        if rate := per_s.get(outcome):
            style = "green" if outcome in DONE else "red" if outcome == "dead-lettered" or outcome in OURS else "yellow"
            text.append(f"{outcome} {_rate(rate)}  ", style=style)
    text.rstrip()
    return text if text else Text("none", style="dim")


def _proxy(proxy: ProxyReading) -> Iterator[tuple[str, Text]]:
    opened, most = _count(proxy.database_connections), _count(proxy.max_database_connections)
    yield (
        "RDS Proxy",
        Text(f"client connections {_count(proxy.client_connections)}, database connections {opened} of {most}"),
    )
    use = proxy.use
    text = Text()
    if use is not None:
        text.append(f"{use:.0%} open", style="yellow" if use > HIGH_USE else "").append(", ")
    text.append(f"borrowed {_count(proxy.borrowed)}, target ")
    style = {True: "green", False: "bold red", None: "yellow"}[proxy.available]
    yield "pool", text.append(proxy.target or "-", style=style)
    borrowing = [f"average {duration(proxy.borrow_average_s)}"]
    if proxy.borrow_p50_s is not None or proxy.waiting is not None:
        borrowing = [f"p50 {duration(proxy.borrow_p50_s)}"]
    borrowing.append(f"p99 {duration(proxy.borrow_p99_s)}")
    if proxy.waiting is not None:
        borrowing.append(f"waiting {proxy.waiting:,}")
    if proxy.borrow_timeouts is not None:
        borrowing.append(f"timed out {proxy.borrow_timeouts:,}")
    yield "borrowing", Text(", ".join(borrowing))
    pinned = Text().append(f"now {_count(proxy.pinned)}", style="red" if proxy.pinned else "")
    if proxy.pinned_total is not None:
        pinned.append(f", since the start {proxy.pinned_total:,}", style="yellow" if proxy.pinned_total else "")
    yield "pinned", pinned


def _breaker(reading: Reading) -> Text:
    known = {name: one.turned_away for name, one in reading.workers.items() if one.turned_away is not None}
    if not known:
        return Text("-")
    away = {name: count for name, count in known.items() if count > 0}
    if not away:
        return Text("turned no batch away in the last 5 minutes")
    by_worker = ", ".join(f"{name} {count:,}" for name, count in away.items())
    return Text(f"turned {sum(away.values()):,} batches away in the last 5 minutes: {by_worker}", style="yellow")


def _governor(reading: Reading) -> Text:
    governor = reading.governor
    if governor is None:
        return Text("not run here" if reading.local else "-" if "governor" in reading.problems else "none")
    text = Text(governor.mode)
    if governor.holds:
        holds = ", ".join(f"{name} ({to})" for name, to in governor.holds.items())
        text.append(f", holds down {holds}", style="yellow")
    for name, note in governor.hands_off.items():
        text.append(f", hands off {name} ({one_line(note)})", style="yellow")
    return text


def _alarms(reading: Reading) -> Iterator[tuple[str, Text]]:
    if not reading.alarms:
        yield "alarms", Text("none in ALARM", style="green")
    for position, alarm in enumerate(reading.alarms[:LISTED_ALARMS]):
        since = datetime.fromisoformat(alarm.since).astimezone()
        yield "" if position else "in ALARM", Text(f"{alarm.name}, since {since:%Y-%m-%d %H:%M}", style="red")
    if (hidden := len(reading.alarms) - LISTED_ALARMS) > 0:
        yield "", Text(f"and {hidden:,} more", style="red")


def _messages(reading: Reading) -> Iterator[tuple[str, Text]]:
    counts = ", ".join(f"{count:,} {name}" for name, count in (reading.outcomes or {}).items())
    yield "messages", Text(counts or "none yet")
    failed = ", ".join(f"{count:,} {reason}" for reason, count in (reading.failed or {}).items())
    if failed:
        yield "given back", Text(failed, style="yellow")


def _process(reading: Reading) -> Iterator[tuple[str, Text]]:
    yield (
        "invocations",
        Text(f"{_count(reading.invocations)} in {_count(reading.environments)} execution environments"),
    )
    yield "running for", Text(f"{age(reading.running_s or 0)} as process {reading.pid}")
    yield "logs", Text(reading.logs or "-")


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _rate(per_s: float) -> str:
    """Three digits or so: a single message in a minute must not look like none."""
    return f"{per_s:,.0f}" if per_s >= 100 or per_s == 0 else f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2f}"
