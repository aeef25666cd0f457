"""Every record ends as exactly one of: done, dead-lettered and confirmed, or back in the queue."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from aws_lambda_powertools.utilities.batch import process_partial_response
from psycopg import errors

from spillway.histories.orders import generate
from spillway.stack.metrics import MetricStore
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.bulk import BulkBatchProcessor
from workers.runtime.dead_letters import SEND_BUDGET_S, DeadLetterQueue
from workers.runtime.envelope import EventDecoder
from workers.runtime.telemetry import Telemetry
from workers.runtime.writer import BatchWriter


class Store:
    """Answers 'applied', or what `outcomes` says for an id; raises `error` if there is one."""

    connected = True

    def __init__(self, outcomes: dict[str, tuple[str, ...]] | None = None, error: Exception | None = None) -> None:
        self.outcomes = outcomes or {}
        self.error = error

    def fetch(self, _statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        if self.error:
            raise self.error
        ids = [row["id"] for row in json.loads(parameter)]
        return [(UUID(one), *self.outcomes.get(one, ("applied", None, None))) for one in ids]

    def discard(self) -> None:
        pass


class Letters(DeadLetterQueue):
    def __init__(self, *, works: bool = True) -> None:
        self.works = works
        self.received: list[Any] = []

    def send(self, poisoned: Any, _remaining_s: Any) -> tuple[set[str], str]:
        self.received += list(poisoned)
        return ({record["messageId"] for record, _ in self.received}, "") if self.works else (set(), "AccessDenied")


def processor(store: Store, letters: Letters | None = None, worker: str = "orders") -> BulkBatchProcessor:
    writer = BatchWriter(store, "SELECT", attempt_s=1, connect_timeout_s=1)
    return BulkBatchProcessor(
        EventDecoder(OrderEvent), writer, letters or Letters(), Telemetry(worker), function_timeout_s=30
    )


def event(bodies: list[str], receive_count: str = "1") -> dict[str, Any]:
    return {
        "Records": [
            {"messageId": f"m{number}", "body": body, "attributes": {"ApproximateReceiveCount": receive_count}}
            for number, body in enumerate(bodies)
        ]
    }


def run(the_processor: BulkBatchProcessor, the_event: dict[str, Any], handler: Any = to_row) -> list[str]:
    response = process_partial_response(event=the_event, record_handler=handler, processor=the_processor, context=None)
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def metrics(output: str) -> MetricStore:
    store = MetricStore()
    for line in output.splitlines():
        store.feed(line)
    return store


GOOD = [message.body for message in generate(100, seed=3, duplicates=0, poison=0).messages]
IDS = [json.loads(body)["id"] for body in GOOD]


def test_a_good_batch_reports_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(processor(Store()), event(GOOD)) == []
    counted = metrics(capsys.readouterr().out)
    assert counted.sum("Applied", service="orders") == len(GOOD) == counted.sum("BatchSize")


def test_the_same_event_twice_in_a_batch_is_written_once_and_done_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(processor(Store()), event([GOOD[0], GOOD[1], GOOD[0]])) == []
    counted = metrics(capsys.readouterr().out)
    assert (counted.sum("Applied"), counted.sum("Duplicate")) == (2, 1)


@pytest.mark.parametrize("outcome", ["applied", "duplicate", "stale", "rejected"])
def test_outcomes_that_are_done(outcome: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store({IDS[0]: (outcome, "why", None)})
    assert run(processor(store), event(GOOD[:2])) == []
    assert metrics(capsys.readouterr().out).sum(outcome.capitalize()) >= 1


def test_poison_and_invalid_go_to_the_dead_letter_queue_and_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    letters = Letters()
    store = Store({IDS[0]: ("invalid", "23514", "constraint orders_total_not_negative")})
    assert run(processor(store, letters), event([GOOD[0], "{", GOOD[1]])) == []
    assert {(record["messageId"], poison.reason, poison.sqlstate) for record, poison in letters.received} == {
        ("m0", "data", "23514"),
        ("m1", "undecodable", ""),
    }
    assert metrics(capsys.readouterr().out).sum("DeadLettered") == 2


def test_poison_the_dead_letter_queue_did_not_take_goes_back() -> None:
    assert run(processor(Store(), Letters(works=False)), event([GOOD[0], "{"])) == ["m1"]


def test_what_the_database_did_not_confirm_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(error=errors.TooManyConnections("sorry"))
    assert run(processor(store), event([*GOOD[:3], "{"])) == ["m0", "m1", "m2"]
    assert metrics(capsys.readouterr().out).sum("SaturatedGivenBack") == 3


def test_all_failed_is_reported_not_raised() -> None:
    assert run(processor(Store(error=errors.AdminShutdown("bye"))), event(GOOD[:1])) == ["m0"]


def test_a_mistake_in_a_record_handler_costs_only_its_record() -> None:
    def handler(order: Any) -> Any:
        if str(order.id) == IDS[1]:
            raise KeyError("ours")
        return to_row(order)

    assert run(processor(Store()), event(GOOD[:3]), handler) == ["m1"]


def test_a_warm_processor_starts_every_batch_afresh_and_keeps_none() -> None:
    warm = processor(Store())
    assert run(warm, event(["{", GOOD[0]])) == []
    warm._dead_letters.works = False  # type: ignore[attr-defined]
    assert run(warm, event(["{"])) == ["m0"]
    assert run(warm, event(GOOD[:2])) == []
    assert warm.records == warm.success_messages == warm.fail_messages == []


def test_no_payload_in_what_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    secret = "S3CRET-PAYLOAD"
    bodies = [
        json.dumps(json.loads(GOOD[0]) | {"source": secret, "specversion": secret}),
        json.dumps(json.loads(GOOD[0]) | {"type": secret}),
        f'{{"data": "{secret}',
        json.dumps({"data": {secret: secret}}),
    ]
    # A worker name of its own: Powertools' logger keeps the standard output it first saw under a name.
    refused = errors.CheckViolation(f"row contains {secret}\nDETAIL: {secret}")
    run(processor(Store(error=refused), worker="quiet"), event([*bodies, GOOD[1]]))
    missing = errors.UndefinedFunction(f"no function\nCONTEXT: {secret}")
    run(processor(Store(error=missing), worker="quiet"), event([GOOD[1]]))
    output = capsys.readouterr().out
    assert "undecodable" in output
    assert "UndefinedFunction" in output
    assert secret not in output


class Context:
    """An invocation that has `remaining_s` left, and always will."""

    aws_request_id = "request"

    def __init__(self, remaining_s: float) -> None:
        self.remaining_s = remaining_s

    def get_remaining_time_in_millis(self) -> int:
        return int(self.remaining_s * 1000)


def test_the_time_to_dead_letter_known_poison_is_kept_back_from_writing() -> None:
    context: Any = Context(SEND_BUDGET_S + 0.5)  # an attempt needs 1 s
    for bodies, expected in [([GOOD[0]], []), ([GOOD[0], "{"], ["m0"])]:
        response = process_partial_response(event(bodies), to_row, processor(Store()), context)
        assert [failure["itemIdentifier"] for failure in response["batchItemFailures"]] == expected
