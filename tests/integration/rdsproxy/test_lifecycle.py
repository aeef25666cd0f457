"""The life of connections through a proxy: idle, killed, waiting, restarted under, shared by users and databases."""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest

from spillway.rdsproxy import wire
from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.database_login import DatabaseLogin, DatabaseRefused
from spillway.rdsproxy.settings import ProxySettings, RdsProxyError, Secret, Target
from spillway.rdsproxy.startup import MessageBuffer
from spillway.stack.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spillway.stack.postgres import StopMode
    from spillway.stack.processes import Processes

#: How long a condition may take to come true on a machine that has other things to do. Nothing asserts on it.
PATIENCE_S = 15.0
#: What a test waits out. Long enough that a busy machine does not mistake a pause for it.
SHORT_S = 0.6
MAX_CONNECTIONS = 20
BORROW_TIMEOUT = "Timed-out waiting to acquire database connection."
CUT = (
    "The database connection closed. Reason: The client connection that borrowed this database connection from the "
    "connection pool was closed in the middle of a request."
)


@pytest.fixture(scope="module")
def server(processes: Processes) -> Iterator[PostgresServer]:
    """A server of this module's own: it is stopped, crashed and filled up."""
    settings = {"max_connections": MAX_CONNECTIONS, "autovacuum": "off"}
    with PostgresServer(processes, durable=False, settings=settings) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE ROLE alice LOGIN PASSWORD 'alice-password'")
            admin.execute("CREATE ROLE bob LOGIN PASSWORD 'bob-password'")
            admin.execute("CREATE DATABASE other")
        yield server


def eventually(condition: Callable[[], object], what: str, patience: float = PATIENCE_S) -> None:
    """Wait until something is the case."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.01)


@dataclass
class Proxied:
    """A running proxy with its server, and a thread for everything a test does not wait for."""

    proxy: BackgroundProxy
    server: PostgresServer
    threads: ThreadPoolExecutor
    stack: ExitStack
    patience: float = PATIENCE_S

    def connect(self, user: str | None = None, password: str | None = None, **arguments: Any) -> Any:
        """A client; it is closed with the test."""
        database = arguments.pop("database", None)
        dsn = self.proxy.dsn(user, password, database)
        arguments = {"autocommit": True, "prepare_threshold": None} | arguments
        client = psycopg.connect(dsn, **arguments)
        self.stack.callback(client.close)
        return client

    def later(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.threads.submit(call, *arguments)

    def metric(self, name: str) -> float:
        return self.proxy.metrics[name]

    def waits(self, clients: int = 1) -> None:
        """Wait until so many clients wait for a database connection."""
        eventually(lambda: self.proxy.snapshot().waiting == clients, f"{clients} clients wait", self.patience)

    def borrowed(self, connections: int) -> None:
        """Wait until so many database connections are lent."""
        eventually(
            lambda: self.metric("DatabaseConnectionsCurrentlyBorrowed") == connections,
            f"{connections} are borrowed",
            self.patience,
        )

    def recovers(self, size: int) -> None:
        """The pool can lend all its connections again, and each works."""
        self.borrowed(0)
        clients = [self.connect() for _ in range(size)]
        for client in clients:
            client.execute("BEGIN")
        assert len({pid(client) for client in clients}) == size
        assert self.metric("DatabaseConnections") == size
        assert self.metric("DatabaseConnectionsCurrentlyBorrowed") == size
        for client in clients:
            client.execute("COMMIT")
        self.borrowed(0)

    @contextmanager
    def all_busy(self, connections: int) -> Iterator[list[Any]]:
        """So many clients in a transaction; the transactions end with the block."""
        clients = [self.connect() for _ in range(connections)]
        for client in clients:
            client.execute("BEGIN")
        yield clients
        for client in clients:
            client.execute("COMMIT")


class Start(Protocol):
    def __call__(self, **settings: Any) -> Proxied: ...


@pytest.fixture
def start(server: PostgresServer) -> Iterator[Start]:
    """Starts proxies in front of the server; it runs again afterwards whatever the test did to it."""
    with ExitStack() as stack:
        stack.callback(server.start)
        threads = stack.enter_context(ThreadPoolExecutor(16))

        def start(**settings: Any) -> Proxied:
            arguments = {"target": Target.parse(server.dsn()), "listen_port": 0, "max_connections": 2, "tls": False}
            proxy = stack.enter_context(BackgroundProxy(ProxySettings(**(arguments | settings)), admin_port=None))
            return Proxied(proxy, server, threads, stack)

        yield start


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "spillway.rdsproxy"):
        yield caplog


def pid(client: Any) -> int:
    row = client.execute("SELECT pg_backend_pid()").fetchone()
    return int(row[0])


def pids(client: Any) -> set[int]:
    """All backends of the server."""
    return {row[0] for row in client.execute("SELECT pid FROM pg_stat_activity")}


def one(client: Any, statement: str) -> Any:
    return client.execute(statement).fetchone()[0]


def is_cut(client: Any) -> bool:
    """Whether the proxy has ended a client's connection; the client must have nothing under way."""
    try:
        client.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


