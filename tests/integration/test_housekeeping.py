"""Housekeeping on a real server: forgets what is due and nothing else, and neither waits for writers nor stops them."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from spillway.histories.orders import generate
from tests.conftest import BOTH_ROUTES, LOGIN, REGION
from workers.housekeeping import handler as housekeeping
from workers.housekeeping import housekeeper as module
from workers.housekeeping.housekeeper import OUT_OF_TIME, PRUNE, Housekeeper, Report
from workers.housekeeping.settings import HousekeepingSettings
from workers.housekeeping.telemetry import Telemetry
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.database import Database
from workers.runtime.envelope import EventDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import TestDatabase

KEEP_DAYS = 35
#: The claims tables of every worker, and one that no worker has: tables are found, not listed.
ANOTHER = (
    "CREATE TABLE spillway.another_events (event_id uuid PRIMARY KEY, claimed_at timestamptz NOT NULL DEFAULT now())"
)
APPLY = "SELECT event_id, outcome, reason, detail FROM spillway.apply_orders(%s)"


def settings(target: TestDatabase, /, **changes: Any) -> HousekeepingSettings:
    values: dict[str, Any] = {
        "host": target.server.host,
        "port": target.server.port,
        "database": target.name,
        "user": LOGIN.name,
        "auth": "password",
        "password": LOGIN.password,
        "sslmode": "disable",
        "sslrootcert": "",
        "connect_timeout": 2,
        "borrow_timeout": 0,
        "statement_timeout": 10,
        "function_timeout": 300,
        "region": REGION,
        "claim_retention_days": KEEP_DAYS,
        "audit_retention_months": 0,
    }
    if target.proxy is not None:
        values |= {
            "host": target.proxy.host,
            "port": target.proxy.port,
            "auth": "iam",
            "password": "",
            "sslmode": "verify-full",
            "sslrootcert": str(target.proxy.ca_file),
            "borrow_timeout": 10,
        }
    return HousekeepingSettings(**(values | changes))


def run(
    target: TestDatabase, remaining_s: Callable[[], float] = lambda: 300.0, *, batch_rows: int = 1_000, **changes: Any
) -> Report:
    """One run as the worker's role, with no pauses."""
    own = settings(target, **changes)
    store = Database(own)
    try:
        return Housekeeper(store, own, Telemetry(), batch_rows=batch_rows, sleep=lambda _: None).run(remaining_s)
    finally:
        store.discard()


def claim(target: TestDatabase, ages: list[timedelta], table: str = "order_events") -> dict[UUID, timedelta]:
    """Claims that are so old already: event id -> age."""
    ids = {uuid4(): age for age in ages}
    with target.owner() as owner, owner.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO spillway.{table} (event_id, claimed_at) VALUES (%s, now() - %s)",  # noqa: S608
            list(ids.items()),
        )
    return ids


def claimed(target: TestDatabase, table: str = "order_events") -> set[UUID]:
    with target.owner() as owner:
        return {event_id for (event_id,) in owner.execute(f"SELECT event_id FROM spillway.{table}")}  # noqa: S608


def days(*numbers: float) -> list[timedelta]:
    return [timedelta(days=number) for number in numbers]


def young(claims: dict[UUID, timedelta]) -> set[UUID]:
    return {event_id for event_id, age in claims.items() if age < timedelta(days=KEEP_DAYS)}


@contextmanager
def holding(target: TestDatabase, statement: str, parameters: Any = None, *, worker: bool = False) -> Iterator[None]:
    """Another session that has run `statement` and does not commit."""
    dsn = target.worker_dsn if worker else target.dsn
    with psycopg.connect(dsn) as other:
        other.execute(statement, parameters)
        assert other.info.transaction_status is TransactionStatus.INTRANS
        yield
        other.rollback()


def batch(events: int, seed: int) -> list[bytes]:
    """The rows of so many order events, each an order of its own, as the orders worker sends them."""
    decode = EventDecoder[Any](OrderEvent).decode
    found: dict[str, bytes] = {}
    messages = generate(events * 4, seed=seed, duplicates=0, poison=0).messages
    for row in (to_row(decode(message.body)) for message in messages):
        found.setdefault(row.order_id, msgspec.json.encode(row))
    assert len(found) >= events
    return list(found.values())[:events]


