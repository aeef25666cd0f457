"""What the journal says of a run, of its groups and of its letters."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from spillway.dlq.letters import Cause

#: A run goes on (or its process died), is done, was stopped by Ctrl-C, ended by a failure, or could not see everything.
RUNNING, DONE, INTERRUPTED, FAILED, UNFINISHED = "running", "done", "interrupted", "failed", "unfinished"
#: Not stored: a run that is RUNNING by a process that is gone.
BROKEN_OFF = "broken off"

#: What became of a letter. SENDING: it is about to be sent; if that stays, nobody knows whether it was, and it is still
#: in the dead-letter queue. SENT: SQS confirmed it; DELETED: and it left the dead-letter queue. REFUSED, KEPT: it stays
#: there, refused by the edit or by SQS, or not sent for another reason.
SENDING, SENT, DELETED, REFUSED, KEPT = "sending", "sent", "deleted", "refused", "kept"


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the journal has it. `filter` is a Filter, `details` whatever its kind of run needs to say or to resume,
    `counts` what it came to, by name. `ended` is None for a run that goes on or broke off."""

    id: str
    kind: str
    started: datetime
    ended: datetime | None
    state: str
    who: str
    fleet: str
    queue: str
    filter: dict[str, Any]
    details: dict[str, Any]
    counts: dict[str, int]


class CauseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A group of a run: its canary's verdict ('' without one) and why, and its letters by state; `stayed` are those
    that were selected and not tried."""

    key: str
    cause: Cause
    verdict: str
    why: str
    stayed: int
    letters: dict[str, int]


class LetterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A letter of a run. `before` and `after` are its body's versions where it was edited, else None."""

    message_id: str
    cause: str
    event_id: str
    state: str
    canary: bool
    new_message_id: str
    reason: str
    before: str | None
    after: str | None
    at: datetime


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A letter for `Run.sending` or `Run.refused`."""

    message_id: str
    cause: Cause
    event_id: str = ""
    canary: bool = False
    reason: str = ""
    before: str | None = None
    after: str | None = None


def text(value: Any) -> str:
    """`value` as the journal keeps it: JSON."""
    return msgspec.json.encode(value).decode()


def iso(moment: datetime) -> str:
    """`moment` as the journal keeps it."""
    return moment.isoformat(timespec="milliseconds")


def clean(value: str) -> str:
    """`value` with `?` for what has no form in UTF-8: half a surrogate pair."""
    return value.encode(errors="replace").decode()
