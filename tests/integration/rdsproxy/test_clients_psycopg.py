"""psycopg 3 through the proxy: it works as without one, and what pins is what RDS Proxy's documentation says."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors

from tests.integration.rdsproxy.conftest import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.rdsproxy.conftest import ProxiedDatabase, StartProxy

KB, MB = 2**10, 2**20


@pytest.fixture
def connection(proxied: ProxiedDatabase) -> Iterator[psycopg.Connection[Any]]:
    """Through `proxied`, in autocommit mode, without prepared statements."""
    with proxied.connect() as opened:
        yield opened


@pytest.fixture
def things(connection: psycopg.Connection[Any]) -> str:
    connection.execute("CREATE TABLE things (id int PRIMARY KEY, body text)")
    return "things"


def value(connection: psycopg.Connection[Any], statement: str, parameters: Any = None) -> Any:
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return row[0]


# ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_statements_without_prepare_threshold_never_pin(proxied: ProxiedDatabase, text: str) -> None:
    with proxied.connect() as connection:
        for number in range(20):
            assert value(connection, "SELECT %s::int + 1", (number,)) == number + 1
            assert value(connection, "SELECT %s::text", (text,)) == text
            assert value(connection, "SELECT 'no parameters'") == "no parameters"
        assert connection.execute("SELECT 1; SELECT 2").nextset()
        assert connection.execute("SELECT %s::bytea", (b"\x00\xff",), binary=True).fetchall() == [(b"\x00\xff",)]
        proxied.never_pinned()


def test_the_default_threshold_pins_with_the_sixth_execution(proxied: ProxiedDatabase) -> None:
    statement = "SELECT %s::int * 2"
    with psycopg.connect(proxied.dsn, autocommit=True) as connection:
        for number in range(5):
            assert value(connection, statement, (number,)) == number * 2
        proxied.never_pinned()
        for number in range(15):
            assert value(connection, statement, (number,)) == number * 2
        proxied.pinned_by("named-statement")
        assert "* 2" in proxied.pins_sql()
        proxied.borrowed(1)
        assert proxied.metric("DatabaseConnectionsCurrentlySessionPinned") == 1
    proxied.borrowed(0)


def test_executemany_does_not_pin(proxied: ProxiedDatabase, connection: psycopg.Connection[Any], things: str) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO things VALUES (%s, %s)", [(number, str(number)) for number in range(500)])
        assert cursor.rowcount == 500
        cursor.executemany("SELECT body FROM things WHERE id = %s", [(3,), (499,)], returning=True)
        assert [found.fetchall() for found in cursor.results()] == [[("3",)], [("499",)]]
    proxied.never_pinned()


@pytest.mark.parametrize(("size", "pins"), [(15 * KB, False), (17 * KB, True)])
def test_only_the_text_of_a_statement_counts_to_16_kb(proxied: ProxiedDatabase, size: int, pins: bool) -> None:
    """ClientCursor writes the parameters into the text, as psycopg2 does."""
    with proxied.connect(cursor_factory=psycopg.ClientCursor) as connection:
        assert value(connection, "SELECT length(%s)", ("x" * size,)) == size
        if pins:
            proxied.pinned_by("statement-size")
        else:
            proxied.never_pinned()


def test_a_bind_parameter_of_6_mb_does_not_pin(proxied: ProxiedDatabase) -> None:
    content = "0123456789abcdef" * (6 * MB // 16)
    with proxied.connect() as connection:
        digest = hashlib.sha256(content.encode()).hexdigest()
        assert value(connection, "SELECT encode(sha256(%s), 'hex')", (content.encode(),)) == digest
        assert value(connection, "SELECT %s::text", (content,)) == content
        proxied.never_pinned()


def test_results_of_3_mb(proxied: ProxiedDatabase, connection: psycopg.Connection[Any]) -> None:
    assert value(connection, "SELECT repeat('x', %s)", (3 * MB,)) == "x" * 3 * MB
    rows = connection.execute("SELECT n, repeat('y', 1000) FROM generate_series(1, 3000) AS n").fetchall()
    assert rows == [(number, "y" * 1000) for number in range(1, 3001)]
    proxied.never_pinned()


def test_notices_reach_their_handler(proxied: ProxiedDatabase, connection: psycopg.Connection[Any], text: str) -> None:
    heard: list[str | None] = []
    connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
    connection.execute(
        "CREATE FUNCTION tell(what text) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''%'', what; END'"
    )
    connection.execute("SELECT tell(%s)", (text,))
    connection.execute("DO $$ BEGIN RAISE WARNING 'once'; RAISE NOTICE 'twice'; END $$")
    assert heard == [text, "once", "twice"]
    proxied.never_pinned()


def test_unnamed_statements_prepared_now_and_run_later(start_proxy: StartProxy) -> None:
    """As some drivers do. In between, the only database connection has another client's unnamed statement."""
    proxied = start_proxy(max_connections=1)
    with proxied.connect() as first, proxied.connect() as second:
        for client, text in ((first, b"SELECT $1::int + 100"), (second, b"SELECT 'second', $1::text")):
            assert client.pgconn.prepare(b"", text).status == psycopg.pq.ExecStatus.COMMAND_OK
        for number in (b"1", b"2"):
            answer = first.pgconn.exec_prepared(b"", [number])
            assert (answer.nfields, answer.get_value(0, 0)) == (1, b"10" + number)
            answer = second.pgconn.exec_prepared(b"", [number])
            assert (answer.nfields, answer.get_value(0, 0), answer.get_value(0, 1)) == (2, b"second", number)
        assert value(second, "SELECT 3") == 3
        assert first.pgconn.exec_prepared(b"", [b"4"]).get_value(0, 0) == b"104"
        proxied.never_pinned()


