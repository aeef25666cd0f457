"""What travels on the payments queue: what happens to one account, numbered by the producer.

The queue is FIFO and the message group is the account, so its events arrive in order; `sequence` proves it. Money is in
minor units, and an account has one currency for ever.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from workers.runtime.envelope import CloudEvent

#: The largest integer that every JSON parser keeps exactly.
MAX_SEQUENCE = 2**53 - 1
#: Minor units. A balance, PostgreSQL's bigint, takes nine million of the largest amounts.
MAX_AMOUNT = 10**12
#: In the ledger, the account at the other end of a deposit. No account may be named so.
OUTSIDE = "outside"

_NOT_RESERVED = {"not": {"const": OUTSIDE}}
Identifier = Annotated[str, Meta(min_length=1, max_length=64)]
Account = Annotated[str, Meta(min_length=1, max_length=64, extra_json_schema=_NOT_RESERVED)]
Currency = Annotated[str, Meta(min_length=3, max_length=3, extra_json_schema={"pattern": "^[A-Z]{3}$"})]
Amount = Annotated[int, Meta(ge=1, le=MAX_AMOUNT, description="Minor units.")]


class _OfAccount(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    account: Annotated[Account, Meta(description="The account; equals the event's `subject`.", examples=["acc-1001"])]
    sequence: Annotated[
        int, Meta(ge=1, le=MAX_SEQUENCE, description="1, 2, 3 ... over all events of the account, without a hole.")
    ]
    currency: Annotated[Currency, Meta(description="ISO 4217 code; the account's own.", examples=["EUR"])]

    def __post_init__(self) -> None:
        _require_account(self.account, "account")
        if not (self.currency.isascii() and self.currency.isalpha() and self.currency.isupper()):
            raise ValueError("Expected `currency` to be three capital letters A-Z")


class Opening(_OfAccount, kw_only=True, frozen=True, gc=False):
    """A new account, at balance 0."""

    limit: Annotated[
        int, Meta(ge=0, le=MAX_AMOUNT, description="How far below zero the balance may go, in minor units.")
    ]


class Deposit(_OfAccount, kw_only=True, frozen=True, gc=False):
    """Money that comes from outside the ledger."""

    amount: Amount


class Capture(_OfAccount, kw_only=True, frozen=True, gc=False):
    """Money that the account pays to a merchant's account."""

    payment_id: Annotated[
        Identifier, Meta(description="Names the payment; new for the account.", examples=["pay-5001"])
    ]
    merchant: Annotated[
        Account, Meta(description="The account that is paid. Must differ from `account`.", examples=["mer-12"])
    ]
    amount: Amount

    def __post_init__(self) -> None:
        _OfAccount.__post_init__(self)
        _require_other(self.merchant, self.account, "merchant")


class Refund(_OfAccount, kw_only=True, frozen=True, gc=False):
    """Money of a capture that the merchant gives back."""

    payment_id: Annotated[Identifier, Meta(description="The payment that was captured.", examples=["pay-5001"])]
    merchant: Annotated[
        Account, Meta(description="The merchant of the capture. Must differ from `account`.", examples=["mer-12"])
    ]
    amount: Annotated[Amount, Meta(description="Minor units. All refunds of a capture: at most its amount.")]

    def __post_init__(self) -> None:
        _OfAccount.__post_init__(self)
        _require_other(self.merchant, self.account, "merchant")


class Transfer(_OfAccount, kw_only=True, frozen=True, gc=False):
    """Money that the account gives to another account."""

    to: Annotated[
        Account, Meta(description="The account that receives it. Must differ from `account`.", examples=["acc-1002"])
    ]
    amount: Amount

    def __post_init__(self) -> None:
        _OfAccount.__post_init__(self)
        _require_other(self.to, self.account, "to")


def _require_account(name: str, field: str) -> None:
    if name == OUTSIDE:
        raise ValueError(f"Expected `{field}` not to be the reserved name `{OUTSIDE}`")


def _require_other(name: str, account: str, field: str) -> None:
    _require_account(name, field)
    if name == account:
        raise ValueError(f"Expected `{field}` to differ from `account`")


class _AboutAccount(CloudEvent, kw_only=True, frozen=True, gc=False):
    data: _OfAccount

    def __post_init__(self) -> None:
        CloudEvent.__post_init__(self)
        if self.subject != self.data.account:
            raise ValueError("Expected `subject` to equal `data.account`")


class AccountOpened(_AboutAccount, kw_only=True, frozen=True, gc=False, tag="account.opened"):
    """An account was opened."""

    data: Opening


class PaymentDeposited(_AboutAccount, kw_only=True, frozen=True, gc=False, tag="payment.deposited"):
    """Money came in from outside."""

    data: Deposit


class PaymentCaptured(_AboutAccount, kw_only=True, frozen=True, gc=False, tag="payment.captured"):
    """The account paid a merchant."""

    data: Capture


class PaymentRefunded(_AboutAccount, kw_only=True, frozen=True, gc=False, tag="payment.refunded"):
    """A merchant gave back money of a capture. An event of the account that paid, so it comes after its capture."""

    data: Refund


class PaymentTransferred(_AboutAccount, kw_only=True, frozen=True, gc=False, tag="payment.transferred"):
    """The account gave money to another account."""

    data: Transfer


PaymentEvent = AccountOpened | PaymentDeposited | PaymentCaptured | PaymentRefunded | PaymentTransferred
