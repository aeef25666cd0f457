from __future__ import annotations

import base64
import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workers.runtime.dead_letters import MAX_BATCH_BYTES, MAX_ENTRIES, DeadLetterQueue
from workers.runtime.failures import Poison, Reason

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders-dlq"
POISON = Poison(Reason.CONTRACT, "Expected `int`, got `str` - at `$.data.version`", "22023")


class Queue:
    """Keeps what it is sent; `refuses` names bodies whose entries fail."""

    def __init__(self, refuses: set[str] = frozenset(), breaks: bool = False) -> None:  # type: ignore[assignment]
        self.batches: list[list[dict[str, Any]]] = []
        self.refuses = refuses
        self.breaks = breaks

    def send_message_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        if self.breaks:
            raise ConnectionError("no route")
        self.batches.append(Entries)
        answer: dict[str, Any] = {"Successful": [], "Failed": []}
        for entry in Entries:
            if entry["MessageBody"] in self.refuses:
                answer["Failed"].append({"Id": entry["Id"], "Code": "InternalError"})
            else:
                answer["Successful"].append({"Id": entry["Id"]})
        return answer

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [entry for batch in self.batches for entry in batch]


def record(number: int = 1, body: str = "{", **more: Any) -> dict[str, Any]:
    return {
        "messageId": f"message-{number}",
        "body": body,
        "attributes": {"ApproximateReceiveCount": "3"},
        "messageAttributes": {},
        "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:orders",
    } | more


def send(
    queue: Queue, records: list[dict[str, Any]], url: str = URL, remaining_s: float = math.inf
) -> tuple[set[str], str]:
    return DeadLetterQueue(url, "orders", lambda: queue).send([(one, POISON) for one in records], lambda: remaining_s)


def strings(entry: dict[str, Any]) -> dict[str, str]:
    return {name: value.get("StringValue") for name, value in entry["MessageAttributes"].items()}


def test_a_dead_letter_carries_the_body_and_the_reason() -> None:
    queue = Queue()
    assert send(queue, [record(body='{"broken": \u2603')]) == ({"message-1"}, "")
    (entry,) = queue.entries
    assert entry["MessageBody"] == '{"broken": \u2603'
    assert strings(entry) == {
        "spillway.reason": "contract",
        "spillway.detail": "Expected `int`, got `str` - at `$.data.version`",
        "spillway.sqlstate": "22023",
        "spillway.worker": "orders",
        "spillway.source-queue": "arn:aws:sqs:eu-west-1:123456789012:orders",
        "spillway.message-id": "message-1",
        "spillway.receive-count": "3",
    }


def test_its_own_attributes_travel_on_and_ours_fold_into_one_where_there_is_no_room() -> None:
    own = {
        "text": {"stringValue": "x", "dataType": "String"},
        "number": {"stringValue": "7", "dataType": "Number.int"},
        "bytes": {"binaryValue": base64.b64encode(b"\0\xff").decode(), "dataType": "Binary"},
    }
    queue = Queue()
    send(queue, [record(messageAttributes=own)])
    attributes = queue.entries[0]["MessageAttributes"]
    assert attributes["bytes"] == {"DataType": "Binary", "BinaryValue": b"\0\xff"}
    assert attributes["number"] == {"DataType": "Number.int", "StringValue": "7"}
    assert len(attributes) == 10

    queue = Queue()
    send(queue, [record(messageAttributes=own | {"one more": {"stringValue": "y", "dataType": "String"}})])
    attributes = queue.entries[0]["MessageAttributes"]
    assert len(attributes) == 5
    assert json.loads(attributes["spillway.dead-letter"]["StringValue"])["reason"] == "contract"


def test_fifo_keeps_its_group_and_the_trace_header() -> None:
    queue = Queue()
    attributes = {"ApproximateReceiveCount": "1", "MessageGroupId": "account-7", "AWSTraceHeader": "Root=1-2-3"}
    send(queue, [record(attributes=attributes)], url=f"{URL}.fifo")
    (entry,) = queue.entries
    assert (entry["MessageGroupId"], entry["MessageDeduplicationId"]) == ("account-7", "message-1")
    assert entry["MessageSystemAttributes"]["AWSTraceHeader"]["StringValue"] == "Root=1-2-3"


def test_only_what_sqs_confirmed_counts() -> None:
    records = [record(number, body=f"body {number}") for number in range(25)]
    confirmed, trouble = send(Queue(refuses={"body 3", "body 17"}), records)
    assert confirmed == {f"message-{number}" for number in range(25)} - {"message-3", "message-17"}
    assert trouble == "InternalError"
    assert send(Queue(breaks=True), records) == (set(), "ConnectionError")
    assert send(Queue(), records, url="") == (set(), "DEAD_LETTER_QUEUE_URL is not set")
    assert send(Queue(), records, remaining_s=1.0) == (set(), "no time left in this invocation")


@given(st.lists(st.integers(1, 400_000), max_size=40))
def test_batches_keep_within_sqs_limits_and_lose_nothing(sizes: list[int]) -> None:
    queue = Queue()
    confirmed, _ = send(queue, [record(number, body="x" * size) for number, size in enumerate(sizes)])
    assert confirmed == {f"message-{number}" for number in range(len(sizes))}
    assert [len(entry["MessageBody"]) for entry in queue.entries] == sizes
    for batch in queue.batches:
        assert len(batch) <= MAX_ENTRIES
        assert len({entry["Id"] for entry in batch}) == len(batch)
        assert len(batch) == 1 or sum(len(entry["MessageBody"]) for entry in batch) <= MAX_BATCH_BYTES
