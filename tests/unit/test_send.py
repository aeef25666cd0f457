"""`spillway send` as a person sees it: what stops it, what it sends, what it says, and how it goes on."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import typer
from botocore.exceptions import ClientError
from typer.testing import CliRunner

import spillway.commands.send as command
from spillway.errors import SpillwayError
from spillway.histories.base import VALID
from spillway.histories.orders import generate
from spillway.journal import Journal
from spillway.jsonl import MAX_LINE_BYTES, read_lines
from spillway.pace import TokenBucket
from spillway.stack.state import StackState, write_state

app = typer.Typer()
app.command()(command.send)


class FakeSQS:
    """Takes everything until `broken_after` messages have arrived; then every call fails."""

    def __init__(self) -> None:
        self.arrived: list[dict[str, Any]] = []
        self.broken_after: int | None = None
        self.refused = ""
        self.on_call = lambda: None

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        self.on_call()
        if self.broken_after is not None and len(self.arrived) >= self.broken_after:
            raise ClientError(
                {"Error": {"Code": "AccessDenied", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}},  # type: ignore[typeddict-item]
                "SendMessageBatch",
            )
        good = [entry for entry in Entries if entry["MessageBody"] != self.refused]
        fault = {"SenderFault": True, "Code": "InvalidMessageContents", "Message": "no"}
        self.arrived += good
        return {
            "Successful": [{"Id": entry["Id"], "MessageId": "m"} for entry in good],
            "Failed": [{"Id": entry["Id"]} | fault for entry in Entries if entry not in good],
        }

    @property
    def ids(self) -> list[str]:
        return [json.loads(entry["MessageBody"])["id"] for entry in self.arrived]


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSQS:
    client = FakeSQS()
    monkeypatch.setattr(command, "sqs_client", lambda *_, **__: client)
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "state" / "stack.json"))
    monkeypatch.chdir(tmp_path)
    publish(started_at=1.0)
    return client


def publish(started_at: float) -> None:
    write_state(
        StackState(
            pid=os.getpid(),
            endpoint_url="http://127.0.0.1:1",
            region="us-east-1",
            queues={"orders": "http://127.0.0.1:1/000000000000/orders"},
            dead_letter_queues={},
            dsn="",
            started_at=started_at,
            log_dir="",
        )
    )


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["orders", *arguments], catch_exceptions=True)
    if isinstance(result.exception, SpillwayError):
        return result.exception.exit_code, f"{result.exception.message}\n{result.exception.hint}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def orders(count: int) -> list[str]:
    return [message.body for message in generate(count, duplicates=0, poison=0).messages if message.kind == VALID]


def without_id(line: str) -> str:
    return json.dumps({name: value for name, value in json.loads(line).items() if name != "id"})


def lines_into(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name


def test_a_good_file_is_sent(sqs: FakeSQS, tmp_path: Path) -> None:
    lines = orders(25)
    file = lines_into(tmp_path / "orders.jsonl", lines)
    before = signal.getsignal(signal.SIGINT)
    assert run(file) == (0, "Sent 25 of 25 events.\n")
    assert signal.getsignal(signal.SIGINT) is before
    assert sorted(sqs.ids) == sorted(json.loads(line)["id"] for line in lines)
    assert not (tmp_path / "orders.jsonl.journal").exists()


def test_bad_lines_stop_before_anything_is_sent(sqs: FakeSQS, tmp_path: Path) -> None:
    lines = orders(20)
    wrong_type = json.loads(lines[4])
    wrong_type["data"]["version"] = "1"
    missing = json.loads(lines[6])
    del missing["data"]["customer"]
    lines[4], lines[6] = json.dumps(wrong_type), json.dumps(missing)
    lines[9:9] = ["", "  "]
    lines[13] = "{"
    status, said = run(lines_into(tmp_path / "orders.jsonl", lines))
    assert status == 1
    assert "Nothing was sent: orders.jsonl has 3 bad lines." in said
    assert "orders.jsonl:5: $.data.version: Expected `int`, got `str`" in said
    assert "orders.jsonl:7: $.data.customer: Expected a value, the field is missing" in said
    assert "orders.jsonl:14: " in said
    assert "--skip-invalid" in said
    assert sqs.arrived == []


def test_ten_bad_lines_are_listed_and_the_rest_counted(sqs: FakeSQS, tmp_path: Path) -> None:
    _, said = run(lines_into(tmp_path / "orders.jsonl", ["{"] * 1_234))
    assert said.count("orders.jsonl:") == 10
    assert "and 1,224 more" in said


def test_skip_invalid_sends_the_rest_and_keeps_the_bad(sqs: FakeSQS, tmp_path: Path) -> None:
    lines = orders(5)
    (tmp_path / "orders.jsonl").write_bytes(
        "\n".join([*lines[:3], "{", *lines[3:]]).encode() + b'\n{"source": "\xff"}\n'
    )
    status, said = run("orders.jsonl", "--skip-invalid")
    assert status == 1, "not everything in the file was sent"
    assert "Sent 5 of 5 events." in said
    assert "Skipped 2 bad lines: see orders.invalid.jsonl." in said
    assert len(sqs.arrived) == 5
    kept = [json.loads(line) for line in (tmp_path / "orders.invalid.jsonl").read_text().splitlines()]
    assert [(bad["line"], bad["reason"]) for bad in kept] == [(4, "undecodable"), (7, "undecodable")]
    assert kept[0]["text"] == "{"
    assert "truncated" in kept[0]["detail"]
    assert "base64" in kept[1]


def test_skip_invalid_to_a_file_of_choice(sqs: FakeSQS, tmp_path: Path) -> None:
    lines_into(tmp_path / "orders.jsonl", ["{", *orders(1)])
    run("orders.jsonl", "--skip-invalid", "--invalid-to", "bad.jsonl")
    assert (tmp_path / "bad.jsonl").exists()
    for unusable in ("orders.jsonl", "missing/bad.jsonl"):
        sqs.arrived.clear()
        status, said = run("orders.jsonl", "--skip-invalid", "--invalid-to", unusable)
        assert (status, sqs.arrived) == (1, []), said
        assert "--invalid-to" in said


def test_dry_run_sends_nothing_and_needs_no_stack(
    sqs: FakeSQS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "nowhere.json"))
    lines = orders(25)
    size = sum(len(line.encode()) for line in lines)
    file = lines_into(tmp_path / "orders.jsonl", lines)
    assert run(file, "--dry-run") == (0, f"Would send 25 events in 3 batches, {size:,} bytes.\n")
    lines_into(tmp_path / "orders.jsonl", [*lines, "{"])
    assert run(file, "--dry-run")[0] == 1
    status, said = run(file, "--dry-run", "--skip-invalid")
    assert (status, "Skipped 1 bad line." in said) == (1, True)
    assert sqs.arrived == []
    assert sorted(left.name for left in tmp_path.iterdir()) == ["orders.jsonl", "state"]


def test_ids_are_stable_and_equal_lines_are_distinct(sqs: FakeSQS, tmp_path: Path) -> None:
    first, second = (without_id(line) for line in orders(2))
    file = lines_into(tmp_path / "orders.jsonl", [first, second, first])
    run(file, "--concurrency", "1")
    once = sqs.ids
    assert len(set(once)) == 3
    sqs.arrived.clear()
    run(file, "--concurrency", "1")
    assert sqs.ids == once, "sending it again has no second effect"
    sqs.arrived.clear()
    lines_into(tmp_path / "orders.jsonl", [second, first])
    run(file, "--concurrency", "1")
    assert sqs.ids == [once[1], once[0]], "an id belongs to the text, not to its place"


def test_resume_sends_only_what_was_not_confirmed(sqs: FakeSQS, tmp_path: Path) -> None:
    lines = [without_id(line) for line in orders(45)]
    file = lines_into(tmp_path / "orders.jsonl", lines)
    sqs.broken_after = 20
    status, said = run(file, "--concurrency", "1")
    assert status == 1
    assert "Sent 20 of 45 events." in said
    assert "10 failed: AccessDenied: no" in said
    assert "15 not tried: the queue did not answer." in said
    assert "--resume" in said
    first = sqs.ids
    sqs.broken_after = None
    sqs.arrived.clear()
    assert run(file, "--resume") == (0, "Sent 25 of 45 events, 20 confirmed before.\n")
    assert len(sqs.ids) == 25
    assert len(set(first) | set(sqs.ids)) == 45
    assert not (tmp_path / "orders.jsonl.journal").exists()


def test_resume_twice(sqs: FakeSQS, tmp_path: Path) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(40))
    for limit in (10, 30):
        sqs.broken_after = limit
        run(file, "--resume", "--concurrency", "1")
    sqs.broken_after = None
    assert "Sent 10 of 40 events, 30 confirmed before." in run(file, "--resume")[1]
    assert len(sqs.ids) == len(set(sqs.ids)) == 40


def test_a_refused_event_is_named_and_the_rest_is_sent(sqs: FakeSQS, tmp_path: Path) -> None:
    lines = orders(25)
    file = lines_into(tmp_path / "orders.jsonl", ["", *lines])
    sqs.refused = lines[12]
    status, said = run(file)
    assert status == 1
    assert "Sent 24 of 25 events." in said
    assert "1 failed: InvalidMessageContents: no" in said
    assert f"orders.jsonl:14: event {json.loads(lines[12])['id']}" in said
    assert "not tried" not in said


def test_without_resume_everything_is_sent_again(sqs: FakeSQS, tmp_path: Path) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(20))
    sqs.broken_after = 10
    run(file, "--concurrency", "1")
    sqs.broken_after = None
    assert run(file)[1] == "Sent 20 of 20 events.\n"


def test_the_journal_of_a_stack_that_is_gone_is_not_resumed(sqs: FakeSQS, tmp_path: Path) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(20))
    sqs.broken_after = 10
    run(file, "--concurrency", "1")
    publish(started_at=2.0)
    status, said = run(file, "--resume")
    assert status == 1
    assert "another queue, or to a local stack that is gone" in said


def test_a_torn_journal_line_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, "q", resume=False) as journal:
        journal.confirm("a")
        journal.confirm("b")
    path.write_text(path.read_text() + "c-torn")
    with Journal(path, "q", resume=True) as journal:
        assert journal.confirmed == {"a", "b"}
        journal.confirm("c")
    with Journal(path, "q", resume=True) as journal:
        assert journal.confirmed == {"a", "b", "c"}
    path.write_text("nonsense")
    with pytest.raises(SpillwayError, match="not a journal"):
        Journal(path, "q", resume=True)


def test_no_place_for_a_journal_is_no_obstacle(sqs: FakeSQS, tmp_path: Path) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(3))
    (tmp_path / "orders.jsonl.journal").mkdir()
    status, said = run(file)
    assert status == 0
    assert "--resume will not be possible" in said


def test_standard_input(sqs: FakeSQS, tmp_path: Path) -> None:
    lines = orders(12)
    result = CliRunner().invoke(app, ["orders", "-"], input="\n".join(lines))
    assert (result.exit_code, len(sqs.arrived)) == (0, 12)
    bad = CliRunner().invoke(app, ["orders", "-"], input="\n".join([*lines, "{"]))
    assert isinstance(bad.exception, SpillwayError)
    assert "stdin:13: " in bad.exception.message
    with pytest.raises(SpillwayError, match="cannot be resumed"):
        CliRunner().invoke(app, ["orders", "-", "--resume"], catch_exceptions=False)


def test_a_fair_group(sqs: FakeSQS, tmp_path: Path) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(5))
    run(file, "--fair-group", "data.customer")
    for entry in sqs.arrived:
        assert entry["MessageGroupId"] == json.loads(entry["MessageBody"])["data"]["customer"]
        assert "MessageDeduplicationId" not in entry
    assert "$.data.tenant: Expected a group id" in run(file, "--fair-group", "data.tenant")[1]


def test_rate(sqs: FakeSQS, tmp_path: Path) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(30))
    started = time.monotonic()
    run(file, "--rate", "50")
    # The first batch of ten is free.
    assert 0.3 < time.monotonic() - started < 2


def test_a_low_rate_sends_small_batches(sqs: FakeSQS, tmp_path: Path) -> None:
    sizes: list[int] = []
    file = lines_into(tmp_path / "orders.jsonl", orders(8))
    sqs.on_call = lambda: sizes.append(len(sqs.arrived))
    run(file, "--rate", "8", "--concurrency", "1")
    assert sizes == [0, 4]


def test_token_bucket() -> None:
    now, waits = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    bucket = TokenBucket(10, 2, clock=lambda: now, sleep=sleep)
    for _ in range(22):
        bucket.take()
    assert now == pytest.approx(2.0)
    assert len(waits) == 20
    now += 100
    for _ in range(4):
        bucket.take()
    assert now == pytest.approx(102.2), "an idle hour does not add up to a burst"


def test_ctrl_c_stops_and_says_how_to_go_on(sqs: FakeSQS, tmp_path: Path) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(40))

    def interrupt() -> None:
        if len(sqs.arrived) == 10:
            os.kill(os.getpid(), signal.SIGINT)

    sqs.on_call = interrupt
    before = signal.getsignal(signal.SIGINT)
    status, said = run(file, "--concurrency", "1")
    assert signal.getsignal(signal.SIGINT) is before
    assert status == 130
    assert "Sent 20 of 40 events." in said
    assert "20 not tried: interrupted." in said
    assert "--resume" in said
    sqs.on_call = lambda: None
    assert "Sent 20 of 40 events, 20 confirmed before." in run(file, "--resume")[1]
    assert len(set(sqs.ids)) == len(sqs.ids) == 40


def test_ctrl_c_ends_a_wait_for_the_rate(sqs: FakeSQS, tmp_path: Path) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(3))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    status, _ = run(file, "--rate", "0.01")
    timer.join()
    assert status == 130
    assert time.monotonic() - started < 5


def test_faults_before_the_file_is_read(sqs: FakeSQS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = lines_into(tmp_path / "orders.jsonl", orders(1))
    assert "Cannot read missing.jsonl: No such file" in run("missing.jsonl")[1]
    assert "Cannot read state: Is a directory" in run("state")[1]
    assert "is not a queue URL" in run(file, "--queue-url", "orders")[1]
    assert "need --queue-url" in run(file, "--region", "eu-west-1")[1]
    with pytest.raises(SpillwayError, match="no worker named 'order'"):
        CliRunner().invoke(app, ["order", file], catch_exceptions=False)
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "nowhere.json"))
    assert "spillway up" in run(file)[1]
    assert sqs.arrived == []


def test_lines() -> None:
    text = b'\xef\xbb\xbf{"a":1}\r\n\n \t\n{"b":2}\n\x0c\nlast'
    assert [tuple(line) for line in read_lines(io.BytesIO(text))] == [
        (1, b'{"a":1}'),
        (4, b'{"b":2}'),
        (5, b"\x0c"),
        (6, b"last"),
    ]


def test_a_line_without_end_is_not_read_into_memory(sqs: FakeSQS, tmp_path: Path) -> None:
    huge = b"x" * (3 * MAX_LINE_BYTES)
    lines = list(read_lines(io.BytesIO(b"1\n" + huge + b"\n2\n")))
    assert [(line.number, len(line.text)) for line in lines] == [(1, 1), (2, MAX_LINE_BYTES + 1), (3, 1)]
    (tmp_path / "orders.jsonl").write_bytes(huge)
    assert "orders.jsonl:1: Expected at most 1048576 bytes" in run("orders.jsonl")[1]


def test_every_kind_of_poison_is_found_before_it_is_sent(sqs: FakeSQS, tmp_path: Path) -> None:
    history = generate(400, seed=3, duplicates=0.05, poison=0.2)
    bodies = [message.body for message in history.messages]
    random.Random(1).shuffle(bodies)
    status, said = run(lines_into(tmp_path / "orders.jsonl", bodies), "--skip-invalid")
    poison = history.expected.poison
    # A blank line is no line, and a missing id is what the command fills in.
    healed = poison["missing_id"]
    assert status == 1
    assert f"Skipped {sum(poison.values()) - poison['blank'] - healed} bad lines" in said
    assert len(sqs.arrived) == history.expected.distinct + history.expected.duplicates + healed
    assert len({UUID(event_id) for event_id in sqs.ids}) == history.expected.distinct + healed