# ── idle and old clients ─────────────────────────────────────────────────────────────────────────────────────────────


def test_idle_clients_are_closed_and_busy_ones_are_not(start: Start, log: pytest.LogCaptureFixture) -> None:
    proxied = start(idle_client_timeout=SHORT_S)
    idle, busy = proxied.connect(), proxied.connect()
    answer = proxied.later(one, busy, "SELECT 'done' FROM pg_sleep(3)")
    eventually(lambda: proxied.metric("ClientConnections") == 1, "the idle client is closed")
    assert not answer.done(), "the busy client was closed, or the machine slept for seconds"
    assert answer.result() == "done"
    assert is_cut(idle)
    assert "The client connection is closed by the proxy: it was idle for 0.6 seconds." in log.text
    assert proxied.metric("ClientConnectionsClosed") >= 1


def test_a_client_that_waits_for_a_connection_is_not_idle(start: Start) -> None:
    proxied = start(idle_client_timeout=SHORT_S, max_connections=1)
    busy, waiter = proxied.connect(), proxied.connect()
    running = proxied.later(busy.execute, "SELECT pg_sleep(2.5)")
    proxied.borrowed(1)
    answer = proxied.later(one, waiter, "SELECT 'served'")
    running.result()
    assert answer.result() == "served"


def test_a_client_that_is_idle_in_a_transaction_is_idle_and_its_connection_is_destroyed(
    start: Start, server: PostgresServer
) -> None:
    proxied = start(idle_client_timeout=SHORT_S)
    client = proxied.connect()
    client.execute("BEGIN")
    backend = pid(client)
    eventually(lambda: proxied.metric("ClientConnections") == 0, "the client is closed")
    assert is_cut(client)
    proxied.borrowed(0)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        eventually(lambda: backend not in pids(admin), "its database connection is gone")


def test_clients_are_closed_when_they_are_old_but_not_in_the_middle_of_a_statement(
    start: Start, log: pytest.LogCaptureFixture
) -> None:
    proxied = start(client_lifetime=SHORT_S)
    client = proxied.connect()
    assert one(client, "SELECT 'done' FROM pg_sleep(1.5)") == "done"
    eventually(lambda: is_cut(client), "it is closed although it is never idle for long")
    assert "The client connection is closed by the proxy: it is 0.6 seconds old." in log.text


# ── clients that vanish ──────────────────────────────────────────────────────────────────────────────────────────────


def vanish(client: Any, how: str) -> None:
    """Close a client's socket under it, without PostgreSQL's goodbye."""
    descriptor = client.pgconn.socket
    null = os.open(os.devnull, os.O_RDWR)
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        if how == "RST":
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.dup2(null, descriptor)
    os.close(null)


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("doing", ["statement", "transaction", "statement in a transaction"])
def test_a_client_that_vanishes_takes_its_database_connection_along(
    start: Start, log: pytest.LogCaptureFixture, how: str, doing: str
) -> None:
    proxied = start()
    client = proxied.connect()
    if "transaction" in doing:
        client.execute("BEGIN")
    if "statement" in doing:
        client.pgconn.send_query(b"SELECT pg_sleep(5)")
    proxied.borrowed(1)
    before = proxied.metric("DatabaseConnections")
    vanish(client, how)
    proxied.borrowed(0)
    assert proxied.metric("DatabaseConnections") == before - 1
    assert CUT in log.text
    proxied.recovers(2)


