"""The producer: what it accepts, how it packs, what it sends again, and what it answers."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import msgspec
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st

from spillway.packing import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, Numbered, Prepared, pack
from spillway.preparing import EventRefused
from spillway.producer import BACKOFF_BASE_S, BACKOFF_CAP_S, GROUP_BLOCKED, Producer
from spillway.send_result import SendResult
from workers.orders.contract import OrderEvent, OrderPlaced
from workers.runtime.envelope import EventDecoder

QUEUE = "http://127.0.0.1:1/000000000000/orders"
ID = "01890000-0000-7000-8000-000000000001"


def order(number: int = 1, **changes: Any) -> dict[str, Any]:
    event = {
        "specversion": "1.0",
        "id": str(UUID(int=0x01890000_0000_7000_8000_000000000000 + number)),
        "source": "/shop",
        "type": "order.placed",
        "subject": f"ord-{number}",
        "time": "2026-01-05T08:00:00Z",
        "data": {
            "order_id": f"ord-{number}",
            "version": 1,
            "customer": "cus-1",
            "currency": "EUR",
            "items": [{"sku": "SKU-1", "quantity": 2, "unit_price": 50}],
            "total": 100,
            "placed_at": "2026-01-05T08:00:00Z",
        },
    }
    return event | changes


class FakeSQS:
    """Accepts everything, unless `faults` says otherwise: called with the number of the call and the entries."""

    def __init__(self, faults: Callable[[int, list[dict[str, Any]]], dict[str, dict[str, Any]]] | None = None) -> None:
        self.calls: list[list[dict[str, Any]]] = []
        self.arrived: list[str] = []
        self._faults = faults
        self._lock = threading.Lock()

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        assert QueueUrl.startswith(QUEUE)
        with self._lock:
            self.calls.append(Entries)
            failed = self._faults(len(self.calls), Entries) if self._faults else {}
            good = [entry for entry in Entries if entry["MessageBody"] not in failed]
            self.arrived += [entry["MessageBody"] for entry in good]
        return {
            "Successful": [{"Id": entry["Id"], "MessageId": f"message-{entry['Id']}"} for entry in good],
            "Failed": [
                {"Id": entry["Id"]} | failed[entry["MessageBody"]]
                for entry in Entries
                if entry["MessageBody"] in failed
            ],
        }


def client_error(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "said so"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "SendMessageBatch",
    )


def producer(client: FakeSQS, queue_url: str = QUEUE, **options: Any) -> Producer:
    options = {"sleep": lambda _seconds: None, "rng": random.Random(1)} | options
    return Producer(client, queue_url, OrderEvent, **options)  # type: ignore[arg-type]


def bodies(count: int) -> list[Prepared]:
    return [Prepared.raw(f"body {number}") for number in range(count)]


# --- preparing


def test_a_complete_event_is_sent_as_it_is_written() -> None:
    text = json.dumps(order(), indent=2).replace("100", "100 ")
    prepared = producer(FakeSQS()).prepare(text)
    assert prepared.body == json.dumps(order(), separators=(",", ":"))
    assert prepared.event_id == order()["id"]
    assert prepared.size == len(prepared.body)
    assert (prepared.group_id, prepared.dedup_id) == (None, None)


@pytest.mark.parametrize("form", [lambda event: event, json.dumps, lambda event: json.dumps(event).encode()])
def test_missing_envelope_attributes_are_filled_in(form: Callable[[dict[str, Any]], Any]) -> None:
    event = {name: value for name, value in order().items() if name not in {"id", "specversion", "time"}}
    before = datetime.now(UTC)
    sent = json.loads(producer(FakeSQS()).prepare(form(event)).body)
    assert UUID(sent["id"]).version == 7
    assert sent["specversion"] == "1.0"
    assert abs((datetime.fromisoformat(sent["time"]) - before).total_seconds()) < 5
    assert {name: sent[name] for name in event} == event


def test_an_event_object_is_validated_too() -> None:
    event = EventDecoder[OrderPlaced](OrderEvent).decode(json.dumps(order()))
    assert producer(FakeSQS()).prepare(event).event == event
    with pytest.raises(EventRefused, match=r"\$\.source"):
        producer(FakeSQS()).prepare(msgspec.structs.replace(event, source=""))


@pytest.mark.parametrize(
    ("event", "reason", "detail"),
    [
        ("{", "undecodable", "truncated"),
        ("", "undecodable", "truncated"),
        (b"\xff", "undecodable", "UTF-8"),
        (json.dumps(order(extra="?")).encode().replace(b'"?"', b'"\xff"'), "undecodable", "UTF-8"),
        ("[]", "contract", "got `array`"),
        ("{}", "contract", "`type`"),
        (order(id=None), "contract", "$.id"),
        (order(subject="another"), "contract", "`subject`"),
        (order(type="order.lost"), "contract", "$.type"),
        (order(source="a\0b"), "contract", "U+0000"),
        (order(source="\ud800"), "undecodable", "UTF-8"),
        (json.dumps(order(source="\ud800")), "undecodable", "hex escape"),
        (order(extra=object()), "undecodable", "JSON can hold"),
        ('{"type":' + "[" * 100_000, "undecodable", "deep"),
        (order(extra="x" * MAX_BATCH_BYTES), "too_large", "1048576 bytes, got"),
    ],
)
def test_what_the_contract_does_not_accept_is_refused(event: Any, reason: str, detail: str) -> None:
    with pytest.raises(EventRefused) as caught:
        producer(FakeSQS()).prepare(event)
    assert (caught.value.reason, detail in caught.value.detail) == (reason, True), caught.value


def test_an_envelope_around_the_event_is_no_event() -> None:
    wrapped = {"Type": "Notification", "TopicArn": "arn", "Message": json.dumps(order())}
    with pytest.raises(EventRefused, match="contract"):
        producer(FakeSQS()).prepare(wrapped)


def test_characters_that_sqs_refuses_travel_escaped() -> None:
    text = "a\ufffe\uffffé🙈\U0001ffff"
    body = producer(FakeSQS()).prepare(order(source=text)).body
    assert "\\ufffe\\uffff" in body
    assert not {"\ufffe", "\uffff"} & set(body)
    assert json.loads(body)["source"] == text


def test_attributes_count_to_the_size_and_the_trace_header_does_not() -> None:
    sender = producer(FakeSQS())
    plain = sender.prepare(order(), trace_header="Root=1-5759e988-bd862e3fe1be46a994272793")
    rich = sender.prepare(order(), attributes={"tenant": "é", "blob": b"\xff\x00"})
    assert plain.size == len(plain.body.encode())
    assert rich.size - plain.size == len("tenant" + "String") + 2 + len("blob" + "Binary") + 2
    entry = rich.entry("0")
    assert entry["MessageAttributes"]["blob"] == {"DataType": "Binary", "BinaryValue": b"\xff\x00"}
    assert plain.entry("0")["MessageSystemAttributes"]["AWSTraceHeader"]["StringValue"].startswith("Root=")


@pytest.mark.parametrize(
    "attributes",
    [{f"a{number}": "x" for number in range(11)}, {"aws.x": "1"}, {"a b": "1"}, {".a": "1"}, {"a..b": "1"}, {"a": ""}],
)
def test_attributes_that_sqs_refuses(attributes: dict[str, str | bytes]) -> None:
    with pytest.raises(EventRefused, match="attributes"):
        producer(FakeSQS()).prepare(order(), attributes=attributes)


def test_groups() -> None:
    event = order(7)
    assert producer(FakeSQS(), group_by="data.customer").prepare(event).group_id == "cus-1"
    assert producer(FakeSQS(), group_by=lambda event: event.subject[:3]).prepare(event).group_id == "ord"
    fifo = producer(FakeSQS(), QUEUE + ".fifo").prepare(event)
    assert (fifo.group_id, fifo.dedup_id) == ("ord-7", event["id"])
    with pytest.raises(EventRefused, match=r"\$\.data\.tenant"):
        producer(FakeSQS(), group_by="data.tenant").prepare(event)


def test_a_group_that_sqs_does_not_take_is_hashed() -> None:
    sender = producer(FakeSQS(), group_by="source")
    groups = [sender.prepare(order(source=source)).group_id for source in ("zwei Wörter", "zwei Wörter", "x" * 129)]
    assert groups[0] == groups[1] != groups[2]
    assert all(group and group.isalnum() and len(group) == 64 for group in groups)


# --- packing

sizes = st.lists(st.one_of(st.integers(1, 2_000), st.integers(1, MAX_BATCH_BYTES)), max_size=80)


@given(sizes, st.integers(1, MAX_BATCH_ENTRIES))
def test_batches_keep_the_limits_and_lose_nothing(sizes: list[int], entries: int) -> None:
    messages: list[Numbered] = [(index, Prepared(body="", size=size)) for index, size in enumerate(sizes)]
    batches = list(pack(messages, max_entries=entries))
    assert [numbered for batch in batches for numbered in batch] == messages
    for batch in batches:
        assert 1 <= len(batch) <= entries
        assert sum(message.size for _, message in batch) <= MAX_BATCH_BYTES
    for batch, following in pairwise(batches):
        together = sum(message.size for _, message in batch) + following[0][1].size
        assert len(batch) == entries or together > MAX_BATCH_BYTES, "no batch ends before it is full"


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60))
def test_a_fifo_batch_holds_a_group_once(groups: list[str]) -> None:
    messages: list[Numbered] = [(i, Prepared(body="", size=1, group_id=group)) for i, group in enumerate(groups)]
    batches = list(pack(messages, one_per_group=True))
    assert [numbered for batch in batches for numbered in batch] == messages
    assert all(len({message.group_id for _, message in batch}) == len(batch) for batch in batches)


# --- sending


def test_every_event_gets_its_result_in_order() -> None:
    client = FakeSQS()
    results = producer(client).send([order(number) for number in range(25)])
    assert [len(call) for call in client.calls] == [10, 10, 5]
    assert [result.index for result in results] == list(range(25))
    assert [result.event_id for result in results] == [order(number)["id"] for number in range(25)]
    assert all(result.message_id and result.error is None for result in results)


def test_refused_events_are_answered_and_never_sent() -> None:
    client = FakeSQS()
    events = [order(1), "{", order(2, extra="x" * MAX_BATCH_BYTES), order(3), order(4, subject="x")]
    results = producer(client).send(events)
    assert {result.index: result.error.code for result in results if result.error} == {
        1: "undecodable",
        2: "too_large",
        4: "contract",
    }
    assert [json.loads(body)["subject"] for body in client.arrived] == ["ord-1", "ord-3"]
    assert len(results) == len(events)


def test_only_refused_events_make_no_call() -> None:
    client = FakeSQS()
    assert [result.index for result in producer(client).send(["{", "["])] == [0, 1]
    assert client.calls == []


def test_only_failed_entries_are_sent_again() -> None:
    passing = {"SenderFault": False, "Code": "InternalError", "Message": "later"}
    client = FakeSQS(lambda call, _: {"body 3": passing, "body 7": passing} if call == 1 else {})
    results = producer(client).send(bodies(10))
    assert [[entry["MessageBody"] for entry in call] for call in client.calls[1:]] == [["body 3", "body 7"]]
    assert sorted(client.arrived) == sorted(f"body {number}" for number in range(10))
    assert all(result.error is None for result in results)


def test_the_senders_fault_is_not_sent_again() -> None:
    fault = {"SenderFault": True, "Code": "InvalidMessageContents", "Message": "no"}
    client = FakeSQS(lambda _, __: {"body 1": fault})
    results = producer(client).send(bodies(3))
    assert len(client.calls) == 1
    assert [
        result.error and (result.error.code, result.error.final, result.error.whole_call) for result in results
    ] == [
        None,
        ("InvalidMessageContents", True, False),
        None,
    ]


def test_it_gives_up_after_max_attempts() -> None:
    passing = {"SenderFault": False, "Code": "InternalError", "Message": "later"}
    client = FakeSQS(lambda _, __: {"body 0": passing})
    (result,) = producer(client, max_attempts=3).send(bodies(1))
    assert len(client.calls) == 3
    assert result.error is not None
    assert (result.error.code, result.error.final) == ("InternalError", False)


def test_an_entry_without_an_answer_is_sent_again() -> None:
    class Forgetful(FakeSQS):
        def send_message_batch(self, **arguments: Any) -> dict[str, Any]:
            answer = super().send_message_batch(**arguments)
            if len(self.calls) == 1:
                answer["Successful"].pop()
            return answer

    client = Forgetful()
    assert all(result.error is None for result in producer(client).send(bodies(4)))
    assert [len(call) for call in client.calls] == [4, 1]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (client_error("InternalError", 500), True),
        (client_error("ServiceUnavailable", 503), True),
        (client_error("ThrottlingException", 400), True),
        (client_error("RequestThrottled", 403), True),
        (client_error("AWS.SimpleQueueService.OverLimit", 403), True),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), True),
        (client_error("AccessDenied", 403), False),
        (client_error("AWS.SimpleQueueService.NonExistentQueue", 400), False),
        (NoCredentialsError(), False),
    ],
)
def test_a_call_that_fails_as_a_whole(error: Exception, again: bool) -> None:
    def fail_once(call: int, _entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if call == 1:
            raise error
        return {}

    client = FakeSQS(fail_once)
    results = producer(client).send(bodies(3))
    assert len(client.calls) == (2 if again else 1)
    assert [result.error is None for result in results] == [again] * 3
    if not again:
        assert all(result.error and result.error.whole_call and result.error.final for result in results)


def test_waits_double_with_full_jitter_up_to_a_cap() -> None:
    class Highest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            assert a == 0
            return b

    waits: list[float] = []
    client = FakeSQS(lambda _, __: {"body 0": {"SenderFault": False, "Code": "InternalError"}})
    producer(client, max_attempts=10, sleep=waits.append, rng=Highest()).send(bodies(1))
    assert waits == [min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**failures) for failures in range(9)]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers())
def test_whatever_fails_each_event_arrives_once_or_is_reported(good: list[bool], concurrency: int, seed: int) -> None:
    rng = random.Random(seed)
    final = {f"body {number}" for number, fine in enumerate(good) if not fine}

    def faults(_call: int, entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if rng.random() < 0.2:
            raise client_error("InternalError", 500)
        failed = {}
        for entry in entries:
            if entry["MessageBody"] in final:
                failed[entry["MessageBody"]] = {"SenderFault": True, "Code": "Bad", "Message": ""}
            elif rng.random() < 0.3:
                failed[entry["MessageBody"]] = {"SenderFault": False, "Code": "InternalError", "Message": ""}
        return failed

    client = FakeSQS(faults)
    results = producer(client, max_attempts=60, concurrency=concurrency).send(bodies(len(good)))
    assert [result.index for result in results] == list(range(len(good)))
    assert [result.error is None for result in results] == good
    assert sorted(client.arrived) == sorted(f"body {number}" for number, fine in enumerate(good) if fine)


def test_it_reads_no_further_ahead_than_it_sends() -> None:
    taken = 0

    def endless() -> Iterator[Prepared]:
        nonlocal taken
        while True:
            taken += 1
            yield Prepared.raw("x")

    for concurrency in (1, 4):
        taken = 0
        stream = producer(FakeSQS(), concurrency=concurrency).stream(endless())
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert taken <= (2 * concurrency + 1) * MAX_BATCH_ENTRIES + 1


def test_progress_sees_every_result() -> None:
    seen: list[SendResult] = []
    assert producer(FakeSQS()).send(bodies(12), progress=seen.append) == seen


# --- FIFO


def test_a_fifo_group_has_no_gap() -> None:
    """Once an event of a group could not be sent, the rest of the group stays; other groups go on."""
    messages = [Prepared.raw(f"{group}{number}", group_id=group) for number in range(4) for group in "ab"]
    client = FakeSQS(lambda _, __: {"a1": {"SenderFault": True, "Code": "Bad", "Message": ""}})
    results = producer(client, QUEUE + ".fifo").send(messages)
    assert client.arrived == ["a0", "b0", "b1", "b2", "b3"]
    assert {messages[r.index].body: r.error.code for r in results if r.error} == {
        "a1": "Bad",
        "a2": GROUP_BLOCKED,
        "a3": GROUP_BLOCKED,
    }


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers())
def test_fifo_order_survives_retries(groups: list[str], seed: int) -> None:
    rng = random.Random(seed)

    def faults(_call: int, entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        passing = {"SenderFault": False, "Code": "InternalError", "Message": ""}
        return {entry["MessageBody"]: passing for entry in entries if rng.random() < 0.4}

    client = FakeSQS(faults)
    messages = [Prepared.raw(f"{group} {number}", group_id=group) for number, group in enumerate(groups)]
    producer(client, QUEUE + ".fifo", max_attempts=100).send(messages)
    for group in "abc":
        sent = [message.body for message in messages if message.group_id == group]
        assert [body for body in client.arrived if body.startswith(group)] == sent


def test_several_senders_are_refused_for_a_fifo_queue() -> None:
    with pytest.raises(ValueError, match="FIFO"):
        producer(FakeSQS(), QUEUE + ".fifo", concurrency=2)
