"""Closed, open, half-open; and what an invocation does in each."""

from __future__ import annotations

import random

import pytest
from psycopg import errors

from spillway.histories.orders import generate
from spillway.stack.metrics import MetricStore
from tests.unit.fakes import FakeSqs, FakeStore, processor, record
from tests.unit.test_bulk import run
from workers.runtime.breaker import BASE_S, CAP_S, PROBE_ROWS, Breaker

GOOD = [message.body for message in generate(40, seed=8, duplicates=0, poison=0).messages]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Widest(random.Random):
    """Draws the upper bound."""

    def uniform(self, _a: float, b: float) -> float:
        return b


def test_it_stays_open_for_longer_each_time_up_to_its_cap_and_closes_at_an_answer() -> None:
    clock = Clock()
    breaker = Breaker(clock, Widest())
    assert breaker.closed
    assert not breaker.open
    for expected in (BASE_S, 2 * BASE_S, 4 * BASE_S, 8 * BASE_S, CAP_S, CAP_S):
        assert breaker.saturated() == expected
        assert breaker.open
        clock.now += expected - 0.001
        assert breaker.open
        clock.now += 0.001
        assert not breaker.open, "half-open"
        assert not breaker.closed
    assert breaker.answered()
    assert breaker.closed
    assert not breaker.answered(), "it was closed"
    assert breaker.saturated() == BASE_S, "it starts again"
    for _ in range(3_000):
        breaker.saturated()


def test_environments_that_were_turned_away_together_come_back_apart() -> None:
    draws = [Breaker(rng=random.Random(seed)).saturated() for seed in range(200)]
    assert len({round(draw, 6) for draw in draws}) == 200
    assert min(draws) < 0.1 * BASE_S
    assert max(draws) > 0.9 * BASE_S


@pytest.mark.parametrize("jump_s", [-10_000.0, -0.5, 10_000.0])
def test_a_clock_that_jumps_makes_it_probe_at_worst(jump_s: float) -> None:
    clock = Clock()
    breaker = Breaker(clock, Widest())
    breaker.saturated()
    clock.now += jump_s
    assert not breaker.open


def test_an_open_breaker_turns_invocations_away_until_one_small_probe_succeeds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    sqs = FakeSqs()
    store = FakeStore(error=errors.TooManyConnections("sorry"))
    worker = processor(store, sqs, worker="breaker", breaker=Breaker(clock, Widest()))
    batch = [record(number, body) for number, body in enumerate(GOOD)]
    poisoned = [*batch, record(99, "{")]
    everything = [one["messageId"] for one in batch]

    assert run(worker, batch) == everything
    assert len(store.writes) == 1, "it found out"
    store.error = None
    assert run(worker, poisoned) == everything
    assert len(store.writes) == 1, "turned away"
    assert set(sqs.reasons) == {"m99"}, "poison does not need the database"

    clock.now += BASE_S
    store.error = errors.TooManyConnections("sorry")
    assert run(worker, batch) == everything
    assert [len(ids) for ids in store.writes[1:]] == [PROBE_ROWS]

    clock.now += BASE_S
    store.error = None
    assert run(worker, batch) == everything
    assert len(store.writes) == 2, "open for longer now"
    clock.now += BASE_S
    assert run(worker, batch) == []
    assert [len(ids) for ids in store.writes[2:]] == [PROBE_ROWS, len(GOOD) - PROBE_ROWS]
    assert run(worker, batch) == []
    assert [len(ids) for ids in store.writes[4:]] == [len(GOOD)]

    counted = MetricStore()
    said = capsys.readouterr().out
    for line in said.splitlines():
        counted.feed(line)
    assert counted.sum("BreakerOpen") == 2
    assert counted.sum("SaturatedGivenBack") == 4 * len(GOOD)
    assert (said.count('"breaker_open"'), said.count('"breaker_closed"')) == (1, 1)


def test_an_answer_of_any_kind_closes_it_and_no_other_failure_opens_it() -> None:
    clock = Clock()
    breaker = Breaker(clock, Widest())
    store = FakeStore(error=errors.DeadlockDetected("x"))
    worker = processor(store, breaker=breaker)
    breaker.saturated()
    clock.now += BASE_S
    run(worker, [record(1, GOOD[0])])
    assert breaker.closed, "whoever deadlocks has a connection"
    breaker.saturated()
    for error in (errors.AdminShutdown("x"), errors.UndefinedFunction("x"), errors.InternalError_("x")):
        clock.now += CAP_S
        store.error = error
        run(worker, [record(1, GOOD[0])])
        assert not breaker.closed
        assert not breaker.open, "still half-open"
