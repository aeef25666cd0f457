"""Delays of what was given back: their distribution, their bounds, and what happens when SQS refuses them."""

from __future__ import annotations

import math
import random
import statistics
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.fakes import QUEUE, record
from workers.runtime.failures import POLICIES, Failure
from workers.runtime.sqs import CONNECTIONS, MAX_ENTRIES, Sqs
from workers.runtime.visibility import MAX_AGE_S, MAX_INVISIBLE_S, MIN_BUDGET_S, VISIBILITY_BUDGET_S, Visibility


class Clock:
    def __init__(self, remaining_s: float = 30.0) -> None:
        self.remaining_s = remaining_s
        self.lock = threading.Lock()

    def __call__(self) -> float:
        return self.remaining_s

    def passes(self, seconds: float) -> None:
        with self.lock:
            self.remaining_s -= seconds


class Queue:
    """A client whose calls take `cost_s` of `clock`; `fails` decides over each receipt handle."""

    def __init__(self, clock: Clock | None = None, cost_s: float = 0.0, fails: Any = None) -> None:
        self.clock = clock or Clock()
        self.cost_s = cost_s
        self.fails = fails or (lambda _: "")
        self.calls: list[list[dict[str, Any]]] = []

    def change_message_visibility_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        assert QueueUrl == QUEUE
        self.clock.passes(self.cost_s)
        self.calls.append(Entries)
        failed = [
            {"Id": entry["Id"], "Code": code} for entry in Entries if (code := self.fails(entry["ReceiptHandle"]))
        ]
        return {"Failed": failed} if failed else {}

    @property
    def delays(self) -> dict[str, int]:
        return {entry["ReceiptHandle"]: entry["VisibilityTimeout"] for call in self.calls for entry in call}


def visibility(queue: Any = None, max_delay_s: int = 900, seed: int = 1) -> Visibility:
    return Visibility(QUEUE, Sqs(lambda: queue), max_delay_s=max_delay_s, rng=random.Random(seed))


def given_back(count: int, failure: Failure = Failure.SATURATED, receives: int = 1) -> list[Any]:
    return [(record(number, "{}", receives), failure) for number in range(count)]


@pytest.mark.parametrize("failure", [failure for failure in Failure if failure is not Failure.HELD])
@pytest.mark.parametrize("receives", [1, 2, 3, 5, 12, 1_000])
def test_full_jitter_between_a_second_and_a_ceiling_that_grows_with_each_receive(
    failure: Failure, receives: int
) -> None:
    policy = POLICIES[failure]
    delays = visibility().delays(given_back(4_000, failure, receives))
    ceiling = min(900, policy.max_delay_s, policy.delay_s * policy.growth ** min(receives - 1, 40))
    assert min(delays) >= 1
    assert max(delays) <= math.ceil(ceiling)
    if ceiling >= 5:
        assert max(delays) > 0.9 * ceiling
        assert min(delays) < 1 + 0.1 * ceiling
        assert statistics.mean(delays) == pytest.approx(ceiling / 2, rel=0.1)


@given(st.integers(1, MAX_INVISIBLE_S), st.integers(0, 900), st.integers(1, 10_000))
def test_never_beyond_the_configured_bound_nor_twelve_hours_since_the_receive(
    max_delay_s: int, elapsed_s: int, receives: int
) -> None:
    messages = given_back(3, Failure.MISCONFIGURED, receives)
    for delay in visibility(max_delay_s=max_delay_s).delays(messages, elapsed_s):
        assert 1 <= delay <= max_delay_s
        assert delay + elapsed_s + MAX_AGE_S <= MAX_INVISIBLE_S


def test_a_fifo_group_has_one_delay_that_of_its_first_failure() -> None:
    messages = [
        (record(1, "{}", 9, "a"), Failure.HELD),
        (record(2, "{}", 9, "b"), Failure.MISCONFIGURED),
        (record(3, "{}", 1, "a"), Failure.MISCONFIGURED),
        (record(4, "{}", 9, "b"), Failure.HELD),
        (record(5, "{}", 1, "a"), Failure.HELD),
        (record(6, "{}", 9, "c"), Failure.HELD),
    ]
    seen = set()
    for seed in range(200):
        a1, b1, a2, b2, a3, c1 = visibility(seed=seed).delays(messages)
        assert a1 == a2 == a3
        assert b1 == b2
        assert a1 <= 60
        assert c1 <= POLICIES[Failure.HELD].max_delay_s
        seen.add((a1 > 30, b1 > 60, a1 != b1))
    assert {(True, True, True), (False, True, True)} <= seen


