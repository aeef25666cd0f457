"""Looking at dead letters: everything is seen, nothing is consumed, and whoever stops it gets everything back."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.stub import Stubber
from moto import mock_aws
from typer.testing import CliRunner

from spillway import aws
from spillway.commands.dlq import app
from spillway.commands.dlq.look import ListDocument
from spillway.dlq import holding, screens
from spillway.dlq.holding import Holder
from spillway.dlq.overview import survey
from spillway.dlq.reading import depth_of, read
from spillway.errors import SpillwayError
from spillway.fleet.fleet import Fleet, Worker
from spillway.stack.state import StackState, write_state
from tests.stack.commands import CommandLine, command_line, until
from workers.runtime.dead_letters import ATTRIBUTE

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

    from spillway.dlq.letters import Letter

EVENT_ID = "018f3c5e-7b1a-7e6f-9a3b-5d2c4e6f8a{:02x}"


@pytest.fixture(scope="module")
def sqs(sqs_endpoint: str) -> SQSClient:
    return aws.sqs_client(sqs_endpoint, connections=8)


@pytest.fixture
def queue(sqs: SQSClient, request: pytest.FixtureRequest) -> str:
    """A new queue's URL."""
    return new_queue(sqs, f"dlq-look-{abs(hash(request.node.nodeid))}")


def new_queue(sqs: SQSClient, name: str, **attributes: str) -> str:
    more: dict[Any, str] = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
    return sqs.create_queue(QueueName=name, Attributes=more | attributes)["QueueUrl"]


def fill(sqs: SQSClient, url: str, count: int, body: str = "letter {}") -> None:
    for start in range(0, count, 10):
        entries: list[Any] = [
            {"Id": str(n), "MessageBody": body.format(n)} for n in range(start, min(start + 10, count))
        ]
        sqs.send_message_batch(QueueUrl=url, Entries=entries)


class Watched:
    """The client, with what was asked of it, and faults of choice."""

    def __init__(self, client: SQSClient) -> None:
        self._client = client
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refuse: list[bool] = []  # for each coming batch call: refuse all of its entries, and whose fault it is
        self.breaks_at: int | None = None
        self.breaks_once = ""
        self.sees_nothing = 0  # receives that miss what is there, as SQS's sometimes do

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments))
            if self.breaks_at is not None and len(self.calls) >= self.breaks_at and name == "receive_message":
                raise ConnectionError("the network is gone")
            if name == "receive_message" and self.sees_nothing:
                self.sees_nothing -= 1
                return {}
            if name == self.breaks_once:
                self.breaks_once = ""
                raise ConnectionError("the network is gone for a moment")
            if name.endswith("_batch") and self.refuse:
                fault = self.refuse.pop(0)
                failed = [{"Id": entry["Id"], "SenderFault": fault, "Code": "x"} for entry in arguments["Entries"]]
                return {"Successful": [], "Failed": failed}
            return getattr(self._client, name)(**arguments)

        return call

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


# Holding


def test_what_is_held_is_invisible_and_comes_back(sqs: SQSClient, queue: str) -> None:
    fill(sqs, queue, 25)
    with Holder(sqs, queue) as holder:
        letters = holder.receive(3) + holder.receive() + holder.receive()
        assert len({letter.body for letter in letters}) == 23 == len(holder.held)
        assert (depth_of(sqs, queue).visible, depth_of(sqs, queue).in_flight) == (2, 23)
        holder.release(letters[:5])
        assert depth_of(sqs, queue).visible == 7
        assert holder.delete(letters) == {letter.message_id for letter in letters[5:]}, "not held: not deleted"
        assert holder.delete(letters) == set()
        again = holder.receive()
        assert {letter.body for letter in letters[:5]} < {letter.body for letter in again}
        assert holder.receive() == []
    assert (depth_of(sqs, queue).visible, depth_of(sqs, queue).in_flight) == (7, 0)


def test_a_letter_that_came_again_only_gets_its_new_handle(sqs: SQSClient, queue: str) -> None:
    fill(sqs, queue, 3)
    with Holder(sqs, queue) as holder:
        (letter, *_) = holder.receive()
        # Its visibility timeout is over, whatever the reason.
        sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=letter.receipt_handle, VisibilityTimeout=0)
        assert holder.receive() == []
        assert holder.held[letter.message_id].receipt_handle != letter.receipt_handle
        assert holder.delete([letter]) == {letter.message_id}
    assert depth_of(sqs, queue).total == 2


