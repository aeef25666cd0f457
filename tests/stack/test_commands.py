"""`python -m spillway ...` in processes of its own, as people run it; also stopped at bad moments."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
import psycopg
import pytest

from spillway.contracts import CONTRACTS
from spillway.histories.orders import generate
from spillway.stack.postgres import _installation
from tests.stack.commands import CommandLine, command_line, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEED = 20_261


@pytest.fixture
def cli() -> Iterator[CommandLine]:
    with command_line() as one:
        yield one


@pytest.mark.parametrize("route", ["proxy", "direct"])
def test_demo_checks_what_it_did(cli: CommandLine, route: str) -> None:
    result = cli.run("demo", "--events", "600", env={"DATABASE_ROUTE": "direct"} if route == "direct" else {})
    assert result.returncode == 0, result.stdout
    assert "Traceback" not in result.stdout
    assert re.search(r"^sent +600 +seed 1$", result.stdout, re.MULTILINE)
    checks = re.findall(r"^(ok|WRONG) (.+?):", result.stdout, re.MULTILINE)
    assert [mark for mark, _ in checks] == ["ok"] * (6 if route == "proxy" else 5)
    assert "rows equal the sequential reference" in {name for _, name in checks}
    if route == "proxy":
        assert re.search(r"^clients +\d+  most connections to the RDS Proxy", result.stdout, re.MULTILINE)
        assert re.search(r"^connections +\d+  .*\(the proxy's pool has 20\)$", result.stdout, re.MULTILINE)
        assert re.search(r"^borrowing +\S+ (us|ms|s)  .*\(p99 \S+ (us|ms|s)\)$", result.stdout, re.MULTILINE)
        assert re.search(r"^pinned +0 ", result.stdout, re.MULTILINE)
        assert re.search(r"^ok no session was pinned .*: 0 of [1-9]\d* client", result.stdout, re.MULTILINE)
    else:
        assert re.search(r"^proxy +none ", result.stdout, re.MULTILINE)
        assert "pinned" not in result.stdout
    assert cli.leftovers() == []


def test_demo_of_another_seed_kept_to_look_at(cli: CommandLine) -> None:
    options = ("--events", "400", "--seed", "7", "--poison", "0.2", "--duplicates", "0.2", "--keep")
    demo = cli.start("demo", *options)
    shown = cli.await_output(demo, "Ctrl-C stops.")
    assert re.search(r"^sent +400 +seed 7$", shown, re.MULTILINE)
    assert re.search(r"^dead-lettered +80 ", shown, re.MULTILINE)
    assert re.search(r"^duplicate +80 ", shown, re.MULTILINE)
    assert shown.count("\nok ") == 6
    status = cli.run("status")
    assert status.returncode == 0, status.stdout
    assert re.search(r"^orders +0 +0 +- +80 +Enabled +0 of \d+$", status.stdout, re.MULTILINE), status.stdout
    demo.send_signal(signal.SIGINT)
    assert demo.wait(30) == 0, cli.output(demo)
    assert "Traceback" not in cli.output(demo)
    assert cli.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_stopped_at_any_moment_leaves_nothing(number: signal.Signals) -> None:
    """Several at once, each at a moment of its own: from the interpreter's start, through servers and flood."""
    rng = random.Random(SEED + number)
    moments = [rng.uniform(0.1, 0.6), *(rng.uniform(0.6, 7) for _ in range(3))]

    def stop_at(moment: float) -> list[str]:
        with command_line() as cli:
            demo = cli.start("demo", "--events", "20000")
            try:
                demo.wait(moment)
            except subprocess.TimeoutExpired:
                demo.send_signal(number)
            status, output = demo.wait(60), cli.output(demo)
            wrong = [f"{moment:.2f} s: still there: {thing}" for thing in cli.leftovers()]
            # By default a signal ends a process by itself, which is what it does before there is anything to stop.
            if status not in (130, -number):
                wrong.append(f"{moment:.2f} s: exit status {status}")
            # Before its first line of ours, Python greets a Ctrl-C with a traceback of its own.
            if "Traceback" in output and "__main__.py" in output:
                wrong.append(f"{moment:.2f} s: {output}")
            return wrong

    with ThreadPoolExecutor(4) as pool:
        assert [wrong for found in pool.map(stop_at, moments) for wrong in found] == []


