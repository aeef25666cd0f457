"""`spillway doctor` on the local stack: silent while all is well, and it finds what somebody broke."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import msgspec
import psycopg
import pytest

from spillway.aws import sqs_client
from spillway.rdsproxy.admin import AdminClient
from spillway.stack.state import StackState
from tests.stack.commands import CommandLine, command_line

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def cli() -> Iterator[CommandLine]:
    with command_line() as one:
        yield one


def test_the_doctor_is_silent_on_a_good_stack_and_finds_what_was_broken(cli: CommandLine) -> None:
    up = cli.start("up")
    cli.await_output(up, "Ctrl-C stops.")
    state = msgspec.json.decode(cli.state.read_bytes(), type=StackState)
    assert state.login is not None
    assert state.proxy_admin_url is not None

    well = cli.run("doctor")
    assert well.returncode == 0, well.stdout
    assert "\nAll well: " in well.stdout
    assert not re.search(r"\b(fail|warn)\b", well.stdout.replace("proxy-login-failures", "")), well.stdout
    assert max(map(len, well.stdout.splitlines())) <= 100
    assert AdminClient(state.proxy_admin_url).snapshot().pinned_sessions_total == 0

    client = sqs_client(state.endpoint_url, state.region)
    client.set_queue_attributes(QueueUrl=state.queues["orders"], Attributes={"VisibilityTimeout": "60"})
    client.send_message(QueueUrl=state.dead_letter_queues["audit"], MessageBody="a customer's secret")
    with psycopg.connect(state.dsn, autocommit=True) as admin:
        admin.execute(f"ALTER ROLE {state.login.user} RESET statement_timeout")
    broken = cli.run("doctor", "--json", "--junit", str(cli.directory / "doctor.xml"))
    assert broken.returncode == 1, broken.stdout
    report = json.loads(broken.stdout)
    assert {(one["check"], one["level"]) for one in report["findings"] if one["level"] in ("warn", "fail")} == {
        ("visibility-timeout", "fail"),
        ("told-times", "fail"),
        ("queue-drift", "warn"),
        ("dlq-empty", "warn"),
        ("role-timeouts", "fail"),
    }
    assert report["verdict"] == "fail"
    suites = ET.parse(cli.directory / "doctor.xml").getroot()  # noqa: S314  (ours)
    assert suites.get("failures") == "3"
    for secret in (state.login.password, urlsplit(state.dsn).password, "customer"):
        assert secret
        assert secret not in broken.stdout + well.stdout
