"""How events fit into SendMessageBatch calls: at most 10 entries and 1 MiB together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from workers.runtime.envelope import CloudEvent

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import MessageAttributeValueTypeDef, SendMessageBatchRequestEntryTypeDef

#: "Amazon SQS message quotas": entries of one batch, bytes of one message and of one batch, attributes of one message.
MAX_BATCH_ENTRIES = 10
MAX_BATCH_BYTES = 1_048_576
MAX_MESSAGE_BYTES = 1_048_576
MAX_ATTRIBUTES = 10


class Prepared(msgspec.Struct, kw_only=True, frozen=True):
    """A message ready to be sent. `size` is in bytes, as SQS counts them: body plus the attributes' names, types and
    values; the trace header is a system attribute and does not count ("SendMessageBatch", API reference)."""

    body: str
    size: int
    event_id: str | None = None
    group_id: str | None = None
    dedup_id: str | None = None
    trace_header: str | None = None
    attributes: dict[str, str | bytes] = {}
    event: CloudEvent | None = None

    @classmethod
    def raw(cls, body: str, *, group_id: str | None = None, dedup_id: str | None = None) -> Prepared:
        """A message that goes out as it is, unchecked: for tests, and to show what poison does."""
        return cls(body=body, size=len(body.encode()), group_id=group_id, dedup_id=dedup_id)

    def entry(self, entry_id: str) -> SendMessageBatchRequestEntryTypeDef:
        """The batch entry, as boto3 takes it."""
        entry: SendMessageBatchRequestEntryTypeDef = {"Id": entry_id, "MessageBody": self.body}
        if self.group_id is not None:
            entry["MessageGroupId"] = self.group_id
        if self.dedup_id is not None:
            entry["MessageDeduplicationId"] = self.dedup_id
        if self.attributes:
            entry["MessageAttributes"] = {name: _attribute(value) for name, value in self.attributes.items()}
        if self.trace_header is not None:
            entry["MessageSystemAttributes"] = {
                "AWSTraceHeader": {"DataType": "String", "StringValue": self.trace_header}
            }
        return entry


Numbered = tuple[int, Prepared]


def message_size(body: bytes, attributes: Mapping[str, str | bytes]) -> int:
    """Bytes that SQS counts for one message."""
    size = len(body)
    for name, value in attributes.items():
        text = value if isinstance(value, bytes) else value.encode()
        size += len(name.encode()) + len(_data_type(value)) + len(text)
    return size


def pack(
    messages: Iterable[Numbered], *, max_entries: int = MAX_BATCH_ENTRIES, one_per_group: bool = False
) -> Iterator[list[Numbered]]:
    """Batches of `messages` in their order, each within SQS's limits; every message is in exactly one.

    `one_per_group` ends a batch where a group id would come a second time. SQS accepts or refuses each entry by
    itself, so an entry that has to be retried could otherwise be overtaken by its own group.
    A message beyond MAX_MESSAGE_BYTES fits nowhere: the caller keeps it out.
    """
    batch: list[Numbered] = []
    size = 0
    groups: set[str | None] = set()
    for numbered in messages:
        message = numbered[1]
        if batch and (size + message.size > MAX_BATCH_BYTES or (one_per_group and message.group_id in groups)):
            yield batch
            batch, size, groups = [], 0, set()
        batch.append(numbered)
        size += message.size
        groups.add(message.group_id)
        if len(batch) == max_entries:
            # Here, not when the next one comes: under a rate limit that may be a long time.
            yield batch
            batch, size, groups = [], 0, set()
    if batch:
        yield batch


def _data_type(value: str | bytes) -> str:
    return "Binary" if isinstance(value, bytes) else "String"


def _attribute(value: str | bytes) -> MessageAttributeValueTypeDef:
    if isinstance(value, bytes):
        return {"DataType": "Binary", "BinaryValue": value}
    return {"DataType": "String", "StringValue": value}
