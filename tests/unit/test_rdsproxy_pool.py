"""The connection pool, with a clock that a test sets and connections that are nobody's."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spillway.rdsproxy import errors
from spillway.rdsproxy.metrics import Metrics
from spillway.rdsproxy.pool import RETRY_DELAYS_S, Identity, Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from spillway.rdsproxy.errors import ProxyError

APP, REPORTS = Identity("app", "orders"), Identity("reports", "orders")
TIMEOUT_S = 30.0


class Timer:
    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due, self.call, self.cancelled = due, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop's clock and timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, call: Callable[[], None]) -> Timer:
        timer = Timer(due, call)
        heapq.heappush(self._timers, (due, next(self._numbers), timer))
        return timer

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        return self.call_at(self.now + delay, call)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, due)
            if not timer.cancelled:
                timer.call()
        self.now = end

    @property
    def pending(self) -> list[float]:
        """Seconds until each timer that is set."""
        return sorted(timer.due - self.now for _, _, timer in self._timers if not timer.cancelled)


class Connection:
    def __init__(self, identity: Identity, number: int = 0) -> None:
        self.identity = identity
        self.number = number
        self.idle_since = 0.0
        self.closed: str | None = None

    def close(self, reason: str) -> None:
        assert self.closed is None
        self.closed = reason


class Client:
    def __init__(self, identity: Identity = APP, name: int = 0) -> None:
        self.identity = identity
        self.name = name
        self.wants_database = False
        self.deadline = self.waiting_since = 0.0
        self.connection: Any = None
        self.refused: ProxyError | None = None
        self.on_end: Callable[[Client], None] = lambda _: None

    def lend(self, connection: Any) -> None:
        assert self.connection is None
        assert self.refused is None
        assert not self.wants_database
        assert connection.identity == self.identity
        assert connection.closed is None
        self.connection = connection
        self.on_end(self)

    def refuse(self, error: ProxyError) -> None:
        assert self.connection is None
        assert self.refused is None
        assert not self.wants_database
        self.refused = error
        self.on_end(self)


class World:
    """A pool and all it talks to. `asked`: connections it asked for and did not get yet."""

    def __init__(self, size: int = 2, *, idle_size: int | None = None, trim_after: float = 60.0) -> None:
        self.loop = Loop()
        self.metrics = Metrics()
        self.asked: list[Identity] = []
        self.ever_asked = 0
        self.numbers = itertools.count(1)
        self.pool = Pool(
            self.loop,  # type: ignore[arg-type]
            self._open,
            self.metrics,
            size=size,
            idle_size=size if idle_size is None else idle_size,
            borrow_timeout=TIMEOUT_S,
            idle_trim_after=trim_after,
        )

    def _open(self, identity: Identity) -> None:
        self.asked.append(identity)
        self.ever_asked += 1

    def opened(self) -> Connection:
        """The oldest attempt to open a connection succeeds."""
        connection = Connection(self.asked.pop(0), next(self.numbers))
        self.pool.opened(connection)  # type: ignore[arg-type]
        return connection

    def failed(self, error: ProxyError | None = None) -> None:
        """The oldest attempt fails."""
        self.pool.failed(self.asked.pop(0), error)

    def borrow(self, identity: Identity = APP, name: int = 0) -> Client:
        client = Client(identity, name)
        self.pool.borrow(client)
        return client

    def served(self, identity: Identity = APP) -> Client:
        """A client that holds a connection."""
        client = self.borrow(identity)
        if client.connection is None:
            self.opened()
        assert client.connection is not None
        return client

    def give_back(self, client: Client) -> Connection:
        connection: Connection = client.connection
        client.connection = None
        self.pool.give_back(connection)  # type: ignore[arg-type]
        return connection

    def idle(self, *identities: Identity) -> list[Connection]:
        """So many idle connections, each idle for a second longer than the next."""
        connections = []
        for client in [self.served(identity) for identity in identities]:
            connections.append(self.give_back(client))
            self.loop.advance(1)
        return connections


def test_opens_no_more_than_its_size_and_serves_in_the_order_of_asking() -> None:
    world = World(size=2)
    clients = [world.borrow(name=n) for n in range(4)]
    assert world.asked == [APP, APP]
    assert world.pool.waiting == 4
    world.opened()
    world.opened()
    assert [client.connection is not None for client in clients] == [True, True, False, False]
    world.give_back(clients[1])
    assert clients[2].connection is not None
    assert clients[3].connection is None
    world.give_back(clients[0])
    assert clients[3].connection is not None
    assert (world.ever_asked, world.pool.borrowed, world.pool.waiting) == (2, 2, 0)


def test_the_latest_used_connection_is_lent_first() -> None:
    world = World(size=3)
    *_, latest = world.idle(APP, APP, APP)
    assert world.borrow().connection is latest


def test_a_connection_that_is_coming_is_not_asked_for_twice() -> None:
    world = World(size=5)
    first = world.borrow()
    world.pool.cancel(first)
    second = world.borrow()
    assert world.asked == [APP]
    world.opened()
    assert first.connection is None
    assert second.connection is not None


def test_one_who_came_later_does_not_overtake() -> None:
    """Not even if one of theirs is idle: the place is needed for the one in front."""
    world = World(size=1)
    (idle,) = world.idle(APP)
    first = world.borrow(REPORTS)
    second = world.borrow(APP)
    assert idle.closed == "Its place was needed for another user or database"
    assert world.asked == [REPORTS]
    world.opened()
    assert first.connection is not None
    assert second.connection is None
    old = world.give_back(first)
    assert old.closed is not None
    assert world.asked == [APP]
    world.opened()
    assert second.connection is not None


def test_the_longest_idle_connection_of_another_identity_is_evicted() -> None:
    other = Identity("third", "orders")
    world = World(size=3)
    oldest, middle, own = world.idle(APP, other, REPORTS)
    holder = world.borrow(REPORTS)
    assert holder.connection is own
    world.borrow(REPORTS)
    assert oldest.closed is not None
    assert middle.closed is None
    assert world.pool.connections == {middle, own}
    assert world.asked == [REPORTS]


def test_nothing_is_evicted_while_there_is_room() -> None:
    world = World(size=2)
    (idle,) = world.idle(APP)
    world.borrow(REPORTS)
    assert idle.closed is None
    assert world.asked == [REPORTS]


def test_who_waits_behind_another_identity_with_an_idle_one_of_its_own_needs_no_further_one() -> None:
    world = World(size=4)
    world.idle(APP)
    first, second = world.borrow(REPORTS), world.borrow(APP)
    assert world.asked == [REPORTS]
    world.opened()
    assert first.connection is not None
    assert second.connection is not None


def test_a_connection_that_somebody_in_front_waits_for_is_not_evicted() -> None:
    third = Identity("third", "orders")
    world = World(size=2)
    world.idle(APP)
    world.borrow(REPORTS)  # the last place
    waiter = world.borrow(APP)  # has one, as soon as the first is served
    late = world.borrow(third)
    assert world.asked == [REPORTS]
    world.opened()
    assert waiter.connection is not None
    assert late.connection is None


def test_one_identity_that_cannot_log_in_for_now_does_not_hold_up_the_others() -> None:
    world = World(size=2)
    (idle,) = world.idle(APP)
    stuck = world.borrow(REPORTS)
    world.failed()  # say, 53300: too many connections for role
    for _ in range(3):
        client = world.borrow(APP)
        assert client.connection is idle
        world.give_back(client)
    assert stuck.wants_database
    world.loop.advance(1)
    world.opened()
    assert stuck.connection is not None


def test_those_already_waiting_are_served_in_the_pause_too() -> None:
    world = World(size=2)
    (idle,) = world.idle(APP)
    world.borrow(REPORTS)
    behind = world.borrow(APP)
    assert behind.connection is None
    world.failed()
    assert behind.connection is idle


def test_one_that_can_log_in_again_is_not_starved_by_others() -> None:
    world = World(size=1)
    holder = world.served(APP)
    stuck = world.borrow(REPORTS)
    world.give_back(holder)
    world.failed()
    queue = [world.borrow(APP) for _ in range(5)]
    world.loop.advance(max(RETRY_DELAYS_S))
    assert world.asked == [REPORTS]
    world.opened()
    assert stuck.connection is not None
    assert all(one.connection is None for one in queue)


def test_a_cancelled_waiter_costs_nobody_anything() -> None:
    world = World(size=1)
    holder = world.served()
    leavers = [world.borrow() for _ in range(100)]
    last = world.borrow()
    for leaver in leavers:
        world.pool.cancel(leaver)
        world.pool.cancel(leaver)
    assert world.pool.waiting == 1
    connection = world.give_back(holder)
    assert last.connection is connection
    world.give_back(last)
    assert (world.pool.waiting, world.pool.borrowed, world.ever_asked) == (0, 0, 1)
    world.loop.advance(2 * TIMEOUT_S)
    assert all(leaver.refused is None for leaver in leavers)
    assert world.metrics.borrow_timeouts == 0


def test_exactly_those_whose_time_is_up_are_refused_the_oldest_first() -> None:
    world = World(size=1)
    holder = world.served()
    order: list[int] = []
    clients = []
    for number in range(4):
        client = Client(name=number)
        client.on_end = lambda one: order.append(one.name)
        world.pool.borrow(client)
        clients.append(client)
        if number != 1:  # 1 and 2 come at the same time
            world.loop.advance(1)
    world.loop.advance(TIMEOUT_S - 2.5)
    assert order == [0]
    world.loop.advance(1)
    assert order == [0, 1, 2]
    assert world.metrics.borrow_timeouts == 3
    assert clients[2].refused is errors.BORROW_TIMEOUT
    world.give_back(holder)
    assert order == [0, 1, 2, 3]
    assert clients[3].connection is not None
    world.loop.advance(2 * TIMEOUT_S)
    assert clients[3].refused is None


def test_a_wait_begins_anew_with_each_borrowing() -> None:
    world = World(size=1)
    first = world.served()
    world.loop.advance(TIMEOUT_S - 1)
    second = world.borrow()
    world.loop.advance(2)
    world.give_back(first)
    assert second.connection is not None
    world.pool.borrow(first)
    world.loop.advance(TIMEOUT_S - 1)
    assert first.refused is None
    world.loop.advance(1)
    assert first.refused is errors.BORROW_TIMEOUT


def test_the_wait_is_counted_as_borrow_latency() -> None:
    world = World(size=1)
    holder = world.served()
    world.borrow()
    world.loop.advance(2.5)
    world.give_back(holder)
    assert world.metrics.borrow_latency.max == pytest.approx(2.5)
    assert world.metrics.borrow_latency.count == 2
    assert world.metrics.database_connection_requests == 1


def test_opening_is_tried_again_with_growing_pauses_while_anybody_waits() -> None:
    world = World(size=1)
    client = world.borrow()
    for delay in (*RETRY_DELAYS_S, RETRY_DELAYS_S[-1]):
        world.failed()
        assert not world.pool.available
        world.loop.advance(delay * 0.9)
        assert world.asked == []
        world.loop.advance(delay * 0.2)
        assert world.asked == [APP]
    world.opened()
    assert world.pool.available
    assert client.connection is not None
    assert world.metrics.database_connections_setup_failed == len(RETRY_DELAYS_S) + 1
    world.pool.lost(client.connection, borrowed=True)
    world.borrow()
    world.failed()
    world.loop.advance(RETRY_DELAYS_S[0] * 1.1)  # the first pause is short again
    assert world.asked == [APP]


def test_opening_is_not_tried_again_for_nobody() -> None:
    world = World(size=1)
    client = world.borrow()
    world.pool.cancel(client)
    world.failed()
    world.loop.advance(TIMEOUT_S * 2)
    assert world.ever_asked == 1
    assert world.loop.pending == []


def test_many_failures_at_once_are_one_pause() -> None:
    world = World(size=10)
    for _ in range(10):
        world.borrow()
    for _ in range(10):
        world.failed()
    world.loop.advance(RETRY_DELAYS_S[0] * 1.1)
    assert len(world.asked) == 10


def test_who_waits_for_a_database_that_stays_away_is_refused_in_time() -> None:
    world = World(size=1)
    client = world.borrow()
    while client.refused is None:
        assert world.loop.now <= 1000 + TIMEOUT_S
        if world.asked:
            world.failed()
        world.loop.advance(0.05)
    assert client.refused is errors.BORROW_TIMEOUT
    assert world.loop.now >= 1000 + TIMEOUT_S


def test_a_failure_for_good_refuses_only_that_identity() -> None:
    world = World(size=3)
    wrong = [world.borrow(REPORTS), world.borrow(REPORTS)]
    right = world.borrow(APP)
    error = errors.database_error('database "orders" does not exist')
    world.failed(error)
    assert [one.refused for one in wrong] == [error, error]
    assert right.refused is None
    assert world.pool.available, "the database answered"
    world.failed(error)
    assert world.asked == [APP]
    world.opened()
    assert right.connection is not None
    assert (world.pool.waiting, world.pool.borrowed) == (0, 1)


def test_a_lost_connection_makes_room_for_the_next() -> None:
    world = World(size=1)
    holder, waiter = world.served(), world.borrow()
    world.pool.lost(holder.connection, borrowed=True)
    assert world.asked == [APP]
    world.opened()
    assert waiter.connection is not None
    assert world.pool.borrowed == 1


def test_a_lost_idle_connection_is_not_lent() -> None:
    world = World(size=2)
    one, other = world.idle(APP, APP)
    world.pool.lost(other, borrowed=False)  # type: ignore[arg-type]
    assert world.borrow().connection is one
    assert world.pool.borrowed == 1


def test_idle_connections_beyond_the_limit_are_closed_after_their_time() -> None:
    world = World(size=4, idle_size=1, trim_after=60)
    connections = world.idle(APP, APP, APP, REPORTS)
    world.loop.advance(50)
    assert not any(one.closed for one in connections)
    world.loop.advance(20)
    assert [one.closed is not None for one in connections] == [True, True, True, False]
    assert world.pool.connections == {connections[-1]}
    world.loop.advance(300)
    assert world.pool.connections == {connections[-1]}
    assert world.loop.pending == []


def test_a_connection_in_use_is_never_trimmed() -> None:
    world = World(size=3, idle_size=1, trim_after=10)
    clients = [world.served() for _ in range(3)]
    world.loop.advance(60)
    idle = [world.give_back(clients[0]), world.give_back(clients[1])]
    world.loop.advance(60)
    assert len([one for one in idle if one.closed]) == 1
    assert clients[2].connection.closed is None
    assert len(world.pool.connections) == 2


def test_trimming_begins_also_where_the_last_one_came_back_while_others_waited() -> None:
    world = World(size=3, idle_size=1, trim_after=10)
    clients = [world.served() for _ in range(3)]
    world.pool.lend_limit = 0
    world.borrow()
    for client in clients:
        world.give_back(client)
    world.loop.advance(TIMEOUT_S)
    assert len(world.pool.connections) == 1


def test_saturation_lends_no_more_than_it_leaves() -> None:
    world = World(size=3)
    holder = world.served()
    world.pool.lend_limit = 1
    waiters = [world.borrow(), world.borrow()]
    assert world.asked == []
    world.give_back(holder)
    assert [one.connection is not None for one in waiters] == [True, False]
    world.pool.lend_limit = 3
    world.pool.serve()
    world.opened()
    assert waiters[1].connection is not None


def test_an_outage_opens_nothing_until_its_end() -> None:
    world = World(size=1)
    world.pool.unreachable_until = world.loop.now + 5
    client = world.borrow()
    world.loop.advance(4.9)
    assert world.asked == []
    world.loop.advance(0.2)
    assert world.asked == [APP]
    world.opened()
    assert client.connection is not None


def test_an_outage_that_ends_early_serves_those_who_wait_at_once() -> None:
    world = World(size=1)
    world.pool.unreachable_until = world.loop.now + 3600
    world.pool.available = False
    world.borrow()
    world.loop.advance(1)
    assert world.asked == []
    world.pool.end_outage()
    assert world.asked == [APP]
    assert world.pool.available


def test_a_connection_that_comes_in_an_outage_is_not_lent() -> None:
    world = World(size=1)
    client = world.borrow()
    world.pool.unreachable_until = world.loop.now + 5
    connection = world.opened()
    assert connection.closed is not None
    assert client.connection is None
    assert world.pool.connections == set()
    world.loop.advance(6)
    world.opened()
    assert client.connection is not None


def test_a_closed_pool_opens_and_lends_nothing() -> None:
    world = World(size=2)
    holder, waiter = world.served(), world.served()
    late = world.borrow()
    world.pool.close()
    world.give_back(holder)
    world.pool.lost(waiter.connection, borrowed=True)
    world.loop.advance(2 * TIMEOUT_S)
    assert late.connection is None
    assert late.refused is None
    assert world.asked == []


SIZE = 3
IDENTITIES = st.sampled_from([APP, REPORTS, Identity("third", "third")])


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, the books are right."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(size=SIZE, idle_size=1, trim_after=5)
        self.clients: list[Client] = []
        self.names = itertools.count(1)

    @property
    def holders(self) -> list[Client]:
        return [one for one in self.clients if one.connection is not None]

    @property
    def waiters(self) -> list[Client]:
        return [one for one in self.clients if one.wants_database]

    @rule(identity=IDENTITIES)
    def borrow(self, identity: Identity) -> None:
        client = Client(identity, next(self.names))
        client.on_end = self.ended
        self.clients.append(client)
        self.world.pool.borrow(client)

    def ended(self, client: Client) -> None:
        """No other client of the same identity waited longer."""
        assert all(one.name > client.name for one in self.waiters if one.identity == client.identity)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.world.give_back(data.draw(st.sampled_from(self.holders)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def lose_borrowed(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.holders))
        connection, client.connection = client.connection, None
        self.world.pool.lost(connection, borrowed=True)

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def lose_idle(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from(sorted(self.idle, key=lambda one: one.number)))
        self.world.pool.lost(connection, borrowed=False)  # type: ignore[arg-type]

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.world.pool.cancel(data.draw(st.sampled_from(self.waiters)))

    @precondition(lambda self: self.world.asked)
    @rule()
    def open_one(self) -> None:
        self.world.opened()

    @precondition(lambda self: self.world.asked)
    @rule(for_good=st.booleans())
    def fail_one(self, for_good: bool) -> None:
        self.world.failed(errors.UNKNOWN if for_good else None)

    @rule(seconds=st.floats(0.01, TIMEOUT_S * 1.5))
    def wait(self, seconds: float) -> None:
        self.world.loop.advance(seconds)

    @rule(seconds=st.floats(0.1, 5))
    def outage(self, seconds: float) -> None:
        self.world.pool.unreachable_until = self.world.loop.now + seconds

    @rule()
    def end_outage(self) -> None:
        self.world.pool.end_outage()

    @rule(limit=st.integers(0, SIZE))
    def saturate(self, limit: int) -> None:
        self.world.pool.lend_limit = limit
        self.world.pool.serve()

    @property
    def idle(self) -> set[Any]:
        return self.world.pool.connections - {one.connection for one in self.holders}

    @invariant()
    def books_are_right(self) -> None:
        pool = self.world.pool
        assert pool.borrowed == len(self.holders)
        assert pool.waiting == len(self.waiters)
        idle = {one for queue in pool._idle.values() for one in queue}
        assert idle == self.idle
        assert sum(map(len, pool._idle.values())) == len(idle), "a connection is idle twice"
        assert pool.borrowed + len(idle) == len(pool.connections)
        assert not any(one.closed for one in pool.connections)  # type: ignore[attr-defined]
        assert sum(pool._opening.values()) == len(self.world.asked)

    @invariant()
    def never_more_than_its_size(self) -> None:
        assert len(self.world.pool.connections) + len(self.world.asked) <= SIZE

    @invariant()
    def nobody_waits_past_the_deadline(self) -> None:
        assert all(one.deadline > self.world.loop.now for one in self.waiters)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Who waits has something to wait for: one being opened, one in use, a pause, or a fault."""
        pool = self.world.pool
        if self.waiters and pool.lend_limit > pool.borrowed:
            assert self.world.asked or self.holders or pool._retry is not None

    def teardown(self) -> None:
        """In the end, with a database that is there, everybody is served."""
        pool = self.world.pool
        pool.lend_limit = SIZE
        pool.end_outage()
        for _ in range(1000):
            if not self.waiters:
                break
            for client in self.holders:
                self.world.give_back(client)
            while self.world.asked:
                self.world.opened()
            self.world.loop.advance(0.01)
        assert not self.waiters


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
