"""Every rule about pinning through a running proxy, and what must not pin. The proxy is the pytest plugin's own."""
# pins: allow-file the statements are there to pin

from __future__ import annotations

import logging
import re
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.rdsproxy import pytest_plugin
from spillway.rdsproxy.rules import RULES
from tests.conftest import drop_database, new_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spillway.rdsproxy.background import BackgroundProxy
    from spillway.stack.postgres import PostgresServer

pytestmark = pytest.mark.rds_proxy(max_connections=2, tls=False, allow_pins=True)
PATIENCE_S = 15.0
#: Here, where another fixture of tests/conftest.py has its name.
rds_proxy = pytest_plugin.rds_proxy


@pytest.fixture(scope="module")
def rds_proxy_target(postgres: PostgresServer) -> Iterator[str]:
    """One database for the module; what a test creates stays in its transaction or its own session."""
    name = new_database(postgres)
    with psycopg.connect(postgres.dsn(name), autocommit=True) as admin:
        admin.execute("CREATE SEQUENCE numbers; CREATE TABLE orders (order_id int PRIMARY KEY, customer text)")
        admin.execute("CREATE TABLE numbered (n int DEFAULT nextval('numbers'), customer text)")
        admin.execute("CREATE FUNCTION draw() RETURNS bigint LANGUAGE sql AS 'SELECT nextval(''numbers'')'")
    yield postgres.dsn(name)
    drop_database(postgres, name)


@pytest.fixture
def client(rds_proxy: BackgroundProxy) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:

        def connect(**arguments: Any) -> Any:
            arguments = {"autocommit": True, "prepare_threshold": None} | arguments
            connection = psycopg.connect(rds_proxy.dsn(), **arguments)
            stack.callback(connection.close)
            return connection

        yield connect


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.01)


def pid(connection: Any) -> int:
    return int(connection.execute("SELECT pg_backend_pid()").fetchone()[0])


def run(connection: Any, statement: str) -> None:
    """Run it; what PostgreSQL says about it does not matter, since the proxy judges the text."""
    try:
        connection.execute(statement)
    except psycopg.Error:
        assert not connection.closed


def longer_than(size: int) -> str:
    text = "SELECT '"
    return text + "x" * (size - len(text)) + "'"