def test_groups_of_a_standard_queue_order_nothing() -> None:
    fair = record(1, "{}") | {"attributes": {"MessageGroupId": "tenant", "ApproximateReceiveCount": "4"}}
    delays = visibility().delays([(fair, Failure.SATURATED)] * 50)
    assert len(set(delays)) > 10


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 1_050))
def test_every_message_once_in_batches_that_sqs_takes(count: int) -> None:
    queue = Queue()
    done = visibility(queue).delay(given_back(count), lambda: 30.0, 10.0)
    assert (done.delayed, done.refused, done.trouble) == (count, 0, "")
    handles = [entry["ReceiptHandle"] for call in queue.calls for entry in call]
    assert sorted(handles) == sorted(f"r{number}" for number in range(count))
    for call in queue.calls:
        assert len(call) <= MAX_ENTRIES
        assert len({entry["Id"] for entry in call}) == len(call)


def test_what_sqs_refuses_of_a_batch_is_counted_and_the_rest_is_delayed() -> None:
    queue = Queue(fails=lambda handle: "ReceiptHandleIsInvalid" if handle in ("r3", "r12") else "")
    done = visibility(queue).delay(given_back(25), lambda: 30.0)
    assert (done.delayed, done.refused, done.trouble) == (23, 2, "ReceiptHandleIsInvalid")


def test_a_call_that_fails_costs_its_own_messages_only() -> None:
    class Flaky(Queue):
        def change_message_visibility_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
            if any(entry["ReceiptHandle"] == "r15" for entry in Entries):
                raise ConnectionError("reset")
            return super().change_message_visibility_batch(QueueUrl, Entries)

    done = visibility(Flaky()).delay(given_back(30), lambda: 30.0)
    assert (done.delayed, done.refused, done.trouble) == (20, 10, "ConnectionError")


def test_no_client_is_no_reason_to_fail() -> None:
    def none() -> Any:
        raise ValueError("no region")

    done = Visibility(QUEUE, Sqs(none), max_delay_s=900).delay(given_back(7), lambda: 30.0)
    assert (done.delayed, done.refused, done.trouble) == (0, 7, "ValueError")


def test_without_a_queue_url_or_messages_no_client_is_made() -> None:
    def never() -> Any:
        raise AssertionError("asked for a client")

    quiet = Visibility("", Sqs(never), max_delay_s=900)
    assert quiet.budget_s == 0
    assert quiet.delay(given_back(7), lambda: 30.0).refused == 0
    assert Visibility(QUEUE, Sqs(never), max_delay_s=900).delay([], lambda: 30.0).refused == 0


@pytest.mark.parametrize(
    ("remaining_s", "elapsed_s", "cost_s", "at_least", "at_most"),
    [
        (30.0, 0.0, 0.001, 100, 100),
        (30.0, 0.0, 0.01, MIN_BUDGET_S / 0.01, MIN_BUDGET_S / 0.01 + CONNECTIONS),  # turned away: it must stay cheap
        (30.0, 0.5, 0.01, 50, 50 + CONNECTIONS),  # at most double the bill
        (30.0, 10.0, 0.1, 20, 20 + CONNECTIONS),  # VISIBILITY_BUDGET_S
        (VISIBILITY_BUDGET_S, 25.0, 0.1, 1, CONNECTIONS),  # room for one that takes as long as it can
        (VISIBILITY_BUDGET_S - 0.1, 25.0, 0.0, 0, 0),
    ],
)
def test_it_takes_no_more_time_than_there_is_or_than_it_is_worth(
    remaining_s: float, elapsed_s: float, cost_s: float, at_least: float, at_most: float
) -> None:
    clock = Clock(remaining_s)
    queue = Queue(clock, cost_s)
    done = visibility(queue).delay(given_back(1_000), clock, elapsed_s)
    assert at_least - 1 <= len(queue.calls) <= at_most + 1
    assert done.refused == 0, "what had no turn was not refused"
    assert done.delayed == sum(map(len, queue.calls))