# ── transactions and errors ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_database_connection_is_borrowed_for_a_transaction(proxied: ProxiedDatabase, things: str) -> None:
    with proxied.connect(autocommit=False) as connection:
        proxied.borrowed(0)
        connection.execute("INSERT INTO things VALUES (1, 'rolled back')")
        proxied.borrowed(1)
        connection.rollback()
        proxied.borrowed(0)
        connection.execute("INSERT INTO things VALUES (2, 'kept')")
        connection.commit()
        with connection.transaction():
            connection.execute("INSERT INTO things VALUES (%s, %s)", (3, "kept"))
            with pytest.raises(errors.UniqueViolation), connection.transaction():
                connection.execute("INSERT INTO things VALUES (%s, %s)", (3, "undone to the savepoint"))
            connection.execute("INSERT INTO things VALUES (%s, %s)", (4, "kept"))
        assert connection.execute("SELECT id, body FROM things ORDER BY id").fetchall() == [
            (2, "kept"),
            (3, "kept"),
            (4, "kept"),
        ]
        connection.commit()
        proxied.never_pinned()


def test_begin_with_options_does_not_pin(proxied: ProxiedDatabase, things: str) -> None:
    with proxied.connect(autocommit=False) as connection:
        connection.read_only = True
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        assert value(connection, "SELECT current_setting('transaction_isolation')") == "serializable"
        with pytest.raises(errors.ReadOnlySqlTransaction):
            connection.execute("INSERT INTO things VALUES (1, 'x')")
        connection.rollback()
        connection.read_only = connection.isolation_level = None
        assert value(connection, "SELECT current_setting('transaction_isolation')") == "read committed"
        connection.execute("INSERT INTO things VALUES (1, 'x')")
        connection.commit()
        proxied.never_pinned()


@pytest.mark.parametrize("parameters", [None, ()], ids=["simple", "extended"])
def test_errors_are_the_databases_and_leave_the_connection_usable(
    proxied: ProxiedDatabase, things: str, parameters: Any
) -> None:
    with proxied.connect(autocommit=False) as connection:
        for _ in range(3):
            connection.execute("INSERT INTO things VALUES (1, 'one')", parameters)
            with pytest.raises(errors.UniqueViolation) as caught:
                connection.execute("INSERT INTO things VALUES (1, 'two')", parameters)
            assert caught.value.diag.constraint_name == "things_pkey"
            proxied.borrowed(1)
            with pytest.raises(errors.InFailedSqlTransaction):
                connection.execute("SELECT 1", parameters)
            connection.rollback()
            assert value(connection, "SELECT count(*) FROM things", parameters) == 0
            connection.commit()
            proxied.borrowed(0)
    with proxied.connect() as connection:
        for _ in range(3):
            with pytest.raises(errors.UndefinedTable):
                connection.execute("SELECT 1 FROM nothing", parameters)
            with pytest.raises(errors.DivisionByZero):
                connection.execute("SELECT 1 / 0", parameters)
            assert value(connection, "SELECT 1", parameters) == 1
    proxied.never_pinned()


