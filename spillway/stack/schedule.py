"""Which batch may be invoked when, and when to receive: an event source mapping without I/O, threads or a clock.

A message goes: room -> offered -> gathering -> ready -> invoking -> acknowledging -> gone. The batch being gathered
holds a concurrency slot, so nothing is received that has nowhere to run: Lambda likewise stops receiving at its
maximum, and no message spends its visibility timeout waiting here. Not thread-safe: the caller holds a lock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from spillway.stack.batch import MAX_PAYLOAD_BYTES, Batch, Gathering, Received
from spillway.stack.ramp import Ramp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spillway.stack.mapping import MappingConfig

MAX_RECEIVED = 10
"""MaxNumberOfMessages of one ReceiveMessage (SQS API Reference)."""


class Schedule:
    """The state of one mapping."""

    def __init__(self, config: MappingConfig, *, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._config = config
        self._gathering = Gathering(
            max_messages=config.batch_size, window_s=config.window_s, max_payload_bytes=max_payload_bytes
        )
        # A FIFO mapping scales with its active groups, not by the ramp ("Configuring scaling behavior ...").
        self.ramp = Ramp(ceiling=config.concurrency, enabled=config.ramp and not config.fifo)
        self._ready: deque[Batch] = deque()
        self._reserved = 0
        self._busy: set[str] = set()
        self._parked: dict[str, list[Received]] = {}
        self._held = 0
        self.invoking = 0
        self.acknowledging = 0

    @property
    def due_at(self) -> float | None:
        """When the batch being gathered must be closed; None while there is none."""
        return self._gathering.due_at

    @property
    def gathering(self) -> int:
        """Messages in the batch being gathered."""
        return len(self._gathering)

    @property
    def waiting(self) -> int:
        """Closed batches without a slot."""
        return len(self._ready)

    @property
    def held(self) -> int:
        """Messages offered and neither acknowledged nor handed back."""
        return self._held

    @property
    def idle(self) -> bool:
        return not self._held

    def room(self) -> int:
        """How many messages the next receive may ask for: 0 to 10, 0 when no slot is free to run them."""
        if self.acknowledging >= self.ramp.limit:
            return 0  # deletes cannot keep up: more batches would only wait for them
        slots = self.ramp.limit - self.invoking - len(self._ready)
        size = self._config.batch_size
        room = min(MAX_RECEIVED, slots * size - len(self._gathering) - self._reserved)
        if self._config.fifo:
            # Never two batches out of one receive: they could share a group.
            return max(0, min(room, size))
        # Of several batches out of one receive none should be short: ask for a multiple of a small BatchSize.
        return max(0, room if size >= MAX_RECEIVED else room - room % size)

    def reserve(self, count: int) -> None:
        """Set room aside for a receive that asks for `count`; undone by `release`."""
        self._reserved += count

    def release(self, count: int) -> None:
        self._reserved -= count

    def offer(self, messages: Iterable[Received], now: float) -> None:
        """Take what one receive brought, in its order."""
        for message in messages:
            self._held += 1
            group = message.group_id if self._config.fifo else None
            if group is not None and self._blocked(group, message):
                self._parked.setdefault(group, []).append(message)
            else:
                self._close(self._gathering.add(message, now))
        if not self._config.window_s:
            self.flush()

    def _blocked(self, group: str, message: Received) -> bool:
        """Whether a message would run beside, or ahead of, an earlier one of its group.

        SQS hands out no message of a group that is in flight, unless the visibility timeout ended during the
        invocation; a local server may be less strict. And a batch may lack the bytes for the rest of a group.
        """
        if group in self._busy or group in self._parked:
            return True
        return group in self._gathering.groups and not self._gathering.fits(message)

    def flush(self) -> None:
        """Close the batch being gathered, whatever its size."""
        self._close(self._gathering.close())

    def tick(self, now: float, *, backlog: bool) -> None:
        """Let time pass: close a batch whose window ended, let the concurrency rise."""
        self._close(self._gathering.close_if_due(now))
        self.ramp.advance(now, backlog=backlog, idle=self.idle and not backlog)

    def _close(self, closed: list[Batch]) -> None:
        for batch in closed:
            self._ready.append(batch)
            if self._config.fifo:
                self._busy |= batch.groups

    def start(self) -> Batch | None:
        """Return the next batch to invoke, if there is one and a slot for it."""
        if not self._ready or self.invoking >= self.ramp.limit:
            return None
        self.invoking += 1
        return self._ready.popleft()

    def invoked(self) -> None:
        """An invocation has ended: its slot is free, its messages are being acknowledged."""
        self.invoking -= 1
        self.acknowledging += 1

    def finished(self, batch: Batch) -> list[Received]:
        """A batch is acknowledged; return the messages parked behind its groups, to give back.

        They are not run from here, even if their group went well: only the queue knows the group's right next message.
        They count as held until `returned`.
        """
        self.acknowledging -= 1
        self._held -= len(batch)
        if not self._config.fifo:
            return []
        self._busy -= batch.groups
        return self._unpark(batch.groups)

    def withdraw(self) -> list[Received]:
        """Hand back every message that no invocation has seen yet; they count as held until `returned`."""
        self.flush()
        messages = [message for batch in self._ready for message in batch.messages]
        for batch in self._ready:
            self._busy -= batch.groups
        self._ready.clear()
        return messages + self._unpark(list(self._parked))

    def returned(self, count: int) -> None:
        """So many messages that `finished` or `withdraw` handed out are given back."""
        self._held -= count

    def _unpark(self, groups: Iterable[str]) -> list[Received]:
        return [message for group in groups for message in self._parked.pop(group, [])]
