"""Functions on a schedule: invoked by the clock, one run at a time, and housekeeping as the whole stack runs it."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime
from io import StringIO
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from rich.console import Console

from spillway.commands.up import describe
from spillway.stack import local
from spillway.stack.environment import Invocation
from spillway.stack.errors import StackError
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.processes import Processes
from spillway.stack.scheduler import ScheduledFunction, rate_s, scheduled_event
from spillway.stack.snapshot import take
from spillway.stack.template import FunctionSchedule, load_fleet, resolve
from spillway.stack.warm_pool import IDLE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 60.0
GOOD = Invocation("response", b"{}", 0.01, cold=False)


class Environment:
    """Answers what it is told to, and lets a test wait for an invocation and hold it up."""

    def __init__(self, answers: list[Invocation | Exception] | None = None) -> None:
        self.answers = answers or []
        self.payloads: list[bytes] = []
        self.invoked = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()
        self.closed = 0

    def invoke(self, payload: bytes) -> Invocation:
        self.payloads.append(payload)
        self.invoked.release()
        assert self.go_on.wait(WAIT_S)
        answer = self.answers.pop(0) if self.answers else GOOD
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed += 1
        self.go_on.set()


@pytest.fixture
def scheduled() -> Iterator[Callable[..., ScheduledFunction]]:
    made: list[ScheduledFunction] = []

    def make(environment: Environment, period_s: float) -> ScheduledFunction:
        function = ScheduledFunction("chores", period_s, lambda: environment, lambda: b"{}")
        made.append(function)
        return function

    yield make
    for function in made:
        function.stop(timeout_s=1)


@pytest.mark.parametrize(
    ("expression", "period_s"),
    [
        ("rate(1 minute)", 60),
        ("rate(5 minutes)", 300),
        ("rate(1 hour)", 3_600),
        ("rate(2 days)", 172_800),
        ("rate(0 minutes)", None),
        ("rate(1 second)", None),
        ("cron(0 12 * * ? *)", None),
        ("at(2026-11-20T13:00:00)", None),
    ],
)
def test_rates(expression: str, period_s: int | None) -> None:
    assert rate_s(expression) == period_s


def test_it_runs_again_and_again_but_not_before_the_first_period(scheduled: Callable[..., ScheduledFunction]) -> None:
    environment = Environment()
    function = scheduled(environment, 0.2)
    began = time.monotonic()
    function.start()
    for number in range(1, 4):
        assert environment.invoked.acquire(timeout=WAIT_S)
        assert time.monotonic() - began >= 0.2 * number
    function.stop()
    assert function.stats.runs >= 3
    assert (function.stats.failed, function.stats.next_at) == (0, None)
    assert environment.payloads[0] == b"{}"


def test_a_run_that_fails_is_told_of_and_the_next_comes(scheduled: Callable[..., ScheduledFunction]) -> None:
    failed = Invocation("error", b'{"errorType": "SettingsError"}', 0.1, cold=True)
    environment = Environment([failed, StackError("No emulator.", "Install it.")])
    function = scheduled(environment, 3_600)
    assert function.run().kind == "error"
    assert function.stats.last_error == 'chores ended as error: {"errorType": "SettingsError"}'
    with pytest.raises(StackError):
        function.run()
    assert "chores could not be run: No emulator." in str(function.stats.last_error)
    assert function.run() is GOOD
    stats = function.stats
    assert (stats.runs, stats.failed, stats.last_error) == (3, 2, None)


def test_a_failing_run_does_not_end_the_schedule(scheduled: Callable[..., ScheduledFunction]) -> None:
    environment = Environment([StackError("Once."), StackError("Twice.")])
    scheduled(environment, 0.01).start()
    for _ in range(3):
        assert environment.invoked.acquire(timeout=WAIT_S)


def test_what_becomes_due_during_a_run_is_left_out(scheduled: Callable[..., ScheduledFunction]) -> None:
    environment = Environment()
    environment.go_on.clear()
    period_s = 0.05
    function = scheduled(environment, period_s)
    function.start()
    assert environment.invoked.acquire(timeout=WAIT_S)
    began = time.monotonic()
    # Nothing to wait for: this is about time that passes.
    assert not environment.invoked.acquire(timeout=10 * period_s), "one run at a time"
    environment.go_on.set()
    for _ in range(3):
        assert environment.invoked.acquire(timeout=WAIT_S)
    # Run at once, one after the other, the ones left out would have been over by now.
    assert time.monotonic() - began >= 12 * period_s


def test_stopping_ends_a_run_that_takes_too_long(scheduled: Callable[..., ScheduledFunction]) -> None:
    environment = Environment()
    environment.go_on.clear()
    function = scheduled(environment, 0.01)
    function.start()
    assert environment.invoked.acquire(timeout=WAIT_S)
    function.stop(timeout_s=0.05)
    assert environment.closed >= 1
    assert not function._thread.is_alive()
    with pytest.raises(StackError, match="stopped"):
        function.run()


@pytest.mark.parametrize(("period_s", "closed"), [(IDLE_S + 1, 2), (IDLE_S - 1, 0)])
def test_an_environment_is_kept_only_if_lambda_would_keep_it(
    scheduled: Callable[..., ScheduledFunction], period_s: float, closed: int
) -> None:
    environment = Environment()
    function = scheduled(environment, period_s)
    function.run()
    function.run()
    assert environment.closed == closed


def test_the_event_is_eventbridges() -> None:
    event = json.loads(scheduled_event("Chores", "eu-west-1", "123456789012"))
    assert event["detail-type"] == "Scheduled Event"
    assert event["resources"] == ["arn:aws:events:eu-west-1:123456789012:rule/Chores"]
    assert datetime.fromisoformat(event["time"]).tzinfo is not None


# The template


def test_schedules_are_read_from_the_template() -> None:
    fleet = load_fleet({"DatabaseHost": "x", "HousekeepingSchedule": "rate(5 minutes)"})
    assert fleet.schedules == [
        FunctionSchedule("HousekeepingFunctionOnSchedule", "HousekeepingFunction", "rate(5 minutes)"),
        # Run on AWS alone: there is nothing here that it could govern.
        FunctionSchedule("GovernorFunctionEveryMinute", "GovernorFunction", "rate(1 minute)"),
    ]


def test_both_kinds_of_schedule_and_what_is_none() -> None:
    function: dict[str, Any] = {
        "Type": "AWS::Lambda::Function",
        "Properties": {"FunctionName": "f", "Handler": "a.b.c", "Timeout": 3, "MemorySize": 128},
    }
    here = {"Fn::GetAtt": ["F", "Arn"]}

    def rule(**properties: Any) -> dict[str, Any]:
        return {"Type": "AWS::Events::Rule", "Properties": {"Targets": [{"Arn": here, "Id": "x"}], **properties}}

    resources = {
        "F": function,
        "Rule": rule(ScheduleExpression="rate(1 hour)"),
        "WithInput": rule(
            ScheduleExpression="rate(2 hours)",
            Targets=[{"Arn": here, "Id": "a", "Input": '{"a": 1}'}, {"Arn": "arn:aws:sns:x", "Id": "b"}],
        ),
        "Scheduler": {
            "Type": "AWS::Scheduler::Schedule",
            "Properties": {"ScheduleExpression": "cron(0 1 * * ? *)", "State": "ENABLED", "Target": {"Arn": here}},
        },
        "Off": rule(ScheduleExpression="rate(1 hour)", State="DISABLED"),
        "OnEvents": rule(EventPattern={"source": ["aws.ec2"]}),
    }
    assert resolve({"Resources": resources}, {}).schedules == [
        FunctionSchedule("Rule", "F", "rate(1 hour)"),
        FunctionSchedule("WithInput", "F", "rate(2 hours)", '{"a": 1}'),
        FunctionSchedule("Scheduler", "F", "cron(0 1 * * ? *)"),
    ]


# The stack


def test_the_stack_runs_housekeeping_by_the_clock(sqs_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the real runtime, through the RDS Proxy, as the workers' role; and nothing pins."""
    monkeypatch.setattr(local, "rate_s", lambda expression: 0.5 if expression == "rate(1 hour)" else None)
    options = StackOptions(sqs_endpoint=sqs_endpoint, durable=False, workers=("housekeeping",))
    with Processes() as processes:
        stack = LocalStack(processes, options)
        stack.start()
        try:
            with psycopg.connect(stack.dsn, autocommit=True) as admin:
                admin.execute(
                    "INSERT INTO spillway.order_events"
                    " SELECT gen_random_uuid(), now() - make_interval(days => n, hours => 12)"
                    " FROM generate_series(1, 50) AS n"
                )
                assert stack.mappings == {}
                _until(lambda: stack.metrics.sum("ClaimsPruned", service="housekeeping") == 16)
                assert admin.execute("SELECT count(*) FROM spillway.order_events").fetchone() == (34,)
                _until(lambda: stack.schedules["HousekeepingFunctionOnSchedule"].stats.runs >= 2)
                snapshot = take(stack, admin)
            assert snapshot.last_error is None
            assert snapshot.proxy is not None
            assert snapshot.proxy.pinned_total == 0
            assert stack.metrics.sum("HousekeepingUnfinished") == 0
            assert "rate(1 hour), first at " in _described(stack)
            stack.schedules.pop(
                "HousekeepingFunctionOnSchedule"
            ).stop()  # as with a cron expression, which never starts
            assert "rate(1 hour), not run here" in _described(stack)
        finally:
            stack.stop()


def _described(stack: LocalStack) -> str:
    console = Console(file=StringIO(), width=400)
    describe(stack, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
