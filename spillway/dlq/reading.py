"""Reads a dead-letter queue, all of it or a sample, and says how far what was read can be trusted."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from spillway.dlq.holding import MOST_HELD, Holder, shows_no_more
from spillway.packing import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_sqs import SQSClient

    from spillway.dlq.letters import Letter

#: Threads that read one queue. On AWS a receive takes 10 to 20 ms, so these read a few thousand letters a second.
THREADS = 4
_Z = 1.959964  # of the normal distribution: 95 % are within so many standard deviations


class Depth(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages SQS counts in a queue: those it would show, and those that somebody holds. About right."""

    visible: int
    in_flight: int = 0
    delayed: int = 0

    @property
    def total(self) -> int:
        return self.visible + self.in_flight + self.delayed


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a queue was read. `depth` is from before; `to_the_end` is whether SQS had nothing more to show."""

    read: int
    depth: Depth
    to_the_end: bool
    fifo: bool = False

    @property
    def complete(self) -> bool:
        """Whether every letter was read: counts are exact."""
        return self.to_the_end and self.read >= self.depth.total

    @property
    def total(self) -> int:
        """How many letters there are, about."""
        return max(self.read, self.depth.total)

    def described(self) -> str:
        """A sentence."""
        if self.total == 0:
            return "It is empty."
        if self.complete:
            return f"All {self.read:,} were read: the numbers are exact." if self.read > 1 else "It was read."
        if self.to_the_end:
            return self._end()
        return f"{self.read:,} of about {self.total:,} were read."

    def _end(self) -> str:
        """Why SQS shows no more, and yet counts more."""
        were_read = f"{self.read:,} of about {self.total:,} were read"
        if shows_no_more(self.read + self.depth.in_flight):
            return (
                f"{were_read}: SQS shows no more while about {MOST_HELD:,} messages of a queue are held. "
                "Redrive or discard some first."
            )
        if self.fifo and self.read:
            return f"{were_read}: of a FIFO queue SQS shows at most the first 10 of each message group."
        if self.depth.in_flight:
            return (
                f"{were_read}; the others are in flight: somebody else is reading "
                "or redriving them, or was stopped doing so. Look again in two minutes."
            )
        return f"All that SQS shows were read: {self.read:,}. It counts about {self.total:,}."


def depth_of(client: SQSClient, queue_url: str) -> Depth:
    """Ask SQS for the depth of a queue."""
    found = client.get_queue_attributes(
        QueueUrl=queue_url,
        AttributeNames=[
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        ],
    )["Attributes"]
    return Depth(
        visible=int(found["ApproximateNumberOfMessages"]),
        in_flight=int(found["ApproximateNumberOfMessagesNotVisible"]),
        delayed=int(found["ApproximateNumberOfMessagesDelayed"]),
    )


def read(
    holder: Holder,
    on_letter: Callable[[Letter], bool | None],
    *,
    limit: int | None = None,
    threads: int = THREADS,
    stop: threading.Event,
) -> bool:
    """Give `limit` letters (None: all that SQS shows) to `on_letter`, one at a time; returns whether it was the end.

    Goes on until then, or `stop` is set, or `on_letter` answers True: enough. Whatever was read is held by `holder`.
    Raises what SQS answers instead.
    """
    reader = _Reader(holder, on_letter, limit, stop)
    if threads == 1:
        reader.run()
        return reader.at_end
    with ThreadPoolExecutor(threads, thread_name_prefix="dlq-read") as pool:
        running = [pool.submit(reader.run) for _ in range(threads)]
        try:
            for one in running:
                one.result()
        except BaseException:
            reader.finish()
            raise
    return reader.at_end


def read_all(client: SQSClient, queue_url: str) -> list[Letter]:
    """Every letter that SQS shows of a queue; each is given back. For queues that fit into memory."""
    letters: list[Letter] = []
    with Holder(client, queue_url) as holder:
        read(holder, letters.append, threads=1, stop=threading.Event())
    return letters


def interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of which a random sample of `of` had `count` (Wilson 1927, without continuity
    correction): never outside 0 to 1, and sensible for small samples."""
    if of == 0:
        return 0.0, 1.0
    share, z2 = count / of, _Z**2
    centre = share + z2 / (2 * of)
    spread = _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return max(0.0, (centre - spread) / (1 + z2 / of)), min(1.0, (centre + spread) / (1 + z2 / of))


class _Reader:
    """What the threads of one `read` share."""

    def __init__(
        self,
        holder: Holder,
        on_letter: Callable[[Letter], bool | None],
        limit: int | None,
        stop: threading.Event,
    ) -> None:
        self._holder = holder
        self._on_letter = on_letter
        self._left = math.inf if limit is None else limit
        self._stop = stop
        self._enough = False
        self._lock = threading.Lock()
        self.at_end = False

    def run(self) -> None:
        while not (self._enough or self.at_end or self._stop.is_set()):
            with self._lock:
                most = int(min(self._left, MAX_BATCH_ENTRIES))
                self._left -= most
            if most == 0:
                return
            try:
                letters = self._holder.receive(most)
            except BaseException:
                self.finish()
                raise
            with self._lock:
                self._left += most - len(letters)
                # What another thread received before this one found the queue empty still counts.
                self.at_end |= not letters
                for letter in letters:
                    if not self._enough and self._on_letter(letter):
                        self._enough = True

    def finish(self) -> None:
        """Let every thread end after the call that it makes."""
        self._enough = True
