"""The event source emulator against a real SQS server; only the function is a fake, run in this process."""

import json
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from spillway.stack import event_source
from spillway.stack.event_source import EventSourceMapping, MappingConfig

REGION = "us-east-1"
Event = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """An invocation's outcome, shaped like `ExecutionEnvironment`'s."""

    kind: str = "response"
    body: bytes = b'{"batchItemFailures": []}'
    duration_s: float = 0.0
    cold: bool = False


def failures(*records: Event) -> Answer:
    return Answer(
        body=json.dumps({"batchItemFailures": [{"itemIdentifier": r["messageId"]} for r in records]}).encode()
    )


@dataclass
class Function:
    """What the function saw, whatever it is made to do; makes its own environments."""

    handle: Callable[[list[Event]], Answer] = lambda records: Answer()
    calls: list[tuple[float, list[Event]]] = field(default_factory=list)
    payload_bytes: list[int] = field(default_factory=list)
    made: int = 0
    closed: int = 0
    running: int = 0
    peak: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self) -> "FakeEnvironment":
        self.made += 1
        return FakeEnvironment(self)

    @property
    def bodies(self) -> list[str]:
        return [record["body"] for _, records in self.calls for record in records]

    @property
    def sizes(self) -> list[int]:
        return [len(records) for _, records in self.calls]


class FakeEnvironment:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.busy = threading.Lock()
        self.end = threading.Event()

    def invoke(self, payload: bytes) -> Answer:
        assert self.busy.acquire(blocking=False), "expected one invocation at a time in an environment"
        function = self.function
        records = json.loads(payload)["Records"]
        with function.lock:
            function.calls.append((time.monotonic(), records))
            function.payload_bytes.append(len(payload))
            function.running += 1
            function.peak = max(function.peak, function.running)
        try:
            return function.handle(records)
        finally:
            with function.lock:
                function.running -= 1
            self.busy.release()

    def close(self) -> None:
        self.function.closed += 1
        self.end.set()


@dataclass
class Queue:
    client: Any
    name: str
    url: str
    arn: str

    def send(self, *bodies: str, **entry: Any) -> None:
        for start in range(0, len(bodies), 10):
            entries = [{"Id": str(n), "MessageBody": b, **entry} for n, b in enumerate(bodies[start : start + 10])]
            assert not self.client.send_message_batch(QueueUrl=self.url, Entries=entries).get("Failed")

    def depth(self) -> tuple[int, int]:
        """Messages visible, and invisible."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return int(attributes[names[0]]), int(attributes[names[1]])


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"expected within {timeout_s} s what never came"
        time.sleep(0.02)


def make_client(endpoint: str) -> Any:
    return boto3.client(
        "sqs",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(max_pool_connections=50, retries={"mode": "standard", "total_max_attempts": 1}),
    )


@pytest.fixture(scope="module")
def client(sqs_endpoint: str) -> Iterator[Any]:
    client = make_client(sqs_endpoint)
    yield client
    client.close()


@pytest.fixture
def new_queue(client: Any) -> Callable[..., Queue]:
    def make(*, fifo: bool = False, visibility_s: int = 30, **attributes: str) -> Queue:
        name = f"q-{uuid.uuid4().hex[:8]}" + (".fifo" if fifo else "")
        fixed = {"VisibilityTimeout": str(visibility_s)} | ({"FifoQueue": "true"} if fifo else {})
        url = client.create_queue(QueueName=name, Attributes=fixed | attributes)["QueueUrl"]
        return Queue(client, name, url, f"arn:aws:sqs:{REGION}:000000000000:{name}")

    return make


@pytest.fixture(scope="module")
def stops() -> Iterator[list[threading.Thread]]:
    """Mappings stop in the background, for each waits for its last poll to end."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def start(sqs_endpoint: str, stops: list[threading.Thread]) -> Iterator[Callable[..., EventSourceMapping]]:
    started: list[tuple[EventSourceMapping, Any]] = []

    def make(
        queue: Queue,
        function: Function,
        hook: Callable[[Any], None] = lambda client: None,
        endpoint: str = sqs_endpoint,
        **values: Any,
    ) -> EventSourceMapping:
        values = {"report_batch_item_failures": True, "function_timeout_s": 1, "ramp": False} | values
        fifo = queue.name.endswith(".fifo")
        config = MappingConfig(queue_url=queue.url, queue_arn=queue.arn, region=REGION, fifo=fifo, **values)
        own = make_client(endpoint)
        hook(own)
        mapping = EventSourceMapping(config, lambda: own, function.environment)
        mapping.start()
        started.append((mapping, own))
        return mapping

    def stop(mapping: EventSourceMapping, own: Any) -> None:
        mapping.stop(drain=False, timeout_s=3)
        own.close()

    yield make
    for mapping, own in started:
        thread = threading.Thread(target=stop, args=(mapping, own))
        thread.start()
        stops.append(thread)


