"""Logs and metrics of the workers. All metric names are here; payloads are in neither."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit

from workers.runtime.version import worker_version

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

    from workers.runtime.failures import Failure, Poison
    from workers.runtime.invocation import Invocation

#: Where POWERTOOLS_METRICS_NAMESPACE is not set, which is on a desk: template.yaml gives each fleet one of its own, so
#: that two fleets of an account do not add up to one.
NAMESPACE = "Spillway"

#: Messages by what became of them. The first four are done; DeadLettered is done too, whatever the reason; the rest
#: went back to the queue.
OUTCOME_METRICS: Mapping[str, str] = {
    "applied": "Applied",
    "duplicate": "Duplicate",
    "stale": "Stale",
    "rejected": "Rejected",
    "dead-lettered": "DeadLettered",
    "poison": "PoisonGivenBack",  # the dead-letter queue could not be reached
    "conflict": "ConflictGivenBack",
    "unavailable": "UnavailableGivenBack",
    "saturated": "SaturatedGivenBack",
    "slow": "SlowGivenBack",
    "misconfigured": "MisconfiguredGivenBack",
    "unknown": "UnknownGivenBack",
    "held": "HeldBack",
}
BATCH_SIZE = "BatchSize"
WRITE_MILLISECONDS = "WriteMilliseconds"
ISOLATIONS = "Isolations"
REDELIVERED = "Redelivered"
#: Reported only when there is something to report.
BREAKER_OPEN = "BreakerOpen"
DELAY_REFUSED = "DelayRefused"

#: How much of a canary's attribute a log line carries: a message may come from anywhere.
MAX_CANARY = 100
#: How much of an error's text a log line carries.
MAX_ERROR_TEXT = 200


def metrics(service: str) -> Metrics:
    """Metrics in this fleet's CloudWatch namespace, with the one dimension `service`."""
    return Metrics(namespace=os.environ.get("POWERTOOLS_METRICS_NAMESPACE") or NAMESPACE, service=service)


class Telemetry:
    """One EMF record per invocation, and a structured log line for everything that is not as it should be.

    The EMF record is a log line already, with every count and the request id; saying the same once more through the
    logger cost a tenth of a small batch.
    """

    def __init__(self, worker: str) -> None:
        self._logger = Logger(service=worker)
        self._metrics = metrics(worker)
        # While traffic moves between versions, or between routes: whose counts these are.
        self._whose = {"version": worker_version(), "route": os.environ.get("DATABASE_ROUTE", "")}

    def batch(
        self, outcomes: Counter[str], invocation: Invocation, *, size: int, redelivered: int, request_id: str
    ) -> None:
        """Report one finished batch of `size` messages."""
        for key, value in {"request_id": request_id, **self._whose}.items():
            self._metrics.add_metadata(key, value)
        add = self._metrics.add_metric
        for outcome, count in outcomes.items():
            add(name=OUTCOME_METRICS[outcome], unit=MetricUnit.Count, value=count)
        add(name=BATCH_SIZE, unit=MetricUnit.Count, value=size)
        add(name=WRITE_MILLISECONDS, unit=MetricUnit.Milliseconds, value=round(invocation.write_s * 1000, 3))
        add(name=ISOLATIONS, unit=MetricUnit.Count, value=invocation.halvings)
        add(name=REDELIVERED, unit=MetricUnit.Count, value=redelivered)
        if invocation.turned_away:
            add(name=BREAKER_OPEN, unit=MetricUnit.Count, value=1)
        self._metrics.flush_metrics()

    def failed(self, failure: Failure, error: BaseException) -> None:
        """Report an error of the database (or of ours) and the class it was put in."""
        self._logger.warning("write_failed", failure=failure.value, **describe(error))

    def dead_letter(self, reason: str, detail: str, message_ids: list[str]) -> None:
        """Report messages that were poison for the same reason; at most ten ids are named."""
        self._logger.warning(
            "poison", reason=reason, detail=detail, messages=len(message_ids), message_ids=message_ids[:10]
        )

    def canary(self, whose: str, message_id: str, outcome: str, poison: Poison | None) -> None:
        """Report what became of one message, because its sender asked: `whose` is what it put into the attribute.

        `outcome` is a key of OUTCOME_METRICS; for what was poison there is why.
        """
        why: dict[str, Any] = (
            {"reason": poison.reason.value, "detail": poison.detail, "sqlstate": poison.sqlstate} if poison else {}
        )
        # A warning, so that it is told at every level but ERROR: somebody waits for it.
        self._logger.warning("canary", canary=whose[:MAX_CANARY], message_id=message_id, outcome=outcome, **why)

    def dead_letters_refused(self, messages: int, why: str) -> None:
        """Report poison that is still in its queue because the dead-letter queue did not take it."""
        self._logger.error("dead_letter_queue_refused", messages=messages, why=why)

    def delays_refused(self, messages: int, why: str) -> None:
        """Report messages that come back after their queue's visibility timeout, because theirs was not changed."""
        self._metrics.add_metric(name=DELAY_REFUSED, unit=MetricUnit.Count, value=messages)
        self._logger.warning("delay_refused", messages=messages, why=why)

    def breaker(self, *, closed: bool) -> None:
        """Report that this environment's breaker has opened or closed."""
        self._logger.warning("breaker_closed" if closed else "breaker_open")


def describe(error: BaseException) -> dict[str, Any]:
    """What may be logged of an error: never DETAIL or CONTEXT lines, and no text at all where it may quote values."""
    sqlstate: str | None = getattr(error, "sqlstate", None)
    said: dict[str, Any] = {"error": type(error).__name__, "sqlstate": sqlstate}
    if not (sqlstate and sqlstate[:2] in ("22", "23")):
        said["text"] = str(error).partition("\n")[0][:MAX_ERROR_TEXT]
    return said