def test_what_sqs_was_too_busy_for_is_tried_again(sqs: SQSClient, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "PAUSE_S", 0)
    fill(sqs, queue, 4)
    client = Watched(sqs)
    with Holder(client, queue) as holder:  # type: ignore[arg-type]
        first, second, *_ = holder.receive()
        client.refuse = [False, False]
        assert holder.delete([first]) == {first.message_id}
        client.refuse = [True]
        assert holder.delete([second]) == set()
        assert client.count("delete_message_batch") == 4
        assert second.message_id in holder.held
        client.refuse = [False] * holding.TRIES
        assert holder.delete([second]) == set()
        client.refuse = [False]
    assert (depth_of(sqs, queue).visible, depth_of(sqs, queue).in_flight) == (3, 0)


def test_held_letters_are_renewed_in_time(sqs: SQSClient, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(holding.time, "monotonic", lambda: clock[0])
    fill(sqs, queue, 15)
    client = Watched(sqs)

    def renewed() -> list[tuple[int, int]]:
        found = [
            (len(call["Entries"]), call["Entries"][0]["VisibilityTimeout"])
            for name, call in client.calls
            if name == "change_message_visibility_batch"
        ]
        client.calls.clear()
        return found

    with Holder(client, queue, hold_s=100) as holder:  # type: ignore[arg-type]
        first = holder.receive()
        clock[0] += 40
        second = holder.receive()
        assert renewed() == []
        clock[0] += 20  # the first have 40 of their 100 s left
        holder.receive()
        assert renewed() == [(10, 100)]
        holder.release(second[:1])
        holder.extend(second[1:], 500)
        assert renewed() == [(1, 0), (4, 500)]
        clock[0] += 90
        holder.renew()
        assert renewed() == [(10, 100)], "the first again, and not what has time left"
        assert holder.held.keys() == {letter.message_id for letter in first + second[1:]}


@pytest.mark.parametrize("threads", [1, 4])
def test_everything_is_read_once(sqs: SQSClient, queue: str, threads: int) -> None:
    fill(sqs, queue, 333)
    seen: Counter[str] = Counter()
    with Holder(sqs, queue) as holder:
        assert read(holder, lambda letter: seen.update([letter.body]), threads=threads, stop=threading.Event())
    assert seen == Counter(f"letter {n}" for n in range(333))
    assert (depth_of(sqs, queue).visible, depth_of(sqs, queue).in_flight) == (333, 0)


def test_no_more_is_read_than_asked_for(sqs: SQSClient, queue: str) -> None:
    fill(sqs, queue, 100)
    seen: list[str] = []
    with Holder(sqs, queue) as holder:
        assert not read(holder, lambda letter: seen.append(letter.body), limit=37, stop=threading.Event())
        assert len(seen) == 37 == len(holder.held)
        assert not read(holder, lambda _: True, threads=1, stop=threading.Event()), "enough after the first"
        stop = threading.Event()
        stop.set()
        assert not read(holder, lambda letter: seen.append(letter.body), stop=stop)
        assert len(seen) == 37
    assert depth_of(sqs, queue).visible == 100


@pytest.mark.parametrize("threads", [1, 4])
def test_what_was_held_comes_back_after_any_error(sqs: SQSClient, queue: str, threads: int) -> None:
    fill(sqs, queue, 100)
    client = Watched(sqs)
    client.breaks_at = 5
    with (
        pytest.raises(ConnectionError),
        Holder(client, queue) as holder,  # type: ignore[arg-type]
    ):
        read(holder, lambda _: None, threads=threads, stop=threading.Event())
    assert client.count("receive_message") >= 4
    assert (depth_of(sqs, queue).visible, depth_of(sqs, queue).in_flight) == (100, 0)


def test_what_was_held_comes_back_after_ctrl_c(sqs: SQSClient, queue: str) -> None:
    fill(sqs, queue, 50)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Holder(sqs, queue) as holder:
        read(holder, interrupted, stop=threading.Event())
    assert (depth_of(sqs, queue).visible, depth_of(sqs, queue).in_flight) == (50, 0)


def test_on_exit_every_batch_is_tried(sqs: SQSClient, queue: str) -> None:
    fill(sqs, queue, 50)
    client = Watched(sqs)
    with Holder(client, queue) as holder:  # type: ignore[arg-type]
        read(holder, lambda _: None, stop=threading.Event())
        client.refuse = [True]
        client.breaks_once = "change_message_visibility_batch"
    assert (depth_of(sqs, queue).visible, depth_of(sqs, queue).in_flight) == (30, 20)


def test_a_message_group_shows_its_first_ten(sqs: SQSClient) -> None:
    queue = new_queue(sqs, "dlq-look-groups.fifo", ContentBasedDeduplication="true")
    for n in range(21):
        group = "many" if n < 12 else f"g{n % 3}"
        sqs.send_message(QueueUrl=queue, MessageBody=f"{group} {n}", MessageGroupId=group)
    seen: list[str] = []
    with Holder(sqs, queue) as holder:
        assert read(holder, lambda letter: seen.append(letter.body), threads=1, stop=threading.Event())
    groups = Counter(body.split()[0] for body in seen)
    assert groups == {"many": 10, "g0": 3, "g1": 3, "g2": 3}
    assert [int(body.split()[1]) for body in seen if body.startswith("many")] == list(range(10))
    assert depth_of(sqs, queue).visible == 21


# The commands


@pytest.fixture
def fleet(
    sqs: SQSClient, sqs_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """A local stack of which only SQS runs: the URL of each dead-letter queue by worker."""
    name = tmp_path.name
    urls = {worker: new_queue(sqs, f"{name}-{worker}-dlq{'.fifo' * fifo}") for worker, fifo in WORKERS.items()}
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "state" / "stack.json"))
    monkeypatch.delenv("SPILLWAY_STACK", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(Fleet, "client", lambda *_, **__: sqs)  # making one takes 0.1 s
    write_state(
        StackState(
            pid=os.getpid(),
            endpoint_url=sqs_endpoint,
            region="us-east-1",
            queues={worker: url.replace("-dlq", "") for worker, url in urls.items()},
            dead_letter_queues=urls,
            dsn="",
            started_at=1.0,
            log_dir=str(tmp_path),
        )
    )
    yield urls
    for url in urls.values():
        depth = depth_of(sqs, url)
        assert depth.in_flight == 0, f"{url} was not given back"


WORKERS = {"orders": False, "payments": True, "audit": False}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if isinstance(result.exception, SpillwayError):
        return result.exception.exit_code, f"{result.exception.message}\n{result.exception.hint}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def document(*arguments: str) -> Any:
    status, output = run(*arguments, "--json")
    assert status == 0, output
    return json.loads(output)


def dead_letter(
    number: int, reason: str = "contract", ago: timedelta = timedelta(minutes=3), **more: str
) -> dict[str, Any]:
    reasons = {
        "reason": reason,
        "detail": f"Expected `int`, got `str` - at `$.data.items[{number}].quantity`",
        "event-id": EVENT_ID.format(number),
        "event-type": "order.placed",
        "worker-version": "1.4.0+7",
        "last-seen": (datetime.now(UTC) - ago).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    } | more
    event = {"id": EVENT_ID.format(number), "subject": f"ord-{number}", "data": {"customer": f"person-{number}"}}
    return {
        "MessageBody": json.dumps(event),
        "MessageAttributes": {
            ATTRIBUTE: {"DataType": "String", "StringValue": json.dumps(reasons)},
            "digest": {"DataType": "Binary", "BinaryValue": bytes([number, 255])},
        },
    }


def moved_by_sqs(sqs: SQSClient, dead_letter_url: str, body: str) -> None:
    arn = sqs.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1})
    source = new_queue(sqs, dead_letter_url.rpartition("/")[2].replace("-dlq", "-source"), RedrivePolicy=policy)
    sqs.send_message(QueueUrl=source, MessageBody=body)
    for _ in range(2):
        sqs.receive_message(QueueUrl=source, VisibilityTimeout=0)
    assert depth_of(sqs, source).total == 0