def test_a_text_that_cannot_be_parsed_pins(proxied: ProxiedDatabase) -> None:
    with proxied.connect() as connection:
        with pytest.raises(errors.SyntaxError):
            connection.execute("SELEC 1")
        assert value(connection, "SELECT 1") == 1
        proxied.pinned_by("unparseable")


# ── COPY ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_copy_in_and_out_as_text(proxied: ProxiedDatabase, things: str, text: str) -> None:
    rows = [(number, f"{number} {text} \t\\ \n") for number in range(1000)]
    with proxied.connect() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY things FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        assert cursor.rowcount == 1000
        with cursor.copy("COPY (SELECT * FROM things ORDER BY id) TO STDOUT") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows()) == rows
        proxied.never_pinned()


def test_copy_of_5_mb_as_binary(proxied: ProxiedDatabase, things: str) -> None:
    rows = [(number, f"{number:010}" * 100) for number in range(5 * MB // 1000)]
    with proxied.connect() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY things FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            for row in rows:
                copy.write_row(row)
        with cursor.copy("COPY (SELECT * FROM things ORDER BY id) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows()) == rows
        proxied.never_pinned()


def write_and_raise(connection: psycopg.Connection[Any]) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY things FROM STDIN") as copy:
        copy.write_row((1, "x"))
        raise RuntimeError("changed my mind")


def test_copy_that_the_client_breaks_off(proxied: ProxiedDatabase, things: str) -> None:
    with proxied.connect() as connection:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="changed my mind"):
                write_and_raise(connection)
            assert value(connection, "SELECT count(*) FROM things") == 0
            proxied.never_pinned()


def write_a_bad_line_and_5_mb_more(connection: psycopg.Connection[Any]) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY things FROM STDIN") as copy:
        copy.write("1\ttoo\tmany\tcolumns\n")
        for number in range(5 * MB // 1000):
            copy.write(f"{number}\t{'x' * 1000}\n")


def test_copy_that_the_database_refuses_while_megabytes_are_under_way(proxied: ProxiedDatabase, things: str) -> None:
    with proxied.connect(autocommit=False) as connection:
        with pytest.raises(errors.BadCopyFileFormat):
            write_a_bad_line_and_5_mb_more(connection)
        connection.rollback()
        assert value(connection, "SELECT count(*) FROM things") == 0
        connection.rollback()
        proxied.never_pinned()


def read_a_little_and_raise(connection: psycopg.Connection[Any]) -> None:
    statement = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 5000)) TO STDOUT"
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        assert bytes(copy.read()).startswith(b"xxx")
        raise RuntimeError("seen enough")


def test_copy_out_that_the_client_does_not_read_to_its_end(proxied: ProxiedDatabase) -> None:
    """psycopg cancels such a COPY, which RDS Proxy ignores: the rest of the answer is read and thrown away."""
    with proxied.connect() as connection:
        with pytest.raises(RuntimeError, match="seen enough"):
            read_a_little_and_raise(connection)
        assert value(connection, "SELECT 1") == 1
        proxied.never_pinned()


# ── pipeline mode, cursors, notifications, cancel ───────────────────────────────────────────────────────────────────


def fail_in_a_pipeline(connection: psycopg.Connection[Any]) -> None:
    with connection.pipeline():
        connection.execute("INSERT INTO things VALUES (1, 'undone: a pipeline is one transaction')")
        connection.execute("SELECT 1 / %s", (0,))
        connection.execute("INSERT INTO things VALUES (2, 'skipped')")


def test_pipeline_mode_with_an_error_and_recovery(proxied: ProxiedDatabase, things: str) -> None:
    with proxied.connect() as connection:
        for _ in range(3):
            with connection.pipeline():
                cursors = [connection.execute("SELECT %s::int", (number,)) for number in range(50)]
                assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(50)]
            with pytest.raises(errors.DivisionByZero):
                fail_in_a_pipeline(connection)
            assert value(connection, "SELECT count(*) FROM things") == 0
            with connection.pipeline() as pipeline:
                with pytest.raises(errors.UndefinedTable):
                    connection.execute("SELECT * FROM nothing").fetchone()
                pipeline.sync()
                assert connection.execute("SELECT 'after the sync'").fetchone() == ("after the sync",)
        proxied.never_pinned()


