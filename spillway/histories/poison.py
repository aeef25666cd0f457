"""Ways to break any event, by name: what the demo, the tests and the benchmarks feed a worker."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

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


#: Kind -> how it is made and what the worker says: what breaks the JSON or the envelope of any event. Every body is one
#: that SQS accepts: none is empty, and the characters SQS refuses are there as JSON escapes only.
ENVELOPE: dict[str, Poison] = {}


def kind(kinds: dict[str, Poison], reason: Reason, detail: str) -> Callable[[Breaks], Breaks]:
    """A decorator that puts a function into `kinds` under its own name, without leading underscores."""

    def register(breaks: Breaks) -> Breaks:
        kinds[breaks.__name__.lstrip("_")] = Poison(breaks, reason, detail)
        return breaks

    return register


def json_of(event: object) -> str:
    """The text of an event, broken or not."""
    return msgspec.json.encode(event).decode()


@kind(ENVELOPE, Reason.UNDECODABLE, "truncated")
def _truncated(event: Event, rng: random.Random) -> str:
    text = json_of(event)
    return text[: 1 + int(rng.random() * (len(text) - 1))]


@kind(ENVELOPE, Reason.UNDECODABLE, "malformed")
def _not_json(event: Event, _rng: random.Random) -> str:
    return f"something happened to {event['subject']}"


@kind(ENVELOPE, Reason.UNDECODABLE, "truncated")
def _blank(_event: Event, _rng: random.Random) -> str:
    return " "  # SQS refuses a message without a body, so this is as empty as it gets


@kind(ENVELOPE, Reason.UNDECODABLE, "malformed")
def _single_quotes(event: Event, _rng: random.Random) -> str:
    return str(event)


@kind(ENVELOPE, Reason.UNDECODABLE, "hex escape")
def _lone_surrogate(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"source": "?"}).replace('"?"', '"\\ud800"', 1)


@kind(ENVELOPE, Reason.CONTRACT, "U+0000")
def _nul_character(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"source": "shop\0checkout"})


@kind(ENVELOPE, Reason.CONTRACT, "got `array`")
def _array(event: Event, _rng: random.Random) -> str:
    return json_of([event])


@kind(ENVELOPE, Reason.UNDECODABLE, "nested too deeply")
def _deep_nesting(event: Event, _rng: random.Random) -> str:
    return json_of(event)[:-1] + ',"extra":' + "[" * _DEPTH + "]" * _DEPTH + "}"


@kind(ENVELOPE, Reason.CONTRACT, "$.type")
def _unknown_type(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"type": event["type"] + ".teleported"})


@kind(ENVELOPE, Reason.CONTRACT, "missing required field `id`")
def _missing_id(event: Event, _rng: random.Random) -> str:
    return json_of({name: value for name, value in event.items() if name != "id"})


@kind(ENVELOPE, Reason.CONTRACT, "Invalid UUID")
def _bad_uuid(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"id": event["id"][:-1] + "x"})


@kind(ENVELOPE, Reason.CONTRACT, "$.specversion")
def _old_specversion(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"specversion": "0.3"})


@kind(ENVELOPE, Reason.CONTRACT, "$.datacontenttype")
def _not_json_content(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"datacontenttype": "application/xml"})


@kind(ENVELOPE, Reason.CONTRACT, "$.time")
def _time_without_offset(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"time": event["time"].removesuffix("Z")})


@kind(ENVELOPE, Reason.CONTRACT, "offset below 16:00")
def _offset_too_large(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"time": event["time"].removesuffix("Z") + "+23:00"})
