"""Every sample event through the real handler path on a real database: what the samples' README promises."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools.utilities.batch import process_partial_response

from spillway.samples import FOLDER
from spillway.stack.metrics import MetricStore
from spillway.stack.template import REPOSITORY
from tests.conftest import BOTH_ROUTES
from tests.integration.test_database import settings
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.database import Database
from workers.runtime.worker import build_processor

if TYPE_CHECKING:
    from tests.conftest import TestDatabase

pytestmark = BOTH_ROUTES

SAMPLES = sorted((REPOSITORY / FOLDER).glob("*.json"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_sample(sample: Any, database: TestDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    """Well-formed records are written, broken ones given back: no dead-letter queue is configured here."""
    event = json.loads(sample.read_text(encoding="utf-8"))
    connection = Database(settings(database))
    processor = build_processor("orders", OrderEvent, settings(database), connection)
    response = process_partial_response(event=event, record_handler=to_row, processor=processor, context=None)
    connection.discard()
    counted = MetricStore()
    for line in capsys.readouterr().out.splitlines():
        counted.feed(line)

    done = sum(counted.sum(name) for name in ("Applied", "Stale", "Duplicate"))
    assert done + len(response["batchItemFailures"]) == len(event["Records"])
    assert len(response["batchItemFailures"]) == counted.sum("PoisonGivenBack")
    if sample.name.startswith("orders."):
        assert done > 0
        assert (counted.sum("PoisonGivenBack") > 0) == ("poison" in sample.name)
    else:
        assert done == 0
    with database.owner() as owner:
        (claimed,) = owner.execute("SELECT count(*) FROM spillway.order_events").fetchone() or (None,)
    assert claimed == counted.sum("Applied") + counted.sum("Stale")