def test_a_transaction_in_pipeline_mode(proxied: ProxiedDatabase, things: str) -> None:
    with proxied.connect() as connection:
        with connection.pipeline(), connection.transaction():
            for number in range(20):
                connection.execute("INSERT INTO things VALUES (%s, 'kept')", (number,))
        with pytest.raises(errors.UniqueViolation), connection.pipeline(), connection.transaction():
            connection.cursor().executemany("INSERT INTO things VALUES (%s, 'undone')", [(20,), (21,), (19,)])
        assert value(connection, "SELECT count(*) FROM things") == 20
        proxied.never_pinned()


def test_a_server_cursor_pins(proxied: ProxiedDatabase) -> None:
    with proxied.connect(autocommit=False) as connection:
        with connection.cursor("named") as cursor:
            cursor.execute("SELECT n FROM generate_series(1, %s) AS n", (1000,))
            assert sum(row[0] for row in cursor) == 500_500
        connection.commit()
        proxied.pinned_by("cursor")
        proxied.borrowed(1)


def test_listening_pins_and_notifying_does_not(proxied: ProxiedDatabase, text: str) -> None:
    with proxied.connect() as sender:
        sender.execute("SELECT pg_notify('ears', %s)", ("nobody listens yet",))
        sender.execute("NOTIFY ears, 'nobody listens yet'")
        proxied.never_pinned()
        with proxied.connect() as listener:
            listener.execute("LISTEN ears")
            proxied.pinned_by("listen")
            sender.execute("SELECT pg_notify('ears', %s)", (text,))
            sender.execute("NOTIFY ears, 'second'")
            heard = [one.payload for one in listener.notifies(timeout=PATIENCE_S, stop_after=2)]
            assert heard == [text, "second"]
            proxied.pinned_by("listen")
            proxied.borrowed(1)


#: A program of its own: `cancel` waits inside libpq without releasing Python's lock, which the proxy's thread needs.
CANCELLING = """
import sys, threading, psycopg
connection = psycopg.connect(sys.argv[1], autocommit=True, prepare_threshold=None)
sleeper = threading.Thread(target=lambda: print(*connection.execute("SELECT 'slept' FROM pg_sleep(1)").fetchone()))
sleeper.start()
sys.stdin.readline()
getattr(connection, sys.argv[2])()
sleeper.join()
print(*connection.execute("SELECT 'went on'").fetchone())
connection.close()
"""