def array(rows: list[bytes]) -> str:
    return (b"[" + b",".join(rows) + b"]").decode()


# What goes and what stays


@BOTH_ROUTES
def test_what_is_past_its_retention_goes_and_nothing_else(database: TestDatabase) -> None:
    with database.owner() as owner:
        owner.execute(ANOTHER)
    second = timedelta(seconds=30)  # more than the test takes
    edge = timedelta(days=KEEP_DAYS)
    ages = [*days(0, 1, 14, 28, 34, 36, 40, 400), edge - second, edge + second]
    kept = {table: claim(database, ages, table) for table in ("order_events", "another_events")}
    report = run(database)
    for table, claims in kept.items():
        assert claimed(database, table) == young(claims)
    assert report.pruned == {"order_events": 4, "another_events": 4}
    assert report.unfinished == {}
    again = run(database)
    assert (again.pruned, again.unfinished) == ({}, {})


@pytest.mark.parametrize("batch_rows", [1, 7, 100, 101])
def test_any_size_of_batch_comes_to_the_same(database: TestDatabase, batch_rows: int) -> None:
    # Many share a timestamp, as the claims of one batch do.
    claims = claim(database, days(*([50] * 40), *([40] * 30), *range(36, 66), *([34] * 20)))
    assert run(database, batch_rows=batch_rows).pruned == {"order_events": 100}
    assert claimed(database) == young(claims)


def test_attempts_are_forgotten_after_fifteen_days(database: TestDatabase) -> None:
    with database.owner() as owner:
        owner.execute(
            "INSERT INTO spillway.attempts (message_id, worker, attempts, first_at, last_at)"
            " SELECT 'm' || age, 'orders', 1, now() - interval '99 days', now() - make_interval(days => age)"
            " FROM generate_series(0, 30, 5) AS age"
        )
        report = run(database)
        kept = {name for (name,) in owner.execute("SELECT message_id FROM spillway.attempts")}
    assert kept == {"m0", "m5", "m10"}
    assert report.pruned == {"attempts": 4}


def test_every_claims_table_can_be_pruned(database: TestDatabase) -> None:
    """Each has its time of claim, an index that finds the oldest, and nothing that refers to its rows."""
    with database.owner() as owner:
        tables = {
            name
            for (name,) in owner.execute(
                r"SELECT relname FROM pg_class WHERE relnamespace = 'spillway'::regnamespace"
                r" AND relkind IN ('r', 'p') AND relname LIKE '%\_events'"
            )
        }
        found = {
            name
            for name, not_null in owner.execute(
                "SELECT t.table_name, a.attnotnull FROM spillway.housekeeping_targets() t JOIN pg_attribute a"
                " ON a.attrelid = format('spillway.%I', t.table_name)::regclass AND a.attname = t.by_column"
                " WHERE t.by_column = 'claimed_at'"
            )
            if not_null
        }
        indexed = {
            name
            for (name,) in owner.execute(
                "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_attribute a"
                " ON a.attrelid = c.oid AND a.attnum = i.indkey[0] WHERE a.attname = 'claimed_at' AND i.indisvalid"
            )
        }
        referred = {
            name
            for (name,) in owner.execute(
                "SELECT c.relname FROM pg_constraint f JOIN pg_class c ON c.oid = f.confrelid WHERE f.contype = 'f'"
            )
        }
    assert {"order_events"} <= tables
    assert found == tables
    assert indexed >= tables
    assert not referred & tables


# What the worker's role cannot do through it


