"""`spillway failover-drill`: what it measures, what it refuses, and that a consumer which loses or doubles is found."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import typer
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

import spillway.commands.drill as command
from spillway import aws
from spillway.drill import drill as engine
from spillway.drill.aws import AwsFailover
from spillway.drill.drill import Drill, Options
from spillway.drill.failover import Note
from spillway.drill.local import LocalFailover
from spillway.drill.measure import fates_of, interruption, longest_gap, usual_gap
from spillway.drill.probes import CUSTOMER, Sent, Trickle, probe, run_name
from spillway.drill.report import screen
from spillway.drill.sampler import Sampler
from spillway.drill.verdict import Facts, compose, remove_rows
from spillway.errors import SpillwayError
from spillway.fleet.canaries import CANARY, Fate, LogFile
from spillway.fleet.fleet import Fleet, Resource, Worker
from spillway.producer import Producer
from spillway.stack.state import StackState, WorkerLogin
from workers.orders.contract import OrderEvent
from workers.runtime.envelope import EventDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Moments are seconds since the epoch; 2026.
T0 = 1_790_000_000.0
RUN = "20261121"
GIVEN_BACK = ("unavailable", "saturated", "conflict", "unknown")


def fate(message_id: str, outcome: str, at: float = T0, **more: str) -> Fate:
    return Fate(message_id=message_id, outcome=outcome, at=datetime.fromtimestamp(at, UTC), **more)


def sent(number: int, at: float = T0, *, accepted: bool = True) -> Sent:
    return Sent(
        order_id=f"drill-{RUN}-{number}",
        event_id=f"e{number}",
        at=at,
        message_id=f"m{number}" if accepted else None,
        error="" if accepted else "Throttling: slow down",
    )


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    every=st.sampled_from([0.1, 0.2, 1.0]),
    before=st.integers(2, 30),
    after=st.integers(1, 30),
    outage=st.floats(1.5, 300),
    data=st.data(),
)
def test_the_interruption_is_the_outage_whatever_the_order(
    every: float, before: int, after: int, outage: float, data: st.DataObject
) -> None:
    calm = [T0 + every * n for n in range(before)]
    began = calm[-1] + every / 2
    resumed = [calm[-1] + every + outage + every * n for n in range(after)]
    moments = data.draw(st.permutations(calm + resumed))
    gap = interruption(moments, every, began)
    assert gap.seconds == pytest.approx(outage, abs=1e-5)
    assert (gap.since, gap.until) == (calm[-1], resumed[0])
    assert usual_gap(moments, every, began).seconds == pytest.approx(0, abs=1e-5)


@given(st.lists(st.floats(0, 1000), max_size=40), st.floats(0.01, 10))
def test_no_gap_is_longer_than_the_longest(moments: list[float], every: float) -> None:
    gap = longest_gap(moments, every)
    distances = [after - before - every for before, after in itertools.pairwise(sorted(moments))]
    assert gap.seconds == max([0.0, *distances])


def test_an_interruption_that_has_not_ended_lasts_until_the_end() -> None:
    moments = [T0, T0 + 1, T0 + 2]
    assert interruption(moments, 1, T0 + 2.5).seconds == 0
    assert interruption(moments, 1, T0 + 2.5, T0 + 42) == (39, T0 + 2, T0 + 42)
    assert interruption([], 1, T0).seconds == 0


ENDINGS = st.sampled_from(["applied", "duplicate", "dead", "lost", "twice", "redelivered", "not-sent"])


@given(st.lists(st.tuples(ENDINGS, st.lists(st.sampled_from(GIVEN_BACK), max_size=3)), max_size=30), st.randoms())
def test_every_probe_ends_in_one_place(stories: list[tuple[str, list[str]]], rng: Any) -> None:
    told = {
        "applied": ["applied"],
        "duplicate": ["duplicate"],
        "dead": ["dead-lettered"],
        "twice": ["applied", "applied"],
        "redelivered": ["applied", "duplicate"],
    }
    probes, fates, back = [], [fate("somebody-else's", "applied"), fate("somebody-else's", "applied")], Counter[str]()
    for number, (ending, tries) in enumerate(stories):
        probes.append(sent(number, accepted=ending != "not-sent"))
        if ending != "not-sent":
            back.update(tries)
            fates += [fate(f"m{number}", outcome, T0 + n) for n, outcome in enumerate([*tries, *told.get(ending, [])])]
    rng.shuffle(fates)
    found = fates_of(probes, fates)
    ends: dict[str, set[str]] = {
        end: {f"m{n}" for n, (its, _) in enumerate(stories) if its == end} for end in (*told, "lost")
    }
    assert set(found.done) == ends["applied"] | ends["duplicate"] | ends["twice"] | ends["redelivered"]
    assert set(found.dead) == ends["dead"]
    assert set(found.lost) == ends["lost"]
    assert set(found.doubled) == ends["twice"]
    assert found.given_back == back


def facts(**changes: Any) -> Facts:
    """Ten seconds of a probe each second, all done 0.1 s later; the failover is at 4.5 s."""
    probes = [sent(n, T0 + n) for n in range(10)]
    given: dict[str, Any] = {
        "run": RUN,
        "fleet": "shop",
        "worker": "orders",
        "failover": "reboot",
        "began": T0,
        "failover_at": T0 + 4.5,
        "ended": T0 + 10,
        "goal_s": 3.0,
        "rate": 1.0,
        "sent": probes,
        "fates": [fate(f"m{n}", "applied", T0 + n + 0.1) for n in range(10)],
        "answered": [T0 + n / 10 for n in range(101)],
        "every": 0.1,
        "asks": "answers",
        "troubles": Counter(),
    }
    return Facts(**given | changes)


def failed(**changes: Any) -> set[str]:
    report = compose(facts(**changes))
    assert report.goal_met == all(check.holds for check in report.checks)
    return {check.name for check in report.checks if not check.holds}


ALL_APPLIED = [fate(f"m{n}", "applied", T0 + n + 0.1) for n in range(10)]
ROWS = {f"drill-{RUN}-{n}": 1 for n in range(10)}


def test_a_drill_that_nobody_noticed_meets_its_goal() -> None:
    report = compose(facts(rows=ROWS))
    assert report.goal_met
    assert (report.sent, report.done, report.rows, report.lost, report.doubled) == (10, 10, 10, [], [])
    assert report.longest_wait_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"fates": ALL_APPLIED[:6] + ALL_APPLIED[7:]}, {"lost"}),
        ({"fates": [*ALL_APPLIED, fate("m3", "applied", T0 + 9)]}, {"doubled"}),
        ({"fates": [*ALL_APPLIED, fate("m3", "duplicate", T0 + 9)]}, set()),
        ({"fates": [*ALL_APPLIED[:9], fate("m9", "dead-lettered", T0 + 9)]}, {"dead-lettered"}),
        ({"rows": {order: n for order, n in ROWS.items() if not order.endswith("-7")}}, {"lost"}),
        ({"rows": ROWS | {f"drill-{RUN}-7": 2}}, {"doubled"}),
        ({"unread": "throttled"}, {"log"}),
        # Done again after 4.9 s, and after 4.1 s less the second between two probes.
        ({"fates": [fate(f"m{n}", "applied", T0 + (n if n < 5 else n + 4)) for n in range(10)]}, {"interruption"}),
        ({"fates": [fate(f"m{n}", "applied", T0 + (n if n < 5 else n + 3)) for n in range(10)]}, set()),
        # Never done again: the gap lasts until the drill ended.
        ({"fates": ALL_APPLIED[:5]}, {"interruption", "lost"}),
        ({"answered": [T0 + n / 10 for n in range(50)]}, {"interruption"}),
        ({"sent": [sent(n, T0 + n, accepted=n < 5) for n in range(10)], "fates": ALL_APPLIED[:5]}, {"interruption"}),
    ],
)
def test_what_a_drill_misses(changes: dict[str, Any], missed: set[str]) -> None:
    assert failed(**changes) == missed


def test_the_screen_fits_and_says_what_is_left() -> None:
    told = [fate(f"m{n}", "unavailable", T0 + n) for n in range(5, 9)]
    one = compose(
        facts(
            fates=ALL_APPLIED[:5] + told,
            troubles=Counter({"OperationalError: " + "x" * 300 + "\x1b[31m": 4}),
            notes=[Note(T0 + 6, "RDS: Multi-AZ instance failover started.\x1b[2J")],
            sent=[sent(n, T0 + n, accepted=n != 2) for n in range(10)],
        )
    )
    console = Console(file=StringIO(), width=100, force_terminal=False, highlight=False)
    console.print(screen(one))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    for said in (
        "4 unavailable",
        "Multi-AZ instance failover started.",
        "1 x Throttling",
        "still away when the drill ended",
        "5 of 9 probes are lost",
        remove_rows(RUN),
    ):
        assert said in text, said


# ── probes and samples ───────────────────────────────────────────────────────────────────────────────────────────────


class Consumer:
    """An SQS queue with a consumer behind it, which tells what became of a canary as a worker's log does."""

    def __init__(self, log: Path, fates: Callable[[int], Iterable[str]]) -> None:
        self.entries: list[dict[str, Any]] = []
        self.refusing = False
        self._log = log
        self._fates = fates

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        [entry] = Entries
        if self.refusing:
            return {"Failed": [{"Id": entry["Id"], "Code": "Throttling", "Message": "slow down", "SenderFault": False}]}
        self.entries.append(entry)
        number = len(self.entries)
        with self._log.open("a") as log:
            for outcome in self._fates(number):
                line = {
                    "message": "canary",
                    "canary": entry["MessageAttributes"][CANARY]["StringValue"],
                    "message_id": f"m{number}",
                    "outcome": outcome,
                    "timestamp": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S,%f+0000"),
                }
                log.write(json.dumps(line) + "\n")
        return {"Successful": [{"Id": entry["Id"], "MessageId": f"m{number}"}]}


