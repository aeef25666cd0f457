"""apply_orders against the sequential reference: any split, order, repetition and overlap gives the same rows."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spillway.histories.base import DUPLICATE, VALID
from spillway.histories.orders import OrdersHistory, generate, read_rows, reference_rows
from tests.conftest import BOTH_ROUTES
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.database import JsonText, JsonTextDumper
from workers.runtime.envelope import EventDecoder
from workers.runtime.worker import statement

if TYPE_CHECKING:
    from tests.conftest import TestDatabase

pytestmark = BOTH_ROUTES

APPLY = statement("orders")
decode = EventDecoder[Any](OrderEvent).decode


def events_of(history: OrdersHistory) -> list[Any]:
    """The good events of a history in sending order, repeats included."""
    return [decode(message.body) for message in history.messages if message.kind in (VALID, DUPLICATE)]


def apply(connection: psycopg.Connection[Any], rows: list[Any]) -> list[tuple[UUID, str, str | None, str | None]]:
    connection.adapters.register_dumper(JsonText, JsonTextDumper)
    return connection.execute(APPLY, (JsonText(msgspec.json.encode(rows)),)).fetchall()


def changed(event: Any, **fields: Any) -> dict[str, Any]:
    """The row of `event` as JSON-like values with `fields` replaced: what a worker would never send."""
    return msgspec.to_builtins(to_row(event)) | fields


def reset(connection: psycopg.Connection[Any]) -> None:
    connection.execute("TRUNCATE spillway.orders, spillway.order_events")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(100, 400), shuffle=st.integers())
def test_any_split_order_and_redelivery_gives_the_reference_rows(
    database: TestDatabase, seed: int, size: int, shuffle: int
) -> None:
    history = generate(size, seed=seed, orders=size // 8, duplicates=0.1, poison=0)
    rng = random.Random(shuffle)
    deliveries = events_of(history)
    deliveries += rng.sample(deliveries, k=len(deliveries) // 5)  # redelivered by SQS, on top of the producer's repeats
    rng.shuffle(deliveries)
    outcomes: Counter[str] = Counter()
    with database.owner() as owner, database.worker() as worker:
        reset(owner)
        while deliveries:
            cut = rng.randint(1, 120)
            batch, deliveries = deliveries[:cut], deliveries[cut:]
            answers = apply(worker, [to_row(event) for event in batch])
            assert sorted(answer[0] for answer in answers) == sorted({event.id for event in batch})
            outcomes.update(answer[1] for answer in answers)
        assert read_rows(owner) == history.expected.rows
    assert set(outcomes) <= {"applied", "stale", "duplicate"}
    assert outcomes["applied"] + outcomes["stale"] == history.expected.distinct


def test_overlapping_batches_at_once_are_exact(database: TestDatabase) -> None:
    history = generate(4_000, seed=11, orders=150, duplicates=0.3, poison=0)
    deliveries = events_of(history) * 2
    random.Random(5).shuffle(deliveries)
    outcomes: Counter[str] = Counter()
    failures: list[BaseException] = []
    lock = threading.Lock()
    slices = [deliveries[start : start + 250] for start in range(0, len(deliveries), 250)]

    def worker() -> None:
        try:
            with database.worker() as connection:
                while True:
                    with lock:
                        if not slices:
                            return
                        batch = slices.pop()
                    answers = apply(connection, [to_row(event) for event in batch])
                    with lock:
                        outcomes.update(answer[1] for answer in answers)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [], "a deadlock would show here"
    with database.owner() as owner:
        assert read_rows(owner) == history.expected.rows
    assert outcomes["applied"] + outcomes["stale"] == history.expected.distinct


def orders_with_versions(count: int) -> list[Any]:
    """Versions 1..count of one order."""
    history = generate(2_000, seed=4, orders=40, duplicates=0, poison=0)
    by_order: dict[str, list[Any]] = {}
    for event in events_of(history):
        by_order.setdefault(event.data.order_id, []).append(event)
    versions = max(by_order.values(), key=len)
    unique = {event.data.version: event for event in versions}
    return [unique[version] for version in sorted(unique)][:count]


def test_the_same_event_twice_in_one_batch_gets_one_answer(database: TestDatabase) -> None:
    (event,) = orders_with_versions(1)
    with database.worker() as worker:
        assert [answer[1] for answer in apply(worker, [to_row(event), to_row(event)])] == ["applied"]
        assert [answer[1] for answer in apply(worker, [to_row(event)])] == ["duplicate"]


def test_two_versions_in_one_batch_the_highest_wins_and_a_late_one_is_stale(database: TestDatabase) -> None:
    first, second, third = orders_with_versions(3)
    with database.worker() as worker, database.owner() as owner:
        outcomes = dict(answer[:2] for answer in apply(worker, [to_row(third), to_row(first)]))
        assert outcomes == {third.id: "applied", first.id: "stale"}
        assert apply(worker, [to_row(second)])[0][1] == "stale"
        assert read_rows(owner) == reference_rows([third])


def test_equal_versions_are_decided_by_the_event_id_whatever_the_order(database: TestDatabase) -> None:
    (event,) = orders_with_versions(1)
    one, other = (msgspec.structs.replace(event, id=UUID(int=number)) for number in (1, 2))
    with database.worker() as worker, database.owner() as owner:
        for batches in ([[one], [other]], [[other], [one]], [[one, other]], [[other, one]]):
            reset(owner)
            for batch in batches:
                apply(worker, [to_row(each) for each in batch])
            assert read_rows(owner)[event.data.order_id].event_id == other.id


DEFECTS = [
    ({"version": 0}, "22023", "version"),
    ({"version": "x"}, "22023", "version"),
    ({"version": 2**40}, "22023", "version"),
    ({"version": 1.5}, "22023", "version"),
    ({"version": None}, "22023", "version"),
    ({"total": -1}, "22023", "total"),
    ({"total": "NaN"}, "22023", "total"),
    ({"total": 10**30}, "22023", "total"),
    ({"currency": "eur"}, "22023", "currency"),
    ({"items": {}}, "22023", "items"),
    ({"items": None}, "22023", "items"),
    ({"placed_at": "2026-13-01T00:00:00Z"}, "22023", "placed_at"),
    ({"placed_at": None}, "22023", "placed_at"),
    ({"cancelled_at": "yesterday-ish"}, "22023", "cancelled_at"),
    ({"type": "order.exploded"}, "22023", "type"),
    ({"order_id": ""}, "22023", "order_id"),
    ({"order_id": "x" * 5_000}, "22023", "order_id"),
    ({"customer": None}, "22023", "customer"),
]


@pytest.mark.parametrize(("defect", "sqlstate", "place"), DEFECTS, ids=[str(defect)[:30] for defect, *_ in DEFECTS])
def test_a_bad_record_is_answered_for_and_its_neighbours_are_written(
    database: TestDatabase, defect: dict[str, Any], sqlstate: str, place: str
) -> None:
    events = events_of(generate(120, seed=8, duplicates=0, poison=0))
    with database.worker() as worker, database.owner() as owner:
        answers = {
            answer[0]: answer[1:] for answer in apply(worker, [changed(events[0], **defect), *map(to_row, events[1:])])
        }
        assert set(answers) == {event.id for event in events}
        outcome, reason, detail = answers[events[0].id]
        assert (outcome, reason) == ("invalid", sqlstate)
        assert detail is not None
        assert detail.startswith(f"{place}: expected")
        assert read_rows(owner) == reference_rows(events[1:])
        # Nothing was claimed for it: corrected, the same event takes effect.
        assert apply(worker, [to_row(events[0])])[0][1] in ("applied", "stale")


@pytest.mark.parametrize("bad_share", [0.01, 0.2, 1.0])
def test_what_the_predicates_do_not_know_is_isolated_by_halving(database: TestDatabase, bad_share: float) -> None:
    """A rule that only the table knows: a constraint added later, as in a migration that is ahead of the function."""
    events = events_of(generate(300, seed=9, duplicates=0, poison=0))
    rng = random.Random(2)
    forbidden = [event.id for event in events if rng.random() < bad_share]
    with database.worker() as worker, database.owner() as owner:
        owner.execute("CREATE TABLE spillway.forbidden (event_id uuid PRIMARY KEY)")
        owner.cursor().executemany("INSERT INTO spillway.forbidden VALUES (%s)", [(one,) for one in forbidden])
        owner.execute(
            "CREATE FUNCTION spillway.allowed(uuid) RETURNS boolean LANGUAGE sql"
            " RETURN NOT EXISTS (SELECT FROM spillway.forbidden WHERE event_id = $1)"
        )
        owner.execute("ALTER TABLE spillway.order_events ADD CONSTRAINT later CHECK (spillway.allowed(event_id))")
        answers = {answer[0]: answer[1:] for answer in apply(worker, [to_row(event) for event in events])}
        assert set(answers) == {event.id for event in events}
        assert {one for one, answer in answers.items() if answer[0] == "invalid"} == set(forbidden)
        assert {answer[1:] for answer in answers.values() if answer[0] == "invalid"} <= {("23514", "constraint later")}
        assert read_rows(owner) == reference_rows([event for event in events if event.id not in set(forbidden)])


def test_an_empty_batch_has_no_answer(database: TestDatabase) -> None:
    with database.worker() as worker:
        assert apply(worker, []) == []


def test_an_answer_never_quotes_a_value(database: TestDatabase) -> None:
    (event,) = orders_with_versions(1)
    with database.worker() as worker:
        for field in ("version", "total", "currency", "placed_at", "type", "customer"):
            answers = apply(worker, [changed(event, id=str(uuid4()), **{field: "S3CRET" * 20})])
            assert "S3CRET" not in str(answers[0][2:])


def test_the_application_role_may_call_the_function_and_touch_no_table(database: TestDatabase) -> None:
    forbidden = [
        "SELECT * FROM spillway.orders",
        "INSERT INTO spillway.order_events VALUES (gen_random_uuid())",
        "DELETE FROM spillway.orders",
        "TRUNCATE spillway.orders",
        "CREATE TABLE spillway.mine ()",
        "CREATE TABLE public.mine ()",
        "SELECT * FROM spillway.migrations",
    ]
    with database.worker() as worker:
        for sql in forbidden:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                worker.execute(sql)
        assert apply(worker, []) == []


def test_timeouts_and_search_path_are_on_the_role(database: TestDatabase) -> None:
    with database.worker() as worker:
        shown = {
            name: worker.execute(f"SHOW {name}").fetchone()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "search_path")
        }
    assert shown == {
        "statement_timeout": ("10s",),
        "lock_timeout": ("5s",),
        "idle_in_transaction_session_timeout": ("10s",),
        "search_path": ("spillway, pg_temp",),
    }
