"""A failover of the real local stack by `spillway failover-drill`, and what `spillway pinned` says of it afterwards."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import boto3
import msgspec
import psycopg
import pytest

from spillway.stack.state import StackState
from tests.stack.commands import CommandLine, command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTAGE_S = 2.0


@pytest.fixture
def cli() -> Iterator[CommandLine]:
    with command_line() as one:
        yield one


def test_a_failover_is_seen_and_loses_nothing(cli: CommandLine) -> None:
    up = cli.start("up")
    cli.await_output(up, "Ctrl-C stops.")
    state = msgspec.json.decode(cli.state.read_bytes(), type=StackState)

    drill = cli.run("failover-drill", "--outage", f"{OUTAGE_S}", "--seconds", "2.5", "--goal", "1", "--json")
    assert drill.returncode == 3, drill.stdout  # an outage of two seconds is more than one
    told, _, report_text = drill.stdout.rpartition("\n{")
    assert "failover started: no database for 2 s" in told
    report = json.loads("{" + report_text)
    assert [check["name"] for check in report["checks"] if not check["holds"]] == ["interruption"]
    assert report["sent"] == report["done"] == report["rows"] >= 20
    assert (report["lost"], report["doubled"], report["dead_lettered"]) == ([], [], 0)
    assert report["producers"]["badly"] == 0
    # Never shorter than the outage, but for the probe before it and the pause between two of them.
    assert report["database"]["interruption_s"] > OUTAGE_S / 2
    assert report["consumers"]["interruption_s"] > OUTAGE_S / 2
    with psycopg.connect(state.dsn, autocommit=True) as owner:
        assert len(owner.execute(report["find"]).fetchall()) == report["sent"]
        owner.execute(report["remove"])
        assert owner.execute("SELECT count(*) FROM spillway.orders").fetchone() == (0,)

    pin(state, "SET search_path = spillway")
    pinned = cli.run("pinned", "--json")
    assert pinned.returncode == 0, pinned.stdout
    found = json.loads(pinned.stdout)
    # The drill's own statements, and the workers', pin nothing.
    assert [(one["rule"], one["times"], one["example"]) for one in found["groups"]] == [
        ("set", 1, "SET search_path = spillway")
    ]
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == 0


def pin(state: StackState, statement: str) -> None:
    login = state.login
    assert login is not None
    keys = {
        "aws_access_key_id": login.access_key,
        "aws_secret_access_key": login.secret_key,
        "aws_session_token": login.session_token,
    }
    signer = boto3.client("rds", region_name=state.region, **keys)  # type: ignore[call-overload]
    with psycopg.connect(
        host=login.host,
        port=login.port,
        dbname=login.database,
        user=login.user,
        password=signer.generate_db_auth_token(login.host, login.port, login.user),
        sslmode="verify-full",
        sslrootcert=login.ca_file,
        autocommit=True,
    ) as client:
        client.execute(statement.encode())
