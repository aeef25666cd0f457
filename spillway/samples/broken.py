"""How a broken body is described, and made of a valid event."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from spillway.samples.events import body_of
from workers.runtime.failures import Reason


@dataclass(frozen=True)
class BrokenBody:
    """A body no worker can use. `detail` is what its dead letter says.

    `schema_refuses` tells whether the event's JSON Schema refuses it too: None where a JSON parser already
    gives up, False where JSON Schema cannot state the rule.
    """

    name: str
    shows: str
    body: str
    reason: Reason
    detail: str
    schema_refuses: bool | None


def undecodable(name: str, shows: str, body: str, detail: str) -> BrokenBody:
    """A body that is no JSON."""
    return BrokenBody(name, shows, body, Reason.UNDECODABLE, detail, schema_refuses=None)


def contract(name: str, shows: str, event: Any, detail: str, *, schema_refuses: bool = True) -> BrokenBody:
    """A body that breaks its contract."""
    return BrokenBody(name, shows, body_of(event), Reason.CONTRACT, detail, schema_refuses)


def changed(event: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `event` with the value at `path` (names and list indices joined by dots) replaced."""
    event = copy.deepcopy(event)
    parent, last = _walk(event, path)
    parent[last] = value
    return event


def without(event: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy of `event` that lacks what is at `path`."""
    event = copy.deepcopy(event)
    parent, last = _walk(event, path)
    del parent[last]
    return event


def _walk(event: Any, path: str) -> tuple[Any, int | str]:
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in steps:
        event = event[step]
    return event, last
