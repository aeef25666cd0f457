"""Receives messages without consuming them: what is held is invisible to others, and given back in the end."""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from spillway.aws import is_local
from spillway.dlq.letters import Letter, read_letter
from spillway.packing import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

#: Seconds that a letter stays invisible should this process be killed. Held letters are renewed when half is over.
HOLD_S = 120
#: Long polls without a letter, in a row, before a queue on AWS counts as read: one alone may miss some.
EMPTY_POLLS = 3
#: Messages of a queue that SQS lets all consumers together hold, about ("Amazon SQS standard queue quotas", and the
#: same for FIFO queues). Beyond them a long poll brings nothing, without an error; as it is "about", no end is believed
#: from 95 % of them.
MOST_HELD = 120_000
_NEARLY = 0.95
#: Tries of a batch's entries that SQS did not take, and the pause before the second, which doubles.
TRIES = 5
PAUSE_S = 0.1
#: Threads that give back what is held at the end.
RELEASE_THREADS = 4


def shows_no_more(held: int) -> bool:
    """Whether SQS may have hidden the rest of a queue because `held` of its messages are in somebody's hands."""
    return held >= MOST_HELD * _NEARLY


class Held(NamedTuple):
    """A letter that is held: its latest receipt handle, and until when (time.monotonic) it stays invisible."""

    receipt_handle: str
    until: float


