"""The inventory worker: what Lambda calls, and what is written for one event."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from aws_lambda_powertools.utilities.batch import process_partial_response

from workers.inventory.contract import InventoryEvent, StockReceived, StockReleased, StockReserved
from workers.runtime.worker import warm_processor

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
    from aws_lambda_powertools.utilities.typing import LambdaContext


class MovementRow(msgspec.Struct, gc=False, omit_defaults=True):
    """What apply_inventory reads of one event (apply.sql). `lines`: SKU -> pieces; None for a release."""

    id: UUID
    type: str
    document_id: str
    occurred_at: datetime
    lines: dict[str, int] | None = None


def to_row(event: StockReceived | StockReserved | StockReleased) -> MovementRow:
    """The record handler: flattens an event to its row and adds up lines about the same SKU."""
    if isinstance(event, StockReleased):
        return MovementRow(event.id, "stock.released", event.data.reservation_id, event.time)
    lines: dict[str, int] = {}
    for line in event.data.lines:
        lines[line.sku] = lines.get(line.sku, 0) + line.quantity
    if isinstance(event, StockReserved):
        return MovementRow(event.id, "stock.reserved", event.data.reservation_id, event.time, lines)
    return MovementRow(event.id, "stock.received", event.data.receipt_id, event.time, lines)


def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    """Process one SQS event; the answer is a partial batch response."""
    processor = warm_processor("inventory", InventoryEvent)
    return process_partial_response(event=event, record_handler=to_row, processor=processor, context=context)
