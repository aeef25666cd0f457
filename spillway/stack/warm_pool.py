"""The execution environments of one function, kept warm between invocations as Lambda keeps them."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

IDLE_S = 300.0
"""How long an unused environment is kept; Lambda's own number is not documented, field reports say 5 to 15 minutes."""


class Invocation(Protocol):
    """How one invocation ended."""

    @property
    def kind(self) -> str:
        """`response`, `error`, `timeout` or `crash`."""

    @property
    def body(self) -> bytes: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def cold(self) -> bool: ...


class ExecutionEnvironment(Protocol):
    """One environment: one invocation at a time, any number in a row, also after a timeout or a crash."""

    def invoke(self, payload: bytes) -> Invocation: ...

    def close(self) -> None:
        """End it, and whatever runs in it; callable from another thread, and more than once."""


class PoolClosedError(RuntimeError):
    """No more environments: the mapping is being stopped."""


class WarmPool:
    """Makes environments on demand and hands out the one used last (LIFO), so that spare ones grow old and go."""

    def __init__(self, factory: Callable[[], ExecutionEnvironment], *, idle_s: float = IDLE_S) -> None:
        self._factory = factory
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._warm: list[tuple[float, ExecutionEnvironment]] = []  # oldest first
        self._all: dict[int, ExecutionEnvironment] = {}  # by identity: an environment need not be hashable
        self._closed = False

    def __len__(self) -> int:
        return len(self._all)

    def acquire(self) -> ExecutionEnvironment:
        """Return an environment of the caller's own. Raises PoolClosedError, and whatever the factory raises."""
        with self._lock:
            self._expect_open()
            if self._warm:
                return self._warm.pop()[1]
        environment = self._factory()  # a cold start: not under the lock
        try:
            with self._lock:
                self._expect_open()
                self._all[id(environment)] = environment
        except PoolClosedError:
            environment.close()
            raise
        return environment

    def _expect_open(self) -> None:
        if self._closed:
            raise PoolClosedError("the environments are closed")

    def release(self, environment: ExecutionEnvironment) -> None:
        """Give an environment back, to be used again."""
        with self._lock:
            if not self._closed:
                self._warm.append((time.monotonic(), environment))

    def discard(self, environment: ExecutionEnvironment) -> None:
        """Close an environment that broke its contract."""
        with self._lock:
            self._all.pop(id(environment), None)
        _close(environment)

    def reap(self, now: float) -> None:
        """Close what was not used for `idle_s` at `now` (of time.monotonic)."""
        with self._lock:
            spare = [one for used_at, one in self._warm if now - used_at > self._idle_s]
            self._warm = [(used_at, one) for used_at, one in self._warm if now - used_at <= self._idle_s]
            for one in spare:
                self._all.pop(id(one), None)
        for environment in spare:
            _close(environment)

    def close(self) -> None:
        """Close every environment, also those in use: their invocations end as crashes."""
        with self._lock:
            self._closed = True
            environments = list(self._all.values())
            self._all.clear()
            self._warm.clear()
        for environment in environments:
            _close(environment)


def _close(environment: ExecutionEnvironment) -> None:
    try:
        environment.close()
    except Exception as error:
        log.warning("environment_close_failed error=%r", error)  # and go on: the others must be closed too
