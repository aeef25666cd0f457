"""apply_audit and what surrounds it: every stream one gapless chain, whatever is split, repeated, late or dropped."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import class_row

from spillway.histories.audit import AuditHistory, Row, broken_links, generate, hash_of
from spillway.histories.base import DUPLICATE, VALID
from spillway.stack.template import REPOSITORY
from tests.conftest import BOTH_ROUTES
from workers.audit.contract import AuditEvent
from workers.audit.handler import AuditRow, to_row
from workers.runtime.database import JsonText, JsonTextDumper
from workers.runtime.envelope import EventDecoder
from workers.runtime.worker import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.conftest import TestDatabase

APPLY = statement("audit")
AT = "SELECT event_id, outcome, reason, detail FROM spillway.audit_append(%s, %s)"
STRIPES = 1635083380
decode = EventDecoder[AuditEvent](AuditEvent).decode

Answer = tuple[UUID, str, str | None, str | None]


def rows_of(history: AuditHistory) -> list[AuditRow]:
    """The good events of a history in sending order, repeats included."""
    return [to_row(decode(message.body)) for message in history.messages if message.kind in (VALID, DUPLICATE)]


def entry(stream: str = "tenant-1", **fields: Any) -> AuditRow:
    row = AuditRow(uuid4(), stream, "audit.recorded", "/test", datetime(2026, 1, 5, tzinfo=UTC), '{"a":1}')
    return msgspec.structs.replace(row, **fields)


def apply(connection: psycopg.Connection[Any], rows: Sequence[Any], at: datetime | None = None) -> list[Answer]:
    """Write `rows`; as the owner, recorded at a time of one's own."""
    connection.adapters.register_dumper(JsonText, JsonTextDumper)
    batch = JsonText(msgspec.json.encode(rows))
    return connection.execute(*((APPLY, (batch,)) if at is None else (AT, (batch, at)))).fetchall()


def log(connection: psycopg.Connection[Any], stream: str = "tenant-1") -> list[Row]:
    with connection.cursor(row_factory=class_row(Row)) as cursor:
        cursor.execute(
            "SELECT stream, sequence, event_id, recorded_at, event_time, type, source, body, previous_hash, hash"
            " FROM spillway.audit_log WHERE stream = %s ORDER BY sequence",
            (stream,),
        )
        return cursor.fetchall()


def verify(connection: psycopg.Connection[Any], stream: str | None = None) -> tuple[bool, list[tuple[int | None, str]]]:
    """The verdict, and the problems as (sequence, finding)."""
    *problems, (_, _, ok, _) = connection.execute("SELECT * FROM spillway.audit_verify(%s)", (stream,)).fetchall()
    assert not any(problem[2] for problem in problems)
    return ok, [(problem[1], problem[3]) for problem in problems]


def names(connection: psycopg.Connection[Any], function: str, months: int) -> list[str]:
    return [name for (name,) in connection.execute(f"SELECT spillway.{function}(%s)", (months,))]


def partitions(connection: psycopg.Connection[Any]) -> set[str]:
    found = connection.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'spillway.audit_log'::regclass"
    )
    return {name.removeprefix("spillway.") for (name,) in found}


def month_name(moment: datetime) -> str:
    return f"audit_log_{moment:%Y_%m}"


