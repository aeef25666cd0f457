"""What the RDS Proxy emulator counts: percentiles against exact ones, pins, CloudWatch's names, Prometheus's format."""

from __future__ import annotations

import math
import random
import re
import threading
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.rdsproxy.metrics import (
    CLOUDWATCH,
    MAX_PINS,
    Gauges,
    LatencyHistogram,
    Metrics,
    PinRecord,
    Snapshot,
    render_prometheus,
    target_url,
)
from spillway.rdsproxy.settings import Target

TARGET = Target(host="127.0.0.1", port=5433, database="orders", user="app", password="hunter2")
#: Half a bucket: 32 of them are a power of two.
RELATIVE_ERROR = 1 / 64


@dataclass
class FakeGauges:
    client_connections: int = 12
    database_connections: int = 7
    borrowed: int = 5
    in_transaction: int = 3
    session_pinned: int = 2
    waiting: int = 4
    max_database_connections: int = 75
    available: bool = True


def pin(**changes: object) -> PinRecord:
    record = PinRecord(
        rule="set",
        reason="SET was used.",
        certainty="documented",
        sql="SET search_path TO x",
        user="app",
        database="orders",
        application_name="worker",
        client="127.0.0.1:40000",
        database_connection=3,
        at=1_780_000_000.0,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def take(metrics: Metrics, gauges: Gauges | None = None, proxy: str = "default") -> Snapshot:
    return metrics.snapshot(gauges or FakeGauges(), proxy=proxy, endpoint="127.0.0.1:5432", target=TARGET)


def exact(values: list[float], p: float) -> float:
    """Nearest rank."""
    return sorted(values)[max(math.ceil(p * len(values) / 100), 1) - 1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda random_: random_.lognormvariate(-7, 2),
        lambda random_: random_.uniform(0, 0.1),
        lambda random_: random_.expovariate(2000),
        lambda random_: random_.choice((0.000_05, 0.002, 3.0)),
        lambda random_: random_.uniform(100, 10_000),
    ],
    ids=["lognormal", "uniform", "exponential", "three values", "long"],
)
def test_percentiles_are_close_to_exact_ones(draw) -> None:  # type: ignore[no-untyped-def]
    random_ = random.Random(7)
    values = [draw(random_) for _ in range(5_000)]
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    for p in (0, 1, 10, 50, 90, 99, 99.9, 100):
        assert histogram.percentile(p) == pytest.approx(exact(values, p), rel=RELATIVE_ERROR, abs=1e-9), p
    assert histogram.count == 5_000
    assert histogram.sum == pytest.approx(math.fsum(values))
    assert histogram.max == histogram.percentile(100) == max(values)


@given(st.lists(st.floats(min_value=32e-9, max_value=17_000), min_size=1, max_size=50), st.floats(0, 100))
def test_any_percentile_of_any_values(values: list[float], p: float) -> None:
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(value)
    low, high = (exact(values, max(min(p + shift, 100), 0)) for shift in (-1e-6, 1e-6))
    found = histogram.percentile(p)
    assert found is not None
    assert low * (1 - RELATIVE_ERROR) - 1e-9 <= found <= high * (1 + RELATIVE_ERROR) + 1e-9


def test_an_empty_histogram_has_no_percentiles() -> None:
    histogram = LatencyHistogram()
    assert histogram.percentile(50) is None
    assert (histogram.count, histogram.sum, histogram.max) == (0, 0.0, 0.0)


def test_durations_out_of_range_are_counted() -> None:
    histogram = LatencyHistogram()
    for seconds in (-1.0, 0.0, 1e-12, 86_400.0):
        histogram.add(seconds)
    assert histogram.count == 4
    assert histogram.percentile(1) == 0.0
    assert histogram.percentile(75) == pytest.approx(0.0)
    assert histogram.max == histogram.percentile(100) == 86_400.0
    assert histogram.sum == pytest.approx(86_400.0)


def test_the_longest_and_shortest_durations_have_buckets_of_their_own() -> None:
    histogram = LatencyHistogram()
    for seconds in (2**44 / 1e9, 1e12, 2**44 / 1e9 - 1):
        histogram.add(seconds)
    assert histogram.percentile(1) == pytest.approx(2**44 / 1e9, rel=RELATIVE_ERROR)


def test_it_takes_no_more_memory_with_more_values() -> None:
    histogram = LatencyHistogram()
    before = len(histogram._buckets)
    for exponent in range(-12, 12):
        histogram.add(10.0**exponent)
    assert len(histogram._buckets) == before == 1280


