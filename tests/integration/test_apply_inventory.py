"""apply_inventory against a sequential reference, and under every overlap that could oversell, deadlock or repeat."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spillway.histories.base import DUPLICATE, VALID
from spillway.histories.inventory import InventoryHistory, generate
from spillway.samples import inventory as sample
from spillway.stack.template import REPOSITORY
from tests.conftest import BOTH_ROUTES
from workers.inventory.contract import InventoryEvent
from workers.inventory.handler import MovementRow, to_row
from workers.runtime.database import JsonText, JsonTextDumper
from workers.runtime.envelope import EventDecoder
from workers.runtime.worker import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import TestDatabase

pytestmark = BOTH_ROUTES

APPLY = statement("inventory")
FUNCTION = (REPOSITORY / "workers/inventory/apply.sql").read_text()
LOCK_CLASS = int(re.findall(r"lock_class CONSTANT integer := (\d+)", FUNCTION)[0])
STRIPES = int(re.findall(r"stripe_mask CONSTANT integer := (\d+)", FUNCTION)[0]) + 1
#: Long enough for a busy machine; nothing here waits that long unless it fails.
PATIENCE_S = 30.0
decode = EventDecoder[Any](InventoryEvent).decode


def rows_of(history: InventoryHistory) -> list[MovementRow]:
    """The good messages of a history in sending order, repeats included."""
    return [to_row(decode(message.body)) for message in history.messages if message.kind in (VALID, DUPLICATE)]


def apply(connection: psycopg.Connection[Any], rows: list[Any]) -> list[tuple[UUID, str, str | None, str | None]]:
    connection.adapters.register_dumper(JsonText, JsonTextDumper)
    return connection.execute(APPLY, (JsonText(msgspec.json.encode(rows)),)).fetchall()


def outcomes(connection: psycopg.Connection[Any], rows: list[Any]) -> list[str]:
    """What became of each of `rows` (distinct ids), in their order: the reason where it was rejected."""
    answers = {answer[0]: answer[2] if answer[1] == "rejected" else answer[1] for answer in apply(connection, rows)}
    return [str(answers[row.id]) for row in rows]


def reset(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "TRUNCATE spillway.stock, spillway.stock_ledger, spillway.stock_documents, spillway.inventory_events"
    )


def movement(what: str, document_id: str, **lines: int) -> MovementRow:
    """A movement with an event id of its own."""
    event = sample.examples()[f"stock.{what}"]
    row = to_row(decode(msgspec.json.encode(event)))
    return msgspec.structs.replace(row, id=uuid4(), document_id=document_id, lines=lines or None)


def received(document_id: str, **lines: int) -> MovementRow:
    return movement("received", document_id, **lines)


def reserved(document_id: str, **lines: int) -> MovementRow:
    return movement("reserved", document_id, **lines)


def released(document_id: str) -> MovementRow:
    return movement("released", document_id)


def available(connection: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(connection.execute("SELECT sku, available FROM spillway.stock").fetchall())


def unbalanced(connection: psycopg.Connection[Any]) -> list[Any]:
    """What must never be: stock that differs from its ledger, or a SKU whose ledger ever went below zero."""
    return connection.execute(
        """
        SELECT coalesce(s.sku, l.sku), s.available, l.total, l.least
        FROM spillway.stock s FULL JOIN (
            SELECT sku, sum(quantity) AS total, min(running) AS least
            FROM (
                SELECT *, sum(quantity) OVER (PARTITION BY sku ORDER BY entry) AS running FROM spillway.stock_ledger
            ) r
            GROUP BY sku) l ON l.sku = s.sku
        WHERE s.available IS DISTINCT FROM l.total OR l.least < 0 OR s.available < 0
           OR s.available <> s.received - s.reserved + s.released
        """
    ).fetchall()


class Reference:
    """The rules once more, one event at a time."""

    def __init__(self) -> None:
        self.stock: Counter[str] = Counter()
        self.claimed: set[UUID] = set()
        self.receipts: set[str] = set()
        self.granted: dict[str, dict[str, int]] = {}
        self.released: set[str] = set()

    def apply(self, row: MovementRow) -> str:
        if row.id in self.claimed:
            return "duplicate"
        self.claimed.add(row.id)
        if row.type == "stock.released":
            if row.document_id in self.released:
                return "already_released"
            self.released.add(row.document_id)
            self.stock.update(self.granted.pop(row.document_id, {}))
            return "applied"
        lines = row.lines or {}
        if row.type == "stock.received":
            if row.document_id in self.receipts:
                return "already_received"
            self.receipts.add(row.document_id)
            self.stock.update(lines)
            return "applied"
        if row.document_id in self.released:
            return "stale"
        if row.document_id in self.granted:
            return "already_reserved"
        if any(self.stock[sku] < pieces for sku, pieces in lines.items()):
            return "insufficient_stock"
        self.granted[row.document_id] = lines
        self.stock.subtract(lines)
        return "applied"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(60, 300), skus=st.integers(1, 60), shuffle=st.integers())
def test_any_split_order_and_redelivery_is_as_one_event_at_a_time(
    database: TestDatabase, seed: int, size: int, skus: int, shuffle: int
) -> None:
    history = generate(size, seed=seed, duplicates=0.1, poison=0, skus=skus)
    rng = random.Random(shuffle)
    deliveries = rows_of(history)
    deliveries += rng.sample(deliveries, k=len(deliveries) // 5)  # redelivered by SQS, on top of the producer's repeats
    rng.shuffle(deliveries)
    reference = Reference()
    with database.owner() as owner, database.worker() as worker:
        reset(owner)
        while deliveries:
            cut = rng.randint(1, 120)
            batch, deliveries = list({row.id: row for row in deliveries[:cut]}.values()), deliveries[cut:]
            expected = [reference.apply(row) for row in batch]
            assert outcomes(worker, batch) == expected
        assert available(owner) == {
            sku: reference.stock[sku] for (sku,) in owner.execute("SELECT sku FROM spillway.stock")
        }
        assert +reference.stock == +Counter(available(owner))
        assert unbalanced(owner) == []
        assert history.violations(owner) == []


def in_parallel(database: TestDatabase, batches: list[list[MovementRow]], clients: int = 8) -> Counter[str]:
    """All `batches`, each by whichever of the clients is free; outcomes by name. Fails where a client failed."""
    counted: Counter[str] = Counter()
    failures: list[BaseException] = []
    lock = threading.Lock()
    left = list(reversed(batches))

    def client() -> None:
        try:
            with database.worker() as connection:
                while True:
                    with lock:
                        if not left:
                            return
                        batch = left.pop()
                    answers = apply(connection, batch)
                    with lock:
                        counted.update(answer[1] for answer in answers)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [], "a deadlock would show here"
    return counted


def test_overlapping_batches_at_once_keep_every_invariant(database: TestDatabase) -> None:
    history = generate(4_000, seed=11, duplicates=0.3, poison=0, skus=40)
    deliveries = rows_of(history) * 2
    random.Random(5).shuffle(deliveries)
    batches = [deliveries[start : start + 250] for start in range(0, len(deliveries), 250)]
    counted = in_parallel(database, batches)
    with database.owner() as owner:
        assert history.violations(owner) == []
        assert unbalanced(owner) == []
    assert set(counted) == {"applied", "duplicate", "rejected", "stale"}
    assert counted["applied"] + counted["rejected"] + counted["stale"] == len(history.event_ids)


def test_batches_that_name_the_same_skus_in_opposite_orders_never_deadlock(database: TestDatabase) -> None:
    skus = [f"SKU-{number}" for number in range(60)]
    batches = []
    for number in range(160):
        order = skus if number % 2 else skus[::-1]
        batches.append([received(f"rcp-{number}-{place}", **{sku: 1}) for place, sku in enumerate(order)])
    assert in_parallel(database, batches) == {"applied": 160 * 60}
    with database.owner() as owner:
        assert set(available(owner).values()) == {160}


# ── the schedules that must not oversell ──────────────────────────────────────────────────────────────────────────────


class Call:
    """A call in a thread of its own. `answer` waits for what it returns, or raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error

    def answer(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


def until_waiting(owner: psycopg.Connection[Any], locktype: str) -> None:
    """Return once a session of this database waits for a lock of that type."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        (waiting,) = owner.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE NOT l.granted AND l.locktype = %s AND a.datname = current_database()",
            (locktype,),
        ).fetchone() or (0,)
        if waiting:
            return
        time.sleep(0.005)
    raise AssertionError(f"nobody waits for a lock of type {locktype}")


@contextmanager
def uncommitted(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """What is done within is done but not committed until its end."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


#: The same work as a plain statement, reduced to one reservation of one SKU: lock, check, write. It looks right.
PLAIN_STATEMENT = """
    WITH locked AS MATERIALIZED (
        SELECT pg_advisory_xact_lock(%(class)s, hashtext(%(sku)s) & %(mask)s)
    ), enough AS MATERIALIZED (
        SELECT s.available >= %(pieces)s AS yes FROM locked, spillway.stock s WHERE s.sku = %(sku)s
    ), taken AS (
        UPDATE spillway.stock s SET reserved = s.reserved + %(pieces)s FROM enough WHERE enough.yes AND s.sku = %(sku)s
        RETURNING s.sku
    )
    SELECT count(*) FROM taken
"""


def test_the_snapshot_trap_a_plain_statement_oversells(database: TestDatabase) -> None:
    """Why the worker is a function: this statement's snapshot is older than the lock it waited for."""
    with database.owner() as owner, database.owner() as first, database.owner() as second:
        assert outcomes(owner, [received("rcp", A=10)]) == ["applied"]
        # The CHECK would stop it, and make an error of what has to be a rejection.
        owner.execute("ALTER TABLE spillway.stock DROP CONSTRAINT stock_not_oversold")
        taking = {"sku": "A", "pieces": 8, "class": LOCK_CLASS, "mask": STRIPES - 1}
        with uncommitted(first):
            assert first.execute(PLAIN_STATEMENT, taking).fetchone() == (1,)
            waiting = Call(lambda: second.execute(PLAIN_STATEMENT, taking).fetchone())
            until_waiting(owner, "advisory")
        assert waiting.answer() == (1,), "the trap has gone: PostgreSQL takes snapshots after locks now"
        assert available(owner) == {"A": -6}


def test_the_function_does_not_fall_into_the_trap(database: TestDatabase) -> None:
    """The same schedule. It fails as soon as the locks and the check are in one statement of the function.

    One event a call: the CHECK would make a longer batch fall back to halves, and those would read again.
    """
    with database.owner() as owner, database.worker() as first, database.worker() as second:
        assert outcomes(owner, [received("rcp", A=10, B=1)]) == ["applied"]
        with uncommitted(first):
            assert outcomes(first, [reserved("rsv-1", A=8)]) == ["applied"]
            waiting = Call(lambda: outcomes(second, [reserved("rsv-2", A=8, B=1)]))
            until_waiting(owner, "advisory")
        assert waiting.answer() == ["insufficient_stock"]
        assert outcomes(second, [reserved("rsv-3", A=2)]) == ["applied"]
        assert available(owner) == {"A": 0, "B": 1}
        assert unbalanced(owner) == []


def test_the_function_sees_what_arrived_while_it_waited(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as first, database.worker() as second:
        with uncommitted(first):
            assert outcomes(first, [received("rcp", A=5)]) == ["applied"]
            waiting = Call(lambda: outcomes(second, [reserved("rsv", A=5)]))
            until_waiting(owner, "advisory")
        assert waiting.answer() == ["applied"]
        assert available(owner) == {"A": 0}


def test_a_release_waits_for_the_batch_that_makes_its_reservation(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as first, database.worker() as second:
        assert outcomes(owner, [received("rcp", A=10)]) == ["applied"]
        with uncommitted(first):
            assert outcomes(first, [reserved("rsv", A=4)]) == ["applied"]
            waiting = Call(lambda: outcomes(second, [released("rsv")]))
            until_waiting(owner, "transactionid")
        assert waiting.answer() == ["applied"]
        assert available(owner) == {"A": 10}
        assert unbalanced(owner) == []


def test_a_reservation_waits_for_the_batch_that_releases_it(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as first, database.worker() as second:
        assert outcomes(owner, [received("rcp", A=10)]) == ["applied"]
        with uncommitted(first):
            assert outcomes(first, [released("rsv")]) == ["applied"]
            waiting = Call(lambda: outcomes(second, [reserved("rsv", A=4)]))
            until_waiting(owner, "transactionid")
        assert waiting.answer() == ["stale"]
        assert available(owner) == {"A": 10}


def test_a_reservation_is_released_once_by_two_batches_at_once(database: TestDatabase) -> None:
    """The first has read that there is something to release and waits for its stripe when the second comes."""
    with (
        database.owner() as owner,
        database.owner() as holder,
        database.worker() as first,
        database.worker() as second,
    ):
        assert outcomes(owner, [received("rcp", A=10), reserved("other", A=5), reserved("rsv", A=4)]) == ["applied"] * 3
        with uncommitted(holder):
            holder.execute("SELECT pg_advisory_xact_lock(%s, hashtext('A') & %s)", (LOCK_CLASS, STRIPES - 1))
            calls = [Call(lambda: outcomes(first, [released("rsv")]))]
            until_waiting(owner, "advisory")
            calls.append(Call(lambda: outcomes(second, [released("rsv")])))
            until_waiting(owner, "transactionid")
        assert [call.answer() for call in calls] == [["applied"], ["already_released"]]
        assert available(owner) == {"A": 5}
        assert unbalanced(owner) == []


def test_stripes_are_locked_in_ascending_order(database: TestDatabase) -> None:
    """Whoever waits for one stripe holds all the lower ones that it needs, and none of the higher."""
    skus = [f"SKU-{number}" for number in range(300)]
    with database.owner() as owner, database.owner() as holder, database.worker() as worker:
        needed = sorted({stripe for (stripe,) in owner.execute(
            "SELECT hashtext(sku) & %s FROM unnest(%s::text[]) AS sku", (STRIPES - 1, skus)
        )})  # fmt: skip
        assert len(needed) > 200
        random.Random(3).shuffle(skus)
        for held in (needed[0], needed[len(needed) // 2], needed[-1]):
            batch = [received(f"rcp-{held}-{sku}", **{sku: 1}) for sku in skus]
            with uncommitted(holder):
                holder.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK_CLASS, held))
                waiting = Call(partial(apply, worker, batch))
                until_waiting(owner, "advisory")
                locked = owner.execute(
                    "SELECT objid::bigint, granted FROM pg_locks WHERE locktype = 'advisory' AND classid = %s::oid"
                    " AND pid <> %s AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                    " ORDER BY objid",
                    (LOCK_CLASS, holder.info.backend_pid),
                ).fetchall()
                assert locked == [*((stripe, True) for stripe in needed if stripe < held), (held, False)]
            waiting.answer()


def test_claims_and_documents_are_taken_in_order_too(database: TestDatabase) -> None:
    """A batch that waits for the middle one of three holds the first and not yet the last, whatever its own order."""
    with (
        database.owner() as owner,
        database.owner() as holder,
        database.worker() as worker,
        database.owner() as other,
    ):
        owner.execute(f"ALTER DATABASE {database.name} SET lock_timeout = '200ms'")
        ids = [UUID(int=number) for number in (1, 2, 3)]
        for taken, documents in ((0, ["a1", "b", "c1"]), (1, ["a2", "b", "c2"])):
            rows = [released(document) for document in documents]
            if taken == 0:  # they meet at the claim
                rows = [msgspec.structs.replace(row, id=one) for row, one in zip(rows, ids, strict=True)]
                middle, probes = rows[1], [msgspec.structs.replace(row, document_id="other") for row in rows]
            else:  # they meet at the document
                middle, probes = released("b"), [msgspec.structs.replace(row, id=uuid4()) for row in rows]
            with uncommitted(holder):
                apply(holder, [middle])
                waiting = Call(partial(apply, worker, [rows[2], rows[1], rows[0]]))
                until_waiting(owner, "transactionid")
                with other.transaction(force_rollback=True):
                    assert outcomes(other, [probes[2]]) in (["applied"], ["already_released"]), "the last is free"
                with database.owner() as impatient, pytest.raises(psycopg.errors.LockNotAvailable):
                    apply(impatient, [probes[0]])
            waiting.answer()


def test_the_lock_budget_holds_for_the_whole_fleet(database: TestDatabase) -> None:
    """Even on a server with PostgreSQL's defaults, and not counting the spare memory that its lock table grows into."""
    template = (REPOSITORY / "template.yaml").read_text()
    (block,) = re.findall(r"^  InventoryMaximumConcurrency:\n(?:    .*\n)+", template, re.MULTILINE)
    concurrency = yaml.safe_load(block)["InventoryMaximumConcurrency"]["Default"]
    with database.owner() as owner:
        default = {
            name: int(value)
            for name, value in owner.execute(
                "SELECT name, boot_val FROM pg_settings WHERE name IN"
                " ('max_locks_per_transaction', 'max_connections', 'max_prepared_transactions')"
            )
        }
    table = default["max_locks_per_transaction"] * (default["max_connections"] + default["max_prepared_transactions"])
    assert STRIPES * concurrency <= table == 6_400


def test_a_batch_of_many_skus_holds_a_bounded_number_of_locks(database: TestDatabase) -> None:
    batch = [received(f"rcp-{n}", **{f"SKU-{n}-{place}": 1 for place in range(200)}) for n in range(20)]
    with database.owner() as owner, database.worker() as worker, uncommitted(worker):
        assert set(outcomes(worker, batch)) == {"applied"}
        (held,) = owner.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s::oid"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (LOCK_CLASS,),
        ).fetchone() or (0,)
        assert STRIPES * 0.9 < held <= STRIPES


# ── the rules ─────────────────────────────────────────────────────────────────────────────────────────────────────────

#: What is received first, the movements with their outcomes, and what is available in the end.
STORIES: dict[str, tuple[dict[str, int], list[tuple[str, str, dict[str, int], str]], dict[str, int]]] = {
    "all of it can be reserved": ({"A": 3}, [("reserved", "r", {"A": 3}, "applied")], {"A": 0}),
    "one piece too many": ({"A": 3}, [("reserved", "r", {"A": 4}, "insufficient_stock")], {"A": 3}),
    "all or nothing": ({"A": 3, "B": 1}, [("reserved", "r", {"A": 3, "B": 2}, "insufficient_stock")], {"A": 3, "B": 1}),
    "a SKU that nobody knows": ({"A": 3}, [("reserved", "r", {"A": 1, "Z": 1}, "insufficient_stock")], {"A": 3}),
    "first come, first served": (
        {"A": 3},
        [
            ("reserved", "r1", {"A": 2}, "applied"),
            ("reserved", "r2", {"A": 2}, "insufficient_stock"),
            ("reserved", "r3", {"A": 1}, "applied"),
        ],
        {"A": 0},
    ),
    "what is released can be reserved": (
        {"A": 3, "B": 3},
        [
            ("reserved", "r1", {"A": 3, "B": 2}, "applied"),
            ("released", "r1", {}, "applied"),
            ("reserved", "r2", {"A": 3}, "applied"),
        ],
        {"A": 0, "B": 3},
    ),
    "what arrives can be reserved": (
        {"A": 1},
        [("received", "p", {"A": 1, "N": 4}, "applied"), ("reserved", "r", {"A": 2, "N": 4}, "applied")],
        {"A": 0, "N": 0},
    ),
    "a receipt is booked once": ({"A": 1}, [("received", "first", {"A": 1}, "already_received")], {"A": 1}),
    "a receipt and a reservation may share an id": ({"A": 1}, [("reserved", "first", {"A": 1}, "applied")], {"A": 0}),
    "a reservation is granted once": (
        {"A": 9},
        [("reserved", "r", {"A": 2}, "applied"), ("reserved", "r", {"A": 3}, "already_reserved")],
        {"A": 7},
    ),
    "a refused reservation may be tried again": (
        {"A": 1},
        [
            ("reserved", "r", {"A": 2}, "insufficient_stock"),
            ("received", "p", {"A": 1}, "applied"),
            ("reserved", "r", {"A": 2}, "applied"),
            ("released", "r", {}, "applied"),
        ],
        {"A": 2},
    ),
    "a reservation is released once": (
        {"A": 9},
        [
            ("reserved", "r", {"A": 2}, "applied"),
            ("released", "r", {}, "applied"),
            ("released", "r", {}, "already_released"),
            ("reserved", "r", {"A": 2}, "stale"),
        ],
        {"A": 9},
    ),
    "a release may come first": (
        {"A": 9},
        [
            ("released", "r", {}, "applied"),
            ("reserved", "r", {"A": 2}, "stale"),
            ("reserved", "r", {"A": 2}, "stale"),
            ("released", "r", {}, "already_released"),
        ],
        {"A": 9},
    ),
    "a release of what was refused ends the matter": (
        {"A": 1},
        [
            ("reserved", "r", {"A": 2}, "insufficient_stock"),
            ("released", "r", {}, "applied"),
            ("received", "p", {"A": 8}, "applied"),
            ("reserved", "r", {"A": 2}, "stale"),
        ],
        {"A": 9},
    ),
}


def test_the_rules(database: TestDatabase) -> None:
    """Each story in batches of several sizes: what a batch sees of itself is what it would have seen of the last."""
    with database.owner() as owner, database.worker() as worker:
        for story, (stock, steps, expected) in STORIES.items():
            for size in {1, 2, len(steps)}:
                reset(owner)
                rows = [movement(what, document_id, **lines) for what, document_id, lines, _ in steps]
                assert outcomes(worker, [received("first", **stock)]) == ["applied"]
                got: list[str] = []
                for start in range(0, len(rows), size):
                    got += outcomes(worker, rows[start : start + size])
                assert got == [outcome for *_, outcome in steps], story
                assert available(owner) == expected, story
                assert unbalanced(owner) == [], story
                before = books(owner)
                assert outcomes(worker, rows) == ["duplicate"] * len(rows), story
                assert books(owner) == before, story


def books(connection: psycopg.Connection[Any]) -> list[Any]:
    """Everything there is, but for the claims."""
    return [
        connection.execute("SELECT * FROM spillway.stock ORDER BY sku").fetchall(),
        connection.execute("SELECT * FROM spillway.stock_ledger ORDER BY entry").fetchall(),
        connection.execute("SELECT * FROM spillway.stock_documents ORDER BY kind, document_id").fetchall(),
    ]


def test_the_end_does_not_depend_on_the_order_where_there_is_enough(database: TestDatabase) -> None:
    """Whatever a release, a repeat or a receipt overtakes. (Two reservations of one id that differ: the first wins.)"""
    rows = [
        received("rcp-1", A=100, B=100),
        received("rcp-1", A=100, B=100),
        received("rcp-2", A=7, C=3),
        reserved("kept", A=5, B=1),
        reserved("kept", A=5, B=1),
        reserved("ended", A=3),
        released("ended"),
        released("ended"),
        released("never made"),
    ]
    rng = random.Random(8)
    with database.owner() as owner, database.worker() as worker:
        for _ in range(40):
            reset(owner)
            apply(worker, [received("plenty", A=1_000, B=1_000)])
            rng.shuffle(rows)
            cut = rng.randint(0, len(rows))
            apply(worker, rows[:cut])
            apply(worker, rows[cut:])
            assert available(owner) == {"A": 1_102, "B": 1_099, "C": 3}
            states = owner.execute("SELECT document_id, state FROM spillway.stock_documents WHERE kind = 'reservation'")
            assert dict(states.fetchall()) == {"kept": "reserved", "ended": "released", "never made": "released"}
            assert unbalanced(owner) == []


def test_documents_take_effect_once_even_when_their_claims_are_gone(database: TestDatabase) -> None:
    rows = [received("rcp", A=9), reserved("kept", A=1), reserved("ended", A=2), released("ended")]
    with database.owner() as owner, database.worker() as worker:
        assert set(outcomes(worker, rows)) == {"applied"}
        before = books(owner)
        owner.execute("DELETE FROM spillway.inventory_events")  # what housekeeping does after weeks
        assert outcomes(worker, rows) == ["already_received", "already_reserved", "stale", "already_released"]
        assert books(owner) == before


def test_what_was_decided_is_recorded_with_the_event(database: TestDatabase) -> None:
    rows = [
        released("gone"),
        reserved("gone", A=1),
        reserved("rsv", A=1, B=3, C=9),
        released("none"),
        released("none"),
    ]
    with database.owner() as owner, database.worker() as worker:
        assert outcomes(worker, [received("rcp", A=1, B=2)]) == ["applied"]
        outcomes(worker, rows)
        recorded = {
            event: tuple(rest)
            for event, *rest in owner.execute(
                "SELECT event_id, outcome, reason, sku, available FROM spillway.inventory_events"
            )
        }
        assert [recorded[row.id] for row in rows] == [
            ("applied", None, None, None),
            ("stale", None, None, None),
            ("rejected", "insufficient_stock", "B", 2),
            ("applied", None, None, None),
            ("rejected", "already_released", None, None),
        ]


def test_releases_that_never_met_their_reservation_can_be_found(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as worker:
        apply(worker, [released("early"), released("typo"), reserved("early", A=1)])
        found = owner.execute("SELECT document_id FROM spillway.stock_documents WHERE lines IS NULL").fetchall()
        assert found == [("typo",)]


def test_two_hundred_lines_and_the_same_sku_twice(database: TestDatabase) -> None:
    event = sample.received("rcp")
    event["data"]["lines"] = [{"sku": f"SKU-{number % 150}", "quantity": 1_000_000} for number in range(200)]
    with database.owner() as owner, database.worker() as worker:
        assert outcomes(worker, [to_row(decode(msgspec.json.encode(event)))]) == ["applied"]
        assert Counter(available(owner).values()) == {2_000_000: 50, 1_000_000: 100}
        everything = reserved("rsv", **available(owner))
        one_more = msgspec.structs.replace(
            everything, id=uuid4(), document_id="more", lines=(everything.lines or {}) | {"SKU-149": 1_000_001}
        )
        assert outcomes(worker, [one_more, everything]) == ["insufficient_stock", "applied"]
        assert set(available(owner).values()) == {0}


def test_the_same_event_twice_in_one_batch_gets_one_answer(database: TestDatabase) -> None:
    row = received("rcp", A=1)
    with database.owner() as owner, database.worker() as worker:
        assert [answer[1] for answer in apply(worker, [row, row])] == ["applied"]
        assert available(owner) == {"A": 1}


#: By sample: what becomes of its records, and what is available then. Each text in spillway/samples says the same.
SAMPLES = {
    "inventory.single": (["applied"], {"SKU-42": 10, "SKU-7": 5}),
    "inventory.batch": (["applied"] * 7, {"SKU-42": 10, "SKU-7": 4}),
    "inventory.redelivered": (["applied"], {"SKU-42": 10, "SKU-7": 5}),
    "inventory.insufficient_stock": (["applied", "insufficient_stock", "applied"], {"SKU-42": 3, "SKU-7": 5}),
    "inventory.released_first": (["applied", "applied", "stale"], {"SKU-42": 10, "SKU-7": 5}),
    "inventory.sent_again": (
        ["applied", "applied", "already_received", "already_reserved"],
        {"SKU-42": 6, "SKU-7": 5},
    ),
}


def test_the_samples_end_as_they_say(database: TestDatabase) -> None:
    well_formed = {one.name: one.event for one in sample.samples() if "poison" not in one.name}
    assert well_formed.keys() == SAMPLES.keys()
    with database.owner() as owner, database.worker() as worker:
        for name, event in well_formed.items():
            reset(owner)
            rows = {row.id: row for row in (to_row(decode(record["body"])) for record in event["Records"])}
            expected, left = SAMPLES[name]
            assert outcomes(worker, list(rows.values())) == expected, name
            assert available(owner) == left, name


# ── what no contract lets through ─────────────────────────────────────────────────────────────────────────────────────

DEFECTS = [
    ({"type": "stock.stolen"}, "type"),
    ({"type": None}, "type"),
    ({"document_id": ""}, "document_id"),
    ({"document_id": "x" * 65}, "document_id"),
    ({"document_id": None}, "document_id"),
    ({"occurred_at": "2026-13-01T00:00:00Z"}, "occurred_at"),
    ({"occurred_at": None}, "occurred_at"),
    ({"lines": None}, "lines"),
    ({"lines": {}}, "lines"),
    ({"lines": []}, "lines"),
    ({"lines": "A"}, "lines"),
    ({"lines": {"A": 0}}, "lines"),
    ({"lines": {"A": -1}}, "lines"),
    ({"lines": {"A": 1, "B": 1.5}}, "lines"),
    ({"lines": {"A": None}}, "lines"),
    ({"lines": {"A": "NaN"}}, "lines"),
    ({"lines": {"A": 2**40}}, "lines"),
    ({"lines": {"A": {}}}, "lines"),
    ({"lines": {"": 1}}, "lines"),
    ({"lines": {"S" * 65: 1}}, "lines"),
    ({"lines": {f"SKU-{number}": 1 for number in range(201)}}, "lines"),
    ({"type": "stock.released"}, "lines"),
]


def test_bad_records_are_answered_for_and_their_neighbours_are_written(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as worker:
        for number, (defect, place) in enumerate(DEFECTS):
            before, after = received(f"before-{number}", A=5), reserved(f"after-{number}", A=2)
            good = received(f"bad-{number}", B=100)
            bad = msgspec.to_builtins(good) | defect
            answers = {answer[0]: answer[1:] for answer in apply(worker, [before, bad, after])}
            outcome, reason, detail = answers[good.id]
            assert (outcome, reason) == ("invalid", "22023"), defect
            assert detail is not None
            assert detail.startswith(f"{place}: expected"), defect
            assert answers[before.id] == answers[after.id] == ("applied", None, None), defect
            assert available(owner) == {"A": 3 * (number + 1)} | ({"B": 100 * number} if number else {})
            # Nothing was claimed for it: corrected, the same event takes effect.
            assert outcomes(worker, [good]) == ["applied"], defect


@pytest.mark.parametrize("bad_share", [0.02, 0.3, 1.0])
def test_what_the_predicates_do_not_know_is_isolated_by_halving(database: TestDatabase, bad_share: float) -> None:
    """A rule that only the table knows: a constraint added later, as in a migration that is ahead of the function."""
    history = generate(300, seed=9, duplicates=0, poison=0, skus=30)
    rows = rows_of(history)
    rng = random.Random(2)
    forbidden = {row.id for row in rows if rng.random() < bad_share}
    reference = Reference()
    expected = ["invalid" if row.id in forbidden else reference.apply(row) for row in rows]
    with database.worker() as worker, database.owner() as owner:
        owner.execute("CREATE TABLE spillway.forbidden (event_id uuid PRIMARY KEY)")
        owner.cursor().executemany("INSERT INTO spillway.forbidden VALUES (%s)", [(one,) for one in forbidden])
        owner.execute(
            "CREATE FUNCTION spillway.allowed(uuid) RETURNS boolean LANGUAGE sql"
            " RETURN NOT EXISTS (SELECT FROM spillway.forbidden WHERE event_id = $1)"
        )
        owner.execute("ALTER TABLE spillway.inventory_events ADD CONSTRAINT later CHECK (spillway.allowed(event_id))")
        answers = {answer[0]: answer[1:] for answer in apply(worker, rows)}
        got = [answers[row.id][1] if answers[row.id][0] == "rejected" else answers[row.id][0] for row in rows]
        assert got == expected
        assert {answer[1:] for answer in answers.values() if answer[0] == "invalid"} <= {("23514", "constraint later")}
        assert unbalanced(owner) == []


def test_a_quantity_beyond_the_books_is_the_records_fault(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as worker:
        owner.execute(
            "INSERT INTO spillway.stock (sku, received, reserved, released) VALUES ('A', 9223372036854775000, 0, 0)"
        )
        rows = [received("one", B=1), received("two", A=1_000), received("three", A=1)]
        assert outcomes(worker, rows) == ["applied", "invalid", "applied"]
        assert apply(worker, [rows[1]])[0][1:] == ("invalid", "22003", "value out of range or malformed")


def test_an_empty_batch_has_no_answer(database: TestDatabase) -> None:
    with database.worker() as worker:
        assert apply(worker, []) == []


def test_an_answer_never_quotes_a_value(database: TestDatabase) -> None:
    good = msgspec.to_builtins(reserved("rsv", A=1))
    secret = "S3CRET" * 20
    with database.worker() as worker:
        for changed in (
            {"type": secret},
            {"document_id": secret},
            {"occurred_at": secret},
            {"lines": {secret: secret}},
        ):
            answers = apply(worker, [good | {"id": str(uuid4())} | changed])
            assert "S3CRET" not in str(answers[0][2:])
        answers = apply(worker, [good | {"lines": {"S3CRET": 1}}])
        assert answers[0][1:] == ("rejected", "insufficient_stock", None)


def test_the_application_role_may_call_the_function_and_touch_no_table(database: TestDatabase) -> None:
    with database.worker() as worker:
        for table in ("stock", "stock_ledger", "stock_documents", "inventory_events"):
            for command in ("TABLE", "TRUNCATE"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    worker.execute(f"{command} spillway.{table}")
        assert apply(worker, []) == []


# ── the checker ───────────────────────────────────────────────────────────────────────────────────────────────────────

#: What is done to a database in which all is well, and a word of the violation that must be found.
TAMPERING = {
    "a piece too many": (
        "UPDATE stock SET received = received + 1 WHERE sku = (SELECT min(sku) FROM stock)",
        "available",
    ),
    "a lost event": (
        "DELETE FROM inventory_events WHERE event_id = (SELECT event_id FROM stock_ledger ORDER BY entry LIMIT 1)",
        "never decided",
    ),
    "a lost movement": ("DELETE FROM stock_ledger WHERE entry = (SELECT max(entry) FROM stock_ledger)", "moved"),
    "a movement twice": (
        "INSERT INTO stock_ledger (sku, movement, quantity, event_id, document_id, occurred_at)"
        " SELECT sku, movement, quantity, event_id, document_id, occurred_at FROM stock_ledger LIMIT 1",
        "moved",
    ),
    "a movement of nobody": (
        "UPDATE stock_ledger SET event_id = gen_random_uuid() WHERE entry = (SELECT min(entry) FROM stock_ledger)",
        "not of this history",
    ),
    "movements in another order": ("UPDATE stock_ledger SET entry = DEFAULT WHERE movement = 'received'", "oversold"),
    "a rejection turned round": (
        "UPDATE inventory_events SET outcome = 'applied', reason = NULL, sku = NULL, available = NULL"
        " WHERE reason = 'insufficient_stock'",
        "moved []",
    ),
    "a rejection without cause": (
        "UPDATE inventory_events SET available = 10^6 WHERE reason = 'insufficient_stock'",
        "insufficient_stock",
    ),
    "a rejection that saw what never was": (
        "UPDATE inventory_events SET available = -1 WHERE reason = 'insufficient_stock'",
        "which there never were",
    ),
    "a grant denied": ("UPDATE inventory_events SET outcome = 'stale' WHERE outcome = 'applied'", "stale"),
    "a reservation that came back to life": (
        "UPDATE stock_documents SET state = 'reserved', released_by = NULL"
        " WHERE state = 'released' AND lines IS NOT NULL",
        "is reserved, expected released",
    ),
    "a lost document": ("DELETE FROM stock_documents WHERE kind = 'receipt'", "is None, expected received"),
}


def test_the_checker_finds_whatever_is_wrong(database: TestDatabase) -> None:
    history = generate(600, seed=21, skus=20)
    with database.owner() as owner, database.worker() as worker:
        assert sum("never decided" in violation for violation in history.violations(owner)) == len(history.event_ids)
        counted = Counter(outcomes(worker, list({row.id: row for row in rows_of(history)}.values())))
        assert counted["insufficient_stock"] > 10
        assert counted["stale"] > 3
        assert history.violations(owner) == []
        owner.execute("SET search_path = spillway")
        for what, (sql, word) in TAMPERING.items():
            with owner.transaction(force_rollback=True):
                owner.execute(sql)
                assert any(word in violation for violation in history.violations(owner)), what
        assert history.violations(owner) == []


def test_histories_share_a_database(database: TestDatabase) -> None:
    histories = [generate(400, seed=seed, skus=10) for seed in (1, 17, -1)]
    with database.owner() as owner, database.worker() as worker:
        for history in histories:
            apply(worker, rows_of(history))
        assert [history.violations(owner) for history in histories] == [[], [], []]
        assert all(generate(400, seed=3, skus=10).violations(owner))


def test_the_checker_finds_a_broken_message_that_was_decided_upon(database: TestDatabase) -> None:
    history = generate(3_000, seed=5, poison=0.05, skus=30)
    with database.owner() as owner, database.worker() as worker:
        apply(worker, rows_of(history))
        assert history.violations(owner) == []
        body = next(message.body for message in history.messages if message.kind == "no_pieces")
        event = msgspec.json.decode(body)
        lines = {line["sku"]: max(1, line["quantity"]) for line in event["data"]["lines"]}
        row = received(event["subject"], **lines)
        apply(worker, [msgspec.structs.replace(row, id=UUID(event["id"]))])
        violations = " ".join(history.violations(owner))
        assert "broken message" in violations
        assert "expected 0" in violations
