"""What a redrive's screens show when there is more than fits."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from rich.console import Console

from spillway.dlq import reports
from spillway.dlq.letters import Cause
from spillway.dlq.records import DELETED, KEPT, SENT, CauseRecord
from spillway.dlq.rehearsal import PlannedGroup
from spillway.dlq.verdicts import DIED, PASSED, UNPROVEN

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST = reports.LISTED_GROUPS


def shown(what: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def cause(number: int) -> Cause:
    return Cause(reason="data", code="23514", detail=f"constraint {number}")


def record(number: int, letters: dict[str, int], *, verdict: str = "", stayed: int = 0) -> CauseRecord:
    return CauseRecord(
        key=f"key{number:05}", cause=cause(number), verdict=verdict, why="", stayed=stayed, letters=letters
    )


def keys(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^key(\d{5}) ", text, re.MULTILINE)]


def plan_of(count: int) -> str:
    groups = [
        PlannedGroup(key=f"key{number:05}", cause=cause(number), count=2, refused={"no": 1}) for number in range(count)
    ]
    return shown(reports.plan(groups, title="plan", conditions=[], notes=["A note."], todo="do it"))


def outcome_of(groups: list[CauseRecord]) -> str:
    return shown(reports.outcome(groups, title="done", notes=[], refusals={}, todo=""))


def test_a_plan_that_fits_has_all_of_its_groups() -> None:
    text = plan_of(MOST)
    assert keys(text) == list(range(MOST))
    assert "more group" not in text


def test_a_plan_of_many_groups_has_the_largest_and_counts_the_others() -> None:
    text = plan_of(MOST + 1)
    assert keys(text) == list(range(MOST))
    assert "and 3 letters in 1 more group: --json has all" in text
    assert text.index("more group") < text.index("A note.") < text.index("do it")
    assert "and 600 letters in 200 more groups: --json has all" in plan_of(MOST + 200)


def test_of_many_groups_those_to_look_at_come_first() -> None:
    well = [record(number, {DELETED: 5}, verdict=PASSED if number % 2 else "") for number in range(MOST)]
    bad = [
        record(100, {DELETED: 1}, verdict=DIED),
        record(101, {DELETED: 1}, verdict=UNPROVEN),
        record(102, {DELETED: 1}, stayed=3),
        record(103, {DELETED: 1, KEPT: 1}),
        record(104, {DELETED: 1, SENT: 1}),
    ]
    text = outcome_of(well + bad)
    assert keys(text) == [100, 101, 102, 103, 104, *range(MOST - 5)]
    assert "and 25 letters in 5 more groups: spillway dlq history RUN --json has all" in text


def test_few_groups_stay_in_their_order() -> None:
    groups = [record(1, {DELETED: 5}), record(2, {KEPT: 2})]
    text = outcome_of(groups)
    assert keys(text) == [1, 2]
    assert "more group" not in text