def months_ago(months: int) -> datetime:
    """Noon of the fifth day, `months` months ago."""
    now = datetime.now(UTC)
    month = now.year * 12 + now.month - 1 - months
    return datetime(month // 12, month % 12 + 1, 5, 12, tzinfo=UTC)


@contextmanager
def no_triggers(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """What it takes to tamper with the log: a superuser who switches its triggers off."""
    connection.execute("SET session_replication_role = replica")
    yield
    connection.execute("SET session_replication_role = DEFAULT")


def reset(connection: psycopg.Connection[Any]) -> None:
    with no_triggers(connection):
        connection.execute("TRUNCATE spillway.audit_log, spillway.audit_streams, spillway.audit_events")


class Call:
    """A call in a thread of its own, to be looked at while it waits for a lock."""

    def __init__(self, connection: psycopg.Connection[Any], run: Callable[[psycopg.Connection[Any]], Any]) -> None:
        self._pid = connection.info.backend_pid
        self._outcome: Any = None
        self._error: BaseException | None = None

        def body() -> None:
            try:
                self._outcome = run(connection)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=body)
        self._thread.start()

    def wait_until_blocked(self, observer: psycopg.Connection[Any]) -> int:
        """The process id, once it waits for a lock."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = observer.execute("SELECT pg_blocking_pids(%s) <> '{}'", (self._pid,)).fetchone()
            if found == (True,):
                return self._pid
        raise AssertionError("the call does not wait for a lock")

    def result(self) -> Any:
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._outcome


# The chain.


@BOTH_ROUTES
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(100, 400), shuffle=st.integers())
def test_any_split_order_and_redelivery_gives_whole_chains(
    database: TestDatabase, seed: int, size: int, shuffle: int
) -> None:
    history = generate(size, seed=seed, streams=size // 10, duplicates=0.1, poison=0)
    rng = random.Random(shuffle)
    deliveries = rows_of(history)
    deliveries += rng.sample(deliveries, k=len(deliveries) // 5)  # redelivered by SQS, on top of the producer's repeats
    rng.shuffle(deliveries)
    outcomes: Counter[str] = Counter()
    with database.owner() as owner, database.worker() as worker:
        reset(owner)
        while deliveries:
            cut = rng.randint(1, 120)
            batch, deliveries = deliveries[:cut], deliveries[cut:]
            answers = apply(worker, batch)
            assert sorted(answer[0] for answer in answers) == sorted({row.id for row in batch})
            outcomes.update(answer[1] for answer in answers)
        assert history.violations(owner) == []
        assert verify(owner) == (True, [])
    assert set(outcomes) <= {"applied", "duplicate"}
    assert outcomes["applied"] == len(history.event_ids)


@BOTH_ROUTES
def test_overlapping_batches_at_once_are_exact_and_each_snapshot_verifies(database: TestDatabase) -> None:
    history = generate(4_000, seed=11, streams=60, duplicates=0.3, poison=0)
    deliveries = rows_of(history) * 2
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
                    answers = apply(connection, batch)
                    with lock:
                        outcomes.update(answer[1] for answer in answers)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    with database.owner() as owner:
        while any(thread.is_alive() for thread in threads):
            assert verify(owner) == (True, [])
        for thread in threads:
            thread.join()
        assert failures == [], "a deadlock would show here"
        assert history.violations(owner) == []
    assert outcomes["applied"] == len(history.event_ids)


def test_the_history_s_own_checker_finds_what_is_wrong(database: TestDatabase) -> None:
    history = generate(500, seed=21, poison=0)
    rows = rows_of(history)
    with database.worker() as worker, database.owner() as owner:
        apply(worker, rows[:-40])
        assert any("is not on record" in violation for violation in history.violations(owner))
        apply(worker, rows[-40:])
        assert history.violations(owner) == []
        for damage, words in {
            "UPDATE spillway.audit_log SET body = '{}' WHERE sequence = 1": "was sent as",
            "DELETE FROM spillway.audit_log WHERE sequence > 3": "is not on record",
            "DELETE FROM spillway.audit_events": "on record 2 times",
            "UPDATE spillway.audit_streams SET last_sequence = last_sequence + 1": "the head is",
            "UPDATE spillway.audit_log SET hash = previous_hash WHERE sequence = 2": "another hash",
        }.items():
            with owner.transaction(force_rollback=True), no_triggers(owner):
                owner.execute(damage)
                if "audit_events" in damage:
                    apply(owner, rows[:1], datetime.now(UTC))
                assert any(words in violation for violation in history.violations(owner)), damage
        apply(worker, [entry(f"{history.prefix}broken-1")])
        assert any("was never sent" in violation for violation in history.violations(owner))
        assert generate(500, seed=22, poison=0).violations(owner) != [], "nothing of that one was written"


@BOTH_ROUTES
def test_entries_follow_each_other_in_the_order_of_the_batch(database: TestDatabase) -> None:
    first, second, other, third = entry(), entry(), entry("tenant-2"), entry()
    with database.worker() as worker, database.owner() as owner:
        assert {answer[1] for answer in apply(worker, [second, other, first])} == {"applied"}
        assert dict(answer[:2] for answer in apply(worker, [third, second, third])) == {
            third.id: "applied",
            second.id: "duplicate",
        }
        assert [(row.sequence, row.event_id) for row in log(owner)] == [(1, second.id), (2, first.id), (3, third.id)]
        assert [row.sequence for row in log(owner, "tenant-2")] == [1]
        assert list(broken_links(log(owner))) == []


def test_the_hash_is_the_documented_one(database: TestDatabase) -> None:
    """Worked out by hand once: a change of the form would break every chain there is."""
    row = Row(
        stream="tenant-7",
        sequence=2,
        event_id=UUID("019bc0fd-89c0-7000-8000-000000000001"),
        recorded_at=datetime(2026, 1, 15, 9, 30, 0, 250_001, tzinfo=UTC),
        event_time=datetime(2026, 1, 15, 9, 29, tzinfo=UTC),
        type="audit.recorded",
        source="/büro",
        body='{"a":"délai"}',
        previous_hash=bytes(range(32)),
        hash=b"",
    )
    golden = "8ead99ed18cede77ceb2d0d2d447a19e47cc8d7756e96b47ba1f4224ba6b9c8a"
    assert hash_of(row, row.previous_hash).hex() == golden
    with database.owner() as owner:
        found = owner.execute(
            "SELECT spillway.audit_link(%s, %s, %s, spillway.audit_content(%s, %s, %s, %s, %s, %s))",
            (
                *(row.previous_hash, row.sequence, row.recorded_at),
                *(row.event_time, row.event_id, row.stream, row.type, row.source, row.body),
            ),
        ).fetchone()
    assert found is not None
    assert found[0].hex() == golden


def test_a_clock_that_is_put_back_does_not_split_a_chain(database: TestDatabase) -> None:
    now = datetime.now(UTC)
    with database.owner() as owner:
        apply(owner, [entry()], now)
        apply(owner, [entry(), entry("tenant-2")], now - timedelta(days=40))
        assert [row.recorded_at for row in log(owner)] == [now, now]
        assert verify(owner) == (True, [])


# One writer per stream at a time.


def test_whoever_waited_for_a_stream_continues_what_was_written_meanwhile(database: TestDatabase) -> None:
    """The snapshot trap: a head read in the statement that waits for the lock would be the one from before the wait."""
    with database.owner() as owner, database.worker() as one, database.worker() as two:
        apply(owner, [entry()])
        with one.transaction():
            apply(one, [entry(), entry()])
            waiting = Call(two, lambda connection: apply(connection, [entry()]))
            waiting.wait_until_blocked(owner)
        assert [answer[1] for answer in waiting.result()] == ["applied"]
        assert [row.sequence for row in log(owner)] == [1, 2, 3, 4]
        assert verify(owner) == (True, [])


def held_stripes(observer: psycopg.Connection[Any], pid: int, *, granted: bool = True) -> list[int]:
    found = observer.execute(
        "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND pid = %s AND granted = %s",
        (STRIPES, pid, granted),
    )
    return sorted(stripe for (stripe,) in found)


def test_stripes_are_few_and_taken_in_ascending_order(database: TestDatabase) -> None:
    def batch() -> list[AuditRow]:
        return [entry(f"tenant-{number}") for number in random.Random(3).sample(range(2_000), k=2_000)]

    with database.owner() as owner, database.worker() as one, database.owner() as other:
        for stripe in (100, 64, 3):
            with other.transaction():
                other.execute("SELECT pg_advisory_xact_lock(%s, %s)", (STRIPES, stripe))
                call = Call(one, lambda connection: apply(connection, batch()))
                pid = call.wait_until_blocked(owner)
                assert held_stripes(owner, pid, granted=False) == [stripe]
                assert held_stripes(owner, pid) == list(range(stripe))
            call.result()
        with one.transaction():
            apply(one, batch())
            assert held_stripes(owner, one.info.backend_pid) == list(range(128))
        assert held_stripes(owner, one.info.backend_pid) == []


# What cannot be written.

DEFECTS = [
    ({"stream": ""}, "stream"),
    ({"stream": "s" * 129}, "stream"),
    ({"stream": None}, "stream"),
    ({"type": "audit.erased"}, "type"),
    ({"type": None}, "type"),
    ({"source": ""}, "source"),
    ({"source": None}, "source"),
    ({"time": "2026-13-01T00:00:00Z"}, "time"),
    ({"time": None}, "time"),
    ({"body": "[]"}, "body"),
    ({"body": "{"}, "body"),
    ({"body": None}, "body"),
    ({"body": '{"a":"' + "x" * 65_536 + '"}'}, "body"),
]


@BOTH_ROUTES
def test_a_bad_record_is_answered_for_and_its_neighbours_are_written(database: TestDatabase) -> None:
    with database.worker() as worker, database.owner() as owner:
        for number, (defect, place) in enumerate(DEFECTS):
            stream = f"tenant-{number}"
            first, bad, last = entry(stream), entry(stream), entry(stream)
            batch = [first, msgspec.to_builtins(bad) | defect, last]
            answers = {answer[0]: answer[1:] for answer in apply(worker, batch)}
            assert answers[first.id] == answers[last.id] == ("applied", None, None)
            outcome, reason, detail = answers[bad.id]
            assert (outcome, reason) == ("invalid", "22023"), defect
            assert detail is not None
            assert detail.startswith(f"{place}: expected"), defect
            assert [row.event_id for row in log(owner, stream)] == [first.id, last.id]
            # Nothing was claimed for it: corrected, the same event takes effect.
            assert apply(worker, [bad])[0][1] == "applied"
        assert verify(owner) == (True, [])


@pytest.mark.parametrize("bad_share", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("rule", ["audit_events", "audit_log"])
def test_what_the_predicates_do_not_know_is_isolated_by_halving(
    database: TestDatabase, bad_share: float, rule: str
) -> None:
    """A rule that only a table knows: a constraint added later, as in a migration that is ahead of the function."""
    rows = rows_of(generate(300, seed=9, streams=12, duplicates=0, poison=0))
    rng = random.Random(2)
    forbidden = {row.id for row in rows if rng.random() < bad_share}
    with database.worker() as worker, database.owner() as owner:
        owner.execute("CREATE TABLE spillway.forbidden (event_id uuid PRIMARY KEY)")
        owner.cursor().executemany("INSERT INTO spillway.forbidden VALUES (%s)", [(one,) for one in forbidden])
        owner.execute(
            "CREATE FUNCTION spillway.allowed(uuid) RETURNS boolean LANGUAGE sql"
            " RETURN NOT EXISTS (SELECT FROM spillway.forbidden WHERE event_id = $1)"
        )
        owner.execute(f"ALTER TABLE spillway.{rule} ADD CONSTRAINT later CHECK (spillway.allowed(event_id))")
        answers = {answer[0]: answer[1:] for answer in apply(worker, rows)}
        assert set(answers) == {row.id for row in rows}
        assert {one for one, answer in answers.items() if answer[0] == "invalid"} == forbidden
        assert {answer[1:] for answer in answers.values() if answer[0] == "invalid"} <= {("23514", "constraint later")}
        # In each stream, the others in the order of the batch.
        for stream in {row.stream for row in rows}:
            expected = [row.id for row in rows if row.stream == stream and row.id not in forbidden]
            assert [row.event_id for row in log(owner, stream)] == expected
        assert verify(owner) == (True, [])
        owner.execute(f"ALTER TABLE spillway.{rule} DROP CONSTRAINT later")
        assert {answer[1] for answer in apply(worker, [row for row in rows if row.id in forbidden])} == {"applied"}


def test_an_empty_batch_has_no_answer(database: TestDatabase) -> None:
    with database.worker() as worker:
        assert apply(worker, []) == []


def test_an_answer_never_quotes_a_value(database: TestDatabase) -> None:
    with database.worker() as worker:
        for field in ("time", "type", "body", "stream"):
            bad = msgspec.to_builtins(entry()) | {field: "S3CRET" * 50}
            assert "S3CRET" not in str(apply(worker, [bad])[0][2:])


# Append-only, and how tampering shows.


def test_not_even_the_owner_changes_an_entry(database: TestDatabase) -> None:
    with database.owner() as owner:
        apply(owner, [entry()])
        for table in ("audit_log", month_name(datetime.now(UTC))):
            for sql in ("UPDATE spillway.{} SET body = '{{}}'", "DELETE FROM spillway.{}", "TRUNCATE spillway.{}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                    owner.execute(sql.format(table))
        assert len(log(owner)) == 1


TAMPERINGS = {
    "body": ("UPDATE spillway.audit_log SET body = '{\"a\":2}' WHERE sequence = 3", 3, "changed"),
    "time": ("UPDATE spillway.audit_log SET event_time = event_time + interval '1 s' WHERE sequence = 3", 3, "chang"),
    "recorded": ("UPDATE spillway.audit_log SET recorded_at = recorded_at + interval '1 s' WHERE sequence = 3", 3, ""),
    "id": ("UPDATE spillway.audit_log SET event_id = gen_random_uuid() WHERE sequence = 1", 1, "changed"),
    "stream and source": (
        "UPDATE spillway.audit_log SET stream = 'tenant-1', source = 'x' WHERE sequence = 5", 5, "changed",
    ),
    "a changed entry with the right hash": (
        "UPDATE spillway.audit_log SET body = '{}', hash = spillway.audit_link(previous_hash, sequence, recorded_at,"
        " spillway.audit_content(event_time, event_id, stream, type, source, '{}')) WHERE sequence = 3",
        4, "does not follow",
    ),
    "missing in the middle": ("DELETE FROM spillway.audit_log WHERE sequence IN (3, 4)", 5, "missing: 3 to 4"),
    "missing at the start": ("DELETE FROM spillway.audit_log WHERE sequence < 3", 3, "missing: 1 to 2"),
    "missing at the end": ("DELETE FROM spillway.audit_log WHERE sequence > 4", 4, "missing: 5 to 6"),
    "missing altogether": ("DELETE FROM spillway.audit_log", 6, "missing: all"),
    "swapped": (
        "UPDATE spillway.audit_log SET sequence = 7 - sequence + 100 WHERE sequence IN (3, 4);"
        "UPDATE spillway.audit_log SET sequence = sequence - 100 WHERE sequence > 100", 3, "changed",
    ),
    "twice": (
        "INSERT INTO spillway.audit_log SELECT stream, sequence, event_id, recorded_at + interval '1 us', event_time,"
        " type, source, body, previous_hash, hash FROM spillway.audit_log WHERE sequence = 3", 3, "",
    ),
    "head's sequence": ("UPDATE spillway.audit_streams SET last_sequence = 9", 6, "missing: 7 to 9"),
    "head's sequence, back": ("UPDATE spillway.audit_streams SET last_sequence = 2", 6, "last, but the head is an"),
    "head's hash": ("UPDATE spillway.audit_streams SET last_hash = sha256('x')", 6, "last, but the head is another"),
    "no head": ("DELETE FROM spillway.audit_streams", 6, "last, but the stream has no head"),
    "another beginning": (
        "UPDATE spillway.audit_log SET previous_hash = sha256('x'), hash = spillway.audit_link(sha256('x'), sequence,"
        " recorded_at, spillway.audit_content(event_time, event_id, stream, type, source, body)) WHERE sequence = 1",
        1, "first, but follows",
    ),
}  # fmt: skip


def test_tampering_shows(database: TestDatabase) -> None:
    with database.owner() as owner:
        apply(owner, [entry("tenant-0")])
        for _ in range(3):
            apply(owner, [entry(), entry()])
        assert verify(owner) == verify(owner, "tenant-1") == (True, [])
        for name, (tampering, sequence, finding) in TAMPERINGS.items():
            with owner.transaction(force_rollback=True):
                with no_triggers(owner):
                    for sql in tampering.split(";"):
                        owner.execute(only_tenant_1(sql))
                ok, problems = verify(owner, "tenant-1")
                assert not ok, name
                assert problems[0][0] == sequence, name
                assert problems[0][1].startswith(finding), name
                assert verify(owner) == (False, problems), f"{name}: all streams, and nothing about the other one"
                assert verify(owner, "tenant-0") == (True, []), name


def only_tenant_1(sql: str) -> str:
    head, _, condition = sql.partition(" WHERE ")
    return f"{head} WHERE stream = 'tenant-1' AND {condition or 'true'}"


def test_verification_of_a_stream_that_is_not_there(database: TestDatabase) -> None:
    with database.owner() as owner:
        assert verify(owner) == (True, [])
        assert verify(owner, "tenant-x") == (False, [(None, "there is no such stream")])


# Partitions.


def test_this_month_and_the_next_have_partitions_from_the_start(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as worker:
        expected = {month_name(months_ago(-ahead)) for ahead in range(4)}
        assert partitions(owner) == expected | {"audit_log_default"}
        assert names(worker, "audit_make_partitions", 3) == []
        assert names(worker, "audit_make_partitions", 5) == [month_name(months_ago(-4)), month_name(months_ago(-5))]
        apply(worker, [entry()])
        found = owner.execute("SELECT DISTINCT tableoid::regclass::text FROM spillway.audit_log").fetchall()
        assert [name.removeprefix("spillway.") for (name,) in found] == [month_name(datetime.now(UTC))]


@BOTH_ROUTES
def test_housekeeping_may_be_called_through_the_proxy(database: TestDatabase) -> None:
    with database.worker() as worker:
        assert names(worker, "audit_make_partitions", 4) == [month_name(months_ago(-4))]
        assert names(worker, "audit_drop_partitions", 1) == []


def test_months_out_of_range_are_refused(database: TestDatabase) -> None:
    with database.worker() as worker:
        for function, months in (
            ("audit_make_partitions", -1),
            ("audit_make_partitions", 121),
            ("audit_drop_partitions", 0),
        ):
            with pytest.raises(psycopg.errors.InvalidParameterValue, match="expected"):
                names(worker, function, months)


def test_making_partitions_and_writing_do_not_wait_for_each_other(database: TestDatabase) -> None:
    with database.owner() as maker, database.worker() as writer:
        writer.execute("SET lock_timeout = '1ms'")
        with writer.transaction():
            apply(writer, [entry()])
            assert len(names(maker, "audit_make_partitions", 4)) == 1
        with maker.transaction():
            assert len(names(maker, "audit_make_partitions", 5)) == 1
            assert apply(writer, [entry()])[0][1] == "applied"


def without_this_month(owner: psycopg.Connection[Any]) -> str:
    """Housekeeping that is late: this month has no partition. Returns the name it should have."""
    name = month_name(datetime.now(UTC))
    owner.execute(f"DROP TABLE spillway.{name}")
    return name


def test_late_housekeeping_loses_nothing(database: TestDatabase) -> None:
    history = generate(1_000, seed=3, streams=30, poison=0)
    rows = rows_of(history)
    with database.owner() as owner, database.worker() as worker:
        name = without_this_month(owner)
        apply(worker, rows[:400])
        apply(owner, [row for row in rows[400:600] if int(row.stream[-2:]) > 25], months_ago(-30))  # the clock jumped
        assert owner.execute("SELECT count(*) > 0 FROM spillway.audit_log_default").fetchone() == (True,)
        jumped = month_name(months_ago(-30))
        assert names(worker, "audit_make_partitions", 1) == [name, jumped]
        assert owner.execute("SELECT count(*) FROM spillway.audit_log_default").fetchone() == (0,)
        apply(worker, rows)
        assert history.violations(owner) == []
        assert verify(owner) == (True, [])
        for table in (name, jumped, "audit_log_default"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                owner.execute(f"TRUNCATE spillway.{table}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute(f"DELETE FROM spillway.{name}")  # noqa: S608 - a name made above
        assert names(worker, "audit_make_partitions", 1) == []


def test_late_housekeeping_gives_way_to_a_writer(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as worker, database.worker() as keeper:
        keeper.execute("SET statement_timeout = '3s'")  # below the role's own lock_timeout: it may not wait that long
        name = without_this_month(owner)
        with worker.transaction():
            apply(worker, [entry()])
            # The default partition is empty as far as others can see, and in use.
            with pytest.raises(psycopg.errors.LockNotAvailable):
                names(keeper, "audit_make_partitions", 3)
            apply(worker, [entry()])
        assert name not in partitions(owner)
        with worker.transaction():
            apply(worker, [entry()])
            with pytest.raises(psycopg.errors.LockNotAvailable):
                names(keeper, "audit_make_partitions", 3)
        assert names(keeper, "audit_make_partitions", 3) == [name]
        assert [row.sequence for row in log(owner)] == [1, 2, 3]
        assert verify(owner) == (True, [])


def test_an_entry_that_comes_in_while_a_partition_is_attached_puts_it_off(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as worker, database.worker() as keeper:
        name = without_this_month(owner)
        keeper.execute("SELECT 1")
        with worker.transaction():
            apply(worker, [entry()])
            call = Call(keeper, lambda connection: names(connection, "audit_make_partitions", 3))
            call.wait_until_blocked(owner)
        with pytest.raises(psycopg.errors.LockNotAvailable):  # after its 250 ms, or for that entry
            call.result()
        assert names(keeper, "audit_make_partitions", 3) == [name]
        assert verify(owner) == (True, [])


def test_a_head_that_was_put_back_is_not_the_messages_fault(database: TestDatabase) -> None:
    with database.owner() as owner:
        apply(owner, [entry()], months_ago(1))
        head = owner.execute("SELECT * FROM spillway.audit_streams").fetchone()
        assert head is not None
        apply(owner, [entry()])
        owner.execute(
            "UPDATE spillway.audit_streams SET (last_sequence, last_hash, recorded_at) = (%s, %s, %s)", head[1:]
        )
        assert apply(owner, [entry()])[0][1] == "applied"
        assert verify(owner, "tenant-1")[1][0] == (2, "two entries have this sequence")


@pytest.mark.parametrize("default_in_use", [False, True])
def test_a_partition_attached_under_a_writer_is_never_the_message_s_fault(
    database: TestDatabase, default_in_use: bool
) -> None:
    with database.owner() as owner, database.worker() as worker, database.owner() as keeper:
        without_this_month(owner)
        if default_in_use:
            apply(worker, [entry()])
        with keeper.transaction():
            names(keeper, "audit_make_partitions", 3)
            row = entry()
            call = Call(worker, lambda connection: apply(connection, [row]))
            call.wait_until_blocked(owner)
        try:
            assert [answer[1] for answer in call.result()] == ["applied"]
        except psycopg.errors.SerializationFailure:  # retried in place by the worker
            assert [answer[1] for answer in apply(worker, [row])] == ["applied"]
        assert log(owner)[-1].event_id == row.id
        assert verify(owner) == (True, [])


def test_the_operator_s_way_out_of_the_readme_works(database: TestDatabase) -> None:
    readme = (REPOSITORY / "workers/audit/README.md").read_text()
    recipe = readme.partition("as the owner, for the months")[2].partition("```sql\n")[2].partition("```")[0]
    now, after = datetime.now(UTC), months_ago(-1)
    for old, new in (("2026-12", f"{now:%Y-%m}"), ("2027-01", f"{after:%Y-%m}"), ("2026_12", f"{now:%Y_%m}")):
        recipe = recipe.replace(old, new)
    history = generate(300, seed=4, poison=0)
    with database.owner() as owner, database.worker() as worker:
        name = without_this_month(owner)
        apply(worker, rows_of(history))
        for sql in re.sub("--.*", "", recipe).split(";"):
            if sql.strip():
                owner.execute(sql)
        apply(worker, [entry("x")])
        assert {name, "audit_log_default"} <= partitions(owner)
        assert owner.execute("SELECT count(*) FROM spillway.audit_log_default").fetchone() == (0,)
        assert history.violations(owner) == []
        assert names(worker, "audit_make_partitions", 4) == [month_name(months_ago(-4))]


def test_a_default_partition_too_large_to_move_is_left_to_the_operator(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as keeper:
        without_this_month(owner)
        owner.execute(
            "INSERT INTO spillway.audit_log SELECT 's', n, gen_random_uuid(), now(), now(), 't', 's', '{}',"
            " sha256('x'), sha256('x') FROM generate_series(1, 50001) AS n"
        )
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="50,000"):
            names(keeper, "audit_make_partitions", 3)


# Retention.


def past(owner: psycopg.Connection[Any]) -> None:
    """Entries of tenant-1 in each of the last four months and this one; of tenant-2 in the oldest only."""
    for ago in (4, 3, 2, 1, 0):
        apply(owner, [entry(), entry()], months_ago(ago))
    apply(owner, [entry("tenant-2")], months_ago(4))
    names(owner, "audit_make_partitions", 3)


def test_what_retention_dropped_does_not_break_a_chain(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as keeper:
        past(owner)
        assert verify(owner) == (True, [])
        assert names(keeper, "audit_drop_partitions", 4) == []
        assert names(keeper, "audit_drop_partitions", 2) == [month_name(months_ago(4)), month_name(months_ago(3))]
        assert [row.sequence for row in log(owner)] == [5, 6, 7, 8, 9, 10]
        assert verify(owner) == verify(owner, "tenant-1") == verify(owner, "tenant-2") == (True, [])
        # A stream of which nothing is left goes on where it was.
        apply(owner, [entry("tenant-2"), entry()])
        assert [row.sequence for row in log(owner, "tenant-2")] == [2]
        assert verify(owner) == (True, [])
        assert names(keeper, "audit_drop_partitions", 1) == [month_name(months_ago(2))]
        assert names(keeper, "audit_drop_partitions", 1) == []
        assert verify(owner) == (True, [])


def test_tampering_shows_at_the_edge_of_retention(database: TestDatabase) -> None:
    tamperings = {
        "DELETE FROM spillway.audit_log WHERE sequence = 5": "missing: 1 to 5, and retention",
        "DELETE FROM spillway.audit_log WHERE sequence IN (5, 6)": "missing: 1 to 6, and retention",
        "DELETE FROM spillway.audit_dropped": "missing: 1 to 4, and retention",
        "UPDATE spillway.audit_anchors SET hash = sha256('x') WHERE sequence = 4": "does not follow the entry that",
        "UPDATE spillway.audit_log SET body = '{}' WHERE sequence = 5": "changed",
    }
    with database.owner() as owner:
        past(owner)
        names(owner, "audit_drop_partitions", 2)
        assert verify(owner, "tenant-1") == (True, [])
        for tampering, finding in tamperings.items():
            with owner.transaction(force_rollback=True):
                with no_triggers(owner):
                    owner.execute(tampering)
                ok, problems = verify(owner, "tenant-1")
                assert not ok, tampering
                assert problems[0][1].startswith(finding), tampering


def test_a_month_dropped_behind_housekeeping_s_back_shows(database: TestDatabase) -> None:
    with database.owner() as owner:
        past(owner)
        owner.execute(f"DROP TABLE spillway.{month_name(months_ago(4))}")
        assert verify(owner, "tenant-1")[1][0] == (3, "missing: 1 to 2, and retention did not drop them")
        assert verify(owner, "tenant-2")[1][0] == (1, "missing: all up to 1")


def test_dropping_gives_way_to_a_writer(database: TestDatabase) -> None:
    with database.owner() as owner, database.worker() as worker, database.worker() as keeper:
        keeper.execute("SET statement_timeout = '3s'")  # below the role's own lock_timeout: it may not wait that long
        past(owner)
        with worker.transaction():
            apply(worker, [entry()])
            with pytest.raises(psycopg.errors.LockNotAvailable):
                names(keeper, "audit_drop_partitions", 2)
            apply(worker, [entry()])
        assert len(names(keeper, "audit_drop_partitions", 2)) == 2


def test_the_application_role_may_call_three_functions_and_nothing_else(database: TestDatabase) -> None:
    forbidden = [
        "SELECT * FROM spillway.audit_log",
        "SELECT * FROM spillway.audit_streams",
        "INSERT INTO spillway.audit_events VALUES (gen_random_uuid())",
        "SELECT * FROM spillway.audit_append('[]', now())",
        "SELECT * FROM spillway.audit_verify()",
        "SELECT spillway.audit_new_table('audit_log_mine')",
    ]
    with database.worker() as worker:
        for sql in forbidden:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                worker.execute(sql)
        assert apply(worker, []) == []
