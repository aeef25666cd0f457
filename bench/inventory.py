"""What do hot SKUs cost the inventory worker when eight batches are written at once?

    python -m bench.inventory [--quick] [--json FILE]

Eight clients call apply_inventory with batches that are made beforehand: 60 % reservations, 20 % receipts, 20 %
releases, one to four lines each, about (a) 300 SKUs and (b) 100,000 SKUs. Each has a database of its own on one server
(fsync on), stocked with plenty of every SKU; the clients draw from one heap of batches, so batches overlap as the queue
would have them. Rounds alternate between (a) and (b); the first one warms up. Rates are medians of the rounds, the
ratio is the median of each round's ratio. In the end every ledger must balance, and no deadlock may have been counted.

Measured on two cores that were busy with other work, so read ratios: (a)/(b) 0.82 x at batch 10, 0.98 x at 100 and
1.69 x at 1,000, no deadlock. The number of stripes (apply.sql), on 20,000 SKUs, events/s:

| stripes | 64 | 512 | 2,048 | 16,384 |
|---|---|---|---|---|
| batch 10 | 693 | 976 | 1,399 | 2,098 |
| batch 100 | 1,678 | 2,430 | 2,058 | 2,154 |

Batches of 100 SKUs or more meet on some stripe however many there are, and small batches are not what a flood comes in;
so 512, which PostgreSQL's lock table has room for by its defaults.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

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
from workers.runtime.database import JsonText, JsonTextDumper
from workers.runtime.worker import statement

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

CLIENTS = 8
GOAL = 0.7
HOT, COLD = "(a) 300 SKUs", "(b) 100,000 SKUs"
#: Of each SKU when a run starts; no reservation is ever refused for want of it.
PLENTY = 10**6
_SEED_LINES, _SEED_EVENTS = 200, 50

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `events`: a round's, by batch size."""

    rounds: int
    events: dict[int, int]
    skus: dict[str, int]


FULL_PLAN = Plan(7, {10: 4_000, 100: 12_000, 1_000: 24_000}, {HOT: 300, COLD: 100_000})
QUICK_PLAN = Plan(1, {10: 160, 100: 1_600}, {HOT: 300, COLD: 2_000})


