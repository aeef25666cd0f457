"""`spillway status` of the local stack: what it reads, what it shows in 80 and 100 columns, and how watching ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import typer
from botocore.exceptions import EndpointConnectionError
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

import spillway.commands.status as command
from spillway.aws_errors import explained
from spillway.errors import SpillwayError
from spillway.fleet import find
from spillway.rdsproxy.admin import AdminServer
from spillway.rdsproxy.metrics import Metrics
from spillway.rdsproxy.settings import Target
from spillway.stack.batch import Batch, received
from spillway.stack.mapping_stats import Oldest
from spillway.stack.processes import Processes
from spillway.stack.snapshot import Counts, History, MappingUse, QueueDepth, Snapshot, status_file
from spillway.stack.sqs_server import MinistackServer
from spillway.stack.state import StackState, remove_state, write_state
from spillway.status.local import STALE_S, LocalReader
from spillway.status.reading import (
    Alarm,
    FleetGoneError,
    GovernorReading,
    MappingReading,
    ProxyReading,
    Reading,
    WorkerReading,
    per_second,
    with_next_commands,
)
from spillway.status.screen import Screen, line
from spillway.status.watch import watch
from workers.runtime.telemetry import OUTCOME_METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

app = typer.Typer()
app.command()(command.status)
NOW = 1_795_305_600.0


# ── the local stack ──────────────────────────────────────────────────────────────────────────────────────────────────


class Gauges:
    client_connections = 12
    database_connections = 17
    borrowed = 9
    in_transaction = 8
    session_pinned = 2
    waiting = 6
    max_database_connections = 20
    available = True


class Stack:
    """What `spillway up` leaves for other terminals: a state, a status file, an SQS server and a proxy's admin."""

    def __init__(self, server: MinistackServer, directory: Path, admin_url: str) -> None:
        self.server, self.directory, self.admin_url = server, directory, admin_url
        self.sqs = find.aws.sqs_client(server.endpoint_url, "us-east-1")
        self.queues, self.dead = {}, {}
        for worker in ("orders", "audit"):
            for queues, name in ((self.queues, worker), (self.dead, f"{worker}-dlq")):
                queues[worker] = self.sqs.create_queue(QueueName=f"{name}-{directory.name.replace('_', '-')}")[
                    "QueueUrl"
                ]

    def publish(self, **changes: Any) -> None:
        state: dict[str, Any] = {
            "pid": os.getpid(),
            "endpoint_url": self.server.endpoint_url,
            "region": "us-east-1",
            "queues": self.queues,
            "dead_letter_queues": self.dead,
            "dsn": "postgresql://u:hunter2@127.0.0.1/d",
            "started_at": 1_000.0,
            "log_dir": str(self.directory),
            "proxy_admin_url": self.admin_url,
        }
        write_state(StackState(**(state | changes)))

    def counted(self, **changes: Any) -> None:
        """What the owner would have written just now."""
        now = time.time()
        mapping = MappingUse(
            state="Enabled", invoking=3, limit=5, maximum=10, oldest_sent_at=now - 90.0, last_error=None
        )
        snapshot: dict[str, Any] = {
            "taken_at": now,
            "queues": {},
            "done": 240,
            "failed": {"partial": 7},
            "invocations": 4,
            "environments": 2,
            "connections": 17,
            "proxy": None,
            "outcomes": {"applied": 240},
            "last_error": None,
            "mappings": {"orders": mapping, "audit": mapping},
            "counts": Counts(now, {"orders": {"Applied": 240, "SaturatedGivenBack": 30, "BreakerOpen": 5}}),
            "minute_ago": Counts(now - 60, {"orders": {"Applied": 120}}),
            "minutes_ago": Counts(now - 300, {"orders": {"BreakerOpen": 2}}),
        }
        status_file(self.directory).write_bytes(msgspec.json.encode(Snapshot(**(snapshot | changes))))


@pytest.fixture(scope="module")
def server() -> Iterator[MinistackServer]:
    with Processes() as processes, MinistackServer(processes) as one:
        yield one


