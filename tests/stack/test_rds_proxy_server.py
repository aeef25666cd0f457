"""The stack's RDS Proxy as a process: who gets in, where its password is, and how it starts, fails and ends."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.rdsproxy.settings import RdsProxyError
from spillway.stack.errors import StackError
from spillway.stack.rds_proxy import Credentials, RdsProxyServer
from tests.conftest import LOGIN
from tests.stack.commands import until
from workers.runtime.iam_token import rds_token

if TYPE_CHECKING:
    from spillway.stack.processes import Processes
    from tests.conftest import TestDatabase

CREDENTIALS = Credentials("local-key", "local-secret", "local-session")


@pytest.fixture
def options(database: TestDatabase, tmp_path: Path) -> dict[str, Any]:
    return {
        "target": database.worker_dsn,
        "credentials": CREDENTIALS,
        "region": "eu-central-1",
        "borrow_timeout_s": 3,
        "log_file": tmp_path / "rdsproxy.log",
    }


@pytest.fixture(autouse=True)
def functions_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", CREDENTIALS.token or "")


def connect(proxy: RdsProxyServer, database: TestDatabase, region: str = "eu-central-1") -> psycopg.Connection[Any]:
    return psycopg.connect(
        host=proxy.host,
        port=proxy.port,
        dbname=database.name,
        user=LOGIN.name,
        password=rds_token(proxy.host, proxy.port, LOGIN.name, region),
        sslmode="verify-full",
        sslrootcert=str(proxy.ca_file),
        autocommit=True,
        prepare_threshold=None,
    )


def test_a_token_of_the_functions_credentials_gets_in(
    processes: Processes, options: dict[str, Any], database: TestDatabase
) -> None:
    with RdsProxyServer(processes, **options) as proxy:
        assert proxy.running
        with connect(proxy, database) as connection:
            assert connection.execute("SELECT current_user, current_database()").fetchone() == (
                LOGIN.name,
                database.name,
            )
        with pytest.raises(psycopg.OperationalError, match="IAM authentication failed"):
            connect(proxy, database, "us-east-1")
        seen = proxy.snapshot()
        assert seen.cloudwatch["MaxDatabaseConnectionsAllowed"] == 20
        assert seen.cloudwatch["ClientConnectionsSetupSucceeded"] == 1
        assert "A new client connected" in proxy.log_tail()
    assert not proxy.running
    with pytest.raises(RdsProxyError):
        proxy.snapshot()


def test_no_secret_is_on_its_command_line_or_in_its_log(
    processes: Processes, options: dict[str, Any], database: TestDatabase
) -> None:
    with RdsProxyServer(processes, **options) as proxy:
        connect(proxy, database).close()
        command = Path(f"/proc/{proxy.pid}/cmdline").read_bytes().decode()
        said = command + proxy.log_tail(1_000)
        assert "rdsproxy" in command
        for secret in (LOGIN.password, CREDENTIALS.secret_key, "Signature="):
            assert secret not in said


def test_the_borrow_timeout_is_what_it_was_told(
    processes: Processes, options: dict[str, Any], database: TestDatabase
) -> None:
    with (
        RdsProxyServer(processes, **options | {"borrow_timeout_s": 1}) as proxy,
        connect(proxy, database) as connection,
    ):
        proxy.admin.fault("saturate", {})
        with pytest.raises(psycopg.OperationalError) as refused:
            connection.execute("SELECT 1")
        assert refused.value.sqlstate == "08000"
        latency = proxy.snapshot().borrow_latency
        assert latency.max >= 1


def test_a_port_of_ones_own(processes: Processes, options: dict[str, Any], database: TestDatabase) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            StackError, match=f"The RDS Proxy cannot listen on 127.0.0.1:{port}: Address already in use"
        ):
            RdsProxyServer(processes, **options, port=port).start()
    with RdsProxyServer(processes, **options, port=port) as proxy:
        assert proxy.port == port
        connect(proxy, database).close()
        proxy.stop()
        proxy.start()
        connect(proxy, database).close()


def test_a_database_that_refuses_the_proxy(processes: Processes, options: dict[str, Any]) -> None:
    wrong = options["target"].replace(LOGIN.password, "guessed")
    with pytest.raises(StackError) as failed:
        RdsProxyServer(processes, **options | {"target": wrong}).start()
    assert failed.value.message == "The RDS Proxy did not start."
    assert "password authentication failed" in failed.value.hint
    assert "Traceback" not in failed.value.hint
    assert "guessed" not in failed.value.hint


def test_its_death_is_noticed_and_leaves_no_lie(processes: Processes, options: dict[str, Any]) -> None:
    proxy = RdsProxyServer(processes, **options)
    proxy.start()
    assert proxy.pid is not None
    os.kill(proxy.pid, signal.SIGKILL)
    until(lambda: not proxy.running, "its end")
    proxy.start()  # the ready file of the one that was killed is not taken for its own
    assert proxy.snapshot().cloudwatch["AvailabilityPercentage"] == 100
    proxy.stop()