@BOTH_ROUTES
def test_no_caller_gets_below_the_floor(database: TestDatabase) -> None:
    claims = claim(database, days(27, 100))
    before = datetime.now(UTC) - timedelta(days=27, hours=23)
    with database.worker() as worker:
        for statement, parameter in (
            (module.PLAN, {"claim_days": 27, "attempt_days": 15}),
            (module.PLAN, {"claim_days": 35}),
            (PRUNE, {"table": "order_events", "before": before.isoformat(), "rows": 10}),
            (PRUNE, {"table": "order_events", "before": None, "rows": 10}),
            (PRUNE, {"table": "orders", "before": "2020-01-01", "rows": 10}),
            (PRUNE, {"table": "order_events; DROP TABLE spillway.orders", "before": "2020-01-01", "rows": 10}),
            (PRUNE, {"table": None, "before": "2020-01-01", "rows": 10}),
        ):
            with pytest.raises(psycopg.errors.InvalidParameterValue, match="expected"):
                worker.execute(statement, (Jsonb(parameter),)).fetchall()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            worker.execute("DELETE FROM spillway.order_events")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            worker.execute("SELECT * FROM spillway.housekeeping_targets()")
    assert claimed(database) == set(claims)


def test_the_session_is_left_as_it_was(database: TestDatabase) -> None:
    """What a call left behind would go to whoever borrows the connection next."""
    claim(database, days(100))
    watched = "SELECT name, setting FROM pg_settings WHERE source = 'session' OR name LIKE '%timeout%'"
    with database.worker() as worker:
        before = worker.execute(watched).fetchall()
        for statement, parameter in (
            (module.MAKE_PARTITIONS, 5),
            (module.DROP_PARTITIONS, 3),
            (module.PLAN, {"claim_days": 35, "attempt_days": 15}),
            (PRUNE, {"table": "order_events", "before": "2020-01-01T00:00:00Z", "rows": 10}),
        ):
            worker.execute(statement, (Jsonb(parameter),)).fetchall()
        assert worker.execute(watched).fetchall() == before


# Writers


def test_a_writer_is_not_held_up_by_a_call_that_takes_for_ever(database: TestDatabase) -> None:
    """Not even one that redelivers what is remembered. Only whoever brings a forgotten event again waits."""
    rows = batch(60, seed=1)
    with database.worker() as worker, database.owner() as owner:
        worker.execute(APPLY, (array(rows[:40]),))
        ids = [msgspec.json.decode(row)["id"] for row in rows]
        owner.execute(
            "UPDATE spillway.order_events SET claimed_at = now() - interval '99 days' WHERE event_id = ANY(%s::uuid[])",
            (ids[:20],),
        )
        # Any wait for the other session would be one for ever, and end with this.
        worker.execute("SET lock_timeout = '100ms'")
        before = (datetime.now(UTC) - timedelta(days=KEEP_DAYS)).isoformat()
        prune = {"table": "order_events", "before": before, "rows": 1_000}
        with holding(database, PRUNE, (Jsonb(prune),), worker=True):
            answers = worker.execute(APPLY, (array(rows[20:]),)).fetchall()
            outcomes = {str(event_id): outcome for event_id, outcome, _, _ in answers}
            assert [outcomes[one] for one in ids[20:]] == ["duplicate"] * 20 + ["applied"] * 20
            with pytest.raises(psycopg.errors.LockNotAvailable):
                worker.execute(APPLY, (array(rows[:1]),))


def test_rows_that_somebody_has_locked_are_left_to_the_next_run(database: TestDatabase) -> None:
    claims = claim(database, days(*[50] * 10, *[60] * 10))
    locked = next(iter(claims))
    with holding(database, "SELECT FROM spillway.order_events WHERE event_id = %s FOR UPDATE", (locked,)):
        report = run(database, batch_rows=4)
        assert (report.pruned, report.unfinished) == ({"order_events": 19}, {})
        assert claimed(database) == {locked}
    assert run(database).pruned == {"order_events": 1}


