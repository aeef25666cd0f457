"""`spillway demo`: a flood of orders becomes rows, with the proof."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from spillway import screens
from spillway.aws import sqs_client
from spillway.commands.up import RouteOption, describe, publish, refuse_a_second_stack, start, watch
from spillway.demo import examine
from spillway.errors import SpillwayError
from spillway.histories.orders import generate
from spillway.interrupts import INTERRUPTED, interrupts
from spillway.packing import Prepared
from spillway.producer import Producer
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.processes import Processes
from spillway.stack.state import remove_state
from workers.orders.contract import OrderEvent
from workers.runtime.telemetry import OUTCOME_METRICS

if TYPE_CHECKING:
    import psycopg

    from spillway.histories.orders import OrdersHistory
    from spillway.send_result import SendResult

#: The flood is one of orders; the other workers' queues stay empty.
WORKER = "orders"
#: Give up when nothing at all has moved for so long: twice the visibility timeout's worth of patience is no demo.
STALLED_S = 60.0
#: How often the bars move and connections are counted.
TICK_S = 0.1


def demo(
    *,
    events: Annotated[int, typer.Option(min=100, max=1_000_000, help="Messages to send.")] = 20_000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same history.")] = 1,
    poison: Annotated[float, typer.Option(min=0, max=0.5, help="Share of broken messages.")] = 0.01,
    duplicates: Annotated[float, typer.Option(min=0, max=0.5, help="Share of events sent twice.")] = 0.05,
    route: RouteOption = "proxy",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running afterwards, to look around.")] = False,
) -> None:
    """Send a flood of order events through the local stack and check the result.

    Starts PostgreSQL, an RDS Proxy, an SQS server and the orders worker in the real Lambda runtime, all from
    template.yaml and all on 127.0.0.1; sends a generated history with repeats, wrong order and broken messages; and
    compares what the database and the dead-letter queue hold with what a sequential reference computes.

    Exit status: 0 everything agrees; 1 something does not, or could not start; 130 interrupted by Ctrl-C.
    """
    if keep:
        refuse_a_second_stack()
    if poison + duplicates >= 1:
        raise SpillwayError("--poison and --duplicates leave no event to repeat.", "Their sum must be below 1.")
    console = screens.console()
    with interrupts() as interrupted, Processes() as processes:
        stack = LocalStack(processes, StackOptions(route=route, workers=(WORKER,)))
        with console.status("Generating events"):
            history = generate(events, seed=seed, poison=poison, duplicates=duplicates)
        holds = start(stack, console, interrupted) and _run(stack, history, console, interrupted, seed=seed, keep=keep)
        stack.stop()
    if interrupted.is_set() and not keep:
        console.print("Interrupted; everything is stopped and removed.")
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(0 if holds else 1)


def _run(
    stack: LocalStack,
    history: OrdersHistory,
    console: Console,
    interrupted: threading.Event,
    *,
    seed: int,
    keep: bool,
) -> bool:
    queue, dead_letters = stack.workers()[WORKER]
    with stack.watcher() as admin:
        flood = Flood(stack, history, queue)
        seconds = flood.run(console, interrupted, admin)
        if seconds is None:
            return False
        result = examine(
            history,
            sent=flood.sent,
            metrics=stack.metrics,
            admin=admin,
            client=stack.client,
            dead_letter_url=stack.queue_urls[dead_letters],
            proxy=stack.proxy.snapshot() if stack.proxy is not None else None,
        )
        console.print(
            screens.summary(
                result,
                seed=seed,
                seconds=seconds,
                peak_connections=flood.peak_connections,
                concurrency=sum(mapping.config.concurrency for mapping in stack.mappings.values()),
            )
        )
        if keep and not interrupted.is_set():
            console.print()
            publish(stack)
            describe(stack, console)
            try:
                watch(stack, console, interrupted, admin)
            finally:
                remove_state()
    return result.holds


class Flood:
    """Sends a history and waits until the workers are done with it."""

    def __init__(self, stack: LocalStack, history: OrdersHistory, queue: str) -> None:
        self._stack = stack
        self._history = history
        # One attempt: the producer tries again itself, and stops doing so at once when the run is over.
        client = sqs_client(stack.endpoint_url, stack.client.meta.region_name, attempts=1)
        self._producer = Producer(client, stack.queue_urls[queue], OrderEvent, concurrency=2, sleep=self._pause)
        self._given_up = threading.Event()
        self._failure: str | None = None
        self.sent = 0
        self.peak_connections = 0

    def run(
        self, console: Console, interrupted: threading.Event, admin: psycopg.Connection[tuple[object, ...]]
    ) -> float | None:
        """Seconds from the first send to the last message done; None when interrupted. Raises SpillwayError."""
        total = len(self._history.messages)
        progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        sender = threading.Thread(target=self._send, name="flood", daemon=True)
        with progress:
            stall = _Stall()
            bars = {name: progress.add_task(name, total=total) for name in ("sent", "in flight", "done")}
            started = time.monotonic()
            sender.start()
            try:
                while (done := sum(stats.succeeded for stats in self._stack.stats())) < total:
                    in_flight = sum(stats.in_flight_messages for stats in self._stack.stats())
                    progress.update(bars["sent"], completed=self.sent)
                    progress.update(bars["in flight"], completed=in_flight)
                    progress.update(bars["done"], completed=done)
                    self._check(stall, done)
                    self.peak_connections = max(self.peak_connections, self._stack.connections(admin))
                    if interrupted.wait(TICK_S):
                        return None
                seconds = time.monotonic() - started
                sender.join()  # the last message can be done before its sender has counted it
            finally:
                self._given_up.set()
                sender.join()
            progress.update(bars["sent"], completed=self.sent)
            progress.update(bars["in flight"], completed=0)
            progress.update(bars["done"], completed=done)
        return seconds

    def _check(self, stall: _Stall, done: int) -> None:
        self._stack.check_alive()
        if self._failure is not None:
            raise SpillwayError(f"Sending failed: {self._failure}.", "Run it again.")
        if stall.lasted(done + self.sent) > STALLED_S:
            errors = [stats.last_error for stats in self._stack.stats() if stats.last_error]
            failed = [
                f"{count:,} ({reason})"
                for stats in self._stack.stats()
                for reason, count in stats.failed_by_reason.items()
            ]
            back = [
                f"{count:,} {name}"
                for name, metric in OUTCOME_METRICS.items()
                if metric.endswith("GivenBack") and (count := int(self._stack.metrics.sum(metric)))
            ]
            raise SpillwayError(
                f"Nothing has moved for {STALLED_S:.0f} s with {done:,} messages done. "
                f"Failed: {', '.join(failed) or 'none'}; given back by the workers: {', '.join(back) or 'none'}. "
                + (f"The last error: {errors[-1]}." if errors else f"The worker's log ends:\n{self._stack.log_tail()}"),
                "Run it with --keep and look at the logs.",
            )

    def _send(self) -> None:
        def note(result: SendResult) -> None:
            if result.error is None:
                self.sent += 1
            elif self._failure is None:
                self._failure = f"{result.error.code}: {result.error.message}"

        def bodies() -> list[Prepared]:
            return [Prepared.raw(message.body) for message in self._history.messages]

        for result in self._producer.stream(iter(bodies())):
            note(result)
            if self._given_up.is_set() or self._failure is not None:
                return

    def _pause(self, seconds: float) -> None:
        self._given_up.wait(seconds)


class _Stall:
    """How long a number has been the same."""

    def __init__(self) -> None:
        self._value: int | None = None
        self._since = 0.0

    def lasted(self, value: int) -> float:
        if value != self._value:
            self._value, self._since = value, time.monotonic()
        return time.monotonic() - self._since
