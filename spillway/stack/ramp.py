"""How many batches a mapping may invoke at once, as time goes by, without I/O or a clock of its own."""

from __future__ import annotations

# Lambda Developer Guide, "Configuring scaling behavior for SQS event source mappings": five concurrent invocations at
# first, then up to 300 more per minute while messages are available.
INITIAL_CONCURRENCY = 5
GROWTH_PER_S = 300 / 60


class Ramp:
    """Lambda's scaling of one mapping, capped at `ceiling`; with `enabled` = False at the ceiling from the start.

    Lambda does not document how it scales down; here an idle mapping starts again at five.
    """

    def __init__(self, *, ceiling: int, enabled: bool) -> None:
        self._ceiling = ceiling
        self._start = float(min(INITIAL_CONCURRENCY, ceiling) if enabled else ceiling)
        self._limit = self._start
        self._at = 0.0
        self._backlog = False

    @property
    def limit(self) -> int:
        return int(self._limit)

    @property
    def rising(self) -> bool:
        """Whether time alone could still raise the limit."""
        return self._limit < self._ceiling

    def advance(self, now: float, *, backlog: bool, idle: bool) -> None:
        """Bring the limit up to `now` (seconds): it rises while there was a backlog at the last call and is one now."""
        if idle:
            self._limit = self._start
        elif backlog and self._backlog:  # only time that began with a backlog counts
            self._limit = min(self._ceiling, self._limit + (now - self._at) * GROWTH_PER_S)
        self._at, self._backlog = now, backlog
