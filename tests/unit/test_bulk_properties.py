"""Any mixture of messages and mishaps: each message ends once, nobody overtakes in a FIFO group, nothing is made up."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import errors

from tests.unit.fakes import FakeSqs, FakeStore, processor, record
from tests.unit.test_bulk import run
from workers.runtime.attempts import CRASH_LIMIT, SOLO_MAX
from workers.runtime.breaker import Breaker
from workers.runtime.envelope import CloudEvent
from workers.runtime.failures import Poison, Reason


class Plain(CloudEvent, kw_only=True, frozen=True, gc=False, tag="plain"):
    data: dict[str, Any]


class PlainRow(msgspec.Struct):
    id: UUID
    place: int


def to_row(event: Plain) -> PlainRow:
    if event.source == "mistake":
        raise KeyError("ours")
    if event.source == "refused":
        raise Poison(Reason.CONTRACT, "refused by the record handler")
    return PlainRow(event.id, event.data["place"])


def body(place: int, source: str = "ok", number: int | None = None) -> str:
    return json.dumps(
        {
            "specversion": "1.0",
            "id": str(UUID(int=1 + (place if number is None else number))),
            "type": "plain",
            "source": source,
            "subject": "s",
            "time": "2026-11-21T00:00:00Z",
            "data": {"place": place},
        }
    )


#: What a call of the database may end with, besides well.
MISHAPS: list[Exception] = [
    errors.TooManyConnections("x"),
    errors.AdminShutdown("x"),
    errors.DeadlockDetected("x"),
    errors.QueryCanceled("x"),
    errors.UntranslatableCharacter("x"),
    errors.UndefinedFunction("x"),
    errors.InternalError_("Unknown error."),
    psycopg.OperationalError("Timed-out waiting to acquire database connection."),
    ValueError("a mistake of ours"),
]


class Ordered(FakeStore):
    """A worker's function that keeps order: behind an invalid row of a group, the rest of it is held.

    It has effects, like the real one: each event once, even where the answer is lost (`lost` calls) on its way back.
    """

    def __init__(self, records: list[dict[str, Any]], verdicts: dict[str, str], sqs: FakeSqs) -> None:
        super().__init__()
        self.records = records
        self.verdicts = verdicts
        self.sqs = sqs
        self.mishaps: dict[int, Exception] = {}
        self.lost: set[int] = set()
        self.calls = 0
        self.effects: list[str] = []
        self.overtakings: list[str] = []

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        self.calls += 1
        mishap = self.mishaps.get(self.calls)
        if mishap is not None and self.calls not in self.lost:
            raise mishap
        answers = super().fetch(statement, parameter)
        if mishap is not None:
            raise mishap
        return answers

    def apply(self, ids: list[str]) -> list[tuple[Any, ...]]:
        held: set[str] = set()
        answers = []
        for one in ids:
            group = next(group_of(each) for each in self.records if event_id(each) == one)
            verdict = self.verdicts.get(one, "applied")
            if group and group in held:
                verdict = "held"
            elif verdict in ("invalid", "held", "odd"):
                held.add(group)
            elif verdict == "applied" and one in self.effects:
                verdict = "duplicate"
            elif verdict == "applied":
                self.check_order(one)
                self.effects.append(one)
            answers.append((UUID(one), verdict, "22023" if verdict == "invalid" else None, None))
        return answers

    def check_order(self, one: str) -> None:
        """An effect is in order if it is for a message with this event, of whichever group (a producer may err)."""
        if not any(self.in_order(place) for place, each in enumerate(self.records) if event_id(each) == one):
            # Raised here, the worker would take it for a failing database.
            self.overtakings.append(one)

    def in_order(self, place: int) -> bool:
        """All before it in its group took effect, or left as dead letters, or were judged to be ahead of their turn."""
        group, buried = group_of(self.records[place]), set(self.sqs.reasons)
        return not group or all(
            event_id(before) in self.effects
            or before["messageId"] in buried
            or self.verdicts.get(event_id(before)) in ("gap", "rejected", "stale")
            for before in self.records[:place]
            if group_of(before) == group
        )


def group_of(one: dict[str, Any]) -> str:
    return str(one["attributes"].get("MessageGroupId", ""))


def event_id(one: dict[str, Any]) -> str:
    try:
        return str(json.loads(one["body"])["id"])
    except ValueError:
        return ""


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, str]]:
    fifo = draw(st.booleans())
    count = draw(st.integers(1, 10 if fifo else 3 * SOLO_MAX))
    records, verdicts = [], {}
    receives = draw(st.sampled_from([[1], [1, 2, 3], [3, 7]]))
    for place in range(count):
        kind = draw(st.sampled_from(["ok"] * 5 + ["verdict"] * 2 + ["{", "refused", "mistake", "again"]))
        text = "{" if kind == "{" else body(place, kind)
        if kind == "again" and place:
            text = body(place, number=draw(st.integers(0, place - 1)))
        if kind == "verdict":
            verdicts[str(UUID(int=1 + place))] = draw(
                st.sampled_from(["invalid", "gap", "held", "rejected", "stale", "odd"])
            )
        group = draw(st.sampled_from("abc")) if fifo else ""
        records.append(record(place, text, draw(st.sampled_from(receives)), group))
    return records, verdicts


@settings(max_examples=150, deadline=None)
@given(batch=batches(), data=st.data())
def test_every_message_ends_once_and_only_as_what_was_confirmed(
    batch: tuple[list[dict[str, Any]], dict[str, str]], data: st.DataObject
) -> None:
    records, verdicts = batch
    ids = [one["messageId"] for one in records]
    sqs = FakeSqs(refuses=data.draw(st.sets(st.sampled_from(ids), max_size=3)))
    store = Ordered(records, verdicts, sqs)
    store.mishaps = data.draw(st.dictionaries(st.integers(1, 8), st.sampled_from(MISHAPS), max_size=3))
    store.lost = data.draw(st.sets(st.integers(1, 8), max_size=2))
    store.attempts = data.draw(st.dictionaries(st.sampled_from(ids), st.integers(0, CRASH_LIMIT + 1), max_size=4))
    remembered = dict(store.attempts)
    worker = processor(store, sqs, breaker=Breaker(lambda: 0.0), contract=Plain)

    done, failed = outcome(worker, records)
    buried = sqs.reasons

    assert store.overtakings == []
    assert sorted(done + failed) == sorted(ids), "each ends once"
    assert set(buried) <= set(done), "a dead letter is never given back too"
    for one in records:
        if one["messageId"] in done and one["messageId"] not in buried:
            mine = event_id(one)
            assert mine in store.effects or verdicts.get(mine) in ("rejected", "stale"), "nobody confirmed it"
        if one["messageId"] in buried:
            reason, sqlstate = buried[one["messageId"]]
            if reason == "crashed":
                assert remembered[one["messageId"]] >= CRASH_LIMIT
                assert int(one["attributes"]["ApproximateReceiveCount"]) >= 3
            elif sqlstate != "22P05":  # that is a call that was aborted, down to this one message
                expected = {"undecodable": None, "contract": None, "data": "invalid", "gap": "gap"}[reason]
                assert verdicts.get(event_id(one)) == expected
    # Behind a message of its group that is given back, nothing is reported as done but dead letters.
    for group in {group_of(one) for one in records if group_of(one)}:
        members = [one["messageId"] for one in records if group_of(one) == group]
        first = next((index for index, one in enumerate(members) if one in failed), len(members))
        assert all(one in failed or one in buried for one in members[first:])
    assert {f"r{one[1:]}" for one in failed} == set(sqs.delays), "what is given back is delayed, and nothing else"


def outcome(worker: Any, records: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Message ids that are done and that are given back, as the processor holds them until its context ends."""
    with worker(records, to_row):
        worker.process()
        done = [one["messageId"] for one in worker.success_messages]
        failed = [one["messageId"] for one in worker.fail_messages]
    assert [one["itemIdentifier"] for one in worker.response()["batchItemFailures"]] == failed
    return done, failed