@pytest.mark.parametrize("way", ["cancel", "cancel_safe"])
def test_cancelling_does_nothing(proxied: ProxiedDatabase, way: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CANCELLING, proxied.dsn, way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as client:
        deadline = time.monotonic() + PATIENCE_S
        while "active" not in proxied.backend_states() and time.monotonic() < deadline:
            time.sleep(0.01)
        printed, _ = client.communicate("now\n", timeout=60)
    assert printed.splitlines() == ["slept", "went on"]
    proxied.never_pinned()


# ── start-up parameters ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_server_reports_at_start_up(proxied: ProxiedDatabase) -> None:
    with proxied.connect(application_name="reporter") as connection:
        reported = connection.info.parameter_status
        for name in ("server_version", "server_encoding", "client_encoding", "DateStyle", "TimeZone", "IntervalStyle"):
            assert reported(name) == proxied.ask(f"SELECT current_setting('{name}')"), name
        assert reported("standard_conforming_strings") == "on"
        assert reported("integer_datetimes") == "on"
        assert reported("application_name") == "reporter"
        assert reported("session_authorization") == connection.info.user
        assert connection.info.server_version >= 180000


def test_start_up_parameters_hold_in_every_transaction(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq sends PGTZ and PGDATESTYLE as TimeZone and DateStyle."""
    proxied = start_proxy(max_connections=1)
    wanted = [
        {"application_name": "first", "client_encoding": "LATIN1", "TimeZone": "Asia/Tokyo", "DateStyle": "SQL, DMY"},
        {"application_name": "second", "client_encoding": "UTF8", "TimeZone": "America/Lima", "DateStyle": "ISO, MDY"},
        {"application_name": "", "client_encoding": "UTF8", "TimeZone": "UTC", "DateStyle": "ISO, MDY"},
    ]
    clients = []
    for settings in wanted[:2]:
        monkeypatch.setenv("PGTZ", settings["TimeZone"])
        monkeypatch.setenv("PGDATESTYLE", settings["DateStyle"])
        clients.append(
            proxied.connect(
                autocommit=False,
                application_name=settings["application_name"],
                client_encoding=settings["client_encoding"],
            )
        )
    monkeypatch.delenv("PGTZ")
    monkeypatch.delenv("PGDATESTYLE")
    clients.append(proxied.connect(autocommit=False))
    try:
        for _ in range(3):
            for client, settings in zip(clients, wanted, strict=True):
                for name, setting in settings.items():
                    assert value(client, "SELECT current_setting(%s)", (name,)) == setting
                assert value(client, "SELECT encode(convert_to(%s, 'UTF8'), 'hex')", ("é",)) == "c3a9"
                client.commit()
                assert value(client, "SHOW TimeZone") == settings["TimeZone"]
                client.rollback()
        assert proxied.metric("DatabaseConnections") == 1
        proxied.never_pinned()
    finally:
        for client in clients:
            client.close()


def test_statements_in_the_clients_encoding(proxied: ProxiedDatabase) -> None:
    with proxied.connect(client_encoding="LATIN1") as connection:
        assert value(connection, "SELECT 'é' || %s", ("ü",)) == "éü"
        assert value(connection, "SELECT 'é'") == "é"
        assert value(connection, "SELECT encode(convert_to('é', 'UTF8'), 'hex')") == "c3a9"
        proxied.never_pinned()


def test_start_up_options_are_refused(proxied: ProxiedDatabase) -> None:
    with pytest.raises(psycopg.OperationalError, match="RDS Proxy currently doesn't support"):
        proxied.connect(options="-c statement_timeout=5s")
    with proxied.connect() as connection:
        assert value(connection, "SELECT 1") == 1


# ── asyncio ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_psycopg_async_clients_share_two_connections(start_proxy: StartProxy) -> None:
    proxied = start_proxy(max_connections=2)
    proxied.connect().execute("CREATE TABLE counted (client int, turn int)").connection.close()

    async def client(number: int) -> None:
        opened = await psycopg.AsyncConnection.connect(proxied.dsn, prepare_threshold=None)
        async with opened as connection:
            for turn in range(10):
                async with connection.transaction():
                    await connection.execute("INSERT INTO counted VALUES (%s, %s)", (number, turn))
                    cursor = await connection.execute("SELECT count(*) FROM counted WHERE client = %s", (number,))
                    assert await cursor.fetchone() == (turn + 1,)
                with pytest.raises(errors.DivisionByZero):
                    await connection.execute("SELECT %s / 0", (number,))
                await connection.rollback()

    async def run() -> None:
        await asyncio.gather(*(client(number) for number in range(20)))

    asyncio.run(run())
    assert proxied.ask("SELECT count(*) FROM counted") == 200
    assert proxied.metric("DatabaseConnections") <= 2
    proxied.never_pinned()


def test_psycopg_async_pipeline_copy_and_notifications(proxied: ProxiedDatabase, text: str) -> None:
    async def run() -> None:
        opened = await psycopg.AsyncConnection.connect(proxied.dsn, prepare_threshold=None, autocommit=True)
        async with opened as connection:
            await connection.execute("CREATE TABLE copied (body text)")
            async with connection.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
                for _ in range(100):
                    await copy.write_row((text,))
            async with connection.pipeline():
                cursors = [await connection.execute("SELECT %s::int", (number,)) for number in range(30)]
                assert [await cursor.fetchone() for cursor in cursors] == [(number,) for number in range(30)]
            cursor = await connection.execute("SELECT count(*) FROM copied WHERE body = %s", (text,))
            assert await cursor.fetchone() == (100,)
            proxied.never_pinned()
            await connection.execute("LISTEN ears")
            await connection.execute("SELECT pg_notify('ears', %s)", (text,))
            heard = [one.payload async for one in connection.notifies(timeout=PATIENCE_S, stop_after=1)]
            assert heard == [text]
            proxied.pinned_by("listen")

    asyncio.run(run())
