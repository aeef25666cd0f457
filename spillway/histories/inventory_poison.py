"""Ways to break a stock event, on top of those that break any event."""

from __future__ import annotations

import random
from typing import Any

from spillway.histories.poison import ENVELOPE, Event, Poison, json_of, kind
from workers.inventory.contract import MAX_LINES, MAX_QUANTITY
from workers.runtime.failures import Reason

#: All of them break a receipt or a reservation: an event with lines.
POISON: dict[str, Poison] = dict(ENVELOPE)


@kind(POISON, Reason.CONTRACT, "Expected `subject` to equal")
def _subject_mismatch(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"subject": event["subject"] + "0"})


def _with_lines(event: Event, lines: list[dict[str, Any]]) -> str:
    return json_of(event | {"data": event["data"] | {"lines": lines}})


def _with_line(event: Event, **changes: Any) -> str:
    *others, last = event["data"]["lines"]
    return _with_lines(event, [*others, last | changes])


@kind(POISON, Reason.CONTRACT, "missing required field")
def _missing_document(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"data": {"lines": event["data"]["lines"]}})


@kind(POISON, Reason.CONTRACT, "missing required field `lines`")
def _missing_lines(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"data": {name: value for name, value in event["data"].items() if name != "lines"}})


@kind(POISON, Reason.CONTRACT, "$.data.lines")
def _no_lines(event: Event, _rng: random.Random) -> str:
    return _with_lines(event, [])


@kind(POISON, Reason.CONTRACT, "$.data.lines")
def _too_many_lines(event: Event, _rng: random.Random) -> str:
    return _with_lines(event, event["data"]["lines"][:1] * (MAX_LINES + 1))


@kind(POISON, Reason.CONTRACT, "quantity")
def _no_pieces(event: Event, _rng: random.Random) -> str:
    return _with_line(event, quantity=0)


@kind(POISON, Reason.CONTRACT, "quantity")
def _negative_quantity(event: Event, _rng: random.Random) -> str:
    return _with_line(event, quantity=-1)


@kind(POISON, Reason.CONTRACT, "quantity")
def _quantity_too_large(event: Event, _rng: random.Random) -> str:
    return _with_line(event, quantity=MAX_QUANTITY + 1)


@kind(POISON, Reason.CONTRACT, "quantity")
def _quantity_as_text(event: Event, _rng: random.Random) -> str:
    return _with_line(event, quantity="3")


@kind(POISON, Reason.CONTRACT, "sku")
def _empty_sku(event: Event, _rng: random.Random) -> str:
    return _with_line(event, sku="")


@kind(POISON, Reason.CONTRACT, "sku")
def _long_sku(event: Event, _rng: random.Random) -> str:
    return _with_line(event, sku="S" * 65)
