"""One run of housekeeping: a few kinds of steps, each of one or more short autocommit calls that wait for nobody.

A step that fails is told of and left to the next run, and the others are tried all the same; only a database that
cannot be reached ends the run. Nothing is retried in place: in an hour everything is tried again anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from workers.runtime.failures import Failure, classify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from workers.housekeeping.settings import HousekeepingSettings
    from workers.housekeeping.telemetry import Telemetry
    from workers.runtime.calls import Store

#: Rows of one call. 5,000 took 15 ms on a laptop-sized server: no lock is held, and no vacuum held up, for longer.
BATCH_ROWS = 5_000
#: A call that met the statement timeout is tried again with a quarter of its rows, but not below this.
MIN_ROWS = 100
#: Partitions are made for this month and so many after it, so that a missed turn of the month takes missing three.
MONTHS_AHEAD = 3
#: How old the memory of an unfinished attempt may become, in days: no message stays longer than 14 in its queue.
ATTEMPT_RETENTION_DAYS = 15

#: Why a step was not finished, beside the names of the failure classes (workers.runtime.failures.Failure).
OUT_OF_TIME = "out-of-time"

#: A statement and its JSON parameter, to rows; raises _OutOfTimeError where the time left is too short for a call.
Fetch = Callable[[str, Any], list[tuple[Any, ...]]]

# The table that is furthest behind first, so that runs that are too short starve none.
PLAN = "SELECT table_name, before FROM spillway.housekeeping_plan(%s) ORDER BY overdue DESC"
PRUNE = "SELECT deleted, reached, more FROM spillway.housekeeping_prune(%s)"
MAKE_PARTITIONS = "SELECT spillway.audit_make_partitions((%s)::integer)::text"
DROP_PARTITIONS = "SELECT spillway.audit_drop_partitions((%s)::integer)::text"


@dataclass(slots=True)
class Report:
    """What a run did. pruned: rows by table; made, dropped: partitions; unfinished: step -> why."""

    pruned: dict[str, int] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unfinished: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _OutOfTimeError(Exception):
    """There is not enough time left for another call."""


class Housekeeper:
    """Does everything that is due through `store`, a call at a time; raises nothing that a database can cause."""

    def __init__(
        self,
        store: Store,
        settings: HousekeepingSettings,
        telemetry: Telemetry,
        *,
        batch_rows: int = BATCH_ROWS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._telemetry = telemetry
        self._batch_rows = batch_rows
        self._sleep = sleep
        self._clock = clock

    def run(self, remaining_s: Callable[[], float]) -> Report:
        """Do what is due within `remaining_s()` seconds, and report it."""
        report = Report()
        for name, step in self._steps(report, partial(self._fetch, remaining_s)):
            if not self._tried(name, step, report):
                break
        self._telemetry.report(report)
        return report

    def _steps(self, report: Report, fetch: Fetch) -> Iterator[tuple[str, Callable[[], None]]]:
        """What is due, the most urgent first: the turn of the month does not wait, and dropping can."""
        yield "make partitions", lambda: report.made.extend(_names(fetch(MAKE_PARTITIONS, MONTHS_AHEAD)))
        retention = {"claim_days": self._settings.claim_retention_days, "attempt_days": ATTEMPT_RETENTION_DAYS}
        plan: list[tuple[Any, ...]] = []
        yield "plan", lambda: plan.extend(fetch(PLAN, retention))
        for table, before in plan:
            yield f"prune {table}", partial(self._prune, table, before, report, fetch)
        if months := self._settings.audit_retention_months:
            yield "drop partitions", lambda: report.dropped.extend(_names(fetch(DROP_PARTITIONS, months)))

    def _tried(self, name: str, step: Callable[[], None], report: Report) -> bool:
        """Try one step; False if the next ones would only meet the same trouble."""
        try:
            step()
        except _OutOfTimeError:
            report.unfinished[name] = OUT_OF_TIME
            return False
        except Exception as error:  # classified, told of, and left to the next run
            failure = classify(error)
            report.unfinished[name] = failure.value
            self._telemetry.unfinished(name, failure, error)
            unreachable = failure in (Failure.SATURATED, Failure.UNAVAILABLE) or not self._store.connected
            self._store.discard()
            return not unreachable
        return True

    def _prune(self, table: str, before: datetime, report: Report, fetch: Fetch) -> None:
        report.pruned[table] = 0
        rows, after = self._batch_rows, None
        while True:
            started = self._clock()
            try:
                [(deleted, reached, more)] = fetch(
                    PRUNE, {"table": table, "before": before, "after": after, "rows": rows}
                )
            except Exception as error:
                if classify(error) is not Failure.SLOW or rows <= MIN_ROWS:
                    raise
                rows = max(rows // 4, MIN_ROWS)
                continue
            report.pruned[table] += deleted
            if not more:
                return
            after = reached
            # As long as it worked: at most half of a connection's, a core's and a disk's time is taken from writers.
            self._sleep(self._clock() - started)

    def _fetch(self, remaining_s: Callable[[], float], statement: str, parameter: Any) -> list[tuple[Any, ...]]:
        needed = self._settings.attempt + (0 if self._store.connected else self._settings.connect_timeout)
        if remaining_s() < needed:
            raise _OutOfTimeError
        return self._store.fetch(statement, msgspec.json.encode(parameter))


def _names(rows: list[tuple[Any, ...]]) -> list[str]:
    return [name for (name,) in rows]