def test_poison_behind_a_message_that_goes_back_is_dead_lettered_and_not_held_too() -> None:
    records = [record(0, body(0, "mistake"), 1, "a"), record(1, "{", 1, "a"), record(2, body(2), 1, "a")]
    sqs = FakeSqs()
    done, failed = outcome(processor(FakeStore(), sqs, contract=Plain), records)
    assert (done, failed) == (["m1"], ["m0", "m2"])
    assert set(sqs.reasons) == {"m1"}


def test_the_same_event_again_behind_one_that_goes_back_goes_back_too() -> None:
    """Whatever it would be: AWS asks for the failed message of a group and all behind it."""
    records = [record(0, body(0), 1, "a"), record(1, body(1), 1, "a"), record(2, body(0), 1, "a")]
    store = FakeStore({str(UUID(int=2)): ("odd", None, None)})
    assert outcome(processor(store, contract=Plain), records) == (["m0"], ["m1", "m2"])


@pytest.mark.parametrize("receives", [1, 3], ids=["in company", "suspect"])
@pytest.mark.parametrize(
    ("first", "verdict"),
    [("{", ""), ("refused", ""), ("mistake", ""), ("ok", "invalid"), ("ok", "gap"), ("ok", "held"), ("ok", "odd")],
)
def test_behind_a_message_that_goes_back_its_group_waits_and_others_go_on(
    first: str, verdict: str, receives: int
) -> None:
    """The first one of group a goes back, in every way there is; here the dead-letter queue refuses it too."""
    records = [
        record(0, first if first == "{" else body(0, first), receives, "a"),
        record(1, body(1), 1, "b"),
        record(2, body(2), 1, "a"),
        record(3, body(1), 1, "b"),
        record(4, body(2), 1, "a"),
    ]
    store = FakeStore({str(UUID(int=1)): (verdict, None, None)} if verdict else {})
    done, failed = outcome(processor(store, FakeSqs(refuses={"m0"}), contract=Plain), records)
    assert (done, failed) == (["m1", "m3"], ["m0", "m2", "m4"])
    if not verdict:
        assert UUID(int=3) not in {UUID(one) for call in store.writes for one in call}, "not even tried"

    again = FakeSqs()
    store.outcomes = {}
    if first != "mistake":
        assert run(processor(store, again, contract=Plain), records, to_row) == []


