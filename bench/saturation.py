"""What does it cost when three times as much is offered as the pool can carry, and how soon is it over?

    python -m bench.saturation [--quick] [--json FILE]

The whole local stack, through the RDS Proxy: CONCURRENCY environments share a pool a third as large, and every event
takes ROW_S of a connection (a trigger sleeps), so what the pool can carry is known: POOL / ROW_S events a second. Half
of that is offered first, then three times as much for a minute, then nothing until the queue is empty. Billed time is
the wall time of all invocations, as Lambda bills it. The rival is a worker with the same write and a naive policy
(naive.py), in the same run. Both must have applied every event, and dead-lettered none, at the end.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from bench.common import (
    environment,
    number,
    parse_arguments,
    print_environment,
    print_goal,
    print_table,
    write_json,
)
from spillway.histories.orders import generate
from spillway.packing import Prepared
from spillway.producer import Producer
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.postgres_directory import MAJOR_VERSION
from spillway.stack.processes import Processes
from spillway.stack.snapshot import depth
from spillway.stack.template_text import changed_template
from workers.orders.contract import OrderEvent
from workers.runtime.telemetry import OUTCOME_METRICS

if TYPE_CHECKING:
    from spillway.histories.base import Message

POOL = 4
CONCURRENCY = 3 * POOL
BATCH = 20
ROW_S = 0.1
CAPACITY = POOL / ROW_S
BORROW_TIMEOUT_S = 1
OVERLOAD = 3
BILLED_GOAL, DRAIN_GOAL = 1.5, 2.0
STALLED_S = 600.0

SLOW_WRITES = f"""
CREATE FUNCTION public.take_a_while() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_sleep({ROW_S} * (SELECT count(*) FROM written)); RETURN NULL; END$$;
CREATE TRIGGER take_a_while AFTER INSERT ON spillway.order_events REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION public.take_a_while()
"""  # noqa: S608  (numbers of ours)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stretch of a run: events applied, seconds billed for them, seconds it took."""

    applied: int
    billed_s: float
    seconds: float

    @property
    def billed_ms_per_event(self) -> float:
        return 1000 * self.billed_s / max(1, self.applied)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy: below capacity, above it, and the drain afterwards; `backlog` events were left for the drain."""

    unsaturated: Phase
    saturated: Phase
    drain: Phase
    backlog: int
    dead_letters: int
    given_back: dict[str, int]

    @property
    def ratio(self) -> float:
        """Billed time per event of the overload and its drain, against that below capacity."""
        applied = self.saturated.applied + self.drain.applied
        billed = self.saturated.billed_s + self.drain.billed_s
        return (1000 * billed / applied) / self.unsaturated.billed_ms_per_event

    @property
    def drain_ratio(self) -> float:
        """Drain time against what the pool needs at least."""
        return self.drain.seconds / (self.backlog / CAPACITY)


class Load:
    """A running stack under one policy."""

    def __init__(self, stack: LocalStack, worker: str) -> None:
        queue, dead = stack.workers()[worker]
        self.stack = stack
        self.url, self.dead_url = stack.queue_urls[queue], stack.queue_urls[dead]
        self._admin = psycopg.connect(stack.dsn, autocommit=True)
        self._admin.execute(SLOW_WRITES)

    def applied(self) -> int:
        row = self._admin.execute("SELECT count(*) FROM spillway.order_events").fetchone()
        assert row is not None
        return int(row[0])

    def billed_s(self) -> float:
        return sum(mapping.function_s for mapping in self.stack.stats())

    def in_queue(self) -> int:
        found = depth(self.stack.client, self.url, None)
        return found.waiting + found.in_flight

    def dead_letters(self) -> int:
        found = depth(self.stack.client, self.dead_url, None)
        return found.waiting + found.in_flight

    def offer(self, messages: list[Message], rate: float) -> Phase:
        """Send `messages` at `rate` a second from a thread of its own, and watch until the last one is sent."""
        applied, billed, started = self.applied(), self.billed_s(), time.monotonic()
        sender = threading.Thread(target=self._send, args=(messages, rate))
        sender.start()
        sender.join()
        return self._phase(applied, billed, started)

    def drain(self, total: int) -> Phase:
        """Wait until `total` events are applied."""
        applied, billed, started = self.applied(), self.billed_s(), time.monotonic()
        while (now := self.applied()) < total or self.stack.stats()[0].in_flight_messages:
            self.stack.check_alive()
            if time.monotonic() - started > STALLED_S:
                raise SystemExit(f"Not drained after {STALLED_S:.0f} s: {now:,} of {total:,}\n{self.stack.log_tail(3)}")
            time.sleep(0.1)
        return self._phase(applied, billed, started)

    def _phase(self, applied: int, billed: float, started: float) -> Phase:
        return Phase(
            applied=self.applied() - applied,
            billed_s=self.billed_s() - billed,
            seconds=time.monotonic() - started,
        )

    def _send(self, messages: list[Message], rate: float) -> None:
        producer = Producer(self.stack.sqs_client(), self.url, OrderEvent)
        started = time.monotonic()
        step = max(1, round(rate / 10))
        for start in range(0, len(messages), step):
            time.sleep(max(0.0, started + start / rate - time.monotonic()))
            for result in producer.send(Prepared.raw(message.body) for message in messages[start : start + step]):
                assert result.error is None, result.error


def run(handler: str, directory: Path, seconds: float) -> Run:
    """One policy from start to empty queue."""
    text = changed_template({"orders": {"batch_size": BATCH}})
    template = directory / f"{handler}.yaml"
    template.write_text(text.replace("workers.orders.handler.handler", handler), encoding="utf-8")
    worker = handler.split(".")[1]
    options = StackOptions(
        workers=(worker,),
        ramp=False,
        template=template,
        proxy_connections=POOL,
        parameters={"OrdersMaximumConcurrency": CONCURRENCY, "DatabaseBorrowTimeout": BORROW_TIMEOUT_S},
    )
    below = _messages(1, CAPACITY / 2 * seconds / 3)
    above = _messages(2, CAPACITY * OVERLOAD * seconds)
    with Processes() as processes:
        stack = LocalStack(processes, options)
        stack.start()
        try:
            load = Load(stack, worker)
            warm_up = _messages(3, 10 * BATCH)
            load.offer(warm_up, CAPACITY / 2)
            load.drain(len(warm_up))
            applied, billed, started = load.applied(), load.billed_s(), time.monotonic()
            load.offer(below, CAPACITY / 2)
            load.drain(len(warm_up) + len(below))
            unsaturated = load._phase(applied, billed, started)
            saturated = load.offer(above, CAPACITY * OVERLOAD)
            backlog = len(above) - saturated.applied
            drain = load.drain(len(warm_up) + len(below) + len(above))
            given_back = {
                outcome: int(count)
                for outcome, metric in OUTCOME_METRICS.items()
                if metric.endswith("GivenBack") and (count := stack.metrics.sum(metric))
            }
            result = Run(
                unsaturated=unsaturated,
                saturated=saturated,
                drain=drain,
                backlog=backlog,
                dead_letters=load.dead_letters(),
                given_back=given_back or Counter(stack.stats()[0].failed_by_reason),
            )
        finally:
            stack.stop()
    return result


def _messages(seed: int, count: float) -> list[Message]:
    """Events about an order each, or nearly: batches that wait for each other's rows would be another question."""
    events = round(count)
    return generate(events, seed=seed, poison=0, duplicates=0, orders=50 * events, prefix=f"ord-{seed}").messages


