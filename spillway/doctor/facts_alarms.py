"""The alarms that the stack made, as CloudWatch has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from spillway.doctor.facts import Facts

#: DescribeAlarms takes 100 names (CloudWatch API Reference).
MOST_NAMES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm. `found` is whether CloudWatch has it; without, the rest says nothing.

    `logical_id` is the template's name for it; `gap_matters` is whether missing data is its news.
    """

    name: str
    logical_id: str
    found: bool = True
    state: str = "OK"
    since: datetime | None = None
    because: str = ""
    description: str = ""
    enabled: bool = True
    actions: tuple[str, ...] = ()
    gap_matters: bool = False

    @property
    def rollback(self) -> bool:
        """Whether it is CodeDeploy's only, and so tells nobody."""
        return self.logical_id.startswith("Rollback")

    @property
    def link(self) -> str:
        """Where its description says to read on, '' where it does not."""
        last = self.description.split()[-1:] or [""]
        return last[0] if "#" in last[0] else ""


def load(facts: Facts) -> tuple[Alarm, ...]:
    """The alarms of the stack's templates, also those that are gone from CloudWatch."""
    expected = {one.physical_id: one.logical_id for one in facts.fleet.of_type("AWS::CloudWatch::Alarm")}
    names = sorted(expected)
    found = {one["AlarmName"]: one for one in _described(facts.fleet.client("cloudwatch"), names)}
    return tuple(
        _alarm(found[name], expected[name])
        if name in found
        else Alarm(name=name, logical_id=expected[name], found=False)
        for name in names
    )


def _described(client: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(names), MOST_NAMES):
        wanted = list(names[start : start + MOST_NAMES])
        pages = client.get_paginator("describe_alarms").paginate(AlarmNames=wanted, AlarmTypes=["MetricAlarm"])
        for page in pages:
            yield from page["MetricAlarms"]


def _alarm(about: dict[str, Any], logical_id: str) -> Alarm:
    return Alarm(
        name=about["AlarmName"],
        logical_id=logical_id,
        state=about["StateValue"],
        # Since when it is in this state; the other one also moves when only the reason's text does.
        since=about.get("StateTransitionedTimestamp") or about.get("StateUpdatedTimestamp"),
        because=about.get("StateReason", ""),
        description=about.get("AlarmDescription", ""),
        enabled=about["ActionsEnabled"],
        actions=tuple(about.get("AlarmActions", ())),
        gap_matters=about.get("TreatMissingData", "missing") == "missing",
    )
