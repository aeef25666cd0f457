"""Batches as Lambda forms them: nothing lost, order kept, payload and count within bounds, records as documented."""

import base64
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.stack.batch import MAX_PAYLOAD_BYTES, Batch, Gathering, Received, received

ARN = "arn:aws:sqs:eu-west-1:123456789012:orders"

MESSAGE: dict[str, Any] = {
    "MessageId": "059f36b4-87a3-44ab-83d2-661975830a7d",
    "ReceiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a",
    "MD5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
    "Body": "Grüße",
    "Attributes": {
        "ApproximateReceiveCount": "1",
        "SentTimestamp": "1545082649183",
        "SenderId": "AIDAIENQZJOLO23YVJ4VO",
        "ApproximateFirstReceiveTimestamp": "1545082649185",
    },
}


def decode(batch: Batch) -> list[dict[str, Any]]:
    event = json.loads(batch.payload())
    assert list(event) == ["Records"]
    records: list[dict[str, Any]] = event["Records"]
    return records


def record_of(message: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(received(message, queue_arn=ARN, region="eu-west-1").record)
    return decoded


def test_a_record_has_the_documented_fields_and_no_others() -> None:
    assert record_of(MESSAGE) == {
        "messageId": "059f36b4-87a3-44ab-83d2-661975830a7d",
        "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a",
        "body": "Grüße",
        "attributes": MESSAGE["Attributes"],
        "messageAttributes": {},
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": ARN,
        "awsRegion": "eu-west-1",
    }


def test_message_attributes_are_renamed_and_binary_ones_encoded() -> None:
    message = MESSAGE | {
        "MD5OfMessageAttributes": "00484c68",
        "MessageAttributes": {
            "text": {"StringValue": "x", "DataType": "String"},
            "number": {"StringValue": "1.5", "DataType": "Number.float"},
            "bytes": {"BinaryValue": b"\x00\xff", "DataType": "Binary"},
        },
    }
    record = record_of(message)
    empty: dict[str, list[str]] = {"stringListValues": [], "binaryListValues": []}
    assert record["md5OfMessageAttributes"] == "00484c68"
    assert record["messageAttributes"] == {
        "text": {"stringValue": "x", "dataType": "String"} | empty,
        "number": {"stringValue": "1.5", "dataType": "Number.float"} | empty,
        "bytes": {"binaryValue": base64.b64encode(b"\x00\xff").decode(), "dataType": "Binary"} | empty,
    }


def test_attributes_are_strings_and_fifo_ones_pass_through() -> None:
    fifo = {"MessageGroupId": "g", "MessageDeduplicationId": "d", "SequenceNumber": 18849496460467696128}
    message = MESSAGE | {"Attributes": fifo}
    one = received(message, queue_arn=ARN, region="eu-west-1")
    assert one.group_id == "g"
    assert json.loads(one.record)["attributes"] == fifo | {"SequenceNumber": "18849496460467696128"}


def test_text_is_utf_8_and_a_lone_surrogate_survives() -> None:
    plain = received(MESSAGE, queue_arn=ARN, region="eu-west-1")
    assert "Grüße".encode() in plain.record
    assert record_of(MESSAGE | {"Body": "\ud800"})["body"] == "\ud800"


def test_the_limit_is_six_mebibytes_over_the_whole_event() -> None:
    def sized(payload_bytes: int) -> Gathering:
        gathering = Gathering(max_messages=10_000, window_s=1)
        frame = len(b'{"Records":[,]}')
        for part in (payload_bytes // 2, payload_bytes - payload_bytes // 2 - frame):
            message = Received("m", "r", None, b"1" * part)
            assert gathering.fits(message) == (payload_bytes <= MAX_PAYLOAD_BYTES or not gathering)
            closed = gathering.add(message, 0.0)
        assert bool(closed) == (payload_bytes > MAX_PAYLOAD_BYTES)
        return gathering

    (exact,) = sized(6_291_456).close()
    assert len(exact.payload()) == 6_291_456
    sized(6_291_457)


def fill(gathering: Gathering, messages: list[Received]) -> list[Batch]:
    batches = [batch for message in messages for batch in gathering.add(message, 0.0)]
    return batches + gathering.close()


TEXT = st.text(max_size=40)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"Body": TEXT, "Attributes": st.dictionaries(TEXT, TEXT, max_size=2)},
        optional={
            "MessageAttributes": st.dictionaries(
                TEXT,
                st.fixed_dictionaries(
                    {"DataType": TEXT}, optional={"StringValue": TEXT, "BinaryValue": st.binary(max_size=20)}
                ),
                max_size=2,
            )
        },
    ),
    max_size=60,
).map(
    lambda messages: [
        received({"MessageId": str(n), "ReceiptHandle": f"r{n}"} | one, queue_arn=ARN, region="r")
        for n, one in enumerate(messages)
    ]
)


@given(messages=MESSAGES, max_messages=st.integers(1, 20), limit=st.integers(15, 3000))
def test_any_messages_split_within_bounds_without_loss_in_order(
    messages: list[Received], max_messages: int, limit: int
) -> None:
    batches = fill(Gathering(max_messages=max_messages, window_s=1, max_payload_bytes=limit), messages)
    assert [record["messageId"] for batch in batches for record in decode(batch)] == [m.message_id for m in messages]
    for batch in batches:
        assert 1 <= len(batch) <= max_messages
        assert len(batch.payload()) <= limit or len(batch) == 1
    for batch, following in itertools.pairwise(batches):  # each as full as it goes
        assert len(batch) == max_messages or batch.size_with(following.messages[0]) > limit


def test_the_window_counts_from_the_first_message() -> None:
    gathering = Gathering(max_messages=3, window_s=2.0)
    one = received(MESSAGE, queue_arn=ARN, region="r")
    assert gathering.due_at is None
    assert gathering.close_if_due(100.0) == []
    assert gathering.add(one, 10.0) == gathering.add(one, 11.5) == []
    assert gathering.due_at == 12.0
    assert gathering.close_if_due(11.9) == []
    assert [len(batch) for batch in gathering.close_if_due(12.0)] == [2]
    assert gathering.due_at is None
    assert gathering.add(one, 20.0) == []
    assert gathering.due_at == 22.0


@pytest.mark.parametrize("count", [1, 3])
def test_a_full_batch_closes_at_once(count: int) -> None:
    gathering = Gathering(max_messages=count, window_s=300)
    one = received(MESSAGE, queue_arn=ARN, region="r")
    closed = [gathering.add(one, 0.0) for _ in range(count)]
    assert [len(batches) for batches in closed] == [0] * (count - 1) + [1]
    assert gathering.due_at is None
