"""Ways to break an order event, on top of those that break any event."""

from __future__ import annotations

import random
from typing import Any

from spillway.histories.poison import ENVELOPE, Event, Poison, json_of, kind
from workers.orders.contract import MAX_INTEGER, MAX_ITEMS
from workers.runtime.failures import Reason

POISON: dict[str, Poison] = dict(ENVELOPE)


@kind(POISON, Reason.UNDECODABLE, "malformed")
def _not_a_number(event: Event, _rng: random.Random) -> str:
    return json_of(event).replace('"quantity":', '"quantity":NaN,"was":', 1)


@kind(POISON, Reason.CONTRACT, "equal `data.order_id`")
def _subject_mismatch(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"subject": event["subject"] + "0"})


def _with_data(event: Event, **changes: Any) -> str:
    return json_of(event | {"data": event["data"] | changes})


def _with_item(event: Event, **changes: Any) -> str:
    first, *rest = event["data"]["items"]
    return _with_data(event, items=[first | changes, *rest])


@kind(POISON, Reason.CONTRACT, "missing required field `customer`")
def _missing_field(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"data": {name: value for name, value in event["data"].items() if name != "customer"}})


@kind(POISON, Reason.CONTRACT, "$.data.version")
def _wrong_type(event: Event, _rng: random.Random) -> str:
    return _with_data(event, version=str(event["data"]["version"]))


@kind(POISON, Reason.CONTRACT, "$.data.version")
def _version_too_large(event: Event, _rng: random.Random) -> str:
    return _with_data(event, version=MAX_INTEGER + 1)


@kind(POISON, Reason.CONTRACT, "`currency`")
def _bad_currency(event: Event, _rng: random.Random) -> str:
    return _with_data(event, currency=event["data"]["currency"].lower())


@kind(POISON, Reason.CONTRACT, "$.data.placed_at")
def _impossible_date(event: Event, _rng: random.Random) -> str:
    return _with_data(event, placed_at="2026-02-30T12:00:00Z")


@kind(POISON, Reason.CONTRACT, "equal the sum")
def _wrong_total(event: Event, rng: random.Random) -> str:
    return _with_data(event, total=event["data"]["total"] + 1 + int(rng.random() * 100))


@kind(POISON, Reason.CONTRACT, "$.data.items")
def _no_items(event: Event, _rng: random.Random) -> str:
    return _with_data(event, items=[], total=0)


@kind(POISON, Reason.CONTRACT, "$.data.items")
def _too_many_items(event: Event, _rng: random.Random) -> str:
    return _with_data(event, items=[event["data"]["items"][0]] * (MAX_ITEMS + 1))


@kind(POISON, Reason.CONTRACT, "$.data.items[0].quantity")
def _negative_quantity(event: Event, _rng: random.Random) -> str:
    return _with_item(event, quantity=-event["data"]["items"][0]["quantity"])


@kind(POISON, Reason.CONTRACT, "$.data.items[0].quantity")
def _huge_number(event: Event, _rng: random.Random) -> str:
    return _with_item(event, quantity="?").replace('"?"', "9" * 400, 1)


@kind(POISON, Reason.CONTRACT, "$.data.items[0].sku")
def _long_sku(event: Event, _rng: random.Random) -> str:
    return _with_item(event, sku="S" * 65)
