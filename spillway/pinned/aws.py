"""A deployed proxy's pins: its log group, by CloudWatch Logs Insights, and CloudWatch's metric."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from spillway.aws_errors import code_of
from spillway.errors import SpillwayError
from spillway.pinned.lines import MARK, PinLine, read_line, read_moment
from spillway.pinned.local import SESSIONS_PINNED

if TYPE_CHECKING:
    from spillway.fleet.fleet import Fleet

#: What Logs Insights returns at most for one query ("StartQuery", API reference).
MAX_LINES = 10_000
#: The proxy's own log; a newer proxy adds "[proxyEndpoint=...]" and others, so only the mark is asked for.
QUERY = f"fields @timestamp, @message | filter @message like /{MARK}/ | sort @timestamp desc | limit {MAX_LINES}"
#: Seconds between two looks at a query that runs.
POLL_S = 0.5
#: The metric of a minute is there some minutes later.
RECENT = timedelta(minutes=10)
_RUNNING = {"Scheduled", "Running", "Unknown"}


def log_group(proxy: str) -> str:
    """Where RDS Proxy writes."""
    return f"/aws/rds/proxy/{proxy}"


def logged_pins(
    logs: Any, proxy: str, since: datetime, until: datetime, *, sleep: Callable[[float], object] = time.sleep
) -> list[PinLine]:
    """The pins in the log, MAX_LINES at most, the latest first. The query is stopped when this is interrupted.

    Raises SpillwayError where there is no log, or the query fails.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415

    try:
        query = logs.start_query(
            logGroupName=log_group(proxy),
            startTime=int(since.timestamp()),
            endTime=int(until.timestamp()),
            queryString=QUERY,
            limit=MAX_LINES,
        )["queryId"]
    except ClientError as error:
        if code_of(error) != "ResourceNotFoundException":
            raise
        raise SpillwayError(
            f"There is no log group {log_group(proxy)}.",
            "RDS Proxy makes it with its first line. Is the name right? `aws rds describe-db-proxies` lists them.",
        ) from error
    answer = _answer(logs, query, sleep)
    if answer["status"] != "Complete":
        raise SpillwayError(
            f"CloudWatch Logs Insights gave up on {log_group(proxy)}: the query is {answer['status']}.",
            "Ask for less with --since, or again in a moment.",
        )
    rows = [{one["field"]: one.get("value", "") for one in row} for row in answer["results"]]
    found = (read_line(row.get("@message", ""), read_moment(row.get("@timestamp", ""))) for row in rows)
    return [line for line in found if line is not None]


def pinned_now(fleet: Fleet, proxy: str, now: datetime) -> int | None:
    """Connections that are pinned, as CloudWatch last heard; None where it heard nothing lately."""
    answer = fleet.client("cloudwatch").get_metric_data(
        MetricDataQueries=[
            {
                "Id": "pinned",
                "MetricStat": {
                    "Metric": {
                        "Namespace": "AWS/RDS",
                        "MetricName": SESSIONS_PINNED,
                        "Dimensions": [{"Name": "ProxyName", "Value": proxy}],
                    },
                    "Period": 60,
                    "Stat": "Sum",  # every node of the proxy publishes its own
                },
            }
        ],
        StartTime=now - RECENT,
        EndTime=now,
        ScanBy="TimestampDescending",
    )
    values = answer["MetricDataResults"][0]["Values"]
    return round(values[0]) if values else None


def _answer(logs: Any, query: str, sleep: Callable[[float], object]) -> dict[str, Any]:
    try:
        while True:
            answer: dict[str, Any] = logs.get_query_results(queryId=query)
            if answer["status"] not in _RUNNING:
                return answer
            sleep(POLL_S)
    except BaseException:
        # Else it runs on, and is paid for, with nobody to read the answer.
        with contextlib.suppress(Exception):
            logs.stop_query(queryId=query)
        raise