def main() -> None:
    """Measure, print, and leave nothing running."""
    arguments = parse_arguments(__doc__)
    seconds = 5.0 if arguments.quick else 60.0
    with tempfile.TemporaryDirectory() as name:
        runs = {
            "Spillway": run("workers.orders.handler.handler", Path(name), seconds),
            "naive": run("bench.naive.handler", Path(name), seconds),
        }
    described = environment("boto3", postgres=MAJOR_VERSION)
    print("# Three times what the pool can carry\n")
    print_environment(described)
    print(
        f"{CONCURRENCY} environments, {POOL} connections, batches of {BATCH} that take {BATCH * ROW_S:g} s each: "
        f"{CAPACITY:,.0f} events/s; borrow timeout {BORROW_TIMEOUT_S} s. {OVERLOAD} x that for {seconds:.0f} s.\n"
    )
    print_table(
        ["", "billed ms/event below", "above", "with its drain", "ratio", "applied above, events/s", "drain, x least"],
        [
            [
                name,
                number(one.unsaturated.billed_ms_per_event),
                number(one.saturated.billed_ms_per_event),
                number(one.ratio * one.unsaturated.billed_ms_per_event),
                f"{one.ratio:.2f} x",
                number(one.saturated.applied / one.saturated.seconds),
                f"{one.drain_ratio:.2f} x",
            ]
            for name, one in runs.items()
        ],
    )
    for name, one in runs.items():
        print(f"{name}: given back {one.given_back}, dead letters {one.dead_letters}")
    ours = runs["Spillway"]
    print()
    print_goal("billed time per event", f"<= {BILLED_GOAL} x", f"{ours.ratio:.2f} x", reached=ours.ratio <= BILLED_GOAL)
    print_goal("dead letters", "none", str(ours.dead_letters), reached=ours.dead_letters == 0)
    print_goal("drain", f"<= {DRAIN_GOAL} x", f"{ours.drain_ratio:.2f} x", reached=ours.drain_ratio <= DRAIN_GOAL)
    numbers: dict[str, Any] = {name: {"ratio": one.ratio, "drain": one.drain_ratio} for name, one in runs.items()}
    write_json(arguments.json, described, numbers)


if __name__ == "__main__":
    main()
