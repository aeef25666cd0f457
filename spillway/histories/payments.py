"""A seeded history of payments as a FIFO queue would deliver it, and the check that a ledger tells the same story.

The accounts are message groups, so what becomes of an event may depend on how far the other groups have come: a capture
may find its merchant's account open or not yet. The worker numbers the events in the order in which it judged them;
the check judges them again in that order, by rules of its own, and must arrive at the same outcomes, entries and
balances.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate, chain
from typing import Any
from uuid import UUID

from psycopg import Connection

from spillway.histories.base import DUPLICATE, VALID, History, Message, event_id, pick, shares, stamp
from spillway.histories.payments_bank import UNOPENED, AccountState, Bank, available
from spillway.histories.payments_poison import POISON
from spillway.histories.payments_tables import Found
from spillway.histories.poison import Event, json_of
from workers.payments.contract import OUTSIDE, PaymentEvent
from workers.runtime.envelope import EventDecoder

#: A duplicate comes at most this many messages after the first one.
_DUPLICATE_GAP = 500
#: Zipf's exponent and shift for how busy an account is: a few hot ones, a long tail.
_POPULARITY, _FLATTEN = 1.1, 5
#: Accounts per merchant: many accounts pay few merchants, so batches of different groups meet there.
_PER_MERCHANT = 12
#: Events in which a merchant pays out, so that some refunds find too little left.
_PAYOUTS = 0.04
_CURRENCIES = ("EUR", "EUR", "EUR", "USD")
_LIMITS = (0, 0, 0, 5_000, 100_000)
_START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_STEP = timedelta(milliseconds=250)


class PaymentsHistory(History):
    """A history of payments. All its accounts' names begin with `prefix`, those of its poison, too."""

    worker = "payments"
    claims = "payment_events"
    poison = POISON

    def __init__(self, messages: list[Message], prefix: str) -> None:
        super().__init__(messages)
        self.prefix = prefix

    @cached_property
    def events(self) -> dict[UUID, PaymentEvent]:
        """The valid events by id, in sending order."""
        decode = EventDecoder[PaymentEvent](PaymentEvent).decode
        events = (decode(message.body) for message in self.messages if message.kind == VALID)
        return {event.id: event for event in events}

    def violations(self, connection: Connection[Any]) -> list[str]:
        """What is wrong with the accounts of this history."""
        found = Found.read(connection, self.prefix, list(self.events))
        return [
            *self._wrongly_recorded(found),
            *self._wrong_numbers(found),
            *self._wrong_books(found),
            *self._wrongly_judged(found),
        ]

    def _wrongly_recorded(self, found: Found) -> Iterator[str]:
        """Every valid event is recorded, under its own account and number, and nothing else is."""
        recorded = {judged.event_id: judged for judged in found.judged}
        for key in self.events.keys() - recorded.keys():
            yield f"event {key} is not recorded"
        for key in recorded.keys() - self.events.keys():
            yield f"event {key} is recorded and was never sent, or is poison"
        for key in self.events.keys() & recorded.keys():
            data, judged = self.events[key].data, recorded[key]
            if (judged.account, judged.sequence) != (data.account, data.sequence):
                yield f"event {key} is recorded as number {judged.sequence} of {judged.account}"

    def _wrong_numbers(self, found: Found) -> Iterator[str]:
        """The numbers of an account were used once each, in order, from 1 to the last one sent."""
        used: defaultdict[str, list[int]] = defaultdict(list)
        for judged in found.judged:
            if judged.reason != "sequence_replayed":
                used[judged.account].append(judged.sequence)
        sent: defaultdict[str, int] = defaultdict(int)
        for event in self.events.values():
            sent[event.data.account] = max(sent[event.data.account], event.data.sequence)
        for account in sent.keys() | used.keys() | found.accounts.keys():
            if used[account] != list(range(1, sent[account] + 1)):
                yield f"account {account} used the numbers {used[account]}, expected 1 to {sent[account]}"
            # An account that sent no event must have no row: 1 is no row's next number.
            row = found.accounts.get(account)
            if row is None or row.next_sequence != sent[account] + 1:
                yield f"account {account} is {row}, expected its next number to be {sent[account] + 1}"

    def _wrong_books(self, found: Found) -> Iterator[str]:
        """The ledger in itself: postings sum to zero, balances follow from entries and stay within their limits."""
        known = {judged.ordinal for judged in found.judged}
        balances: Counter[str] = Counter()
        for ordinal, entries in sorted(found.ledger.items()):
            if ordinal not in known:
                yield f"posting {ordinal} belongs to no recorded event"
            if len(entries) != 2 or sum(entry.amount for entry in entries) != 0:
                yield f"posting {ordinal} does not balance: {entries}"
            for account, _, amount, balance in entries:
                if account == OUTSIDE:
                    continue
                balances[account] += amount
                if balances[account] != balance:
                    yield f"posting {ordinal} leaves {account} at {balance}, its entries sum to {balances[account]}"
                if account not in found.accounts or balances[account] < -found.accounts[account].overdraft_limit:
                    yield f"posting {ordinal} takes {account} to {balances[account]}, beyond its limit"
        for account, row in found.accounts.items():
            if row.balance != balances[account]:
                yield f"account {account} has balance {row.balance}, its entries sum to {balances[account]}"

    def _wrongly_judged(self, found: Found) -> Iterator[str]:
        """Judged again in the order the database gives, each event meets the same end."""
        bank = Bank()
        for judged in found.judged:
            event = self.events.get(judged.event_id)
            if event is None:
                continue
            try:
                rule, entries = bank.process(event)
            except ValueError as gap:
                yield f"event {event.id} was judged out of turn: {gap}"
                return
            if (judged.outcome, judged.reason) != ("rejected" if rule else "applied", rule):
                yield f"event {event.id} is {judged.outcome} {judged.reason}, expected {rule or 'applied'}"
            if found.ledger.get(judged.ordinal, []) != entries:
                yield f"event {event.id} made the entries {found.ledger.get(judged.ordinal)}, expected {entries}"
        accounts = {account: state for account, state in bank.accounts.items() if state != UNOPENED}
        for account in accounts.keys() | found.accounts.keys():
            if found.accounts.get(account) != accounts.get(account):
                yield f"account {account} is {found.accounts.get(account)}, expected {accounts.get(account)}"
        for key in bank.captures.keys() | found.captures.keys():
            if found.captures.get(key) != bank.captures.get(key):
                yield f"capture {key} is {found.captures.get(key)}, expected {bank.captures.get(key)}"


