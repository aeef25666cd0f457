"""The orders worker: what Lambda calls, and what is written for one event."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from aws_lambda_powertools.utilities.batch import process_partial_response

from workers.orders.contract import Item, OrderCancelled, OrderEvent, OrderPlaced, OrderUpdated
from workers.runtime.worker import warm_processor

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
    from aws_lambda_powertools.utilities.typing import LambdaContext


class OrderRow(msgspec.Struct, gc=False, omit_defaults=True):
    """What apply_orders reads of one event (apply.sql)."""

    id: UUID
    type: str
    order_id: str
    version: int
    customer: str
    currency: str
    total: int
    items: list[Item]
    placed_at: datetime
    updated_at: datetime | None = None
    cancelled_at: datetime | None = None
    reason: str = ""


def to_row(event: OrderPlaced | OrderUpdated | OrderCancelled) -> OrderRow:
    """The record handler: flattens an event to its row."""
    data = event.data
    row = OrderRow(
        event.id,
        "order.placed",
        data.order_id,
        data.version,
        data.customer,
        data.currency,
        data.total,
        data.items,
        data.placed_at,
    )
    match event:
        case OrderUpdated():
            row.type, row.updated_at = "order.updated", event.data.updated_at
        case OrderCancelled():
            row.type, row.cancelled_at, row.reason = "order.cancelled", event.data.cancelled_at, event.data.reason
    return row


def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    """Process one SQS event; the answer is a partial batch response."""
    processor = warm_processor("orders", OrderEvent)
    return process_partial_response(event=event, record_handler=to_row, processor=processor, context=context)
