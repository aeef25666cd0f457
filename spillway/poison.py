"""Ways to break an order event, by name: what the demo, the tests and the benchmarks feed a worker."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from workers.orders.contract import MAX_INTEGER, MAX_ITEMS
from workers.runtime.failures import Reason

#: Beyond every interpreter's recursion limit: msgspec gave up below 1,000 on Python 3.11 and 3.12, 11,000 on 3.13.
_DEPTH = 100_000

Event = dict[str, Any]
Breaks = Callable[[Event, random.Random], str]


class Poison(msgspec.Struct, frozen=True):
    """One way to break an event. A worker finds `reason`, and a detail that holds `detail`."""

    breaks: Breaks
    reason: Reason
    detail: str


#: Kind -> how it is made and what the worker says. Every body is one that SQS accepts: none is empty, and the
#: characters SQS refuses are there as JSON escapes only.
POISON: dict[str, Poison] = {}


def _kind(reason: Reason, detail: str) -> Callable[[Breaks], Breaks]:
    def register(breaks: Breaks) -> Breaks:
        POISON[breaks.__name__.lstrip("_")] = Poison(breaks, reason, detail)
        return breaks

    return register


def _json(event: object) -> str:
    return msgspec.json.encode(event).decode()


@_kind(Reason.UNDECODABLE, "truncated")
def _truncated(event: Event, rng: random.Random) -> str:
    text = _json(event)
    return text[: 1 + int(rng.random() * (len(text) - 1))]


@_kind(Reason.UNDECODABLE, "malformed")
def _not_json(event: Event, _rng: random.Random) -> str:
    return f"order {event['subject']} was placed"


@_kind(Reason.UNDECODABLE, "truncated")
def _blank(_event: Event, _rng: random.Random) -> str:
    return " "  # SQS refuses a message without a body, so this is as empty as it gets


@_kind(Reason.UNDECODABLE, "malformed")
def _single_quotes(event: Event, _rng: random.Random) -> str:
    return str(event)


@_kind(Reason.UNDECODABLE, "malformed")
def _not_a_number(event: Event, _rng: random.Random) -> str:
    return _json(event).replace('"quantity":', '"quantity":NaN,"was":', 1)


@_kind(Reason.UNDECODABLE, "hex escape")
def _lone_surrogate(event: Event, _rng: random.Random) -> str:
    return _json(event | {"source": "?"}).replace('"?"', '"\\ud800"', 1)


@_kind(Reason.CONTRACT, "U+0000")
def _nul_character(event: Event, _rng: random.Random) -> str:
    return _json(event | {"source": "shop\0checkout"})


@_kind(Reason.CONTRACT, "got `array`")
def _array(event: Event, _rng: random.Random) -> str:
    return _json([event])


@_kind(Reason.UNDECODABLE, "nested too deeply")
def _deep_nesting(event: Event, _rng: random.Random) -> str:
    return _json(event)[:-1] + ',"extra":' + "[" * _DEPTH + "]" * _DEPTH + "}"


@_kind(Reason.CONTRACT, "$.type")
def _unknown_type(event: Event, _rng: random.Random) -> str:
    return _json(event | {"type": "order.teleported"})


@_kind(Reason.CONTRACT, "missing required field `id`")
def _missing_id(event: Event, _rng: random.Random) -> str:
    return _json({name: value for name, value in event.items() if name != "id"})


@_kind(Reason.CONTRACT, "Invalid UUID")
def _bad_uuid(event: Event, _rng: random.Random) -> str:
    return _json(event | {"id": event["id"][:-1] + "x"})


@_kind(Reason.CONTRACT, "$.specversion")
def _old_specversion(event: Event, _rng: random.Random) -> str:
    return _json(event | {"specversion": "0.3"})


@_kind(Reason.CONTRACT, "$.datacontenttype")
def _not_json_content(event: Event, _rng: random.Random) -> str:
    return _json(event | {"datacontenttype": "application/xml"})


@_kind(Reason.CONTRACT, "$.time")
def _time_without_offset(event: Event, _rng: random.Random) -> str:
    return _json(event | {"time": event["time"].removesuffix("Z")})


@_kind(Reason.CONTRACT, "offset below 16:00")
def _offset_too_large(event: Event, _rng: random.Random) -> str:
    return _json(event | {"time": event["time"].removesuffix("Z") + "+23:00"})


@_kind(Reason.CONTRACT, "equal `data.order_id`")
def _subject_mismatch(event: Event, _rng: random.Random) -> str:
    return _json(event | {"subject": event["subject"] + "0"})


def _with_data(event: Event, **changes: Any) -> str:
    return _json(event | {"data": event["data"] | changes})


def _with_item(event: Event, **changes: Any) -> str:
    first, *rest = event["data"]["items"]
    return _with_data(event, items=[first | changes, *rest])


@_kind(Reason.CONTRACT, "missing required field `customer`")
def _missing_field(event: Event, _rng: random.Random) -> str:
    return _json(event | {"data": {name: value for name, value in event["data"].items() if name != "customer"}})


@_kind(Reason.CONTRACT, "$.data.version")
def _wrong_type(event: Event, _rng: random.Random) -> str:
    return _with_data(event, version=str(event["data"]["version"]))


@_kind(Reason.CONTRACT, "$.data.version")
def _version_too_large(event: Event, _rng: random.Random) -> str:
    return _with_data(event, version=MAX_INTEGER + 1)


@_kind(Reason.CONTRACT, "`currency`")
def _bad_currency(event: Event, _rng: random.Random) -> str:
    return _with_data(event, currency=event["data"]["currency"].lower())


@_kind(Reason.CONTRACT, "$.data.placed_at")
def _impossible_date(event: Event, _rng: random.Random) -> str:
    return _with_data(event, placed_at="2026-02-30T12:00:00Z")


@_kind(Reason.CONTRACT, "equal the sum")
def _wrong_total(event: Event, rng: random.Random) -> str:
    return _with_data(event, total=event["data"]["total"] + 1 + int(rng.random() * 100))


@_kind(Reason.CONTRACT, "$.data.items")
def _no_items(event: Event, _rng: random.Random) -> str:
    return _with_data(event, items=[], total=0)


@_kind(Reason.CONTRACT, "$.data.items")
def _too_many_items(event: Event, _rng: random.Random) -> str:
    return _with_data(event, items=[event["data"]["items"][0]] * (MAX_ITEMS + 1))


@_kind(Reason.CONTRACT, "$.data.items[0].quantity")
def _negative_quantity(event: Event, _rng: random.Random) -> str:
    return _with_item(event, quantity=-event["data"]["items"][0]["quantity"])


@_kind(Reason.CONTRACT, "$.data.items[0].quantity")
def _huge_number(event: Event, _rng: random.Random) -> str:
    return _with_item(event, quantity="?").replace('"?"', "9" * 400, 1)


@_kind(Reason.CONTRACT, "$.data.items[0].sku")
def _long_sku(event: Event, _rng: random.Random) -> str:
    return _with_item(event, sku="S" * 65)
