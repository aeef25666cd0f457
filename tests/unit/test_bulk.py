"""Every record ends as exactly one of: done, dead-lettered and confirmed, or back in the queue."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aws_lambda_powertools.utilities.batch import process_partial_response
from psycopg import errors

from spillway.histories.orders import generate
from spillway.stack.metrics import MetricStore
from tests.unit.fakes import FakeSqs, FakeStore, processor, record
from workers.orders.handler import to_row
from workers.runtime.bulk import BulkBatchProcessor
from workers.runtime.dead_letters import CANARY, SEND_BUDGET_S
from workers.runtime.visibility import VISIBILITY_BUDGET_S


def event(bodies: list[str], receives: int = 1) -> list[dict[str, Any]]:
    return [record(number, body, receives) for number, body in enumerate(bodies)]


def run(worker: BulkBatchProcessor, records: list[dict[str, Any]], handler: Any = to_row) -> list[str]:
    """The ids of the messages that were given back."""
    response = process_partial_response({"Records": records}, handler, worker, context=None)  # type: ignore[arg-type]
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def metrics(output: str) -> MetricStore:
    store = MetricStore()
    for line in output.splitlines():
        store.feed(line)
    return store


GOOD = [message.body for message in generate(100, seed=3, duplicates=0, poison=0).messages]
IDS = [json.loads(body)["id"] for body in GOOD]


def test_a_good_batch_reports_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(processor(FakeStore()), event(GOOD)) == []
    counted = metrics(capsys.readouterr().out)
    assert counted.sum("Applied", service="orders") == len(GOOD) == counted.sum("BatchSize")


def test_the_same_event_twice_in_a_batch_is_written_once_and_done_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(processor(FakeStore()), event([GOOD[0], GOOD[1], GOOD[0]])) == []
    counted = metrics(capsys.readouterr().out)
    assert (counted.sum("Applied"), counted.sum("Duplicate")) == (2, 1)


@pytest.mark.parametrize("outcome", ["applied", "duplicate", "stale", "rejected"])
def test_outcomes_that_are_done(outcome: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = FakeStore({IDS[0]: (outcome, "why", None)})
    assert run(processor(store), event(GOOD[:2])) == []
    assert metrics(capsys.readouterr().out).sum(outcome.capitalize()) >= 1


def test_poison_invalid_and_gap_go_to_the_dead_letter_queue_and_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    sqs = FakeSqs()
    store = FakeStore(
        {
            IDS[0]: ("invalid", "23514", "constraint orders_total_not_negative"),
            IDS[2]: ("gap", None, "expected sequence 5, got 6"),
        }
    )
    assert run(processor(store, sqs), event([GOOD[0], "{", GOOD[1], GOOD[2]])) == []
    assert sqs.reasons == {"m0": ("data", "23514"), "m1": ("undecodable", ""), "m3": ("gap", "")}
    assert metrics(capsys.readouterr().out).sum("DeadLettered") == 3
    assert sqs.delays == {}


def test_poison_the_dead_letter_queue_did_not_take_goes_back_for_a_while() -> None:
    sqs = FakeSqs(refuses={"m1"})
    assert run(processor(FakeStore(), sqs), event([GOOD[0], "{"])) == ["m1"]
    assert set(sqs.delays) == {"r1"}
    assert run(processor(FakeStore(), FakeSqs(breaks=True)), event([GOOD[0], "{"])) == ["m1"]


def test_held_goes_back_untouched(capsys: pytest.CaptureFixture[str]) -> None:
    sqs = FakeSqs()
    assert run(processor(FakeStore({IDS[1]: ("held", None, None)}), sqs), event(GOOD[:3])) == ["m1"]
    assert metrics(capsys.readouterr().out).sum("HeldBack") == 1
    assert sqs.letters == []


def test_an_answer_that_nobody_has_defined_is_no_success() -> None:
    assert run(processor(FakeStore({IDS[1]: ("done", None, None)})), event(GOOD[:3])) == ["m1"]


def test_what_the_database_did_not_confirm_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    store = FakeStore(error=errors.TooManyConnections("sorry"))
    assert run(processor(store), event([*GOOD[:3], "{"])) == ["m0", "m1", "m2"]
    assert metrics(capsys.readouterr().out).sum("SaturatedGivenBack") == 3


def test_all_failed_is_reported_not_raised() -> None:
    assert run(processor(FakeStore(error=errors.AdminShutdown("bye"))), event(GOOD[:1])) == ["m0"]


def test_a_mistake_in_a_record_handler_costs_only_its_record() -> None:
    def handler(order: Any) -> Any:
        if str(order.id) == IDS[1]:
            raise KeyError("ours")
        return to_row(order)

    assert run(processor(FakeStore()), event(GOOD[:3]), handler) == ["m1"]


def test_a_warm_processor_starts_every_batch_afresh_and_keeps_none() -> None:
    sqs = FakeSqs()
    warm = processor(FakeStore(), sqs)
    assert run(warm, event(["{", GOOD[0]])) == []
    sqs.breaks = True
    assert run(warm, event(["{"])) == ["m0"]
    assert run(warm, event(GOOD[:2])) == []
    assert warm.records == warm.success_messages == warm.fail_messages == []


CANARY_FATES = {
    "applied": ("applied", None, None),
    "duplicate": ("duplicate", None, None),
    "rejected": ("rejected", "insufficient_stock", None),
    "dead-lettered": ("invalid", "23514", "constraint orders_total_not_negative"),
    "held": ("held", None, None),
}


def canary(message: dict[str, Any], whose: str = "redrive-7") -> dict[str, Any]:
    return message | {"messageAttributes": {CANARY: {"dataType": "String", "stringValue": whose}}}


def canary_lines(output: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{") and "_aws" not in line]
    return [line for line in lines if line["message"] == "canary"]


@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
@pytest.mark.parametrize("outcome", CANARY_FATES)
def test_what_became_of_a_canary_is_told(outcome: str, fifo: bool, capsys: pytest.CaptureFixture[str]) -> None:
    store = FakeStore({IDS[1]: CANARY_FATES[outcome]})
    records = event(GOOD[:3])
    records[1] = canary(records[1])
    if fifo:
        for number, one in enumerate(records):
            one["eventSourceARN"] += ".fifo"
            one["attributes"] |= {"MessageGroupId": f"g{number}"}
    # A name of its own each time: Powertools' logger keeps the standard output it first saw under a name.
    run(processor(store, FakeSqs(), worker=f"canary-{outcome}-{fifo}"), records)
    [line] = canary_lines(capsys.readouterr().out)
    assert (line["canary"], line["message_id"], line["outcome"]) == ("redrive-7", "m1", outcome)
    expected = {"reason": "data", "sqlstate": "23514"} if outcome == "dead-lettered" else {}
    assert {key: line[key] for key in ("reason", "sqlstate") if key in line} == expected


def test_a_canary_that_is_poison_at_once_or_given_back_is_told_of_too(capsys: pytest.CaptureFixture[str]) -> None:
    refused = FakeStore(error=errors.TooManyConnections("sorry"))
    records = event(["{", GOOD[0]])
    run(processor(refused, FakeSqs(), worker="canary-poison"), [canary(one, f"r{n}") for n, one in enumerate(records)])
    lines = canary_lines(capsys.readouterr().out)
    assert [(line["canary"], line["outcome"], line.get("reason")) for line in lines] == [
        ("r0", "dead-lettered", "undecodable"),
        ("r1", "saturated", None),
    ]


def test_a_batch_without_a_canary_tells_of_none(capsys: pytest.CaptureFixture[str]) -> None:
    run(processor(FakeStore(), worker="canary-none"), event(GOOD[:2]))
    assert canary_lines(capsys.readouterr().out) == []


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
    run(processor(FakeStore(error=refused), worker="quiet"), event([*bodies, GOOD[1]]))
    missing = errors.UndefinedFunction(f"no function\nCONTEXT: {secret}")
    run(processor(FakeStore(error=missing), worker="quiet"), event([GOOD[1]]))
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


def test_the_time_to_tell_sqs_afterwards_is_kept_back_from_writing() -> None:
    attempt_s = 1.0
    for remaining_s, bodies, expected in [
        (attempt_s + VISIBILITY_BUDGET_S + 0.1, [GOOD[0]], []),
        (attempt_s + VISIBILITY_BUDGET_S - 0.1, [GOOD[0]], ["m0"]),
        (attempt_s + VISIBILITY_BUDGET_S + SEND_BUDGET_S + 0.1, [GOOD[0], "{"], []),
        (attempt_s + VISIBILITY_BUDGET_S + SEND_BUDGET_S - 0.1, [GOOD[0], "{"], ["m0"]),
    ]:
        context: Any = Context(remaining_s)
        response = process_partial_response({"Records": event(bodies)}, to_row, processor(FakeStore()), context)  # type: ignore[arg-type]
        assert [failure["itemIdentifier"] for failure in response["batchItemFailures"]] == expected


def test_what_sqs_says_about_delays_changes_nothing_about_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    sqs = FakeSqs(breaks=True)
    store = FakeStore(error=errors.AdminShutdown("bye"))
    assert run(processor(store, sqs, worker="refused"), event(GOOD[:30])) == [f"m{number}" for number in range(30)]
    output = capsys.readouterr().out
    counted = metrics(output)
    assert (counted.sum("DelayRefused"), counted.sum("UnavailableGivenBack")) == (30, 30)
    first, second = output.index("AdminShutdown"), output.index("delay_refused")
    assert first < second, "what went wrong first is said first"


def test_what_is_done_is_never_delayed() -> None:
    sqs = FakeSqs()
    run(processor(FakeStore({IDS[2]: ("held", None, None)}), sqs), event(GOOD[:40]))
    assert set(sqs.delays) == {"r2"}