PINS = [
    ("set", "SET search_path = app"),
    ("set", "SET SESSION work_mem = '5MB'"),
    ("set", "SET TIME ZONE 'UTC'"),
    ("set", "RESET work_mem"),
    ("set", "RESET ALL"),
    ("set", "SELECT 1; SET work_mem = '5MB'"),
    ("set-config", "SELECT set_config('app.tenant', 'acme', false)"),
    ("prepare", "PREPARE by_id AS SELECT 1"),
    ("prepare", "EXECUTE by_id"),
    ("prepare", "DEALLOCATE ALL"),
    ("discard", "DISCARD ALL"),
    ("discard", "DISCARD PLANS"),
    ("temporary-object", "CREATE TEMP TABLE batch (id int)"),
    ("temporary-object", "CREATE TEMPORARY VIEW seen AS SELECT 1"),
    ("temporary-object", "CREATE TEMP SEQUENCE own_numbers"),
    ("temporary-object", "CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT 1"),
    ("temporary-object", "SELECT 1 AS a INTO TEMP copied"),
    ("cursor", "DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
    ("listen", "LISTEN orders"),
    ("load", "LOAD 'auto_explain'"),
    ("sequence", "SELECT nextval('numbers')"),
    ("sequence", "SELECT setval('numbers', 7)"),
    ("session-lock", "SELECT pg_advisory_lock(42)"),
    ("session-lock", "SELECT pg_advisory_lock_shared(42)"),
    ("session-lock", "SELECT pg_try_advisory_lock(42)"),
    ("session-lock", "SELECT pg_try_advisory_lock_shared(42)"),
    ("session-lock", "SELECT pg_advisory_unlock(42)"),
    ("session-lock", "SELECT pg_advisory_unlock_all()"),
    ("statement-size", longer_than(16 * 1024)),
    ("unparseable", "SELEC 1"),
]
UNSETTLED = [
    ("set-local", "SET LOCAL lock_timeout = '2s'"),
    ("set-local", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    ("set-local", "SET CONSTRAINTS ALL DEFERRED"),
    ("set-config-local", "SELECT set_config('app.tenant', 'acme', true)"),
    ("pg-temp", "CREATE FUNCTION pg_temp.one() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    ("unlisten", "UNLISTEN *"),
]
FREE = [
    "SELECT 1",
    "BEGIN ISOLATION LEVEL REPEATABLE READ; COMMIT",
    "SELECT pg_advisory_xact_lock(42)",
    "SELECT pg_advisory_xact_lock_shared(42)",
    "SELECT pg_try_advisory_xact_lock(42)",
    "SELECT pg_try_advisory_xact_lock_shared(42)",
    "SELECT draw()",
    "INSERT INTO numbered (customer) VALUES ('a') RETURNING n",
    "SELECT current_setting('search_path')",
    "SHOW search_path",
    "NOTIFY orders",
    "DO $$ BEGIN PERFORM set_config('work_mem', '5MB', true); END $$",
    "SELECT 'SET search_path = app; LISTEN orders' -- nextval('numbers')",
    "COPY orders TO STDOUT",
    "ALTER ROLE CURRENT_USER SET work_mem = '4MB'",
    longer_than(16 * 1024 - 1)[:-1] + "'",
    "SELECT * FROM nowhere",
]  # fmt: skip
IDS = [f"{rule}: {statement[:40]}" for rule, statement in PINS]
UNSETTLED_IDS = [f"{rule}: {statement[:40]}" for rule, statement in UNSETTLED]


@pytest.mark.parametrize(("rule", "statement"), PINS + UNSETTLED, ids=IDS + UNSETTLED_IDS)
def test_what_pins_keeps_the_session_on_its_connection_until_it_ends(
    rds_proxy: BackgroundProxy, client: Any, caplog: pytest.LogCaptureFixture, rule: str, statement: str
) -> None:
    pinned, other = client(), client()
    with caplog.at_level(logging.WARNING, "spillway.rdsproxy"):
        run(pinned, statement)
        run(pinned, statement)
    backend = pid(pinned)
    other.execute("BEGIN")  # takes the pool's other connection
    assert pid(other) != backend
    other.execute("COMMIT")
    assert {pid(pinned) for _ in range(3)} == {backend}
    assert {pid(other) for _ in range(3)} & {backend} == set()

    (record,) = rds_proxy.pins
    assert (record.rule, record.certainty) == (rule, RULES[rule].certainty)
    assert record.reason.startswith(RULES[rule].log)
    assert record.sql[:100] == statement[:100]
    assert rds_proxy.metrics["DatabaseConnectionsCurrentlySessionPinned"] == 1
    assert rds_proxy.metrics["DatabaseConnectionsCurrentlyBorrowed"] == 1
    lines = [one.getMessage() for one in caplog.records if "was pinned" in one.getMessage()]
    assert len(lines) == 1, "AWS logs a pin once for each session"
    assert re.search(
        r"The client session was pinned to the database connection \[dbConnection=\d+\] for the remainder of the "
        r"session\. The proxy can't reuse this connection until the session ends\. Reason: \S",
        lines[0],
    )
    assert f"[dbConnection={record.database_connection}]" in lines[0]

    pinned.close()
    eventually(lambda: rds_proxy.metrics["DatabaseConnectionsCurrentlySessionPinned"] == 0, "the pin ends")
    eventually(lambda: rds_proxy.metrics["DatabaseConnectionsCurrentlyBorrowed"] == 0, "nothing is borrowed")
    other.execute("BEGIN")
    fresh = client()
    fresh.execute("BEGIN")
    assert backend not in {pid(other), pid(fresh)}, "a pinned session's connection was lent again"


def shares(rds_proxy: BackgroundProxy, one: Any, other: Any) -> None:
    """Both clients run on one and the same database connection."""
    assert rds_proxy.metrics["DatabaseConnectionsCurrentlyBorrowed"] == 0
    assert pid(one) == pid(other) == pid(one)


@pytest.mark.rds_proxy(max_connections=1, allow_pins=False)
@pytest.mark.parametrize("statement", FREE, ids=[statement[:50] for statement in FREE])
def test_what_does_not_pin(rds_proxy: BackgroundProxy, client: Any, statement: str) -> None:
    one, other = client(), client()
    if statement.startswith("COPY"):
        with one.cursor().copy(statement) as copy:
            assert list(copy) == []
    else:
        run(one, statement)
    shares(rds_proxy, one, other)
    rds_proxy.assert_no_pins()


@pytest.mark.rds_proxy(max_connections=1, strict=False, allow_pins=False)
@pytest.mark.parametrize(("rule", "statement"), UNSETTLED, ids=UNSETTLED_IDS)
def test_what_a_lenient_proxy_does_not_take_for_a_pin(
    rds_proxy: BackgroundProxy, client: Any, rule: str, statement: str
) -> None:
    one, other = client(), client()
    run(one, statement)
    shares(rds_proxy, one, other)


@pytest.mark.rds_proxy(strict=False)
@pytest.mark.parametrize(("rule", "statement"), PINS, ids=IDS)
def test_what_pins_a_lenient_proxy_too(rds_proxy: BackgroundProxy, client: Any, rule: str, statement: str) -> None:
    run(client(), statement)
    assert [pin.rule for pin in rds_proxy.pins] == [rule]


@pytest.mark.parametrize("how", ["first in a transaction", "last in a transaction", "as a parameter's statement"])
def test_a_pin_holds_from_wherever_it_stands(rds_proxy: BackgroundProxy, client: Any, how: str) -> None:
    one = client()
    match how:
        case "first in a transaction":
            one.execute("BEGIN")
            one.execute("SELECT nextval('numbers')")
            one.execute("SELECT 1")
            one.execute("COMMIT")
        case "last in a transaction":
            one.execute("BEGIN")
            one.execute("SELECT 1")
            one.execute("SELECT nextval('numbers')")
            one.execute("ROLLBACK")
        case _:
            one.execute("SELECT nextval(%s::regclass)", ("numbers",))
    assert [pin.rule for pin in rds_proxy.pins] == ["sequence"]
    assert rds_proxy.metrics["DatabaseConnectionsCurrentlyBorrowed"] == 1


def test_a_named_statement_pins_a_strict_proxy(rds_proxy: BackgroundProxy, client: Any) -> None:
    one = client(prepare_threshold=0)
    one.execute("SELECT %s::int", (1,))
    assert [(pin.rule, pin.certainty) for pin in rds_proxy.pins] == [("named-statement", "unsettled")]
    assert rds_proxy.metrics["DatabaseConnectionsCurrentlySessionPinned"] == 1


@pytest.mark.rds_proxy(max_connections=1, strict=False, allow_pins=False)
def test_a_named_statement_moves_with_its_client_through_a_lenient_proxy(
    rds_proxy: BackgroundProxy, client: Any
) -> None:
    """Both name theirs alike: psycopg counts from zero in every connection."""
    one, other = client(prepare_threshold=0), client(prepare_threshold=0)
    for number in range(4):
        assert one.execute("SELECT %s::int + 1", (number,)).fetchone() == (number + 1,)
        assert other.execute("SELECT %s::int * 10", (number,)).fetchone() == (number * 10,)
    shares(rds_proxy, one, other)


@pytest.mark.parametrize("size", [16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 100_000, 1_000_000])
def test_the_size_that_pins_is_the_texts(rds_proxy: BackgroundProxy, client: Any, size: int) -> None:
    one = client()
    text = "SELECT '" + "x" * (size - 9) + "'"
    assert len(text) == size
    assert one.execute(text).fetchone() == ("x" * (size - 9),)
    assert [pin.rule for pin in rds_proxy.pins] == (["statement-size"] if size > 16 * 1024 else [])


@pytest.mark.rds_proxy(allow_pins=False)
def test_large_parameters_do_not_pin(rds_proxy: BackgroundProxy, client: Any) -> None:
    value = "x" * 1_000_000
    assert client().execute("SELECT %s::text", (value,)).fetchone() == (value,)
    assert rds_proxy.metrics["DatabaseConnectionsCurrentlyBorrowed"] == 0


@pytest.mark.rds_proxy(max_connections=1, connection_borrow_timeout=0.5)
def test_a_pinned_pool_is_an_exhausted_pool(rds_proxy: BackgroundProxy, client: Any) -> None:
    one, other = client(), client()
    one.execute("SET work_mem = '5MB'")
    with pytest.raises(psycopg.OperationalError, match="Timed-out waiting to acquire database connection"):
        other.execute("SELECT 1")
    one.close()
    assert client().execute("SHOW work_mem").fetchone() != ("5MB",)


def test_assert_no_pins_lists_what_pinned(rds_proxy: BackgroundProxy, client: Any) -> None:
    client().execute("SET work_mem = '5MB'")
    with pytest.raises(AssertionError, match=r"1 sessions were pinned:\n  set: .*\n    SET work_mem = '5MB'"):
        rds_proxy.assert_no_pins()
