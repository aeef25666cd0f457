"""Every error that RDS Proxy documents, as psycopg shows it and as it stands in the ErrorResponse."""

from __future__ import annotations

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.rdsproxy import wire
from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.database_login import DatabaseLogin, DatabaseRefused
from spillway.rdsproxy.settings import ProxySettings, Secret, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from spillway.stack.postgres import PostgresServer


@pytest.fixture(scope="session")
def certificate_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture
def start(postgres: PostgresServer, certificate_dir: Path) -> Iterator[Callable[..., BackgroundProxy]]:
    with ExitStack() as stack:

        def start(**settings: Any) -> BackgroundProxy:
            arguments = {
                "target": Target.parse(postgres.dsn()),
                "listen_port": 0,
                "max_connections": 2,
                "certificate_dir": certificate_dir,
            }
            return stack.enter_context(BackgroundProxy(ProxySettings(**(arguments | settings)), admin_port=None))

        yield start


# ── a client made of bytes ───────────────────────────────────────────────────────────────────────────────────────────


def startup(parameters: Mapping[str, str], version: int = wire.PROTOCOL_3_0) -> bytes:
    packet = wire.startup_message(parameters)
    return packet[:4] + wire.INT32.pack(version) + packet[8:]


class RefusedRaw(Exception):
    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields)
        self.sqlstate, self.text, self.severity = fields["C"], fields["M"], fields["S"]
        self.fields = fields


class Raw:
    """One connection in the clear. Whatever the proxy says to refuse it is raised as RefusedRaw."""

    def __init__(self, proxy: BackgroundProxy) -> None:
        self.socket = socket.create_connection((proxy.host, proxy.port), timeout=30)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def message(self) -> tuple[int, bytes]:
        """The next message. Raises ConnectionError where there is none."""
        kind, length = wire.HEADER.unpack(self._exactly(wire.HEADER_SIZE))
        body = self._exactly(length - 4)
        if kind == wire.ERROR:
            raise RefusedRaw(wire.error_fields(body))
        return kind, body

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the connection ended")
            data += more
        return data

    def ask(self, packet: bytes) -> tuple[int, bytes]:
        self.socket.sendall(packet)
        return self.message()

    def ended(self) -> bool:
        """Whether the proxy closed the connection and sent nothing more."""
        with suppress(ConnectionResetError):
            return self.socket.recv(1) == b""
        return True


def refused(proxy: BackgroundProxy, packet: bytes) -> RefusedRaw:
    """The ErrorResponse to a start-up packet; after it the proxy must have closed the connection."""
    with Raw(proxy) as raw:
        with pytest.raises(RefusedRaw) as error:
            raw.ask(packet)
        assert raw.ended()
    return error.value


