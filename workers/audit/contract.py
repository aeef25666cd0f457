"""What travels on the audit queue: one event, saying who did what to what.

The events of a stream form a chain in the order in which they arrive, which on a standard queue is about, and not
exactly, the order in which they happened: `time` says when that was.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from workers.runtime.envelope import CloudEvent

#: Bytes of `details` as canonical JSON. Large evidence belongs into object storage, and its digest in here.
MAX_DETAILS_BYTES = 16_384
#: Objects and arrays inside each other, `details` itself included.
MAX_DETAILS_DEPTH = 16

Name = Annotated[str, Meta(min_length=1, max_length=128)]

#: Canonical JSON: members sorted by name, no white space, only what must be escaped is, numbers in their shortest form.
canonical = msgspec.json.Encoder(order="sorted").encode


class Entry(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """One entry of an audit log."""

    stream: Annotated[
        Name, Meta(description="The chain that it belongs to; equals the event's `subject`.", examples=["tenant-7"])
    ]
    actor: Annotated[Name, Meta(description="Who did it.", examples=["user/311"])]
    action: Annotated[Name, Meta(description="What was done.", examples=["invoice.approved"])]
    resource: Annotated[str, Meta(min_length=1, max_length=256, description="What it was done to.")]
    details: Annotated[
        dict[str, Any],
        Meta(
            description=f"Anything else: at most {MAX_DETAILS_BYTES:,} bytes of JSON, {MAX_DETAILS_DEPTH} levels deep."
        ),
    ] = {}

    def __post_init__(self) -> None:
        if not self.details:
            return
        text = canonical(self.details)
        if len(text) > MAX_DETAILS_BYTES:
            raise ValueError(f"Expected `details` of at most {MAX_DETAILS_BYTES} bytes")
        # Counting brackets is quick and nearly always enough: few details have as many as could be too deep.
        brackets = text.count(b"{") + text.count(b"[")
        if brackets > MAX_DETAILS_DEPTH and _depth(self.details) > MAX_DETAILS_DEPTH:
            raise ValueError(f"Expected `details` at most {MAX_DETAILS_DEPTH} levels deep")


def _depth(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)
        case list():
            return 1 + max(map(_depth, value), default=0)
        case _:
            return 0


class AuditRecorded(CloudEvent, kw_only=True, frozen=True, gc=False, tag="audit.recorded"):
    """Somebody did something that has to be on record."""

    data: Entry

    def __post_init__(self) -> None:
        CloudEvent.__post_init__(self)
        if self.subject != self.data.stream:
            raise ValueError("Expected `subject` to equal `data.stream`")


AuditEvent = AuditRecorded
