"""What do bad records cost the batch that they are in?

    python -m bench.poison [--quick] [--json FILE]

A batch of 1,000 order rows, k of them refused by the database, goes through ways of keeping them from their neighbours:

(a) apply_orders, where its predicates know what is wrong (a version that is no number): the usual case.
(b) apply_orders, where only the table knows (a CHECK that the predicates do not repeat): the last resort, which halves
    the batch inside the function.
(c) the plain function, bisected by the client.
(d) the plain function, and record at a time by the client once it has failed.

The plain function does the same write and isolates nothing; the yardstick is a clean batch written by it. Each has a
database of its own (fsync on), all get the same batches, interleaved round by round; times are medians, ratios are
medians of each round's ratio. After the last round every database must hold the rows of exactly the good records.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

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
from spillway.histories.orders import generate
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.database import JsonText, JsonTextDumper
from workers.runtime.envelope import EventDecoder
from workers.runtime.worker import statement

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 1_000
BAD = (0, 1, 5, 50)
GOAL = 1.2
#: The client's strategies take up to a second a batch; a few rounds tell enough.
SLOW_ROUNDS = 5

PLAIN = """
CREATE FUNCTION spillway.apply_plain(p_batch jsonb) RETURNS SETOF spillway.outcome
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = spillway, pg_temp AS $$
BEGIN
    RETURN QUERY
    WITH input AS MATERIALIZED (
        SELECT DISTINCT ON (r.id) r.* FROM jsonb_to_recordset(p_batch) AS r(
            id uuid, type text, order_id text, version integer, customer text, currency text, total bigint,
            items jsonb, placed_at timestamptz, updated_at timestamptz, cancelled_at timestamptz, reason text)
        ORDER BY r.id
    ), claimed AS (
        INSERT INTO order_events (event_id) SELECT i.id FROM input i ORDER BY i.id
        ON CONFLICT DO NOTHING RETURNING event_id
    ), newest AS (
        SELECT DISTINCT ON (i.order_id) i.* FROM input i JOIN claimed c ON c.event_id = i.id
        ORDER BY i.order_id, i.version DESC, i.id DESC
    ), written AS (
        INSERT INTO orders AS o (order_id, version, event_id, status, customer, currency, total, items,
                                 placed_at, updated_at, cancelled_at, reason)
        SELECT n.order_id, n.version, n.id, split_part(n.type, '.', 2), n.customer, n.currency, n.total, n.items,
               n.placed_at, n.updated_at, n.cancelled_at, coalesce(n.reason, '')
        FROM newest n ORDER BY n.order_id
        ON CONFLICT (order_id) DO UPDATE SET
            version = excluded.version, event_id = excluded.event_id, status = excluded.status,
            customer = excluded.customer, currency = excluded.currency, total = excluded.total,
            items = excluded.items, placed_at = excluded.placed_at, updated_at = excluded.updated_at,
            cancelled_at = excluded.cancelled_at, reason = excluded.reason
        WHERE (o.version, o.event_id) < (excluded.version, excluded.event_id)
        RETURNING o.event_id
    )
    SELECT i.id, CASE WHEN c.event_id IS NULL THEN 'duplicate' WHEN w.event_id IS NULL THEN 'stale' ELSE 'applied' END,
           NULL, NULL
    FROM input i LEFT JOIN claimed c ON c.event_id = i.id LEFT JOIN written w ON w.event_id = i.id;
