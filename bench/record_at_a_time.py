"""The rival: Powertools' BatchProcessor with a record handler that does the same work, a transaction per record.

Written as its documentation and psycopg's suggest, on a warm connection, with psycopg's automatic prepared statements
(which an RDS Proxy would pin, so Spillway goes without). It is spared the logging and metrics that Spillway pays for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from psycopg.types.json import Jsonb, set_json_dumps

from workers.orders.contract import OrderCancelled, OrderEvent, OrderPlaced, OrderUpdated
from workers.runtime.envelope import EventDecoder

if TYPE_CHECKING:
    import psycopg
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

CLAIM = "INSERT INTO spillway.order_events (event_id) VALUES (%s) ON CONFLICT DO NOTHING"
UPSERT = """
INSERT INTO spillway.orders AS o (order_id, version, event_id, status, customer, currency, total, items,
                                  placed_at, updated_at, cancelled_at, reason)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (order_id) DO UPDATE SET
    version = excluded.version, event_id = excluded.event_id, status = excluded.status,
    customer = excluded.customer, currency = excluded.currency, total = excluded.total,
    items = excluded.items, placed_at = excluded.placed_at, updated_at = excluded.updated_at,
    cancelled_at = excluded.cancelled_at, reason = excluded.reason
WHERE (o.version, o.event_id) < (excluded.version, excluded.event_id)
"""
STATUS = {OrderPlaced: "placed", OrderUpdated: "updated", OrderCancelled: "cancelled"}


class RecordAtATime:
    """A Lambda handler on one connection, whose role may write the tables."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._decode = EventDecoder[OrderPlaced | OrderUpdated | OrderCancelled](OrderEvent).decode
        self._processor = BatchProcessor(event_type=EventType.SQS)

    def handler(self, event: dict[str, Any], context: Any) -> Any:
        """Process one SQS event; the answer is a partial batch response."""
        return process_partial_response(
            event=event, record_handler=self.record_handler, processor=self._processor, context=context
        )

    def record_handler(self, record: SQSRecord) -> str:
        """Claim the event id and write its order, in one transaction."""
        event = self._decode(record.body)
        order = event.data
        with self._connection.transaction():
            if not self._connection.execute(CLAIM, (event.id,)).rowcount:
                return "duplicate"
            written = self._connection.execute(
                UPSERT,
                (
                    order.order_id,
                    order.version,
                    event.id,
                    STATUS[type(event)],
                    order.customer,
                    order.currency,
                    order.total,
                    Jsonb(order.items),
                    order.placed_at,
                    getattr(order, "updated_at", None),
                    getattr(order, "cancelled_at", None),
                    getattr(order, "reason", ""),
                ),
            )
            return "applied" if written.rowcount else "stale"


def use_fast_json(connection: psycopg.Connection[Any]) -> None:
    """Encode items with msgspec here too, so that the JSON library is not what is compared."""
    set_json_dumps(msgspec.json.encode, connection)