def test_a_client_that_says_goodbye_in_a_transaction_takes_its_database_connection_along(
    start: Start, log: pytest.LogCaptureFixture
) -> None:
    proxied = start()
    client = proxied.connect()
    client.execute("CREATE TABLE IF NOT EXISTS left_behind (a int)")
    client.execute("BEGIN; INSERT INTO left_behind VALUES (1)")
    client.close()
    proxied.borrowed(0)
    assert CUT in log.text
    proxied.recovers(2)
    assert one(proxied.connect(), "SELECT count(*) FROM left_behind") == 0


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_vanishes_while_it_waits_costs_nothing(
    start: Start, log: pytest.LogCaptureFixture, how: str
) -> None:
    proxied = start(max_connections=1)
    proxied.patience = 4.0
    waiter, next_one = proxied.connect(), proxied.connect()
    with proxied.all_busy(1) as (busy,):
        backend = pid(busy)
        waiter.pgconn.send_query(b"SELECT 1")
        proxied.waits(1)
        behind = proxied.later(pid, next_one)
        proxied.waits(2)
        vanish(waiter, how)
        proxied.waits(1)
    assert behind.result() == backend
    assert "database connection closed" not in log.text


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_vanishes_while_its_connection_is_being_prepared(
    start: Start, log: pytest.LogCaptureFixture, how: str
) -> None:
    proxied = start(max_connections=1)
    proxied.patience = 4.0
    backend = pid(proxied.connect())
    client = proxied.connect(application_name="prepares")
    os.kill(backend, signal.SIGSTOP)  # it will not answer what makes it ready for another application_name
    try:
        client.pgconn.send_query(b"SELECT 1")
        proxied.borrowed(1)
        vanish(client, how)
        proxied.borrowed(0)
    finally:
        os.kill(backend, signal.SIGCONT)
    assert CUT in log.text
    assert pid(proxied.connect()) != backend
    proxied.recovers(1)


def test_a_client_that_vanishes_while_its_parameters_are_looked_up(start: Start) -> None:
    proxied = start(max_connections=1)
    proxied.patience = 4.0
    with proxied.all_busy(1):
        starting = psycopg.pq.PGconn.connect_start(f"{proxied.proxy.dsn()} client_encoding=latin1".encode())
        while starting.connect_poll() != psycopg.pq.PollingStatus.OK and not proxied.proxy.snapshot().waiting:
            time.sleep(0.01)
        proxied.waits(1)
        starting.finish()
        proxied.waits(0)
    proxied.recovers(1)


# ── the database restarts ────────────────────────────────────────────────────────────────────────────────────────────

MODES = ("fast", "immediate")


@pytest.mark.parametrize("mode", MODES)
def test_idle_clients_survive_a_restart_and_wait_for_the_new_writer(
    start: Start, server: PostgresServer, mode: StopMode
) -> None:
    proxied = start()
    clients = [proxied.connect() for _ in range(3)]
    before = {pid(client) for client in clients}
    server.stop(mode)
    eventually(lambda: proxied.metric("DatabaseConnections") == 0, "the proxy sees the end")
    answers = [proxied.later(pid, client) for client in clients]
    proxied.waits(3)
    eventually(lambda: proxied.metric("AvailabilityPercentage") == 0, "the proxy cannot reach the database")
    assert not any(answer.done() for answer in answers)
    server.start()
    after = {answer.result() for answer in answers}
    assert not after & before
    assert proxied.metric("AvailabilityPercentage") == 100
    assert proxied.metric("ClientConnectionsClosed") == 0
    proxied.recovers(2)


