"""The local SQS server: starts, fails clearly, and answers as the released ministack does however deep its queues."""

import importlib.metadata
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from spillway.stack import ministack_queues, ports, reaper, sqs_server
from spillway.stack.errors import StackError
from spillway.stack.processes import Processes
from spillway.stack.sqs_server import MinistackServer

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as owner:
        yield owner


@pytest.fixture(scope="module")
def server(processes: Processes) -> Iterator[MinistackServer]:
    with MinistackServer(processes) as running:
        yield running


@pytest.fixture(scope="module")
def released(processes: Processes) -> Iterator[MinistackServer]:
    with MinistackServer(processes, as_released=True) as running:
        yield running


def connect(server: MinistackServer) -> "SQSClient":
    return boto3.client(
        "sqs",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(retries={"total_max_attempts": 1}),
    )


def listening_ports(pid: int) -> set[str]:
    rows = (line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines())
    inodes = {row[9]: row[1] for row in rows if row[3] == "0A"}
    links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return {address for inode, address in inodes.items() if f"socket:[{inode}]" in links}


def test_a_message_goes_through(server: MinistackServer) -> None:
    sqs = connect(server)
    url = sqs.create_queue(QueueName="through")["QueueUrl"]
    assert url.startswith(server.endpoint_url)
    sqs.send_message(QueueUrl=url, MessageBody="é", MessageAttributes={"a": {"DataType": "String", "StringValue": "b"}})
    (message,) = sqs.receive_message(QueueUrl=url, AttributeNames=["All"], MessageAttributeNames=["All"])["Messages"]
    assert message["Body"] == "é"
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert message["MessageAttributes"]["a"]["StringValue"] == "b"
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    assert "Messages" not in sqs.receive_message(QueueUrl=url)


def test_it_listens_on_the_loopback_only_and_once(server: MinistackServer) -> None:
    assert server._popen is not None
    assert listening_ports(server._popen.pid) == {f"0100007F:{server.port:04X}"}
    assert ports.listens(server._popen.pid, server.port)
    assert not ports.listens(server._popen.pid, server.port + 1)


def test_stop_leaves_nothing(processes: Processes) -> None:
    with MinistackServer(processes) as server:
        assert server._popen is not None
        pid, directory = server._popen.pid, server._directory
        server.start()  # again: no harm
        assert server._popen.pid == pid
    assert not server.running
    assert reaper.read_process(pid) is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((ports.HOST, server.port))
    server.start()
    assert server._directory == directory
    assert connect(server).list_queues().get("QueueUrls", []) == []
    server.stop()