def every_origin(sqs: SQSClient, url: str) -> None:
    for number in range(12):
        sqs.send_message(QueueUrl=url, **dead_letter(number))
    sqs.send_message(QueueUrl=url, **dead_letter(12, "data", timedelta(hours=3), sqlstate="22003"))
    moved_by_sqs(sqs, url, '{"type": "order.placed", "id": "' + EVENT_ID.format(13) + '"}')
    sqs.send_message(QueueUrl=url, MessageBody="text from somewhere \x85 \u202e [red]")
    sqs.send_message(QueueUrl=url, MessageBody="x" * 1_048_576)


def test_list(sqs: SQSClient, fleet: Mapping[str, str]) -> None:
    every_origin(sqs, fleet["orders"])
    sqs.send_message(
        QueueUrl=fleet["payments"], MessageGroupId="a-1", MessageDeduplicationId="1", **dead_letter(0, "gap")
    )
    status, screen = run("list")
    assert status == 0
    assert "17 dead letters in 3 queues" in screen
    assert max(map(len, screen.splitlines())) <= 100
    lines = {line.split()[0]: line for line in screen.splitlines() if line}
    assert "3 h" in lines["orders"]
    assert "all 16" in lines["orders"]
    assert "contract 12, foreign 2, data 1, moved by SQS 1" in lines["orders"]
    assert "gap 1" in lines["payments"]
    assert "empty" in lines["audit"]
    assert screen.endswith("Next: spillway dlq show orders\n")

    orders, payments, audit = document("list", "--sample", "5")["queues"]
    assert (orders["read"], orders["complete"], orders["depth"]["visible"]) == (5, False, 16)
    assert (payments["complete"], payments["reasons"], payments["last_hour"]) == (True, {"gap": 1}, 1)
    assert (audit["oldest"], audit["depth"]["visible"]) == (None, 0)
    assert document("list")["queues"][0]["last_hour"] == 15
    assert "5 of about 16" in run("list", "--sample", "5")[1]


