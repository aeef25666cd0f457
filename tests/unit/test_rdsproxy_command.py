"""`spillway rdsproxy`: its options become settings, its mistakes are explained, and it tells others where it is."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import psycopg.conninfo
import pytest
from typer.testing import CliRunner, Result

import spillway.commands.rdsproxy as command
from spillway import cli
from spillway.errors import SpillwayError
from spillway.rdsproxy.admin import AdminServer
from spillway.rdsproxy.metrics import Metrics, PinRecord, Snapshot
from spillway.rdsproxy.settings import ProxySettings, RdsProxyError, Secret

TARGET = "postgresql://app:hunter2@127.0.0.1:5433/orders"
log = logging.getLogger("spillway.rdsproxy")


class FakeProxy:
    """Runs nothing, and is interrupted as soon as it is entered."""

    settings: ProxySettings
    admin_port: int
    refuses = ""
    seen_while_running: dict[str, Any] | None = None
    ready_file: Path | None = None
    ca = True
    failure: BaseException | None = None

    client_connections = database_connections = borrowed = in_transaction = session_pinned = waiting = 0
    max_database_connections = 75
    available = True

    def __init__(self, settings: ProxySettings, admin_port: int = 0) -> None:
        type(self).settings, type(self).admin_port = settings, admin_port
        self.host, self.port = settings.listen_host, settings.listen_port or 45678
        self.ca_file = Path(f"/{'long/' * 40}ca.pem") if settings.tls else None
        self.admin_url = "http://127.0.0.1:9999"
        self.metrics = Metrics()

    def __enter__(self) -> Self:
        if self.refuses:
            raise RdsProxyError(self.refuses)
        if self.ready_file is not None:
            assert not self.ready_file.exists(), "an old ready file says that this proxy is ready"
        log.warning("[clientConnection=%d] The client session was pinned\nto it.", 7)
        log.info("A new client connected.")
        self.metrics.client_connections_setup_succeeded = 1204
        self.metrics.peak_database_connections = 42
        self.metrics.pinned_sessions_total = 3
        for rule, reason in (("set", "A parameter was set."), ("set", "A parameter was set."), ("listen", "LISTEN.")):
            self.metrics.record_pin(PinRecord(rule, reason, "documented", "x", "u", "d", "a", "c", 1, 1.0))
        signal.raise_signal(signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        if self.ready_file is not None:
            type(self).seen_while_running = {"exists": self.ready_file.exists()}

    def snapshot(self) -> Snapshot:
        if self.ready_file is not None and self.ready_file.exists():
            type(self).seen_while_running = json.loads(self.ready_file.read_text())
        return self.metrics.snapshot(self, proxy="default", endpoint="x", target=self.settings.target)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProxy]:
    class Fake(FakeProxy):
        pass

    module = ModuleType("spillway.rdsproxy.background")
    module.BackgroundProxy = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spillway.rdsproxy.background", module)
    for name in list(os.environ):
        if name.startswith(("AWS_", "SPILLWAY_")):
            monkeypatch.delenv(name)
    return Fake


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(command.app, arguments, env=environ)


def good(*arguments: str, **environ: str) -> Result:
    result = run(*arguments, **environ)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(*arguments: str, **environ: str) -> str:
    result = run(*arguments, **environ)
    assert isinstance(result.exception, SpillwayError), (result.output, result.exception)
    return str(result.exception)


def test_defaults_are_those_of_the_settings(fake: type[FakeProxy]) -> None:
    good("--target", TARGET)
    assert fake.settings == ProxySettings(target=fake.settings.target)
    assert fake.settings.target.password == "hunter2"
    assert fake.admin_port == 0


def test_every_option_becomes_a_setting(fake: type[FakeProxy], tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"username": "reporter", "password": "p", "engine": "postgres", "port": 5432}')
    options = (
        f"--listen localhost:6000 --endpoint proxy.example --endpoint ro.example --secret {secret} "
        "--max-connections-percent 60 --max-idle-connections-percent 30 --max-connections 20 "
        "--connection-borrow-timeout 2.5 --idle-client-timeout 60 --client-lifetime 3600 "
        "--init-query 'SET x TO 1' --require-tls --certificate-dir certificates --iam-auth required "
        "--region eu-central-1 --max-client-connections 500 --max-connection-rate 200 --lenient --seed 9 "
        "--admin-port 9000"
    )
    good(
        *shlex.split(options),
        SPILLWAY_RDSPROXY_TARGET=TARGET,
        AWS_ACCESS_KEY_ID="AKID",
        AWS_SECRET_ACCESS_KEY="key",
        AWS_REGION="us-east-1",
    )
    assert fake.settings == ProxySettings(
        target=fake.settings.target,
        listen_host="localhost",
        listen_port=6000,
        endpoints=("proxy.example", "ro.example"),
        secrets=(Secret(username="reporter", password="p"),),
        max_connections_percent=60,
        max_idle_connections_percent=30,
        max_connections=20,
        connection_borrow_timeout=2.5,
        idle_client_timeout=60,
        client_lifetime=3600,
        init_query="SET x TO 1",
        strict=False,
        require_tls=True,
        certificate_dir=Path("certificates"),
        iam_auth="required",
        region="eu-central-1",
        credentials={"AKID": "key"},
        max_client_connections=500,
        max_connection_rate=200,
        seed=9,
    )
    assert fake.settings.target.database == "orders"
    assert fake.admin_port == 9000


def test_the_region_comes_from_the_environment(fake: type[FakeProxy]) -> None:
    good("--target", TARGET, AWS_DEFAULT_REGION="eu-west-1", AWS_REGION="eu-west-2")
    assert fake.settings.region == "eu-west-2"
    good("--target", TARGET, AWS_DEFAULT_REGION="eu-west-1")
    assert fake.settings.region == "eu-west-1"


def test_credentials_are_left_alone_without_iam(fake: type[FakeProxy]) -> None:
    good("--target", TARGET, AWS_ACCESS_KEY_ID="AKID", AWS_SECRET_ACCESS_KEY="key")
    assert fake.settings.credentials == {}


def test_iam_needs_credentials() -> None:
    assert "AWS_ACCESS_KEY_ID" in refused("--target", TARGET, "--iam-auth", "required", AWS_ACCESS_KEY_ID="AKID")


def test_further_access_keys_come_from_the_environment(fake: type[FakeProxy]) -> None:
    """The two variables that every tool has win."""
    iam = ("--target", TARGET, "--iam-auth", "required", "--region", "eu-west-1")
    further = '{"SECOND": "key/2", "AKID": "old"}'
    good(*iam, SPILLWAY_RDSPROXY_ACCESS_KEYS=further, AWS_ACCESS_KEY_ID="AKID", AWS_SECRET_ACCESS_KEY="key")
    assert fake.settings.credentials == {"AKID": "key", "SECOND": "key/2"}
    good(*iam, SPILLWAY_RDSPROXY_ACCESS_KEYS='{"SECOND": "key/2"}')
    assert fake.settings.credentials == {"SECOND": "key/2"}


@pytest.mark.parametrize("value", ["{", "[]", '"x"', '{"AKID": 7}', '{"AKID": "hunter2"'])
def test_bad_further_access_keys_are_refused_unseen(value: str) -> None:
    said = refused("--target", TARGET, "--iam-auth", "required", SPILLWAY_RDSPROXY_ACCESS_KEYS=value)
    assert "SPILLWAY_RDSPROXY_ACCESS_KEYS is not as expected" in said
    assert "hunter2" not in said


def test_iam_needs_a_region(fake: type[FakeProxy]) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "key"}
    assert "--region" in refused("--target", TARGET, "--iam-auth", "required", **keys)
    assert (
        "IAM tokens for eu-west-1"
        in good("--target", TARGET, "--iam-auth", "required", "--region", "eu-west-1", **keys).stdout
    )


def test_no_target_is_wrong_usage() -> None:
    result = run()
    assert result.exit_code == 2
    assert "SPILLWAY_RDSPROXY_TARGET" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "mysql://a@b/c"], "begins with 'mysql'"),
        (["--target", TARGET, "--max-connections-percent", "101"], "expected 1 to 100"),
        (["--target", TARGET, "--connection-borrow-timeout", "301"], "expected 0 to 300"),
        (["--target", TARGET, "--listen", "127.0.0.1:70000"], "expected 0 to 65535"),
        (["--target", TARGET, "--no-tls", "--require-tls"], "cannot be required"),
    ],
)
def test_values_that_cannot_be(arguments: list[str], words: str) -> None:
    assert words in refused(*arguments)


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:5432", ("127.0.0.1", 5432)),
        ("127.8.9.10:0", ("127.8.9.10", 0)),
        ("LocalHost:1", ("LocalHost", 1)),
        ("[::1]:5432", ("::1", 5432)),
    ],
)
def test_addresses_of_this_machine(listen: str, expected: tuple[str, int]) -> None:
    assert command.parse_listen(listen, allow_remote=False) == expected


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:5432", "[::]:5432", "192.0.2.7:5432", "db.example:5432", "[::ffff:8.8.8.8]:1"]
)
def test_addresses_that_others_reach_must_be_meant(listen: str) -> None:
    with pytest.raises(RdsProxyError, match="--allow-remote"):
        command.parse_listen(listen, allow_remote=False)
    host, _ = command.parse_listen(listen, allow_remote=True)
    assert host == listen.rpartition(":")[0].strip("[]")


@pytest.mark.parametrize(
    "listen", ["5432", "127.0.0.1", ":5432", "127.0.0.1:", "127.0.0.1:http", "::1:5432", "a:²", ""]
)
def test_addresses_that_are_none(listen: str) -> None:
    with pytest.raises(RdsProxyError, match="Expected HOST:PORT"):
        command.parse_listen(listen, allow_remote=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"username": "u"}', "`password`"),
        ('{"password": "hunter2"}', "`username`"),
        ('{"username": "u", "password": 5}', "$.password"),
        ('{"username": "", "password": "hunter2"}', "`username` is empty"),
        ('{"username": "u", "password": "hunter2", "database_password": "x"}', "`database_username`"),
        ("[]", "object"),
        ("username=u", "malformed"),
        ("", "truncated"),
    ],
)
def test_a_secret_that_is_wrong_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(content)
    message = refused("--target", TARGET, "--secret", str(file))
    assert str(file) in message
    assert words in message
    assert "hunter2" not in message


def test_secrets_that_are_missing_or_double(tmp_path: Path) -> None:
    assert "nothing.json: No such file" in refused("--target", TARGET, "--secret", str(tmp_path / "nothing.json"))
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for file in (one, two):
        file.write_text('{"username": "u", "password": "p", "database_username": "d", "database_password": "q"}')
    assert command.read_secrets([one])[0].database_login == ("d", "q")
    assert "two.json" in refused("--target", TARGET, "--secret", str(one), "--secret", str(two))


def test_what_it_prints(fake: type[FakeProxy]) -> None:
    result = good("--target", TARGET)
    for words in (
        "127.0.0.1:5432",
        "postgresql://app@127.0.0.1:5433/orders",
        "75 database connections",
        "optional, CA file /long/long/",
        "http://127.0.0.1:9999",
        "served 1,204 clients and 0 requests with at most 42 of 75 database connections",
        "3 sessions were pinned:",
        "     2  A parameter was set.\n       1  LISTEN.",
    ):
        assert words in result.stdout, words
    assert "hunter2" not in result.output


def test_log_lines_have_awss_shape() -> None:
    lines = good("--target", TARGET).stderr.splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert len(lines) == 2
    assert_matches(
        lines[0],
        stamp + r" \[WARN\] \[proxyEndpoint=default\] \[clientConnection=7\] The client session was pinned\\nto it\.",
    )
    assert_matches(lines[1], stamp + r" \[INFO\] \[proxyEndpoint=default\] A new client connected\.")
    assert log.handlers == []
    assert log.level == logging.NOTSET


def assert_matches(text: str, pattern: str) -> None:
    assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("option", ["--quiet", "--watch"])
def test_no_log_lines(option: str) -> None:
    result = good("--target", TARGET, option)
    assert result.stderr == ""
    assert "served 1,204 clients" in result.stdout


def test_nobody_reading_log_lines_does_not_stop_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            released.wait(20)
            return len(text)

    released = threading.Event()
    monkeypatch.setattr(command, "MAX_LOG_LINES", 10)
    monkeypatch.setattr(command, "LAST_LINES_S", 0.1)
    monkeypatch.setattr(sys, "stderr", Stuck())
    began = time.monotonic()
    with command.log_lines(enabled=True):
        for number in range(1_000):
            log.info("line %d", number)
    assert time.monotonic() - began < 5
    released.set()


@pytest.mark.parametrize("endpoints", [(), ("proxy.example",)])
def test_the_example_connects(fake: type[FakeProxy], endpoints: tuple[str, ...]) -> None:
    options = [word for name in endpoints for word in ("--endpoint", name)]
    output = good("--target", TARGET, "--listen", "127.0.0.1:0", *options).stdout
    line = next(line for line in output.splitlines() if line.startswith("psql "))
    found = psycopg.conninfo.conninfo_to_dict(shlex.split(line)[2])
    expected = {"port": "45678", "dbname": "orders", "user": "app", "sslmode": "verify-full"}
    address = {"host": "proxy.example", "hostaddr": "127.0.0.1"} if endpoints else {"host": "127.0.0.1"}
    assert found == expected | address | {"sslrootcert": f"/{'long/' * 40}ca.pem"}


def test_the_ready_file_is_there_while_it_runs(fake: type[FakeProxy], tmp_path: Path) -> None:
    fake.ready_file = tmp_path / "ready.json"
    fake.ready_file.write_text("{}")
    good("--target", TARGET, "--ready-file", str(fake.ready_file), "--listen", "127.0.0.1:0")
    # The last snapshot is taken while clients are still served; closing comes after the file is gone.
    assert fake.seen_while_running == {"exists": False}
    assert list(tmp_path.iterdir()) == []


def test_what_the_ready_file_says(fake: type[FakeProxy], tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    command.write_ready_file(file, fake(ProxySettings(target=command.Target.parse(TARGET), tls=False)))
    expected = {"host": "127.0.0.1", "port": 5432, "admin_url": "http://127.0.0.1:9999", "ca_file": None}
    assert json.loads(file.read_text()) == expected | {"pid": os.getpid()}
    assert list(tmp_path.iterdir()) == [file]


def test_a_ready_file_that_cannot_be_written(fake: type[FakeProxy], tmp_path: Path) -> None:
    (tmp_path / "ready.json").mkdir()
    with pytest.raises(RdsProxyError, match="Cannot write --ready-file"):
        command.write_ready_file(tmp_path / "ready.json", fake(ProxySettings(target=command.Target.parse(TARGET))))
    assert [path.name for path in tmp_path.iterdir()] == ["ready.json"]
    message = refused("--target", TARGET, "--ready-file", str(tmp_path / "missing" / "ready.json"))
    assert "Cannot write --ready-file" in message


def test_a_target_that_does_not_answer(fake: type[FakeProxy], tmp_path: Path) -> None:
    fake.refuses = "Cannot reach the target."
    assert refused("--target", TARGET, "--ready-file", str(tmp_path / "ready.json")) == "Cannot reach the target."
    assert list(tmp_path.iterdir()) == []
    assert log.handlers == []


def test_nothing_pinned_is_said_so(fake: type[FakeProxy]) -> None:
    proxy = fake(ProxySettings(target=command.Target.parse(TARGET)))
    proxy.metrics.borrow_timeouts = 5
    lines = command.closing_words(proxy.snapshot()).splitlines()
    assert lines[1:] == ["5 requests timed out waiting for a database connection", "no session was pinned"]


def test_it_is_a_command_of_spillway() -> None:
    result = CliRunner().invoke(cli.program(), ["rdsproxy", "-h"])
    assert result.exit_code == 0
    assert "--max-connections-percent" in result.output
    for name in ("fault", "watch"):
        result = CliRunner().invoke(cli.program(), ["rdsproxy", name, "-h"])
        assert "--admin-url" in result.output


def test_a_misspelt_form_starts_nothing(fake: type[FakeProxy]) -> None:
    assert run("fualt", SPILLWAY_RDSPROXY_TARGET=TARGET).exit_code == 2
    assert not hasattr(fake, "settings")


def test_faults_and_watching_another_process(fake: type[FakeProxy]) -> None:
    injected: list[tuple[str, dict[str, Any]]] = []

    def inject(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        injected.append((name, arguments))
        return {"ended": 3}

    proxy = fake(ProxySettings(target=command.Target.parse(TARGET)))
    server = AdminServer(proxy.snapshot, inject, ["latency", "clear"])
    server.start()
    try:
        arguments = ["fault", "latency", "seconds=0.5", "for=5", "note=a=b", "on=true", "empty="]
        result = good(*arguments, SPILLWAY_RDSPROXY_ADMIN_URL=server.url, SPILLWAY_RDSPROXY_TARGET=TARGET)
        assert json.loads(result.stdout) == {"ended": 3}
        assert injected == [("latency", {"seconds": 0.5, "for": 5, "note": "a=b", "on": True, "empty": ""})]
        assert "Known: latency, clear." in refused("fault", "nothing", "--admin-url", server.url)
        assert "Expected KEY=VALUE" in refused("fault", "clear", "5", "--admin-url", server.url)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        assert "clients 0  waiting 0  database 0/75" in good("watch", "--admin-url", server.url).stdout
        timer.join()
    finally:
        server.close()
    assert "No RDS Proxy emulator answers" in refused("watch", "--admin-url", server.url)
    assert run("watch").exit_code == 2


def test_a_proxy_that_dies_by_itself_ends_the_command(fake: type[FakeProxy]) -> None:
    fake.failure = RdsProxyError("The proxy failed: it did.")
    assert "it did" in refused("--target", TARGET, "--quiet")