def test_a_given_port_is_used_and_a_taken_one_is_named(processes: Processes) -> None:
    with socket.create_server((ports.HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StackError, match=rf"^The SQS server cannot listen on 127\.0\.0\.1:{port}: Address already"):
            MinistackServer(processes, port).start()
    with MinistackServer(processes, port) as server:
        assert server.endpoint_url == f"http://127.0.0.1:{port}"


def test_a_port_taken_at_the_last_moment_is_tried_anew(
    processes: Processes, server: MinistackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [server.port, ports.free_port()]
    left = iter(given)
    monkeypatch.setattr(ports, "free_port", lambda: next(left))
    with MinistackServer(processes) as second:
        assert second.port == given[1]


def test_a_server_that_dies_shows_the_end_of_its_log(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqs_server, "_PASSED_ON", ("PATH", "PYTHONHOME"))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(StackError, match="SQS server did not start") as caught:
        MinistackServer(processes).start()
    assert "encodings" in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_missing_ministack_is_said(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqs_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StackError, match=r"not installed for this Python.*ministack"):
        MinistackServer(processes).start()


class Player:
    """Plays operations on a server and tells what it answered, without what is random in it."""

    def __init__(self, server: MinistackServer, suffix: str) -> None:
        self.sqs = connect(server)
        self.urls: list[str] = []
        self.handles: list[str] = ["never given"]
        for fifo in (False, True):
            fifo_attributes = {"FifoQueue": "true"} if fifo else {}
            end = f"{suffix}.fifo" if fifo else suffix
            arn = None
            # A dead-letter queue with a dead-letter queue: counts travel along.
            for name, limit in (("grave", 0), ("dead", 4), ("main", 2)):
                policy = {"RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": limit})}
                attributes: Any = fifo_attributes | (policy if arn else {})
                url = self.sqs.create_queue(QueueName=f"{name}-{end}", Attributes=attributes)["QueueUrl"]
                arn = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
                self.urls.append(url)

    def play(self, operation: str, queue: int, seed: int) -> object:
        try:
            return getattr(self, operation)(self.urls[queue], random.Random(seed))
        except ClientError as error:
            return error.response["Error"]["Code"]

    def send(self, url: str, rng: random.Random) -> object:
        entries: list[Any] = []
        for n in range(rng.randint(1, 10)):
            body = f"{rng.randrange(10**6)}"
            fifo = {"MessageGroupId": f"g{rng.randrange(4)}", "MessageDeduplicationId": body}
            entries.append({"Id": str(n), "MessageBody": body, **(fifo if url.endswith("fifo") else {})})
        return [e["Id"] for e in self.sqs.send_message_batch(QueueUrl=url, Entries=entries)["Successful"]]

    def receive(self, url: str, rng: random.Random) -> object:
        answer = self.sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=rng.randint(1, 10),
            VisibilityTimeout=rng.choice([0, 0, 600]),
            AttributeNames=["ApproximateReceiveCount", "MessageGroupId", "DeadLetterQueueSourceArn"],
        )
        messages = answer.get("Messages", [])
        self.handles += [message["ReceiptHandle"] for message in messages]
        return [(message["Body"], without_name(message.get("Attributes", {}))) for message in messages]

    def delete(self, url: str, rng: random.Random) -> object:
        handles = rng.choices(range(max(0, len(self.handles) - 30), len(self.handles)), k=rng.randint(1, 10))
        entries: Any = [{"Id": str(n), "ReceiptHandle": self.handles[handle]} for n, handle in enumerate(handles)]
        answer = self.sqs.delete_message_batch(QueueUrl=url, Entries=entries)
        return [e["Id"] for e in answer.get("Successful", [])], answer.get("Failed", [])

    def show(self, url: str, rng: random.Random) -> object:
        handles = rng.choices(range(len(self.handles)), k=rng.randint(1, 10))
        entries: Any = [
            {"Id": str(n), "ReceiptHandle": self.handles[handle], "VisibilityTimeout": rng.choice([0, 0, 0, 600])}
            for n, handle in enumerate(handles)
        ]
        answer = self.sqs.change_message_visibility_batch(QueueUrl=url, Entries=entries)
        return [e["Id"] for e in answer.get("Successful", [])], answer.get("Failed", [])

    def counts(self, url: str, rng: random.Random) -> object:
        answer = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return {name: value for name, value in answer.items() if name.startswith("Approximate")}


def without_name(attributes: Any) -> dict[str, str]:
    return {name: value.split("-")[0] for name, value in attributes.items()}


@pytest.mark.parametrize("seed", range(4))
def test_it_answers_as_the_released_ministack(server: MinistackServer, released: MinistackServer, seed: int) -> None:
    ours, theirs = Player(server, f"r{seed}"), Player(released, f"r{seed}")
    rng = random.Random(seed)
    moved = 0
    for step in range(250):
        operation = rng.choices(["send", "receive", "delete", "show", "counts"], [2, 5, 2, 1, 1])[0]
        queue = rng.choice([2, 2, 2, 5, 5, 5, 1, 4, 0, 3])
        if operation == "send":
            queue = rng.choice([2, 5])
        ask = operation, queue, rng.randrange(10**9)
        answer = ours.play(*ask)
        assert answer == theirs.play(*ask), f"step {step}: {ask}"
        moved += operation == "receive" and queue in (0, 3) and bool(answer)
    assert moved, "no message went through both dead-letter queues: the test compares too little"


def test_the_queues_made_cheap_are_the_ones_that_run(server: MinistackServer, released: MinistackServer) -> None:
    """Lost on an upgrade of ministack, they would only be noticed as slowness (bench/stack.py measures both)."""
    assert importlib.metadata.version("ministack") == ministack_queues.WRITTEN_FOR
    assert ministack_queues.__file__.encode() in _command_line(server)
    assert ministack_queues.__file__.encode() not in _command_line(released)


def _command_line(server: MinistackServer) -> list[bytes]:
    assert server._popen is not None
    return Path(f"/proc/{server._popen.pid}/cmdline").read_bytes().split(b"\0")
