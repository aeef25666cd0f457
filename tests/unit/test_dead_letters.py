"""A dead letter is the message itself, byte for byte, and says why it is one."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.dead_letters import original_attributes, reasons_of
from spillway.samples.orders import examples
from workers.runtime import version
from workers.runtime.dead_letters import ATTRIBUTE, FOLDED, REASON, DeadLetterQueue
from workers.runtime.failures import Poison, Reason
from workers.runtime.sqs import MAX_ATTRIBUTES, MAX_BATCH_BYTES, MAX_ENTRIES, Sqs

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders-dlq"
POISON = Poison(Reason.CONTRACT, "Expected `int`, got `str` - at `$.data.version`", "22023")
NOW = datetime(2026, 11, 21, 17, 30, 0, 250_000, tzinfo=UTC)
EVENT = {"id": "018f3c5e-7b1a-7e6f-9a3b-5d2c4e6f8a01", "type": "order.placed", "data": {"card": "4111"}}


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
        "attributes": {"ApproximateReceiveCount": "3", "ApproximateFirstReceiveTimestamp": "1763740800123"},
        "messageAttributes": {},
        "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:orders",
    } | more


def queue_of(queue: Queue, url: str = URL) -> DeadLetterQueue:
    return DeadLetterQueue(url, "orders", Sqs(lambda: queue), now=lambda: NOW)


def send(
    queue: Queue, records: list[dict[str, Any]], url: str = URL, remaining_s: float = math.inf
) -> tuple[set[str], str]:
    return queue_of(queue, url).send([(one, POISON) for one in records], lambda: remaining_s)


def letter(body: str = "{", url: str = URL, **more: Any) -> dict[str, Any]:
    """The entry that one record becomes."""
    queue = Queue()
    assert send(queue, [record(body=body, **more)], url=url) == ({"message-1"}, "")
    (entry,) = queue.entries
    return entry


def received(entry: dict[str, Any], number: int = 1) -> dict[str, Any]:
    """The record that Lambda would make of a sent entry."""
    attributes = {
        name: {"dataType": value["DataType"]}
        | (
            {"binaryValue": base64.b64encode(value["BinaryValue"]).decode()}
            if "BinaryValue" in value
            else {"stringValue": value["StringValue"]}
        )
        for name, value in entry["MessageAttributes"].items()
    }
    return record(number, body=entry["MessageBody"], messageAttributes=attributes)


def test_a_dead_letter_carries_the_body_and_all_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_VERSION", "17")
    body = json.dumps(EVENT | {"extra": "\u2603"}, ensure_ascii=False) + "\n"
    entry = letter(body)
    assert entry["MessageBody"] == body
    assert entry["MessageAttributes"].keys() == {ATTRIBUTE, REASON}
    assert entry["MessageAttributes"][REASON] == {"DataType": "String", "StringValue": "contract"}
    assert reasons_of(entry) == {
        "reason": "contract",
        "detail": "Expected `int`, got `str` - at `$.data.version`",
        "sqlstate": "22023",
        "worker": "orders",
        "worker-version": f"{version.VERSION}+17",
        "source-queue": "arn:aws:sqs:eu-west-1:123456789012:orders",
        "message-id": "message-1",
        "event-id": EVENT["id"],
        "event-type": "order.placed",
        "first-seen": "2025-11-21T16:00:00.123Z",
        "last-seen": "2026-11-21T17:30:00.250Z",
        "receive-count": "3",
    }


@pytest.mark.parametrize(
    ("body", "event_id", "event_type"),
    [
        (json.dumps(examples()["order.placed"]), examples()["order.placed"]["id"], "order.placed"),
        (json.dumps(EVENT | {"id": EVENT["id"].upper(), "specversion": 7}), EVENT["id"], "order.placed"),  # type: ignore[attr-defined]
        (json.dumps(EVENT | {"id": 7}), None, "order.placed"),
        (json.dumps(EVENT | {"id": "4111 1111 1111 1111"}), None, "order.placed"),
        (json.dumps(EVENT | {"id": EVENT["id"].replace("-", "")}), None, "order.placed"),  # type: ignore[attr-defined]
        (json.dumps(EVENT | {"type": "card 4111 1111"}), EVENT["id"], None),
        (json.dumps(EVENT | {"type": "x" * 129}), EVENT["id"], None),
        (json.dumps(EVENT | {"type": {"a": 1}}), EVENT["id"], None),
        (json.dumps({"detail-type": "t", "detail": EVENT, "id": "other"}), EVENT["id"], "order.placed"),
        (
            json.dumps({"Type": "Notification", "TopicArn": "arn", "Message": json.dumps(EVENT)}),
            EVENT["id"],
            "order.placed",
        ),
        (json.dumps(EVENT)[:-1], None, None),
        ("[1]", None, None),
        ("", None, None),
        ("\ud800", None, None),
        ("[" * 100_000, None, None),
    ],
)
def test_the_event_is_named_as_far_as_it_can_be(body: str, event_id: str | None, event_type: str | None) -> None:
    reasons = reasons_of(letter(body))
    assert (reasons.get("event-id"), reasons.get("event-type")) == (event_id, event_type)
    assert "4111" not in json.dumps(reasons)


OWN = {
    "text": {"stringValue": "\u00e9 \U0001f648", "dataType": "String"},
    "number": {"stringValue": "7", "dataType": "Number.int"},
    "bytes": {"binaryValue": base64.b64encode(b"\0\xff").decode(), "dataType": "Binary.sha"},
}
SENT = {
    "text": {"DataType": "String", "StringValue": "\u00e9 \U0001f648"},
    "number": {"DataType": "Number.int", "StringValue": "7"},
    "bytes": {"DataType": "Binary.sha", "BinaryValue": b"\0\xff"},
}


@pytest.mark.parametrize("more", range(8))
def test_its_own_attributes_travel_on_and_none_is_lost_where_there_is_no_room(more: int) -> None:
    filler = {f"filler-{index}": {"stringValue": "y" * 99, "dataType": "String"} for index in range(more)}
    expected = SENT | {name: {"DataType": "String", "StringValue": "y" * 99} for name in filler}
    entry = letter(messageAttributes=OWN | filler)
    attributes = entry["MessageAttributes"]
    assert len(attributes) <= MAX_ATTRIBUTES
    assert (REASON in attributes) is (3 + more <= 8)
    assert reasons_of(entry)["reason"] == "contract"
    assert original_attributes(entry) == expected
    kept = {name: value for name, value in attributes.items() if name not in (ATTRIBUTE, REASON)}
    assert kept.items() <= expected.items() if more < 7 else len(kept) == 9


@pytest.mark.parametrize("which", list(OWN))
def test_an_attribute_that_made_room_can_be_taken_out_again_whatever_its_type(which: str) -> None:
    """The smallest goes, so every other is made large."""
    large = {f"large-{index}": {"stringValue": "y" * 500, "dataType": "String"} for index in range(9)}
    entry = letter(messageAttributes=large | {which: OWN[which]})
    assert which not in entry["MessageAttributes"]
    assert original_attributes(entry)[which] == SENT[which]
    assert FOLDED not in reasons_of(entry)
    # Dead again after a redrive as it is: the same message, once more.
    again = letter(messageAttributes=received(entry)["messageAttributes"])
    assert original_attributes(again) == original_attributes(entry)
    assert len(again["MessageAttributes"]) == MAX_ATTRIBUTES


@pytest.mark.parametrize(
    "value",
    [
        "",
        "null",
        "7",
        "[]",
        "{",
        '{"folded-attribute": 7}',
        '{"folded-attribute": {"name": "a"}}',
        '{"folded-attribute": {"name": "a", "type": "String", "value": "%%%"}}',
    ],
)
def test_an_attribute_of_our_name_that_we_did_not_write_is_no_obstacle(value: str) -> None:
    own = {ATTRIBUTE: {"stringValue": value, "dataType": "String"}, "a": {"stringValue": "b", "dataType": "String"}}
    entry = letter(messageAttributes=own)
    assert reasons_of(entry)["reason"] == "contract"
    assert original_attributes(entry) == {"a": {"DataType": "String", "StringValue": "b"}}


def test_what_no_worker_sent_says_nothing() -> None:
    assert reasons_of({"Body": "x"}) == {}
    assert original_attributes({"Body": "x"}) == {}


def size(attributes: dict[str, Any]) -> int:
    return sum(
        len(name) + len(value["DataType"]) + len(value["StringValue"].encode()) for name, value in attributes.items()
    )


def test_ours_give_way_where_the_message_would_become_too_large() -> None:
    ours = letter("x")["MessageAttributes"]
    both, one = size(ours), size({ATTRIBUTE: ours[ATTRIBUTE]})
    for room, expected in [(both, {ATTRIBUTE, REASON}), (both - 1, {ATTRIBUTE}), (one, {ATTRIBUTE}), (one - 1, set())]:
        assert set(letter("x" * (MAX_BATCH_BYTES - room))["MessageAttributes"]) == expected
    full = {f"a{index}": {"stringValue": "y", "dataType": "String"} for index in range(10)}
    entry = letter("x" * (MAX_BATCH_BYTES - 100), messageAttributes=full)
    assert entry["MessageAttributes"] == {name: {"DataType": "String", "StringValue": "y"} for name in full}


def test_fifo_keeps_its_group_and_the_trace_header_and_gets_a_dedup_id_of_its_own() -> None:
    attributes = {
        "ApproximateReceiveCount": "1",
        "MessageGroupId": "account-7",
        "MessageDeduplicationId": "message-1",
        "AWSTraceHeader": "Root=1-2-3",
    }
    first = letter(url=f"{URL}.fifo", attributes=attributes)
    assert first["MessageGroupId"] == "account-7"
    assert first["MessageDeduplicationId"] != attributes["MessageDeduplicationId"]
    assert first["MessageSystemAttributes"]["AWSTraceHeader"]["StringValue"] == "Root=1-2-3"
    # Its confirmation was lost, so it came again and is sent again: SQS must recognise it.
    second = letter(url=f"{URL}.fifo", attributes=attributes | {"ApproximateReceiveCount": "2"})
    assert first["MessageDeduplicationId"] == second["MessageDeduplicationId"]
    queue = Queue()
    send(queue, [record(2, attributes=attributes)], url=f"{URL}.fifo")
    assert queue.entries[0]["MessageDeduplicationId"] != first["MessageDeduplicationId"]


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


def test_the_version_is_the_packages() -> None:
    pyproject = Path(version.__file__).parents[2] / "pyproject.toml"
    assert f'\nversion = "{version.VERSION}"\n' in pyproject.read_text()