def test_demo_interrupted_while_it_ends(cli: CommandLine) -> None:
    demo = cli.start("demo", "--events", "100")
    cli.await_output(demo, "ok rows equal")
    demo.send_signal(signal.SIGINT)
    assert demo.wait(30) in (0, 130), cli.output(demo)
    assert "Traceback" not in cli.output(demo)
    assert cli.leftovers() == []


def test_a_second_ctrl_c_does_not_wait(cli: CommandLine) -> None:
    demo = cli.start("demo", "--events", "20000")
    cli.await_process("bin/postgres")
    demo.send_signal(signal.SIGINT)
    time.sleep(0.2)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(30) == 130, cli.output(demo)
    assert "Traceback" not in cli.output(demo)
    assert cli.leftovers() == []


def test_up_serves_other_terminals(cli: CommandLine, tmp_path: Path) -> None:
    up = cli.start("up")
    text = cli.await_output(up, "Ctrl-C stops.")
    endpoint = re.search(r"^SQS endpoint +(http://127\.0\.0\.1:\d+)$", text, re.MULTILINE)
    queue = re.search(r"^orders queue +(\S+/spillway-orders)$", text, re.MULTILINE)
    dead = re.search(r"^ +dead letters +(\S+/spillway-orders-dlq)$", text, re.MULTILINE)
    dsn = re.search(r"^PostgreSQL +(postgresql://\S+/spillway)$", text, re.MULTILINE)
    assert endpoint
    assert queue
    assert dead
    assert dsn
    admin = re.search(
        r"^ +watch it +spillway (rdsproxy watch --admin-url (http://127\.0\.0\.1:\d+))$", text, re.MULTILINE
    )
    assert admin
    workers = re.search(r"^ +workers +(postgresql://\S+)$", text, re.MULTILINE)
    assert workers
    check_workers_login(workers[1])

    events = tmp_path / "orders.jsonl"
    bodies = [message.body for message in generate(200, seed=3, poison=0, duplicates=0).messages]
    events.write_text("\n".join(bodies) + "\n", encoding="utf-8")
    sent = cli.run("send", "orders", str(events))
    assert (sent.returncode, sent.stdout) == (0, "Sent 200 of 200 events.\n")

    def status() -> dict[str, object]:
        result = cli.run("status", "--json")
        assert result.returncode == 0, result.stdout
        document: dict[str, object] = json.loads(result.stdout)
        return document

    until(lambda: status()["done"] == 200, "200 events to be done")
    assert status()["queues"] == {worker: {"waiting": 0, "in_flight": 0, "dead": 0} for worker in CONTRACTS}
    use = status()["proxy"]
    assert isinstance(use, dict)
    assert use["client_connections"] > 0
    assert use["database_connections"] > 0
    assert use["borrow_p50_s"] is not None
    assert use["borrow_p99_s"] is not None
    assert (use["pinned"], use["pinned_total"], use["borrow_timeouts"]) == (0, 0, 0)
    table = cli.run("status").stdout
    assert re.search(r"^orders +0 +0 +- +0 +Enabled +0 of \d+$", table, re.MULTILINE), table
    assert re.search(
        r"^RDS Proxy +client connections [1-9]\d*, database connections [1-9]\d* of 20$", table, re.MULTILINE
    ), table
    assert re.search(r"^borrowing +p50 \S+ (us|ms|s), p99 \S+ (us|ms|s), waiting 0, timed out 0$", table, re.MULTILINE)
    assert re.search(r"^pinned +now 0, since the start 0$", table, re.MULTILINE), table
    # Whoever copies the command that `up` prints looks at this proxy.
    fault = cli.run("rdsproxy", "fault", "latency", "per_request=0", "--admin-url", admin[2])
    assert fault.returncode == 0, fault.stdout
    assert "applied" in table

    # psql of the same wheel, as a user with any psql would call it.
    psql = subprocess.run(
        [_installation() / "bin" / "psql", dsn[1], "-Atc", "SELECT count(*) FROM spillway.order_events"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (psql.returncode, psql.stdout) == (0, "200\n"), psql.stderr

    client = boto3.client(
        "sqs",
        endpoint_url=endpoint[1],
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    client.send_message(QueueUrl=queue[1], MessageBody="not an order")
    until(
        lambda: bool(client.receive_message(QueueUrl=dead[1], VisibilityTimeout=0).get("Messages")), "the dead letter"
    )
    client.close()

    second = cli.run("up")
    assert second.returncode == 1
    assert f"A local stack is running already (process {up.pid}, SQS at {endpoint[1]})." in second.stdout
    assert "SPILLWAY_STATE" in second.stdout
    assert up.poll() is None

    up.send_signal(signal.SIGINT)
    assert up.wait(30) == 0, cli.output(up)
    assert "Traceback" not in cli.output(up)
    assert cli.leftovers() == []
    assert not cli.state.exists()


def check_workers_login(dsn: str) -> None:
    """Nobody without TLS, nobody without a token, and whoever signs as the functions do."""
    parts = urlsplit(dsn)
    host, port, user = parts.hostname, parts.port, parts.username
    client = boto3.client("rds", region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
    token = client.generate_db_auth_token(host, port, user)
    client.close()
    with psycopg.connect(dsn, password=token, autocommit=True, prepare_threshold=None) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (user,)
    with pytest.raises(psycopg.OperationalError, match="requires TLS"):
        psycopg.connect(dsn, password=token, sslmode="disable")
    with pytest.raises(psycopg.OperationalError, match="IAM authentication failed"):
        psycopg.connect(dsn, password="application-password")


def test_up_without_a_proxy(cli: CommandLine, tmp_path: Path) -> None:
    up = cli.start("up", "--route", "direct", env={"DATABASE_ROUTE": "proxy"})
    text = cli.await_output(up, "Ctrl-C stops.")
    assert "RDS Proxy       none: " in text
    assert "rdsproxy watch" not in text
    assert [process for process in cli.processes() if "rdsproxy" in process] == []
    workers = re.search(r"^ +workers +(postgresql://\S+)$", text, re.MULTILINE)
    assert workers
    with psycopg.connect(workers[1]) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("spillway_app",)

    def proxy() -> object:
        return json.loads(cli.run("status", "--json").stdout)["proxy"]

    until(lambda: cli.run("status").returncode == 0, "the first snapshot")
    assert proxy() is None
    assert "pinned" not in cli.run("status").stdout
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == 0, cli.output(up)
    assert cli.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_up_ended_otherwise_leaves_nothing(cli: CommandLine, number: signal.Signals) -> None:
    up = cli.start("up")
    cli.await_output(up, "Ctrl-C stops.")
    assert any("spillway rdsproxy" in process for process in cli.processes())
    up.send_signal(number)
    assert up.wait(30) == (-number if number == signal.SIGKILL else 0), cli.output(up)
    assert cli.leftovers() == []
    # Of a stack that was killed only its state is left, and nobody believes it.
    assert cli.state.exists() == (number == signal.SIGKILL)
    status = cli.run("status")
    assert (status.returncode, status.stdout) == (
        1,
        "spillway: No local stack is running, and no stack on AWS is named.\n"
        "Start one with `spillway up`, or name a deployed one with --stack or SPILLWAY_STACK.\n",
    )


def test_up_keeps_its_data_where_it_is_told_to(cli: CommandLine) -> None:
    data = cli.directory / "data"
    for rows in (0, 1):
        up = cli.start("up", "--data-dir", str(data))
        text = cli.await_output(up, "Ctrl-C stops.")
        dsn = re.search(r"^PostgreSQL +(\S+)$", text, re.MULTILINE)
        assert dsn
        with psycopg.connect(dsn[1], autocommit=True) as connection:
            count = "SELECT count(*) FROM spillway.order_events"
            assert connection.execute(count).fetchone() == (rows,)
            event = cli.directory / "orders.jsonl"
            event.write_text(generate(1, poison=0, duplicates=0).messages[0].body + "\n", encoding="utf-8")
            assert cli.run("send", "orders", str(event)).returncode == 0
            # The second time it is the same event: it must be seen, and change nothing.
            until(lambda: json.loads(cli.run("status", "--json").stdout)["done"] == 1, "the event to be done")
            assert connection.execute(count).fetchone() == (1,)
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0, cli.output(up)
        assert cli.leftovers(but=[data]) == []
    assert (data / "data" / "PG_VERSION").exists()


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["send", "orders", os.devnull], ["migrate"]])
def test_without_a_stack_commands_say_so(cli: CommandLine, command: list[str]) -> None:
    result = cli.run(*command)
    assert result.returncode == 1
    assert "no local stack is running" in result.stdout.lower()
    assert result.stdout.count("\n") == 2, "a sentence, and what to do"
