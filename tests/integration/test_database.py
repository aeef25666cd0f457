"""The worker's connection on a real server: lazy, warm, renewed, and refused in the words of the failure table."""

from __future__ import annotations

import select
import socket
import socketserver
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from spillway.histories.orders import generate
from spillway.rdsproxy.certificates import ensure_certificates
from spillway.stack import ports
from tests.conftest import BOTH_ROUTES, LOGIN, PROXY_ROUTE, REGION
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.calls import Calls
from workers.runtime.database import MAX_AGE_S, MAX_IDLE_S, Database
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Failure, classify
from workers.runtime.iam_token import rds_token
from workers.runtime.invocation import Invocation
from workers.runtime.settings import Settings
from workers.runtime.worker import build_processor, statement
from workers.runtime.writer import BatchWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import TestDatabase

BACKEND = "SELECT jsonb_build_object('pid', pg_backend_pid(), 'in', %s)::text"


def settings(target: TestDatabase, /, **changes: Any) -> Settings:
    """A worker's, for the route that `target` is on."""
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
        "region": REGION,
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
    return Settings(**(values | changes))


def backend(database: Database) -> int:
    """The server process that answers; behind a proxy it may be another one for each statement."""
    return int(msgspec.json.decode(database.fetch(BACKEND, b"{}")[0][0])["pid"])


def session(database: Database) -> int:
    """The connection, as whoever accepted it numbers it: PostgreSQL by its process, the proxy by its clients."""
    backend(database)
    assert database._connection is not None
    return database._connection.info.backend_pid


@BOTH_ROUTES
def test_nothing_is_opened_before_it_is_needed_and_then_it_is_kept(database: TestDatabase) -> None:
    connection = Database(settings(database))
    assert not connection.connected
    assert session(connection) == session(connection)
    assert connection.connected
    connection.discard()
    assert not connection.connected


@BOTH_ROUTES
@pytest.mark.parametrize("wait_s", [MAX_IDLE_S + 1, MAX_AGE_S + 1])
def test_an_idle_or_old_connection_is_renewed_before_a_proxy_would_close_it(
    database: TestDatabase, wait_s: float
) -> None:
    now = [0.0]
    connection = Database(settings(database), clock=lambda: now[0])
    first = session(connection)
    if wait_s > MAX_AGE_S:
        while now[0] < MAX_AGE_S - MAX_IDLE_S:  # busy all day
            now[0] += MAX_IDLE_S - 1
            assert session(connection) == first
    now[0] += wait_s
    assert not connection.connected
    assert session(connection) != first
    connection.discard()


@BOTH_ROUTES
def test_a_killed_backend_is_replaced_within_the_same_write(database: TestDatabase) -> None:
    connection = Database(settings(database))
    events = [EventDecoder[Any](OrderEvent).decode(m.body) for m in generate(100, duplicates=0, poison=0).messages]
    rows = [to_row(event) for event in events]
    writer = BatchWriter(Calls(connection, attempt_s=1, connect_timeout_s=1), statement("orders"))
    deadline = time.monotonic() + 30
    invocation = Invocation(lambda: deadline - time.monotonic())
    assert len(writer.write(rows[:50], invocation).answers) == 50
    with database.owner() as owner:
        # With a time it returns when they are gone, and not when they have been told to go.
        owner.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s", (LOGIN.name,))
    while database.proxy is not None and database.proxy.metrics["DatabaseConnections"]:
        assert time.monotonic() < deadline, "the proxy has not noticed"
        time.sleep(0.01)
    written = writer.write(rows[50:], invocation)
    assert len(written.answers) == 50
    assert not written.given_back
    # The proxy replaces a connection that nobody has borrowed, and the worker never hears of it.
    expected = [Failure.UNAVAILABLE] if database.proxy is None else []
    assert [failure for failure, _ in invocation.errors] == expected
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


@BOTH_ROUTES
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


@BOTH_ROUTES
def test_nothing_on_the_wire_can_pin_a_proxy_session(database: TestDatabase) -> None:
    """What the server saw: one constant statement, no SET, no named prepared statement, no DEALLOCATE."""
    with database.owner() as owner:
        owner.execute(f"ALTER ROLE {LOGIN.name} IN DATABASE {database.name} SET log_statement = 'all'")
        processor = build_processor(
            "orders", OrderEvent, settings(database), connection := Database(settings(database))
        )
        bodies = [message.body for message in generate(100, seed=5, poison=0.1).messages]
        for receives in range(1, 11):  # psycopg would prepare at the fifth; from the third on they are suspects
            with processor([_record(number, body, receives) for number, body in enumerate(bodies)], to_row):
                processor.process()
        connection.discard()
    log = [line for line in database.server.log_tail(400).splitlines() if "LOG:  " in line and "execute" in line]
    log = [line for line in log if any(word in line for word in ("apply_orders", "_attempts", "statement:"))]
    assert {line.partition("LOG:  ")[2] for line in log} == {
        "execute <unnamed>: SELECT event_id, outcome, reason, detail FROM spillway.apply_orders($1)",
        "execute <unnamed>: SELECT message_id, attempts FROM spillway.begin_attempts($1)",
        "execute <unnamed>: SELECT spillway.end_attempts($1)",
    }
    said = database.server.log_tail(400)
    for word in ("DEALLOCATE", "PREPARE", "SET ", "BEGIN", "DISCARD"):
        assert f"statement: {word}" not in said
        assert f"execute <unnamed>: {word}" not in said


