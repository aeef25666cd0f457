"""A piece of a redrive: up to a hundred letters that are sent together, and what SQS said to each."""

from __future__ import annotations

import hashlib
import random
import time
from typing import TYPE_CHECKING, Any

import msgspec

from spillway.aws_errors import THROTTLED, code_of
from spillway.dlq.edits import EditRefused
from spillway.dlq.letters import Letter
from spillway.fleet.canaries import CANARY
from spillway.packing import MAX_ATTRIBUTES, MAX_MESSAGE_BYTES, Prepared, pack
from spillway.producer import BACKOFF_BASE_S, BACKOFF_CAP_S, DEFAULT_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import SendMessageBatchRequestEntryTypeDef

    from spillway.dlq.edits import Editor

#: Letters and bytes of a piece. Each piece costs the journal three transactions, so it is not one batch of ten; what is
#: lost with a killed process is sent a second time, so it is not a thousand.
MAX_LETTERS = 100
MAX_BYTES = 2 * 1_048_576
#: Why letters stay that have to do with a FIFO queue: there, order comes first.
NO_GROUP = "it has no message group, and the destination is a FIFO queue"
BEHIND = "behind a letter of its message group that stays"


class Outgoing(Prepared, kw_only=True, frozen=True):
    """A letter as it goes out again: the event, its own attributes with their own types, and nothing of a worker's."""

    letter: Letter
    own: dict[str, Any]

    @property
    def canary(self) -> bool:
        return CANARY in self.own

    @property
    def edited(self) -> bool:
        return self.body != self.letter.body

    def entry(self, entry_id: str) -> SendMessageBatchRequestEntryTypeDef:
        """The batch entry, as boto3 takes it."""
        entry = super().entry(entry_id)
        if self.own:
            entry["MessageAttributes"] = self.own
        return entry


class Answers(msgspec.Struct):
    """What became of a piece's letters, by message id: the new message id, or why not. A letter that is in none of
    them may have been sent or not: there was no answer. `error` is what ended the piece early."""

    sent: dict[str, str] = {}
    refused: dict[str, str] = {}
    kept: dict[str, str] = {}
    error: Exception | None = None


def outgoing(letter: Letter, body: str, *, run: str, fifo: bool, canary: bool = False) -> Outgoing:
    """`letter` with `body`, as it goes to a queue that is `fifo` or not.

    The deduplication id is the run's and the letter's own: the same letter sent twice by a run within five minutes
    arrives once ("Exactly-once processing", SQS developer guide), and is not taken for what its producer sent.
    """
    own = letter.own_attributes
    if canary:
        own[CANARY] = {"DataType": "String", "StringValue": run}
    return Outgoing(
        letter=letter,
        body=body,
        own=own,
        size=_size(body, own),
        event_id=letter.event_id,
        group_id=letter.group_id,
        dedup_id=hashlib.sha256(f"{run} {letter.message_id}".encode()).hexdigest() if fifo else None,
        trace_header=letter.system.get("AWSTraceHeader"),
    )


def body_of(letter: Letter, editor: Editor | None, *, to_fifo: bool) -> str:
    """The body that `letter` goes out with. Raises EditRefused if it must not, or cannot, go to the destination."""
    if to_fifo and letter.group_id is None:
        raise EditRefused(NO_GROUP)
    return letter.body if editor is None else editor.edited(letter.body)


def can_be_canary(letter: Letter, run: str) -> bool:
    """Whether there is room for the attribute that makes it one."""
    own = letter.own_attributes
    room = len(CANARY) + len("String") + len(run)
    return len(own) < MAX_ATTRIBUTES and letter.size + room <= MAX_MESSAGE_BYTES


class Sender:
    """Sends pieces to one queue. Several threads may use it. `sleep` is there for tests."""

    def __init__(
        self, client: SQSClient, queue_url: str, *, fifo: bool, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._client = client
        self._queue_url = queue_url
        self._fifo = fifo
        self._sleep = sleep

    def send(self, piece: Sequence[Outgoing]) -> Answers:
        """Send `piece`: entries that SQS has no time for are tried again, what it refuses for good is not.

        On a FIFO queue nothing overtakes a letter of its own message group that was not sent.
        """
        answers = Answers(sent={}, refused={}, kept={})
        blocked: set[str | None] = set()
        for batch in pack(enumerate(piece), one_per_group=self._fifo):
            letters = [self._of(one) for _, one in batch]
            free = [one for one in letters if not (self._fifo and one.group_id in blocked)]
            answers.kept |= {one.letter.message_id: BEHIND for one in letters if one not in free}
            if answers.error is not None:
                answers.kept |= {one.letter.message_id: "not tried" for one in free}
                continue
            self._deliver(free, answers)
            blocked |= {one.group_id for one in free if one.letter.message_id not in answers.sent}
        return answers

    @staticmethod
    def _of(prepared: Prepared) -> Outgoing:
        assert isinstance(prepared, Outgoing)  # noqa: S101  (for mypy: pack gives back what it was given)
        return prepared

    def _deliver(self, batch: Sequence[Outgoing], answers: Answers) -> None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (0.1 s)

        waiting: Mapping[str, Outgoing] = {str(place): one for place, one in enumerate(batch)}
        busy: dict[str, str] = {}
        for attempt in range(DEFAULT_ATTEMPTS):
            if not waiting:
                return
            if attempt:
                # Full jitter: "Exponential Backoff And Jitter", AWS Architecture Blog.
                self._sleep(random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**attempt)))  # noqa: S311
            try:
                answer = self._client.send_message_batch(
                    QueueUrl=self._queue_url, Entries=[one.entry(entry) for entry, one in waiting.items()]
                )
            except ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                answers.error = error
                if status < 500 or code_of(error) in THROTTLED:  # an answer: none of these was taken
                    answers.kept |= _each(waiting.values(), f"{error.operation_name}: {code_of(error)}")
                return
            except BotoCoreError as error:
                answers.error = error
                return
            for sent in answer.get("Successful", ()):
                answers.sent[waiting[sent["Id"]].letter.message_id] = sent["MessageId"]
            busy = {}
            for failed in answer.get("Failed", ()):
                why = f"{failed['Code']}: {failed.get('Message', '')}".removesuffix(": ")
                if failed.get("SenderFault"):
                    answers.refused[waiting[failed["Id"]].letter.message_id] = f"SQS refused it: {why}"
                else:
                    busy[failed["Id"]] = why
            waiting = {entry: one for entry, one in waiting.items() if entry in busy}
        answers.kept |= {one.letter.message_id: f"SQS was busy: {busy[entry]}" for entry, one in waiting.items()}


def _each(those: Iterable[Outgoing], why: str) -> dict[str, str]:
    return {one.letter.message_id: why for one in those}


def _size(body: str, attributes: Mapping[str, Any]) -> int:
    size = len(body.encode(errors="surrogatepass"))
    for name, value in attributes.items():
        content = value["BinaryValue"] if "BinaryValue" in value else value.get("StringValue", "").encode()
        size += len(name.encode()) + len(value["DataType"]) + len(content)
    return size
