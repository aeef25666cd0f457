"""The payments worker: what Lambda calls, and what is written for one event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from aws_lambda_powertools.utilities.batch import process_partial_response

from workers.payments.contract import (
    AccountOpened,
    PaymentCaptured,
    PaymentDeposited,
    PaymentEvent,
    PaymentRefunded,
    PaymentTransferred,
)
from workers.runtime.worker import warm_processor

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
    from aws_lambda_powertools.utilities.typing import LambdaContext


class PaymentRow(msgspec.Struct, gc=False, omit_defaults=True):
    """What apply_payments reads of one event (apply.sql)."""

    id: UUID
    type: str
    account: str
    sequence: int
    currency: str
    limit: int | None = None
    amount: int | None = None
    counterparty: str | None = None
    payment_id: str | None = None


def to_row(
    event: AccountOpened | PaymentDeposited | PaymentCaptured | PaymentRefunded | PaymentTransferred,
) -> PaymentRow:
    """The record handler: flattens an event to its row."""
    data = event.data
    row = PaymentRow(event.id, "account.opened", data.account, data.sequence, data.currency)
    match event:
        case AccountOpened():
            row.limit = event.data.limit
        case PaymentDeposited():
            row.type, row.amount = "payment.deposited", event.data.amount
        case PaymentCaptured():
            row.type, row.amount = "payment.captured", event.data.amount
            row.counterparty, row.payment_id = event.data.merchant, event.data.payment_id
        case PaymentRefunded():
            row.type, row.amount = "payment.refunded", event.data.amount
            row.counterparty, row.payment_id = event.data.merchant, event.data.payment_id
        case PaymentTransferred():
            row.type, row.amount, row.counterparty = "payment.transferred", event.data.amount, event.data.to
    return row


def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    """Process one SQS event; the answer is a partial batch response."""
    processor = warm_processor("payments", PaymentEvent)
    return process_partial_response(event=event, record_handler=to_row, processor=processor, context=context)