def _record(number: int, body: str, receives: int) -> dict[str, Any]:
    return {"messageId": f"m{number}", "body": body, "attributes": {"ApproximateReceiveCount": str(receives)}}


@BOTH_ROUTES
def test_a_connection_that_died_is_not_taken_for_an_open_one(database: TestDatabase) -> None:
    """The writer keeps time back for connecting by this."""
    connection = Database(settings(database))
    first = session(connection)
    if database.proxy is not None:
        assert database.proxy.fault("close-idle-clients")["clients"] >= 1
    else:
        with database.owner() as owner:
            owner.execute("SELECT pg_terminate_backend(%s)", (first,))
    with pytest.raises(psycopg.OperationalError) as lost:
        session(connection)
    assert classify(lost.value) is Failure.UNAVAILABLE
    assert not connection.connected
    assert session(connection) != first
    connection.discard()


# Through the proxy: IAM tokens over verified TLS


@pytest.fixture
def connection(database: TestDatabase) -> Iterator[Database]:
    one = Database(settings(database))
    yield one
    one.discard()


def refusal(target: TestDatabase, /, **changes: Any) -> tuple[Failure, str]:
    """The class of a failed connect, and its words."""
    with pytest.raises(psycopg.Error) as refused:
        Database(settings(target, **changes)).fetch(BACKEND, b"{}")
    assert refused.value.sqlstate is None, "psycopg gives a failed connect none, so its words decide"
    return classify(refused.value), str(refused.value)


@PROXY_ROUTE
def test_the_connection_is_verified_tls(database: TestDatabase, connection: Database) -> None:
    session(connection)
    assert connection._connection is not None
    pgconn = connection._connection.pgconn
    assert pgconn.ssl_in_use
    parameters = connection._connection.info.get_parameters()
    assert (parameters["sslmode"], parameters["sslrootcert"]) == ("verify-full", str(database.proxy.ca_file))  # type: ignore[union-attr]


@PROXY_ROUTE
def test_another_authority_is_not_believed(database: TestDatabase, tmp_path: Path) -> None:
    other = ensure_certificates(tmp_path, ["127.0.0.1"])
    failure, words = refusal(database, sslrootcert=str(other.ca_file))
    assert failure is Failure.MISCONFIGURED
    assert "certificate verify failed" in words


@PROXY_ROUTE
def test_the_authority_may_be_given_as_text(database: TestDatabase, tmp_path: Path) -> None:
    assert database.proxy is not None
    text = database.proxy.ca_file.read_text().replace("\n", " ")  # as a command line leaves it
    connection = Database(settings(database, sslrootcert=text))
    session(connection)
    connection.discard()
    other = ensure_certificates(tmp_path, ["127.0.0.1"])
    failure, words = refusal(database, sslrootcert=other.ca_file.read_text())
    assert failure is Failure.MISCONFIGURED
    assert "certificate verify failed" in words


@PROXY_ROUTE
def test_an_authority_that_is_not_there(database: TestDatabase, tmp_path: Path) -> None:
    failure, words = refusal(database, sslrootcert=str(tmp_path / "none.pem"))
    assert failure is Failure.MISCONFIGURED
    assert "root certificate file" in words


@PROXY_ROUTE
def test_a_host_that_the_certificate_is_not_for(database: TestDatabase) -> None:
    proxy = database.proxy
    assert proxy is not None
    with relay("127.0.0.2", (proxy.host, proxy.port)) as port:
        failure, words = refusal(database, host="127.0.0.2", port=port)
        assert failure is Failure.MISCONFIGURED
        assert 'does not match host name "127.0.0.2"' in words
        # It is the name alone: who does not look at it gets as far as the token, which is for another endpoint.
        failure, words = refusal(database, host="127.0.0.2", port=port, sslmode="verify-ca")
        assert failure is Failure.MISCONFIGURED
        assert "IAM authentication failed" in words


