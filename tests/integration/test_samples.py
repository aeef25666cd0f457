"""Every sample event through the real handler path on a real database: what the samples' README promises."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools.utilities.batch import process_partial_response

from spillway.contracts import CONTRACTS
from spillway.samples import all_samples
from spillway.stack.metrics import MetricStore
from tests.conftest import BOTH_ROUTES
from tests.integration.test_database import settings
from workers.runtime.database import Database
from workers.runtime.worker import build_processor

if TYPE_CHECKING:
    from spillway.samples.records import Sample
    from tests.conftest import TestDatabase

pytestmark = BOTH_ROUTES

SAMPLES = [(worker, sample) for worker, samples in all_samples().items() for sample in samples]


def handled(
    worker: str, event: dict[str, Any], database: TestDatabase, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], MetricStore]:
    """The partial batch response of `worker` to `event`, and its metrics, without a dead-letter queue."""
    connection = Database(settings(database))
    processor = build_processor(worker, CONTRACTS[worker], settings(database), connection)
    to_row = import_module(f"workers.{worker}.handler").to_row
    response = process_partial_response(event=event, record_handler=to_row, processor=processor, context=None)
    connection.discard()
    counted = MetricStore()
    for line in capsys.readouterr().out.splitlines():
        counted.feed(line)
    return response, counted


@pytest.mark.parametrize(("worker", "sample"), SAMPLES, ids=[sample.name for _, sample in SAMPLES])
def test_sample(worker: str, sample: Sample, database: TestDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    """Well-formed records are written, broken ones given back: no dead-letter queue is configured here."""
    event = json.loads(json.dumps(sample.event))
    response, counted = handled(worker, event, database, capsys)

    done = sum(counted.sum(name) for name in ("Applied", "Stale", "Duplicate", "Rejected"))
    assert done + len(response["batchItemFailures"]) == len(event["Records"])
    owner, _, shows = sample.name.partition(".")
    if owner == worker:
        assert done > 0
        assert bool(response["batchItemFailures"]) == any(word in shows for word in ("poison", "gap"))
    else:
        assert done == 0
        assert len(response["batchItemFailures"]) == counted.sum("PoisonGivenBack") > 0
