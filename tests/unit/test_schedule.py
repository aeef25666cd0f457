"""When an event source mapping receives and invokes: limits, slots, ramp and FIFO groups, on a clock of the test."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.stack.batch import Received
from spillway.stack.mapping import MappingConfig
from spillway.stack.ramp import Ramp
from spillway.stack.schedule import Schedule


def config(*, fifo: bool = False, **values: Any) -> MappingConfig:
    name = "orders.fifo" if fifo else "orders"
    arn = f"arn:aws:sqs:eu-west-1:123456789012:{name}"
    return MappingConfig(queue_url=f"http://sqs/{name}", queue_arn=arn, region="eu-west-1", fifo=fifo, **values)


def message(identifier: str, group: str | None = None, size: int = 10) -> Received:
    return Received(identifier, f"r-{identifier}", group, b"1" * size)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"batch_size": 0}, "expected BatchSize between 1 and 10000, got 0"),
        ({"batch_size": 10_001, "window_s": 1}, "expected BatchSize between 1 and 10000, got 10001"),
        ({"batch_size": 11}, "at least 1 with a BatchSize above 10, got 0 with BatchSize 11"),
        ({"window_s": 301}, "expected MaximumBatchingWindowInSeconds between 0 and 300, got 301"),
        ({"window_s": -1}, "expected MaximumBatchingWindowInSeconds between 0 and 300, got -1"),
        ({"fifo": True, "batch_size": 11}, "expected BatchSize of at most 10 on a FIFO queue, got 11"),
        ({"fifo": True, "window_s": 1}, "expected no MaximumBatchingWindowInSeconds on a FIFO queue, got 1"),
        ({"maximum_concurrency": 1}, "expected MaximumConcurrency between 2 and 1000, got 1"),
        ({"maximum_concurrency": 1001}, "expected MaximumConcurrency between 2 and 1000, got 1001"),
        ({"function_timeout_s": 0}, "expected a function timeout above 0"),
        ({"function_timeout_s": 901}, "of at most 900 s, got 901"),
    ],
)
def test_documented_limits_are_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        config(**values)


def test_the_widest_mappings_are_accepted() -> None:
    assert config(batch_size=10_000, window_s=300, maximum_concurrency=1_000).concurrency == 1_000
    assert config(fifo=True, batch_size=10, maximum_concurrency=2).concurrency == 2
    assert config().concurrency == 1_250
    with pytest.raises(ValueError, match="expected fifo to agree"):
        MappingConfig(queue_url="u", queue_arn="arn:aws:sqs:r:1:q.fifo", region="r")


def test_the_ramp_starts_at_five_and_adds_300_a_minute_while_there_is_a_backlog() -> None:
    ramp = Ramp(ceiling=1_250, enabled=True)
    ramp.advance(1000.0, backlog=True, idle=False)
    assert ramp.limit == 5
    for second in range(1001, 1061):
        ramp.advance(float(second), backlog=True, idle=False)
    assert ramp.limit == 305
    ramp.advance(1100.0, backlog=False, idle=False)
    assert ramp.limit == 305
    ramp.advance(1200.0, backlog=True, idle=False)  # the time without a backlog does not count
    assert ramp.limit == 305
    ramp.advance(1500.0, backlog=True, idle=False)
    assert (ramp.limit, ramp.rising) == (1_250, False)
    ramp.advance(1501.0, backlog=False, idle=True)
    assert ramp.limit == 5


def test_maximum_concurrency_caps_the_ramp_and_the_ramp_can_be_off() -> None:
    assert Ramp(ceiling=2, enabled=True).limit == 2
    assert Ramp(ceiling=50, enabled=False).limit == 50
    assert Schedule(config(fifo=True, maximum_concurrency=50)).ramp.limit == 50  # FIFO scales with its groups


@pytest.mark.parametrize(
    ("values", "rooms"),
    [
        ({"batch_size": 10, "maximum_concurrency": 2}, [10, 10, 0]),
        ({"batch_size": 1, "maximum_concurrency": 12}, [10, 2, 0]),
        ({"batch_size": 3, "maximum_concurrency": 2}, [6, 0]),
        ({"batch_size": 7, "maximum_concurrency": 2}, [7, 7, 0]),
        ({"batch_size": 25, "window_s": 1, "maximum_concurrency": 2}, [10, 10, 10, 10, 10, 0]),
        ({"batch_size": 4, "maximum_concurrency": 2, "fifo": True}, [4, 4, 0]),
    ],
)
def test_receives_ask_for_what_has_a_slot_and_no_more(values: dict[str, Any], rooms: list[int]) -> None:
    schedule = Schedule(config(ramp=False, **values))
    for expected in rooms:
        assert schedule.room() == expected
        schedule.reserve(expected)


def test_receiving_stops_while_every_slot_runs_or_deletes_lag() -> None:
    schedule = Schedule(config(batch_size=10, maximum_concurrency=2, ramp=False))
    schedule.offer([message(str(n)) for n in range(20)], 0.0)
    batches = [schedule.start(), schedule.start()]
    assert schedule.start() is None
    assert schedule.room() == 0
    schedule.invoked()
    assert schedule.room() == 10
    schedule.invoked()
    assert schedule.room() == 0  # two batches wait for their deletes
    for batch in batches:
        assert batch is not None
        assert schedule.finished(batch) == []
    assert schedule.room() == 10
    assert schedule.idle


def test_batches_that_ran_out_of_bytes_wait_for_a_slot() -> None:
    schedule = Schedule(config(batch_size=10, maximum_concurrency=2, ramp=False), max_payload_bytes=60)
    assert schedule.room() == 10
    schedule.offer([message(str(n), size=40) for n in range(4)], 0.0)  # one each, though all ten had one slot
    assert [schedule.start() is not None for _ in range(3)] == [True, True, False]
    assert (schedule.invoking, schedule.waiting, schedule.room()) == (2, 2, 0)
    schedule.invoked()
    assert schedule.start() is not None
    assert (schedule.invoking, schedule.waiting, schedule.room()) == (2, 1, 0)


def test_a_message_whose_group_runs_is_parked_and_handed_back_when_the_batch_is_done() -> None:
    schedule = Schedule(config(fifo=True, maximum_concurrency=10))
    schedule.offer([message("a1", "a"), message("b1", "b"), message("a2", "a")], 0.0)
    first = schedule.start()
    assert first is not None
    assert [one.message_id for one in first.messages] == ["a1", "b1", "a2"]
    schedule.offer([message("a3", "a"), message("c1", "c"), message("a4", "a")], 1.0)
    second = schedule.start()
    assert second is not None
    assert [one.message_id for one in second.messages] == ["c1"]
    schedule.invoked()
    assert schedule.finished(second) == []
    schedule.invoked()
    parked = schedule.finished(first)
    assert [one.message_id for one in parked] == ["a3", "a4"]
    assert not schedule.idle
    schedule.returned(len(parked))
    assert schedule.idle
    schedule.offer([message("a3", "a")], 2.0)
    assert schedule.start() is not None


def test_a_group_never_overtakes_itself_when_a_batch_runs_out_of_bytes() -> None:
    schedule = Schedule(config(fifo=True, maximum_concurrency=10), max_payload_bytes=60)
    schedule.offer([message("a1", "a", 30), message("a2", "a", 30), message("a3", "a", 1), message("b1", "b", 1)], 0.0)
    first = schedule.start()
    assert first is not None
    assert [one.message_id for one in first.messages] == ["a1", "b1"]
    assert schedule.start() is None
    schedule.invoked()
    assert [one.message_id for one in schedule.finished(first)] == ["a2", "a3"]


def test_withdraw_hands_back_everything_not_yet_invoked() -> None:
    schedule = Schedule(config(batch_size=2, window_s=5, maximum_concurrency=2, ramp=False))
    schedule.offer([message(str(n)) for n in range(7)], 0.0)
    running = [schedule.start(), schedule.start()]
    assert None not in running
    assert [one.message_id for one in schedule.withdraw()] == ["4", "5", "6"]
    schedule.returned(3)
    assert schedule.held == 4


@given(
    receives=st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=10)),
    batch_size=st.integers(1, 10),
    choices=st.randoms(use_true_random=False),
)
def test_fifo_groups_never_run_twice_at_once_and_never_out_of_order(
    receives: list[list[tuple[str, int]]], batch_size: int, choices: Any
) -> None:
    """Against a server that pays no heed to groups at all: what runs is in order, the rest is handed back."""
    schedule = Schedule(config(fifo=True, batch_size=batch_size, maximum_concurrency=50), max_payload_bytes=80)
    running: list[Any] = []
    seen = invoked = returned = 0
    for receive in receives:
        arrived = []
        for group, size in receive:
            arrived.append(message(str(seen), group, size))
            seen += 1
        schedule.offer(arrived, 0.0)
        while (batch := schedule.start()) is not None:
            invoked += len(batch)
            assert not any(batch.groups & other.groups for other in running)
            order = [int(one.message_id) for one in batch.messages]
            assert order == sorted(order)
            running.append(batch)
        while running and choices.random() < 0.5:
            done = running.pop(choices.randrange(len(running)))
            schedule.invoked()
            back = schedule.finished(done)
            returned += len(back)
            schedule.returned(len(back))
    for done in running:
        schedule.invoked()
        back = schedule.finished(done)
        returned += len(back)
        schedule.returned(len(back))
    assert schedule.idle
    assert invoked + returned == seen