def connect(proxy: BackgroundProxy, **arguments: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(proxy.dsn(), **({"autocommit": True, "prepare_threshold": None} | arguments))


def shown(proxy: BackgroundProxy, **arguments: Any) -> str:
    """What psycopg says about a connection that fails."""
    with pytest.raises(psycopg.OperationalError) as failure:
        connect(proxy, **arguments)
    assert failure.value.sqlstate is None, "psycopg has learnt to tell: compare it"
    return str(failure.value)


# ── at the start-up packet and the login ─────────────────────────────────────────────────────────────────────────────

ME = {"user": "postgres", "database": "postgres"}


UNSUPPORTED = "Feature not supported: RDS Proxy currently doesn't support"
PROTOCOL = "Feature not supported: RDS Proxy supports only version 3.0 of the PostgreSQL messaging protocol."
USER = "A user name is missing from the connection startup packet. Provide a user name for this connection."
NO_CREDENTIALS = (
    "This RDS proxy has no credentials for the role nobody. Check the credentials for this role and try again."
)
LENGTH = "invalid length of startup packet"


@pytest.mark.parametrize(
    ("packet", "sqlstate", "text"),
    [
        (startup(ME | {"options": "-c geqo=off"}), "0A000", f"{UNSUPPORTED} command-line options."),
        (startup(ME | {"replication": "database"}), "0A000", f"{UNSUPPORTED} streaming replication mode."),
        (startup(ME | {"statement_timeout": "1s"}), "0A000", f"{UNSUPPORTED} the option statement_timeout."),
        (startup(ME | {"geqo": "off"}), "0A000", f"{UNSUPPORTED} the option geqo."),
        (startup(ME | {"_pq_.anything": "1"}), "0A000", f"{UNSUPPORTED} the option _pq_.anything."),
        (startup(ME, (3 << 16) + 2), "0A000", PROTOCOL),
        (startup(ME, 2 << 16), "0A000", PROTOCOL),
        (startup({"database": "postgres"}), "28000", USER),
        (startup({"user": "nobody"}), "28000", NO_CREDENTIALS),
        (b"\0\0\0\4\0\0\0\0", "08P01", LENGTH),
        (b"GET / HTTP/1.1\r\n\r\n", "08P01", LENGTH),
    ],
)
def test_start_up_packets_that_are_refused(start: Any, packet: bytes, sqlstate: str, text: str) -> None:
    proxy = start()
    error = refused(proxy, packet)
    assert (error.sqlstate, error.text, error.severity) == (sqlstate, text, "FATAL")
    assert error.fields["V"] == "FATAL"
    with connect(proxy) as client:  # and the proxy goes on
        assert client.execute("SELECT 1").fetchone() == (1,)
    assert proxy.metrics["ClientConnectionsSetupSucceeded"] == 1


def test_options_as_psycopg_sends_and_shows_them(start: Any) -> None:
    proxy = start()
    text = f"{UNSUPPORTED} command-line options."
    assert text in shown(proxy, options="-c search_path=app")
    # An empty one is not sent at all.
    connect(proxy, options="").close()


def test_no_credentials_as_psycopg_shows_it(start: Any) -> None:
    proxy = start()
    assert NO_CREDENTIALS in shown(proxy, user="nobody")
    assert proxy.metrics["ClientConnectionsSetupFailedAuth"] >= 1


def test_a_wrong_password(start: Any) -> None:
    proxy = start()
    text = "The password that was provided for the role postgres is wrong."
    assert text in shown(proxy, password="wrong")
    assert proxy.metrics["ClientConnectionsSetupFailedAuth"] == 1
    with Raw(proxy) as raw:
        login = DatabaseLogin("postgres", "wrong", "postgres", {})
        raw.socket.sendall(login.start())
        with pytest.raises(RefusedRaw) as error:  # noqa: PT012
            while True:
                raw.socket.sendall(login.feed(wire.message(*raw.message())))
        assert raw.ended()
    assert (error.value.sqlstate, error.value.text) == ("28P01", text)


def test_a_proxy_that_requires_tls(start: Any) -> None:
    proxy = start(require_tls=True)
    text = "This RDS Proxy requires TLS connections."
    error = refused(proxy, startup(ME))
    assert (error.sqlstate, error.text) == ("28000", text)
    assert text in shown(proxy, sslmode="disable")
    with connect(proxy, sslmode="verify-full", sslrootcert=str(proxy.ca_file)) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


def test_iam_without_tls(start: Any) -> None:
    credentials = {"AKIAEXAMPLE": "example-secret"}
    proxy = start(iam_auth="required", credentials=credentials, region="eu-west-1")
    text = "IAM authentication is allowed only with SSL connections."
    error = refused(proxy, startup(ME))
    assert (error.sqlstate, error.text) == ("28000", text)
    assert text in shown(proxy, sslmode="disable")


def test_an_iam_token_that_is_none(start: Any) -> None:
    proxy = start(iam_auth="required", credentials={"AKIAEXAMPLE": "example-secret"}, region="eu-west-1")
    text = "IAM authentication failed for user postgres. Check the IAM token for this user and try again."
    assert text in shown(proxy, sslmode="require", password="not-a-token")
    assert proxy.metrics["ClientConnectionsSetupFailedAuth"] == 1


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def too_many(limit: int) -> tuple[str, str]:
    return "53300", f"The maximum number of client connections to the proxy exceeded {limit}."


def test_more_clients_than_the_proxy_takes(start: Any) -> None:
    proxy = start(max_client_connections=2)
    with connect(proxy), connect(proxy):
        error = refused(proxy, startup(ME))
        assert (error.sqlstate, error.text) == too_many(2)
    with connect(proxy) as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


def test_more_clients_than_the_proxy_takes_as_psycopg_shows_it(start: Any) -> None:
    proxy = start(max_client_connections=1)
    with connect(proxy):
        assert too_many(1)[1] in shown(proxy)


def test_a_refused_client_makes_no_room(start: Any) -> None:
    proxy = start(max_client_connections=1)
    with connect(proxy):
        for _ in range(3):
            error = refused(proxy, startup(ME))
            assert (error.sqlstate, error.text) == too_many(1)
        assert proxy.metrics["ClientConnections"] == 1
        assert proxy.metrics["ClientConnectionsClosed"] == 0


def test_clients_that_log_in_at_the_same_time_are_counted_too(start: Any) -> None:
    proxy = start(max_client_connections=1)
    with ExitStack() as stack:
        logins = []
        for _ in range(3):  # all get as far as the password, then all give it
            raw = stack.enter_context(Raw(proxy))
            login = DatabaseLogin(
                "postgres", psycopg.conninfo.conninfo_to_dict(proxy.dsn())["password"], "postgres", {}
            )
            with suppress(RefusedRaw):  # who comes while another is on the way in
                logins.append((raw, login, raw.ask(login.start())))
        inside = 0
        for raw, login, message in logins:
            with suppress(RefusedRaw, DatabaseRefused):
                raw.socket.sendall(login.feed(wire.message(*message)))
                while not login.done:
                    raw.socket.sendall(login.feed(wire.message(*raw.message())))
                inside += 1
        assert inside == 1
        assert proxy.metrics["ClientConnections"] == 1


def test_clients_that_come_too_fast(start: Any) -> None:
    proxy = start(max_connection_rate=1)
    errors = []
    for _ in range(50):  # so many in less than 50 seconds, on any machine
        with Raw(proxy) as raw, suppress(ConnectionError):
            try:
                raw.ask(startup(ME))
            except RefusedRaw as error:
                errors.append(error)
                break
    assert [(error.sqlstate, error.text) for error in errors] == [("53300", "Rate of connection to proxy exceeded 1.")]


# ── from the pool and the database ───────────────────────────────────────────────────────────────────────────────────


def test_the_borrow_timeout(start: Any) -> None:
    proxy = start(max_connections=1, connection_borrow_timeout=0.5)
    with connect(proxy) as busy, connect(proxy) as waiter:
        busy.execute("BEGIN")
        with pytest.raises(psycopg.errors.ConnectionException) as failure:
            waiter.execute("SELECT 1")
        assert failure.value.sqlstate == "08000"
        assert failure.value.diag.message_primary == "Timed-out waiting to acquire database connection."
        assert failure.value.diag.severity == "FATAL"
        busy.execute("COMMIT")


def test_the_borrow_timeout_at_login(start: Any) -> None:
    """Where nobody came with these parameters before, the login itself needs a connection."""
    proxy = start(max_connections=1, connection_borrow_timeout=0.5)
    text = "Timed-out waiting to acquire database connection."
    with connect(proxy) as busy:
        busy.execute("BEGIN")
        assert text in shown(proxy, client_encoding="LATIN1")
        busy.execute("COMMIT")


def test_what_the_database_does_not_allow_at_login(start: Any) -> None:
    proxy = start(secrets=(Secret(username="ghost"),))
    with pytest.raises(psycopg.OperationalError) as failure:
        connect(proxy, user="ghost", password="x")
    assert re.search(r"Request returned an error: .+ghost", str(failure.value))
    error = refused_after_login(proxy, {"user": "ghost"})
    assert error.sqlstate == "XX000"
    error = refused_after_login(proxy, {"user": "ghost", "database": "nowhere"})
    assert (error.sqlstate, error.text.startswith("Request returned an error: ")) == ("XX000", True)


def refused_after_login(proxy: BackgroundProxy, parameters: Mapping[str, str]) -> RefusedRaw:
    """A client that needs no password is let in, and refused when the database does not let the proxy in."""
    with Raw(proxy) as raw:
        raw.socket.sendall(startup(parameters))
        with pytest.raises(RefusedRaw) as error:  # noqa: PT012
            while True:
                raw.message()
        assert raw.ended()
    return error.value


def test_the_databases_own_errors_come_through_untouched(start: Any) -> None:
    proxy = start()
    with connect(proxy) as client:
        with pytest.raises(psycopg.errors.UndefinedTable) as failure:
            client.execute("SELECT * FROM nowhere")
        assert failure.value.diag.source_function is not None
        with pytest.raises(psycopg.errors.UniqueViolation):
            client.execute("CREATE TABLE errors_once (a int PRIMARY KEY); INSERT INTO errors_once VALUES (1), (1)")
        assert client.execute("SELECT 1").fetchone() == (1,)
    proxy.assert_no_pins()


def cancel(client: psycopg.Connection[Any]) -> None:
    """As psycopg does it. Not pgconn.get_cancel(): it waits with the interpreter's lock, which the proxy needs too."""
    with suppress(psycopg.OperationalError):  # the proxy hangs up without a word, as PostgreSQL does
        client.cancel_safe(timeout=10)


def test_a_cancel_request_does_nothing(start: Any) -> None:
    """CancelRequest is not supported: only the server's own timeouts end a statement."""
    proxy = start()
    with connect(proxy) as client:
        cancel(client)
        assert client.execute("SELECT 1").fetchone() == (1,)
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(client.execute, "SELECT 'ran to its end' FROM pg_sleep(1)")
            while proxy.metrics["DatabaseConnectionsCurrentlyBorrowed"] == 0:
                time.sleep(0.01)
            cancel(client)
            assert running.result().fetchone() == ("ran to its end",)
    with Raw(proxy) as raw:
        raw.socket.sendall(wire.INT32.pack(16) + wire.INT32.pack(wire.CANCEL_REQUEST) + bytes(8))
        assert raw.ended()