@pytest.fixture
def stack(server: MinistackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "stack.json"))
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "SPILLWAY_STACK"):
        monkeypatch.delenv(name, raising=False)
    metrics = Metrics()
    metrics.borrow_timeouts, metrics.pinned_sessions_total = 4, 3
    metrics.borrow_latency.add(0.5)
    target = Target(host="127.0.0.1", port=5433, database="orders", user="app", password="hunter2")
    admin = AdminServer(
        lambda: metrics.snapshot(Gauges(), proxy="default", endpoint="127.0.0.1:1", target=target),
        lambda _name, _arguments: {},
        (),
    )
    admin.start()
    one = Stack(server, tmp_path, admin.url)
    one.publish()
    one.counted()
    yield one
    remove_state()
    admin.close()


def reading(*arguments: str) -> Reading:
    result = CliRunner().invoke(app, ["--json", *arguments])
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout.encode(), type=Reading)


def test_everything_of_the_local_stack(stack: Stack) -> None:
    for body in ("a", "b", "c"):
        stack.sqs.send_message(QueueUrl=stack.queues["orders"], MessageBody=body)
    stack.sqs.receive_message(QueueUrl=stack.queues["orders"], MaxNumberOfMessages=1)
    stack.sqs.send_message(QueueUrl=stack.dead["audit"], MessageBody="dead")
    seen = reading()
    assert (seen.fleet, seen.local, seen.done, seen.outcomes) == ("spillway", True, 240, {"applied": 240})
    assert seen.queues == {"orders": QueueDepth(2, 1, 0), "audit": QueueDepth(0, 0, 1)}
    orders = seen.workers["orders"]
    assert orders.per_s == {"applied": 2.0, "saturated": 0.5}
    assert (orders.turned_away, seen.workers["audit"].turned_away) == (3, 0)
    assert orders.oldest_s is not None
    assert orders.oldest_s >= 90
    assert seen.workers["audit"].oldest_s is None, "an empty queue has no oldest message"
    assert orders.mapping == MappingReading(state="Enabled", invoking=3, maximum=10, limit=5)
    proxy = seen.proxy
    assert proxy is not None
    assert (proxy.client_connections, proxy.database_connections, proxy.max_database_connections) == (12, 17, 20)
    assert (proxy.borrowed, proxy.pinned, proxy.pinned_total, proxy.waiting) == (9, 2, 3, 6)
    assert (proxy.borrow_timeouts, proxy.borrow_average_s, proxy.available) == (4, 0.5, True)
    assert seen.next_commands == ["spillway dlq show audit", "spillway pinned"]
    assert seen.problems == {}
    # Looking received nothing: what waits still does.
    assert reading().queues == seen.queues


def test_a_part_that_does_not_answer_leaves_the_rest(stack: Stack) -> None:
    stack.publish(proxy_admin_url="http://127.0.0.1:1")
    stack.counted(taken_at=time.time() - STALE_S - 5)
    seen = reading()
    assert seen.proxy is None
    assert set(seen.problems) == {"proxy", "counts"}
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "? proxy" in result.stdout
    assert re.search(rf"counts +the stack's process {os.getpid()} has not told any for \d\d s", result.stdout)
    assert "hunter2" not in result.stdout


def test_a_stack_that_cannot_be_read(stack: Stack) -> None:
    status_file(stack.directory).write_text("{")
    assert isinstance(CliRunner().invoke(app, []).exception, SpillwayError)
    status_file(stack.directory).unlink()
    with pytest.raises(SpillwayError, match="still starting"):
        CliRunner().invoke(app, [], catch_exceptions=False)
    stack.counted()
    stack.publish(endpoint_url="http://127.0.0.1:1")
    with pytest.raises(SpillwayError, match=r"SQS endpoint http://127\.0\.0\.1:1 does not answer as SQS does"):
        CliRunner().invoke(app, [], catch_exceptions=False)
    remove_state()
    with pytest.raises(SpillwayError, match="No local stack is running"):
        CliRunner().invoke(app, [], catch_exceptions=False)


def test_another_stack_is_not_the_one_that_was_looked_at(stack: Stack) -> None:
    read = LocalReader(find.find_fleet()).read
    assert read().local
    stack.publish(started_at=2_000.0)
    with pytest.raises(FleetGoneError, match="has ended"):
        read()


