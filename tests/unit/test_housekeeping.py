"""What housekeeping needs of its environment, and what it does about a database that is slow or away."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from spillway.stack.template import REPOSITORY, load_fleet
from workers.housekeeping import telemetry
from workers.housekeeping.housekeeper import MAKE_PARTITIONS, MIN_ROWS, OUT_OF_TIME, PLAN, PRUNE, Housekeeper
from workers.housekeeping.settings import MIN_CLAIM_RETENTION_DAYS, HousekeepingSettings
from workers.housekeeping.telemetry import Telemetry
from workers.runtime.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

REQUIRED = {"DatabaseHost": "proxy.example"}


def environment(**changes: str) -> dict[str, str]:
    """As template.yaml has it."""
    fleet = load_fleet(REQUIRED)
    variables = fleet.environment(fleet.functions["HousekeepingFunction"], {})
    return variables | {"AWS_REGION": "eu-west-1"} | changes


@pytest.fixture(scope="module")
def settings() -> HousekeepingSettings:
    return HousekeepingSettings.from_env(environment())


# Settings and template


def test_the_template_gives_what_it_reads(settings: HousekeepingSettings) -> None:
    assert (settings.claim_retention_days, settings.audit_retention_months) == (35, 0)
    assert not hasattr(settings, "dead_letter_queue_url"), "it has no queue"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"CLAIM_RETENTION_DAYS": "27"}, "CLAIM_RETENTION_DAYS: expected an integer from 28 to 3650, got '27'"),
        ({"CLAIM_RETENTION_DAYS": ""}, "CLAIM_RETENTION_DAYS: expected a value, got nothing"),
        ({"AUDIT_RETENTION_MONTHS": "-1"}, "AUDIT_RETENTION_MONTHS: expected an integer from 0 to 1200, got '-1'"),
        ({"AWS_REGION": ""}, "AWS_REGION: expected a region because DATABASE_AUTH is 'iam', got nothing"),
        (
            {"FUNCTION_TIMEOUT": "36"},
            "FUNCTION_TIMEOUT: expected at least 37 s "
            "(start 1 + connect 5 + borrow 20 + statement 10 + margin 1), got 36",
        ),
    ],
)
def test_a_wrong_environment_is_refused_in_one_sentence(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}$"):
        HousekeepingSettings.from_env(environment(**changes))


def test_claims_outlast_every_way_back(settings: HousekeepingSettings) -> None:
    """A message lives in a dead-letter queue, is redriven into a new life, and may do so once more."""
    fleet = load_fleet(REQUIRED)
    longest = max(int(queue.attributes["MessageRetentionPeriod"]) for queue in fleet.queues.values()) / 86_400
    least = fleet.template["Parameters"]["ClaimRetentionDays"]["MinValue"]
    assert 2 * longest <= least == MIN_CLAIM_RETENTION_DAYS <= settings.claim_retention_days


def test_the_function_is_not_repeated_and_has_its_timeout(settings: HousekeepingSettings) -> None:
    fleet = load_fleet(REQUIRED)
    assert settings.function_timeout == fleet.functions["HousekeepingFunction"].timeout_s
    config = fleet.template["Resources"]["HousekeepingFunctionEventInvokeConfig"]["Properties"]
    assert config["MaximumRetryAttempts"] == 0


def test_its_readme_explains_every_metric() -> None:
    readme = (REPOSITORY / "workers/housekeeping/README.md").read_text()
    names = {value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str)}
    for metric in names - {telemetry.SERVICE}:
        assert f"| `{metric}` |" in readme, metric


# Trouble


class Slow(psycopg.errors.QueryCanceled):
    pass


class FakeStore:
    """Answers by statement; an exception is raised."""

    def __init__(self, answers: dict[str, Callable[[Any], list[tuple[Any, ...]]]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []
        self.connected = True

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        value = msgspec.json.decode(parameter)
        self.asked.append((statement, value))
        self.connected = True
        return self.answers.get(statement, lambda _: [])(value)

    def discard(self) -> None:
        self.connected = False


DUE = datetime(2026, 1, 1, tzinfo=UTC)


def keeper(store: FakeStore, settings: HousekeepingSettings) -> Housekeeper:
    return Housekeeper(store, settings, Telemetry(), sleep=lambda _: None)


def test_a_call_that_is_too_slow_is_tried_with_fewer_rows(settings: HousekeepingSettings) -> None:
    left = [3_000]

    def prune(p: dict[str, Any]) -> list[tuple[Any, ...]]:
        if p["rows"] > 1_300:
            raise Slow
        deleted = min(p["rows"], left[0])
        left[0] -= deleted
        return [(deleted, DUE, deleted == p["rows"])]

    store = FakeStore({PLAN: lambda _: [("order_events", DUE)], PRUNE: prune})
    report = keeper(store, settings).run(lambda: 300.0)
    assert (report.pruned, report.unfinished) == ({"order_events": 3_000}, {})
    rows = [value["rows"] for statement, value in store.asked if statement == PRUNE]
    assert rows == [5_000, 1_250, 1_250, 1_250], "once slow, small to the end"


def test_a_table_that_is_slow_whatever_the_size_is_left(settings: HousekeepingSettings) -> None:
    def prune(p: dict[str, Any]) -> list[tuple[Any, ...]]:
        if p["table"] == "order_events":
            raise Slow
        return [(1, DUE, False)]

    store = FakeStore({PLAN: lambda _: [("order_events", DUE), ("payment_events", DUE)], PRUNE: prune})
    report = keeper(store, settings).run(lambda: 300.0)
    assert report.unfinished == {"prune order_events": "slow"}
    assert report.pruned == {"order_events": 0, "payment_events": 1}
    assert min(value["rows"] for statement, value in store.asked if statement == PRUNE) == MIN_ROWS


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (psycopg.errors.lookup("08000")("Timed-out waiting to acquire database connection."), "saturated"),
        (psycopg.errors.lookup("57P01")("terminating connection"), "unavailable"),
        (psycopg.OperationalError("connection refused"), "unavailable"),
    ],
)
def test_nothing_more_is_asked_of_a_database_that_is_away(
    settings: HousekeepingSettings, error: Exception, failure: str
) -> None:
    def away(_: Any) -> list[tuple[Any, ...]]:
        raise error

    store = FakeStore({PLAN: away})
    report = keeper(store, settings).run(lambda: 300.0)
    assert report.unfinished == {"plan": failure}
    assert [statement for statement, _ in store.asked] == [MAKE_PARTITIONS, PLAN]
    assert not store.connected, "the next run connects anew"


def test_no_call_is_begun_that_could_not_end(settings: HousekeepingSettings) -> None:
    store = FakeStore({})
    needed = settings.attempt
    assert keeper(store, settings).run(lambda: needed - 0.1).unfinished == {"make partitions": OUT_OF_TIME}
    store.connected = False
    assert keeper(store, settings).run(lambda: needed + settings.connect_timeout - 0.1).unfinished
    assert store.asked == []
    assert not keeper(store, settings).run(lambda: needed + settings.connect_timeout).unfinished
    assert len(store.asked) == 2


def test_an_answer_that_is_somebody_elses_is_not_believed(settings: HousekeepingSettings) -> None:
    """RDS Proxy has been seen to hand out another client's rows; the functions themselves keep what is young."""
    store = FakeStore({PLAN: lambda _: [("order_events", DUE)], PRUNE: lambda _: [("a", "b", "c", "d"), ("e",)]})
    assert keeper(store, settings).run(lambda: 300.0).unfinished == {"prune order_events": "unknown"}


def test_trouble_is_logged_without_values(
    settings: HousekeepingSettings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def away(_: Any) -> list[tuple[Any, ...]]:
        raise psycopg.errors.UndefinedFunction("function does not exist\nDETAIL:  secret")

    keeper(FakeStore({PLAN: away}), settings).run(lambda: 300.0)
    [trouble] = [vars(record) for record in caplog.records]
    assert (trouble["levelname"], trouble["msg"]) == ("ERROR", "step_unfinished")
    assert (trouble["step"], trouble["failure"], trouble["sqlstate"]) == ("plan", "misconfigured", "42883")
    assert "secret" not in str(trouble)
    counts = msgspec.json.decode(capsys.readouterr().out.splitlines()[-1])
    assert (counts["HousekeepingUnfinished"], counts["unfinished"]) == ([1.0], {"plan": "misconfigured"})