@contextmanager
def relay(host: str, target: tuple[str, int]) -> Iterator[int]:
    """A port of `host` that leads to `target`."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(target) as there:
                ends = {self.request: there, there: self.request}
                while ready := select.select(list(ends), [], [], 30)[0]:
                    for one in ready:
                        data = one.recv(65_536)
                        if not data:
                            return
                        ends[one].sendall(data)

    with socketserver.ThreadingTCPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@PROXY_ROUTE
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auth": "password", "password": LOGIN.password}, "IAM authentication failed"),
        ({"region": "eu-west-1"}, "IAM authentication failed"),
        ({"user": "nobody_known"}, "has no credentials for the role"),
        ({"auth": "password", "password": LOGIN.password, "sslmode": "disable"}, "requires TLS"),
    ],
    ids=["password", "region", "role", "tls"],
)
def test_refused_by_the_proxy(database: TestDatabase, changes: dict[str, Any], words: str) -> None:
    failure, said = refusal(database, **changes)
    assert failure is Failure.MISCONFIGURED
    assert words in said


@PROXY_ROUTE
def test_a_database_that_is_not_there_behind_the_proxy(database: TestDatabase) -> None:
    failure, words = refusal(database, database="nowhere")
    assert failure is Failure.MISCONFIGURED
    assert "does not exist" in words


@PROXY_ROUTE
def test_a_key_without_permission(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert refusal(database)[0] is Failure.MISCONFIGURED
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert refusal(database)[0] is Failure.MISCONFIGURED


@PROXY_ROUTE
def test_a_token_is_good_for_a_quarter_of_an_hour(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an open connection is good for longer: nothing looks at its token again."""
    minutes = [0]
    tokens: list[str] = []

    def signed(host: str, port: int, user: str, region: str) -> str:
        tokens.append(rds_token(host, port, user, region, now=datetime.now(UTC) - timedelta(minutes=minutes[0])))
        return tokens[-1]

    monkeypatch.setattr("workers.runtime.database.rds_token", signed)
    minutes[0] = 14
    young = Database(settings(database))
    session(young)
    young.discard()
    minutes[0] = 16
    failure, words = refusal(database)
    assert failure is Failure.MISCONFIGURED
    assert "IAM authentication failed" in words
    assert len(set(tokens)) == 2


@PROXY_ROUTE
def test_every_connect_signs_a_new_token(
    database: TestDatabase, connection: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(datetime.now(UTC) - timedelta(minutes=minutes) for minutes in (10, 5, 0))
    tokens: list[str] = []

    def signed(host: str, port: int, user: str, region: str) -> str:
        tokens.append(rds_token(host, port, user, region, now=next(moments)))
        return tokens[-1]

    monkeypatch.setattr("workers.runtime.database.rds_token", signed)
    first = session(connection)
    assert session(connection) == first
    assert len(tokens) == 1, "not for every statement"
    connection.discard()
    assert session(connection) != first
    assert len(set(tokens)) == len(tokens) == 2


@PROXY_ROUTE
def test_no_connection_to_borrow_is_saturation(database: TestDatabase, connection: Database) -> None:
    proxy = database.proxy
    assert proxy is not None
    session(connection)
    proxy.fault("saturate")
    try:
        with pytest.raises(psycopg.Error) as refused:
            session(connection)
    finally:
        proxy.fault("clear")
    assert refused.value.sqlstate == "08000"
    assert classify(refused.value) is Failure.SATURATED
    connection.discard()
    session(connection)


@PROXY_ROUTE
def test_too_many_clients_is_saturation(database: TestDatabase) -> None:
    proxy = database.proxy
    assert proxy is not None
    proxy.fault("refuse-clients")
    try:
        failure, words = refusal(database)
    finally:
        proxy.fault("clear")
    assert failure is Failure.SATURATED
    assert "maximum number of client connections" in words


@PROXY_ROUTE
def test_a_fail_over_is_felt_in_a_statement_only(database: TestDatabase, connection: Database) -> None:
    proxy = database.proxy
    assert proxy is not None
    first = session(connection)
    proxy.fail_over(outage=0.2)
    assert session(connection) == first, "it waited for the new writer"
    failed: list[psycopg.Error] = []

    def sleep() -> None:
        try:
            connection.fetch("SELECT pg_sleep(20), %s", b"{}")
        except psycopg.Error as error:
            failed.append(error)

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event = 'PgSleep'"
    with database.owner() as owner:
        while owner.execute(sleeping, (database.name,)).fetchone() == (0,):
            assert sleeper.is_alive()
        proxy.fail_over(outage=0.2)
        sleeper.join()
    assert [classify(error) for error in failed] == [Failure.UNAVAILABLE]
    connection.discard()
    assert session(connection) != first


@PROXY_ROUTE
def test_many_workers_share_few_connections(database: TestDatabase) -> None:
    """Where each would otherwise have one of its own."""
    workers = [Database(settings(database)) for _ in range(30)]
    assert len({session(worker) for worker in workers}) == 30
    mine = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND datname = %s"
    with database.owner() as owner:
        assert owner.execute(mine, (LOGIN.name, database.name)).fetchone() == (1,)
    for worker in workers:
        worker.discard()
