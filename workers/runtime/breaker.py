"""One environment's breaker: having waited for a connection in vain, do not pay for that wait again at once.

closed ── saturated ──> open ── its time is over ──> half-open ── answered ──> closed
                         ^                               │
                         └────────── saturated ──────────┘  for longer

Nothing is lost by it: an invocation that is turned away gives its messages back and costs milliseconds, where each
would otherwise hold its place in the queue for a connection and be billed for the whole borrow timeout.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bounds of the full-jitter exponential time that it stays open, in seconds.
BASE_S = 5.0
CAP_S = 60.0
#: Rows in the probe: enough to see whether there is a connection, few enough to ask a struggling database for.
PROBE_ROWS = 10


class Breaker:
    """Closed, open, or half-open. Not thread-safe: an environment has one invocation at a time.

    `clock` is the wall clock: whether a monotonic one goes on while Lambda freezes an environment is not documented,
    and a breaker whose time stands still would never close. It may jump; then the breaker probes.
    """

    def __init__(self, clock: Callable[[], float] = time.time, rng: random.Random | None = None) -> None:
        self._clock = clock
        # Environments that were turned away together must not come back together.
        self._rng = rng or random.Random()  # noqa: S311
        self._openings = 0
        self._opened_at = 0.0
        self._open_for_s = 0.0

    @property
    def closed(self) -> bool:
        """Whether nothing is held against the database."""
        return self._openings == 0

    @property
    def open(self) -> bool:
        """Whether to stay away. Neither closed nor open is half-open: the next call is the probe."""
        return not self.closed and self._opened_at <= self._clock() < self._opened_at + self._open_for_s

    def saturated(self) -> float:
        """Open, for longer each time in a row; returns for how many seconds."""
        self._openings += 1
        self._opened_at = self._clock()
        # The exponent is bounded because a float's range is.
        ceiling = min(CAP_S, BASE_S * 2 ** min(self._openings - 1, 10))
        self._open_for_s = self._rng.uniform(0, ceiling)
        return self._open_for_s

    def answered(self) -> bool:
        """Close; returns whether it was not."""
        was_open = not self.closed
        self._openings = 0
        return was_open
