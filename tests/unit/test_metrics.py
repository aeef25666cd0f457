"""The metric store against lines as Powertools prints them, and against lines that only look like metrics."""

import json
import threading

import pytest
from aws_lambda_powertools.metrics import Metrics, MetricUnit

from spillway.stack.metrics import MAX_VALUES, MetricStore


def emf(values: dict[str, object], *dimension_sets: list[str], namespace: str = "Spillway", **fields: str) -> str:
    directive = {
        "Namespace": namespace,
        "Dimensions": list(dimension_sets),
        "Metrics": [{"Name": name, "Unit": "Count"} for name in values],
    }
    return json.dumps({"_aws": {"Timestamp": 1, "CloudWatchMetrics": [directive]}, **fields, **values})


def test_values_add_up_per_dimension() -> None:
    store = MetricStore()
    assert store.feed(emf({"Messages": 3}, ["service", "outcome"], service="orders", outcome="applied"))
    assert store.feed(emf({"Messages": [1, 1]}, ["service", "outcome"], service="orders", outcome="applied"))
    assert store.feed(emf({"Messages": 4}, ["service", "outcome"], service="audit", outcome="stale"))

    assert store.sum("Messages") == 9
    assert store.sum("Messages", service="orders") == 5
    assert store.sum("Messages", service="orders", outcome="stale") == 0
    assert store.by_dimension("Messages", "outcome") == {"applied": 5, "stale": 4}
    assert store.count("Messages", outcome="applied") == 3
    assert store.extremes("Messages") == (1, 4)
    assert store.values("Messages", service="orders") == [3, 1, 1]


def test_a_value_in_several_dimension_sets_counts_once() -> None:
    store = MetricStore()
    store.feed(emf({"Messages": 3}, ["service"], ["service", "outcome"], [], service="orders", outcome="applied"))
    assert store.sum("Messages") == store.sum("Messages", service="orders") == 3
    assert store.by_dimension("Messages", "outcome") == {"applied": 3}


def test_what_powertools_prints_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(namespace="Spillway", service="orders")
    metrics.add_dimension("outcome", "applied")
    metrics.add_metric("Messages", MetricUnit.Count, 7)
    metrics.add_metric("Messages", MetricUnit.Count, 2)
    metrics.flush_metrics()

    store = MetricStore()
    assert store.feed(capsys.readouterr().out)
    assert store.sum("Messages", service="orders", outcome="applied") == 9


@pytest.mark.parametrize(
    "line",
    [
        "",
        "START RequestId: 1",
        '{"level": "INFO", "message": "CloudWatchMetrics"}',
        '{"_aws": {"CloudWatchMetrics": 5}}',
        '{"_aws": "CloudWatchMetrics", "CloudWatchMetrics": 1}',
        '["CloudWatchMetrics"]',
        '{"CloudWatchMetrics": [',
        "[" * 100_000 + '"CloudWatchMetrics"',
    ],
    ids=lambda line: line[:30],
)
def test_other_lines_are_left_alone(line: str) -> None:
    store = MetricStore()
    assert store.feed(line) is False
    assert store.sum("Messages") == 0


@pytest.mark.parametrize("value", [None, "7", True, float("nan"), float("inf"), {}, [], [None]], ids=repr)
def test_what_is_no_number_is_left_out(value: object) -> None:
    store = MetricStore()
    assert store.feed(emf({"Messages": value, "Good": 1}, ["service"], service="orders"))
    assert store.count("Messages") == 0
    assert store.extremes("Messages") is None
    assert store.sum("Good") == 1


@pytest.mark.parametrize(
    "directive", [5, {}, {"Metrics": 1}, {"Metrics": [1, {}, {"Name": 1}]}, {"Metrics": [{"Name": "x"}]}], ids=repr
)
def test_a_malformed_directive_does_no_harm(directive: object) -> None:
    assert MetricStore().feed(json.dumps({"_aws": {"CloudWatchMetrics": [directive]}})) is True


def test_memory_is_bounded_and_the_sum_is_not() -> None:
    store = MetricStore()
    store.feed(emf({"Messages": [1] * (MAX_VALUES + 5)}))
    assert len(store.values("Messages")) == MAX_VALUES
    assert store.sum("Messages") == MAX_VALUES + 5


def test_threads_lose_nothing() -> None:
    store = MetricStore()
    line = emf({"Messages": 1}, ["service"], service="orders")
    threads = [threading.Thread(target=lambda: [store.feed(line) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.sum("Messages") == 4000
