"""Ways to break an audit event, on top of those that break any event."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from spillway.histories.poison import ENVELOPE, Event, Poison, json_of, kind
from workers.audit.contract import MAX_DETAILS_BYTES, MAX_DETAILS_DEPTH
from workers.runtime.failures import Reason

POISON: dict[str, Poison] = dict(ENVELOPE)
# A contract of one type is decoded without a search for the tag, and msgspec says this one in other words there.
POISON["lone_surrogate"] = msgspec.structs.replace(POISON["lone_surrogate"], detail="surrogate pair")


def _with_data(event: Event, **changes: Any) -> str:
    return json_of(event | {"data": event["data"] | changes})


@kind(POISON, Reason.CONTRACT, "equal `data.stream`")
def _subject_mismatch(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"subject": event["subject"] + "0"})


@kind(POISON, Reason.CONTRACT, "missing required field `actor`")
def _missing_field(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"data": {name: value for name, value in event["data"].items() if name != "actor"}})


@kind(POISON, Reason.CONTRACT, "$.data.action")
def _empty_action(event: Event, _rng: random.Random) -> str:
    return _with_data(event, action="")


@kind(POISON, Reason.CONTRACT, "$.data.stream")
def _long_stream(event: Event, _rng: random.Random) -> str:
    return _with_data(event, stream="s" * 129)


@kind(POISON, Reason.CONTRACT, "$.data.details")
def _details_not_an_object(event: Event, _rng: random.Random) -> str:
    return _with_data(event, details=["ip", "203.0.113.7"])


@kind(POISON, Reason.CONTRACT, f"at most {MAX_DETAILS_BYTES} bytes")
def _details_too_large(event: Event, _rng: random.Random) -> str:
    return _with_data(event, details={"dump": "x" * MAX_DETAILS_BYTES})


@kind(POISON, Reason.CONTRACT, f"at most {MAX_DETAILS_DEPTH} levels")
def _details_too_deep(event: Event, _rng: random.Random) -> str:
    return _with_data(event, details="?").replace('"?"', '{"a":' * 17 + "1" + "}" * 17, 1)


@kind(POISON, Reason.CONTRACT, "Number out of range")
def _huge_number(event: Event, _rng: random.Random) -> str:
    return _with_data(event, details="?").replace('"?"', '{"n":1e999}', 1)


@kind(POISON, Reason.CONTRACT, "U+0000")
def _nul_in_details(event: Event, _rng: random.Random) -> str:
    return _with_data(event, details={"note": "a\0b"})
