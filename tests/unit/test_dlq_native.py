"""`spillway dlq redrive --native` against AWS's answers: SQS's own move task, begun, followed, cancelled, failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import typer
from botocore.stub import ANY, Stubber
from typer.testing import CliRunner

import spillway.commands.dlq.redriving as command
from spillway.dlq import native
from spillway.dlq.journal import Journal
from spillway.errors import SpillwayError
from spillway.fleet.fleet import Fleet, Worker
from spillway.interrupts import INTERRUPTED

BASE = "https://sqs.eu-west-1.amazonaws.com/123456789012"
ARN = "arn:aws:sqs:eu-west-1:123456789012"
ORDERS = Worker(
    name="orders",
    queue_url=f"{BASE}/shop-orders",
    dead_letter_url=f"{BASE}/shop-orders-dlq",
    function="shop-orders",
    logs="/aws/lambda/shop-orders",
)
COUNTS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]

app = typer.Typer()
app.command()(command.redrive)


class Aws:
    """An SQS and an STS client that answer what a test tells them to, in that order."""

    def __init__(self, clients: dict[str, Any]) -> None:
        self.clients = clients
        self.stubs = {name: Stubber(client) for name, client in clients.items()}
        for stub in self.stubs.values():
            stub.activate()
        self.sqs = self.stubs["sqs"]

    def asked_for_queues(self, depth: int = 1200) -> None:
        for queue in ("shop-orders-dlq", "shop-orders"):
            self.sqs.add_response(
                "get_queue_attributes",
                {"Attributes": {"QueueArn": f"{ARN}:{queue}"}},
                {"QueueUrl": f"{BASE}/{queue}", "AttributeNames": ["QueueArn"]},
            )
        self.lists()
        self.sqs.add_response(
            "get_queue_attributes",
            {"Attributes": dict.fromkeys(COUNTS, "0") | {COUNTS[0]: str(depth)}},
            {"QueueUrl": f"{BASE}/shop-orders-dlq", "AttributeNames": ANY},
        )

    def lists(self, *tasks: dict[str, Any]) -> None:
        self.sqs.add_response(
            "list_message_move_tasks",
            {"Results": list(tasks)},
            {"SourceArn": f"{ARN}:shop-orders-dlq", "MaxResults": 1},
        )

    def starts(self, **more: Any) -> None:
        self.stubs["sts"].add_response(
            "get_caller_identity", {"Arn": "arn:aws:sts::123456789012:assumed-role/oncall/ann"}
        )
        self.sqs.add_response(
            "start_message_move_task",
            {"TaskHandle": "handle"},
            {"SourceArn": f"{ARN}:shop-orders-dlq", "DestinationArn": f"{ARN}:shop-orders"} | more,
        )


def task(status: str, moved: int = 0, **more: Any) -> dict[str, Any]:
    counts = {"ApproximateNumberOfMessagesMoved": moved, "ApproximateNumberOfMessagesToMove": 1200}
    return {"Status": status, "SourceArn": f"{ARN}:shop-orders-dlq"} | counts | more


@pytest.fixture(scope="module")
def clients() -> dict[str, Any]:
    session = boto3.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="eu-west-1")
    return {name: session.client(name) for name in ("sqs", "sts")}


@pytest.fixture
def aws(clients: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Aws]:
    one = Aws(clients)
    fleet = Fleet(name="shop", workers={"orders": ORDERS}, region="eu-west-1")
    monkeypatch.setattr(command, "find_fleet", lambda *_: fleet)
    monkeypatch.setattr(Fleet, "client", lambda _self, service, **_: one.clients[service])
    monkeypatch.setenv("SPILLWAY_JOURNAL", str(tmp_path / "journal.sqlite3"))
    monkeypatch.delenv("SPILLWAY_STACK", raising=False)
    real = native.follow
    monkeypatch.setattr(native, "follow", lambda *given, **more: real(*given, **more, poll_s=0.001))
    yield one
    for stub in one.stubs.values():
        stub.assert_no_pending_responses()
        stub.deactivate()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["orders", "--native", *arguments])
    if isinstance(result.exception, SpillwayError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def journaled() -> tuple[str, str, dict[str, int], str]:
    with Journal.open() as journal:
        [record] = journal.runs()
        return record.kind, record.state, record.counts, record.who.partition(" as ")[2]


def test_without_yes_it_says_its_limits_and_moves_nothing(aws: Aws) -> None:
    aws.asked_for_queues()
    status, said = run("--rate", "100")
    assert status == 0
    assert "about 1,200 messages from shop-orders-dlq to shop-orders" in said
    assert all(limit in said for limit in native.LIMITS)
    assert "spillway dlq redrive orders --native --rate 100 --yes --stack shop --region eu-west-1" in said
    with Journal.open() as journal:
        assert journal.runs() == []


def test_a_task_is_followed_to_its_end(aws: Aws) -> None:
    aws.asked_for_queues()
    aws.starts(MaxNumberOfMessagesPerSecond=500)
    aws.lists(task("RUNNING", 300, TaskHandle="handle"))
    aws.lists(task("RUNNING", 900, TaskHandle="handle"))
    aws.lists(task("COMPLETED", 1200))
    status, said = run("--rate", "500", "--yes")
    assert (status, said.splitlines()[-1].partition(" (run")[0]) == (0, "Moved about 1,200 messages to shop-orders")
    who = "arn:aws:sts::123456789012:assumed-role/oncall/ann"
    assert journaled() == ("native", "done", {"redriven": 1200}, who)


def test_json(aws: Aws) -> None:
    aws.asked_for_queues()
    aws.starts()
    aws.lists(task("COMPLETED", 1200))
    status, said = run("--yes", "--json")
    document = json.loads(said)
    assert (status, document["task"]["moved"], document["queue"]) == (0, 1200, "shop-orders-dlq")


def interrupted(aws: Aws, cancel: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    real = native.follow

    def follow(*given: Any, stop: Any, **more: Any) -> native.Task:
        stop.set()
        return real(*given, stop=stop, **more)

    monkeypatch.setattr(native, "follow", follow)
    aws.asked_for_queues()
    aws.starts()
    aws.lists(task("RUNNING", 300, TaskHandle="handle"))
    cancel()
    return run("--yes")


def test_ctrl_c_cancels_it_and_says_how_far_it_was(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel() -> None:
        answer = {"ApproximateNumberOfMessagesMoved": 310}
        aws.sqs.add_response("cancel_message_move_task", answer, {"TaskHandle": "handle"})

    status, said = interrupted(aws, cancel, monkeypatch)
    assert status == INTERRUPTED
    assert "Cancelled: about 310 of 1,200 messages had been moved to shop-orders and stay there" in said
    assert journaled()[:3] == ("native", "interrupted", {"redriven": 310})


def test_a_task_that_ends_while_it_is_cancelled_has_ended(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel() -> None:
        aws.sqs.add_client_error("cancel_message_move_task", "ResourceNotFoundException", "no longer runs", 404)
        aws.lists(task("COMPLETED", 1200))

    status, said = interrupted(aws, cancel, monkeypatch)
    assert (status, "Moved about 1,200 messages" in said) == (0, True)


def test_a_task_that_fails_says_why(aws: Aws) -> None:
    aws.asked_for_queues()
    aws.starts()
    aws.lists(task("FAILED", 20, FailureReason="CouldNotDetermineMessageSource"))
    status, said = run("--yes")
    assert status == 1
    assert "ended as FAILED after 20 of 1,200 messages: CouldNotDetermineMessageSource" in said
    assert journaled()[:3] == ("native", "failed", {"redriven": 20})


def test_a_task_that_cannot_be_started_is_a_failed_run(aws: Aws) -> None:
    aws.asked_for_queues()
    aws.stubs["sts"].add_client_error("get_caller_identity", "AccessDenied", "no")
    aws.sqs.add_client_error("start_message_move_task", "AccessDenied", "no")
    result = CliRunner().invoke(app, ["orders", "--native", "--yes"])
    assert "AccessDenied" in str(result.exception)
    assert journaled() == ("native", "failed", {}, "")


def test_one_task_at_a_time(aws: Aws) -> None:
    for queue in ("shop-orders-dlq", "shop-orders"):
        aws.sqs.add_response("get_queue_attributes", {"Attributes": {"QueueArn": f"{ARN}:{queue}"}})
    aws.lists(task("RUNNING", 7, TaskHandle="another"))
    status, said = run("--yes")
    assert (status, "is running: 7 of 1,200 messages" in said) == (1, True)


@pytest.mark.parametrize(
    "options",
    [
        ("--reason", "data"),
        ("--group", "0123abcd"),
        ("--limit", "3"),
        ("--edit", "{}"),
        ("--edit-with", "cat"),
        ("--no-canary",),
        ("--canary-timeout", "5"),
        ("--resume", "last"),
    ],
)
def test_what_sqs_cannot_do_is_refused(aws: Aws, options: tuple[str, ...]) -> None:
    status, said = run(*options, "--yes")
    assert (status, "--native cannot be used with" in said) == (2, True)


@pytest.mark.parametrize("rate", ["0.5", "501", "2.5"])
def test_a_rate_that_sqs_does_not_take(aws: Aws, rate: str) -> None:
    status, said = run("--rate", rate)
    assert (status, "from 1 to 500" in said) == (2, True)
