"""What housekeeping says about a run: one EMF record, and a log line for every step that was not finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import MetricUnit

from workers.runtime.failures import Failure
from workers.runtime.telemetry import describe, metrics

if TYPE_CHECKING:
    from workers.housekeeping.housekeeper import Report

SERVICE = "housekeeping"

CLAIMS_PRUNED = "ClaimsPruned"
ATTEMPTS_PRUNED = "AttemptsPruned"
PARTITIONS_MADE = "PartitionsMade"
PARTITIONS_DROPPED = "PartitionsDropped"
#: Steps that the run left to the next one. Now and then is nothing; for a day on end, somebody must look.
UNFINISHED = "HousekeepingUnfinished"

#: Faults of ours: the next run will not fare better.
_OURS = (Failure.MISCONFIGURED, Failure.UNKNOWN, Failure.POISON)


class Telemetry:
    """Housekeeping's logs and metrics; counts and names, never an event id."""

    def __init__(self) -> None:
        self._logger = Logger(service=SERVICE)
        self._metrics = metrics(SERVICE)

    def report(self, report: Report) -> None:
        """Report a finished run: counts as metrics, and by table and by name beside them."""
        attempts = report.pruned.get("attempts", 0)
        for name, count in {
            CLAIMS_PRUNED: sum(report.pruned.values()) - attempts,
            ATTEMPTS_PRUNED: attempts,
            PARTITIONS_MADE: len(report.made),
            PARTITIONS_DROPPED: len(report.dropped),
            UNFINISHED: len(report.unfinished),
        }.items():
            self._metrics.add_metric(name=name, unit=MetricUnit.Count, value=count)
        for key, value in report.as_dict().items():
            self._metrics.add_metadata(key, value)
        self._metrics.flush_metrics()

    def unfinished(self, step: str, failure: Failure, error: BaseException) -> None:
        """Report the error that ended a step, and its class."""
        say = self._logger.error if failure in _OURS else self._logger.warning
        say("step_unfinished", step=step, failure=failure.value, **describe(error))
