"""The producer and `spillway send` against a real SQS server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import typer
from typer.testing import CliRunner

from spillway.aws import sqs_client
from spillway.commands.send import send
from spillway.histories.base import DUPLICATE, VALID
from spillway.histories.orders import generate
from spillway.histories.orders_poison import POISON
from spillway.packing import MAX_BATCH_BYTES, MAX_MESSAGE_BYTES, Prepared
from spillway.producer import Producer
from workers.orders.contract import OrderEvent

app = typer.Typer()
app.command()(send)


@pytest.fixture
def client(sqs_endpoint: str) -> Any:
    return sqs_client(sqs_endpoint)


@pytest.fixture
def queue(client: Any) -> Iterator[str]:
    url = client.create_queue(QueueName=f"orders-{uuid4().hex}")["QueueUrl"]
    yield url
    client.delete_queue(QueueUrl=url)


@pytest.fixture
def fifo_queue(client: Any) -> Iterator[str]:
    name = f"payments-{uuid4().hex}.fifo"
    url = client.create_queue(QueueName=name, Attributes={"FifoQueue": "true"})["QueueUrl"]
    yield url
    client.delete_queue(QueueUrl=url)


def received(client: Any, url: str, count: int) -> list[dict[str, Any]]:
    """`count` messages, and proof that there is no more."""
    messages: list[dict[str, Any]] = []
    while True:
        found = client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=1 if len(messages) < count else 0,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        ).get("Messages", [])
        if not found:
            return messages
        messages += found
        for message in found:
            client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


def test_a_history_arrives_as_it_is(client: Any, queue: str) -> None:
    messages = generate(600, seed=4, poison=0.1).messages
    assert {message.kind for message in messages} == {VALID, DUPLICATE, *POISON}
    results = Producer(client, queue, OrderEvent, concurrency=4).send(Prepared.raw(m.body) for m in messages)
    assert [result.error for result in results] == [None] * 600
    assert len({result.message_id for result in results}) == 600
    arrived = received(client, queue, 600)
    assert sorted(message["Body"] for message in arrived) == sorted(message.body for message in messages)


def test_text_of_every_plane_attributes_and_fair_group(client: Any, queue: str) -> None:
    event = json.loads(generate(1, duplicates=0, poison=0).messages[0].body)
    event["source"] = "é 在庫 🙈 \u2028 \x7f \uffff \t\n \U0010fffd"
    producer = Producer(client, queue, OrderEvent, group_by="data.customer")
    prepared = producer.prepare(event, attributes={"tenant": "ü", "digest": bytes(range(256))})
    (result,) = producer.send([prepared])
    assert result.error is None
    (message,) = received(client, queue, 1)
    assert json.loads(message["Body"]) == event
    assert message["Body"] == prepared.body
    assert message["MessageAttributes"]["tenant"]["StringValue"] == "ü"
    assert message["MessageAttributes"]["digest"]["BinaryValue"] == bytes(range(256))
    assert message["Attributes"]["MessageGroupId"] == event["data"]["customer"]


def test_batches_of_exactly_a_mebibyte(client: Any, queue: str) -> None:
    sizes = [MAX_MESSAGE_BYTES, *[MAX_BATCH_BYTES // 8] * 8, MAX_MESSAGE_BYTES - 1, 1, 1]
    messages = [Prepared.raw("x" * size) for size in sizes]
    producer = Producer(client, queue, OrderEvent)
    assert [len(batch) for batch in producer.batches(messages)] == [1, 8, 2, 1]
    assert [result.error for result in producer.send(messages)] == [None] * len(sizes)
    assert sorted(len(message["Body"]) for message in received(client, queue, len(sizes))) == sorted(sizes)


def test_what_sqs_refuses_is_one_events_error(client: Any, queue: str) -> None:
    messages = [Prepared.raw("good"), Prepared.raw("x" * (MAX_MESSAGE_BYTES + 1)), Prepared.raw("good, too")]
    results = Producer(client, queue, OrderEvent, max_attempts=2, sleep=lambda _: None).send(messages)
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].error is not None
    assert results[1].error.final


def test_fifo_keeps_each_groups_order_and_drops_repeats(client: Any, fifo_queue: str) -> None:
    events = [message.body for message in generate(200, seed=5, poison=0, duplicates=0, orders=5).messages]
    producer = Producer(client, fifo_queue, OrderEvent)
    results = producer.send(events)
    assert all(result.error is None and result.sequence_number for result in results)
    producer.send(events[:50])
    arrived = received(client, fifo_queue, 200)
    assert len(arrived) == 200, "the event id is the deduplication id"

    def by_group(bodies: list[str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for body in bodies:
            event = json.loads(body)
            groups.setdefault(event["subject"], []).append(event["id"])
        return groups

    assert by_group([message["Body"] for message in arrived]) == by_group(events)


def test_the_command_sends_a_file(client: Any, queue: str, sqs_endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "orders.jsonl"
    bodies = [message.body for message in generate(50, poison=0, duplicates=0).messages]
    file.write_text("\n".join(bodies), encoding="utf-8")
    result = CliRunner().invoke(app, ["orders", str(file), "--queue-url", queue, "--endpoint-url", sqs_endpoint])
    assert (result.exit_code, result.output) == (0, "Sent 50 of 50 events.\n")
    assert sorted(message["Body"] for message in received(client, queue, 50)) == sorted(bodies)


def test_the_command_names_a_queue_that_is_not_there(sqs_endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "orders.jsonl"
    file.write_text(generate(30, poison=0, duplicates=0).messages[0].body + "\n", encoding="utf-8")
    url = f"{sqs_endpoint}/000000000000/nowhere"
    result = CliRunner().invoke(app, ["orders", str(file), "--queue-url", url])
    assert result.exit_code == 1
    assert "NonExistentQueue" in result.output
    assert "Sent 0 of 1 events." in result.output


class _Flaky(BaseHTTPRequestHandler):
    """Answers 500 `failures` times, closes the connection as often without an answer, then accepts everything."""

    failures = 0
    calls = 0
    entries: list[dict[str, Any]] = []  # noqa: RUF012 - reset by flaky_server()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _Flaky.calls += 1
        if _Flaky.calls <= 2 * _Flaky.failures:
            if _Flaky.calls % 2:
                self.answer(500, b"<html>not even JSON</html>")
            else:
                self.close_connection = True
            return
        _Flaky.entries += request["Entries"]
        answer = {"Successful": [{"Id": e["Id"], "MessageId": "m"} for e in request["Entries"]]}
        self.answer(200, json.dumps(answer).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def flaky_server(failures: int) -> Iterator[str]:
    _Flaky.failures, _Flaky.calls, _Flaky.entries = failures, 0, []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Flaky) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_an_endpoint_that_answers_500_and_recovers() -> None:
    bodies = [message.body for message in generate(25, poison=0, duplicates=0).messages]
    with flaky_server(failures=2) as endpoint:
        waits: list[float] = []
        client = sqs_client(endpoint, attempts=1)
        results = Producer(client, f"{endpoint}/1/q", OrderEvent, sleep=waits.append).send(bodies)
        client.close()
    assert [result.error for result in results] == [None] * 25
    assert [entry["MessageBody"] for entry in _Flaky.entries] == bodies
    assert len(waits) == 4


def test_the_trace_header_travels() -> None:
    """Read off the wire: ministack 1.5.33 drops system attributes of a batch."""
    header = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"
    bodies = [message.body for message in generate(2, poison=0, duplicates=0).messages]
    with flaky_server(failures=0) as endpoint:
        client = sqs_client(endpoint)
        Producer(client, f"{endpoint}/1/q", OrderEvent).send(bodies, trace_header=header)
        client.close()
    sent = {"AWSTraceHeader": {"DataType": "String", "StringValue": header}}
    assert [entry["MessageSystemAttributes"] for entry in _Flaky.entries] == [sent, sent]


def test_an_endpoint_that_keeps_answering_500_stops_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spillway.producer.BACKOFF_BASE_S", 0.001)
    file = tmp_path / "orders.jsonl"
    bodies = [message.body for message in generate(200, poison=0, duplicates=0).messages]
    file.write_text("\n".join(bodies), encoding="utf-8")
    with flaky_server(failures=10_000) as endpoint:
        result = CliRunner().invoke(app, ["orders", str(file), "--queue-url", f"{endpoint}/1/q", "--concurrency", "1"])
    assert result.exit_code == 1
    assert "Sent 0 of 200 events." in result.output
    assert "190 not tried: the queue did not answer." in result.output
    assert _Flaky.calls == 8


def test_nobody_listens() -> None:
    client = sqs_client("http://127.0.0.1:9", attempts=1)
    (result,) = Producer(client, "http://127.0.0.1:9/1/q", OrderEvent, max_attempts=2, sleep=lambda _: None).send(
        [Prepared.raw("x")]
    )
    assert result.error is not None
    assert (result.error.code, result.error.whole_call) == ("EndpointConnectionError", True)
