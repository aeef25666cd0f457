"""The payments worker's samples: its queue is FIFO, and an account's events carry the numbers 1, 2, 3 ..."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spillway.samples.broken import BrokenBody, changed, contract, without
from spillway.samples.events import Event, body_of, event
from spillway.samples.records import Sample, fifo_attributes, fifo_events_of, record

QUEUE = "spillway-payments.fifo"
TIME = "2026-01-15T10:30:00+01:00"
MERCHANT = "mer-12"


def opened(account: str, sequence: int = 1, *, limit: int = 0) -> Event:
    """A valid `account.opened`, in EUR."""
    return _event("account.opened", account, sequence, limit=limit)


def deposited(account: str, sequence: int, amount: int) -> Event:
    """A valid `payment.deposited`."""
    return _event("payment.deposited", account, sequence, amount=amount)


def captured(account: str, sequence: int, amount: int, payment_id: str = "pay-5001") -> Event:
    """A valid `payment.captured`; MERCHANT is paid."""
    return _event("payment.captured", account, sequence, payment_id=payment_id, merchant=MERCHANT, amount=amount)


def refunded(account: str, sequence: int, amount: int, payment_id: str = "pay-5001") -> Event:
    """A valid `payment.refunded`; MERCHANT pays."""
    return _event("payment.refunded", account, sequence, payment_id=payment_id, merchant=MERCHANT, amount=amount)


def transferred(account: str, sequence: int, amount: int, to: str) -> Event:
    """A valid `payment.transferred`."""
    return _event("payment.transferred", account, sequence, to=to, amount=amount)


def examples() -> dict[str, Event]:
    """One valid event for each event type."""
    events = [
        opened("acc-1001", limit=5_000),
        deposited("acc-1001", 2, 10_000),
        captured("acc-1001", 3, 3_000),
        refunded("acc-1001", 4, 1_250),
        transferred("acc-1001", 5, 2_000, "acc-1002"),
    ]
    return {event["type"]: event for event in events}


def samples() -> list[Sample]:
    """The samples of which every body decodes, and the batch that mixes them with poison."""
    return [
        Sample("payments.single", "A new account.", "Applied.", _events(opened("acc-1001"))),
        Sample(
            "payments.batch",
            "Ten records of three accounts: opening, deposit, capture, refund, transfer, and a deposit sent twice.",
            "Seven applied, one `duplicate`, two `rejected` (`refund_exceeds_capture`, `insufficient_funds`); nothing"
            " returned. Balances: acc-1001 6250, acc-1002 2000, mer-12 1750.",
            _events(*_batch()),
        ),
        Sample(
            "payments.batch_with_poison",
            "Five records; the second is not JSON, the fourth breaks the contract; each has an account of its own.",
            "Three applied; two dead-lettered, as `undecodable` and `contract`. Without a dead-letter queue to send to,"
            " those two are returned as failed.",
            _batch_with_poison(),
        ),
        Sample(
            "payments.redelivered",
            "A batch received for the second time.",
            "Both applied, and counted as redelivered.",
            fifo_events_of(QUEUE, [opened("acc-1001"), deposited("acc-1001", 2, 10_000)], received=2),
        ),
        Sample(
            "payments.gap",
            "Number 3 of acc-1001 comes without number 2. Another account goes on.",
            "Two applied; number 3 is dead-lettered as `gap`. Without a dead-letter queue to send to, it is returned as"
            " failed.",
            _events(opened("acc-1001"), deposited("acc-1001", 3, 500), opened("acc-1002")),
        ),
        Sample(
            "payments.replayed",
            "Two events of one account have the same number: a producer's mistake.",
            "The first is applied, the second `rejected` as `sequence_replayed`.",
            _events(opened("acc-1001"), deposited("acc-1001", 1, 500)),
        ),
    ]


def broken() -> list[BrokenBody]:
    """What breaks this worker's contract; what breaks the envelope is among the samples of orders."""
    return list(_broken())


