"""A short part of the chaos suite, the same every time: each run breaks something and must lose nothing.

`make chaos` does this 200 times, with longer faults and larger histories.
"""

from __future__ import annotations

from queue import Empty
from typing import TYPE_CHECKING

import pytest

from tests.chaos.crew import Crew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.runner import Report

SEED = 20261121
FAULTS = (
    "killed mid-statement",
    "killed after commit, before the answer",
    "frozen past its visibility",
    "another client's answer",
    "PostgreSQL crashes (immediate)",
    "fail-over of 5 to 20 s",
    "pool saturated",
    "SQS delivers every message twice",
    "errors on sending dead letters",
    "redrive of the dead-letter queues",
)
FLEETS = 2


class Reports:
    """What the runs came to, by fault; asking for one waits for it."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._made: dict[str, Report] = {}

    def of(self, fault: str) -> Report:
        while fault not in self._made:
            assert self._crew.busy, f"the run of {fault!r} is missing"
            try:
                report = self._crew.reports.get(timeout=0.2)
            except Empty:
                continue
            assert not isinstance(report, str), report
            assert report.faults, report.violations
            self._made[report.faults[0]] = report
        return self._made[fault]


@pytest.fixture(scope="module")
def reports() -> Iterator[Reports]:
    order: dict[str, object] = {"seed": SEED, "faults": FAULTS, "quick": True, "workers": None}
    crew = Crew(FLEETS, order, range(len(FAULTS)))
    yield Reports(crew)
    crew.stop()


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_and_nothing_takes_effect_twice(fault: str, reports: Reports) -> None:
    report = reports.of(fault)
    assert report.violations == [], report.log
    assert report.happened, report.injected
