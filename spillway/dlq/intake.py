"""What a redrive takes out of a dead-letter queue: the letters that are selected, and no other."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from spillway.packing import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

    from spillway.dlq.desk import Desk, Lane
    from spillway.dlq.filters import Filter
    from spillway.dlq.holding import Holder
    from spillway.dlq.letters import Letter
    from spillway.dlq.run import Run
    from spillway.dlq.tally import Tally

#: Bytes that one receive is to bring at most, going by the letters before.
_RECEIVE_BYTES = 1_048_576
#: Seconds from its start in which a run remembers what it sent. `arrived_by` is exact to a second or so, and tells all
#: that comes back later.
_REMEMBER_S = 5.0


class Intake:
    """Receives for several threads. What is not selected stays held, so that it does not come again and again.

    What was sent to the dead-letter queue after `arrived_by`, the run's start by SQS's clock, is not selected: else a
    letter that fails again would go round. `lock` is for changes of `tally`.
    """

    def __init__(
        self,
        *,
        holder: Holder,
        desk: Desk,
        run: Run,
        selected: Filter,
        arrived_by: datetime,
        fifo: bool,
        tally: Tally,
        lock: threading.Lock,
    ) -> None:
        self._holder = holder
        self._desk = desk
        self._run = run
        self._filter = selected
        self._arrived_by = arrived_by
        self._fifo = fifo
        self._tally = tally
        self._lock = lock
        self._mean_size = 1024.0
        self._remembered: set[str] = set()
        self._remember_until = time.monotonic() + _REMEMBER_S

    def receive(self) -> None:
        """Bring up to ten letters to the desk, or that there are none."""
        before = self._desk.before_receiving()
        most = max(1, min(MAX_BATCH_ENTRIES, int(_RECEIVE_BYTES / self._mean_size)))
        letters = self._holder.receive(most)
        for letter in letters:
            self._mean_size += (letter.size - self._mean_size) / 8
        self._desk.received(self._lanes(letters), nothing=not letters, before=before)

    def remember(self, new_ids: Iterable[str]) -> None:
        """Letters were sent with these message ids: what dies under them is not selected."""
        with self._lock:
            if time.monotonic() < self._remember_until:
                self._remembered.update(new_ids)

    def _lanes(self, letters: list[Letter]) -> list[Lane]:
        selected = []
        later = 0
        for letter in letters:
            if self._came_back(letter):
                later += 1
            elif self._filter.matches(letter):
                selected.append(letter)
        cleared = self._clear(selected)
        with self._lock:
            self._tally.looked_at += len(letters)
            self._tally.later += later
        lanes: dict[str, Lane] = {}
        for letter in selected:
            if letter.message_id not in cleared:
                lane = (self._fifo and letter.group_id) or letter.message_id
                lanes.setdefault(lane, deque()).append(letter)
        return list(lanes.values())

    def _came_back(self, letter: Letter) -> bool:
        return (
            letter.sent_at > self._arrived_by
            or letter.message_id in self._remembered
            or letter.reasons.get("message-id") in self._remembered
        )

    def _clear(self, letters: list[Letter]) -> set[str]:
        """Delete those that this run or one before sent; returns them."""
        before = self._run.sent_before([letter.message_id for letter in letters])
        if before:
            deleted = self._holder.delete(before)
            self._run.cleared(deleted)
            with self._lock:
                self._tally.cleared += sum(run != self._run.id for one, run in before.items() if one in deleted)
                self._tally.undeleted += len(before.keys() - deleted)
        return set(before)


def now_by_sqs(client: SQSClient, queue_url: str) -> datetime:
    """The time by SQS's own clock, which stamps messages, rounded up to the second: an HTTP date has no fraction."""
    answer = client.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    said = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    now = parsedate_to_datetime(said) if said else datetime.now(UTC)
    return now + timedelta(seconds=1)