@pytest.mark.parametrize("arguments", [["--every", "5"], ["--watch", "--every", "0.1"]])
def test_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--every" in result.output


# ── what the stack counts ────────────────────────────────────────────────────────────────────────────────────────────


def test_history_tells_what_was_a_while_ago_and_forgets_what_was_before() -> None:
    history = History()
    for at in range(400):
        history.add(Counts(float(at), {}))
        earlier = history.before(60.0), history.before(300.0)
        assert [one and one.at for one in earlier] == ([max(at - 60, 0), max(at - 300, 0)] if at else [None, None])
    assert len(history._counts) == 301


def batch(**sent: int | None) -> Batch:
    one = Batch()
    for name, sent_s in sent.items():
        message = {"MessageId": name, "ReceiptHandle": "r"}
        attributes = {} if sent_s is None else {"SentTimestamp": str(sent_s * 1000)}
        one.add(received(message | {"Attributes": attributes}, queue_arn="arn:aws:sqs:r:1:q", region="r"))  # type: ignore[operator]
    return one


def test_the_oldest_message_is_of_what_is_not_done() -> None:
    oldest = Oldest()
    assert oldest.sent_at is None
    one, two = batch(a=50, b=20, c=None), batch(d=30)
    oldest.started(one)
    oldest.started(two)
    assert oldest.sent_at == 20
    oldest.ended(one, {"a"})
    assert oldest.sent_at == 30, "b is done"
    oldest.ended(two, set())
    assert oldest.sent_at is None
    oldest.started(one)
    oldest.ended(one, {"a", "c"})
    assert oldest.sent_at == 50, "given back, it waits on"
    oldest.started(batch(e=None))
    assert oldest.sent_at == 50


# ── the screen ───────────────────────────────────────────────────────────────────────────────────────────────────────


def busy(count: int = 4, **changes: Any) -> Reading:
    """A fleet in which everything goes wrong at once."""
    names = [f"worker{number}" for number in range(count)]
    fields: dict[str, Any] = {
        "fleet": "spillway-prod",
        "local": False,
        "region": "eu-west-1",
        "taken_at": NOW,
        "queues": dict.fromkeys(names, QueueDepth(1_204_311, 119_204, 20_118)),
        "workers": {
            name: WorkerReading(
                oldest_s=93_784.0,
                per_s={"applied": 1204.31, "stale": 12.04, "saturated": 3.2, "dead-lettered": 0.05},
                turned_away=120,
                mapping=MappingReading(state="Disabled", invoking=4, maximum=10, reserved=12),
            )
            for name in names
        },
        "proxy": ProxyReading(
            name="spillway-prod",
            client_connections=1204,
            database_connections=190,
            max_database_connections=200,
            borrowed=180,
            pinned=3,
            borrow_average_s=0.25,
            borrow_p99_s=4.5,
            target="UNAVAILABLE:UNREACHABLE",
            available=False,
        ),
        "governor": GovernorReading(
            mode="on", holds={"worker0": "4 of 10"}, hands_off={"worker1": "manual: on:3 is not on:10"}
        ),
        "alarms": [
            Alarm(name=f"spillway-prod-worker{number}-saturated", since="2026-11-21T11:58:00+00:00")
            for number in range(8)
        ],
        "problems": {"metrics": "no permission: cloudwatch:GetMetricData"},
    }
    return with_next_commands(Reading(**(fields | changes)), stack="spillway-prod", region="eu-west-1", profile=None)


def text_of(shown: Reading, *, width: int = 100, live: bool = False, note: str = "") -> str:
    console = Console(file=io.StringIO(), width=width, height=40, highlight=False, color_system=None)
    console.print(Screen(shown, note, live=live))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("width", "workers"), [(80, 4), (100, 4), (100, 8)])
