"""All dead-letter queues of a fleet at one glance."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from spillway.aws_errors import is_denied
from spillway.dlq.holding import Holder
from spillway.dlq.reading import Coverage, Depth, depth_of, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mypy_boto3_sqs import SQSClient

    from spillway.dlq.letters import Letter
    from spillway.fleet.fleet import Fleet, Worker

LAST_HOUR = timedelta(hours=1)
_PERIOD_S = 300


class QueueOverview(msgspec.Struct, kw_only=True):
    """One dead-letter queue. `reasons` counts the letters that were read, most frequent first.

    `oldest` is when the oldest letter died, None for an empty queue; `last_hour` is how many died in the last hour.
    Both are of all letters if `complete`; else they are CloudWatch's, or, where it was not asked, of the letters that
    were read, so that there may be older ones and more.
    """

    worker: str
    queue: str
    depth: Depth
    read: int
    complete: bool
    reasons: dict[str, int]
    oldest: datetime | None = None
    last_hour: int = 0
    from_cloudwatch: bool = False


def survey(fleet: Fleet, sample: int, stop: threading.Event) -> list[QueueOverview]:
    """Read up to `sample` letters of every dead-letter queue, all queues at once, and give them back."""
    workers = list(fleet.workers.values())
    if not workers:
        return []
    now = datetime.now(UTC)
    client = fleet.sqs(connections=len(workers))
    with ThreadPoolExecutor(len(workers), thread_name_prefix="dlq-list") as pool:
        running = [pool.submit(_look, client, worker, sample, stop, now) for worker in workers]
        try:
            found = [one.result() for one in running]
        except BaseException:
            stop.set()
            raise
    if fleet.local is None:
        _ask_cloudwatch(fleet, [one for one in found if not one.complete], now)
    return found


def _look(client: SQSClient, worker: Worker, sample: int, stop: threading.Event, now: datetime) -> QueueOverview:
    depth = depth_of(client, worker.dead_letter_url)
    reasons: Counter[str] = Counter()
    found: list[datetime] = []

    def note(letter: Letter) -> None:
        reasons[letter.reason] += 1
        found.append(letter.dead_since)

    if depth.total:
        with Holder(client, worker.dead_letter_url) as holder:
            to_the_end = read(holder, note, limit=sample, threads=1, stop=stop)
    else:
        to_the_end = True  # its counts may be a minute late; three polls of every empty queue would take three seconds
    coverage = Coverage(read=len(found), depth=depth, to_the_end=to_the_end, fifo=worker.fifo)
    return QueueOverview(
        worker=worker.name,
        queue=worker.dead_letter_queue,
        depth=depth,
        read=len(found),
        complete=coverage.complete,
        reasons=dict(reasons.most_common()),
        oldest=min(found, default=None),
        last_hour=sum(moment >= now - LAST_HOUR for moment in found),
    )


def _ask_cloudwatch(fleet: Fleet, queues: Sequence[QueueOverview], now: datetime) -> None:
    """Correct what a sample cannot know. Without permission the sample has to do."""
    if not queues:
        return
    metrics = {"age": ("ApproximateAgeOfOldestMessage", "Maximum"), "sent": ("NumberOfMessagesSent", "Sum")}
    queries = [
        {
            "Id": f"{key}{place}",
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/SQS",
                    "MetricName": metric,
                    "Dimensions": [{"Name": "QueueName", "Value": one.queue}],
                },
                "Period": _PERIOD_S,
                "Stat": statistic,
            },
        }
        for place, one in enumerate(queues)
        for key, (metric, statistic) in metrics.items()
    ]
    try:
        answer = fleet.client("cloudwatch").get_metric_data(
            MetricDataQueries=queries, StartTime=now - LAST_HOUR, EndTime=now, ScanBy="TimestampDescending"
        )
    except Exception as error:
        if not is_denied(error):
            raise
        return
    values = {one["Id"]: one["Values"] for one in answer["MetricDataResults"]}
    for place, one in enumerate(queues):
        # SQS leaves a message that was received three times out of its age ("Available CloudWatch metrics for Amazon
        # SQS"), and looking is receiving: the sample may know an older one. NumberOfMessagesSent does not count what
        # SQS's redrive policy moved.
        if ages := values.get(f"age{place}"):
            since = now - timedelta(seconds=ages[0])
            one.oldest = min(since, one.oldest) if one.oldest is not None else since
            one.from_cloudwatch = True
        if sent := values.get(f"sent{place}"):
            one.last_hour = max(one.last_hour, int(sum(sent)))
            one.from_cloudwatch = True