def test_an_empty_fleet_is_good_news(fleet: Mapping[str, str]) -> None:
    status, screen = run("list")
    assert status == 0
    assert "0 dead letters" in screen
    assert "Nothing is dead" in screen
    assert "It is empty." in run("show", "orders")[1]
    status, said = run("peek", fleet["orders"].rpartition("/")[2])
    assert (status, "no letter to be seen" in said) == (1, True)


def test_show_groups_by_cause(sqs: SQSClient, fleet: Mapping[str, str]) -> None:
    every_origin(sqs, fleet["orders"])
    status, screen = run("show", "orders")
    assert status == 0
    assert max(map(len, screen.splitlines())) <= 100
    assert "All 16 were read: the numbers are exact." in screen
    found = document("show", "orders")
    first, *others = found["groups"]
    assert (found["complete"], found["matching"], first["count"]) == (True, 16, 12)
    assert first["cause"]["detail"] == "Expected `int`, got `str` - at `$.data.items[*].quantity`"
    assert first["example"]["place"].startswith("$.data.items[")
    assert f"spillway dlq peek orders --group {first['key']}" in screen
    assert sorted((group["cause"]["reason"], group["cause"]["detail"]) for group in others) == [
        ("data", "Expected `int`, got `str` - at `$.data.items[*].quantity`"),
        ("foreign", ""),
        ("foreign", "too large to carry a reason"),
        ("moved by SQS", ""),
    ]
    assert {group["cause"]["event_type"] for group in others} == {"order.placed", ""}

    assert "1 smaller group" in run("show", "orders", "--top", "4")[1]
    assert document("show", "orders", "--group", first["key"])["matching"] == 12
    assert document("show", "orders", "--since", "1h")["matching"] == 15
    assert document("show", "orders", "--where", "data.customer == 'person-7'")["matching"] == 1
    screen = run("show", "orders", "--reason", "data")[1]
    assert "1 of the 16 read match" in screen
    assert "reason data" in screen
    sampled = document("show", "orders", "--limit", "8")
    assert (sampled["coverage"]["read"], sampled["complete"]) == (8, False)
    assert "8 of about 16 were read." in run("show", "orders", "--limit", "8")[1]
    assert document("show", "orders", "--limit", "8", "--all")["complete"]


