"""The connection pool: who holds a database connection, who waits for one, and when one is opened or closed.

No I/O of its own: it asks an `Opener` for connections and is told when they come, fail or go. Waiting is first come,
first served over all users and databases: a connection of the wrong identity is closed to open the right one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from spillway.rdsproxy import errors

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle

    from spillway.rdsproxy.database import DatabaseConnection
    from spillway.rdsproxy.errors import ProxyError
    from spillway.rdsproxy.metrics import Metrics

#: The pauses between attempts to reach a database that is down, in seconds: soon at first, then twice a second.
RETRY_DELAYS_S = (0.05, 0.1, 0.2, 0.5)
#: How often connections beyond MaxIdleConnectionsPercent are looked for, in seconds.
TRIM_INTERVAL_S = 1.0


class Identity(NamedTuple):
    """Connections are interchangeable within one of these: the client's role and the database it chose."""

    user: str
    database: str


class Borrower(Protocol):
    """A client as the pool sees it."""

    identity: Identity
    wants_database: bool
    #: Loop time at which its wait ends.
    deadline: float
    waiting_since: float

    def lend(self, connection: DatabaseConnection) -> None:
        """Take the connection; the wait is over."""

    def refuse(self, error: ProxyError) -> None:
        """There will be none; the wait is over."""


class Opener(Protocol):
    """What opens database connections; it answers through `Pool.opened` or `Pool.failed`."""

    def __call__(self, identity: Identity) -> None: ...


