"""Whatever is wrong with the surroundings: one clear sentence with what to do, no traceback, nothing left behind."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from spillway.aws import sqs_client
from spillway.histories.orders import generate
from spillway.stack.errors import StackError
from spillway.stack.local import LocalStack
from spillway.stack.postgres import PostgresServer
from spillway.stack.processes import Processes
from spillway.stack.queues import create_queues
from spillway.stack.template import REPOSITORY, load_fleet
from tests.stack.commands import CommandLine, command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import TestDatabase

#: No fault here takes longer to be noticed, on a slow machine and with the SDK's own retries.
BOUND_S = 30.0
NOBODY = 65534


@pytest.fixture
def cli() -> Iterator[CommandLine]:
    with command_line() as one:
        yield one
        assert one.leftovers() == []


def failure(cli: CommandLine, *command: str, env: dict[str, str] | None = None, status: int = 1) -> tuple[str, str]:
    """What a failing command says: the sentence, and the lines after it that say what to do."""
    result = cli.run(*command, env=env, timeout_s=BOUND_S)
    assert result.returncode == status, result.stdout
    assert "Traceback" not in result.stdout
    assert "not expected" not in result.stdout, "somebody thought of this"
    # What went before it is progress; nothing comes after it but its own hint.
    _, found, said = result.stdout.rpartition("spillway: ")
    assert found, result.stdout
    sentence, _, hint = said.partition("\n")
    assert sentence.endswith((".", ":")), said
    assert hint.strip(), said
    return sentence, hint.strip()


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@contextmanager
def http_server(status: int, body: bytes, content_type: str) -> Iterator[str]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


# The database


def test_migrate_where_nobody_listens(cli: CommandLine) -> None:
    with taken_port() as port:
        pass
    said, hint = failure(cli, "migrate", "--dsn", f"postgresql://me:secret@127.0.0.1:{port}/shop")
    assert said == f"PostgreSQL at 127.0.0.1, port {port} cannot be reached: Connection refused."
    assert "--dsn" in hint
    assert "secret" not in said + hint


def test_migrate_with_a_wrong_password(cli: CommandLine, postgres: PostgresServer) -> None:
    dsn = postgres.dsn("postgres", postgres.superuser, "guessed")
    said, hint = failure(cli, "migrate", "--dsn", dsn)
    assert said == (
        f"PostgreSQL at 127.0.0.1, port {postgres.port} refused the login: "
        'password authentication failed for user "postgres".'
    )
    assert "password" in hint
    assert "guessed" not in said + hint


def test_migrate_of_a_database_that_is_not_there(cli: CommandLine, postgres: PostgresServer) -> None:
    said, hint = failure(cli, "migrate", "--dsn", postgres.dsn("shop"))
    assert said == f'PostgreSQL at 127.0.0.1, port {postgres.port} says: database "shop" does not exist.'
    assert hint.startswith("Create it")


def test_migrate_by_a_role_that_may_not(cli: CommandLine, database: TestDatabase) -> None:
    said, hint = failure(cli, "migrate", "--dsn", database.worker_dsn, "--user", "somebody_new")
    assert "permission denied" in said
    assert "role" in hint


def test_migrate_with_something_else_than_a_dsn(cli: CommandLine) -> None:
    said, hint = failure(cli, "migrate", "--dsn", "my database")
    assert said.startswith("--dsn is not a connection string: ")
    assert "postgresql://" in hint


# Ports and endpoints


@pytest.mark.parametrize(
    ("option", "server"),
    [("--postgres-port", "PostgreSQL"), ("--sqs-port", "The SQS server"), ("--proxy-port", "The RDS Proxy")],
    ids=["postgres", "sqs", "proxy"],
)
def test_up_on_a_taken_port(cli: CommandLine, option: str, server: str) -> None:
    with taken_port() as port:
        said, hint = failure(cli, "up", option, str(port))
    assert said == f"{server} cannot listen on 127.0.0.1:{port}: Address already in use."
    assert "another one" in hint


def test_an_endpoint_that_answers_500(cli: CommandLine) -> None:
    with http_server(500, b"<html>not even JSON</html>", "text/html") as endpoint:
        said, hint = failure(cli, "up", "--sqs-endpoint", endpoint)
    assert said.startswith(f"The SQS endpoint {endpoint} answered 500 to ")
    assert "endpoint" in hint


JSON = "application/x-amz-json-1.0"


@pytest.mark.parametrize(
    ("status", "body", "content_type", "expected"),
    [
        (503, b"", "text/plain", "answered 503"),
        (404, b'{"detail": "Not Found"}', "application/json", "answered 404"),
        (403, b'{"__type": "AccessDenied"}', JSON, "answered 403 to creating spillway-orders-dlq (AccessDenied)"),
        (200, b"<html>Welcome to nginx!</html>", "text/html", "does not answer as SQS does"),
        (200, b"{}", JSON, "does not answer as SQS does"),
        (200, b"[]", JSON, "does not answer as SQS does"),
        (200, b'{"QueueUrl": 5}', JSON, "does not answer as SQS does"),
    ],
    ids=["503", "another API", "no rights", "a web server", "no queue URL", "a list", "a number"],
)
def test_an_endpoint_that_is_not_sqs(status: int, body: bytes, content_type: str, expected: str) -> None:
    fleet = load_fleet({"DatabaseHost": "db"})
    with http_server(status, body, content_type) as endpoint:
        client = sqs_client(endpoint, attempts=1)
        with pytest.raises(StackError, match="endpoint") as raised:
            create_queues(client, fleet)
        client.close()
    assert raised.value.message.startswith(f"The SQS endpoint {endpoint} ")
    assert expected in raised.value.message
    assert raised.value.hint


def test_an_endpoint_where_nobody_listens(cli: CommandLine) -> None:
    with taken_port() as port:
        pass
    said, hint = failure(cli, "up", "--sqs-endpoint", f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port}" in said
    assert "Could not connect" in said
    assert "--sqs-endpoint" in hint


def test_an_endpoint_that_is_no_url(cli: CommandLine) -> None:
    said, hint = failure(cli, "up", "--sqs-endpoint", "localhost:4566")
    assert said == "--sqs-endpoint 'localhost:4566' is not a URL."
    assert "http://" in hint


# Servers that die


@pytest.mark.parametrize(
    ("command", "server", "name"),
    [
        (["up"], "bin/postgres -D", "PostgreSQL"),
        (["demo", "--events", "20000"], "bin/postgres -D", "PostgreSQL"),
        (["demo", "--events", "20000"], "ministack_queues.py", "The SQS server"),
        (["up"], "-m spillway rdsproxy", "The RDS Proxy"),
        (["demo", "--events", "20000"], "-m spillway rdsproxy", "The RDS Proxy"),
    ],
    ids=["up", "demo without PostgreSQL", "demo without SQS", "up without its proxy", "demo without its proxy"],
)
def test_a_server_that_dies(cli: CommandLine, command: list[str], server: str, name: str) -> None:
    running = cli.start(*command)
    cli.await_process("awslambdaric") if command[0] == "demo" else cli.await_output(running, "Ctrl-C stops.")
    victims = [process for process in cli.processes() if re.match(rf"\d+: \S*(/python\S* (-P )?)?\S*{server}", process)]
    assert len(victims) == 1, cli.processes()
    os.kill(int(victims[0].partition(":")[0]), signal.SIGKILL)
    assert running.wait(BOUND_S) == 1, cli.output(running)
    output = cli.output(running)
    assert f"\nspillway: {name} has died; the stack is stopped.\n" in output
    assert "Traceback" not in output
    assert "event_source_error" not in output


def test_a_database_that_died_before_it_was_watched() -> None:
    with Processes() as processes:
        stack = LocalStack(processes)
        stack.postgres = PostgresServer(processes, durable=False)
        stack.postgres.start()
        with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE spillway")
        with stack.watcher() as admin:
            assert admin.info.dbname == "spillway"
        stack.postgres.stop("immediate")
        with pytest.raises(StackError, match=r"^PostgreSQL has died; the stack is stopped\."):
            stack.watcher()


# The surroundings


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [("Nope=1", "template.yaml has no parameter Nope."), ("Nope", "--parameter 'Nope' has no value.")],
)
def test_a_parameter_that_there_is_not(cli: CommandLine, parameter: str, expected: str) -> None:
    said, _ = failure(cli, "up", "-P", parameter)
    assert said == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DatabaseConnectTimeout", "soon", "a number from 2 to 5"),
        ("DatabaseConnectTimeout", "nan", "a number from 2 to 5"),
        ("DatabaseConnectTimeout", "6", "a number from 2 to 5"),
        ("DatabaseStatementTimeout", "3", "one of 1, 2, 5, 10, 20, 30"),
        ("OrdersMaximumConcurrency", 1, "a number from 2 to 1000"),
        ("DatabaseUser", "Robert'; --", "a match of ^[a-z_][a-z0-9_]*$"),
        ("DatabaseUser", "robert\n", "a match of ^[a-z_][a-z0-9_]*$"),
        ("DatabaseName", "", "a length from 1 to 40"),
        ("LogLevel", "LOUD", "one of DEBUG, INFO, WARN, ERROR"),
    ],
)
def test_a_parameter_that_cloudformation_would_refuse(name: str, value: object, expected: str) -> None:
    with pytest.raises(StackError) as raised:
        load_fleet({"DatabaseHost": "db", name: value})
    assert raised.value.message == f"template.yaml's parameter {name} cannot be {str(value)!r}: expected {expected}."
    assert raised.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read: No such file or directory."),
        ("Resources: [", "is not YAML: "),
        ("hello", "is no SAM template: it has no Resources."),
        ("Resources: {Q: {Type: AWS::Serverless::Function}}", "is not valid: "),
    ],
    ids=["missing", "no YAML", "no template", "no SAM"],
)
def test_a_template_that_cannot_be_used(tmp_path: Path, text: str | None, expected: str) -> None:
    template = tmp_path / "other.yaml"
    if text is not None:
        template.write_text(text)
    with pytest.raises(StackError) as raised:
        load_fleet({}, template)
    assert expected in raised.value.message
    assert template.name in raised.value.message
    assert raised.value.hint


def test_no_place_for_temporary_files(cli: CommandLine) -> None:
    """As on a full disk: no file can be written, wherever it is."""
    result = subprocess.run(
        [cli.python, "-m", "spillway", "demo", "--events", "100"],
        env=cli.environment(),
        cwd=cli.cwd,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BOUND_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert result.returncode == 1
    assert re.fullmatch(
        r"spillway: No usable temporary directory found in \[.*\]\.\nSet TMPDIR to a writable directory.*\n",
        result.stdout,
    ), result.stdout


def test_a_temporary_directory_that_is_not_there(cli: CommandLine) -> None:
    """Python then takes the system's, and so does everything that it starts."""
    result = cli.run("demo", "--events", "100", env={"TMPDIR": str(cli.directory / "nowhere")})
    assert result.returncode == 0, result.stdout
    assert "WRONG" not in result.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user for PostgreSQL")