def generate(
    events: int = 20_000,
    seed: int = 1,
    duplicates: float = 0.05,
    poison: float = 0.01,
    *,
    accounts: int | None = None,
    prefix: str | None = None,
) -> PaymentsHistory:
    """Exactly `events` messages, the same for the same arguments; each one's group is an account.

    `duplicates` and `poison` are shares of all messages: repeats of an earlier event, and broken ones, all kinds
    equally often. `accounts` is how many accounts there are beside the merchants', by default a twentieth of the
    messages. `prefix`, by default made of the seed, begins all names: histories that share a database need one each.
    Raises ValueError for shares that do not fit.
    """
    valid, repeated, broken = shares(events, duplicates, poison)
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    prefix = f"{seed}-" if prefix is None else prefix
    customers = _Customers(rng, accounts or max(2, events // 20), prefix)
    placed = [
        (float(place), Message(json_of(event), VALID, event["subject"]))
        for place, event in enumerate(customers.events(valid))
    ]
    groups = [message.group for _, message in placed] or [f"{prefix}nobody"]
    for first, message in pick(rng, placed, repeated):
        # Some time after the first one, and so after later events of its group.
        placed.append((first + rng.random() * _DUPLICATE_GAP, message._replace(kind=DUPLICATE)))
    kinds = sorted(POISON, key=lambda _: rng.random())
    for number in range(broken):
        name = kinds[number % len(kinds)]
        body = POISON[name].breaks(customers.stranger(number), rng)
        # Among the events of an account that has nothing to do with it: they must not suffer.
        placed.append((rng.random() * valid, Message(body, name, groups[int(rng.random() * len(groups))])))
    placed.sort(key=lambda entry: entry[0])
    return PaymentsHistory([message for _, message in placed], prefix)


class _Customers:
    """Accounts as they are opened and used: mostly as they should be."""

    def __init__(self, rng: random.Random, accounts: int, prefix: str) -> None:
        self._rng = rng
        self._prefix = prefix
        self._bank = Bank()
        self._decode = EventDecoder[PaymentEvent](PaymentEvent).decode
        merchants = max(2, accounts // _PER_MERCHANT)
        self._merchants = [f"{prefix}mer-{number:04}" for number in range(merchants)]
        self._accounts = [f"{prefix}acc-{number:05}" for number in range(accounts)]
        self._currency = {name: self._choice(_CURRENCIES) for name in chain(self._merchants, self._accounts)}
        self._peers = {name: self._of_currency(self._accounts, name) for name in _CURRENCIES}
        self._weights = list(accumulate(1 / (rank + _FLATTEN) ** _POPULARITY for rank in range(accounts)))
        self._payments: defaultdict[str, list[str]] = defaultdict(list)
        self._count = 0
        # What may happen to an open account, and how often.
        moves: dict[Callable[[str], Event], int] = {
            self._deposit: 24,
            self._capture: 34,
            self._refund: 16,
            self._transfer: 16,
            self._open: 2,  # once more
            self._replay: 3,
            self._wrong_currency: 2,
            self._payment_again: 3,
        }
        self._moves, self._often = list(moves), list(moves.values())

    def events(self, count: int) -> Iterator[Event]:
        """The next `count` events, in the order in which they happened."""
        opened = [self._happen(self._open(merchant)) for merchant in self._merchants[:count]]
        yield from opened
        slots = self._rng.choices(range(len(self._accounts)), cum_weights=self._weights, k=count - len(opened))
        for slot in slots:
            if self._rng.random() < _PAYOUTS:
                yield self._happen(self._transfer(self._choice(self._merchants)))
            else:
                yield self._happen(self._next(self._accounts[slot]))

    def stranger(self, number: int) -> Event:
        """An event of an account that nothing else is about, to be broken."""
        name = f"{self._prefix}nobody-{number:05}"
        return self._event("payment.transferred", name, sequence=1, currency="EUR", to=f"{name}-2", amount=1_000)

    def _next(self, account: str) -> Event:
        if self._state(account).currency is None:
            # Now and then an account is used before it is opened.
            return self._deposit(account) if self._rng.random() < 0.1 else self._open(account)
        (move,) = self._rng.choices(self._moves, self._often)
        return move(account)

    def _happen(self, event: Event) -> Event:
        rule, _ = self._bank.process(self._decode(json_of(event)))
        if event["type"] == "payment.captured" and rule is None:
            self._payments[event["subject"]].append(event["data"]["payment_id"])
        return event

    def _open(self, account: str) -> Event:
        return self._event("account.opened", account, limit=self._choice(_LIMITS))

    def _deposit(self, account: str) -> Event:
        return self._event("payment.deposited", account, amount=1 + int(self._rng.paretovariate(0.9) * 500) % 500_000)

    def _capture(self, account: str) -> Event:
        # Not unique: other accounts have payments of the same name.
        payment_id = f"pay-{self._state(account).next_sequence}"
        merchant = self._choice(self._of_currency(self._merchants, self._currency[account]))
        return self._event(
            "payment.captured", account, payment_id=payment_id, merchant=merchant, amount=self._part(account)
        )

    def _payment_again(self, account: str) -> Event:
        """A capture under the name of an earlier one."""
        event = self._capture(account)
        if payments := self._payments[account]:
            event["data"]["payment_id"] = self._choice(payments)
        return event

    def _refund(self, account: str) -> Event:
        payments = self._payments[account]
        if not payments or self._rng.random() < 0.05:
            merchant = self._choice(self._merchants)
            return self._event(
                "payment.refunded", account, payment_id="pay-unknown", merchant=merchant, amount=1 + self._below(900)
            )
        payment_id = self._choice(payments[-5:])
        capture = self._bank.captures[account, payment_id]
        left = capture.amount - capture.refunded
        chance = self._rng.random()
        # All that is left, a little more than that, or a part of it.
        amount = left if chance < 0.3 else left + 1 + self._below(50) if chance < 0.5 else 1 + self._below(left)
        merchant = self._choice(self._merchants) if self._rng.random() < 0.1 else capture.merchant
        return self._event("payment.refunded", account, payment_id=payment_id, merchant=merchant, amount=max(1, amount))

    def _transfer(self, account: str) -> Event:
        # Any other account, open or not; mostly one of the same currency.
        names = self._accounts if self._rng.random() < 0.2 else self._peers[self._currency[account]]
        to = self._choice(names)
        if to == account or self._rng.random() < 0.05:
            to = f"{self._prefix}acc-never-opened"
        return self._event("payment.transferred", account, to=to, amount=self._part(account))

    def _replay(self, account: str) -> Event:
        """Another event under a number that was used."""
        event = self._deposit(account)
        event["data"]["sequence"] = 1 + self._below(event["data"]["sequence"] - 1)
        return event

    def _wrong_currency(self, account: str) -> Event:
        event = self._deposit(account)
        event["data"]["currency"] = "SEK"
        return event

    def _part(self, account: str) -> int:
        """An amount to pay: mostly one that is there, at times exactly all of it, at times a little more."""
        there = available(self._state(account))
        chance = self._rng.random()
        if chance < 0.1:
            return max(1, there)
        if chance < 0.2 or there < 2:
            return there + 1 + self._below(100)
        return 1 + self._below(min(there, 20_000))

    def _of_currency(self, names: list[str], currency: str) -> list[str]:
        return [name for name in names if self._currency[name] == currency] or names

    def _state(self, account: str) -> AccountState:
        return self._bank.accounts[account]

    def _below(self, limit: int) -> int:
        return int(self._rng.random() * limit)

    def _choice(self, values: Any) -> Any:
        return values[int(self._rng.random() * len(values))]

    def _event(self, event_type: str, account: str, **data: Any) -> Event:
        moment = _START + self._count * _STEP
        self._count += 1
        numbered = {
            "account": account,
            "sequence": self._state(account).next_sequence,
            "currency": self._currency.get(account, "EUR"),
        }
        return {
            "specversion": "1.0",
            "id": event_id(self._rng, moment),
            "source": "/shop/payments",
            "type": event_type,
            "subject": account,
            "time": stamp(moment),
            "data": numbered | data,
        }
