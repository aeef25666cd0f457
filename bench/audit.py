"""Does the hash-chained append keep up with the upsert of orders?

    python -m bench.audit [--quick] [--json FILE]

Both workers on one server (fsync on), each with a database of its own and the events of its own history: as many of
them, over as many keys, in batches of each size, by one execution environment and by eight at once. An environment is a
process that handles SQS events as Lambda calls the handler, telemetry included. Events are made beforehand; tables
start empty in each round. What each round wrote is verified by its history's checker.

The embedded PostgreSQL is built without OpenSSL, and its own SHA-256 takes 3.3 us per entry; with OpenSSL, on a
processor with instructions for it, it is a tenth of that.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.utilities.batch import process_partial_response

from bench import events
from bench.common import (
    BenchDatabase,
    databases,
    environment,
    number,
    paired_ratio,
    parse_arguments,
    postgres_version,
    print_environment,
    print_goal,
    print_table,
    write_json,
)
from bench.write_path import Context, silenced
from spillway.histories import audit, orders
from workers.audit.contract import AuditEvent
from workers.orders.contract import OrderEvent
from workers.runtime.database import Database
from workers.runtime.worker import build_processor, statement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.synchronize import Barrier

    from spillway.histories.base import History

SIZES, CLIENTS = (1_000, 100), (1, 8)
ROUNDS, EVENTS = 5, 24_000
QUICK_ROUNDS, QUICK_EVENTS = 1, 2_000


@dataclass(slots=True)
class Rival:
    """A worker, its messages and its tables."""

    name: str
    contract: Any
    database: BenchDatabase
    history: History
    tables: str
    seconds: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def empty(self) -> None:
        """Empty tables, and the disk at rest."""
        with self.database.owner() as owner:
            owner.execute("SET session_replication_role = replica")  # the log lets nobody truncate it
            owner.execute(f"TRUNCATE {self.tables}")
            owner.execute(f"VACUUM (ANALYZE) {self.tables}")
            owner.execute("CHECKPOINT")

    def events(self, size: int) -> list[Any]:
        """The history as SQS events of `size` records, decoded as awslambdaric does."""
        records = list(events.records([message.body for message in self.history.messages]))
        return [json.loads(events.event(records[start : start + size])) for start in range(0, len(records), size)]

    def verify(self) -> None:
        """A benchmark that writes wrong rows is worthless."""
        with self.database.owner() as owner:
            violations = self.history.violations(owner)
        assert violations == [], violations[:3]


def environment_process(rival: Rival, share: list[Any], ready: Barrier) -> None:
    """One execution environment, warm, with its share of the events."""
    settings = rival.database.settings()
    connection = Database(settings)
    processor = build_processor(rival.name, rival.contract, settings, connection)
    to_row = import_module(f"workers.{rival.name}.handler").to_row
    context: Any = Context()

    def handle(event: Any) -> Any:
        return process_partial_response(event=event, record_handler=to_row, processor=processor, context=context)

    with silenced():
        connection.fetch(statement(rival.name), b"[]")
        gc.freeze()
        ready.wait()
        for event in share:
            answer = handle(event)
            assert answer == {"batchItemFailures": []}, answer
    os._exit(0)


def run(rival: Rival, size: int, environments: int) -> float:
    """Seconds that as many environments take to write all events in batches of `size`."""
    rival.empty()
    batches = rival.events(size)
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(environments + 1)
    processes = [
        fork.Process(target=environment_process, args=(rival, batches[first::environments], ready))
        for first in range(environments)
    ]
    for process in processes:
        process.start()
    ready.wait(60)
    started = time.perf_counter()
    for process in processes:
        process.join()
    spent = time.perf_counter() - started
    assert all(process.exitcode == 0 for process in processes)
    return spent


def measure(rivals: Sequence[Rival], rounds: int) -> None:
    """All rivals in all shapes; the one that goes first changes from round to round."""
    for index in range(rounds):
        for size in SIZES:
            for clients in CLIENTS:
                for rival in rivals if index % 2 else rivals[::-1]:
                    rival.seconds.setdefault((size, clients), []).append(run(rival, size, clients))
                    rival.verify()


def main() -> None:
    """Measure, print, and leave nothing running."""
    arguments = parse_arguments(__doc__)
    rounds, count = (QUICK_ROUNDS, QUICK_EVENTS) if arguments.quick else (ROUNDS, EVENTS)
    with databases("orders", "audit") as (one, two):
        of_orders = orders.generate(count, poison=0)
        of_audit = audit.generate(count, poison=0, streams=count // 4)
        rivals = [
            Rival("orders", OrderEvent, one, of_orders, "spillway.orders, spillway.order_events"),
            Rival(
                *("audit", AuditEvent, two, of_audit),
                "spillway.audit_log, spillway.audit_streams, spillway.audit_anchors, spillway.audit_events",
            ),
        ]
        measure(rivals, rounds)
        described = environment(postgres=postgres_version(one))
    print("## The audit log\n")
    print_environment(described)
    lengths = [sum(len(message.body) for message in rival.history.messages) / count for rival in rivals]
    print(f"{count:,} events a round; an order's event {lengths[0]:.0f} characters, an audit event {lengths[1]:.0f}.\n")
    table = []
    goals = []
    for shape in rivals[0].seconds:
        spent = [rival.seconds[shape] for rival in rivals]
        ratio = paired_ratio(spent[0], spent[1])
        goals.append((shape, ratio))
        rates = [number(count / statistics.median(seconds)) for seconds in spent]
        table.append([f"{shape[0]:,} by {shape[1]}", *rates, f"{ratio:.2f} x"])
    print_table(["batch by environments", "orders, events/s", "audit, events/s", "audit/orders"], table)
    print("Rates are medians of the rounds, ratios are medians of each round's ratio.\n")
    for (size, clients), ratio in goals:
        what = f"audit over orders, batches of {size:,}, {clients} environment{'s' if clients > 1 else ''}"
        print_goal(what, ">= 1 x", f"{ratio:.2f} x", reached=ratio >= 1)
    write_json(
        arguments.json,
        described,
        {
            rival.name: {f"{size}x{clients}": spent for (size, clients), spent in rival.seconds.items()}
            for rival in rivals
        },
    )


if __name__ == "__main__":
    main()