@pytest.mark.parametrize("mode", MODES)
def test_a_restart_cuts_clients_in_a_transaction_in_a_statement_and_pinned(
    start: Start, server: PostgresServer, mode: StopMode
) -> None:
    proxied = start(max_connections=3)
    in_transaction, in_statement, pinned, idle = (proxied.connect() for _ in range(4))
    in_transaction.execute("BEGIN")
    pinned.execute("SET work_mem = '5MB'")
    running = proxied.later(in_statement.execute, "SELECT pg_sleep(60)")
    proxied.borrowed(3)
    server.restart(mode)
    with pytest.raises(psycopg.OperationalError):
        running.result()
    assert is_cut(in_transaction)
    assert is_cut(pinned)
    assert one(idle, "SELECT 'kept'") == "kept"
    assert proxied.metric("DatabaseConnectionsCurrentlySessionPinned") == 0
    eventually(lambda: proxied.metric("ClientConnections") == 1, "three are gone")
    proxied.recovers(3)


def test_a_database_that_stays_away_longer_than_the_borrow_timeout(start: Start, server: PostgresServer) -> None:
    proxied = start(connection_borrow_timeout=SHORT_S)
    clients = [proxied.connect(), proxied.connect()]
    server.stop()
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError) as failure:
        clients[0].execute("SELECT 1")
    assert time.monotonic() - began >= SHORT_S
    assert (failure.value.sqlstate, failure.value.diag.message_primary) == ("08000", BORROW_TIMEOUT)
    assert clients[0].closed
    assert proxied.metric("AvailabilityPercentage") == 0
    assert proxied.metric("DatabaseConnectionsSetupFailed") >= 1
    server.start()
    assert one(clients[1], "SELECT 'here again'") == "here again"
    assert proxied.metric("AvailabilityPercentage") == 100


def test_one_backend_that_is_terminated_takes_its_client_along_and_nobody_else(
    start: Start, server: PostgresServer
) -> None:
    proxied = start()
    with proxied.all_busy(2) as (first, _second):
        backend = pid(first)
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", (backend,))
        with pytest.raises(psycopg.OperationalError) as failure:
            first.execute("SELECT 1")
        assert failure.value.sqlstate in {"57P01", None}
        first.execute = lambda _: None  # it has no transaction to end any more
    proxied.recovers(2)


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_all_connections_busy_the_borrow_timeout_ends_the_wait(start: Start) -> None:
    proxied = start(connection_borrow_timeout=SHORT_S)
    waiter = proxied.connect()
    with proxied.all_busy(2):
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError) as failure:
            waiter.execute("SELECT 1")
        assert time.monotonic() - began >= SHORT_S
    assert (failure.value.sqlstate, failure.value.diag.message_primary) == ("08000", BORROW_TIMEOUT)
    assert failure.value.diag.severity == "FATAL"
    assert proxied.proxy.snapshot().borrow_timeouts == 1
    assert proxied.metric("DatabaseConnectionsBorrowLatency") > 0
    proxied.recovers(2)


def test_a_borrow_timeout_of_nothing_refuses_at_once(start: Start) -> None:
    proxied = start(connection_borrow_timeout=0, max_connections=1)
    client = proxied.connect()
    assert one(client, "SELECT 'there was one idle'") == "there was one idle"
    with proxied.all_busy(1), pytest.raises(psycopg.OperationalError, match=BORROW_TIMEOUT):
        client.execute("SELECT 1")


def test_who_came_first_is_served_first(start: Start) -> None:
    proxied = start(max_connections=1)
    clients = [proxied.connect() for _ in range(6)]
    with proxied.all_busy(1):
        answers = []
        for number, client in enumerate(clients, 1):
            answers.append(proxied.later(one, client, "SELECT clock_timestamp()"))
            proxied.waits(number)
    times = [answer.result() for answer in answers]
    assert times == sorted(times)


# ── how many ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("percent", "size"), [(100, 20), (50, 10), (33, 6), (1, 1)])
def test_the_pool_is_a_percentage_of_the_servers_connections(start: Start, percent: int, size: int) -> None:
    proxied = start(max_connections=None, max_connections_percent=percent, max_idle_connections_percent=0)
    assert proxied.metric("MaxDatabaseConnectionsAllowed") == size


