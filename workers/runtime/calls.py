"""One call of the database, as often as its failures allow: the failure table and the breaker are applied here."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Protocol

from workers.runtime.breaker import Breaker
from workers.runtime.failures import ANSWERED, POLICIES, Failure, classify

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.runtime.invocation import Invocation

Rows = list[tuple[Any, ...]]


class Store(Protocol):
    """What a call needs of the database (workers.runtime.database.Database)."""

    @property
    def connected(self) -> bool: ...

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]: ...

    def discard(self) -> None: ...


class Calls:
    """Calls statements within an invocation's time; raises nothing that a database can cause.

    An attempt is only started with `attempt_s` seconds left (and `connect_timeout_s` more if it has to connect): being
    killed in the middle of one would cost the invocation everything that it knows already.
    """

    def __init__(
        self,
        store: Store,
        *,
        attempt_s: float,
        connect_timeout_s: float,
        breaker: Breaker | None = None,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.breaker = breaker or Breaker()
        self._store = store
        self._attempt_s = attempt_s
        self._connect_timeout_s = connect_timeout_s
        self._sleep = sleep
        # Jitter, not secrecy: environments that failed together must not come back together.
        self._rng = rng or random.Random()  # noqa: S311

    def call(
        self, statement: str, parameter: Callable[[], bytes], invocation: Invocation, check: Callable[[Rows], None]
    ) -> Rows | Failure:
        """The rows that `statement` returned, once `check` has found nothing wrong with them; else why there are none.

        `parameter` encodes the JSON parameter. What went wrong on the way is added to `invocation.errors`, and a
        failure that ends all writing stops it.
        """
        if invocation.stopped:
            return invocation.stopped
        if self.breaker.open:
            invocation.turned_away = True
            invocation.stopped = Failure.SATURATED
            return Failure.SATURATED
        failure = self._attempt(statement, parameter, invocation, check)
        if isinstance(failure, Failure) and POLICIES[failure].stop:
            invocation.stopped = failure
        return failure

    def _attempt(
        self, statement: str, parameter: Callable[[], bytes], invocation: Invocation, check: Callable[[Rows], None]
    ) -> Rows | Failure:
        failure = Failure.SLOW  # what it is called when there is not even time for a first attempt
        attempt = 0
        while self.has_time(invocation):
            attempt += 1
            try:
                rows = self._store.fetch(statement, parameter())
                check(rows)
            except Exception as error:  # classified at once; an unknown one is given back
                failure = classify(error)
                invocation.errors.append((failure, error))
            else:
                self.breaker.answered()
                return rows
            if failure is Failure.SATURATED:
                self.breaker.saturated()
            elif failure in ANSWERED:
                self.breaker.answered()
            policy = POLICIES[failure]
            if policy.reconnect:
                self._store.discard()
            pause = self._rng.uniform(0, min(policy.max_pause_s, policy.pause_s * 2 ** (attempt - 1)))
            # A pause that leaves no time for what comes after it would be billed for nothing.
            if attempt >= policy.attempts or not self.has_time(invocation, pause):
                break
            self._sleep(pause)
        return failure

    def has_time(self, invocation: Invocation, after_s: float = 0.0) -> bool:
        """Whether an attempt that starts in `after_s` seconds is sure to end in time."""
        needed = self._attempt_s + (0 if self._store.connected else self._connect_timeout_s)
        return invocation.time_to_write() - after_s >= needed
