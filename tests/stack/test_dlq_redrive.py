"""`spillway dlq redrive` against a real SQS server, and a worker that tells what became of a canary."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from spillway.commands.dlq import acting, journaled, redriving
from spillway.dlq import holding
from spillway.dlq.filters import Filter
from spillway.dlq.holding import Holder
from spillway.dlq.journal import Journal
from spillway.dlq.letters import Letter
from spillway.dlq.pieces import Sender, outgoing
from spillway.dlq.records import SENT
from spillway.dlq.redrive import Redrive
from spillway.dlq.run import Run
from spillway.dlq.verdicts import Trials
from spillway.errors import SpillwayError
from spillway.fleet.fleet import Fleet
from spillway.histories import orders, payments
from spillway.histories.base import VALID
from tests.stack.dlq_consumer import Consumer, DeadLetters, shared_client
from workers.runtime.dead_letters import ATTRIBUTE, CANARY, REASON

app = typer.Typer()
app.command()(redriving.redrive)
app.command()(journaled.history)

GOOD = [m.body for m in orders.generate(120, seed=5, duplicates=0, poison=0).messages if m.kind == VALID]
PAYMENTS = [m for m in payments.generate(100, seed=6, duplicates=0, poison=0).messages if m.kind == VALID]


def broken(body: str) -> str:
    event = json.loads(body)
    event["data"]["currency"] = "euro"
    return json.dumps(event)


def id_of(body: str) -> str:
    return str(json.loads(body)["id"])


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "state" / "stack.json"))
    monkeypatch.setenv("SPILLWAY_JOURNAL", str(tmp_path / "journal.sqlite3"))
    monkeypatch.delenv("SPILLWAY_STACK", raising=False)
    monkeypatch.setattr(Fleet, "client", lambda self, *_, **__: shared_client(self.local.endpoint_url))
    return tmp_path


@pytest.fixture
def letters(sqs_endpoint: str, surroundings: Path) -> DeadLetters:
    return DeadLetters(sqs_endpoint, "orders", surroundings)


@pytest.fixture
def fifo(sqs_endpoint: str, surroundings: Path) -> DeadLetters:
    return DeadLetters(sqs_endpoint, "payments", surroundings, fifo=True)


@pytest.fixture
def journal(surroundings: Path) -> Iterator[Journal]:
    with Journal.open() as one:
        yield one


def run(*arguments: str, worker: str = "orders") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["redrive", worker, *arguments])
    if isinstance(result.exception, SpillwayError):
        return result.exception.exit_code, f"{result.output}{result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def document(*arguments: str, worker: str = "orders") -> tuple[int, dict[str, Any]]:
    status, output = run(*arguments, "--json", worker=worker)
    return status, json.loads(output[output.index("{") :])


def outcome(*arguments: str, worker: str = "orders") -> tuple[int, dict[str, int]]:
    """Exit status and counts of a redrive that acts."""
    status, said = document("--yes", *arguments, worker=worker)
    return status, said["counts"]


def bodies(messages: list[Any]) -> list[str]:
    return sorted(one["Body"] for one in messages)


# What is sent.


def test_what_goes_out_is_the_message_as_it_was_before_it_died(letters: DeadLetters) -> None:
    own = {
        "tenant": {"DataType": "String", "StringValue": "acme"},
        "weight": {"DataType": "Number.float", "StringValue": "1.50"},
        "blob": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    foreign = 'no JSON at all, "é" and \\u0000'
    letters.put(GOOD[:12], own=own)
    letters.put([foreign], reasons={})
    assert outcome("--no-canary") == (0, {"redriven": 13})
    arrived = letters.take(letters.queue)
    assert bodies(arrived) == sorted([*GOOD[:12], foreign])
    assert all(one["MessageAttributes"] == own for one in arrived if one["Body"] != foreign)
    assert [one.get("MessageAttributes") for one in arrived if one["Body"] == foreign] == [None]
    assert letters.depth(letters.dead) == (0, 0)


def test_a_dry_run_says_what_would_go_and_gives_everything_back(letters: DeadLetters, journal: Journal) -> None:
    letters.put(GOOD[:5])
    letters.put([broken(body) for body in GOOD[5:8]], reasons={"reason": "contract", "sqlstate": ""})
    status, said = run("--reason", "data", "--rate", "2")
    assert status == 0
    assert "5 of 8 dead letters would go to" in said
    assert "spillway dlq redrive orders --reason data --rate 2 --yes" in said
    status, plan = document()
    assert [(one["cause"]["reason"], one["count"]) for one in plan["groups"]] == [("data", 5), ("contract", 3)]
    assert letters.depth(letters.dead) == (8, 0)
    assert journal.runs() == []


def test_only_what_is_selected_goes_and_not_more_than_the_limit(letters: DeadLetters) -> None:
    letters.put(GOOD[:30])
    letters.put([broken(body) for body in GOOD[30:60]], reasons={"reason": "contract"})
    assert outcome("--no-canary", "--reason", "contract", "--limit", "7") == (0, {"redriven": 7})
    assert letters.depth(letters.dead) == (53, 0)
    assert outcome("--no-canary", "--event-id", id_of(GOOD[3])) == (0, {"redriven": 1})
    assert outcome("--no-canary", "--reason", "contract") == (0, {"redriven": 23})
    assert bodies(letters.take(letters.dead)) == sorted(set(GOOD[:30]) - {GOOD[3]})


def test_another_queue(letters: DeadLetters) -> None:
    elsewhere = letters.client.create_queue(QueueName="elsewhere")["QueueUrl"]
    letters.put(GOOD[:3])
    assert run("--to", elsewhere, "--yes")[0] == 2, "nobody there tells of a canary"
    for wrong in (letters.dead, "orders-dlq"):
        assert run("--to", wrong)[0] in (1, 2)
    assert outcome("--to", elsewhere, "--no-canary") == (0, {"redriven": 3})
    assert bodies(letters.take(elsewhere)) == sorted(GOOD[:3])


# Canaries.


def test_a_group_goes_if_its_canary_is_applied_and_stays_if_it_dies_again(
    letters: DeadLetters, journal: Journal
) -> None:
    letters.put(GOOD[:20])
    letters.put([broken(body) for body in GOOD[20:30]], reasons={"reason": "contract", "sqlstate": ""})
    with Consumer(letters) as consumer:
        status, said = document("--yes")
        consumer.drain()
    assert status == 3
    assert said["counts"] == {"redriven": 21, "died_again": 1, "stayed": 9}
    verdicts = {one["cause"]["reason"]: (one["verdict"], one["why"]) for one in said["groups"]}
    assert verdicts["data"] == ("passed", "applied")
    assert verdicts["contract"][0] == "died again"
    assert "dead-lettered again: contract (Expected" in verdicts["contract"][1]
    assert len(consumer.order) == 21, "one canary, and those of the good group"
    assert len(letters.take(letters.dead)) == 10, "the nine that stayed, and the canary, dead once more"
    assert len(journal.letters(said["run"], canary=True)) == 2


def test_what_dies_again_is_not_taken_again_by_the_same_run(letters: DeadLetters) -> None:
    """The rest of a group whose canary passed may still die: each once, and it comes back once."""
    poison = GOOD[1:4]
    letters.put(GOOD[:10])
    died = {id_of(body): ("invalid", "23514", "constraint c") for body in poison}
    with Consumer(letters, outcomes=died) as consumer:
        _, counts = outcome("--event-id", id_of(GOOD[0]), *(f"--event-id={id_of(one)}" for one in GOOD[1:10]))
        consumer.drain()
    assert counts["redriven"] == 10
    assert sorted(consumer.order) == sorted(GOOD[:10])
    assert bodies(letters.take(letters.dead)) == sorted(poison)


def test_a_canary_without_an_outcome_keeps_its_group(letters: DeadLetters) -> None:
    letters.put(GOOD[:6])
    status, said = document("--yes", "--canary-timeout", "1")
    assert (status, said["counts"]) == (3, {"redriven": 1, "stayed": 5})
    assert said["groups"][0]["why"] == "no outcome of the canary within 1 s"
    [canary] = letters.take(letters.queue)
    assert canary["MessageAttributes"][CANARY]["StringValue"] == said["run"]
    assert letters.depth(letters.dead) == (5, 0)


def test_a_letter_that_has_no_room_for_the_attribute_is_no_canary(letters: DeadLetters) -> None:
    full = {f"a{number}": {"DataType": "String", "StringValue": "x"} for number in range(9)}
    folded = {"folded-attribute": {"name": "a9", "type": "String", "value": "eA=="}}
    letters.put(GOOD[:3], own=full, reasons=folded)  # type: ignore[arg-type]
    with Consumer(letters) as consumer:
        status, said = document("--yes")
        assert (status, said["counts"]) == (3, {"stayed": 3})
        assert "has room for the canary" in said["groups"][0]["why"]
        assert consumer.order == []
        letters.put(GOOD[3:5])
        assert outcome()[1] == {"redriven": 5}
        consumer.drain()
    assert all(len(names) == 10 for names, body in consumer.seen.values() if body in GOOD[:3])


# Edits.


def test_edited_letters_are_sent_and_both_bodies_kept(letters: DeadLetters, journal: Journal) -> None:
    letters.put([broken(body) for body in GOOD[:4]])
    letters.put(["not JSON"], reasons={"reason": "undecodable"})
    status, said = document("--yes", "--no-canary", "--edit", '{"data": {"currency": "CHF"}}')
    assert (status, said["counts"]) == (3, {"redriven": 4, "refused": 1})
    assert said["refused"] == {"no JSON: repair it with --edit-with": 1}
    arrived = letters.take(letters.queue)
    assert {json.loads(one["Body"])["data"]["currency"] for one in arrived} == {"CHF"}
    edits = journal.letters(said["run"], edited=True)
    assert sorted(one.before or "" for one in edits) == sorted(broken(body) for body in GOOD[:4])
    assert sorted(one.after or "" for one in edits) == bodies(arrived)
    assert bodies(letters.take(letters.dead)) == ["not JSON"]
    shown = CliRunner().invoke(app, ["history", "last"]).output
    assert "no JSON: repair it with --edit-with" in shown
    assert '"currency":"CHF"' in re.sub(r"\s+", "", shown)


def test_a_dry_run_shows_an_edit_and_what_it_would_refuse(letters: DeadLetters) -> None:
    letters.put([broken(body) for body in GOOD[:3]])
    status, plan = document("--edit", '{"data": {"currency": "nowhere"}}')
    assert (status, plan["selected"]) == (0, 0)
    assert list(plan["refused"].values()) == [3]
    status, plan = document("--edit", '{"data": {"currency": "CHF"}}')
    example = plan["groups"][0]["example"]
    assert (json.loads(example["before"])["data"]["currency"], plan["selected"]) == ("euro", 3)
    assert json.loads(example["after"])["data"]["currency"] == "CHF"
    assert letters.depth(letters.dead) == (3, 0)


# FIFO.


def test_fifo_order_is_kept_with_a_canary_in_the_way(fifo: DeadLetters) -> None:
    for message in PAYMENTS:
        fifo.put([message.body], group=message.group)
    with Consumer(fifo) as consumer:
        assert outcome(worker="payments") == (0, {"redriven": len(PAYMENTS)})
        consumer.drain()
    for group in {message.group for message in PAYMENTS}:
        sent = [message.body for message in PAYMENTS if message.group == group]
        assert [body for body in consumer.order if body in sent] == sent


def test_a_thread_that_is_slow_to_send_is_not_overtaken_in_its_message_group(
    fifo: DeadLetters, journal: Journal
) -> None:
    """Pieces end in the middle of what SQS shows of a group; its rest must not go by another thread meanwhile."""
    for number in range(40):
        fifo.put([f"{number:02d}"], group=str(number % 2))
    second = threading.Event()

    def slow(_entries: list[Any]) -> list[dict[str, Any]]:
        if stubborn.calls > 1:
            second.set()
        second.wait(0.5)  # as long as nobody else sends: with two groups somebody does
        return []

    stubborn = Stubborn(fifo.client, slow)
    assert redriven(fifo, journal, stubborn, piece_letters=3).redriven == 40
    arrived = [one["Body"] for one in fifo.take(fifo.queue)]
    for group in range(2):
        own = [body for body in arrived if int(body) % 2 == group]
        assert own == sorted(own)


def test_nothing_overtakes_a_letter_of_its_message_group_that_stays(fifo: DeadLetters) -> None:
    own = {group: [m.body for m in PAYMENTS if m.group == group] for group in {m.group for m in PAYMENTS}}
    one, two = sorted(own, key=lambda group: -len(own[group]))[:2]
    fifo.put([own[one][0], "not an event", *own[one][1:4]], group=one)
    fifo.put(own[two][:4], group=two)
    status, said = document("--yes", "--no-canary", "--edit", "{}", worker="payments")
    assert (status, said["counts"]) == (3, {"redriven": 5, "refused": 1, "stayed": 3})
    assert bodies(fifo.take(fifo.queue)) == sorted([own[one][0], *own[two][:4]])
    assert bodies(fifo.take(fifo.dead)) == sorted(["not an event", *own[one][1:4]])


def test_what_is_not_selected_does_not_hold_back_its_group(fifo: DeadLetters) -> None:
    fifo.put(["0"], reasons={"reason": "contract"})
    fifo.put([str(number) for number in range(1, 6)])
    assert outcome("--no-canary", "--reason", "data", worker="payments") == (0, {"redriven": 5})
    assert [one["Body"] for one in fifo.take(fifo.queue)] == list("12345")


# Interruptions.


class Breaking:
    """Makes a step of a run raise the `after`-th time, or do something else before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], None], after: int = 1):
        real = getattr(owner, name)
        calls = 0

        def step(*given: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == after:
                act()
            return real(*given, **more)

        monkeypatch.setattr(owner, name, step)


def no_room() -> None:
    raise SpillwayError("The journal cannot be used: database or disk is full.")


@pytest.mark.parametrize("after", [1, 2])
def test_without_room_for_the_journal_nothing_is_sent(
    letters: DeadLetters, journal: Journal, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    letters.put(GOOD[:40])
    monkeypatch.setattr(acting, "THREADS", 1)
    Breaking(monkeypatch, Run, "sending", no_room, after)
    status, said = run("--yes", "--no-canary", "--rate", "20")
    assert status == 1
    assert "disk is full" in said
    assert f"Go on with it: spillway dlq redrive orders --resume {journal.find('last').id}" in said
    sent = letters.depth(letters.queue)[0]
    assert sent == 10 * (after - 1)
    assert letters.depth(letters.dead) == (40 - sent, 0)
    assert (journal.find("last").state, journal.find("last").counts.get("redriven", 0)) == ("failed", sent)


@pytest.mark.parametrize("step", ["sent", "deleted"])
def test_what_was_sent_and_could_not_be_written_down_is_not_sent_again(
    letters: DeadLetters, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    letters.put(GOOD[:40])
    with monkeypatch.context() as broken_once:
        Breaking(broken_once, Run, step, no_room)
        assert run("--yes", "--no-canary")[0] == 1
    assert outcome("--no-canary")[0] == 0
    assert bodies(letters.take(letters.queue)) == sorted(GOOD[:40])
    assert letters.depth(letters.dead) == (0, 0)


def test_what_was_sent_but_not_deleted_is_only_deleted(letters: DeadLetters, journal: Journal) -> None:
    """As if killed between the two: the journal knows, whichever run it was."""
    ids = letters.put(GOOD[:8])
    with Holder(letters.client, letters.dead) as holder:
        half = [one for one in holder.receive(10) if one.message_id in ids[:5]]
    before = journal.begin(kind="redrive", fleet="local", queue="q")
    before.sending([Redrive._entry(None, one, reason="") for one in half])  # type: ignore[arg-type]
    before.sent(dict.fromkeys((one.message_id for one in half), "new"))
    plan = document()[1]
    assert (plan["selected"], plan["sent_before"]) == (3, 5)
    assert outcome("--no-canary") == (0, {"redriven": 3, "cleared": 5})
    assert bodies(letters.take(letters.queue)) == sorted(GOOD[5:8])
    assert letters.depth(letters.dead) == (0, 0)
    assert journal.letters(before.id, state=SENT) == []


def test_ctrl_c_ends_it_cleanly_and_resume_goes_on(
    letters: DeadLetters, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.put(GOOD[:50])
    stops: list[threading.Event] = []
    real = acting.interrupts

    def interrupts() -> Any:
        stops.append(threading.Event())
        return real(stops[-1])

    monkeypatch.setattr(acting, "interrupts", interrupts)
    with monkeypatch.context() as once:
        Breaking(once, Run, "deleted", lambda: stops[-1].set())  # noqa: PLW0108  (there is none yet)
        status, said = document("--yes", "--no-canary", "--rate", "40", "--type", "one.*")
    sent = letters.depth(letters.queue)[0]
    assert (status, said["state"], said["counts"]) == (130, "interrupted", {"redriven": sent})
    assert 0 < sent < 50
    assert letters.depth(letters.dead) == (50 - sent, 0)
    assert said["resume"] == f"spillway dlq redrive orders --resume {said['run']}"
    for other in (("--rate", "41"), ("--reason", "data"), ("--to", "orders", "--limit", "3"), ("--edit", "{}")):
        assert run("--resume", "last", *other)[0] == 2
    status, again = document("--resume", said["run"], "--rate", "40")
    assert (status, again["run"], again["counts"]) == (0, said["run"], {"redriven": 50})
    assert bodies(letters.take(letters.queue)) == sorted(GOOD[:50])
    assert run("--resume", "last")[0] == 1, "it is done"


def test_the_limit_of_a_resumed_run_counts_what_it_sent_before(
    letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.put(GOOD[:30])
    with monkeypatch.context() as once:
        Breaking(once, Run, "sending", no_room, 2)
        assert run("--yes", "--no-canary", "--limit", "20", "--rate", "20")[0] == 1
    status, said = document("--resume", "last")
    assert (status, said["counts"]) == (0, {"redriven": 20})


def test_letters_that_somebody_else_holds_leave_the_run_unfinished(letters: DeadLetters) -> None:
    letters.put(GOOD[:20])
    with Holder(letters.client, letters.dead) as somebody:
        assert len(somebody.receive(10)) == 10
        status, said = document("--yes", "--no-canary")
        assert (status, said["state"], said["counts"]) == (3, "unfinished", {"redriven": 10})
    status, said = document("--resume", "last")
    assert (status, said["state"], said["counts"]) == (0, "done", {"redriven": 20})


def test_what_sqs_does_not_show_while_others_are_held_leaves_the_run_unfinished(
    letters: DeadLetters, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on AWS with 120,000 letters that stay: a long poll brings nothing then, and no error. Here they are 20."""
    receive, most, one_at_a_time = Holder.receive, 20, threading.Lock()

    def within_the_quota(self: Holder, *_: int) -> list[Letter]:
        with one_at_a_time:
            return receive(self, 10) if len(self.held) < most else []

    monkeypatch.setattr(holding, "MOST_HELD", most)
    monkeypatch.setattr(Holder, "receive", within_the_quota)
    sure: list[str] = []
    monkeypatch.setattr(Run, "found_gone", lambda self: sure.append(self.id))
    letters.put([broken(body) for body in GOOD[:40]], reasons={"reason": "contract"})
    status, said = document("--yes", "--no-canary", "--reason", "data")
    assert (status, said["state"], said["counts"]) == (3, "unfinished", {})
    assert journal.runs()[0].state == "unfinished"
    status, text = run("--yes", "--no-canary", "--reason", "data")
    assert status == 3
    assert "20 letters or so are beyond the" in " ".join(text.split())
    assert sure == [], "what is not shown is not gone"
    monkeypatch.setattr(holding, "MOST_HELD", 120_000)
    monkeypatch.setattr(Holder, "receive", receive)
    assert document("--resume", "last")[1]["state"] == "done"
    assert sure == [journal.runs()[0].id]
    assert letters.depth(letters.dead) == (40, 0)


# What SQS refuses.


class Stubborn:
    """An SQS client some of whose sends fail as a test wants it."""

    def __init__(self, client: Any, fail: Callable[[list[Any]], list[dict[str, Any]]]) -> None:
        self._client = client
        self._fail = fail
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def send_message_batch(self, *, QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803
        self.calls += 1
        failed = self._fail(Entries)
        ids = {one["Id"] for one in failed}
        good = [one for one in Entries if one["Id"] not in ids]
        answer = self._client.send_message_batch(QueueUrl=QueueUrl, Entries=good) if good else {}
        return {"Successful": answer.get("Successful", []), "Failed": failed}


def redriven(letters: DeadLetters, journal: Journal, client: Any, **more: Any) -> Any:
    """A redrive with a sender that is told what fails."""
    with Holder(letters.client, letters.dead) as holder:
        return Redrive(
            holder=holder,
            sender=Sender(client, letters.queue, fifo=letters.fifo, sleep=lambda _: None),
            run=journal.begin(kind="redrive", fleet="local", queue="q"),
            trials=Trials(None),
            selected=Filter(),
            arrived_by=datetime.now(UTC) + timedelta(seconds=1),
            fifo=letters.fifo,
            to_fifo=letters.fifo,
            **more,
        ).work()


def test_entries_that_sqs_refuses_stay_with_its_reason_and_busy_ones_are_tried_again(
    letters: DeadLetters, journal: Journal
) -> None:
    letters.put(GOOD[:20])
    busy = iter(range(3))

    def fail(entries: list[Any]) -> list[dict[str, Any]]:
        wrong = [one for one in entries if one["MessageBody"] == GOOD[7]]
        failed = [{"Id": one["Id"], "SenderFault": True, "Code": "InvalidMessageContents"} for one in wrong]
        slow = [one for one in entries if one["MessageBody"] == GOOD[8]]
        if slow and next(busy, None) is not None:
            failed += [{"Id": one["Id"], "SenderFault": False, "Code": "ServiceUnavailable"} for one in slow]
        return failed

    tally = redriven(letters, journal, Stubborn(letters.client, fail))
    assert (tally.redriven, dict(tally.refused)) == (19, {"SQS refused it: InvalidMessageContents": 1})
    assert bodies(letters.take(letters.queue)) == sorted(set(GOOD[:20]) - {GOOD[7]})
    assert bodies(letters.take(letters.dead)) == [GOOD[7]]


def test_what_sqs_has_no_time_for_stays_and_can_be_redriven_later(letters: DeadLetters, journal: Journal) -> None:
    letters.put(GOOD[:5])

    def fail(entries: list[Any]) -> list[dict[str, Any]]:
        return [{"Id": one["Id"], "SenderFault": False, "Code": "RequestThrottled"} for one in entries]

    tally = redriven(letters, journal, Stubborn(letters.client, fail))
    assert (tally.redriven, dict(tally.kept)) == (0, {"SQS was busy: RequestThrottled": 5})
    assert outcome("--no-canary") == (0, {"redriven": 5})


def test_a_call_that_is_denied_ends_the_run_and_nothing_is_lost(letters: DeadLetters, journal: Journal) -> None:
    letters.put(GOOD[:30])

    def fail(_entries: list[Any]) -> list[dict[str, Any]]:
        answer: Any = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise ClientError(answer, "SendMessageBatch")

    with pytest.raises(ClientError):
        redriven(letters, journal, Stubborn(letters.client, fail))
    assert journal.counts(journal.find("last").id).keys() == {"stayed"}
    assert bodies(letters.take(letters.dead)) == sorted(GOOD[:30])


def test_in_a_message_group_nothing_goes_after_an_entry_that_sqs_refused(fifo: DeadLetters, journal: Journal) -> None:
    fifo.put(list("abcdef"), group="one")
    fifo.put(list("uvw"), group="two")

    def fail(entries: list[Any]) -> list[dict[str, Any]]:
        return [
            {"Id": one["Id"], "SenderFault": True, "Code": "InvalidMessageContents"}
            for one in entries
            if one["MessageBody"] == "c"
        ]

    tally = redriven(fifo, journal, Stubborn(fifo.client, fail))
    assert tally.redriven == 5
    assert bodies(fifo.take(fifo.queue)) == list("abuvw")
    assert bodies(fifo.take(fifo.dead)) == list("cdef")


def test_a_fifo_letter_sent_twice_by_a_run_arrives_once(fifo: DeadLetters, journal: Journal) -> None:
    """A crash after the send and before the journal knew: the resumed run sends the same deduplication id."""
    fifo.put(list("abc"))
    with Holder(fifo.client, fifo.dead) as holder:
        found = holder.receive(10)
    record = journal.begin(kind="redrive", fleet="local", queue="q")
    sender = Sender(fifo.client, fifo.queue, fifo=True)
    piece = [outgoing(one, one.body, run=record.id, fifo=True) for one in found]
    first, second = sender.send(piece), sender.send(piece)
    assert first.sent == second.sent
    assert len({one.dedup_id for one in piece} | {f"dead-letter-{one.message_id}" for one in found}) == 6
    assert [one["Body"] for one in fifo.take(fifo.queue)] == list("abc")


def test_history_lists_what_was_done(letters: DeadLetters) -> None:
    assert "Nothing was changed yet" in CliRunner().invoke(app, ["history"]).output
    letters.put(GOOD[:3])
    outcome("--no-canary", "--reason", "data")
    shown = CliRunner().invoke(app, ["history"]).output
    assert "3 redriven" in shown
    assert "reason data" in shown
    listed = json.loads(CliRunner().invoke(app, ["history", "--json"]).output)
    assert (listed["runs"][0]["state"], listed["runs"][0]["counts"]) == ("done", {"redriven": 3})
    assert ATTRIBUTE not in shown
    assert REASON not in shown