@BOTH_ROUTES
def test_a_locked_table_is_left_to_the_next_run_and_the_others_are_not(database: TestDatabase) -> None:
    with database.owner() as owner:
        owner.execute(ANOTHER)
        # It is the function that does not wait, whatever the role's own patience.
        owner.execute(f"ALTER ROLE {LOGIN.name} IN DATABASE {database.name} SET lock_timeout = 0")
    claim(database, days(50))
    claim(database, days(40), "another_events")
    own = settings(database)
    store = Database(own)
    locks = holding(database, "LOCK TABLE spillway.order_events IN SHARE MODE")  # as CREATE INDEX takes it
    try:
        with locks:
            report = Housekeeper(store, own, Telemetry()).run(lambda: 300.0)
            assert report.unfinished == {"prune order_events": "conflict"}
            assert report.pruned == {"order_events": 0, "another_events": 1}
        assert Housekeeper(store, own, Telemetry()).run(lambda: 300.0).pruned == {"order_events": 1}
    finally:
        store.discard()


def test_pruning_beside_four_writers_loses_nothing(database: TestDatabase) -> None:
    """Each writer sends every batch twice: the second time all of it must be known, whatever was pruned meanwhile."""
    writers, batches, size = 4, 12, 50
    with database.owner() as owner:
        owner.execute(
            "INSERT INTO spillway.order_events SELECT gen_random_uuid(), now() - interval '36 days' - make_interval("
            " secs => n) FROM generate_series(1, 30000) AS n"
        )
    kept = claim(database, days(*[34] * 200))
    every = batch(writers * batches * size, seed=2)
    rows = [every[number::writers] for number in range(writers)]
    outcomes: list[list[str]] = [[] for _ in range(writers)]
    failures: list[BaseException] = []
    started = threading.Barrier(writers + 1)

    def write(number: int) -> None:
        try:
            with database.worker() as worker:
                started.wait(timeout=30)
                for first in range(0, batches * size, size):
                    for _ in range(2):
                        answers = worker.execute(APPLY, (array(rows[number][first : first + size]),)).fetchall()
                        outcomes[number] += [outcome for _, outcome, _, _ in answers]
        except BaseException as error:  # shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    started.wait(timeout=30)
    report = run(database, batch_rows=250)
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    assert (report.pruned, report.unfinished) == ({"order_events": 30_000}, {})
    assert outcomes == [(["applied"] * size + ["duplicate"] * size) * batches] * writers
    sent = {UUID(msgspec.json.decode(row)["id"]) for row in every}
    assert claimed(database) == sent | set(kept)


