"""The server that breaks SQS calls: what boto3 sees of each fault; without one it sees nothing of the server."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from spillway.stack.processes import Processes
from spillway.stack.sqs_server import MinistackServer
from tests.chaos.sqs_faults import (
    ACCESS_DENIED,
    INTERNAL_ERROR,
    THROTTLED,
    UNAVAILABLE,
    Error,
    SqsFaults,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

DEADLINE_S = 20.0
_names = itertools.count(1)


@pytest.fixture(scope="module")
def upstream() -> Iterator[MinistackServer]:
    with Processes() as processes, MinistackServer(processes) as server:
        yield server


@pytest.fixture
def faults(upstream: MinistackServer) -> Iterator[SqsFaults]:
    with SqsFaults(upstream.endpoint_url, seed=1) as server:
        yield server


def connect(endpoint_url: str, read_timeout_s: float = 30) -> SQSClient:
    return boto3.client(
        "sqs",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout_s, max_pool_connections=40),
    )


class Queue:
    """A queue of its own for a test: through the faults, and as it really is (`direct`)."""

    def __init__(self, faults: SqsFaults, upstream: MinistackServer, suffix: str = "", **attributes: str) -> None:
        self.sqs, self.direct = connect(faults.endpoint_url), connect(upstream.endpoint_url)
        self.name = f"faults-{next(_names)}{suffix}"
        self.url = self.sqs.create_queue(QueueName=self.name, Attributes=attributes)["QueueUrl"]  # type: ignore[arg-type]

    def send(self, *bodies: str) -> None:
        """Past the faults."""
        for start in range(0, len(bodies), 10):
            entries: Any = [{"Id": str(index), "MessageBody": body} for index, body in enumerate(bodies[start:][:10])]
            self.direct.send_message_batch(QueueUrl=self.url, Entries=entries)

    def receive(self, **arguments: Any) -> list[MessageTypeDef]:
        arguments = {"MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"], **arguments}
        return self.sqs.receive_message(QueueUrl=self.url, **arguments).get("Messages", [])

    def delete(self, messages: list[MessageTypeDef]) -> Any:
        return self.sqs.delete_message_batch(QueueUrl=self.url, Entries=entries(messages))

    def depth(self, client: SQSClient | None = None) -> tuple[int, int]:
        """Waiting and in flight, as the faults tell it or as `client` does."""
        names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = (client or self.sqs).get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return int(answer[names[0]]), int(answer[names[1]])


def entries(messages: list[MessageTypeDef], **more: Any) -> Any:
    return [
        {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"], **more} for index, message in enumerate(messages)
    ]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def consume(queue: Queue) -> list[MessageTypeDef]:
    """Receive and delete until the queue says it is empty; everything that came, in that order."""
    got: list[MessageTypeDef] = []
    deadline = time.monotonic() + DEADLINE_S
    while messages := queue.receive(WaitTimeSeconds=0) or any(queue.depth()):
        assert time.monotonic() < deadline
        if messages is not True:
            got += messages
            assert queue.delete(messages).get("Failed", []) == []
    return got


def bodies(messages: list[MessageTypeDef]) -> list[str]:
    return [message["Body"] for message in messages]


# Nothing injected: nobody can tell


def test_every_byte_passes_through(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    assert queue.url.startswith(faults.endpoint_url)
    assert queue.sqs.get_queue_url(QueueName=queue.name)["QueueUrl"] == queue.url
    attributes: Any = {
        "text": {"DataType": "String.kind", "StringValue": "grün"},
        "bytes": {"DataType": "Binary", "BinaryValue": bytes(range(256))},
    }
    body = "é\n\t😀" * 20_000  # far above one segment
    queue.sqs.send_message(QueueUrl=queue.url, MessageBody=body, MessageAttributes=attributes)
    (message,) = queue.receive(MessageAttributeNames=["All"])
    assert message["Body"] == body
    assert message["MessageAttributes"] == attributes
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert queue.depth() == queue.depth(queue.direct) == (0, 1)
    queue.delete([message])
    assert consume(queue) == []
    assert faults.counts == Counter()


def test_errors_and_partial_failures_pass_through(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    queue.send("a")
    assert queue.delete([*queue.receive(), {"ReceiptHandle": "unknown"}])["Failed"][0]["Code"] == (
        "ReceiptHandleIsInvalid"
    )
    seen = []
    for client in (queue.sqs, queue.direct):
        with pytest.raises(client.exceptions.QueueDoesNotExist) as caught:
            client.send_message(QueueUrl=queue.url + "-not", MessageBody="a")
        with pytest.raises(ClientError) as invalid:
            client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=11)
        seen.append([one.value.response["Error"] for one in (caught, invalid)])
    assert seen[0] == seen[1]


def test_fifo_order_and_groups_pass_through_whatever_befalls_standard_queues(
    faults: SqsFaults, upstream: MinistackServer
) -> None:
    faults.duplicate(within_s=0)
    faults.reorder(within_s=0)
    queue = Queue(faults, upstream, ".fifo", FifoQueue="true")
    for index in range(20):
        queue.sqs.send_message(
            QueueUrl=queue.url, MessageBody=str(index), MessageGroupId=str(index % 2), MessageDeduplicationId=str(index)
        )
    got = consume(queue)
    assert [bodies([one for one in got if int(one["Body"]) % 2 == group]) for group in (0, 1)] == [
        [str(index) for index in range(group, 20, 2)] for group in (0, 1)
    ]
    assert {one["Attributes"]["MessageGroupId"] for one in got} == {"0", "1"}
    assert faults.counts == Counter()


def test_what_is_not_the_json_protocol_passes_through(faults: SqsFaults, upstream: MinistackServer) -> None:
    faults.fail("*")
    connection = http.client.HTTPConnection("127.0.0.1", faults.port, timeout=5)
    connection.request("GET", "/?Action=ListQueues&Version=2012-11-05")
    answer = connection.getresponse()
    assert answer.status == 200
    assert b"ListQueuesResponse" in answer.read()
    headers = {"X-Amz-Target": "AmazonSQS.ReceiveMessage", "Content-Type": "application/x-amz-json-1.0"}
    connection.request("POST", "/", b"{not JSON", headers)
    assert b"QueueDoesNotExist" in connection.getresponse().read()
    connection.close()


def test_a_long_poll_holds_up_nobody(faults: SqsFaults, upstream: MinistackServer) -> None:
    faults.reorder(queue="none")
    queue, other = Queue(faults, upstream), Queue(faults, upstream)
    with ThreadPoolExecutor(20) as pool:
        polls = [pool.submit(queue.receive, WaitTimeSeconds=20) for _ in range(20)]
        started = time.monotonic()
        for _ in range(20):
            assert other.depth() == (0, 0)
        assert time.monotonic() - started < 5
        queue.send(*map(str, range(200)))
        assert all(poll.result() for poll in polls)
        assert time.monotonic() - started < 10


def test_stop_ends_long_polls_and_silent_calls_at_once(upstream: MinistackServer) -> None:
    faults = SqsFaults(upstream.endpoint_url, seed=1)
    faults.start()
    queue = Queue(faults, upstream)
    with ThreadPoolExecutor(3) as pool:
        poll = pool.submit(queue.receive, WaitTimeSeconds=20)
        faults.duplicate(queue=queue.name)
        sliced = pool.submit(queue.receive, WaitTimeSeconds=20)
        faults.hang("GetQueueAttributes", 60)
        silent = pool.submit(queue.depth)
        until(lambda: faults.counts["hang GetQueueAttributes"] == 1)
        started = time.monotonic()
        faults.stop()
        faults.stop()
        assert time.monotonic() - started < 2
        for call in (poll, sliced, silent):
            with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
                call.result()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", faults.port))
    assert not [thread for thread in threading.enumerate() if thread.name == "sqs-faults"]


def test_an_endpoint_that_is_gone_is_a_lost_connection() -> None:
    with Processes() as processes, MinistackServer(processes) as server:
        dead = server.endpoint_url
    with SqsFaults(dead, seed=1) as faults, pytest.raises(ConnectionClosedError):
        connect(faults.endpoint_url).list_queues()


# Calls that fail


@pytest.mark.parametrize(
    "error", [INTERNAL_ERROR, UNAVAILABLE, THROTTLED, ACCESS_DENIED, Error(418, "Custom", "m")], ids=lambda e: e.code
)
def test_a_whole_call_fails_and_has_no_effect(faults: SqsFaults, upstream: MinistackServer, error: Error) -> None:
    queue, other = Queue(faults, upstream), Queue(faults, upstream)
    fault = faults.fail("SendMessageBatch", error, queue=queue.name)
    sent: Any = [{"Id": "a", "MessageBody": "b"}]
    with pytest.raises(ClientError) as caught:
        queue.sqs.send_message_batch(QueueUrl=queue.url, Entries=sent)
    assert caught.value.response["Error"]["Code"] == error.code
    metadata = caught.value.response["ResponseMetadata"]
    assert metadata["HTTPStatusCode"] == error.status
    fault_of = "Sender" if error.status < 500 else "Receiver"
    assert metadata["HTTPHeaders"]["x-amzn-query-error"] == f"{error.code};{fault_of}"
    other.sqs.send_message_batch(QueueUrl=other.url, Entries=sent)
    assert (queue.depth(), other.depth()) == ((0, 0), (1, 0))
    fault.remove()
    queue.sqs.send_message_batch(QueueUrl=queue.url, Entries=sent)
    assert queue.depth() == (1, 0)
    assert fault.injected == faults.counts["fail SendMessageBatch"] == 1


def test_throttling_is_the_error_that_sdks_know(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    faults.fail("ReceiveMessage", THROTTLED, times=1)
    with pytest.raises(queue.sqs.exceptions.RequestThrottled):
        queue.receive()
    assert queue.receive() == []


@pytest.mark.parametrize("action", ["DeleteMessageBatch", "ChangeMessageVisibilityBatch", "SendMessageBatch"])
def test_single_entries_fail_and_the_others_take_effect(
    faults: SqsFaults, upstream: MinistackServer, action: str
) -> None:
    queue = Queue(faults, upstream)
    faults.fail_entries(action, share=0.5)
    messages: list[MessageTypeDef] = []
    if action != "SendMessageBatch":
        queue.send(*map(str, range(10)))
        messages = queue.receive()
    if action == "DeleteMessageBatch":
        answer = queue.delete(messages)
    elif action == "SendMessageBatch":
        sent: Any = [{"Id": str(index), "MessageBody": str(index)} for index in range(10)]
        answer = queue.sqs.send_message_batch(QueueUrl=queue.url, Entries=sent)
        assert all(entry["MD5OfMessageBody"] for entry in answer["Successful"])
    else:
        back = entries(messages, VisibilityTimeout=0)
        answer = queue.sqs.change_message_visibility_batch(QueueUrl=queue.url, Entries=back)
    succeeded = {entry["Id"] for entry in answer["Successful"]}
    failed = {entry["Id"] for entry in answer["Failed"]}
    assert succeeded
    assert failed
    assert succeeded | failed == {str(index) for index in range(10)}
    assert not succeeded & failed
    assert {(one["Code"], one["SenderFault"]) for one in answer["Failed"]} == {("InternalError", False)}
    assert faults.counts == Counter({f"fail entry of {action}": len(failed)})
    waiting, in_flight = queue.depth()
    if action == "DeleteMessageBatch":
        assert (waiting, in_flight) == (0, len(failed))
    elif action == "SendMessageBatch":
        assert (waiting, in_flight) == (len(succeeded), 0)
    else:
        assert (waiting, in_flight) == (len(succeeded), len(failed))


def test_all_entries_fail(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    queue.send("a", "b")
    faults.fail_entries("DeleteMessageBatch", ACCESS_DENIED)
    answer = queue.delete(queue.receive())
    assert [(one["Id"], one["Code"], one["SenderFault"]) for one in answer["Failed"]] == [
        ("0", "AccessDenied", True),
        ("1", "AccessDenied", True),
    ]
    assert queue.depth() == (0, 2)


def test_a_lost_answer_took_effect(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    lost = faults.lose("*", times=3)
    assert queue.receive() == []  # nothing to lose
    assert lost.injected == 0
    with pytest.raises(ConnectionClosedError):
        queue.sqs.send_message_batch(QueueUrl=queue.url, Entries=[{"Id": "a", "MessageBody": "b"}])
    assert queue.depth(queue.direct) == (1, 0)
    with pytest.raises(ConnectionClosedError):
        queue.receive()
    assert queue.depth(queue.direct) == (0, 1)  # invisible, and nobody has it
    queue.send("c")
    messages = queue.direct.receive_message(QueueUrl=queue.url)["Messages"]
    with pytest.raises(ConnectionClosedError):
        queue.delete(messages)
    assert queue.depth() == (0, 1)
    assert faults.counts == Counter(
        {"lose SendMessageBatch": 1, "lose ReceiveMessage": 1, "lose DeleteMessageBatch": 1}
    )


def test_a_silent_call_has_no_effect(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    queue.send("a")
    messages = queue.receive()
    faults.hang("ChangeMessageVisibilityBatch", 0.6)
    back = entries(messages, VisibilityTimeout=0)
    with pytest.raises(ReadTimeoutError):
        connect(faults.endpoint_url, 0.2).change_message_visibility_batch(QueueUrl=queue.url, Entries=back)
    started = time.monotonic()
    with pytest.raises(ConnectionClosedError):
        queue.sqs.change_message_visibility_batch(QueueUrl=queue.url, Entries=back)
    assert time.monotonic() - started > 0.5
    assert queue.depth() == (0, 1)
    assert faults.counts == Counter({"hang ChangeMessageVisibilityBatch": 2})


def test_a_slow_call_took_effect(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    queue.send("a")
    slow = faults.delay("ReceiveMessage", 0.4, times=2)
    with pytest.raises(ReadTimeoutError):
        connect(faults.endpoint_url, 0.2).receive_message(QueueUrl=queue.url)
    assert queue.depth() == (0, 1)
    started = time.monotonic()
    assert queue.receive() == []
    assert time.monotonic() - started > 0.35
    assert slow.injected == 2


def test_shares_are_kept_and_follow_from_the_seed(upstream: MinistackServer) -> None:
    def run(seed: int, traffic: int) -> list[bool]:
        answers = []
        with SqsFaults(upstream.endpoint_url, seed) as faults:
            queue = Queue(faults, upstream)
            faults.fail("GetQueueAttributes", share=0.3)
            faults.delay("SendMessage", 0, share=0.5)
            for index in range(100):
                if index % traffic == 0:  # which changes nothing: it draws from another generator
                    queue.sqs.send_message(QueueUrl=queue.url, MessageBody="a")
                try:
                    queue.depth()
                    answers.append(True)
                except ClientError:
                    answers.append(False)
        return answers

    first = run(3, traffic=3)
    assert first == run(3, traffic=5)
    assert first != run(4, traffic=3)
    assert 15 <= first.count(False) <= 45


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda faults: faults.fail("DeleteMessagesBatch"), "pattern of one of"),
        (lambda faults: faults.fail("DeleteMessage", share=0), "share above 0"),
        (lambda faults: faults.fail_entries("DeleteMessage"), "batch action"),
        (lambda faults: faults.reorder(window=1), "at least 2"),
    ],
    ids=["action", "share", "entries", "window"],
)
def test_a_fault_that_could_never_happen_is_refused(make: Callable[[SqsFaults], object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make(SqsFaults("http://127.0.0.1:1", seed=1))


# Duplicates


def test_a_copy_comes_while_the_message_is_in_flight(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    attributes: Any = {"a": {"DataType": "Binary", "BinaryValue": b"\0\xff"}}
    queue.sqs.send_message(QueueUrl=queue.url, MessageBody="é", MessageAttributes=attributes)
    faults.duplicate(within_s=0, queue=queue.name)
    (first,) = queue.receive(MessageAttributeNames=["All"])
    assert queue.depth() == (1, 1)
    assert faults.pending == 1
    (second,) = queue.receive(MessageAttributeNames=["All"], WaitTimeSeconds=5)
    assert queue.depth() == (0, 2)
    assert first["ReceiptHandle"] != second["ReceiptHandle"]
    for key in ("MessageId", "Body", "MD5OfBody", "MessageAttributes", "MD5OfMessageAttributes"):
        assert first[key] == second[key]
    assert [one["Attributes"].pop("ApproximateReceiveCount") for one in (first, second)] == ["1", "2"]
    assert first["Attributes"] == second["Attributes"]
    assert queue.delete([first, second])["Failed"] == []
    assert queue.depth() == (0, 0)
    assert queue.receive() == []
    assert (faults.counts, faults.pending) == (Counter({"duplicate in flight": 1}), 0)


def test_a_copy_ends_a_long_poll_that_was_there_before_it(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    faults.duplicate(within_s=0)
    with ThreadPoolExecutor(2) as pool:
        polls = [pool.submit(queue.receive, WaitTimeSeconds=20) for _ in range(2)]
        until(lambda: len(faults._tasks) == 2)  # both have a connection, and so a call under way
        started = time.monotonic()
        queue.send("a")
        assert [bodies(poll.result()) for poll in polls] == [["a"], ["a"]]
        assert time.monotonic() - started < 10
    assert faults.counts == Counter({"duplicate in flight": 1})


def test_a_copy_comes_after_the_message_was_deleted(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    queue.send(*map(str, range(10)))
    fault = faults.duplicate(within_s=0.2)
    messages = queue.receive()
    for message in messages[:5]:
        queue.sqs.delete_message(QueueUrl=queue.url, ReceiptHandle=message["ReceiptHandle"])
    queue.delete(messages[5:])
    assert queue.depth() == (10, 0)
    assert sorted(bodies(consume(queue))) == sorted(map(str, range(10)))
    assert faults.counts == Counter({"duplicate of deleted": 10})
    assert fault.injected == 10


def test_a_copy_has_a_visibility_timeout_and_handles_of_its_own(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream, VisibilityTimeout="1")
    queue.send("a")
    faults.duplicate(within_s=0, times=1)
    queue.delete(queue.receive())
    (first,) = queue.receive(VisibilityTimeout=600)
    assert queue.depth() == (0, 1)
    back: Any = entries([first], VisibilityTimeout=0)
    assert queue.sqs.change_message_visibility_batch(QueueUrl=queue.url, Entries=back)["Failed"] == []
    (second,) = queue.receive()
    assert queue.receive() == []  # in flight for the queue's timeout
    (third,) = queue.receive(WaitTimeSeconds=5)
    counts = [one["Attributes"]["ApproximateReceiveCount"] for one in (first, second, third)]
    assert counts == ["2", "3", "4"]
    assert len({one["ReceiptHandle"] for one in (first, second, third)}) == 3
    stale: Any = entries([second], VisibilityTimeout=0)
    (failed,) = queue.sqs.change_message_visibility_batch(QueueUrl=queue.url, Entries=stale)["Failed"]
    assert failed["Code"] == "ReceiptHandleIsInvalid"
    with pytest.raises(queue.sqs.exceptions.ReceiptHandleIsInvalid):
        queue.sqs.change_message_visibility(
            QueueUrl=queue.url, ReceiptHandle=second["ReceiptHandle"], VisibilityTimeout=0
        )
    queue.sqs.change_message_visibility(QueueUrl=queue.url, ReceiptHandle=third["ReceiptHandle"], VisibilityTimeout=600)
    queue.delete([second])  # says yes and does nothing, as SQS with an old handle
    assert queue.depth() == (0, 1)
    queue.delete([third])
    assert queue.depth() == (0, 0)


def test_copies_outlive_clear_and_die_in_a_purge(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    queue.send("a", "b")
    faults.duplicate(within_s=0)
    queue.receive()
    faults.clear()
    assert sorted(bodies(queue.receive(WaitTimeSeconds=5))) == ["a", "b"]
    assert faults.pending == 2
    queue.sqs.purge_queue(QueueUrl=queue.url)
    assert (faults.pending, queue.depth()) == (0, (0, 0))


def test_attributes_are_those_asked_for(faults: SqsFaults, upstream: MinistackServer) -> None:
    """Copies and messages held back were fetched by somebody who may have asked for other attributes."""
    queue = Queue(faults, upstream)
    value: Any = {"DataType": "String", "StringValue": "v"}
    queue.sqs.send_message(
        QueueUrl=queue.url, MessageBody="b", MessageAttributes=dict.fromkeys(("a.1", "a.2", "b"), value)
    )
    asked: list[Any] = [
        {"MessageSystemAttributeNames": []},
        {"MessageSystemAttributeNames": ["SentTimestamp"], "MessageAttributeNames": ["a.*"]},
        {"AttributeNames": ["All"], "MessageAttributeNames": ["b", "c"]},
        {"MessageAttributeNames": [".*"]},
    ]
    plain = [
        queue.direct.receive_message(QueueUrl=queue.url, VisibilityTimeout=0, **arguments)["Messages"][0]
        for arguments in asked
    ]
    faults.duplicate(within_s=0, queue=queue.name)
    shaped = [
        queue.sqs.receive_message(QueueUrl=queue.url, VisibilityTimeout=0, **arguments)["Messages"][0]
        for arguments in asked
    ]
    for one, other in zip(plain, shaped, strict=True):
        assert one.keys() - {"MD5OfMessageAttributes"} == other.keys() - {"MD5OfMessageAttributes"}
        assert one.get("MessageAttributes") == other.get("MessageAttributes")
        assert one.get("Attributes", {}).keys() == other.get("Attributes", {}).keys()


# Order


def test_messages_come_in_another_order_each_once(faults: SqsFaults, upstream: MinistackServer) -> None:
    queue = Queue(faults, upstream)
    sent = [str(index) for index in range(200)]
    queue.send(*sent)
    assert faults.reorder(window=60).injected == 0
    first = queue.receive()
    waiting, in_flight = queue.depth()
    assert (waiting, in_flight) == (190, 10)  # what is held back waits
    queue.delete(first)
    got = bodies(first) + bodies(consume(queue))
    assert got != sent
    assert sorted(got) == sorted(sent)
    assert faults.counts["reorder message"] > 100
    assert max(abs(index - int(body)) for index, body in enumerate(got)) > 20


def test_a_message_held_back_has_its_whole_visibility_timeout_and_one_receive(
    faults: SqsFaults, upstream: MinistackServer
) -> None:
    queue = Queue(faults, upstream, VisibilityTimeout="1")
    queue.send(*map(str, range(30)))
    faults.reorder(window=30, within_s=60)
    got = queue.receive()
    until(lambda: queue.depth() == (30, 0))  # the timeout of the ten is over, the twenty were not touched
    assert queue.depth(queue.direct) == (10, 20)
    faults.clear()
    rest: list[MessageTypeDef] = []
    while len(rest) < 20:
        batch = queue.receive(VisibilityTimeout=60)
        assert batch
        rest += batch
    assert queue.delete(rest[:10])["Failed"] == queue.delete(rest[10:])["Failed"] == []
    assert {one["Attributes"]["ApproximateReceiveCount"] for one in rest} == {"1"}
    assert sorted([*bodies(got), *bodies(rest)], key=int) == list(map(str, range(30)))
    (again, *_) = queue.receive()
    assert again["Attributes"]["ApproximateReceiveCount"] == "2"


def test_few_messages_are_reordered_too_and_a_long_poll_waits_for_them(
    faults: SqsFaults, upstream: MinistackServer
) -> None:
    queue = Queue(faults, upstream)
    faults.reorder(within_s=0.4)
    got: list[str] = []
    while not faults.counts["reorder message"]:
        queue.send("1", "2", "3")
        for _ in range(3):
            (one,) = queue.receive(MaxNumberOfMessages=1, WaitTimeSeconds=5)
            queue.delete([one])
            got.append(one["Body"])
    assert sorted(got) == sorted(["1", "2", "3"] * (len(got) // 3))
    assert queue.depth() == (0, 0)


def test_everything_at_once_loses_nothing(faults: SqsFaults, upstream: MinistackServer) -> None:
    """Consumers that do what the event source does: what is received is deleted, and comes again if that fails."""
    queue = Queue(faults, upstream, VisibilityTimeout="1")
    sent = [str(index) for index in range(300)]
    queue.send(*sent)
    faults.duplicate(0.5, within_s=0.5)
    faults.reorder(within_s=0.2)
    for action in ("ReceiveMessage", "DeleteMessageBatch"):
        faults.fail(action, share=0.1)
        faults.lose(action, share=0.1)
    faults.fail_entries("DeleteMessageBatch", share=0.1)
    faults.delay("*", 0.01, share=0.5)
    seen: Counter[str] = Counter()
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                messages = queue.receive()
                seen.update(bodies(messages))
                if messages:
                    queue.delete(messages)
            except (ClientError, ConnectionClosedError):
                continue

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work) for _ in range(4)]
        until(lambda: len(seen) == 300)
        faults.clear()
        until(lambda: queue.depth() == (0, 0))
        done.set()
        for worker in workers:
            worker.result()
    assert faults.pending == 0
    assert set(seen) == set(sent)
    assert sum(seen.values()) > 300
    actions = ("ReceiveMessage", "DeleteMessageBatch")
    kinds = {f"{kind} {action}" for kind in ("fail", "lose", "delay") for action in actions}
    kinds |= {"fail entry of DeleteMessageBatch", "reorder message", "duplicate in flight", "duplicate of deleted"}
    assert kinds <= faults.counts.keys()


def test_the_endpoint_is_one_of_this_machine(faults: SqsFaults) -> None:
    assert urlsplit(faults.endpoint_url).hostname == "127.0.0.1"
