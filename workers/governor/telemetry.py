"""What the governor says: a log line for every decision, and the metrics of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from workers.governor.decision import Action
from workers.runtime.telemetry import describe

if TYPE_CHECKING:
    from workers.governor.decision import Decision, Seen
    from workers.governor.governor import Report
    from workers.governor.settings import Governed, GovernorSettings

SERVICE = "governor"

#: MaximumConcurrency in force after the run, 0 while disabled. By worker (dimension `service` = the worker's name, as
#: its other metrics), because that is how one looks at it: beside its queue's age and its throughput.
CONCURRENCY = "GovernorConcurrency"
#: Mappings that the governor holds below what was deployed.
ACTING = "GovernorActing"
#: Changes that the run made; in observe mode: that it would have made.
CHANGES = "GovernorChanges"
#: Mappings that somebody else changed or tagged off.
HANDS_OFF = "GovernorHandsOff"
#: What could not be read or changed; the run leaves alone what depends on it.
ERRORS = "GovernorErrors"

_QUIET = (Action.HOLD, Action.WAIT)


class Telemetry:
    """The governor's logs and metrics."""

    def __init__(self, settings: GovernorSettings) -> None:
        self._settings = settings
        self._logger = Logger(service=SERVICE)

    def decision(self, governed: Governed, seen: Seen, decision: Decision, target: str) -> None:
        """Report a decision and its reason. Lines of mappings that are left as they are have the level DEBUG."""
        say = self._logger.debug if decision.action in _QUIET else self._logger.info
        if decision.action is Action.HANDS_OFF:
            say = self._logger.warning
        say(
            "governor_decision",
            fleet=self._settings.fleet,
            mode=self._settings.mode,
            worker=governed.worker,
            mapping=governed.uuid,
            action=decision.action.value,
            reason=decision.reason,
            found=str(seen.setting),
            to=str(decision.setting or seen.setting),
            maximum=governed.maximum,
            target=target,
        )

    def failed(self, what: str, error: BaseException) -> None:
        """Report what could not be read or changed."""
        self._logger.error("governor_failed", fleet=self._settings.fleet, what=what, **describe(error))

    def report(self, report: Report) -> None:
        """Report a finished run: metrics, and what they count beside them."""
        metrics = self._metrics(SERVICE)
        for name, count in {
            ACTING: len(report.acting),
            CHANGES: len(report.changes),
            HANDS_OFF: len(report.hands_off),
            ERRORS: len(report.errors),
        }.items():
            metrics.add_metric(name=name, unit=MetricUnit.Count, value=count)
        for key, value in report.as_dict().items():
            metrics.add_metadata(key, value)
        metrics.flush_metrics()
        for worker, concurrency in report.concurrency.items():
            mapping = self._metrics(worker)
            mapping.add_metric(name=CONCURRENCY, unit=MetricUnit.Count, value=concurrency)
            mapping.flush_metrics()

    def _metrics(self, service: str) -> Any:
        return EphemeralMetrics(namespace=self._settings.namespace, service=service)
