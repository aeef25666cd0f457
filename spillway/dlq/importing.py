"""Messages from a file of dead letters into a queue: first every line is checked, then they are sent."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import msgspec

from spillway.dlq.files import BadLine, End, Entry, Header, Numbered, read_lines
from spillway.packing import MAX_ATTRIBUTES, MAX_MESSAGE_BYTES, Prepared
from workers.runtime.failures import Poison

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from mypy_boto3_sqs.type_defs import SendMessageBatchRequestEntryTypeDef

    from spillway.pace import TokenBucket
    from spillway.producer import Producer
    from spillway.send_result import SendError
    from workers.runtime.envelope import CloudEvent, EventDecoder

#: How many lines of a kind are listed.
LISTED = 5
#: What SQS takes in a body and in an attribute ("SendMessage", API reference).
_REFUSED = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Destination(NamedTuple):
    """Where the messages go. `as_dead_letters`: into a dead-letter queue, with their reasons."""

    queue_url: str
    as_dead_letters: bool

    @property
    def fifo(self) -> bool:
        return self.queue_url.endswith(".fifo")


class Message(Prepared, kw_only=True, frozen=True):
    """A message with attributes of any type, as SendMessage takes them."""

    message_attributes: dict[str, Any] = msgspec.field(default_factory=dict)

    def entry(self, entry_id: str) -> SendMessageBatchRequestEntryTypeDef:
        """The batch entry, as boto3 takes it."""
        entry = super().entry(entry_id)
        if self.message_attributes:
            entry["MessageAttributes"] = self.message_attributes
        return entry


@dataclass(slots=True)
class Checked:
    """What is in a file. `header` and `end` are None where there is none; `letters` are the good lines, and `hopeless`
    those of them that the worker would dead-letter at once, by the contract that is here."""

    sha256: str = ""
    header: Header | None = None
    end: End | None = None
    letters: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    first_bad: list[BadLine] = field(default_factory=list)
    hopeless: int = 0
    first_hopeless: list[BadLine] = field(default_factory=list)


@dataclass(slots=True)
class Sent:
    """What became of the good lines. `failed` counts by why; `first_failed` are line numbers."""

    sent: int = 0
    failed: Counter[SendError] = field(default_factory=Counter)
    first_failed: list[int] = field(default_factory=list)
    stopped: bool = False


def check(file: BinaryIO, destination: Destination, decoder: EventDecoder[CloudEvent] | None = None) -> Checked:
    """Read every line of `file`, from where it stands; nothing is sent. `decoder` is the worker's, if it is asked."""
    start, digest = file.tell(), hashlib.sha256()
    for piece in iter(lambda: file.read(1 << 20), b""):
        digest.update(piece)
    file.seek(start)
    found = Checked(sha256=digest.hexdigest())
    for line in _ready(file, destination, found.sha256):
        match line:
            case Header():
                found.header = line
            case End():
                found.end = line
            case BadLine():
                found.bad += 1
                if len(found.first_bad) < LISTED:
                    found.first_bad.append(line)
            case _Ready():
                found.letters += 1
                found.bytes += line.message.size
                found.reasons[line.reason] += 1
                if decoder is not None and (why := _objection(decoder, line.message.body)):
                    found.hopeless += 1
                    if len(found.first_hopeless) < LISTED:
                        found.first_hopeless.append(BadLine(line.number, why))
    return found


def _objection(decoder: EventDecoder[CloudEvent], body: str) -> str:
    """Why a worker would dead-letter `body`, '' if it would not for its form."""
    try:
        decoder.decode(body)
    except Poison as poison:
        return f"{poison.reason.value}: {poison.detail}"
    return ""


def deliver(
    file: BinaryIO,
    destination: Destination,
    producer: Producer,
    sha256: str,
    *,
    bucket: TokenBucket | None,
    stop: threading.Event,
    on_result: Callable[[], object],
) -> Sent:
    """Send the good lines of `file` in their order; `sha256` is the whole file's, as `check` found it.

    Ends early, with what is on its way accounted for, when `stop` is set. It sets `stop` itself when a whole call
    failed for good: the next one would not fare better.
    """
    outcome = Sent()
    lines: dict[int, int] = {}
    hopeless = False

    def messages() -> Iterator[Prepared]:
        index = 0
        for line in _ready(file, destination, sha256):
            if stop.is_set():
                return
            if not isinstance(line, _Ready):
                continue
            if bucket is not None:
                bucket.take()
                if stop.is_set():
                    return
            lines[index] = line.number
            index += 1
            yield line.message

    for result in producer.stream(messages()):
        number = lines.pop(result.index)
        if result.error is None:
            outcome.sent += 1
        else:
            outcome.failed[result.error] += 1
            if len(outcome.first_failed) < LISTED:
                outcome.first_failed.append(number)
            if result.error.whole_call and not hopeless:
                hopeless, outcome.stopped = True, stop.is_set()
                stop.set()  # the other senders need not wait for another try either
        on_result()
    if not hopeless:
        outcome.stopped = stop.is_set()
    return outcome


class _Ready(NamedTuple):
    number: int
    reason: str
    message: Message


def _ready(file: BinaryIO, destination: Destination, sha256: str) -> Iterator[Header | End | BadLine | _Ready]:
    for line in read_lines(file):
        if not isinstance(line, Numbered):
            yield line
            continue
        number, entry = line
        # Another one than the letter had, since SQS may still know that; the same each time this file is imported, so
        # that importing it again within five minutes, because it broke off, sends nothing a second time.
        dedup_id = hashlib.sha256(f"{sha256} {number}".encode()).hexdigest()
        message = _message(entry, destination, dedup_id)
        if why := _refusal(message, destination):
            yield BadLine(number, why)
        else:
            yield _Ready(number, entry.reasons.get("reason", ""), message)


def _message(entry: Entry, destination: Destination, dedup_id: str) -> Message:
    body = entry.text
    attributes = entry.message_attributes if destination.as_dead_letters else entry.own_attributes
    return Message(
        body=body,
        size=len(body.encode(errors="surrogatepass")) + sum(map(_size, attributes.items())),
        group_id=entry.sqs.get("MessageGroupId"),
        dedup_id=dedup_id if destination.fifo else None,
        trace_header=entry.sqs.get("AWSTraceHeader"),
        message_attributes=attributes,
    )


def _refusal(message: Message, destination: Destination) -> str:
    """Why SQS would not take `message`, '' if it would."""
    if not message.body:
        return "SQS takes no empty body"
    if message.size > MAX_MESSAGE_BYTES:
        return f"expected at most {MAX_MESSAGE_BYTES:,} bytes, got {message.size:,}"
    if len(message.message_attributes) > MAX_ATTRIBUTES:
        return f"expected at most {MAX_ATTRIBUTES} attributes, got {len(message.message_attributes)}"
    if destination.fifo and not message.group_id:
        return "expected `sqs.MessageGroupId`, which a FIFO queue needs"
    for text in (message.body, *(one.get("StringValue", "") for one in message.message_attributes.values())):
        if found := _REFUSED.search(text):
            return f"SQS does not take the character U+{ord(found[0]):04X}"
    return ""


def _size(attribute: tuple[str, dict[str, Any]]) -> int:
    name, value = attribute
    content = value["BinaryValue"] if "BinaryValue" in value else value["StringValue"].encode(errors="surrogatepass")
    return len(name.encode(errors="surrogatepass")) + len(value["DataType"]) + len(content)
