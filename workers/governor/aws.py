"""The AWS calls that the governor makes, and nothing else of it. All raise botocore's errors."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workers.governor.decision import Seen
from workers.governor.load import PERIOD_S, WINDOW, Health, Values, target_health
from workers.governor.record import NOTE_TAG, RECORD_TAG, Setting
from workers.runtime.failures import WorkerError
from workers.runtime.telemetry import BATCH_SIZE, OUTCOME_METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Seconds to connect and to wait for an answer, and tries of a call. If every call of a run were as slow as that, the
#: function's timeout would end it between two of them, which is safe: what a run intends is written down first.
CONNECT_TIMEOUT_S = 2
READ_TIMEOUT_S = 5
TRIES = 3

BORROW_LATENCY = "DatabaseConnectionsBorrowLatency"
#: A message that the breaker turned away is given back as saturated, too, so BreakerOpen would only count it twice.
SATURATED = OUTCOME_METRICS["saturated"]


class MetricsError(WorkerError):
    """CloudWatch answered, but not with all that was asked for."""


@dataclass(frozen=True, slots=True)
class Found:
    """A mapping, and where its tags are. record: the text of its record tag, None where there is none."""

    arn: str
    seen: Seen
    record: str | None


class Aws:
    """The three services, by client."""

    def __init__(self, lambda_: Any, rds: Any, cloudwatch: Any) -> None:
        self._lambda = lambda_
        self._rds = rds
        self._cloudwatch = cloudwatch

    def health(self, proxy_name: str) -> tuple[Health, str]:
        """The health of the proxy's target, and its states and reasons."""
        pages = self._rds.get_paginator("describe_db_proxy_targets").paginate(DBProxyName=proxy_name)
        return target_health(target for page in pages for target in page["Targets"])

    def values(self, now: datetime, namespace: str, workers: Iterable[str], proxy_name: str) -> dict[int, Values]:
        """What CloudWatch has of the last complete minutes, by the minute's start in seconds since the epoch.

        All workers' messages are added up. Raises MetricsError where an answer is not complete.
        """
        end = int(now.timestamp()) // PERIOD_S * PERIOD_S
        found: defaultdict[int, Values] = defaultdict(Values)
        for query, at, value in self._points(_queries(namespace, workers, proxy_name), end):
            minute = found[at]
            if query.startswith("wait"):
                found[at] = replace(minute, wait_us=value)
            elif query.startswith("messages"):
                found[at] = replace(minute, messages=(minute.messages or 0) + value)
            else:
                found[at] = replace(minute, saturated=(minute.saturated or 0) + value)
        return dict(found)

    def _points(self, queries: list[dict[str, Any]], end: int) -> Iterator[tuple[str, int, float]]:
        statuses: dict[str, str] = {}
        pages = self._cloudwatch.get_paginator("get_metric_data").paginate(
            MetricDataQueries=queries,
            StartTime=datetime.fromtimestamp(end - WINDOW * PERIOD_S, UTC),
            EndTime=datetime.fromtimestamp(end, UTC),
        )
        for page in pages:
            for result in page["MetricDataResults"]:
                statuses[result["Id"]] = result["StatusCode"]
                for at, value in zip(result["Timestamps"], result["Values"], strict=True):
                    yield result["Id"], int(at.timestamp()), value
        # PartialData is a page's; the last page of every metric must be Complete (API reference, MetricDataResult).
        wrong = {query["Id"]: statuses.get(query["Id"], "nothing") for query in queries}
        wrong = {name: status for name, status in wrong.items() if status != "Complete"}
        if wrong:
            raise MetricsError(f"GetMetricData: expected Complete, got {wrong}")

    def find(self, uuid: str) -> Found:
        """The mapping as it is, and its tags."""
        mapping = self._lambda.get_event_source_mapping(UUID=uuid)
        arn = mapping["EventSourceMappingArn"]
        tags = self._lambda.list_tags(Resource=arn).get("Tags", {})
        # Of one in transition this is only reported; nothing is decided then.
        enabled = mapping["State"] not in ("Disabled", "Disabling")
        concurrency = mapping.get("ScalingConfig", {}).get("MaximumConcurrency")
        seen = Seen(mapping["State"], Setting(enabled, concurrency), tags.get(NOTE_TAG, "").strip().lower())
        return Found(arn, seen, tags.get(RECORD_TAG))

    def tag(self, found: Found, *, record: str | None, note: str) -> None:
        """Make the two tags say so, with a call only where they say something else; what is written goes in one."""
        was = {RECORD_TAG: found.record, NOTE_TAG: found.seen.note or None}
        wanted = {RECORD_TAG: record, NOTE_TAG: note or None}
        changed = {key: value for key, value in wanted.items() if value != was[key]}
        if written := {key: value for key, value in changed.items() if value is not None}:
            self._lambda.tag_resource(Resource=found.arn, Tags=written)
        if removed := [key for key, value in changed.items() if value is None]:
            self._lambda.untag_resource(Resource=found.arn, TagKeys=removed)

    def change(self, uuid: str, to: Setting) -> None:
        """Start the change; it takes effect within a minute or so. The function, its alias and the rest stay."""
        self._lambda.update_event_source_mapping(
            UUID=uuid, Enabled=to.enabled, ScalingConfig={"MaximumConcurrency": to.concurrency}
        )


def clients() -> Aws:
    """Clients of this region. boto3 is in Lambda's runtime, and not in the artifact."""
    # Here, so that what imports this module (tests, tools) does not pay for boto3.
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": TRIES},
    )
    return Aws(*(boto3.client(service, config=config) for service in ("lambda", "rds", "cloudwatch")))


def _queries(namespace: str, workers: Iterable[str], proxy_name: str) -> list[dict[str, Any]]:
    # GetMetricData costs by the metric: 1 + 2 for each worker, every minute.
    queries = [
        _query(f"{name}{index}", namespace, metric, {"service": worker}, "Sum")
        for index, worker in enumerate(workers)
        for name, metric in (("messages", BATCH_SIZE), ("saturated", SATURATED))
    ]
    if proxy_name:
        # Every node of the proxy publishes its own: the average over nodes, not a sum. A percentile would depend on how
        # nodes aggregate before they publish, which is not documented.
        queries.append(_query("wait", "AWS/RDS", BORROW_LATENCY, {"ProxyName": proxy_name}, "Average"))
    return queries


def _query(name: str, namespace: str, metric: str, dimensions: dict[str, str], stat: str) -> dict[str, Any]:
    named = [{"Name": key, "Value": value} for key, value in dimensions.items()]
    return {
        "Id": name,
        "MetricStat": {
            "Metric": {"Namespace": namespace, "MetricName": metric, "Dimensions": named},
            "Period": PERIOD_S,
            "Stat": stat,
        },
    }
