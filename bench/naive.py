"""The rival of the retry policy: a worker that writes as ours does and retries as most do. A Lambda handler.

The same contract, the same one call of apply_orders a batch; but every error is waited out and tried again on a new
connection, five times with an exponential delay, and then the whole batch is reported as failed. It knows no borrow
timeout, no breaker, and leaves the delay of what it gave back to the queue's visibility timeout.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import msgspec
import psycopg

from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.database import Database
from workers.runtime.envelope import EventDecoder
from workers.runtime.settings import Settings
from workers.runtime.worker import statement

ATTEMPTS = 5
FIRST_DELAY_S = 0.5


@cache
def _warm() -> tuple[Database, EventDecoder[Any]]:
    return Database(Settings.from_env(os.environ)), EventDecoder[Any](OrderEvent)


def handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """Write one SQS event; the answer is a partial batch response of all or nothing."""
    database, decoder = _warm()
    rows = {row.id: row for row in (to_row(decoder.decode(record["body"])) for record in event["Records"])}
    parameter = msgspec.json.encode(list(rows.values()))
    for attempt in range(ATTEMPTS):
        try:
            database.fetch(statement("orders"), parameter)
        except psycopg.Error:
            database.discard()
            time.sleep(FIRST_DELAY_S * 2**attempt)
        else:
            return {"batchItemFailures": []}
    return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in event["Records"]]}
