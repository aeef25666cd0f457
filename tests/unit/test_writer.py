"""The writer follows the failure table. The store is a script here; tests/integration has the real database."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import errors

from workers.runtime.breaker import PROBE_ROWS, Breaker
from workers.runtime.calls import Calls
from workers.runtime.failures import POLICIES, Failure
from workers.runtime.invocation import Invocation
from workers.runtime.writer import BatchWriter, Written

ATTEMPT_S, CONNECT_S = 2.0, 1.0


class Line(msgspec.Struct):
    id: UUID


def lines(count: int) -> list[Line]:
    return [Line(UUID(int=number)) for number in range(1, count + 1)]


class Script:
    """A store whose `judge` decides over each call: returns an error to raise, or None. Time passes per call."""

    def __init__(self, judge: Any, cost_s: float = 0.0) -> None:
        self.judge = judge
        self.cost_s = cost_s
        self.now = 0.0
        self.calls: list[list[int]] = []
        self.discards = 0
        self.connected = True

    def fetch(self, _statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        ids = [UUID(row["id"]) for row in msgspec.json.decode(parameter)]
        self.calls.append([one.int for one in ids])
        self.now += self.cost_s
        self.connected = True
        if (error := self.judge(len(self.calls), [one.int for one in ids])) is not None:
            raise error
        return [(one, "applied", None, None) for one in ids]

    def discard(self) -> None:
        self.discards += 1
        self.connected = False


def write(
    store: Script,
    rows: list[Line],
    budget_s: float = 1000.0,
    groups: dict[UUID, str] | None = None,
    breaker: Breaker | None = None,
) -> tuple[Written, Invocation]:
    def sleep(seconds: float) -> None:
        store.now += seconds

    calls = Calls(
        store, attempt_s=ATTEMPT_S, connect_timeout_s=CONNECT_S, breaker=breaker, sleep=sleep, rng=random.Random(1)
    )
    invocation = Invocation(lambda: budget_s - store.now)
    return BatchWriter(calls, "SELECT").write(rows, invocation, groups), invocation


def ids(done: tuple[Written, Invocation]) -> tuple[set[int], set[int]]:
    """Answered and given back; every event must be in exactly one."""
    written, _ = done
    answered = [answer[0].int for answer in written.answers]
    assert len(answered) == len(set(answered))
    given_back = {one.int for one in written.given_back}
    assert not given_back & set(answered)
    return set(answered), given_back


def test_all_goes_well_in_one_call() -> None:
    store = Script(lambda *_: None)
    assert ids(write(store, lines(100))) == (set(range(1, 101)), set())
    assert len(store.calls) == 1


def test_nothing_to_write_is_no_call() -> None:
    store = Script(lambda *_: None)
    write(store, [])
    assert store.calls == []


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (errors.DeadlockDetected("x"), Failure.CONFLICT),
        (errors.AdminShutdown("x"), Failure.UNAVAILABLE),
        (psycopg.OperationalError("server closed the connection unexpectedly"), Failure.UNAVAILABLE),
    ],
)
def test_passing_failures_are_retried_in_place(error: Exception, failure: Failure) -> None:
    store = Script(lambda call, _: error if call < 3 else None)
    written, invocation = write(store, lines(10))
    assert ids((written, invocation)) == (set(range(1, 11)), set())
    assert len(store.calls) == 3
    assert store.discards == (2 if POLICIES[failure].reconnect else 0)
    assert [kind for kind, _ in invocation.errors] == [failure, failure]


@pytest.mark.parametrize(
    ("error", "failure", "calls"),
    [
        (errors.DeadlockDetected("x"), Failure.CONFLICT, 4),
        (errors.AdminShutdown("x"), Failure.UNAVAILABLE, 8),
        (errors.TooManyConnections("x"), Failure.SATURATED, 1),
        (psycopg.OperationalError("Timed-out waiting to acquire database connection."), Failure.SATURATED, 1),
        (errors.UndefinedFunction("x"), Failure.MISCONFIGURED, 1),
        (errors.InternalError_("Unknown error."), Failure.UNKNOWN, 1),
        (errors.QueryCanceled("x"), Failure.SLOW, 7),  # the whole, 2 halves, 4 quarters
    ],
)
def test_lasting_failures_give_everything_back(error: Exception, failure: Failure, calls: int) -> None:
    store = Script(lambda *_: error)
    written, invocation = write(store, lines(100))
    assert ids((written, invocation)) == (set(), set(range(1, 101)))
    assert set(written.given_back.values()) == {failure}
    assert len(store.calls) == calls


@given(count=st.integers(1, 300), seed=st.integers(), share=st.floats(0, 0.2))
def test_records_that_abort_the_call_are_found_and_only_they_are_invalid(count: int, seed: int, share: float) -> None:
    rng = random.Random(seed)
    bad = {number for number in range(1, count + 1) if rng.random() < share}
    store = Script(lambda _, sent: errors.UntranslatableCharacter("x") if bad & set(sent) else None)
    written, invocation = write(store, lines(count))
    assert ids((written, invocation)) == (set(range(1, count + 1)), set())
    assert {answer[0].int for answer in written.answers if answer[1] == "invalid"} == bad
    assert {answer[2] for answer in written.answers if answer[1] == "invalid"} <= {"22P05"}


def test_saturation_in_the_middle_of_isolating_gives_the_rest_back() -> None:
    def judge(call: int, sent: list[int]) -> Exception | None:
        if call >= 3:
            return errors.TooManyConnections("x")
        return errors.UntranslatableCharacter("x") if 7 in sent else None

    store = Script(judge)
    written, invocation = write(store, lines(16))
    answered, given_back = ids((written, invocation))
    assert answered | given_back == set(range(1, 17))
    assert len(store.calls) == 3, "no write after a borrow timeout"
    assert set(written.given_back.values()) == {Failure.SATURATED}


def test_no_attempt_starts_without_the_time_for_it() -> None:
    store = Script(lambda *_: errors.AdminShutdown("x"), cost_s=1.0)
    written, invocation = write(store, lines(5), budget_s=5.0)
    assert ids((written, invocation)) == (set(), {1, 2, 3, 4, 5})
    # The last one began with at least attempt + connect seconds left.
    assert 1 <= len(store.calls) <= 3

    late = Script(lambda *_: None)
    late.connected = False
    assert ids(write(late, lines(1), budget_s=ATTEMPT_S + CONNECT_S - 0.1)) == (set(), {1})
    assert late.calls == []
    assert ids(write(late, lines(1), budget_s=ATTEMPT_S + CONNECT_S)) == ({1}, set())


def test_poison_that_there_is_no_time_to_isolate_is_given_back_not_condemned() -> None:
    store = Script(lambda *_: errors.UntranslatableCharacter("x"), cost_s=3.0)
    written, invocation = write(store, lines(8), budget_s=10.0)
    answered, given_back = ids((written, invocation))
    assert answered | given_back == set(range(1, 9))
    assert given_back


class Liar(Script):
    """Answers for something else: `twist` changes the true answer."""

    def __init__(self, twist: Any) -> None:
        super().__init__(lambda *_: None)
        self.twist = twist

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        return self.twist(super().fetch(statement, parameter))


@pytest.mark.parametrize(
    "twist",
    [
        lambda answers: [],
        lambda answers: answers[:-1],
        lambda answers: [*answers, answers[0]],
        lambda answers: [answers[0], *answers[:-1]],
        lambda answers: [(UUID(int=999), *answers[0][1:]), *answers[1:]],
    ],
    ids=["none", "one missing", "one too many", "one doubled", "somebody else's"],
)
def test_answers_about_other_events_are_never_success(twist: Any) -> None:
    store = Liar(twist)
    written, invocation = write(store, lines(4))
    assert ids((written, invocation)) == (set(), {1, 2, 3, 4})
    assert set(written.given_back.values()) == {Failure.UNKNOWN}
    assert store.discards, "a connection that answers for others must not be used again"


def groups_of(rows: list[Line], count: int) -> dict[UUID, str]:
    return {row.id: f"group {row.id.int % count}" for row in rows}


@settings(deadline=None)
@given(st.data())
def test_behind_a_row_that_was_not_done_the_rest_of_its_group_is_held(data: st.DataObject) -> None:
    """Whatever a batch is cut into: the pieces must not overtake each other within a group."""
    count = data.draw(st.integers(1, 30))
    rows = lines(count)
    groups = groups_of(rows, data.draw(st.integers(1, 4)))
    aborting = data.draw(st.sets(st.integers(1, count), max_size=3))
    failing = data.draw(
        st.dictionaries(st.integers(1, 12), st.sampled_from([errors.QueryCanceled, errors.AdminShutdown]))
    )
    applied: list[int] = []

    class Group(Script):
        def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
            answers = super().fetch(statement, parameter)
            applied.extend(answer[0].int for answer in answers)
            return answers

    def judge(call: int, sent: list[int]) -> Exception | None:
        if call in failing:
            return failing[call]("x")
        return errors.UntranslatableCharacter("x") if aborting & set(sent) else None

    done = write(Group(judge), rows, groups=groups)
    answered, given_back = ids(done)
    assert answered | given_back == set(range(1, count + 1))
    for group in set(groups.values()):
        members = [row.id.int for row in rows if groups[row.id] == group]
        mine = [one for one in applied if one in members]
        assert mine == sorted(mine)
        not_applied = [one for one in members if one not in mine]
        assert not mine or not not_applied or max(mine) < min(not_applied), "nobody overtook"


def test_other_groups_go_on() -> None:
    rows = lines(16)
    store = Script(lambda _, sent: errors.UntranslatableCharacter("x") if 3 in sent else None)
    written, invocation = write(store, rows, groups=groups_of(rows, 4))
    answered, given_back = ids((written, invocation))
    assert given_back == {7, 11, 15}
    assert set(written.given_back.values()) == {Failure.HELD}
    assert 3 in answered


def test_half_open_the_first_piece_is_a_small_probe() -> None:
    now = [0.0]
    for error, calls in [(None, [PROBE_ROWS, 90]), (errors.TooManyConnections("x"), [PROBE_ROWS])]:
        breaker = Breaker(lambda: now[0])
        breaker.saturated()
        assert write(Script(lambda *_: None), lines(100), breaker=breaker)[1].turned_away
        now[0] += 100
        store = Script(lambda *_, error=error: error)
        answered, _ = ids(write(store, lines(100), breaker=breaker))
        assert [len(call) for call in store.calls] == calls
        assert len(answered) == (0 if error else 100)
        assert breaker.closed is (error is None)


def test_a_row_that_cannot_be_encoded_is_given_back() -> None:
    class Odd(msgspec.Struct):
        id: UUID
        value: Any

    rows: Any = [Odd(UUID(int=1), object())]
    written, invocation = write(Script(lambda *_: None), rows)
    assert ids((written, invocation)) == (set(), {1})
    assert set(written.given_back.values()) == {Failure.UNKNOWN}


def test_no_pause_is_billed_that_leaves_no_time_for_an_attempt() -> None:
    store = Script(lambda *_: errors.AdminShutdown("x"))
    write(store, lines(1), budget_s=ATTEMPT_S + CONNECT_S)
    assert store.now == 0.0