class FakeFailover:
    title = "the instance shop"
    every = 0.01
    asks = "answers"

    def __init__(self) -> None:
        self.started = threading.Event()
        self.trouble = ""
        self.lasts_rows: Mapping[str, int] | None = None
        self.on_start: Callable[[], object] = lambda: None

    def check(self) -> None: ...

    def ask(self) -> str:
        return self.trouble

    def start(self) -> str:
        self.on_start()
        self.started.set()
        return "reboot of shop"

    def notes(self, since: float) -> list[Note]:
        return [Note(since, "RDS: done")]

    def rows(self, run: str) -> Mapping[str, int] | None:
        return self.lasts_rows

    def close(self) -> None: ...


def test_a_probe_is_an_order_of_the_contract_and_can_be_told_from_others() -> None:
    consumer = Consumer(Path("/dev/null"), lambda _: ())
    prepared = Producer(consumer, "q/orders", OrderEvent).prepare(probe(RUN, 7))  # type: ignore[arg-type]
    event = EventDecoder(OrderEvent).decode(prepared.body)
    assert (event.data.order_id, event.data.customer) == (f"{run_name(RUN)}-7", CUSTOMER)
    assert (event.data.version, event.data.total) == (1, 1)


def test_the_trickle_sends_canaries_one_by_one_and_keeps_what_was_refused(tmp_path: Path) -> None:
    consumer = Consumer(tmp_path / "log", lambda _: ())
    trickle = Trickle(Producer(consumer, "q/orders", OrderEvent, max_attempts=1), RUN, 1000)  # type: ignore[arg-type]
    trickle.start()
    wait_for(lambda: len(trickle.sent) > 3)
    consumer.refusing = True
    wait_for(lambda: bool(trickle.sent[-1].error))
    trickle.stop()
    names = {entry["MessageAttributes"][CANARY]["StringValue"] for entry in consumer.entries}
    assert names == {run_name(RUN)}
    probes = trickle.sent
    assert [one.order_id for one in probes] == [f"{run_name(RUN)}-{n}" for n in range(1, len(probes) + 1)]
    assert len({one.event_id for one in probes}) == len(probes)
    assert probes[-1].message_id is None
    assert probes[-1].error == "Throttling: slow down"