def test_attributes_cannot_be_mistyped() -> None:
    with pytest.raises(AttributeError):
        Metrics().query_request = 1  # type: ignore[attr-defined]


def test_cloudwatch_names_and_values() -> None:
    metrics = Metrics()
    counters = {
        "ClientConnectionsReceived": "client_connections_received",
        "ClientConnectionsSetupSucceeded": "client_connections_setup_succeeded",
        "ClientConnectionsSetupFailedAuth": "client_connections_setup_failed_auth",
        "ClientConnectionsClosed": "client_connections_closed",
        "DatabaseConnectionRequests": "database_connection_requests",
        "DatabaseConnectionsSetupFailed": "database_connections_setup_failed",
        "DatabaseConnectionsSetupSucceeded": "database_connections_setup_succeeded",
        "QueryRequests": "query_requests",
    }
    for number, attribute in enumerate(counters.values(), start=101):
        setattr(metrics, attribute, number)
    for name, seconds in (
        ("borrow_latency", (0.001, 0.003)),
        ("query_database_response_latency", (0.010,)),
        ("query_response_latency", (0.5, 0.25)),
    ):
        for value in seconds:
            getattr(metrics, name).add(value)
    assert take(metrics).cloudwatch == pytest.approx(
        {name: number for number, name in enumerate(counters, start=101)}
        | {
            "ClientConnections": 12,
            "DatabaseConnections": 7,
            "DatabaseConnectionsCurrentlyBorrowed": 5,
            "DatabaseConnectionsCurrentlyInTransaction": 3,
            "DatabaseConnectionsCurrentlySessionPinned": 2,
            "MaxDatabaseConnectionsAllowed": 75,
            "DatabaseConnectionsBorrowLatency": 2_000,
            "QueryDatabaseResponseLatency": 10_000,
            "QueryResponseLatency": 375_000,
            "AvailabilityPercentage": 100,
        }
    )


def test_every_cloudwatch_metric_is_there_from_the_start() -> None:
    cloudwatch = take(Metrics(), FakeGauges(available=False)).cloudwatch
    assert set(cloudwatch) == {metric.name for metric in CLOUDWATCH}
    assert len(cloudwatch) == 18
    assert cloudwatch["AvailabilityPercentage"] == cloudwatch["QueryResponseLatency"] == 0


def test_the_latest_pins_are_kept() -> None:
    metrics = Metrics()
    for number in range(MAX_PINS + 25):
        metrics.record_pin(pin(rule="set" if number % 5 else "listen", database_connection=number))
    snapshot = take(metrics)
    assert [one.database_connection for one in snapshot.pins] == list(range(25, MAX_PINS + 25))
    assert snapshot.pins_left_out == 25
    assert snapshot.pins_by_rule == {"set": 820, "listen": 205}
    assert take(Metrics()).pins_left_out == 0


def test_a_pin_keeps_200_characters_of_sql_and_can_be_printed() -> None:
    assert pin(sql="x" * 200).sql == "x" * 200
    assert pin(sql="y" * 201).sql == "y" * 199 + "…"
    assert pin(sql="a\udcffb", application_name="\ud800").sql == "a?b"
    msgspec.json.encode(pin(application_name="\ud800"))


def test_a_snapshot_is_the_same_after_a_trip_through_json() -> None:
    metrics = Metrics()
    metrics.record_pin(pin())
    metrics.borrow_latency.add(0.001)
    metrics.peak_waiting = 9
    snapshot = take(metrics)
    assert msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot) == snapshot
    assert snapshot.borrow_latency.count == 1
    assert snapshot.peaks.waiting == 9
    assert snapshot.query_response_latency.p99 is None


def test_the_targets_password_is_nowhere() -> None:
    snapshot = take(Metrics())
    assert snapshot.target == "postgresql://app@127.0.0.1:5433/orders"
    assert b"hunter2" not in msgspec.json.encode(snapshot)
    assert target_url(replace(TARGET, host="::1", user="a@b", database="x/y")) == "postgresql://a%40b@[::1]:5433/x%2Fy"


def test_a_snapshot_may_be_taken_while_another_thread_counts() -> None:
    metrics = Metrics()
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            metrics.record_pin(pin(rule=f"rule-{number % 50}"))
            metrics.borrow_latency.add(0.001)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        for _ in range(100):
            snapshot = take(metrics)
            assert snapshot.borrow_latency.count == 0 or snapshot.borrow_latency.p50 == pytest.approx(0.001, rel=0.02)
    finally:
        stop.set()
        counting.join()


@dataclass
class Family:
    kind: str
    help: str
    samples: list[tuple[str, dict[str, str], float]] = field(default_factory=list)


