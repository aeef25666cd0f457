"""Which fleet a command is about, and which queue a word means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from spillway import aws
from spillway.errors import SpillwayError
from spillway.fleet import canaries, find
from spillway.fleet.find import find_fleet
from spillway.fleet.fleet import Fleet, Worker
from spillway.stack.state import StackState

REGION = "eu-west-1"


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "SPILLWAY_STACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "stack.json"))


def summary(logical_id: str, kind: str, physical_id: str) -> dict[str, Any]:
    return {
        "LogicalResourceId": logical_id,
        "ResourceType": kind,
        "PhysicalResourceId": physical_id,
        "LastUpdatedTimestamp": datetime(2026, 11, 21, tzinfo=UTC),
        "ResourceStatus": "UPDATE_COMPLETE",
    }


SQS = "https://sqs.eu-west-1.amazonaws.com/123456789012/"
NESTED = "arn:aws:cloudformation:eu-west-1:123456789012:stack/prod-Observability-1/2"
#: moto has these calls, but only with two dozen packages that read templates.
STACKS = {
    "prod": [
        summary("OrdersQueue", "AWS::SQS::Queue", f"{SQS}prod-orders"),
        summary("OrdersDeadLetterQueue", "AWS::SQS::Queue", f"{SQS}prod-orders-dlq"),
        summary("OrdersConsumer", "AWS::Lambda::Function", "prod-orders"),
        summary("StockItemsQueue", "AWS::SQS::Queue", f"{SQS}prod-stock_items.fifo"),
        summary("Observability", "AWS::CloudFormation::Stack", NESTED),
        summary("StockItemsDeadLetterQueue", "AWS::SQS::Queue", f"{SQS}prod-stock_items-dlq.fifo"),
        summary("StockItemsConsumer", "AWS::Lambda::Function", "prod-stock_items"),
        summary("GovernorFunction", "AWS::Lambda::Function", "prod-governor"),
    ],
    NESTED: [summary("Topic", "AWS::SNS::Topic", "arn:aws:sns:eu-west-1:123456789012:t")],
    "other": [summary("Topic", "AWS::SNS::Topic", "arn:aws:sns:eu-west-1:123456789012:o")],
}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """CloudFormation, which answers for the stacks it is told that it will be asked about, two pages each."""
    client = boto3.client("cloudformation", region_name=REGION)
    monkeypatch.setattr(aws, "client", lambda *_, **__: client)

    with Stubber(client) as stub:

        def asked(*stacks: str) -> None:
            for stack in stacks:
                if stack not in STACKS:
                    message = f"Stack with id {stack} does not exist"
                    stub.add_client_error("list_stack_resources", "ValidationError", message, 400)
                    continue
                first, second = STACKS[stack][:5], STACKS[stack][5:]
                answer = {"StackResourceSummaries": first} | ({"NextToken": "n"} if second else {})
                stub.add_response("list_stack_resources", answer, {"StackName": stack})
                if stack == "prod":
                    asked(NESTED)
                if second:
                    expected = {"StackName": stack, "NextToken": "n"}
                    stub.add_response("list_stack_resources", {"StackResourceSummaries": second}, expected)

        yield asked
        stub.assert_no_pending_responses()


def test_a_deployed_fleet_is_read_from_its_stack_and_those_it_nests(cloud: Callable[..., None]) -> None:
    cloud("prod")
    fleet = find_fleet("prod", REGION)
    assert {name: (worker.queue, worker.dead_letter_queue) for name, worker in fleet.workers.items()} == {
        "orders": ("prod-orders", "prod-orders-dlq"),
        "stock_items": ("prod-stock_items.fifo", "prod-stock_items-dlq.fifo"),
    }
    assert [worker.fifo for worker in fleet.workers.values()] == [False, True]
    assert fleet.workers["orders"].logs == "/aws/lambda/prod-orders"
    assert [one.stack for one in fleet.of_type("AWS::SNS::Topic")] == ["Observability"]
    assert list(fleet.of_type("AWS::SNS::Topic", "")) == []
    assert fleet.identity == "prod in eu-west-1"


def test_a_stack_that_is_not_there_or_is_no_fleet(cloud: Callable[..., None]) -> None:
    cloud("pord", "other")
    with pytest.raises(SpillwayError, match=r"no stack 'pord' in eu-west-1"):
        find_fleet("pord", REGION)
    with pytest.raises(SpillwayError, match="The stack other has no worker"):
        find_fleet("other", REGION)


def test_nothing_to_talk_to() -> None:
    with pytest.raises(SpillwayError, match="No local stack is running, and no stack on AWS is named"):
        find_fleet()
    with pytest.raises(SpillwayError, match="--region and --profile are for a stack on AWS"):
        find_fleet(region=REGION)


def state(**more: Any) -> StackState:
    url = "http://127.0.0.1:4566/000000000000/"
    return StackState(
        pid=1,
        endpoint_url="http://127.0.0.1:4566",
        region="us-east-1",
        queues={"orders": f"{url}spillway-orders", "payments": f"{url}spillway-payments.fifo"},
        dead_letter_queues={"orders": f"{url}spillway-orders-dlq", "payments": f"{url}spillway-payments-dlq.fifo"},
        dsn="",
        started_at=1.5,
        log_dir="/logs",
        functions={"orders": "spillway-orders", "payments": "spillway-payments"},
        **more,
    )


def test_the_local_stack_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "read_state", state)
    fleet = find_fleet()
    assert fleet.local == state()
    assert fleet.workers["orders"].logs == "/logs/spillway-orders.log"
    assert fleet.sqs().meta.endpoint_url == "http://127.0.0.1:4566"
    assert "1.5" in fleet.identity
    with pytest.raises(ValueError, match="no rds"):
        fleet.client("rds")


@pytest.mark.parametrize(
    "said",
    [
        "payments",
        "payments-dlq",
        "payments-dlq.fifo",
        "spillway-payments",
        "spillway-payments-dlq.fifo",
        "http://127.0.0.1:4566/000000000000/spillway-payments-dlq.fifo",
        "arn:aws:sqs:us-east-1:000000000000:spillway-payments-dlq.fifo",
    ],
)
def test_a_queue_has_many_names(said: str) -> None:
    assert find.local(state()).find_worker(said).name == "payments"


@pytest.mark.parametrize(
    ("said", "near"), [("ordes", "'orders'"), ("spillway-order-dlq", "'spillway-orders-dlq'"), ("xyz", None)]
)
def test_an_unknown_queue_is_answered_with_the_nearest_name(said: str, near: str | None) -> None:
    with pytest.raises(SpillwayError) as caught:
        find.local(state()).find_worker(said)
    assert repr(said) in caught.value.message
    assert "spillway-orders-dlq, spillway-payments-dlq.fifo" in caught.value.hint
    assert ("Did you mean " in caught.value.hint) is (near is not None)
    assert near is None or near in caught.value.hint


# ── canaries ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def line(canary: str = "redrive-7", message: str = "canary", **more: str) -> str:
    said = {"level": "WARNING", "message": message, "timestamp": "2026-11-21 09:30:00,125+0100", "canary": canary}
    return json.dumps(said | {"message_id": "m1", "outcome": "applied"} | more)


def worker(logs: str) -> Worker:
    return Worker(name="orders", queue_url="q", dead_letter_url="d", function="f", logs=logs)


def test_fates_are_read_from_the_functions_log_file_as_they_are_written(tmp_path: Path) -> None:
    log = tmp_path / "f.log"
    log.write_text(line(message_id="before") + "\n")
    fleet = Fleet(name="spillway", workers={}, local=state())
    watch = canaries.watch(fleet, worker(str(log)), "redrive-7", datetime.now(UTC))
    assert watch.poll() == []
    with log.open("a") as file:
        half = len(line()) // 2
        file.write(
            "\n".join(["START", line("redrive-8"), line(message="poison"), '{"message": "canary"', line()[:half]])
        )
        file.flush()
        assert watch.poll() == []
        file.write(line()[half:] + "\n" + line(outcome="dead-lettered", reason="data", sqlstate="23514") + "\n")
    applied, dead = watch.poll()
    assert (applied.outcome, applied.done, applied.dead) == ("applied", True, False)
    assert applied.at == datetime(2026, 11, 21, 8, 30, 0, 125_000, UTC)
    assert (dead.done, dead.dead, dead.reason, dead.sqlstate) == (False, True, "data", "23514")
    assert watch.poll() == []


def test_a_log_file_that_is_not_there_yet(tmp_path: Path) -> None:
    watch = canaries.LogFile(tmp_path / "f.log", "redrive-7")
    assert watch.poll() == []
    (tmp_path / "f.log").write_text(line() + "\n")
    assert [fate.message_id for fate in watch.poll()] == ["m1"]


def test_fates_are_read_from_cloudwatch_logs_each_once() -> None:
    client = boto3.client("logs", region_name=REGION)
    since = datetime(2026, 11, 21, tzinfo=UTC)
    expected = {
        "logGroupName": "/aws/lambda/prod-orders",
        "startTime": int(since.timestamp() * 1000),
        "filterPattern": '{ $.message = "canary" && $.canary = "redrive-7" }',
    }

    def event(number: int) -> dict[str, Any]:
        return {"eventId": str(number), "message": line(message_id=f"m{number}")}

    watch = canaries.LogGroup(client, "/aws/lambda/prod-orders", "redrive-7", since)
    with Stubber(client) as stub:
        stub.add_response("filter_log_events", {"events": [event(1)], "nextToken": "n"}, expected)
        stub.add_response("filter_log_events", {"events": [event(2)]}, expected | {"nextToken": "n"})
        assert [fate.message_id for fate in watch.poll()] == ["m1", "m2"]
        # Late, and in front of what was told before.
        stub.add_response("filter_log_events", {"events": [event(0), event(1), event(2)]}, expected)
        assert [fate.message_id for fate in watch.poll()] == ["m0"]


def test_what_threads_would_import_at_the_same_moment_is_there_before_they_begin(tmp_path: Path) -> None:
    """Else two of them may get half of it, as the doctor's areas did now and then."""
    program = (
        "import sys\n"
        "from spillway.errors import SpillwayError\n"
        "from spillway.fleet.find import find_fleet\n"
        "assert 'boto3' not in sys.modules\n"
        "try:\n"
        "    find_fleet()\n"
        "except SpillwayError:\n"
        "    print('boto3.session' in sys.modules and 'botocore.exceptions' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"SPILLWAY_STATE": str(tmp_path / "none.json")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"
