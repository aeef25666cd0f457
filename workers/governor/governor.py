"""One run of the governor: look at the pool once, then decide for each mapping, write the intention down, and do it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workers.governor.decision import Action, Decision, World, decide, give_back
from workers.governor.load import Health, last_minutes
from workers.governor.record import Record

if TYPE_CHECKING:
    from datetime import datetime

    from workers.governor.aws import Aws, Found
    from workers.governor.settings import Governed, GovernorSettings
    from workers.governor.telemetry import Telemetry


@dataclass(slots=True)
class Report:
    """What a run did, by worker.

    target: state of the proxy's target; concurrency: MaximumConcurrency in force, 0 while disabled; decisions: action
    and reason; acting: held below what was deployed, by the governor; changes: from and to; errors: what -> its class.
    """

    target: str = ""
    concurrency: dict[str, int] = field(default_factory=dict)
    decisions: dict[str, str] = field(default_factory=dict)
    acting: list[str] = field(default_factory=list)
    changes: dict[str, str] = field(default_factory=dict)
    hands_off: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Governor:
    """Moves the fleet's mappings; raises nothing that AWS can cause.

    A run may end between any two of its calls: what it intends is written down before it is done.
    """

    def __init__(self, aws: Aws, settings: GovernorSettings, telemetry: Telemetry) -> None:
        self._aws = aws
        self._settings = settings
        self._telemetry = telemetry
        #: In observe mode: what the tags would say, for as long as this environment lives.
        self._observed: dict[str, Record | None] = {}

    def run(self, now: datetime) -> Report:
        """Look, decide, act, and report it."""
        report = Report()
        world = World(None, ()) if self._settings.mode == "off" else self._look(now, report)
        for governed in self._settings.mappings:
            try:
                self._govern(now, governed, world, report)
            except Exception as error:  # the other mappings are independent of this one
                self._failed(governed.worker, error, report)
        self._telemetry.report(report)
        return report

    def _look(self, now: datetime, report: Report) -> World:
        """The world; where a part of it cannot be read, one that nothing is done upon."""
        settings = self._settings
        health: Health | None = None
        try:
            if settings.proxy_name:
                health, report.target = self._aws.health(settings.proxy_name)
        except Exception as error:  # blind is not down: nothing is disabled, lowered or raised
            self._failed("target health", error, report)
            return World(Health.UNKNOWN, ())
        try:
            workers = [governed.worker for governed in settings.mappings]
            values = self._aws.values(now, settings.namespace, workers, settings.proxy_name)
        except Exception as error:  # an outage can still be told
            self._failed("metrics", error, report)
            return World(health, ())
        return World(health, last_minutes(values, now=now.timestamp(), borrow_timeout=settings.borrow_timeout))

    def _govern(self, now: datetime, governed: Governed, world: World, report: Report) -> None:
        found = self._aws.find(governed.uuid)
        record = Record.decode(found.record)
        # Whatever the mode, what the governor set is never left behind: only "on" keeps it.
        observed = self._settings.mode == "observe" and found.record is None
        if self._settings.mode == "on":
            decision = decide(now, found.seen, governed.maximum, record, world)
        elif observed:
            decision = self._observe(now, governed, found, world)
        else:
            decision = give_back(now, found.seen, governed.maximum, record)
        self._telemetry.decision(governed, found.seen, decision, report.target)
        if not observed:
            self._act(governed, found, decision)
        self._note(governed, found, decision, report, acts=not observed)

    def _observe(self, now: datetime, governed: Governed, found: Found, world: World) -> Decision:
        decision = decide(now, found.seen, governed.maximum, self._observed.get(governed.uuid), world)
        if decision.action is not Action.HANDS_OFF:
            # The mapping stays as it is, so this is where the next decision starts from.
            there = found.seen.setting
            self._observed[governed.uuid] = decision.record and replace(decision.record, was=there, to=there)
        return decision

    def _act(self, governed: Governed, found: Found, decision: Decision) -> None:
        self._aws.tag(found, record=decision.record.encode() if decision.record else None, note=decision.note)
        if decision.setting:
            self._aws.change(governed.uuid, decision.setting)

    def _note(self, governed: Governed, found: Found, decision: Decision, report: Report, *, acts: bool) -> None:
        there = found.seen.setting
        now_set = decision.setting if decision.setting and acts else there
        report.concurrency[governed.worker] = (now_set.concurrency or 0) if now_set.enabled else 0
        report.decisions[governed.worker] = f"{decision.action.value}: {decision.reason}"
        if decision.setting:
            report.changes[governed.worker] = f"{there} to {decision.setting}"
        if decision.action is Action.HANDS_OFF:
            report.hands_off.append(governed.worker)
        elif acts and (not now_set.enabled or (now_set.concurrency or 0) < governed.maximum):
            report.acting.append(governed.worker)

    def _failed(self, what: str, error: Exception, report: Report) -> None:
        report.errors[what] = type(error).__name__
        self._telemetry.failed(what, error)