def test_what_ends_the_trickle_is_not_swallowed(tmp_path: Path) -> None:
    trickle = Trickle(Producer(object(), "q/orders", OrderEvent), RUN, 1000)  # type: ignore[arg-type]
    trickle.start()
    trickle.stop()
    with pytest.raises(AttributeError):
        _ = trickle.sent
    assert list(tmp_path.iterdir()) == []


def test_the_sampler_keeps_answers_and_counts_troubles() -> None:
    answers = iter(["", "", "target UNAVAILABLE", OSError("no route\nto host"), ""])
    over = threading.Event()

    def ask() -> str:
        answer = next(answers, None)
        if answer is None:
            over.set()
            return ""
        if isinstance(answer, Exception):
            raise answer
        return answer

    sampler = Sampler(ask, 0.0001)
    sampler.start()
    assert over.wait(30)
    sampler.stop()
    assert len(sampler.answered) >= 3
    assert sampler.troubles == {"target UNAVAILABLE": 1, "OSError: no route": 1}
    assert sampler.trouble == ""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ── whole drills ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def short_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BASELINE_S", 0.01)


def a_drill(
    log: Path,
    fates: Callable[[int], Iterable[str]],
    failover: FakeFailover,
    *,
    interrupted: threading.Event | None = None,
    **options: float,
) -> tuple[Drill, list[str]]:
    said: list[str] = []
    producer = Producer(Consumer(log, fates), "q/orders", OrderEvent, max_attempts=1)  # type: ignore[arg-type]
    given = {"rate": 100.0, "seconds": 0.1, "goal_s": 20.0, "grace_s": 0.2, "baseline_s": 0.1, "poll_s": 0.01}
    drill = Drill(
        failover,
        producer,
        LogFile(log, run_name(RUN)),
        RUN,
        Options(**given | options),
        interrupted=interrupted or threading.Event(),
        say=said.append,
        show=lambda _: None,
    )
    return drill, said