def test_what_somebody_else_holds_is_said(sqs: SQSClient, fleet: Mapping[str, str]) -> None:
    every_origin(sqs, fleet["orders"])
    with Holder(sqs, fleet["orders"]) as other:
        other.receive()
        assert "the others are in flight" in " ".join(run("show", "orders")[1].split())
        assert "10 in flight" in run("list")[1]


def test_peek(sqs: SQSClient, fleet: Mapping[str, str]) -> None:
    every_origin(sqs, fleet["orders"])
    status, screen = run("peek", "orders", "--event-id", EVENT_ID.format(7))
    assert status == 0
    assert "contract: Expected `int`, got `str` - at `$.data.items[*].quantity`" in screen
    assert "  digest  Binary 0x07ff" in screen
    assert screen.rstrip().endswith('"customer": "person-7"\n  }\n}')
    (letter,) = document("peek", "orders", "--event-id", EVENT_ID.format(7))["letters"]
    assert letter["body"] == dead_letter(7)["MessageBody"]
    assert letter["attributes"] == {"digest": {"type": "Binary", "hex": "07ff"}}
    assert letter["sqs"]["ApproximateReceiveCount"] == "2"
    assert (letter["reasons"]["reason"], letter["event"]["subject"]) == ("contract", "ord-7")

    assert len(document("peek", "orders", "--limit", "99", "--reason", "contract")["letters"]) == 12
    status, said = run("peek", "orders", "--type", "payment.*")
    assert (status, "none of the 16 letters read matches" in said) == (1, True)


def test_peek_hides_what_it_is_told_to(sqs: SQSClient, fleet: Mapping[str, str]) -> None:
    every_origin(sqs, fleet["orders"])
    for form in ([], ["--json"]):
        status, screen = run("peek", "orders", "--limit", "99", "--redact", "data.customer", *form)
        assert status == 0
        assert "person-" not in screen
        assert "somewhere" not in screen, "a body that cannot be read may hold anything"
        assert screen.count("***") == 13 * (1 + 2 * bool(form)) - 13 * bool(form)
    assert (
        "It has nothing at data.custmer."
        in run("peek", "orders", "--event-id", EVENT_ID.format(7), "--redact", "data.custmer")[1]
    )


def test_a_body_never_reaches_the_terminal_raw(sqs: SQSClient, fleet: Mapping[str, str]) -> None:
    every_origin(sqs, fleet["orders"])
    for form in ([], ["--json"]):
        _, screen = run("peek", "orders", "--limit", "99", "--reason", "foreign", *form)
        assert "\\u0085 \\u202e [red]" in screen
        assert all(char.isprintable() or char == "\n" for char in screen)
    _, screen = run("peek", "orders", "--limit", "99", "--reason", "foreign")
    assert "1,048,576 bytes, the first 4,096 of it" in screen
    assert "x" * 4_096 in screen.splitlines()
    assert "x" * 1_048_576 in run("peek", "orders", "--limit", "99", "--max-body", "0")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "ordes"], "Did you mean 'orders'?"),
        (["show", "orders", "--where", "data.x =="], "\n           ^"),
        (["peek", "orders", "--redact", "a..b"], "\n   ^"),
        (["show", "orders", "--reason", "contrat"], "Did you mean 'contract'?"),
        (["peek", "orders", "--since", "yesterday"], "Expected an age like 90m"),
    ],
)
def test_what_is_mistyped_is_explained(fleet: Mapping[str, str], arguments: list[str], said: str) -> None:
    status, output = run(*arguments)
    assert status in {1, 2}
    assert said in output


@pytest.fixture
def shell(fleet: Mapping[str, str]) -> Iterator[CommandLine]:
    with command_line() as one:
        one.env = {"SPILLWAY_STATE": os.environ["SPILLWAY_STATE"]}
        yield one


def test_ctrl_c_gives_everything_back(sqs: SQSClient, fleet: Mapping[str, str], shell: CommandLine) -> None:
    fill(sqs, fleet["audit"], 2_000)
    popen = shell.start("dlq", "show", "audit", "--all")
    until(lambda: depth_of(sqs, fleet["audit"]).in_flight > 0, "letters to be held")
    popen.send_signal(signal.SIGINT)
    assert popen.wait(30) == 130
    said = shell.output(popen)
    assert "everything was given back" in said
    assert "of about 2,000 were read" in said
    assert (depth_of(sqs, fleet["audit"]).visible, depth_of(sqs, fleet["audit"]).in_flight) == (2_000, 0)


