"""The proxy's login at a real PostgreSQL, by every method that PostgreSQL has for passwords."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.rdsproxy import wire
from spillway.rdsproxy.database_login import DatabaseLogin, DatabaseRefused
from spillway.rdsproxy.startup import MessageBuffer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.stack.postgres import PostgresServer

PASSWORD = "correct horse, bättery=staple"
METHODS = ("trust", "password", "md5", "scram")
HBA = "".join(
    f"host all login_{method} 127.0.0.1/32 {'scram-sha-256' if method == 'scram' else method}\n" for method in METHODS
)


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The session's server, with a role for each method."""
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        for method in METHODS:
            admin.execute(f"SET password_encryption = '{'md5' if method == 'md5' else 'scram-sha-256'}'")
            admin.execute(f"CREATE ROLE login_{method} LOGIN PASSWORD '{PASSWORD}'")  # type: ignore[call-overload]
        row = admin.execute("SHOW hba_file").fetchone()
        assert row is not None
        hba_file = Path(row[0])
        original = hba_file.read_text()
        hba_file.write_text(HBA + original)
        admin.execute("SELECT pg_reload_conf()")
        yield postgres
        hba_file.write_text(original)
        admin.execute("SELECT pg_reload_conf()")
        for method in METHODS:
            admin.execute(f"DROP ROLE login_{method}")


class Connection:
    """A socket to the database, logged in."""

    def __init__(self, server: PostgresServer, login: DatabaseLogin, *, at_once: int = 4096) -> None:
        self.login = login
        self.socket = socket.create_connection((server.host, server.port), timeout=10)
        try:
            self.socket.sendall(login.start())
            while not login.done:
                received = self.socket.recv(at_once)
                assert received, "the database closed the connection"
                self.socket.sendall(login.feed(received))
        except BaseException:
            self.socket.close()
            raise

    def query(self, text: str) -> list[Any]:
        """The first column of the rows."""
        self.socket.sendall(wire.query(text))
        buffer, values = MessageBuffer(100_000), []
        buffer.feed(self.login.rest)
        while True:
            while message := buffer.next():
                if message[0] == wire.READY:
                    return values
                if message[0] == ord("D"):
                    values.append(message[1][6:].decode())
            buffer.feed(self.socket.recv(4096))

    def close(self) -> None:
        self.socket.sendall(wire.TERMINATE_MESSAGE)
        self.socket.close()


def new(method: str, password: str | None = PASSWORD, database: str = "postgres") -> DatabaseLogin:
    return DatabaseLogin(f"login_{method}", password, database, {"application_name": "proxy", "TimeZone": "Asia/Tokyo"})


@pytest.mark.parametrize("at_once", [1, 7, 4096])
@pytest.mark.parametrize("method", METHODS)
def test_logs_in(server: PostgresServer, method: str, at_once: int) -> None:
    connection = Connection(server, new(method), at_once=at_once)
    assert connection.query("SELECT current_user") == [f"login_{method}"]
    assert connection.query("SELECT pg_backend_pid()") == [str(connection.login.backend_pid)]
    reported = connection.login.parameter_status
    assert reported["server_version"].startswith("18")
    assert (reported["application_name"], reported["TimeZone"]) == ("proxy", "Asia/Tokyo")
    connection.close()


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_wrong_password(server: PostgresServer, method: str) -> None:
    with pytest.raises(DatabaseRefused, match="password authentication failed for user") as caught:
        Connection(server, new(method, "wrong"))
    assert caught.value.sqlstate == "28P01"


@pytest.mark.parametrize("method", METHODS[1:])
def test_no_password(server: PostgresServer, method: str) -> None:
    with pytest.raises(DatabaseRefused, match=f"the proxy has none for user login_{method}"):
        Connection(server, new(method, None))


def test_no_password_where_none_is_asked(server: PostgresServer) -> None:
    Connection(server, new("trust", None)).close()


def test_no_such_database(server: PostgresServer) -> None:
    with pytest.raises(DatabaseRefused, match='database "nowhere" does not exist') as caught:
        Connection(server, new("scram", database="nowhere"))
    assert caught.value.sqlstate == "3D000"


def test_a_setting_the_database_refuses(server: PostgresServer) -> None:
    login = DatabaseLogin("login_trust", None, "postgres", {"TimeZone": "Nowhere/Land"})
    with pytest.raises(DatabaseRefused, match="TimeZone") as caught:
        Connection(server, login)
    assert caught.value.sqlstate == "22023"