def test_the_screen_fits(width: int, workers: int) -> None:
    lines = text_of(busy(workers), width=width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert len(lines) <= (40 if workers == 4 else 48)
    quiet = Reading(
        fleet="spillway",
        local=True,
        region="us-east-1",
        taken_at=NOW,
        queues=dict.fromkeys("abcd", QueueDepth(0, 0, 0)),
        workers=dict.fromkeys("abcd", WorkerReading(per_s={}, turned_away=0)),
        proxy=ProxyReading(name="default", waiting=0, pinned_total=0, borrow_timeouts=0, available=True),
    )
    live = text_of(quiet, width=width, live=True)
    assert len(live.splitlines()) <= 24
    assert "logs" in text_of(quiet, width=width)
    assert "logs" not in live


@pytest.mark.parametrize("width", [80, 100])
def test_what_the_screen_says(width: int) -> None:
    text = " ".join(text_of(busy(), width=width, note="AWS throttles\nus").split())
    for words in (
        "spillway-prod eu-west-1",
        "AWS throttles us",
        "worker0 1,204,311 119,204 1 d 2 h 20,118 Disabled 4 of 10 12",
        "worker0 applied 1,204 stale 12.0 dead-lettered 0.05 saturated 3.2",
        "client connections 1,204, database connections 190 of 200",
        "95% open, borrowed 180, target UNAVAILABLE:UNREACHABLE",
        "average 250 ms, p99 4.5 s",
        "turned 480 batches away in the last 5 minutes: worker0 120, worker1 120",
        "on, holds down worker0 (4 of 10), hands off worker1 (manual: on:3 is not on:10)",
        "in ALARM spillway-prod-worker0-saturated, since 2026-11-21",
        "and 2 more",
        "? metrics no permission: cloudwatch:GetMetricData",
        "next spillway dlq show worker0 --stack spillway-prod --region eu-west-1",
        "spillway pinned --stack spillway-prod --region eu-west-1",
        "spillway doctor --stack spillway-prod --region eu-west-1",
    ):
        assert words in text, text


def test_a_long_name_is_cut_and_numbers_are_not() -> None:
    name = "extraordinarily_named_vehicles"
    long = busy(workers={name: busy().workers["worker0"]}, queues={name: busy().queues["worker0"]})
    for width in (80, 100):
        row = next(one for one in text_of(long, width=width).splitlines() if one.startswith("extraord"))
        assert " ".join(row.split()[1:]) == "1,204,311 119,204 1 d 2 h 20,118 Disabled 4 of 10 12"
        assert cell_len(row) <= width


def test_what_is_unknown_is_a_dash_and_not_zero() -> None:
    names = {"orders": WorkerReading()}
    unknown = busy(queues={}, workers=names, proxy=ProxyReading(name="p"), governor=None, alarms=[])
    text = text_of(unknown)
    row = next(one for one in text.splitlines() if one.startswith("orders"))
    assert row.split() == ["orders", *"------"]
    assert "client connections -, database connections - of -" in text
    assert "borrowed -, target -" in text
    assert "none in ALARM" in text
    refused = busy(queues={}, workers=names, alarms=[], problems={"alarms": "no permission"})
    assert "none in ALARM" not in text_of(refused)


def test_colours_say_whose_fault_it_is() -> None:
    console = Console(file=io.StringIO(), width=100, highlight=False, color_system="standard", force_terminal=True)
    console.print(Screen(busy()))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b[32mapplied 1,204" in text
    assert "\x1b[33msaturated 3.2" in text
    assert "\x1b[31mdead-lettered 0.05" in text
    assert "\x1b[1;31mDisabled" in text


def test_a_quiet_fleet_needs_nothing() -> None:
    calm = WorkerReading(per_s={"applied": 1.0}, mapping=MappingReading(state="Enabled"))
    quiet = busy(
        queues={"orders": QueueDepth(5, 5, 0)},
        workers={"orders": calm},
        proxy=ProxyReading(name="p", pinned=0, available=True),
        alarms=[],
    )
    assert quiet.next_commands == []
    assert "next" not in text_of(quiet)
    unknown = msgspec.structs.replace(quiet, proxy=ProxyReading(name="p", available=None))
    assert with_next_commands(unknown, stack=None, region=None, profile=None).next_commands == []
    # One thing at a time that a person has to look at.
    for changes in (
        {"workers": {"orders": WorkerReading(mapping=MappingReading(state="Disabling"))}},
        {"workers": {"orders": WorkerReading(per_s={"misconfigured": 0.1})}},
        {"proxy": ProxyReading(name="p", available=False)},
        {"alarms": [Alarm(name="a", since="2026-11-21T11:58:00+00:00")]},
        {"last_error": "ReceiveMessage: no"},
    ):
        one = msgspec.structs.replace(quiet, **changes)
        assert with_next_commands(one, stack=None, region=None, profile=None).next_commands == ["spillway doctor"]


def test_rates_by_what_became_of_messages() -> None:
    assert per_second(None) == (0.0, 0.0, 0.0)
    every = {outcome: 0.1 * number for number, outcome in enumerate(OUTCOME_METRICS, 1)}
    done, back, dead = per_second(every)
    assert (done, dead) == (pytest.approx(1.0), 0.5)
    assert done + back + dead == pytest.approx(sum(every.values()))
    assert per_second({"applied": 0.1, "stale": 0.2, "dead-lettered": 0.3})[1] == 0.0


def test_the_line() -> None:
    text = line(busy())
    assert "waiting 4,817,244  in flight 476,816  dead letters 80,472" in text
    assert "done 4,865/s  given back 12.8/s  dead-lettered 0.20/s" in text
    assert "database connections 190 of 200  pinned 3  proxy target UNAVAILABLE:UNREACHABLE" in text
    assert "worker3 Disabled  in ALARM 8  metrics: no permission: cloudwatch:GetMetricData" in text
    assert "\n" not in text


def test_json_is_whole() -> None:
    one = busy()
    assert msgspec.json.decode(msgspec.json.encode(one), type=Reading) == one


# ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Looks:
    """Answers one look after the other, raising what is an error, then stops the watch."""

    def __init__(self, *answers: Reading | Exception) -> None:
        self.answers, self.stop = list(answers), threading.Event()

    def __call__(self) -> Reading:
        answer = self.answers.pop(0)
        if not self.answers:
            self.stop.set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def watch(self, *, json: bool = False, terminal: bool = False) -> str:
        console = Console(file=io.StringIO(), width=100, height=40, force_terminal=terminal, color_system=None)
        watch(self, console, self.stop, every_s=0.0, json=json)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spillway.status.watch.PRINT_S", 0.0)


@pytest.mark.usefixtures("no_pause")
def test_watching_goes_on_when_a_look_fails() -> None:
    unreachable = EndpointConnectionError(endpoint_url="https://sqs")
    text = Looks(SpillwayError("One."), busy(), unreachable, busy()).watch()
    lines = text.splitlines()
    assert lines[0] == "One."
    assert "in ALARM 8" in lines[1]
    assert lines[2] == explained(unreachable).message
    assert lines[3] == lines[1]
    live = Looks(SpillwayError("One."), busy(), unreachable).watch(terminal=True)
    assert "One." in live
    last = live.rpartition("spillway-prod  eu-west-1")[2]
    assert lines[2] in last, "the latest reading stays, with what went wrong since"
    assert "1,204,311" in last


@pytest.mark.usefixtures("no_pause")
def test_watching_ends_when_there_is_nothing_to_look_at() -> None:
    with pytest.raises(FleetGoneError):
        Looks(busy(), FleetGoneError("Gone."), busy()).watch()
    with pytest.raises(ZeroDivisionError):
        Looks(busy(), ZeroDivisionError(), busy()).watch()


def test_watching_as_json_is_a_document_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    Looks(busy(1), SpillwayError("No answer."), busy(2)).watch(json=True)
    printed = capsys.readouterr()
    assert [len(json.loads(one)["workers"]) for one in printed.out.splitlines()] == [1, 2]
    assert printed.err == "No answer.\n"


@pytest.mark.usefixtures("stack")
def test_ctrl_c_ends_a_watch_well() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "spillway", "status", "--watch", "--json", "--every", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as popen:
        assert popen.stdout is not None
        assert json.loads(popen.stdout.readline())["done"] == 240
        popen.send_signal(signal.SIGINT)
        out, err = popen.communicate(timeout=30)
    assert (popen.returncode, out, err) == (0, "", "")