@contextmanager
def full(server: PostgresServer) -> Iterator[list[psycopg.Connection[Any]]]:
    """All connections that the server allows are taken by others."""
    taken = []
    try:
        while True:
            try:
                taken.append(psycopg.connect(server.dsn()))
            except psycopg.OperationalError as error:
                if "sorry, too many clients already" not in str(error):
                    raise
                break
        yield taken
    finally:
        for connection in taken:
            connection.close()


def test_a_full_server_is_asked_again_until_it_has_room(start: Start, server: PostgresServer) -> None:
    proxied = start()
    clients = [proxied.connect(), proxied.connect()]
    with full(server) as others:
        clients[0].execute("BEGIN")
        answer = proxied.later(one, clients[1], "SELECT 'served'")
        proxied.waits(1)
        eventually(lambda: proxied.metric("DatabaseConnectionsSetupFailed") >= 2, "the server refused twice")
        assert not answer.done()
        others.pop().close()
        assert answer.result() == "served"


def test_a_server_that_stays_full_ends_in_the_borrow_timeout(start: Start, server: PostgresServer) -> None:
    proxied = start(connection_borrow_timeout=SHORT_S)
    clients = [proxied.connect(), proxied.connect()]
    with full(server):
        clients[0].execute("BEGIN")
        with pytest.raises(psycopg.OperationalError) as failure:
            clients[1].execute("SELECT 1")
        assert failure.value.diag.message_primary == BORROW_TIMEOUT
        assert one(clients[0], "SELECT 'works'") == "works"


def test_surplus_idle_connections_are_closed_after_their_time(start: Start) -> None:
    proxied = start(max_connections=4, max_connections_percent=100, max_idle_connections_percent=25, idle_trim_after=1)
    with proxied.all_busy(4):
        assert proxied.metric("DatabaseConnections") == 4
    eventually(lambda: proxied.metric("DatabaseConnections") == 1, "three of four are closed")
    proxied.recovers(4)


# ── users and databases ──────────────────────────────────────────────────────────────────────────────────────────────

ALICE = Secret(username="alice", password="alice-password")
CAROL = Secret(username="carol", password="carol-password", database_username="bob", database_password="bob-password")
WHO = "SELECT session_user || '@' || current_database()"


def test_users_and_databases_share_a_pool_and_never_a_connection(start: Start) -> None:
    proxied = start(max_connections=1, secrets=(ALICE, CAROL))
    clients = {
        "postgres@postgres": proxied.connect(),
        "alice@postgres": proxied.connect("alice", "alice-password"),
        "bob@postgres": proxied.connect("carol", "carol-password"),
        "alice@other": proxied.connect("alice", "alice-password", database="other"),
    }
    for _ in range(3):
        for expected, client in clients.items():
            assert one(client, WHO) == expected
            assert proxied.metric("DatabaseConnections") == 1


def test_one_users_trouble_is_not_everybodys(start: Start, server: PostgresServer) -> None:
    """A role with too many connections (53300) is retried, while others go on with the connections they have."""
    proxied = start(secrets=(ALICE,))
    alice, own = proxied.connect("alice", "alice-password"), proxied.connect()
    assert one(alice, WHO) == "alice@postgres"
    assert one(own, WHO) == "postgres@postgres"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("ALTER ROLE alice CONNECTION LIMIT 0")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'alice'")
        try:
            eventually(lambda: proxied.metric("DatabaseConnections") == 1, "alice has none left")
            answer = proxied.later(one, alice, WHO)
            proxied.waits(1)
            eventually(lambda: proxied.metric("DatabaseConnectionsSetupFailed") >= 1, "alice is refused")
            for _ in range(10):
                assert one(own, WHO) == "postgres@postgres"
            assert not answer.done()
        finally:
            admin.execute("ALTER ROLE alice CONNECTION LIMIT -1")
    assert answer.result() == "alice@postgres"


def test_a_role_without_a_secret_is_told_so(start: Start) -> None:
    text = "This RDS proxy has no credentials for the role bob. Check the credentials for this role and try again."
    with pytest.raises(psycopg.OperationalError, match=text):
        start().connect("bob", "bob-password")