def _broken() -> Iterator[BrokenBody]:
    capture, refund, opening = captured("acc-1001", 3, 3_000), refunded("acc-1001", 4, 1_250), opened("acc-1001")
    transfer = transferred("acc-1001", 5, 2_000, "acc-1002")
    yield contract(
        "payment_captured.subject_mismatch",
        "`subject` names another account than `data`.",
        changed(capture, "subject", "acc-1002"),
        "Expected `subject` to equal `data.account`",
        schema_refuses=False,
    )
    yield contract(
        "payment_captured.missing_sequence",
        "No number.",
        without(capture, "data.sequence"),
        "Object missing required field `sequence` - at `$.data`",
    )
    yield contract(
        "payment_captured.sequence_zero",
        "Numbers start at 1.",
        changed(capture, "data.sequence", 0),
        "Expected `int` >= 1 - at `$.data.sequence`",
    )
    yield contract(
        "payment_captured.sequence_too_large",
        "A number that not every JSON parser keeps exactly.",
        changed(capture, "data.sequence", 2**53),
        "Expected `int` <= 9007199254740991 - at `$.data.sequence`",
    )
    yield contract(
        "payment_captured.amount_zero",
        "Nothing is moved.",
        changed(capture, "data.amount", 0),
        "Expected `int` >= 1 - at `$.data.amount`",
    )
    yield contract(
        "payment_captured.amount_too_large",
        "More than 10^12 minor units.",
        changed(capture, "data.amount", 10**12 + 1),
        "Expected `int` <= 1000000000000 - at `$.data.amount`",
    )
    yield contract(
        "payment_captured.amount_in_major_units",
        "An amount with a fraction.",
        changed(capture, "data.amount", 30.5),
        "Expected `int`, got `float` - at `$.data.amount`",
    )
    yield contract(
        "payment_captured.bad_currency",
        "A currency in small letters.",
        changed(capture, "data.currency", "eur"),
        "Expected `currency` to be three capital letters A-Z - at `$.data`",
    )
    yield contract(
        "payment_captured.missing_merchant",
        "No merchant.",
        without(capture, "data.merchant"),
        "Object missing required field `merchant` - at `$.data`",
    )
    yield contract(
        "payment_captured.pays_itself",
        "The merchant is the account that pays.",
        changed(capture, "data.merchant", "acc-1001"),
        "Expected `merchant` to differ from `account` - at `$.data`",
        schema_refuses=False,
    )
    yield contract(
        "payment_refunded.missing_payment_id",
        "A refund of no payment in particular.",
        without(refund, "data.payment_id"),
        "Object missing required field `payment_id` - at `$.data`",
    )
    yield contract(
        "payment_refunded.empty_payment_id",
        "A refund of a payment without a name.",
        changed(refund, "data.payment_id", ""),
        "Expected `str` of length >= 1 - at `$.data.payment_id`",
    )
    yield contract(
        "payment_transferred.to_itself",
        "The account is at both ends.",
        changed(transfer, "data.to", "acc-1001"),
        "Expected `to` to differ from `account` - at `$.data`",
        schema_refuses=False,
    )
    yield contract(
        "payment_transferred.to_the_reserved_account",
        "`outside` stands for the rest of the world.",
        changed(transfer, "data.to", "outside"),
        "Expected `to` not to be the reserved name `outside` - at `$.data`",
    )
    yield contract(
        "account_opened.negative_limit",
        "A balance that would have to stay above zero.",
        changed(opening, "data.limit", -1),
        "Expected `int` >= 0 - at `$.data.limit`",
    )
    yield contract(
        "account_opened.reserved_name",
        "`outside` stands for the rest of the world.",
        opened("outside"),
        "Expected `account` not to be the reserved name `outside` - at `$.data`",
    )


def _batch() -> list[Event]:
    deposit = deposited("acc-1001", 2, 10_000)
    return [
        opened(MERCHANT),
        opened("acc-1001"),
        deposit,
        captured("acc-1001", 3, 3_000),
        opened("acc-1002"),
        refunded("acc-1001", 4, 1_250),
        transferred("acc-1001", 5, 2_000, "acc-1002"),
        refunded("acc-1001", 6, 1_751),
        captured("acc-1001", 7, 6_251, "pay-5002"),
        deposit,
    ]


def _batch_with_poison() -> dict[str, Any]:
    text = body_of(opened("acc-1002"))
    kinds = {kind.name: kind.body for kind in _broken()}
    bodies = [
        ("acc-1001", body_of(opened("acc-1001"))),
        ("acc-1002", text[:-20]),
        (MERCHANT, body_of(opened(MERCHANT))),
        ("acc-1003", kinds["payment_captured.amount_zero"]),
        ("acc-1001", body_of(deposited("acc-1001", 2, 10_000))),
    ]
    return {
        "Records": [
            record(body, index, queue=QUEUE, attributes=fifo_attributes(group, f"sent-{index}", index))
            for index, (group, body) in enumerate(bodies)
        ]
    }


def _events(*events: Event) -> dict[str, Any]:
    return fifo_events_of(QUEUE, list(events))


def _event(event_type: str, account: str, sequence: int, **data: Any) -> Event:
    return event(
        event_type,
        key=f"{event_type}/{account}/{sequence}",
        source="/shop/payments",
        subject=account,
        time=TIME,
        data={"account": account, "sequence": sequence, "currency": "EUR", **data},
    )
