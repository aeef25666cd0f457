"""The worker's connection on a real server: lazy, warm, renewed, and refused in the words of the failure table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from spillway.history import generate
from spillway.stack import ports
from tests.conftest import LOGIN
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.database import MAX_AGE_S, MAX_IDLE_S, Database
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Failure, classify
from workers.runtime.settings import Settings
from workers.runtime.worker import build_processor, statement
from workers.runtime.writer import BatchWriter

if TYPE_CHECKING:
    from tests.conftest import TestDatabase

BACKEND = "SELECT jsonb_build_object('pid', pg_backend_pid(), 'in', %s)::text"


def settings(target: TestDatabase, /, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "host": target.server.host,
        "port": target.server.port,
        "database": target.name,
        "user": LOGIN.name,
        "auth": "password",
        "password": LOGIN.password,
        "sslmode": "disable",
        "sslrootcert": "system",
        "connect_timeout": 2,
        "borrow_timeout": 0,
        "statement_timeout": 10,
        "function_timeout": 30,
        "dead_letter_queue_url": "",
        "region": "us-east-1",
    }
    return Settings(**(values | changes))


def backend(database: Database) -> int:
    return int(msgspec.json.decode(database.fetch(BACKEND, b"{}")[0][0])["pid"])


def test_nothing_is_opened_before_it_is_needed_and_then_it_is_kept(database: TestDatabase) -> None:
    connection = Database(settings(database))
    assert not connection.connected
    assert backend(connection) == backend(connection)
    assert connection.connected
    connection.discard()
    assert not connection.connected


@pytest.mark.parametrize("wait_s", [MAX_IDLE_S + 1, MAX_AGE_S + 1])
def test_an_idle_or_old_connection_is_renewed_before_a_proxy_would_close_it(
    database: TestDatabase, wait_s: float
) -> None:
    now = [0.0]
    connection = Database(settings(database), clock=lambda: now[0])
    first = backend(connection)
    if wait_s > MAX_AGE_S:
        while now[0] < MAX_AGE_S - MAX_IDLE_S:  # busy all day
            now[0] += MAX_IDLE_S - 1
            assert backend(connection) == first
    now[0] += wait_s
    assert not connection.connected
    assert backend(connection) != first
    connection.discard()


def test_a_killed_backend_is_replaced_within_the_same_write(database: TestDatabase) -> None:
    connection = Database(settings(database))
    events = [EventDecoder[Any](OrderEvent).decode(m.body) for m in generate(100, duplicates=0, poison=0).messages]
    rows = [to_row(event) for event in events]
    writer = BatchWriter(connection, statement("orders"), attempt_s=1, connect_timeout_s=1)
    deadline = time.monotonic() + 30
    assert len(writer.write(rows[:50], lambda: deadline - time.monotonic()).answers) == 50
    with database.owner() as owner:
        owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (LOGIN.name,))
    written = writer.write(rows[50:], lambda: deadline - time.monotonic())
    assert len(written.answers) == 50
    assert not written.given_back
    assert [failure for failure, _ in written.errors] == [Failure.UNAVAILABLE]
    connection.discard()


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"password": "wrong"}, Failure.MISCONFIGURED),
        ({"database": "nowhere"}, Failure.MISCONFIGURED),
        ({"user": "nobody_known"}, Failure.MISCONFIGURED),
        ({"sslmode": "require"}, Failure.MISCONFIGURED),
        ({"port": 0}, Failure.UNAVAILABLE),
    ],
    ids=["password", "database", "role", "tls", "port"],
)
def test_refused_connections_are_classified(database: TestDatabase, changes: dict[str, Any], failure: Failure) -> None:
    if "port" in changes:
        changes = {"port": ports.free_port()}
    with pytest.raises(psycopg.Error) as refused:
        Database(settings(database, **changes)).fetch(BACKEND, b"{}")
    assert classify(refused.value) is failure


def test_too_many_connections_is_saturation(database: TestDatabase) -> None:
    with database.owner() as owner:
        owner.execute(f"ALTER ROLE {LOGIN.name} CONNECTION LIMIT 1")
        try:
            first = Database(settings(database))
            backend(first)
            with pytest.raises(psycopg.Error) as refused:
                backend(Database(settings(database)))
            assert classify(refused.value) is Failure.SATURATED
            first.discard()
        finally:
            owner.execute(f"ALTER ROLE {LOGIN.name} CONNECTION LIMIT -1")


@pytest.mark.parametrize(
    ("sql", "failure"),
    [
        ("SELECT spillway.no_such_function(%s)", Failure.MISCONFIGURED),
        ("SELECT * FROM spillway.orders WHERE %s IS NULL", Failure.MISCONFIGURED),
        ("SELECT pg_sleep(20), %s", Failure.SLOW),
        ("SELECT 1 / 0, %s", Failure.POISON),
    ],
)
def test_statement_failures_are_classified(database: TestDatabase, sql: str, failure: Failure) -> None:
    connection = Database(settings(database))
    with database.owner() as owner:
        owner.execute(f"ALTER ROLE {LOGIN.name} IN DATABASE {database.name} SET statement_timeout = '300ms'")
    with pytest.raises(psycopg.Error) as failed:
        connection.fetch(sql, b"{}")
    assert classify(failed.value) is failure
    connection.discard()


def test_nothing_on_the_wire_can_pin_a_proxy_session(database: TestDatabase) -> None:
    """What the server saw: one constant statement, no SET, no named prepared statement, no DEALLOCATE."""
    with database.owner() as owner:
        owner.execute(f"ALTER ROLE {LOGIN.name} IN DATABASE {database.name} SET log_statement = 'all'")
        processor = build_processor(
            "orders", OrderEvent, settings(database), connection := Database(settings(database))
        )
        bodies = [message.body for message in generate(100, seed=5, poison=0.1).messages]
        for _ in range(10):  # psycopg would prepare at the fifth
            with processor([_record(number, body) for number, body in enumerate(bodies)], to_row):
                processor.process()
        connection.discard()
    log = [line for line in database.server.log_tail(400).splitlines() if "LOG:  " in line and "execute" in line]
    log = [line for line in log if "apply_orders" in line or "statement:" in line]
    assert log
    assert {line.partition("LOG:  ")[2] for line in log} == {
        "execute <unnamed>: SELECT event_id, outcome, reason, detail FROM spillway.apply_orders($1)"
    }
    said = database.server.log_tail(400)
    for word in ("DEALLOCATE", "PREPARE", "SET ", "BEGIN", "DISCARD"):
        assert f"statement: {word}" not in said
        assert f"execute <unnamed>: {word}" not in said


def _record(number: int, body: str) -> dict[str, Any]:
    return {"messageId": f"m{number}", "body": body, "attributes": {"ApproximateReceiveCount": "1"}}


def test_a_connection_that_died_is_not_taken_for_an_open_one(database: TestDatabase) -> None:
    """The writer keeps time back for connecting by this."""
    connection = Database(settings(database))
    first = backend(connection)
    with database.owner() as owner:
        owner.execute("SELECT pg_terminate_backend(%s)", (first,))
    with pytest.raises(psycopg.OperationalError):
        backend(connection)
    assert not connection.connected
    assert backend(connection) != first
    connection.discard()
