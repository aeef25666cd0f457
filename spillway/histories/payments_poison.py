"""Ways to break a payment event, on top of those that break any event."""

from __future__ import annotations

import random
from typing import Any

from spillway.histories.poison import ENVELOPE, Event, Poison, json_of, kind
from workers.payments.contract import OUTSIDE
from workers.runtime.failures import Reason

POISON: dict[str, Poison] = dict(ENVELOPE)


@kind(POISON, Reason.UNDECODABLE, "malformed")
def _not_a_number(event: Event, _rng: random.Random) -> str:
    return json_of(event).replace('"sequence":', '"sequence":NaN,"was":', 1)


@kind(POISON, Reason.CONTRACT, "equal `data.account`")
def _subject_mismatch(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"subject": event["subject"] + "0"})


def _with_data(event: Event, **changes: Any) -> str:
    return json_of(event | {"data": event["data"] | changes})


@kind(POISON, Reason.CONTRACT, "missing required field `sequence`")
def _missing_sequence(event: Event, _rng: random.Random) -> str:
    return json_of(event | {"data": {name: value for name, value in event["data"].items() if name != "sequence"}})


@kind(POISON, Reason.CONTRACT, "$.data.sequence")
def _sequence_zero(event: Event, _rng: random.Random) -> str:
    return _with_data(event, sequence=0)


@kind(POISON, Reason.CONTRACT, "`currency`")
def _bad_currency(event: Event, _rng: random.Random) -> str:
    return _with_data(event, currency=event["data"]["currency"].lower())


@kind(POISON, Reason.CONTRACT, "$.data.amount")
def _negative_amount(event: Event, _rng: random.Random) -> str:
    return _with_data(event, amount=-event["data"]["amount"])


@kind(POISON, Reason.CONTRACT, "$.data.amount")
def _amount_in_major_units(event: Event, _rng: random.Random) -> str:
    return _with_data(event, amount=event["data"]["amount"] / 100 + 0.001)


@kind(POISON, Reason.CONTRACT, "differ from `account`")
def _to_itself(event: Event, _rng: random.Random) -> str:
    return _with_data(event, to=event["data"]["account"])


@kind(POISON, Reason.CONTRACT, "reserved name")
def _to_the_reserved_account(event: Event, _rng: random.Random) -> str:
    return _with_data(event, to=OUTSIDE)


@kind(POISON, Reason.GAP, "expected sequence 1")
def _ahead_of_its_turn(event: Event, rng: random.Random) -> str:
    """Breaks no contract: only the database knows that the account has not come that far."""
    return _with_data(event, sequence=2 + int(rng.random() * 1_000))
