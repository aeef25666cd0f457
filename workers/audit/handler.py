"""The audit worker: what Lambda calls, and what is written for one event."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from aws_lambda_powertools.utilities.batch import process_partial_response

from workers.audit.contract import AuditEvent, canonical
from workers.runtime.worker import warm_processor

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
    from aws_lambda_powertools.utilities.typing import LambdaContext


class AuditRow(msgspec.Struct, gc=False):
    """What apply_audit reads of one event (apply.sql)."""

    id: UUID
    stream: str
    type: str
    source: str
    time: datetime
    body: str


def to_row(event: AuditEvent) -> AuditRow:
    """The record handler: the event's data as the canonical JSON text that is kept and hashed."""
    data = event.data
    return AuditRow(event.id, data.stream, "audit.recorded", event.source, event.time, canonical(data).decode())


def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    """Process one SQS event; the answer is a partial batch response."""
    processor = warm_processor("audit", AuditEvent)
    return process_partial_response(event=event, record_handler=to_row, processor=processor, context=context)