@dataclass(slots=True)
class Series:
    """One set of SKUs: its database, its movements, and events per second by batch size and round."""

    database: BenchDatabase
    skus: int
    rng: random.Random
    seconds: dict[int, list[float]] = field(default_factory=dict)
    reserved: list[str] = field(default_factory=list)
    documents: int = 0

    def movements(self, count: int) -> Iterator[Row]:
        """The next `count` rows as the worker sends them."""
        for _ in range(count):
            chance = self.rng.random()
            if chance < 0.2 and self.reserved:
                place = self.rng.randrange(len(self.reserved))
                self.reserved[place], self.reserved[-1] = self.reserved[-1], self.reserved[place]
                yield self.row("released", self.reserved.pop())
            elif chance < 0.4:
                yield self.row("received", self._document(), self._lines())
            else:
                document_id = self._document()
                self.reserved.append(document_id)
                yield self.row("reserved", document_id, self._lines())

    def row(self, what: str, document_id: str, lines: dict[str, int] | None = None) -> Row:
        """One row; its event id is of version 7, as a producer's."""
        bits = (time.time_ns() // 10**6) << 80 | 7 << 76 | self.rng.getrandbits(12) << 64 | 2 << 62
        row: Row = {
            "id": UUID(int=bits | self.rng.getrandbits(62)),
            "type": f"stock.{what}",
            "document_id": document_id,
            "occurred_at": "2026-01-05T08:00:00Z",
        }
        return row | {"lines": lines} if lines else row

    def _document(self) -> str:
        self.documents += 1
        return f"doc-{self.documents:07}"

    def _lines(self) -> dict[str, int]:
        return {
            f"SKU-{self.rng.randrange(self.skus):06}": self.rng.randint(1, 5) for _ in range(self.rng.randint(1, 4))
        }


def stock(series: Series) -> None:
    """Plenty of every SKU."""
    names = [f"SKU-{place:06}" for place in range(series.skus)]
    receipts = [
        series.row("received", f"seed-{start}", dict.fromkeys(names[start : start + _SEED_LINES], PLENTY))
        for start in range(0, len(names), _SEED_LINES)
    ]
    batches = [receipts[start : start + _SEED_EVENTS] for start in range(0, len(receipts), _SEED_EVENTS)]
    run(series.database, [JsonText(msgspec.json.encode(batch)) for batch in batches])
    with series.database.owner() as owner:
        owner.execute("VACUUM (ANALYZE)")
        owner.execute("CHECKPOINT")


def run(database: BenchDatabase, batches: list[JsonText]) -> float:
    """Seconds until eight clients have written all `batches`. Raises what a client raised."""
    left = list(reversed(batches))
    failures: list[BaseException] = []
    connections = [database.worker() for _ in range(CLIENTS)]
    start = threading.Barrier(CLIENTS + 1)

    def client(connection: psycopg.Connection[Any]) -> None:
        try:
            connection.prepare_threshold = None
            connection.adapters.register_dumper(JsonText, JsonTextDumper)
            connection.execute("SELECT 1")
            start.wait()
            while left:
                try:
                    batch = left.pop()
                except IndexError:
                    return
                connection.execute(statement("inventory"), (batch,), binary=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    start.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for connection in connections:
        connection.close()
    if failures:
        raise failures[0]
    return seconds


def measure(plan: Plan, rivals: dict[str, Series]) -> None:
    """All rounds, interleaved."""
    for series in rivals.values():
        stock(series)
    for size, events in plan.events.items():
        for index in range(plan.rounds + 1):
            names = list(rivals) if index % 2 else list(rivals)[::-1]
            for name in names:
                series = rivals[name]
                rows = list(series.movements(events))
                batches = [
                    JsonText(msgspec.json.encode(rows[start : start + size])) for start in range(0, events, size)
                ]
                seconds = run(series.database, batches)
                if index:
                    series.seconds.setdefault(size, []).append(seconds / events)


def verify(series: Series) -> int:
    """Raise unless the books balance and every event was decided upon; returns the deadlocks counted."""
    with series.database.owner() as owner:
        wrong = owner.execute(
            "SELECT count(*) FROM spillway.stock s FULL JOIN"
            " (SELECT sku, sum(quantity) AS total FROM spillway.stock_ledger GROUP BY sku) l ON l.sku = s.sku"
            " WHERE s.available IS DISTINCT FROM l.total OR s.available < 0"
        ).fetchone()
        refused = owner.execute("SELECT count(*) FROM spillway.inventory_events WHERE outcome = 'rejected'").fetchone()
        deadlocks = owner.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert wrong == (0,), f"{series.database.name}: {wrong} SKUs do not balance"
    assert refused == (0,), f"{series.database.name}: {refused} movements were rejected"
    assert deadlocks is not None
    return int(deadlocks[0])


def main() -> None:
    """Measure, print, and leave nothing running."""
    arguments = parse_arguments(__doc__)
    plan = QUICK_PLAN if arguments.quick else FULL_PLAN
    with databases("hot", "cold") as made:
        rivals = {
            name: Series(database, skus, random.Random(name))
            for (name, skus), database in zip(plan.skus.items(), made, strict=True)
        }
        measure(plan, rivals)
        deadlocks = sum(verify(series) for series in rivals.values())
        described = environment(postgres=postgres_version(made[0]))
    report(plan, rivals, deadlocks, described)
    write_json(arguments.json, described, {name: series.seconds for name, series in rivals.items()})


def report(plan: Plan, rivals: dict[str, Series], deadlocks: int, described: dict[str, str]) -> None:
    """Print the table and the goals."""
    print("## Inventory, 8 clients\n")
    print_environment(described)
    ratios = {}
    rows = []
    for size in plan.events:
        hot, cold = (rivals[name].seconds[size] for name in (HOT, COLD))
        ratios[size] = paired_ratio(cold, hot)
        rates = [number(1 / statistics.median(seconds)) for seconds in (hot, cold)]
        rows.append([f"{size:,}", *rates, f"{ratios[size]:.2f} x"])
    print_table(["batch", f"{HOT}, events/s", f"{COLD}, events/s", "(a)/(b)"], rows)
    print_goal("deadlocks", "none", str(deadlocks), reached=deadlocks == 0)
    for size, ratio in ratios.items():
        print_goal(f"(a) over (b) at batch {size:,}", f">= {GOAL} x", f"{ratio:.2f} x", reached=ratio >= GOAL)


if __name__ == "__main__":
    main()
