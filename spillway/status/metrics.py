"""What CloudWatch has of the last minutes: every metric that the screen needs, in one call."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workers.governor.aws import BORROW_LATENCY
from workers.governor.load import PERIOD_S
from workers.runtime.telemetry import BREAKER_OPEN, OUTCOME_METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from spillway.fleet.fleet import Fleet, Worker

#: Complete minutes that are looked at: metrics show up within one to three minutes.
MINUTES = 5
#: Queries that one GetMetricData takes (CloudWatch API reference, GetMetricData).
MAX_QUERIES = 500
MICRO = 1e-6

AGE, CONCURRENCY = "ApproximateAgeOfOldestMessage", "ConcurrentExecutions"
#: The proxy's gauges: every node of it publishes its own, so their sum is the proxy's.
GAUGES = {
    "client_connections": "ClientConnections",
    "database_connections": "DatabaseConnections",
    "max_database_connections": "MaxDatabaseConnectionsAllowed",
    "borrowed": "DatabaseConnectionsCurrentlyBorrowed",
    "pinned": "DatabaseConnectionsCurrentlySessionPinned",
}
#: Those that are told of the writer alone, as the alarm on the pool's use reads them (infra/observability.yaml).
_WRITERS = ("database_connections", "max_database_connections")
_LATENCIES = {"borrow_average_s": "Average", "borrow_p99_s": "p99"}


@dataclass(frozen=True, slots=True)
class Query:
    """A metric: `about` is the worker, or '' for the proxy; `name` is what it is called here."""

    about: str
    name: str
    namespace: str
    metric: str
    dimensions: tuple[tuple[str, str], ...]
    stat: str


class Metrics:
    """What CloudWatch answered: values by query and by the minute's start, in seconds since the epoch."""

    def __init__(self, values: Mapping[tuple[str, str], Mapping[int, float]]) -> None:
        self._values = values

    def latest(self, about: str, name: str) -> float | None:
        """The newest value; None where there is none."""
        values = self._values.get((about, name), {})
        return values[max(values)] if values else None

    def total(self, about: str, name: str) -> float:
        """The sum over all minutes."""
        return sum(self._values.get((about, name), {}).values())

    def per_s(self, worker: str) -> dict[str, float]:
        """Messages in each second by outcome, in the newest minute that has any."""
        outcomes = {name: self._values.get((worker, name), {}) for name in OUTCOME_METRICS}
        newest = max((minute for values in outcomes.values() for minute in values), default=None)
        if newest is None:
            return {}
        return {name: values[newest] / PERIOD_S for name, values in outcomes.items() if values.get(newest)}

    def proxy(self) -> dict[str, Any]:
        """The fields of a ProxyReading that CloudWatch tells."""
        gauges = {name: self.latest("", name) for name in GAUGES}
        latencies = {name: self.latest("", name) for name in _LATENCIES}
        return {name: value if value is None else round(value) for name, value in gauges.items()} | {
            name: value if value is None else value * MICRO for name, value in latencies.items()
        }


def read(cloudwatch: Any, queries: Iterable[Query], now: datetime) -> Metrics:
    """Ask for all of `queries`. Raises botocore's errors; what CloudWatch could not answer is left out."""
    end = int(now.timestamp()) // PERIOD_S * PERIOD_S
    found: defaultdict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    rest = list(queries)
    while rest:
        asked, rest = rest[:MAX_QUERIES], rest[MAX_QUERIES:]
        pages = cloudwatch.get_paginator("get_metric_data").paginate(
            MetricDataQueries=[_as_asked(f"q{number}", one) for number, one in enumerate(asked)],
            StartTime=datetime.fromtimestamp(end - MINUTES * PERIOD_S, UTC),
            EndTime=datetime.fromtimestamp(end, UTC),
        )
        for page in pages:
            for result in page["MetricDataResults"]:
                query = asked[int(result["Id"][1:])]
                for at, value in zip(result["Timestamps"], result["Values"], strict=True):
                    found[query.about, query.name][int(at.timestamp())] = value
    return Metrics(found)


def queries(fleet: Fleet, proxy_name: str | None) -> Iterator[Query]:
    """What to ask about a fleet."""
    for worker in fleet.workers.values():
        yield from _of_worker(fleet, worker)
    if proxy_name:
        yield from _of_proxy(proxy_name)


def _of_worker(fleet: Fleet, worker: Worker) -> Iterator[Query]:
    def query(name: str, namespace: str, metric: str, stat: str, **dimension: str) -> Query:
        return Query(worker.name, name, namespace, metric, tuple(dimension.items()), stat)

    yield query(AGE, "AWS/SQS", AGE, "Maximum", QueueName=worker.queue)
    yield query(CONCURRENCY, "AWS/Lambda", CONCURRENCY, "Maximum", FunctionName=worker.function)
    # template.yaml, POWERTOOLS_METRICS_NAMESPACE.
    for name, metric in {**OUTCOME_METRICS, BREAKER_OPEN: BREAKER_OPEN}.items():
        yield query(name, f"Spillway/{fleet.name}", metric, "Sum", service=worker.name)


def _of_proxy(proxy_name: str) -> Iterator[Query]:
    whole = (("ProxyName", proxy_name),)
    writer = (*whole, ("TargetGroup", "default"), ("TargetRole", "READ_WRITE"))
    for name, metric in GAUGES.items():
        yield Query("", name, "AWS/RDS", metric, writer if name in _WRITERS else whole, "Sum")
    for name, stat in _LATENCIES.items():
        yield Query("", name, "AWS/RDS", BORROW_LATENCY, whole, stat)


def _as_asked(name: str, query: Query) -> dict[str, Any]:
    dimensions = [{"Name": key, "Value": value} for key, value in query.dimensions]
    metric = {"Namespace": query.namespace, "MetricName": query.metric, "Dimensions": dimensions}
    return {"Id": name, "MetricStat": {"Metric": metric, "Period": PERIOD_S, "Stat": query.stat}}
