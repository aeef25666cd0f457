"""What one event source mapping counts while it runs."""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from spillway.stack.batch import Batch
    from spillway.stack.schedule import Schedule


class Oldest:
    """Since when the oldest message waits, as far as the latest batches tell: SQS's local servers do not.

    Not thread-safe, the mapping's lock guards it.
    """

    def __init__(self) -> None:
        self._running: dict[int, float] = {}
        self._given_back: float | None = None

    def started(self, batch: Batch) -> None:
        sent = [message.sent_at for message in batch.messages if message.sent_at is not None]
        if sent:
            self._running[id(batch)] = min(sent)

    def ended(self, batch: Batch, failed: Collection[str]) -> None:
        """`failed` are the ids of messages that were not done. They come again, so they still wait."""
        self._running.pop(id(batch), None)
        waiting = [one.sent_at for one in batch.messages if one.sent_at is not None and one.message_id in failed]
        self._given_back = min(waiting, default=None)

    @property
    def sent_at(self) -> float | None:
        """When the oldest message was sent: of the batches that run, and of the last one that ended, if it failed.

        Seconds since the epoch; None where none of them has a message that is not done.
        """
        given_back = [] if self._given_back is None else [self._given_back]
        return min([*self._running.values(), *given_back], default=None)


@dataclass(slots=True)
class Tally:
    """The running counts; not thread-safe, the mapping's lock guards it. Counted from start(), durations in seconds."""

    peak_invoking: int = 0
    receives: int = 0
    empty_receives: int = 0
    received: int = 0
    invocations: int = 0
    cold_starts: int = 0
    function_s: float = 0.0
    succeeded: int = 0
    """Messages whose batch response counted them as done."""
    failed_by_reason: Counter[str] = field(default_factory=Counter)
    """Failed messages by `Reason`."""
    batches_by_reason: Counter[str] = field(default_factory=Counter)
    """Invocations by `Reason`; `unreported` above 0 means that the function forgets to report."""
    undeleted: int = 0
    """Messages that succeeded but could not be deleted: they come again."""
    given_back: int = 0
    """Messages made visible again at once: they came while stopping, or out of their group's turn."""
    errors: int = 0
    last_error: str | None = None
    """The last thing that went wrong between here and the queue or an environment, in one sentence."""
    last_error_at: float | None = None
    """Seconds since the epoch."""
    healthy: bool = True
    """Whether the last receive went well."""

    def note_error(self, sentence: str, at: float) -> None:
        self.errors += 1
        self.last_error, self.last_error_at = sentence, at

    def stats(self, schedule: Schedule, *, environments: int, oldest: Oldest) -> MappingStats:
        """Return a copy, with what `schedule` holds at the moment."""
        return MappingStats(
            **{one.name: copy(getattr(self, one.name)) for one in fields(Tally)},
            gathering=schedule.gathering,
            invoking=schedule.invoking,
            in_flight_batches=schedule.waiting + schedule.invoking + schedule.acknowledging,
            in_flight_messages=schedule.held,
            concurrency_limit=schedule.ramp.limit,
            environments=environments,
            oldest_sent_at=oldest.sent_at,
        )


@dataclass(slots=True, kw_only=True)
class MappingStats(Tally):
    """One mapping at one moment: a snapshot of its own, safe to keep."""

    gathering: int
    """Messages in the batch being gathered."""
    invoking: int
    """Batches being invoked: the concurrency."""
    in_flight_batches: int
    """Batches closed and not yet acknowledged: waiting for a slot, being invoked, being deleted."""
    in_flight_messages: int
    """Messages received and not yet acknowledged, the gathered ones included."""
    concurrency_limit: int
    environments: int
    oldest_sent_at: float | None
    """See `Oldest.sent_at`."""

    @property
    def failed(self) -> int:
        """Messages that failed, each time they did."""
        return self.failed_by_reason.total()