class Holder:
    """Holds letters of one queue. Several threads may use it, as many as `client` has connections.

    `wait_s` is how long a poll waits; by default a second on AWS and none on this machine, where one answer is the
    truth. Used as a context manager it gives everything back at the end that is still held, whatever the end is.

    A held letter is renewed by `receive`, for as long as SQS allows: twelve hours after it was received. A holder that
    only waits calls `renew`. SQS lets about `MOST_HELD` messages of a queue be held: see `shows_no_more`.

    On a FIFO queue SQS shows no more of a message group for as long as one of its messages is held ("FIFO queue
    message ordering", SQS developer guide): what one receive brought, the first 10 at most, is all that is seen of it.
    """

    def __init__(self, client: SQSClient, queue_url: str, *, hold_s: int = HOLD_S, wait_s: int | None = None) -> None:
        self._client = client
        self.queue_url = queue_url
        self._hold_s = hold_s
        self._local = is_local(queue_url)
        self._wait_s = (0 if self._local else 1) if wait_s is None else wait_s
        self._held: dict[str, Held] = {}
        self._due: list[tuple[float, str]] = []  # a heap by `until`; what `held` says otherwise is out of date
        self._lock = threading.Lock()

    @property
    def held(self) -> Mapping[str, Held]:
        """What is held, by message id: a view that changes."""
        return MappingProxyType(self._held)

    def receive(self, most: int = MAX_BATCH_ENTRIES) -> list[Letter]:
        """Up to `most` (10) letters that were not held, and are now; [] when the queue shows no more.

        A letter that is held already and came again, because its time was over, only gets its new receipt handle.
        """
        self.renew()
        empty = 0
        while empty < (1 if self._local else EMPTY_POLLS):
            # By the clock before the call: SQS counts from some moment in it.
            until = time.monotonic() + self._hold_s
            messages = self._client.receive_message(
                QueueUrl=self.queue_url,
                MaxNumberOfMessages=min(most, MAX_BATCH_ENTRIES),
                VisibilityTimeout=self._hold_s,
                WaitTimeSeconds=self._wait_s,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            ).get("Messages", [])
            new = self._keep(messages, until)
            if new:
                return new
            empty += not messages
        return []

    def renew(self) -> None:
        """Hold for another `hold_s` what has been held for half of it."""
        soon = time.monotonic() + self._hold_s / 2
        due = []
        with self._lock:
            while self._due and self._due[0][0] < soon:
                until, message_id = heapq.heappop(self._due)
                if (held := self._held.get(message_id)) is not None and held.until == until:
                    due.append(message_id)
        self._change(due, self._hold_s)

    def extend(self, letters: Iterable[Letter | str], seconds: int) -> None:
        """Keep letters (or message ids) invisible for `seconds` from now."""
        self._change([_id(letter) for letter in letters], seconds)

    def release(self, letters: Iterable[Letter | str]) -> None:
        """Give letters (or message ids) back: they are visible again at once, to this holder, too."""
        ids = [_id(letter) for letter in letters]
        self._change(ids, 0)
        with self._lock:
            for message_id in ids:
                self._held.pop(message_id, None)

    def delete(self, letters: Iterable[Letter | str]) -> set[str]:
        """Delete letters (or message ids) that are held; returns the ids that SQS confirmed, which are no longer held.

        What it refused because it was busy is tried again. The others stay held.
        """
        deleted: set[str] = set()
        for batch in self._batches(map(_id, letters)):
            gone = self._call(self._client.delete_message_batch, batch, {})
            with self._lock:
                for message_id in gone:
                    self._held.pop(message_id, None)
            deleted |= gone
        return deleted

    def release_all(self) -> None:
        """Give everything back. Every batch is tried; raises nothing: what SQS does not take back comes by itself."""
        with self._lock:
            ids = list(self._held)
        batches = [ids[start : start + MAX_BATCH_ENTRIES] for start in range(0, len(ids), MAX_BATCH_ENTRIES)]
        if len(batches) == 1:
            self._release_quietly(batches[0])
        elif batches:
            with ThreadPoolExecutor(RELEASE_THREADS, thread_name_prefix="dlq-release") as pool:
                try:
                    for done in [pool.submit(self._release_quietly, batch) for batch in batches]:
                        done.result()
                except BaseException:  # Ctrl-C again: the rest comes by itself
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release_all()

    def _release_quietly(self, ids: Sequence[str]) -> None:
        with contextlib.suppress(Exception):
            self.release(ids)

    def _keep(self, messages: Sequence[Any], until: float) -> list[Letter]:
        new = []
        with self._lock:
            for message in messages:
                if message["MessageId"] not in self._held:
                    new.append(read_letter(message))
                self._note(message["MessageId"], message["ReceiptHandle"], until)
        return new

    def _note(self, message_id: str, receipt_handle: str, until: float) -> None:
        self._held[message_id] = Held(receipt_handle, until)
        heapq.heappush(self._due, (until, message_id))

    def _change(self, ids: Sequence[str], seconds: int) -> None:
        more = {"VisibilityTimeout": seconds}
        for batch in self._batches(ids):
            until = time.monotonic() + seconds
            changed = self._call(self._client.change_message_visibility_batch, batch, more)
            if seconds:
                with self._lock:
                    for message_id in changed:
                        if (held := self._held.get(message_id)) is not None:
                            self._note(message_id, held.receipt_handle, until)

    def _batches(self, ids: Iterable[str]) -> Iterator[dict[str, str]]:
        """Message id -> receipt handle of those that are held, ten at a time."""
        with self._lock:
            handles = [(one, self._held[one].receipt_handle) for one in dict.fromkeys(ids) if one in self._held]
        for start in range(0, len(handles), MAX_BATCH_ENTRIES):
            yield dict(handles[start : start + MAX_BATCH_ENTRIES])

    def _call(self, call: Any, batch: Mapping[str, str], more: dict[str, Any]) -> set[str]:
        """The message ids of `batch` for which SQS confirmed `call`."""
        entries = {str(place): message_id for place, message_id in enumerate(batch)}
        confirmed: set[str] = set()
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            answer = call(
                QueueUrl=self.queue_url,
                Entries=[
                    more | {"Id": entry, "ReceiptHandle": batch[message_id]} for entry, message_id in entries.items()
                ],
            )
            confirmed |= {entries[one["Id"]] for one in answer.get("Successful", ())}
            again = {one["Id"] for one in answer.get("Failed", ()) if not one.get("SenderFault")}
            entries = {entry: message_id for entry, message_id in entries.items() if entry in again}
            if not entries:
                break
        return confirmed


def _id(letter: Letter | str) -> str:
    return letter if isinstance(letter, str) else letter.message_id