@pytest.mark.parametrize(
    ("consumer", "missed"),
    [
        (lambda _: ["applied"], set()),
        (lambda n: ["unavailable", "saturated", "applied"] if n > 8 else ["applied"], set()),
        (lambda n: ["applied", "applied"] if n == 8 else ["applied"], {"doubled"}),
        (lambda n: [] if n == 8 else ["applied"], {"lost"}),
        (lambda n: ["unavailable"] if n == 8 else ["applied"], {"lost"}),
        (lambda n: ["dead-lettered"] if n == 8 else ["applied"], {"dead-lettered"}),
    ],
    ids=["honest", "gives-back", "doubles", "loses", "keeps", "buries"],
)
def test_a_drill_finds_what_a_consumer_does(
    tmp_path: Path, consumer: Callable[[int], Iterable[str]], missed: set[str]
) -> None:
    failover = FakeFailover()
    drill, said = a_drill(tmp_path / "orders.log", consumer, failover)
    report = drill.run("shop", "orders")
    assert report is not None
    assert {check.name for check in report.checks if not check.holds} == missed, report.checks
    named = [f"{run_name(RUN)}-8"]
    assert report.lost == (named if "lost" in missed else [])
    assert report.doubled == (named if "doubled" in missed else [])
    assert report.sent == report.done + len(report.lost) + report.dead_lettered
    assert report.database.well > 0
    assert [line.partition(":")[0] for line in said[:2]] == ["baseline", "failover started"]
    assert report.failover == "reboot of shop"
    assert "RDS: done" in {one.what for one in report.timeline}


class SlowLog:
    """A log that is read late: after the last probe was sent, `behind` times without anything new."""

    def __init__(self, watch: LogFile, said: list[str], *, behind: int, error: Exception | None = None) -> None:
        self._watch, self._said, self._behind, self._error = watch, said, behind, error

    def poll(self) -> list[Fate]:
        if len(self._said) == 1:
            return self._watch.poll()
        if self._said[-1].startswith("failover started"):
            return []
        self._behind -= 1
        if self._behind < 0:
            return self._watch.poll()
        if self._error is not None:
            raise self._error
        return []