# On AWS


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A stack on AWS with 30 letters of which five are looked at."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        client = aws.sqs_client(region="us-east-1")
        urls = {name: new_queue(client, f"prod-{name}-dlq") for name in ("orders", "audit")}
        for number in range(30):
            client.send_message(QueueUrl=urls["orders"], **dead_letter(number))
        yield Fleet(
            name="prod",
            workers={
                name: Worker(name=name, queue_url="", dead_letter_url=url, function="", logs="")
                for name, url in urls.items()
            },
            region="us-east-1",
        )


def test_what_a_sample_cannot_know_comes_from_cloudwatch(deployed: Fleet) -> None:
    now = datetime.now(UTC)
    put = deployed.client("cloudwatch").put_metric_data

    def report(metric: str, minutes_ago: int, value: float, queue: str = "prod-orders-dlq") -> None:
        dimensions = [{"Name": "QueueName", "Value": queue}]
        moment = now - timedelta(minutes=minutes_ago)
        put(
            Namespace="AWS/SQS",
            MetricData=[{"MetricName": metric, "Dimensions": dimensions, "Timestamp": moment, "Value": value}],
        )

    report("ApproximateAgeOfOldestMessage", 40, 300)
    report("ApproximateAgeOfOldestMessage", 10, 7_200)
    report("ApproximateAgeOfOldestMessage", 10, 999_999, "prod-audit-dlq")
    report("NumberOfMessagesSent", 40, 12)
    report("NumberOfMessagesSent", 10, 11)
    report("NumberOfMessagesSent", 90, 1_000)
    orders, audit = survey(deployed, 5, threading.Event())
    assert (orders.read, orders.complete, orders.depth.visible, orders.from_cloudwatch) == (5, False, 30, True)
    assert orders.oldest is not None
    assert timedelta(0) <= orders.oldest - (now - timedelta(hours=2)) < timedelta(minutes=1)
    assert orders.last_hour == 23
    assert (audit.oldest, audit.complete) == (None, True)
    text = screens.json_text(ListDocument(fleet="x", at=now, queues=[orders, audit]))
    assert json.loads(text)["queues"][0]["last_hour"] == 23


def test_on_aws_one_empty_answer_is_not_the_end(deployed: Fleet) -> None:
    url = deployed.workers["orders"].dead_letter_url
    client = Watched(deployed.sqs())
    seen: list[str] = []

    def note(letter: Letter) -> None:
        seen.append(letter.message_id)
        client.sees_nothing = 2 if len(seen) in {10, 20} else 0

    with Holder(client, url, wait_s=0) as holder:  # type: ignore[arg-type]
        client.sees_nothing = 2
        assert read(holder, note, threads=1, stop=threading.Event())
    assert len(set(seen)) == len(seen) == 30
    assert client.count("receive_message") == 3 * 3 + 3
    assert all(call["WaitTimeSeconds"] == 0 for name, call in client.calls if name == "receive_message")
    assert depth_of(deployed.sqs(), url).visible == 30
    with Holder(client, url) as holder:  # type: ignore[arg-type]
        holder.receive(1)
    assert client.calls[-2][1]["WaitTimeSeconds"] == 1, "a long poll asks all of SQS's servers"


def test_without_the_permission_the_sample_has_to_do(deployed: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = aws.client("cloudwatch", region="us-east-1")
    stub = Stubber(denied)
    stub.add_client_error("get_metric_data", "AccessDenied", "not authorized to perform: cloudwatch:GetMetricData")
    real = Fleet.client
    monkeypatch.setattr(
        Fleet,
        "client",
        lambda fleet, service, **more: denied if service == "cloudwatch" else real(fleet, service, **more),
    )
    with stub:
        orders, _ = survey(deployed, 5, threading.Event())
    assert (orders.last_hour, orders.from_cloudwatch) == (5, False)
    stub.assert_no_pending_responses()
