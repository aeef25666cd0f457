"""Sending a file of events: first every line is checked, then the good ones are sent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import BinaryIO

import msgspec

from spillway.jsonl import BadLine, BadLineFile, read_events
from spillway.pace import TokenBucket
from spillway.packing import Numbered, Prepared, pack
from spillway.preparing import Preparer
from spillway.producer import Producer
from spillway.send_result import SendResult

#: Bad lines that an error message lists before "and N more", failed events likewise.
LISTED = 10


class Checked(msgspec.Struct, kw_only=True):
    """What a file holds. `size` is in bytes as SQS counts them, `batches` the calls it takes."""

    events: int = 0
    batches: int = 0
    size: int = 0
    bad: int = 0
    first_bad: list[BadLine] = []


class Sent(msgspec.Struct, kw_only=True):
    """What became of a file's events. `confirmed_before` were skipped by --resume; `stopped` says that
    somebody asked to stop; `first_failed` has the line and result of events that SQS refused one by one."""

    sent: int = 0
    confirmed_before: int = 0
    failed: Counter[str] = msgspec.field(default_factory=Counter)
    first_failed: list[tuple[int, SendResult]] = []
    stopped: bool = False


def check(file: BinaryIO, preparer: Preparer, *, fifo: bool, max_entries: int, keep: BadLineFile | None) -> Checked:
    """Read all of `file` and send nothing; bad lines go to `keep`, if there is one."""
    checked = Checked()

    def good() -> Iterator[Numbered]:
        for found in read_events(file, preparer):
            if isinstance(found, BadLine):
                checked.bad += 1
                if len(checked.first_bad) < LISTED:
                    checked.first_bad.append(found)
                if keep is not None:
                    keep.write(found)
            else:
                yield found[0].number, found[1]

    for batch in pack(good(), max_entries=max_entries, one_per_group=fifo):
        checked.batches += 1
        checked.events += len(batch)
        checked.size += sum(message.size for _, message in batch)
    return checked


def deliver(
    file: BinaryIO,
    preparer: Preparer,
    producer: Producer,
    *,
    confirmed: Container[str],
    bucket: TokenBucket | None,
    stop: threading.Event,
    on_result: Callable[[SendResult], object],
) -> Sent:
    """Send the good lines of `file`, except events that are in `confirmed`.

    Ends early, with what is on its way accounted for, when `stop` is set. It sets `stop` itself when a whole call
    failed for good: the next one would not fare better.
    """
    outcome = Sent()
    lines: dict[int, int] = {}
    hopeless = False

    def events() -> Iterator[Prepared]:
        index = 0
        for found in read_events(file, preparer):
            if stop.is_set():
                return
            if isinstance(found, BadLine):
                continue
            line, message = found
            if message.event_id in confirmed:
                outcome.confirmed_before += 1
                continue
            if bucket is not None:
                bucket.take()
                if stop.is_set():
                    return
            lines[index] = line.number
            index += 1
            yield message

    for result in producer.stream(events()):
        number = lines.pop(result.index)
        if result.error is None:
            outcome.sent += 1
        else:
            outcome.failed[f"{result.error.code}: {result.error.message}"] += 1
            if result.error.whole_call and not hopeless:
                hopeless, outcome.stopped = True, stop.is_set()
                stop.set()  # the other senders need not wait for another try either
            elif not result.error.whole_call and len(outcome.first_failed) < LISTED:
                outcome.first_failed.append((number, result))
        on_result(result)
    if not hopeless:
        outcome.stopped = stop.is_set()
    return outcome