THROTTLED = ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, "FilterLogEvents")


@pytest.mark.parametrize(
    ("behind", "error", "missed"), [(3, None, set()), (3, THROTTLED, set()), (10_000, THROTTLED, {"log", "lost"})]
)
def test_the_last_probes_are_waited_for(
    tmp_path: Path, behind: int, error: Exception | None, missed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drill, said = a_drill(tmp_path / "orders.log", lambda _: ["applied"], FakeFailover())
    slow = SlowLog(LogFile(tmp_path / "orders.log", run_name(RUN)), said, behind=behind, error=error)
    monkeypatch.setattr(drill, "_watch", slow)
    report = drill.run("shop", "orders")
    assert report is not None
    assert {check.name for check in report.checks if not check.holds} == missed, report.checks


def test_a_log_that_cannot_be_read_ends_the_drill_before_anything_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failover = FakeFailover()
    drill, said = a_drill(tmp_path / "orders.log", lambda _: ["applied"], failover)

    def refuse() -> list[Fate]:
        raise THROTTLED

    watch = LogFile(tmp_path / "orders.log", run_name(RUN))
    monkeypatch.setattr(watch, "poll", refuse)
    monkeypatch.setattr(drill, "_watch", watch)
    with pytest.raises(ClientError):
        drill.run("shop", "orders")
    assert len(said) == 1
    assert not failover.started.is_set()


def test_a_fleet_in_trouble_gets_no_drill(tmp_path: Path) -> None:
    failover = FakeFailover()
    drill, _ = a_drill(tmp_path / "orders.log", lambda n: ["applied"] if n < 3 else ["unavailable"], failover)
    with pytest.raises(SpillwayError, match=r"Nothing was failed over: 2 of \d+ probes were done .* expected 5"):
        drill.run("shop", "orders")
    assert not failover.started.is_set()
    assert drill.started == ""


def test_a_database_in_trouble_gets_no_drill(tmp_path: Path) -> None:
    failover = FakeFailover()
    failover.trouble = "target UNAVAILABLE AUTH_FAILURE"
    drill, _ = a_drill(tmp_path / "orders.log", lambda _: ["applied"], failover)
    with pytest.raises(SpillwayError, match="The database: target UNAVAILABLE AUTH_FAILURE"):
        drill.run("shop", "orders")
    assert not failover.started.is_set()


def test_a_drill_that_is_interrupted_waits_for_nothing(tmp_path: Path) -> None:
    failover, interrupted = FakeFailover(), threading.Event()
    failover.on_start = interrupted.set
    drill, _ = a_drill(
        tmp_path / "orders.log", lambda _: ["applied"], failover, interrupted=interrupted, seconds=3600, grace_s=3600
    )
    assert drill.run("shop", "orders") is None
    assert drill.started == "reboot of shop"


def test_what_cannot_be_asked_at_the_end_costs_no_report(tmp_path: Path) -> None:
    failover = FakeFailover()

    def broken(run: str) -> Mapping[str, int] | None:
        raise OSError(f"no way to {run}")

    failover.rows = broken  # type: ignore[method-assign]
    drill, _ = a_drill(tmp_path / "orders.log", lambda _: ["applied"], failover)
    report = drill.run("shop", "orders")
    assert report is not None
    assert report.goal_met
    assert any("could not be asked: OSError" in one.what for one in report.timeline)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────

app = typer.Typer()
app.command()(command.failover_drill)

WORKERS = {
    name: Worker(
        name=name, queue_url=f"http://sqs/shop-{name}", dead_letter_url="http://sqs/dlq", function=name, logs="log"
    )
    for name in ("orders", "payments")
}


class FakeSqs:
    def get_queue_attributes(self, **_: Any) -> dict[str, Any]:
        return {"Attributes": {"VisibilityTimeout": "0"}}


class FakeFleet(Fleet):
    clients: Mapping[str, Any] = {}

    def client(self, service: str, *, connections: int = 10) -> Any:
        return self.clients[service]


def fleet(*resources: Resource, **clients: Any) -> Fleet:
    made = FakeFleet(name="shop", workers=WORKERS, region="eu-west-1", resources=resources)
    object.__setattr__(made, "clients", {"sqs": FakeSqs()} | clients)
    return made


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeFailover:
    """A fleet on AWS whose failover is fake."""
    failover = FakeFailover()
    log = tmp_path / "orders.log"
    consumer = Consumer(log, lambda _: ["applied"])
    monkeypatch.setattr(command, "find_fleet", lambda *_: fleet())
    monkeypatch.setattr(command, "_failover", lambda *_: failover)
    monkeypatch.setattr(command, "GRACE_S", 5)
    monkeypatch.setattr(command, "AWS_POLL_S", 0.01)
    monkeypatch.setattr(command, "watch", lambda _fleet, _worker, name, _since: LogFile(log, name))
    monkeypatch.setattr(command, "_producer", lambda *_: Producer(consumer, "q/orders", OrderEvent))  # type: ignore[arg-type]
    return failover


def invoke(*arguments: str, typed: str | None = None) -> Any:
    result = CliRunner().invoke(app, ["--rate", "100", "--seconds", "0.2", *arguments], input=typed)
    if isinstance(result.exception, SpillwayError):
        result.exit_code = result.exception.exit_code
    return result


@pytest.mark.parametrize("typed", ["", "shopp\n", "yes\n", "\n"])
def test_nothing_happens_on_aws_before_the_name_is_typed(deployed: FakeFailover, typed: str) -> None:
    result = invoke("--stack", "shop", typed=typed)
    assert result.exit_code == 1
    assert not deployed.started.is_set()
    assert "This fails over the instance shop" in result.stderr


def test_the_report_is_all_that_standard_output_gets(deployed: FakeFailover) -> None:
    result = invoke("--stack", "shop", "--json", typed="shop\n")
    assert result.exit_code == 0, result.output
    assert deployed.started.is_set()
    report = json.loads(result.stdout)
    assert report["goal_met"] is True
    assert report["sent"] == report["done"] > 10
    assert report["remove"].startswith("DELETE FROM spillway.orders WHERE order_id LIKE 'drill-")


def test_a_missed_goal_is_3(deployed: FakeFailover) -> None:
    deployed.lasts_rows = {}
    result = invoke("--stack", "shop", "--yes")
    assert result.exit_code == 3, result.output
    assert "MISSED" in result.stdout
    assert "are lost" in result.stdout


def test_what_a_drill_left_is_said_when_it_could_not_start(deployed: FakeFailover) -> None:
    def refuse() -> None:
        raise SpillwayError("AWS denied RebootDBInstance.")

    deployed.on_start = refuse
    result = invoke("--stack", "shop", "--yes")
    assert result.exit_code == 1
    assert "not confirmed" in result.stderr
    assert "DELETE FROM spillway.orders" in result.stderr


def test_only_a_worker_that_takes_orders_is_drilled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_fleet", lambda *_: fleet())
    result = invoke("--worker", "payments", "--stack", "shop", "--yes")
    assert str(result.exception).startswith("The worker payments takes no orders")


# ── where it is started ──────────────────────────────────────────────────────────────────────────────────────────────


def local_state(**changes: Any) -> StackState:
    login = WorkerLogin(proxy=True, host="127.0.0.1", port=1, database="d", user="u", password="")
    given: dict[str, Any] = {
        "pid": 1,
        "endpoint_url": "http://127.0.0.1:1",
        "region": "us-east-1",
        "queues": {},
        "dead_letter_queues": {},
        "dsn": "",
        "started_at": 1.0,
        "log_dir": "",
        "proxy_admin_url": "http://127.0.0.1:1",
        "login": login,
    }
    return StackState(**given | changes)


@pytest.mark.parametrize("changes", [{"proxy_admin_url": None}, {"login": None}])
def test_the_local_stack_without_a_proxy_has_nothing_to_fail_over(changes: dict[str, Any]) -> None:
    with pytest.raises(SpillwayError, match="without an RDS Proxy"):
        LocalFailover(local_state(**changes), 1.0)


INSTANCE = Resource("Instance", "AWS::RDS::DBInstance", "shop", "Database")
CLUSTER = Resource("Cluster", "AWS::RDS::DBCluster", "shop", "Database")
WRITER = Resource("Writer", "AWS::RDS::DBInstance", "shop-1", "Database")
PROXY = Resource("Proxy", "AWS::RDS::DBProxy", "shop-proxy", "Proxy")
HEALTHY = {
    "Role": "READ_WRITE",
    "Type": "RDS_INSTANCE",
    "RdsResourceId": "shop",
    "TargetHealth": {"State": "AVAILABLE"},
}


class Rds:
    """A stubbed RDS; `once` is the client that starts the failover."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = {"region_name": "eu-west-1", "aws_access_key_id": "a", "aws_secret_access_key": "s"}
        self.client, self.once = boto3.client("rds", **keys), boto3.client("rds", **keys)
        self.stub, self.stub_once = Stubber(self.client), Stubber(self.once)
        self.stub.activate()
        self.stub_once.activate()
        self.attempts: list[int] = []

        def made(_service: str, *_: Any, attempts: int = 3) -> Any:
            self.attempts.append(attempts)
            return self.once

        monkeypatch.setattr(aws, "client", made)

    def instance(self, **about: Any) -> None:
        about = {"DBInstanceStatus": "available", "MultiAZ": True, "AvailabilityZone": "eu-west-1a"} | about
        self.stub.add_response("describe_db_instances", {"DBInstances": [about]}, {"DBInstanceIdentifier": "shop"})

    def cluster(self, writer: str, *members: str, status: str = "available") -> None:
        about = {
            "Status": status,
            "DBClusterMembers": [{"DBInstanceIdentifier": m, "IsClusterWriter": m == writer} for m in members],
        }
        self.stub.add_response("describe_db_clusters", {"DBClusters": [about]}, {"DBClusterIdentifier": "shop"})

    def targets(self, *targets: dict[str, Any], proxy: str = "shop-proxy") -> None:
        self.stub.add_response("describe_db_proxy_targets", {"Targets": list(targets)}, {"DBProxyName": proxy})


@pytest.fixture
def rds(monkeypatch: pytest.MonkeyPatch) -> Rds:
    return Rds(monkeypatch)


def test_an_instance_is_rebooted_with_failover(rds: Rds) -> None:
    failover = AwsFailover(fleet(INSTANCE, PROXY, rds=rds.client))
    rds.instance()
    rds.targets(HEALTHY)
    rds.instance()
    failover.check()
    rds.stub_once.add_response("reboot_db_instance", {}, {"DBInstanceIdentifier": "shop", "ForceFailover": True})
    assert failover.start() == "reboot of the instance shop with failover, from eu-west-1a"
    assert rds.attempts == [1]  # a second try could fail over twice
    rds.stub.add_response(
        "describe_events",
        {"Events": [{"Date": datetime(2026, 11, 21, tzinfo=UTC), "Message": "Multi-AZ instance failover completed"}]},
        {
            "SourceType": "db-instance",
            "SourceIdentifier": "shop",
            "StartTime": datetime.fromtimestamp(T0, UTC),
        },
    )
    rds.instance(AvailabilityZone="eu-west-1b")
    event, writer = failover.notes(T0)
    assert event.what == "RDS: Multi-AZ instance failover completed"
    assert writer.what == "the writer is eu-west-1b, before it was eu-west-1a"
    assert failover.rows("x") is None
    rds.stub.assert_no_pending_responses()
    rds.stub_once.assert_no_pending_responses()


def test_a_cluster_fails_over_to_a_reader(rds: Rds) -> None:
    failover = AwsFailover(fleet(WRITER, CLUSTER, PROXY, rds=rds.client))
    rds.cluster("shop-1", "shop-1", "shop-2")
    rds.targets(
        {"Role": "READ_ONLY", "TargetHealth": {"State": "UNAVAILABLE"}},
        {"Role": "READ_WRITE", "TargetHealth": {"State": "AVAILABLE"}},
    )
    rds.cluster("shop-1", "shop-1", "shop-2")
    failover.check()
    rds.stub_once.add_response("failover_db_cluster", {}, {"DBClusterIdentifier": "shop"})
    assert failover.start() == "failover of the cluster shop, whose writer was shop-1"
    rds.stub.add_response("describe_events", {"Events": []})
    rds.cluster("shop-1", "shop-1", "shop-2")
    assert [note.what for note in failover.notes(T0)] == ["the writer is shop-1, as before"]
    rds.stub_once.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"MultiAZ": False}, "has no standby"),
        ({"DBInstanceStatus": "modifying"}, "The instance shop is modifying, not available"),
    ],
)
def test_an_instance_that_cannot_fail_over_is_left_alone(rds: Rds, about: dict[str, Any], why: str) -> None:
    failover = AwsFailover(fleet(INSTANCE, PROXY, rds=rds.client))
    rds.instance(**about)
    with pytest.raises(SpillwayError, match=why):
        failover.check()


def test_a_cluster_that_cannot_fail_over_is_left_alone(rds: Rds) -> None:
    failover = AwsFailover(fleet(CLUSTER, PROXY, rds=rds.client))
    rds.cluster("shop-1", "shop-1")
    with pytest.raises(SpillwayError, match="has no reader that could take over"):
        failover.check()
    rds.cluster("shop-1", "shop-1", "shop-2", status="failing-over")
    with pytest.raises(SpillwayError, match="The cluster shop is failing-over, not available"):
        failover.check()


def test_a_proxy_without_its_database_gets_no_drill(rds: Rds) -> None:
    failover = AwsFailover(fleet(INSTANCE, PROXY, rds=rds.client))
    rds.instance()
    rds.targets({"Role": "READ_WRITE", "TargetHealth": {"State": "UNAVAILABLE", "Reason": "AUTH_FAILURE"}})
    with pytest.raises(SpillwayError, match="target UNAVAILABLE AUTH_FAILURE"):
        failover.check()
    rds.targets({"Role": "UNKNOWN", "TargetHealth": {"State": "UNAVAILABLE", "Reason": "UNREACHABLE"}})
    assert failover.ask() == "the proxy has no writer"


def with_parameter(value: str) -> Any:
    client = boto3.client("cloudformation", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="s")
    stub = Stubber(client)
    about = {"StackName": "shop", "CreationTime": datetime(2026, 1, 1, tzinfo=UTC), "StackStatus": "CREATE_COMPLETE"}
    stub.add_response(
        "describe_stacks",
        {"Stacks": [about | {"Parameters": [{"ParameterKey": "ProxyName", "ParameterValue": value}]}]},
        {"StackName": "shop"},
    )
    stub.activate()
    return client


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ({"Type": "RDS_INSTANCE", "RdsResourceId": "db"}, (False, "db")),
        ({"Type": "RDS_INSTANCE", "RdsResourceId": "db-1", "TrackedClusterId": "db"}, (True, "db")),
        ({"Type": "TRACKED_CLUSTER", "RdsResourceId": "db"}, (True, "db")),
    ],
)
def test_a_database_that_was_brought_along_is_found_by_its_proxy(
    rds: Rds, target: dict[str, Any], found: tuple[bool, str]
) -> None:
    rds.targets(target, proxy="shared")
    failover = AwsFailover(fleet(rds=rds.client, cloudformation=with_parameter("shared")))
    assert (failover.cluster, failover.identifier) == found


def test_a_fleet_without_a_known_database_is_refused(rds: Rds) -> None:
    with pytest.raises(SpillwayError, match="has no database of its own"):
        AwsFailover(fleet(rds=rds.client, cloudformation=with_parameter("")))


def test_without_a_proxy_the_database_itself_is_looked_at(rds: Rds) -> None:
    failover = AwsFailover(fleet(INSTANCE, rds=rds.client, cloudformation=with_parameter("")))
    rds.instance(DBInstanceStatus="rebooting")
    assert failover.ask() == "the instance shop is rebooting"
    rds.instance()
    assert failover.ask() == ""