END
$$
"""
FORBIDDEN = "forbidden-customer"
CHECK = f"ALTER TABLE spillway.orders ADD CONSTRAINT orders_customer_allowed CHECK (customer <> '{FORBIDDEN}')"

Row = dict[str, Any]
Batch = list[Row]
_encode = msgspec.json.encode


class Way:
    """One way to write a batch, on a database and a connection of its own."""

    def __init__(self, name: str, database: BenchDatabase, write: Callable[[Way, Batch], None], *, known: bool) -> None:
        self.name = name
        self.database = database
        self.known = known  # whether predicates can tell what is wrong with a bad record
        self.expected: set[str] = set()
        with database.owner() as owner:
            owner.execute(PLAIN)
            owner.execute("GRANT EXECUTE ON FUNCTION spillway.apply_plain(jsonb) TO spillway_worker")
            owner.execute(CHECK)
        self._connection = database.worker()
        self._connection.adapters.register_dumper(JsonText, JsonTextDumper)
        self._write = write

    def call(self, function: str, batch: Batch) -> int:
        """Write `batch` by one call; returns how many rows were answered for as invalid. Raises psycopg.Error."""
        rows = self._connection.execute(statement(function), (JsonText(_encode(batch)),), binary=True).fetchall()
        assert len(rows) == len(batch)
        return sum(row[1] == "invalid" for row in rows)

    def timed(self, batch: Batch, bad: int) -> float:
        """Seconds for `batch` with its first `bad` places (spread over it) made bad."""
        broken = {index * len(batch) // bad for index in range(bad)} if bad else set()
        spoilt = [self._spoil(row) if index in broken else row for index, row in enumerate(batch)]
        self.expected |= {row["order_id"] for index, row in enumerate(batch) if index not in broken}
        started = time.perf_counter()
        self._write(self, spoilt)
        return time.perf_counter() - started

    def check(self) -> None:
        """Raise unless exactly the good records are there."""
        with self.database.owner() as owner:
            found = {row[0] for row in owner.execute("SELECT order_id FROM spillway.orders")}
        if found != self.expected:
            raise SystemExit(f"{self.name}: {len(found ^ self.expected)} orders differ from what was good")
        self._connection.close()

    def _spoil(self, row: Row) -> Row:
        return row | ({"version": "seven"} if self.known else {"customer": FORBIDDEN})


def by_function(way: Way, batch: Batch) -> None:
    """The whole batch by apply_orders."""
    way.call("orders", batch)


def plainly(way: Way, batch: Batch) -> None:
    """The whole batch by the plain function; nothing may be wrong with it."""
    way.call("plain", batch)


def bisecting(way: Way, batch: Batch) -> None:
    """Halves, until the bad ones are alone."""
    try:
        way.call("plain", batch)
    except (psycopg.DataError, psycopg.IntegrityError):
        if len(batch) > 1:
            middle = len(batch) // 2
            bisecting(way, batch[:middle])
            bisecting(way, batch[middle:])


def one_by_one(way: Way, batch: Batch) -> None:
    """All at once, and after an error each alone."""
    try:
        way.call("plain", batch)
    except (psycopg.DataError, psycopg.IntegrityError):
        for row in batch:
            try:
                way.call("plain", [row])
            except (psycopg.DataError, psycopg.IntegrityError):
                continue


def batches(count: int) -> list[Batch]:
    """`count` batches of rows, each about an order of its own: no row depends on another batch's."""
    decode = EventDecoder[Any](OrderEvent).decode
    history = generate(count * BATCH, seed=1, poison=0, duplicates=0, orders=50 * count * BATCH)
    rows = [msgspec.to_builtins(to_row(decode(message.body))) for message in history.messages]
    for index, row in enumerate(rows):
        row["order_id"] = f"ord-{index:08}"
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def main() -> None:
    """Measure, print, and leave nothing running."""
    arguments = parse_arguments(__doc__)
    rounds, slow_rounds = (2, 1) if arguments.quick else (21, SLOW_ROUNDS)
    with databases("clean", "predicates", "last_resort", "bisecting", "one_by_one") as made:
        described = environment(postgres=postgres_version(made[0]))
        clean = Way("clean", made[0], plainly, known=True)
        ways = [
            Way("(a) apply_orders, known to its predicates", made[1], by_function, known=True),
            Way("(b) apply_orders, known to the table alone", made[2], by_function, known=False),
            Way("(c) plain function, the client bisects", made[3], bisecting, known=False),
            Way("(d) plain function, then record at a time", made[4], one_by_one, known=False),
        ]
        cleans: list[float] = []
        times: dict[tuple[str, int], list[float]] = {(way.name, bad): [] for way in ways for bad in BAD}
        # One round more, to warm up; every batch is used once, or its events would be duplicates.
        fresh = iter(batches((rounds + 1) * (1 + len(BAD))))
        for index in range(rounds + 1):
            taken = clean.timed(next(fresh), 0)
            if index:
                cleans.append(taken)
            for bad in BAD:
                batch = next(fresh)
                for way in ways[: 2 if index > slow_rounds else None]:
                    taken = way.timed(batch, bad)
                    if index:
                        times[way.name, bad].append(taken)
        for way in (clean, *ways):
            way.check()
    report(described, cleans, times)
    ratios = {f"{name}, {bad} bad": paired_ratio(taken, cleans) for (name, bad), taken in times.items()}
    write_json(arguments.json, described, {"clean_ms": statistics.median(cleans) * 1000, "ratios": ratios})


def report(described: dict[str, str], cleans: list[float], times: dict[tuple[str, int], list[float]]) -> None:
    """The tables and the goal."""
    print("# Bad records: what they cost a batch of 1,000\n")
    print_environment(described)
    print(f"A clean batch by the plain function: {number(statistics.median(cleans) * 1000)} ms.\n")
    names = list(dict.fromkeys(name for name, _ in times))

    def cell(taken: list[float]) -> str:
        return f"{number(statistics.median(taken) * 1000)} ({paired_ratio(taken, cleans):.2f} x)"

    print_table(
        ["ms (x the clean batch)", *(f"{bad} bad" for bad in BAD)],
        [
            [
                name,
                *(cell(times[name, bad]) for bad in BAD),
            ]
            for name in names
        ],
    )
    worst = max(paired_ratio(times[names[0], bad], cleans) for bad in BAD)
    print_goal("(a), any number of bad records", f"<= {GOAL} x", f"{worst:.2f} x at worst", reached=worst <= GOAL)


if __name__ == "__main__":
    main()