def numbers(count: int) -> list[str]:
    return [str(n) for n in range(count)]


# Batches


def test_a_batch_gathers_several_receives_and_closes_at_batch_size(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(), Function()
    queue.send(*numbers(60))
    mapping = start(queue, function, batch_size=25, window_s=1, maximum_concurrency=5)
    eventually(lambda: mapping.stats.succeeded == 60 and mapping.stats.in_flight_messages == 0)
    assert function.sizes == [25, 25, 10]
    assert sorted(function.bodies, key=int) == numbers(60)
    assert queue.depth() == (0, 0)


def test_the_window_counts_from_the_first_message(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(), Function()
    mapping = start(queue, function, batch_size=100, window_s=1)
    time.sleep(0.7)  # waiting for a message is not part of its window
    first_sent = time.monotonic()
    queue.send("one")
    eventually(lambda: mapping.stats.gathering == 1)
    queue.send("two", "three")
    eventually(lambda: function.sizes == [3])
    assert 0.95 < function.calls[0][0] - first_sent < 1.8


def test_without_a_window_a_lone_message_goes_at_once(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(), Function()
    start(queue, function)
    sent = time.monotonic()
    queue.send("one")
    eventually(lambda: function.sizes == [1])
    assert function.calls[0][0] - sent < 0.6


def test_the_payload_stays_within_six_mebibytes_and_nothing_is_lost(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(), Function()
    for n in range(9):
        queue.send(f"{n}" + "x" * 1_000_000)
    mapping = start(queue, function, batch_size=100, window_s=1)
    eventually(lambda: mapping.stats.succeeded == 9)
    assert function.sizes == [6, 3]
    assert sorted(body[0] for body in function.bodies) == numbers(9)
    assert max(function.payload_bytes) <= 6_291_456


def test_records_carry_what_the_server_knows(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(fifo=True), Function()
    queue.client.send_message(  # ministack drops the trace header of a batch's entries
        QueueUrl=queue.url,
        MessageBody="Grüße",
        MessageGroupId="g1",
        MessageDeduplicationId="d1",
        MessageAttributes={
            "text": {"DataType": "String", "StringValue": "x"},
            "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
        },
        MessageSystemAttributes={"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-5759e988-bd862e3f"}},
    )
    start(queue, function)
    eventually(lambda: function.sizes == [1])
    record = function.calls[0][1][0]
    assert set(record.pop("attributes").items()) >= {
        ("ApproximateReceiveCount", "1"),
        ("MessageGroupId", "g1"),
        ("MessageDeduplicationId", "d1"),
        ("AWSTraceHeader", "Root=1-5759e988-bd862e3f"),
    }
    lists: dict[str, list[str]] = {"stringListValues": [], "binaryListValues": []}
    assert record.pop("messageAttributes") == {
        "text": {"stringValue": "x", "dataType": "String"} | lists,
        "bytes": {"binaryValue": "AP8=", "dataType": "Binary"} | lists,
    }
    assert len(record.pop("md5OfBody")) == len(record.pop("md5OfMessageAttributes")) == 32
    assert record.pop("messageId")
    assert record.pop("receiptHandle")
    assert record == {
        "body": "Grüße",
        "eventSource": "aws:sqs",
        "eventSourceARN": queue.arn,
        "awsRegion": REGION,
    }


# Concurrency


def sleeping(seconds: float) -> Callable[[list[Event]], Answer]:
    def handle(records: list[Event]) -> Answer:
        time.sleep(seconds)
        return Answer()

    return handle


@pytest.mark.parametrize(("batch_size", "window_s", "messages"), [(1, 0, 40), (20, 1, 200)])
def test_concurrency_reaches_its_maximum_and_never_passes_it(
    new_queue: Any, start: Any, batch_size: int, window_s: int, messages: int
) -> None:
    queue, function = new_queue(), Function(sleeping(0.15))
    queue.send(*numbers(messages))
    mapping = start(queue, function, batch_size=batch_size, window_s=window_s, maximum_concurrency=4)
    eventually(lambda: mapping.stats.succeeded == messages)
    assert function.peak == mapping.stats.peak_invoking == 4
    assert function.made == mapping.stats.environments == 4  # one for each batch in flight, then used again


def test_receiving_pauses_while_no_slot_is_free(new_queue: Any, start: Any) -> None:
    queue, go = new_queue(), threading.Event()
    function = Function(lambda records: Answer() if go.wait(10) else Answer("crash"))
    queue.send(*numbers(60))
    mapping = start(queue, function, batch_size=10, maximum_concurrency=3)
    eventually(lambda: function.running == 3)
    time.sleep(0.3)
    assert queue.depth() == (30, 30)
    go.set()
    eventually(lambda: mapping.stats.succeeded == 60)


def test_the_ramp_starts_at_five_and_rises_by_five_a_second(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(), Function(sleeping(0.3))
    queue.send(*numbers(80))
    mapping = start(queue, function, batch_size=1, ramp=True)
    eventually(lambda: function.running == 5)
    assert function.peak == 5
    eventually(lambda: mapping.stats.succeeded == 80)
    assert 7 <= function.peak <= 25


def test_an_idle_mapping_polls_once_a_second_and_starts_nothing(new_queue: Any, start: Any) -> None:
    function = Function()
    mapping = start(new_queue(), function)
    time.sleep(2.2)
    assert 1 <= mapping.stats.receives <= 3
    assert mapping.stats.empty_receives == mapping.stats.receives
    assert function.made == mapping.stats.environments == 0


@pytest.mark.parametrize("fifo", [False, True])
def test_receivers_work_in_parallel_only_while_there_is_a_backlog(new_queue: Any, start: Any, fifo: bool) -> None:
    queue, polling, peak = new_queue(fifo=fifo), 0, 0
    guard = threading.Lock()

    def hook(client: Any) -> None:
        receive = client.receive_message

        def counting(**arguments: Any) -> Any:
            nonlocal polling, peak
            with guard:
                polling += 1
                peak = max(peak, polling)
            try:
                return receive(**arguments)
            finally:
                with guard:
                    polling -= 1

        client.receive_message = counting

    for n in range(60):
        extra = {"MessageGroupId": f"g{n}", "MessageDeduplicationId": str(n)} if fifo else {}
        queue.send(str(n), **extra)
    mapping = start(queue, Function(), hook, maximum_concurrency=10)
    eventually(lambda: mapping.stats.empty_receives > 0)
    assert peak == (1 if fifo else event_source.RECEIVERS)
    eventually(lambda: polling <= 1)  # the others have had their last, empty poll
    peak = 0
    time.sleep(1.2)
    assert peak == 1


def test_slow_trickle_reuses_one_environment(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(), Function()
    mapping = start(queue, function)
    for n in range(5):
        queue.send(str(n))
        eventually(lambda n=n: mapping.stats.succeeded == n + 1)
    assert function.made == 1


# Outcomes


def test_only_listed_messages_come_back_and_only_after_the_visibility_timeout(new_queue: Any, start: Any) -> None:
    def handle(records: list[Event]) -> Answer:
        return failures(*(r for r in records if r["body"] == "3" and r["attributes"]["ApproximateReceiveCount"] == "1"))

    queue, function = new_queue(visibility_s=1), Function(handle)
    queue.send(*numbers(6))
    mapping = start(queue, function)
    eventually(lambda: mapping.stats.succeeded == 6)
    assert function.bodies[:-1] == numbers(6)
    assert function.bodies[-1] == "3"
    assert 0.9 < function.calls[-1][0] - function.calls[0][0] < 2.5
    assert mapping.stats.failed_by_reason == {"partial": 1}
    eventually(lambda: queue.depth() == (0, 0))


def raising(records: list[Event]) -> Answer:
    raise OSError("the emulator is gone")


@pytest.mark.parametrize(
    ("handle", "report", "deleted", "reason"),
    [
        pytest.param(lambda records: Answer("error", b'{"errorType": "X"}'), True, False, "error", id="exception"),
        pytest.param(lambda records: Answer("error", b"{}"), False, False, "error", id="exception, not reporting"),
        pytest.param(lambda records: Answer("timeout", b"Task timed out"), True, False, "timeout", id="timeout"),
        pytest.param(lambda records: Answer("crash", b""), True, False, "crash", id="crash"),
        pytest.param(raising, True, False, "crash", id="environment broke"),
        pytest.param(lambda records: Answer(body=b"oops"), True, False, "invalid_json", id="invalid JSON"),
        pytest.param(lambda records: failures({"messageId": "x"}), True, False, "unknown_identifier", id="unknown id"),
        pytest.param(lambda records: failures({"messageId": None}), True, False, "bad_identifier", id="null id"),
        pytest.param(lambda records: Answer(body=b"null"), True, True, "unreported", id="forgotten return"),
        pytest.param(lambda records: failures(*records), False, True, "success", id="failures, not reporting"),
    ],
)
def test_what_an_outcome_deletes(
    *, new_queue: Any, start: Any, handle: Any, report: bool, deleted: bool, reason: str
) -> None:
    queue, function = new_queue(), Function(handle)
    queue.send(*numbers(3))
    mapping = start(queue, function, report_batch_item_failures=report)
    eventually(lambda: mapping.stats.invocations == 1 and mapping.stats.in_flight_messages == 0)
    assert queue.depth() == ((0, 0) if deleted else (0, 3))
    assert (mapping.stats.succeeded, mapping.stats.failed) == ((3, 0) if deleted else (0, 3))
    assert mapping.stats.batches_by_reason == {reason: 1}


def test_an_environment_that_raises_is_replaced(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(visibility_s=1), Function(raising)
    queue.send("one")
    mapping = start(queue, function)
    eventually(lambda: function.closed == 1)
    function.handle = lambda records: Answer()
    eventually(lambda: mapping.stats.succeeded == 1)
    assert function.made == 2
    assert mapping.stats.last_error == "execution environment: OSError: the emulator is gone"


def test_environments_that_cannot_be_made_do_not_burn_through_the_queue(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(), Function()

    def broken() -> FakeEnvironment:
        raise OSError("no emulator")

    function.environment = broken  # type: ignore[method-assign]
    queue.send(*numbers(100))
    mapping = start(queue, function, batch_size=1, maximum_concurrency=2)
    eventually(lambda: mapping.stats.invocations >= 4)
    time.sleep(0.7)
    assert mapping.stats.invocations < 60
    assert mapping.stats.last_error == "execution environment: OSError: no emulator"


def test_messages_that_keep_failing_reach_the_dead_letter_queue(new_queue: Any, start: Any) -> None:
    dead = new_queue()
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 2})
    queue = new_queue(visibility_s=1, RedrivePolicy=policy)
    function = Function(lambda records: failures(*(r for r in records if r["body"] == "bad")))
    queue.send("good", "bad")
    start(queue, function)
    eventually(lambda: dead.depth() == (1, 0))
    assert function.bodies.count("bad") == 2
    assert function.bodies.count("good") == 1
    assert queue.depth() == (0, 0)


# FIFO


def test_fifo_runs_one_batch_per_group_at_a_time_in_order(new_queue: Any, start: Any) -> None:
    queue = new_queue(fifo=True, visibility_s=1)
    done: dict[str, list[int]] = defaultdict(list)
    running: set[str] = set()
    overlaps: list[str] = []
    guard = threading.Lock()
    failed_once: set[str] = set()

    def handle(records: list[Event]) -> Answer:
        groups = {record["attributes"]["MessageGroupId"] for record in records}
        with guard:
            overlaps.extend(groups & running)
            running.update(groups)
        time.sleep(0.02)
        bad: dict[str, Event] = {}
        back = []
        for record in records:
            group = record["attributes"]["MessageGroupId"]
            if record["body"] == "5" and group in {"a", "b"} and group not in failed_once:
                failed_once.add(group)
                bad[group] = record
            if group in bad:
                back.append(record)  # the failed one, and all that follow in its group
            else:
                done[group].append(int(record["body"]))
        with guard:
            running.difference_update(groups)
        return failures(*back)

    function = Function(handle)
    for n in range(10):
        for group in "abcdefgh":
            queue.send(str(n), MessageGroupId=group, MessageDeduplicationId=f"{group}{n}")
    mapping = start(queue, function, batch_size=3, maximum_concurrency=5)
    eventually(lambda: mapping.stats.succeeded == 80, 20)
    assert overlaps == []
    assert dict(done) == {group: list(range(10)) for group in "abcdefgh"}
    assert failed_once == {"a", "b"}
    assert function.peak > 1
    assert max(function.sizes) == 3


def test_a_group_redelivered_during_its_own_batch_waits_for_it(new_queue: Any, start: Any) -> None:
    """The visibility timeout ends while the function still runs: SQS hands the group out again."""
    queue, go = new_queue(fifo=True, visibility_s=1), threading.Event()
    function = Function(lambda records: Answer() if go.wait(10) else Answer("crash"))
    queue.send("1", MessageGroupId="g", MessageDeduplicationId="1")
    queue.send("2", MessageGroupId="g", MessageDeduplicationId="2")
    mapping = start(queue, function, batch_size=2, maximum_concurrency=5)
    eventually(lambda: mapping.stats.received >= 4)
    assert (function.running, function.peak) == (1, 1)
    go.set()
    eventually(lambda: queue.depth() == (0, 0) and mapping.stats.in_flight_messages == 0)
    assert function.peak == 1
    assert mapping.stats.given_back >= 2


# A server that fails


def failing_entries(times: int, *, sender_fault: bool = False) -> Callable[[Any], None]:
    """Let DeleteMessageBatch fail the first entry of its first `times` calls, without reaching the server."""

    def hook(client: Any) -> None:
        delete, calls = client.delete_message_batch, []

        def partly(*, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803 - boto3's names
            calls.append(1)
            bad = Entries[:1] if len(calls) <= times else []
            good = Entries[len(bad) :]
            response = delete(QueueUrl=QueueUrl, Entries=good) if good else {}
            error = {"Code": "InternalError", "Message": "try again", "SenderFault": sender_fault}
            return {"Successful": response.get("Successful", []), "Failed": [{"Id": b["Id"], **error} for b in bad]}

        client.delete_message_batch = partly

    return hook


def test_entries_that_fail_to_be_deleted_are_tried_again(new_queue: Any, start: Any) -> None:
    queue, function = new_queue(), Function()
    queue.send(*numbers(10))
    mapping = start(queue, function, failing_entries(2))
    eventually(lambda: mapping.stats.in_flight_messages == 0 and queue.depth() == (0, 0))
    assert mapping.stats.undeleted == 0
    assert mapping.stats.last_error == "InternalError: try again"
    assert function.sizes == [10]


@pytest.mark.parametrize(("times", "sender_fault"), [(4, False), (1, True)])
def test_an_entry_that_cannot_be_deleted_comes_again(
    new_queue: Any, start: Any, times: int, sender_fault: bool
) -> None:
    queue, function = new_queue(visibility_s=2), Function()
    queue.send(*numbers(10))
    mapping = start(queue, function, failing_entries(times, sender_fault=sender_fault))
    eventually(lambda: mapping.stats.succeeded == 11 and mapping.stats.in_flight_messages == 0)
    assert mapping.stats.undeleted == 1
    assert function.bodies[10:] == function.bodies[:1]
    eventually(lambda: queue.depth() == (0, 0))


def failing_calls(operation: str, times: int) -> Callable[[Any], None]:
    """Answer HTTP 500 to the first `times` calls of an operation."""

    def hook(client: Any) -> None:
        calls: list[int] = []

        class Raw:
            def stream(self, **_: Any) -> Iterator[bytes]:
                yield b'{"__type": "InternalError", "message": "boom"}'

        def answer(request: Any, **_: Any) -> AWSResponse | None:
            calls.append(1)
            headers = {"content-type": "application/x-amz-json-1.0"}
            return AWSResponse(request.url, 500, headers, Raw()) if len(calls) <= times else None

        client.meta.events.register(f"before-send.sqs.{operation}", answer)

    return hook


@pytest.mark.parametrize("operation", ["ReceiveMessage", "DeleteMessageBatch", "GetQueueAttributes"])
def test_a_server_that_answers_500_for_a_while_loses_nothing(new_queue: Any, start: Any, operation: str) -> None:
    queue, function = new_queue(), Function()
    queue.send(*numbers(12))
    mapping = start(queue, function, failing_calls(operation, 3))
    eventually(lambda: mapping.stats.in_flight_messages == 0 and queue.depth() == (0, 0))
    assert sorted(function.bodies, key=int) == numbers(12)
    assert "boom" in mapping.stats.last_error
    assert mapping.stats.healthy
    assert mapping.stats.undeleted == 0


def test_an_endpoint_that_refuses_connections_is_reported_and_retried_gently(new_queue: Any, start: Any) -> None:
    mapping = start(new_queue(), Function(), endpoint="http://127.0.0.1:9")
    eventually(lambda: mapping.stats.errors >= 3)
    assert "Could not connect to the endpoint" in mapping.stats.last_error
    assert not mapping.stats.healthy
    time.sleep(0.5)
    assert mapping.stats.errors < 15
    began = time.monotonic()
    assert mapping.stop(timeout_s=5)
    assert time.monotonic() - began < 1


# Starting and stopping


def test_a_visibility_timeout_below_the_function_timeout_is_refused(new_queue: Any, start: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a visibility timeout of at least .* 31 s .*, got 30 s"):
        start(new_queue(), Function(), function_timeout_s=31)


@pytest.mark.parametrize("drain", [True, False])
def test_stopping_invokes_or_gives_back_what_was_gathered(new_queue: Any, start: Any, drain: bool) -> None:
    queue, function = new_queue(), Function()
    queue.send(*numbers(15))
    mapping = start(queue, function, batch_size=100, window_s=300)
    eventually(lambda: mapping.stats.gathering == 15)
    assert mapping.stop(drain=drain, timeout_s=5)
    assert function.sizes == ([15] if drain else [])
    assert queue.depth() == ((0, 0) if drain else (15, 0))
    assert mapping.stats.in_flight_messages == mapping.stats.environments == 0
    assert mapping.stop()  # again, at once


def test_messages_that_arrive_while_stopping_are_given_back(new_queue: Any, start: Any) -> None:
    queue, function, stopping = new_queue(), Function(), threading.Event()

    def hook(client: Any) -> None:
        receive = client.receive_message

        def late(**arguments: Any) -> Any:
            response = receive(**arguments)
            assert stopping.wait(10)
            return response

        client.receive_message = late

    queue.send(*numbers(5))
    mapping = start(queue, function, hook)
    eventually(lambda: queue.depth() == (0, 5))
    threading.Timer(0.2, stopping.set).start()
    assert mapping.stop(timeout_s=5)
    assert queue.depth() == (5, 0)
    assert (function.sizes, mapping.stats.given_back) == ([], 5)


def test_stopping_kills_what_runs_longer_than_allowed(new_queue: Any, start: Any) -> None:
    queue, function, killed = new_queue(), Function(), threading.Event()
    function.handle = lambda records: Answer("crash" if killed.wait(20) else "response")
    environment = FakeEnvironment(function)
    environment.close = killed.set  # type: ignore[method-assign]
    function.environment = lambda: environment  # type: ignore[method-assign]
    queue.send("one")
    mapping = start(queue, function)
    eventually(lambda: function.running == 1)
    began = time.monotonic()
    assert not mapping.stop(timeout_s=1.2)
    assert time.monotonic() - began < 3
    assert mapping.stats.failed_by_reason == {"crash": 1}
    assert queue.depth() == (0, 1)


def test_stopping_waits_for_no_long_poll_of_twenty_seconds(new_queue: Any, start: Any) -> None:
    mapping = start(new_queue(), Function())
    time.sleep(0.1)
    began = time.monotonic()
    assert mapping.stop()
    assert time.monotonic() - began < event_source.POLL_WAIT_S + 0.5