def test_a_secret_that_the_database_does_not_take(start: Start) -> None:
    proxied = start(secrets=(Secret(username="ghost", password="boo"),))
    text = 'Request returned an error: password authentication failed for user "ghost"'
    with pytest.raises(psycopg.OperationalError, match=text):
        proxied.connect("ghost", "boo")
    assert proxied.metric("AvailabilityPercentage") == 100


def test_a_database_that_is_not_there(start: Start) -> None:
    proxied = start()
    with pytest.raises(psycopg.OperationalError, match='Request returned an error: database "nowhere" does not exist'):
        proxied.connect(database="nowhere")
    proxied.recovers(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": "wrong"}, "refuses postgres: password authentication failed"),
        ({"database": "nowhere"}, 'refuses postgres: database "nowhere" does not exist'),
        ({"port": 1}, "cannot be reached"),
    ],
)
def test_a_target_that_does_not_do_is_said_at_the_start(
    server: PostgresServer, change: dict[str, Any], message: str
) -> None:
    target = Target.parse(server.dsn())
    fields = {name: getattr(target, name) for name in ("host", "port", "database", "user", "password")}
    settings = ProxySettings(target=Target(**(fields | change)), listen_port=0, tls=False)
    with pytest.raises(RdsProxyError, match=message), BackgroundProxy(settings, admin_port=None):
        pass


# ── the initialization query and tracked parameters ──────────────────────────────────────────────────────────────────


def test_the_initialization_query_is_in_force_everywhere_and_pins_nobody(start: Start) -> None:
    proxied = start(max_connections=3, init_query="SET statement_timeout = '77s'; SET lock_timeout = '5s'")
    with proxied.all_busy(3) as clients:
        assert [one(client, "SHOW statement_timeout") for client in clients] == ["77s"] * 3
        assert one(clients[0], "SHOW lock_timeout") == "5s"
    proxied.proxy.assert_no_pins()
    proxied.borrowed(0)


def test_an_initialization_query_that_fails_is_said_at_the_start(server: PostgresServer) -> None:
    settings = ProxySettings(
        target=Target.parse(server.dsn()), listen_port=0, tls=False, init_query="SET no_such_setting = 1"
    )
    with pytest.raises(RdsProxyError, match='unrecognized configuration parameter "no_such_setting"'):
        BackgroundProxy(settings, admin_port=None).__enter__()


@pytest.mark.parametrize(
    ("name", "initial", "own"), [("search_path", "app", "pg_catalog"), ("TimeZone", "Asia/Tokyo", "Europe/Berlin")]
)
def test_the_initialization_query_stays_in_force_after_a_client_with_its_own_parameters(
    start: Start, name: str, initial: str, own: str
) -> None:
    proxied = start(max_connections=1, init_query=f"SET {name} = '{initial}'")
    plain = proxied.connect()
    assert one(plain, f"SHOW {name}") == initial
    with RawClient(proxied.proxy, proxied.server, **{name: own}) as other:
        assert other.value(f"SHOW {name}") == own
    assert one(plain, f"SHOW {name}") == initial


