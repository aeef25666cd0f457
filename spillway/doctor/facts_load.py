"""What the proxy has had to do: the last hour's metrics on AWS, the emulator's counts locally."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from spillway.doctor.facts_proxy import name_of
from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from spillway.doctor.facts import Facts
    from spillway.rdsproxy.metrics import Snapshot

HOUR = timedelta(hours=1)
#: Seconds: the metrics of a proxy come once a minute.
PERIOD_S = 60
#: Under ProxyName alone a reader's unused pool would hide that the writer's is full (infra/observability.yaml).
WRITER = {"TargetGroup": "default", "TargetRole": "READ_WRITE"}

# What, its metric, further dimensions, statistic. Each node of the proxy publishes its own gauges, so the sum of one
# minute is the proxy's (RDS User Guide, "Monitoring RDS Proxy metrics with Amazon CloudWatch").
_METRICS: tuple[tuple[str, str, Mapping[str, str], str], ...] = (
    ("clients", "ClientConnections", {}, "Sum"),
    ("connections", "DatabaseConnections", {}, "Sum"),
    ("borrowed", "DatabaseConnectionsCurrentlyBorrowed", {}, "Sum"),
    ("pinned", "DatabaseConnectionsCurrentlySessionPinned", {}, "Sum"),
    ("writer", "DatabaseConnections", WRITER, "Sum"),
    ("allowed", "MaxDatabaseConnectionsAllowed", WRITER, "Sum"),
    ("borrow_latency", "DatabaseConnectionsBorrowLatency", {}, "Average"),
    ("failed_logins", "ClientConnectionsSetupFailedAuth", {}, "Sum"),
    ("failed_setups", "DatabaseConnectionsSetupFailed", {}, "Sum"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """The proxy's connections in one minute; locally at one moment.

    `writer` of `allowed` connections are the writer's pool. `borrow_latency` is the average in seconds, None where
    nobody borrowed. `failed_logins` are clients that were refused, `failed_setups` connections to the database.
    """

    clients: float = 0
    connections: float = 0
    borrowed: float = 0
    pinned: float = 0
    writer: float = 0
    allowed: float = 0
    borrow_latency: float | None = None
    failed_logins: float = 0
    failed_setups: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`minutes` are those that have values, the oldest first. `over` says of which time counts and latencies are, `at`
    of which time connections are.

    Of the emulator there is one moment only, in which latencies and failures are those since its start; `available`
    is whether it reaches its database, `pins` how many sessions it has pinned. Both are None on AWS.
    """

    proxy: str
    over: str
    at: str
    minutes: tuple[Minute, ...]
    available: bool | None = None
    pins: int | None = None


def load(facts: Facts) -> Load | None:
    """The proxy's load; None where the fleet has no proxy that is known.

    Raises SpillwayError where the emulator does not answer, or CloudWatch has no answer for a metric.
    """
    if facts.fleet.local is not None:
        return _local(facts.fleet.local.proxy_admin_url)
    name = name_of(facts)
    if not name:
        return None
    values = _values(facts.fleet.client("cloudwatch"), name, facts.now)
    times = sorted({time for of_metric in values.values() for time in of_metric})
    return Load(
        proxy=name,
        over="in the last hour",
        at="in the last hour",
        minutes=tuple(_minute({what: known.get(time) for what, known in values.items()}) for time in times),
    )


def _minute(values: Mapping[str, float | None]) -> Minute:
    latency = values["borrow_latency"]
    return Minute(
        borrow_latency=None if latency is None else latency / 1e6,  # CloudWatch's are microseconds
        **{what: value for what, value in values.items() if value is not None and what != "borrow_latency"},
    )


def _values(client: Any, proxy: str, now: datetime) -> dict[str, dict[datetime, float]]:
    queries = [
        {
            "Id": what,
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/RDS",
                    "MetricName": metric,
                    "Dimensions": [{"Name": key, "Value": value} for key, value in _dimensions(proxy, further)],
                },
                "Period": PERIOD_S,
                "Stat": statistic,
            },
        }
        for what, metric, further, statistic in _METRICS
    ]
    end = now.replace(second=0, microsecond=0)
    values: dict[str, dict[datetime, float]] = {what: {} for what, *_ in _METRICS}
    pages = client.get_paginator("get_metric_data").paginate(
        MetricDataQueries=queries, StartTime=end - HOUR, EndTime=end, ScanBy="TimestampAscending"
    )
    for page in pages:
        for result in page["MetricDataResults"]:
            if result.get("StatusCode") in {"InternalError", "Forbidden"}:
                # Without its values a check would see a proxy that has nothing to do.
                raise SpillwayError(f"CloudWatch has no answer for {result['Label']}.", "Try again.")
            values[result["Id"]].update(zip(result["Timestamps"], result["Values"], strict=True))
    return values


def _dimensions(proxy: str, further: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    return [("ProxyName", proxy), *further.items()]


def _local(admin_url: str | None) -> Load | None:
    if admin_url is None:
        return None
    from spillway.rdsproxy.admin import AdminClient  # noqa: PLC0415  (http.server, which no other command needs)

    return _of_snapshot(AdminClient(admin_url).snapshot())


def _of_snapshot(snapshot: Snapshot) -> Load:
    values = snapshot.cloudwatch
    moment = Minute(
        clients=values["ClientConnections"],
        connections=values["DatabaseConnections"],
        borrowed=values["DatabaseConnectionsCurrentlyBorrowed"],
        pinned=values["DatabaseConnectionsCurrentlySessionPinned"],
        writer=values["DatabaseConnections"],
        allowed=values["MaxDatabaseConnectionsAllowed"],
        borrow_latency=values["DatabaseConnectionsBorrowLatency"] / 1e6 if snapshot.borrow_latency.count else None,
        failed_logins=values["ClientConnectionsSetupFailedAuth"],
        failed_setups=values["DatabaseConnectionsSetupFailed"],
    )
    return Load(
        proxy=snapshot.proxy,
        over="since the emulator started",
        at="now",
        minutes=(moment,),
        available=values["AvailabilityPercentage"] > 0,
        pins=snapshot.pinned_sessions_total,
    )