def test_a_temporary_directory_for_root_alone(cli: CommandLine) -> None:
    cli.tmp.chmod(0o700)
    said, hint = failure(cli, "demo", "--events", "100")
    assert str(cli.tmp) in said
    assert "may not enter" in said
    assert "TMPDIR" in hint


def test_state_that_cannot_be_written(cli: CommandLine) -> None:
    said, hint = failure(cli, "up", env={"SPILLWAY_STATE": "/proc/nowhere/stack.json"})
    assert said == "Cannot write /proc/nowhere/stack.json: No such file or directory."
    assert "SPILLWAY_STATE" in hint


@pytest.fixture
def ordinary(cli: CommandLine) -> CommandLine:
    """The command line of somebody whom file permissions bind: a user that is not root."""
    if os.geteuid() != 0:
        return cli
    # That user may not see the home directory that this interpreter may live in: another one of the same version,
    # with this one's packages.
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        version = _as_nobody(candidate, "import sys; print(sys.version_info[:2])")
        if version == f"{sys.version_info[:2]}\n":
            break
    else:
        pytest.skip("no Python of this version that an ordinary user can run")
    venv = cli.directory / "venv"
    made = subprocess.run([candidate, "-m", "venv", "--without-pip", venv], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no venv for an ordinary user: {made.stdout}{made.stderr}")
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "tested.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPOSITORY}\n")
    cli.python, cli.user = str(venv / "bin" / "python"), NOBODY
    if _as_nobody(cli.python, "import spillway.cli") is None:
        pytest.skip("an ordinary user cannot read the installed packages")
    for path in (cli.tmp, cli.cwd):
        shutil.chown(path, NOBODY, NOBODY)
    return cli


