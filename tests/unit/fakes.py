"""What stands in for PostgreSQL and SQS where a test is about what a worker does with their answers."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from workers.orders.contract import OrderEvent
from workers.runtime.attempts import BEGIN, END, Attempts
from workers.runtime.breaker import Breaker
from workers.runtime.bulk import BulkBatchProcessor
from workers.runtime.calls import Calls
from workers.runtime.dead_letters import DeadLetterQueue
from workers.runtime.envelope import EventDecoder
from workers.runtime.sqs import Sqs
from workers.runtime.telemetry import Telemetry
from workers.runtime.visibility import Visibility
from workers.runtime.writer import BatchWriter

QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders"
LETTERS = f"{QUEUE}-dlq"


class FakeStore:
    """Answers 'applied', or what `outcomes` says for an event id; raises `error` if there is one.

    `writes` holds the event ids of each call of the worker's function. Attempts are remembered as PostgreSQL does,
    without its clock.
    """

    def __init__(self, outcomes: dict[str, tuple[Any, ...]] | None = None, error: Exception | None = None) -> None:
        self.outcomes = outcomes or {}
        self.error = error
        self.connected = True
        self.writes: list[list[str]] = []
        self.attempts: dict[str, int] = {}

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        sent = json.loads(parameter)
        if statement == BEGIN:
            return self.begin(sent)
        if statement == END:
            return self.end(sent)
        ids = [row["id"] for row in sent]
        self.writes.append(ids)
        return self.apply(ids)

    def apply(self, ids: list[str]) -> list[tuple[Any, ...]]:
        if self.error:
            raise self.error
        return [(UUID(one), *self.outcomes.get(one, ("applied", None, None))) for one in ids]

    def begin(self, call: dict[str, Any]) -> list[tuple[Any, ...]]:
        if self.error:
            raise self.error
        self.end(call["ended"])
        before = [(one, self.attempts.get(one)) for one in call["message_ids"]]
        for one, known in before:
            if call["alone"] or known is None:
                self.attempts[one] = (known or 0) + int(call["alone"])
        return before

    def end(self, message_ids: list[str]) -> list[tuple[Any, ...]]:
        if self.error:
            raise self.error
        for one in message_ids:
            self.attempts.pop(one, None)
        return [(len(message_ids),)]

    def discard(self) -> None:
        self.connected = False


class FakeSqs:
    """A boto3 client as far as a worker uses it. `refuses` names message ids whose dead letters fail."""

    def __init__(self, refuses: set[str] | None = None, *, breaks: bool = False) -> None:
        self.refuses = refuses or set()
        self.breaks = breaks
        self.letters: list[dict[str, Any]] = []
        self.delays: dict[str, int] = {}

    def send_message_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        if self.breaks:
            raise ConnectionError("no route")
        assert QueueUrl.startswith(LETTERS)
        answer: dict[str, Any] = {"Successful": [], "Failed": []}
        for entry in Entries:
            if reasons(entry)["message-id"] in self.refuses:
                answer["Failed"].append({"Id": entry["Id"], "Code": "AccessDenied"})
            else:
                self.letters.append(entry)
                answer["Successful"].append({"Id": entry["Id"]})
        return answer

    def change_message_visibility_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        if self.breaks:
            raise ConnectionError("no route")
        assert QueueUrl.startswith(QUEUE)
        self.delays |= {entry["ReceiptHandle"]: entry["VisibilityTimeout"] for entry in Entries}
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}

    @property
    def reasons(self) -> dict[str, tuple[str, str]]:
        """Message id -> reason and SQLSTATE of each dead letter."""
        said = [reasons(letter) for letter in self.letters]
        assert len({one["message-id"] for one in said}) == len(said), "each once"
        return {one["message-id"]: (one["reason"], one.get("sqlstate", "")) for one in said}


def reasons(entry: dict[str, Any]) -> dict[str, Any]:
    return json.loads(entry["MessageAttributes"]["spillway.dead-letter"]["StringValue"])  # type: ignore[no-any-return]


def processor(
    store: Any,
    sqs: FakeSqs | None = None,
    worker: str = "orders",
    breaker: Breaker | None = None,
    contract: Any = OrderEvent,
) -> BulkBatchProcessor:
    client = Sqs(lambda: sqs or FakeSqs())
    calls = Calls(store, attempt_s=1, connect_timeout_s=1, breaker=breaker or Breaker(), sleep=lambda _: None)
    return BulkBatchProcessor(
        decoder=EventDecoder(contract),
        writer=BatchWriter(calls, "SELECT"),
        dead_letters=DeadLetterQueue(LETTERS, worker, client),
        telemetry=Telemetry(worker),
        visibility=Visibility(QUEUE, client, max_delay_s=900),
        attempts=Attempts(calls, worker),
        breaker=calls.breaker,
        function_timeout_s=30,
    )


def record(number: int, body: str, receives: int = 1, group: str = "") -> dict[str, Any]:
    """Record m<number>, with receipt handle r<number>; of a FIFO queue if it has a group."""
    attributes = {"ApproximateReceiveCount": str(receives)} | ({"MessageGroupId": group} if group else {})
    return {
        "messageId": f"m{number}",
        "receiptHandle": f"r{number}",
        "body": body,
        "attributes": attributes,
        "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:orders" + (".fifo" if group else ""),
    }
