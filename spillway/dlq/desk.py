"""Where the threads of a redrive get their work: what is ready, what waits for a canary, and when there is no more."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spillway.dlq.letters import Cause, Letter

#: What may wait for canaries in memory, in letters and in bytes. Beyond that nothing more is received.
MAX_WAITING = 1_000
MAX_WAITING_BYTES = 16 * 1_048_576
_TICK_S = 0.2

#: Letters in the order in which they must go: on a FIFO queue those of a message group that came together, else one.
Lane = deque["Letter"]


class Receive:
    """What `Desk.next` answers a thread that is to receive more letters."""


RECEIVE = Receive()


class Desk:
    """Hands out lanes of letters, at most `limit` letters in all. A lane belongs to the thread that got it.

    On a `fifo` queue deleting letters brings the next ones of their message groups to light, so it was only read to its
    end if nothing was deleted since it had none to show.
    """

    def __init__(self, *, fifo: bool, limit: int | None) -> None:
        self._fifo = fifo
        self._left = limit
        self._changed = threading.Condition()
        self._ready: deque[Lane] = deque()
        self._waiting: dict[Cause, deque[Lane]] = {}
        self._waiting_letters = self._waiting_bytes = 0
        self._busy = 0
        self._deletions = 0
        self._empty_since: int | None = None
        self._stopped = False

    @property
    def at_end(self) -> bool:
        """Whether everything that the queue shows was looked at."""
        return self._empty_since is not None and (not self._fifo or self._empty_since == self._deletions)

    def next(self, *, idle: bool) -> Lane | Receive | None:
        """A lane, or RECEIVE, or None when there is nothing.

        An `idle` thread waits until there is something, and so None is the end for it; it is busy from then on, until
        `done`. One that has letters in its hands does not wait.
        """
        with self._changed:
            while not self._stopped:
                if (work := self._work()) is not None:
                    self._busy += idle
                    return work
                if not idle:
                    return None
                if self._busy == 0 and not (self._waiting and self._left != 0):
                    self.stop()  # nobody is left who could bring work
                    return None
                self._changed.wait(_TICK_S)
            return None

    def _work(self) -> Lane | Receive | None:
        if self._left == 0:
            return None
        if self._ready:
            return self._ready.popleft()
        return RECEIVE if self._may_receive else None

    @property
    def _may_receive(self) -> bool:
        full = self._waiting_letters >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES
        return not (self.at_end or full)

    def done(self) -> None:
        """The thread has nothing in its hands any more."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """No more work for anybody."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def before_receiving(self) -> int:
        """To be given to `received`."""
        return self._deletions

    def received(self, lanes: list[Lane], *, nothing: bool, before: int) -> None:
        """These are ready; `nothing` says that SQS had none to show."""
        with self._changed:
            self._ready.extend(lanes)
            if nothing:
                self._empty_since = before
            self._changed.notify_all()

    def deleted(self) -> None:
        """Letters left the queue."""
        with self._changed:
            self._deletions += 1
            self._changed.notify_all()

    def reserve(self) -> bool:
        """Take one from the limit; False if nothing is left of it."""
        with self._changed:
            if self._left == 0:
                return False
            if self._left is not None:
                self._left -= 1
            return True

    def give_back(self, count: int = 1) -> None:
        """So many that were reserved were not sent."""
        with self._changed:
            if self._left is not None:
                self._left += count
            self._changed.notify_all()

    def again(self, lane: Lane) -> None:
        """Its thread has no use for the rest of it: it is the next to be handed out."""
        with self._changed:
            self._ready.appendleft(lane)

    def wait(self, lane: Lane, cause: Cause) -> None:
        """Until `decided` is told of `cause`."""
        with self._changed:
            self._waiting.setdefault(cause, deque()).append(lane)
            self._waiting_letters += len(lane)
            self._waiting_bytes += sum(letter.size for letter in lane)

    def waiting_causes(self) -> list[Cause]:
        """What lanes wait for, if that is all that is left to do."""
        with self._changed:
            stuck = self._busy == 0 and self._left != 0 and not self._ready and not self._may_receive
            return list(self._waiting) if stuck else []

    def decided(self, cause: Cause) -> None:
        """What waited for `cause` is ready."""
        with self._changed:
            for lane in self._waiting.pop(cause, ()):
                self._ready.append(lane)
                self._waiting_letters -= len(lane)
                self._waiting_bytes -= sum(letter.size for letter in lane)
            self._changed.notify_all()