def _as_nobody(python: str, code: str) -> str | None:
    try:
        result = subprocess.run(
            [python, "-c", code], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env={}, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
    except OSError:
        return None
    return result.stdout if result.returncode == 0 else None


def test_an_ordinary_user_in_a_directory_that_is_read_only(ordinary: CommandLine) -> None:
    ordinary.cwd.chmod(0o555)
    result = ordinary.run("demo", "--events", "200")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("\nok ") == 6


def test_up_with_a_data_directory_that_cannot_be_written(ordinary: CommandLine) -> None:
    ordinary.cwd.chmod(0o555)
    said, hint = failure(ordinary, "up", "--data-dir", str(ordinary.cwd / "data"))
    assert str(ordinary.cwd / "data") in said
    assert "Permission denied" in said
    assert "another directory" in hint


def test_send_beside_a_file_that_is_read_only(ordinary: CommandLine, sqs_endpoint: str) -> None:
    """No journal can be kept, which is said; the events are sent."""
    client = sqs_client(sqs_endpoint)
    url = client.create_queue(QueueName="read-only")["QueueUrl"]
    file = ordinary.cwd / "orders.jsonl"
    file.write_text(generate(1, poison=0, duplicates=0).messages[0].body)
    ordinary.cwd.chmod(0o555)
    result = ordinary.run("send", "orders", str(file), "--queue-url", url)
    client.close()
    file.unlink()
    assert (result.returncode, result.stdout) == (
        0,
        f"Cannot write {file}.journal (Permission denied): --resume will not be possible.\nSent 1 of 1 events.\n",
    )


# Wrong usage


def test_debug_shows_where_it_happened(cli: CommandLine) -> None:
    for command, env in (
        (["--debug", "status"], {}),
        (["status", "--debug"], {}),
        (["status"], {"SPILLWAY_DEBUG": "1"}),
    ):
        result = cli.run(*command, env=env)
        assert result.returncode == 1
        assert result.stdout.startswith("Traceback")
        assert "spillway: No local stack is running, and no stack on AWS is named.\n" in result.stdout


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["flood"], "No such command 'flood'."),
        (["demo", "--events", "1"], "--events"),
        (["demo", "--events", "many"], "--events"),
        (["up", "--sqs-port", "70000"], "--sqs-port"),
        (["up", "--route", "detour"], "--route"),
        (["send"], "Missing argument"),
    ],
    ids=" ".join,
)
def test_wrong_usage(cli: CommandLine, command: list[str], expected: str) -> None:
    result = cli.run(*command, timeout_s=BOUND_S)
    assert result.returncode == 2
    assert expected in result.stdout
    assert "Traceback" not in result.stdout