class RawClient:
    """A client that may name any start-up parameter; libpq knows some only. Through a proxy, or past it."""

    def __init__(self, where: BackgroundProxy | PostgresServer, server: PostgresServer, **parameters: str) -> None:
        self.socket = socket.create_connection((where.host, where.port), timeout=60)
        self.parameters: dict[str, str] = {}
        login = DatabaseLogin(server.superuser, server.password, "postgres", parameters)
        try:
            self.socket.sendall(login.start())
            while not login.done:
                self.socket.sendall(login.feed(self.received()))
        except BaseException:
            self.socket.close()
            raise
        self.parameters = login.parameter_status

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.sendall(wire.TERMINATE_MESSAGE)
        self.socket.close()

    def received(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "the connection ended"
        return data

    def value(self, statement: str) -> str:
        """What a simple query answers in its first column."""
        messages = MessageBuffer(1 << 20)
        self.socket.sendall(wire.query(statement))
        value = ""
        while True:
            while (message := messages.next()) is None:
                messages.feed(self.received())
            kind, body = message
            assert kind != wire.ERROR, body
            if kind == wire.DATA_ROW:
                value = wire.first_column(body)
            if kind == wire.READY:
                return value


TRACKED_VALUES = {
    "application_name": ("one", "two's \\ name"),
    "client_encoding": ("LATIN1", "UTF8"),
    "DateStyle": ("German, DMY", "SQL, MDY"),
    "TimeZone": ("Europe/Berlin", "Asia/Tokyo"),
    "extra_float_digits": ("3", "-2"),
    "search_path": ("app, public", "\"odd 'schema'\""),
}


def test_the_tracked_parameters_are_each_clients_own(start: Start, server: PostgresServer) -> None:
    """With one connection for all, in every order: those named are in force, the others at the role's defaults."""
    proxied = start(max_connections=1)
    with RawClient(server, server) as direct:
        defaults = {name: direct.value(f"SHOW {name}") for name in TRACKED_VALUES}
    choices: list[dict[str, str]] = [{name: values[0] for name, values in TRACKED_VALUES.items()}, {}]
    choices += [{name: values[1]} for name, values in TRACKED_VALUES.items()]
    with ExitStack() as stack:
        clients = [(own, stack.enter_context(RawClient(proxied.proxy, server, **own))) for own in choices]
        for own, client in [*clients, *reversed(clients), *clients[::2], *clients[1::2]]:
            expected = defaults | own
            assert {name: client.value(f"SHOW {name}") for name in TRACKED_VALUES} == expected
    assert proxied.metric("DatabaseConnectionsSetupSucceeded") == 1
    proxied.proxy.assert_no_pins()


def test_the_roles_own_defaults_come_back(start: Start, server: PostgresServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("ALTER ROLE alice SET TimeZone = 'Pacific/Auckland'; ALTER ROLE alice SET search_path = mine")
    proxied = start(max_connections=1, secrets=(ALICE,))
    plain = proxied.connect("alice", "alice-password")
    named = proxied.connect("alice", "alice-password", application_name="named")
    for _ in range(2):
        assert one(plain, "SELECT current_setting('TimeZone') || current_setting('search_path')") == (
            "Pacific/Aucklandmine"
        )
        assert one(named, "SHOW TimeZone") == "Pacific/Auckland"
        assert plain.info.parameter_status("TimeZone") == "Pacific/Auckland"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TimeZone", "Nowhere/Nothing"),
        ("DateStyle", "rubbish"),
        ("client_encoding", "EBCDIC"),
        ("extra_float_digits", "99"),
    ],
)
def test_a_wrong_value_is_refused_at_login_in_the_databases_words(
    start: Start, server: PostgresServer, name: str, value: str
) -> None:
    with pytest.raises(DatabaseRefused) as direct:
        RawClient(server, server, **{name: value})
    proxied = start(max_connections=1)
    with pytest.raises(DatabaseRefused) as refused:
        RawClient(proxied.proxy, server, **{name: value})
    assert refused.value.sqlstate == "XX000"
    assert refused.value.message == f"Request returned an error: {direct.value.message}."
    assert proxied.metric("ClientConnections") == 0
    proxied.recovers(1)


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"application_name": "somebody"},
        {name: values[0] for name, values in TRACKED_VALUES.items()},
        {name: values[1] for name, values in TRACKED_VALUES.items()},
    ],
)
def test_the_login_reports_what_a_direct_connection_reports(
    start: Start, server: PostgresServer, own: dict[str, str]
) -> None:
    with RawClient(server, server, **own) as direct:
        expected = direct.parameters
    assert {"server_version", "DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings"} <= set(
        expected
    )
    proxied = start(max_connections=1)
    for _ in range(2):  # asked of the database, then remembered
        with RawClient(proxied.proxy, server, **own) as client:
            assert client.parameters == expected
        with RawClient(proxied.proxy, server, TimeZone="Asia/Tokyo"):
            pass


def test_a_parameter_in_other_letters_after_a_client_with_another_encoding(
    start: Start, server: PostgresServer
) -> None:
    proxied = start(max_connections=1)
    with (
        RawClient(proxied.proxy, server, client_encoding="LATIN1") as first,
        RawClient(proxied.proxy, server, search_path="schöma") as second,
    ):
        assert first.value("SELECT 1") == "1"
        assert second.value("SHOW search_path") == "schöma"
