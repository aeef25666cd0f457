"""Generated histories of payments are what they promise to be, and their reference keeps the books by plain rules."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from spillway.histories.base import DUPLICATE, VALID
from spillway.histories.payments import PaymentsHistory, generate
from spillway.histories.payments_bank import Bank, Entry
from spillway.histories.payments_poison import POISON
from spillway.samples.events import Event, body_of
from spillway.samples.payments import MERCHANT, captured, deposited, opened, refunded, transferred
from workers.payments.contract import OUTSIDE, PaymentEvent
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Reason

decode = EventDecoder[PaymentEvent](PaymentEvent).decode
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def history() -> PaymentsHistory:
    return generate(10_000, seed=1)


def test_two_seeds_share_no_id_and_no_account() -> None:
    first, second = generate(1_000, 1), generate(1_000, 11)
    assert not first.events.keys() & second.events.keys()
    accounts = [{event.data.account for event in each.events.values()} for each in (first, second)]
    assert not accounts[0] & accounts[1]
    assert not any(account.startswith(first.prefix) for account in accounts[1])


def test_poison_stands_among_the_messages_of_an_account_and_is_about_none(history: PaymentsHistory) -> None:
    accounts = {event.data.account for event in history.events.values()}
    for message in history.messages:
        if message.kind not in POISON:
            assert message.group == decode(message.body).data.account
            continue
        assert message.group in accounts
        assert not any(f'"{account}"' in message.body for account in accounts), message.kind
        if POISON[message.kind].reason is Reason.GAP:
            assert decode(message.body).data.sequence > 1, "no number of its account was ever used"


def test_a_group_has_its_numbers_in_order_and_duplicates_come_after_later_ones(history: PaymentsHistory) -> None:
    last: defaultdict[str, int] = defaultdict(int)
    late = replayed = 0
    for message in history.messages:
        if message.kind == VALID:
            data = decode(message.body).data
            replayed += data.sequence <= last[data.account]
            assert data.sequence <= last[data.account] + 1, "no gap"
            last[data.account] = max(last[data.account], data.sequence)
        elif message.kind == DUPLICATE:
            late += decode(message.body).data.sequence < last[message.group]
    assert replayed > 100
    assert late > 100


def test_all_that_can_happen_happens(history: PaymentsHistory) -> None:
    bank = Bank()
    ends = Counter((type(event).__name__, bank.process(event)[0]) for event in history.events.values())
    assert {what for what, _ in ends if ends[what, None]} == {
        "AccountOpened",
        "PaymentDeposited",
        "PaymentCaptured",
        "PaymentRefunded",
        "PaymentTransferred",
    }
    assert {rule for _, rule in ends if rule} == {
        "account_exists",
        "currency_mismatch",
        "insufficient_funds",
        "merchant_mismatch",
        "payment_exists",
        "refund_exceeds_capture",
        "sequence_replayed",
        "unknown_account",
        "unknown_capture",
    }
    assert ends["PaymentRefunded", "insufficient_funds"] > 0, "a merchant had paid out"
    assert sum(count for (_, rule), count in ends.items() if rule is None) > len(history.events) / 2
    exact = [state for state in bank.accounts.values() if state.currency and state.balance == -state.overdraft_limit]
    assert exact, "some account ended exactly at its limit"


# The reference.


def process(bank: Bank, *events: Event) -> list[tuple[str | None, list[Entry]]]:
    return [bank.process(decode(body_of(event))) for event in events]


def test_the_reference_books_both_sides() -> None:
    bank = Bank()
    ends = process(
        bank,
        opened(MERCHANT),
        opened("a", limit=10),
        deposited("a", 2, 100),
        captured("a", 3, 110),
        refunded("a", 4, 30),
        transferred("a", 5, 5, MERCHANT),
    )
    assert [entries for _, entries in ends] == [
        [],
        [],
        [Entry("a", "EUR", 100, 100), Entry(OUTSIDE, "EUR", -100, None)],
        [Entry("a", "EUR", -110, -10), Entry(MERCHANT, "EUR", 110, 110)],
        [Entry("a", "EUR", 30, 20), Entry(MERCHANT, "EUR", -30, 80)],
        [Entry("a", "EUR", -5, 15), Entry(MERCHANT, "EUR", 5, 85)],
    ]
    assert bank.accounts["a"] == ("EUR", 10, 15, 6)
    assert bank.captures == {("a", "pay-5001"): (MERCHANT, 110, 30)}


def test_the_reference_rejects_by_the_rules() -> None:
    bank = Bank()
    events = [
        deposited("a", 1, 5),
        opened("a", 2),
        opened("a", 3),
        captured("a", 4, 1),
        opened(MERCHANT),
        captured("a", 5, 1),
        deposited("a", 6, 5),
        captured("a", 7, 5),
        captured("a", 8, 1),
        refunded("a", 9, 6),
        refunded("a", 10, 5, "pay-other"),
        deposited("a", 10, 5),
        transferred(MERCHANT, 2, 1, "a"),
        refunded("a", 11, 5),
    ]
    assert [rule for rule, _ in process(bank, *events)] == [
        "unknown_account",
        None,
        "account_exists",
        "unknown_account",
        None,
        "insufficient_funds",
        None,
        None,
        "payment_exists",
        "refund_exceeds_capture",
        "unknown_capture",
        "sequence_replayed",
        None,
        "insufficient_funds",
    ]
    with pytest.raises(ValueError, match="expected sequence 12 of a, got 13"):
        process(bank, deposited("a", 13, 5))
