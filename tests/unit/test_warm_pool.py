"""Which environment an invocation gets, and when environments go."""

import time

import pytest

from spillway.stack.warm_pool import PoolClosedError, WarmPool


class Environment:
    def __init__(self, *, stubborn: bool = False) -> None:
        self.closed = 0
        self.stubborn = stubborn

    __hash__ = None  # type: ignore[assignment]

    def invoke(self, payload: bytes) -> "Environment":
        pytest.fail("the pool hands environments out and never invokes one")

    kind, body, duration_s, cold = "response", b"", 0.0, False

    def close(self) -> None:
        self.closed += 1
        if self.stubborn:
            raise OSError("will not go")


def test_environments_are_made_on_demand_and_used_last_in_first_out() -> None:
    pool = WarmPool(Environment)
    assert len(pool) == 0
    one, two = pool.acquire(), pool.acquire()
    assert one is not two
    pool.release(one)
    pool.release(two)
    assert pool.acquire() is two
    assert pool.acquire() is one
    assert len(pool) == 2


def test_spare_environments_are_closed_after_a_while() -> None:
    pool = WarmPool(Environment, idle_s=60)
    spare, used, busy = pool.acquire(), pool.acquire(), pool.acquire()
    pool.release(spare)
    pool.release(used)
    pool.reap(time.monotonic() + 59)
    assert len(pool) == 3
    assert pool.acquire() is used
    pool.reap(time.monotonic() + 61)
    assert (spare.closed, used.closed, busy.closed) == (1, 0, 0)
    assert len(pool) == 2


def test_closing_closes_all_of_them_even_if_one_will_not_go() -> None:
    environments = [Environment(stubborn=True), Environment(), Environment()]
    waiting = iter(environments)
    pool = WarmPool(lambda: next(waiting))
    pool.acquire()
    pool.acquire()
    pool.release(pool.acquire())
    pool.close()
    assert [one.closed for one in environments] == [1, 1, 1]
    assert len(pool) == 0
    with pytest.raises(PoolClosedError):
        pool.acquire()


def test_an_environment_made_while_closing_is_closed_too() -> None:
    made: list[Environment] = []

    def slow() -> Environment:
        pool.close()
        made.append(Environment())
        return made[0]

    pool = WarmPool(slow)
    with pytest.raises(PoolClosedError):
        pool.acquire()
    assert made[0].closed == 1