_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
_UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parse_prometheus(text: str) -> dict[str, Family]:
    """A strict reader of text format 0.0.4: every family has HELP, then TYPE, then its samples, all together."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    lines = text.removesuffix("\n").split("\n")
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    name = ""
    for number, line in enumerate(lines):
        if line.startswith("# HELP "):
            found = re.fullmatch(rf"# HELP ({_NAME}) ((?:[^\\]|\\[\\n])+)", line)
            assert found, line
            name = found[1]
            assert name not in families, "a family must be in one piece"
            following = re.fullmatch(rf"# TYPE {name} (counter|gauge|summary)", lines[number + 1])
            assert following, lines[number + 1]
            families[name] = Family(following[1], found[2])
            continue
        if line.startswith("# TYPE "):
            assert lines[number - 1].startswith("# HELP ")
            continue
        found = re.fullmatch(rf"({_NAME})\{{(.*)\}} (\S+)", line)
        assert found, line
        labels: dict[str, str] = {}
        rest = found[2]
        while rest:
            label = _LABEL.match(rest)
            assert label, rest
            assert label[1] not in labels
            labels[label[1]] = re.sub(r"\\.", lambda escape: _UNESCAPED[escape[0]], label[2])
            rest = rest[label.end() :]
            assert rest == "" or rest.startswith(",")
            rest = rest.removeprefix(",")
        family = families[name]
        suffixes = ("", "_sum", "_count") if family.kind == "summary" else ("",)
        assert found[1] in {name + suffix for suffix in suffixes}, line
        assert ("quantile" in labels) == (family.kind == "summary" and found[1] == name), line
        key = (found[1], tuple(sorted(labels.items())))
        assert key not in seen, "a series must be given once"
        seen.add(key)
        family.samples.append((found[1], labels, float(found[3])))
    for name, family in families.items():
        assert family.samples, name
        assert (family.kind == "counter") == name.endswith("_total"), name
    return families


def test_prometheus_reads_it() -> None:
    metrics = Metrics()
    metrics.query_requests = 2**60
    metrics.borrow_timeouts = 3
    metrics.record_pin(pin())
    metrics.record_pin(pin(rule='odd "rule"\\n\n{},='))
    for _ in range(10):
        metrics.borrow_latency.add(0.002)
    families = parse_prometheus(render_prometheus(take(metrics, proxy='a "b"\\c\nd')))
    label = {"proxy": 'a "b"\\c\nd'}
    assert families["rds_proxy_client_connections"].samples == [("rds_proxy_client_connections", label, 12)]
    assert families["rds_proxy_query_requests_total"].samples[0][2] == 2**60
    assert families["rds_proxy_borrow_timeouts_total"].kind == "counter"
    latency = families["rds_proxy_database_connections_borrow_latency_seconds"]
    assert latency.kind == "summary"
    assert [labels.get("quantile") for _, labels, _ in latency.samples] == ["0.5", "0.9", "0.99", None, None]
    assert [value for *_, value in latency.samples] == pytest.approx([0.002, 0.002, 0.002, 0.02, 10], rel=0.02)
    pins = families["rds_proxy_pins_total"].samples
    assert {labels["rule"]: value for _, labels, value in pins} == {"set": 1, 'odd "rule"\\n\n{},=': 1}
    for metric in CLOUDWATCH:
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", metric.name).lower()
        assert any(name.startswith(f"rds_proxy_{snake}") for name in families), snake


def test_without_durations_quantiles_are_not_a_number() -> None:
    families = parse_prometheus(render_prometheus(take(Metrics())))
    values = [value for *_, value in families["rds_proxy_query_response_latency_seconds"].samples]
    assert all(map(math.isnan, values[:3]))
    assert values[3:] == [0, 0]
    assert "rds_proxy_pins_total" not in families


@pytest.mark.parametrize(
    "text",
    [
        "# HELP a x\n# TYPE a gauge\na{} 1",
        "# HELP a x\n# TYPE a gauge\n",
        "# HELP a_total x\n# TYPE a_total gauge\na_total{} 1\n",
        "# TYPE a gauge\na{} 1\n",
        '# HELP a x\n# TYPE a gauge\na{b="c"d"} 1\n',
        '# HELP a x\n# TYPE a gauge\na{b="\\d"} 1\n',
        "# HELP a x\n# TYPE a gauge\na{} 1\na{} 2\n",
        "# HELP a x\n# TYPE a gauge\na{} one\n",
    ],
)
def test_the_reader_is_strict(text: str) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError)):
        parse_prometheus(text)