def test_two_runs_at_once_share_the_work(database: TestDatabase) -> None:
    claims = claim(database, days(*[50] * 3_000, *[1] * 100))
    reports: list[Report] = []
    threads = [
        threading.Thread(target=lambda: reports.append(run(database, batch_rows=50)), name=f"run {number}")
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sum(report.pruned.get("order_events", 0) for report in reports) + len(claimed(database)) == len(claims)
    run(database)
    assert claimed(database) == young(claims)


# Time, and what else may go wrong


@BOTH_ROUTES
def test_a_run_that_is_short_of_time_says_so_and_the_next_goes_on(database: TestDatabase) -> None:
    claims = claim(database, days(*range(40, 60), 1))
    needed = settings(database).attempt + settings(database).connect_timeout
    calls = iter([needed, needed, needed, needed])  # the partitions, the plan, and two batches
    report = run(database, lambda: next(calls, needed - 3), batch_rows=5)
    assert report.pruned == {"order_events": 10}
    assert report.unfinished == {"prune order_events": OUT_OF_TIME}
    assert {claims[one] for one in claimed(database)} == set(days(*range(40, 50), 1)), "the oldest go first"
    assert run(database, batch_rows=5).pruned == {"order_events": 10}


def test_the_table_that_is_furthest_behind_comes_first(database: TestDatabase) -> None:
    with database.owner() as owner:
        owner.execute(ANOTHER)
    claim(database, days(40))
    claim(database, days(41), "another_events")
    assert list(run(database).pruned) == ["another_events", "order_events"]
    claim(database, days(41))
    claim(database, days(40), "another_events")
    assert list(run(database).pruned) == ["order_events", "another_events"]


def test_a_step_that_fails_leaves_the_others_alone(database: TestDatabase) -> None:
    claim(database, days(50))
    with database.owner() as owner:
        owner.execute("ALTER FUNCTION spillway.audit_make_partitions(integer) RENAME TO mislaid")
    report = run(database)
    assert report.unfinished == {"make partitions": "misconfigured"}
    assert report.pruned == {"order_events": 1}


def test_a_database_that_cannot_be_reached_ends_the_run(database: TestDatabase) -> None:
    claim(database, days(50))
    assert run(database, password="wrong").unfinished == {"make partitions": "misconfigured"}
    assert len(claimed(database)) == 1


@BOTH_ROUTES
def test_partitions_are_made_ahead_and_dropped_past_their_retention(database: TestDatabase) -> None:
    with database.owner() as owner:
        month = _month(owner, -2)
        owner.execute(
            f"CREATE TABLE spillway.audit_log_{month:%Y_%m} PARTITION OF spillway.audit_log"
            f" FOR VALUES FROM ('{month.isoformat()}') TO ('{_month(owner, -1).isoformat()}')"
        )
        last = f"audit_log_{_month(owner, 3):%Y_%m}"
        owner.execute(f"DROP TABLE IF EXISTS spillway.{last}")
        for kept in (0, 2):
            assert run(database, audit_retention_months=kept).dropped == []
        report = run(database, audit_retention_months=1)
        assert (report.dropped, report.unfinished) == ([f"audit_log_{month:%Y_%m}"], {})
        assert owner.execute("SELECT to_regclass(%s)", (f"spillway.{last}",)).fetchone() != (None,)
        owner.execute(f"DROP TABLE spillway.{last}")
        report = run(database)
        assert (report.made, report.dropped, report.unfinished) == ([last], [], {})


def _month(owner: psycopg.Connection[Any], ahead: int) -> datetime:
    row = owner.execute(
        "SELECT date_trunc('month', now(), 'UTC') AT TIME ZONE 'UTC' + make_interval(months => %s)", (ahead,)
    ).fetchone()
    assert row is not None
    month: datetime = row[0]
    return month.replace(tzinfo=UTC)


def test_what_lambda_calls(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "DATABASE_HOST": database.server.host,
        "DATABASE_PORT": str(database.server.port),
        "DATABASE_NAME": database.name,
        "DATABASE_USER": LOGIN.name,
        "DATABASE_AUTH": "password",
        "DATABASE_PASSWORD": LOGIN.password or "",
        "DATABASE_SSLMODE": "disable",
        "DATABASE_CONNECT_TIMEOUT": "2",
        "DATABASE_BORROW_TIMEOUT": "0",
        "DATABASE_STATEMENT_TIMEOUT": "10",
        "FUNCTION_TIMEOUT": "300",
        "CLAIM_RETENTION_DAYS": str(KEEP_DAYS),
        "AUDIT_RETENTION_MONTHS": "0",
        "AWS_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    claim(database, days(50, 50, 1))
    context: Any = SimpleNamespace(get_remaining_time_in_millis=lambda: 300_000)
    housekeeping.warm_housekeeper.cache_clear()
    try:
        answer = housekeeping.handler({"detail-type": "Scheduled Event"}, context)
        assert answer["pruned"] == {"order_events": 2}
        msgspec.json.encode(answer)  # what Lambda does with it
        said = msgspec.json.decode(capsys.readouterr().out.splitlines()[-1])
        assert (said["ClaimsPruned"], said["HousekeepingUnfinished"], said["service"]) == ([2.0], [0.0], "housekeeping")
        assert said["pruned"] == {"order_events": 2}
        assert housekeeping.handler({}, context)["pruned"] == {}, "warm, on the same connection"
    finally:
        housekeeping.warm_housekeeper()._store.discard()
        housekeeping.warm_housekeeper.cache_clear()


def test_a_run_takes_no_more_than_half_of_the_time(database: TestDatabase) -> None:
    """After each call it rests for as long as the call took."""
    claim(database, days(*[50] * 100))
    own = settings(database)
    store = Database(own)
    rested: list[float] = []
    began = time.monotonic()
    Housekeeper(store, own, Telemetry(), batch_rows=10, sleep=rested.append).run(lambda: 300.0)
    worked = time.monotonic() - began
    store.discard()
    assert len(rested) == 10
    assert 0 < sum(rested) <= worked