def test_the_groups_of_suspects_come_last_one_message_at_a_time() -> None:
    records = [
        record(0, body(0), 3, "a"),
        record(1, body(1), 1, "b"),
        record(2, body(2), 1, "a"),
        record(3, body(3), 1, "b"),
    ]
    store = FakeStore()
    assert run(processor(store, contract=Plain), records, to_row) == []
    places = [[UUID(one).int - 1 for one in call] for call in store.writes]
    assert places == [[1, 3], [0], [2]]


def test_suspects_of_a_standard_queue_come_last_and_alone_up_to_a_number() -> None:
    def batch(suspects: int) -> list[dict[str, Any]]:
        return [record(place, body(place), 3 if place < suspects else 1) for place in range(suspects + 5)]

    store = FakeStore()
    assert run(processor(store, contract=Plain), batch(SOLO_MAX), to_row) == []
    assert [len(call) for call in store.writes] == [5] + [1] * SOLO_MAX
    assert store.attempts == {}

    store = FakeStore()
    store.attempts = {"m2": 0, "m7": 1}
    assert run(processor(store, contract=Plain), batch(SOLO_MAX + 1), to_row) == []
    assert [len(call) for call in store.writes] == [5, SOLO_MAX - 1, 1, 1]
    assert store.attempts == {}


def test_a_memory_that_answers_for_other_messages_is_not_believed() -> None:
    class Liar(FakeStore):
        def begin(self, call: dict[str, Any]) -> list[tuple[Any, ...]]:
            return [(f"not {one}", None) for one in call["message_ids"]]

    for count in (1, SOLO_MAX + 1):
        store = Liar()
        records = [record(place, body(place), 3) for place in range(count)]
        assert outcome(processor(store, contract=Plain), records)[0] == []
        assert store.writes == []