class Pool:
    """At most `size` connections, lent to one borrower at a time."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        open_connection: Opener,
        metrics: Metrics,
        *,
        size: int,
        idle_size: int,
        borrow_timeout: float,
        idle_trim_after: float,
    ) -> None:
        self._loop = loop
        self._open = open_connection
        self._metrics = metrics
        self.size = size
        self._idle_size = idle_size
        self._borrow_timeout = borrow_timeout
        self._idle_trim_after = idle_trim_after
        #: All that are open, lent or not.
        self.connections: set[DatabaseConnection] = set()
        self._idle: dict[Identity, deque[DatabaseConnection]] = {}
        self._opening: dict[Identity, int] = {}
        self._waiting: deque[Borrower] = deque()
        self.waiting = 0
        self.borrowed = 0
        #: Faults: how many may be borrowed at once, and until when (loop time) the database cannot be reached.
        self.lend_limit = size
        self.unreachable_until = 0.0
        self.available = True
        self._failures = 0
        self._retry: TimerHandle | None = None
        self._deadline: TimerHandle | None = None
        self._trim: TimerHandle | None = None
        self.closed = False

    # ── borrowing ────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, identity: Identity) -> DatabaseConnection | None:
        """A connection that can be had without waiting, or None. Who takes one gives it back."""
        if self.waiting or self.borrowed >= self.lend_limit:
            return None
        idle = self._idle.get(identity)
        if not idle:
            return None
        self.borrowed += 1
        metrics = self._metrics
        metrics.borrow_latency.add_none()
        if self.borrowed > metrics.peak_borrowed:  # noqa: PLR1730  (half the time of a call)
            metrics.peak_borrowed = self.borrowed
        return idle.pop()

    def borrow(self, borrower: Borrower) -> None:
        """Lend `borrower` a connection, now or later, or refuse it when the borrow timeout has passed."""
        metrics = self._metrics
        connection = self.take(borrower.identity)
        if connection is not None:
            borrower.lend(connection)
            return
        borrower.waiting_since = self._loop.time()
        borrower.deadline = borrower.waiting_since + self._borrow_timeout
        borrower.wants_database = True
        self._waiting.append(borrower)
        self.waiting += 1
        metrics.peak_waiting = max(metrics.peak_waiting, self.waiting)
        if self._deadline is None:
            self._deadline = self._loop.call_at(borrower.deadline, self._expire)
        self.serve()

    def cancel(self, borrower: Borrower) -> None:
        """The borrower no longer waits."""
        if borrower.wants_database:
            borrower.wants_database = False
            self.waiting -= 1

    def give_back(self, connection: DatabaseConnection) -> None:
        """The borrower has no more use for a connection that is as good as new."""
        self.borrowed -= 1
        idle = self._idle.get(connection.identity)
        if idle is None:
            idle = self._idle[connection.identity] = deque()
        connection.idle_since = self._loop.time()
        idle.append(connection)
        if self.waiting:
            self.serve()
        if self._trim is None and len(self.connections) > self._idle_size:
            self._trim = self._loop.call_later(TRIM_INTERVAL_S, self._trim_idle)

    def serve(self) -> None:
        """Lend what can be lent to those who wait, oldest first, and open what is missing."""
        while self._waiting and not self.closed:
            borrower = self._waiting[0]
            if not borrower.wants_database:
                self._waiting.popleft()
                continue
            if self.borrowed >= self.lend_limit:
                return
            idle = self._idle.get(borrower.identity)
            if not idle:
                break
            self._waiting.popleft()
            self._lend_waiter(borrower, idle.pop())
        if not self._waiting or self.closed:
            return
        if self._retry is None:
            self._open_missing()
        else:
            self._overtake()

    def _overtake(self) -> None:
        """In the pause after a failure: nobody waits behind another user or database while one of theirs is idle."""
        while self.borrowed < self.lend_limit:
            ready = {identity for identity, idle in self._idle.items() if idle}
            if not ready:
                return
            borrower = next((one for one in self._waiting if one.wants_database and one.identity in ready), None)
            if borrower is None:
                return
            self._waiting.remove(borrower)
            self._lend_waiter(borrower, self._idle[borrower.identity].pop())

    def _lend_waiter(self, borrower: Borrower, connection: DatabaseConnection) -> None:
        self.waiting -= 1
        borrower.wants_database = False
        self._metrics.borrow_latency.add(self._loop.time() - borrower.waiting_since)
        self._lend(borrower, connection)

    def _lend(self, borrower: Borrower, connection: DatabaseConnection) -> None:
        self.borrowed += 1
        self._metrics.peak_borrowed = max(self._metrics.peak_borrowed, self.borrowed)
        borrower.lend(connection)

    def _expire(self) -> None:
        """Refuse those whose time is up. Everybody waits equally long, so the oldest is always the next."""
        self._deadline = None
        now = self._loop.time()
        while self._waiting:
            borrower = self._waiting[0]
            if not borrower.wants_database:
                self._waiting.popleft()
            elif borrower.deadline <= now:
                self._waiting.popleft()
                self.cancel(borrower)
                self._metrics.borrow_timeouts += 1
                self._metrics.borrow_latency.add(now - borrower.waiting_since)
                borrower.refuse(errors.BORROW_TIMEOUT)
            else:
                self._deadline = self._loop.call_at(borrower.deadline, self._expire)
                return

    # ── opening and closing ──────────────────────────────────────────────────────────────────────────────────────

    def adopt(self, connection: DatabaseConnection) -> None:
        """Take a connection that nobody asked for."""
        self._opening[connection.identity] = self._opening.get(connection.identity, 0) + 1
        self.opened(connection)

    def opened(self, connection: DatabaseConnection) -> None:
        """A connection has been opened."""
        if self.unreachable_until > self._loop.time():
            connection.close("The database failed over while it was being opened")
            self.failed(connection.identity, None)
            return
        self._opening[connection.identity] -= 1
        self._failures = 0
        self.available = True
        self.connections.add(connection)
        metrics = self._metrics
        metrics.database_connections_setup_succeeded += 1
        metrics.peak_database_connections = max(metrics.peak_database_connections, len(self.connections))
        self.borrowed += 1
        self.give_back(connection)

    def failed(self, identity: Identity, error: ProxyError | None) -> None:
        """A connection could not be opened. `error`: nobody of this identity ever will; None: try again later."""
        self._opening[identity] -= 1
        self._metrics.database_connections_setup_failed += 1
        if error is None:
            self.available = False
            if self._retry is None and not self.closed:
                delay = RETRY_DELAYS_S[min(self._failures, len(RETRY_DELAYS_S) - 1)]
                self._failures += 1
                self._retry = self._loop.call_later(delay, self._try_again)
            self.serve()
            return
        for borrower in [one for one in self._waiting if one.wants_database and one.identity == identity]:
            self.cancel(borrower)
            borrower.refuse(error)
        self.serve()

    def lost(self, connection: DatabaseConnection, *, borrowed: bool) -> None:
        """An open connection is gone."""
        self.connections.discard(connection)
        if borrowed:
            self.borrowed -= 1
        else:
            idle = self._idle.get(connection.identity)
            if idle is not None and connection in idle:
                idle.remove(connection)
        if self.waiting:
            self.serve()

    def end_outage(self) -> None:
        """The fault is over: those who wait need not wait for the next attempt."""
        if self.unreachable_until:
            self.unreachable_until = 0.0
            self.available = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.serve()

    def close(self) -> None:
        """Open and lend nothing from now on."""
        self.closed = True
        for timer in (self._retry, self._deadline, self._trim):
            if timer is not None:
                timer.cancel()

    def _try_again(self) -> None:
        self._retry = None
        self.serve()

    def _open_missing(self) -> None:
        """Open one connection for each waiter that has none coming, as far as the pool's size allows."""
        if self.unreachable_until > self._loop.time():
            self._retry = self._loop.call_at(self.unreachable_until, self._try_again)
            return
        coming = self._opening.copy()
        room = min(self.size, self.lend_limit) - self.borrowed - sum(coming.values())
        if room <= 0:
            return
        spare = {identity: len(idle) for identity, idle in self._idle.items()}
        for borrower in self._waiting:
            if room <= 0:
                return
            if not borrower.wants_database:
                continue
            identity = borrower.identity
            if coming.get(identity, 0) > 0:
                coming[identity] -= 1
                continue
            if spare.get(identity, 0) > 0:  # there is one, as soon as those before it are served
                spare[identity] -= 1
                room -= 1
                continue
            total = len(self.connections) + sum(self._opening.values())
            if total >= self.size and not self._evict(spare):
                return
            room -= 1
            self._opening[identity] = self._opening.get(identity, 0) + 1
            self._metrics.database_connection_requests += 1
            self._open(identity)

    def _evict(self, spare: dict[Identity, int]) -> bool:
        """Close the longest idle connection that nobody in front waits for; False if there is none. Counts it off."""
        others = [idle[0] for identity, idle in self._idle.items() if spare.get(identity, 0) > 0]
        if not others:
            return False
        victim = min(others, key=lambda one: one.idle_since)
        spare[victim.identity] -= 1
        self._idle[victim.identity].remove(victim)
        self.connections.discard(victim)
        victim.close("Its place was needed for another user or database")
        return True

    def _trim_idle(self) -> None:
        self._trim = None
        oldest = self._loop.time() - self._idle_trim_after
        idle = sorted((one for queue in self._idle.values() for one in queue), key=lambda one: one.idle_since)
        surplus = len(idle) - self._idle_size
        for connection in idle[: max(surplus, 0)]:
            if connection.idle_since > oldest:
                break
            self._idle[connection.identity].remove(connection)
            self.connections.discard(connection)
            connection.close("More connections were idle than MaxIdleConnectionsPercent allows")
            surplus -= 1
        if surplus > 0:
            self._trim = self._loop.call_later(TRIM_INTERVAL_S, self._trim_idle)
