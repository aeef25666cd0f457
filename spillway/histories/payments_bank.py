"""The ledger's rules in Python, one event at a time: the reference that the payments worker is held against."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from workers.payments.contract import (
    OUTSIDE,
    AccountOpened,
    PaymentCaptured,
    PaymentDeposited,
    PaymentEvent,
    PaymentRefunded,
    PaymentTransferred,
)


class Entry(NamedTuple):
    """One line of the ledger; `balance` is the account's after it, None for the outside world."""

    account: str
    currency: str
    amount: int
    balance: int | None


class AccountState(NamedTuple):
    """One row of spillway.accounts; `currency` is None until the account is opened."""

    currency: str | None
    overdraft_limit: int
    balance: int
    next_sequence: int


class CaptureState(NamedTuple):
    """One row of spillway.captures."""

    merchant: str
    amount: int
    refunded: int


UNOPENED = AccountState(None, 0, 0, 1)


class Bank:
    """Accounts and captures after the events so far."""

    def __init__(self) -> None:
        self.accounts: defaultdict[str, AccountState] = defaultdict(lambda: UNOPENED)
        self.captures: dict[tuple[str, str], CaptureState] = {}

    def process(self, event: PaymentEvent) -> tuple[str | None, list[Entry]]:
        """What becomes of a new event: the rule that rejects it or None, and the entries it makes.

        Raises ValueError when its number is ahead: in a history, that cannot be.
        """
        account = event.data.account
        expected = self.accounts[account].next_sequence
        if event.data.sequence < expected:
            return "sequence_replayed", []
        if event.data.sequence > expected:
            raise ValueError(f"expected sequence {expected} of {account}, got {event.data.sequence}")
        rule = self._rule(event)
        self.accounts[account] = self.accounts[account]._replace(next_sequence=expected + 1)
        return rule, [] if rule else self._book(event)

    def _rule(self, event: PaymentEvent) -> str | None:
        own = self.accounts[event.data.account]
        if isinstance(event, AccountOpened):
            return "account_exists" if own.currency else None
        if own.currency is None:
            return "unknown_account"
        if event.data.currency != own.currency:
            return "currency_mismatch"
        return self._moving_rule(event, own)

    def _moving_rule(self, event: PaymentEvent, own: AccountState) -> str | None:
        match event:
            case PaymentRefunded():
                return self._refund_rule(event)
            case PaymentCaptured():
                if (event.data.account, event.data.payment_id) in self.captures:
                    return "payment_exists"
                return self._paying_rule(own, self.accounts[event.data.merchant], event.data.amount)
            case PaymentTransferred():
                return self._paying_rule(own, self.accounts[event.data.to], event.data.amount)
        return None

    @staticmethod
    def _paying_rule(payer: AccountState, payee: AccountState, amount: int) -> str | None:
        if payee.currency is None:
            return "unknown_account"
        if payee.currency != payer.currency:
            return "currency_mismatch"
        return None if amount <= available(payer) else "insufficient_funds"

    def _refund_rule(self, event: PaymentRefunded) -> str | None:
        capture = self.captures.get((event.data.account, event.data.payment_id))
        if capture is None:
            return "unknown_capture"
        if capture.merchant != event.data.merchant:
            return "merchant_mismatch"
        if event.data.amount > capture.amount - capture.refunded:
            return "refund_exceeds_capture"
        return None if event.data.amount <= available(self.accounts[capture.merchant]) else "insufficient_funds"

    def _book(self, event: PaymentEvent) -> list[Entry]:
        account = event.data.account
        match event:
            case AccountOpened():
                self.accounts[account] = self.accounts[account]._replace(
                    currency=event.data.currency, overdraft_limit=event.data.limit
                )
                return []
            case PaymentDeposited():
                return self._post(OUTSIDE, account, event.data.amount)
            case PaymentCaptured():
                key = account, event.data.payment_id
                self.captures[key] = CaptureState(event.data.merchant, event.data.amount, 0)
                return self._post(account, event.data.merchant, event.data.amount)
            case PaymentRefunded():
                key = account, event.data.payment_id
                before = self.captures[key]
                self.captures[key] = before._replace(refunded=before.refunded + event.data.amount)
                return self._post(event.data.merchant, account, event.data.amount)
            case PaymentTransferred():
                return self._post(account, event.data.to, event.data.amount)

    def _post(self, payer: str, payee: str, amount: int) -> list[Entry]:
        currency = self.accounts[payee].currency or ""
        return sorted([self._entry(payer, currency, -amount), self._entry(payee, currency, amount)])

    def _entry(self, account: str, currency: str, amount: int) -> Entry:
        if account == OUTSIDE:
            return Entry(account, currency, amount, None)
        state = self.accounts[account]
        self.accounts[account] = state._replace(balance=state.balance + amount)
        return Entry(account, currency, amount, state.balance + amount)


def available(account: AccountState) -> int:
    """How much the account can pay, in minor units."""
    return account.balance + account.overdraft_limit