def test_a_route_that_there_is_not(cli: CommandLine) -> None:
    result = cli.run("up", env={"DATABASE_ROUTE": "detour"}, timeout_s=BOUND_S)
    assert result.returncode == 2
    assert "DATABASE_ROUTE" in result.stdout
    assert "direct" in result.stdout


def test_a_port_for_a_proxy_that_is_left_out(cli: CommandLine) -> None:
    said, hint = failure(cli, "up", "--route", "direct", "--proxy-port", "6432")
    assert "--proxy-port" in said
    assert "Drop" in hint


def test_nothing_left_to_repeat(cli: CommandLine) -> None:
    said, hint = failure(cli, "demo", "--poison", "0.5", "--duplicates", "0.5")
    assert "--duplicates" in said
    assert "below 1" in hint


def test_send_names_every_bad_line(cli: CommandLine, sqs_endpoint: str) -> None:
    good = generate(1, poison=0, duplicates=0).messages[0].body
    file = cli.cwd / "orders.jsonl"
    file.write_text(f'{good}\nnot JSON\n{good.replace("order.", "ordre.", 1)}\n{{"id": 5}}\n', encoding="utf-8")
    before = file.read_bytes()
    result = cli.run("send", "orders", str(file), "--queue-url", f"{sqs_endpoint}/000000000000/any")
    assert result.returncode == 1
    assert f"spillway: Nothing was sent: {file} has 3 bad lines.\n" in result.stdout
    assert [int(line) for line in re.findall(rf"^  {re.escape(str(file))}:(\d+): ", result.stdout, re.MULTILINE)] == [
        2,
        3,
        4,
    ]
    assert "--skip-invalid" in result.stdout
    assert "Traceback" not in result.stdout
    assert file.read_bytes() == before
    file.unlink()


def test_send_of_a_file_that_is_not_there(cli: CommandLine) -> None:
    said, hint = failure(cli, "send", "orders", "nowhere.jsonl", "--dry-run")
    assert said == "Cannot read nowhere.jsonl: No such file or directory."
    assert "JSONL" in hint


def test_send_to_a_worker_that_does_not_exist(cli: CommandLine) -> None:
    said, _ = failure(cli, "send", "refunds", os.devnull, "--dry-run")
    assert "refunds" in said


def _older_pythons() -> list[Path]:
    """Whatever Python is installed that is too old, not only what PATH leads to: shims may stand in front of it."""
    places = [*map(Path, os.environ.get("PATH", "").split(os.pathsep)), *Path.home().glob(".pyenv/versions/*/bin")]
    names = ["python2.7", *(f"python3.{minor}" for minor in range(6, 11))]
    return [place / name for name in names for place in places if (place / name).exists()]


def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    said = []
    for python in _older_pythons():
        asked = [str(python), "-c", "import sys; print(sys.version_info[0])"]
        if subprocess.run(asked, check=False, capture_output=True, cwd=tmp_path).returncode:
            continue  # a shim without its interpreter
        command = [str(python), "-B", str(REPOSITORY / "spillway" / "__main__.py"), "demo"]
        result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, ""), python
        said.append(result.stderr)
    if not said:
        pytest.skip("no Python older than 3.11 is installed")
    for sentence in said:
        assert re.fullmatch(
            r"Spillway needs Python 3\.11 or newer, and this is \d\.\d+\. `make` finds one\.\n", sentence
        ), sentence
