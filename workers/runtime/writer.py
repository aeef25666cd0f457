"""Writes one batch: one call of the worker's SQL function if all goes well, the failure table if it does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

import msgspec

from workers.runtime.breaker import PROBE_ROWS
from workers.runtime.failures import POLICIES, Failure, ResultMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.runtime.calls import Calls
    from workers.runtime.invocation import Invocation

#: What an SQL function may say became of an event, and the message is done.
DONE = frozenset({"applied", "duplicate", "stale", "rejected"})
#: ... and it is not: dead-lettered (`invalid`, `gap`) or given back untouched (`held`).
NOT_DONE = frozenset({"invalid", "gap", "held"})


class Row(Protocol):
    """What a record handler makes of an event: a struct of the fields its SQL function reads, `id` among them."""

    @property
    def id(self) -> UUID: ...


class Answer(NamedTuple):
    """The row that the SQL function returned for one event: spillway.outcome (workers/migrate/versions)."""

    event_id: UUID
    outcome: str
    reason: str | None
    detail: str | None


@dataclass(slots=True)
class Written:
    """What became of a batch: each event id is in exactly one of the two."""

    answers: list[Any] = field(default_factory=list)  # tuples in the shape of Answer, as the driver made them
    given_back: dict[UUID, Failure] = field(default_factory=dict)


class BatchWriter:
    """Calls `statement` with batches and follows the failure table; raises nothing that a database can cause."""

    def __init__(self, calls: Calls, statement: str) -> None:
        self._calls = calls
        self._statement = statement
        self._encode = msgspec.json.Encoder().encode

    def write(self, rows: Sequence[Row], invocation: Invocation, groups: Mapping[UUID, str] | None = None) -> Written:
        """Write `rows` (distinct ids, in order) in the time that `invocation` has; what is left is given back.

        `groups`, event id -> FIFO group, keeps order where a batch has to be cut: behind a row that was not done, the
        rest of its group is held.
        """
        written = Written()
        pieces = [(rows, 0)] if rows else []
        if len(rows) > PROBE_ROWS and not self._calls.breaker.closed:
            pieces = [(rows[PROBE_ROWS:], 0), (rows[:PROBE_ROWS], 0)]
        blocked: set[str] = set()
        while pieces:
            piece, depth = pieces.pop()
            if blocked:
                piece = _hold(piece, blocked, groups or {}, written)
                if not piece:
                    continue
            answers = self._calls.call(
                self._statement, partial(self._encode, piece), invocation, partial(check_answers, piece)
            )
            if not isinstance(answers, Failure):
                written.answers += answers
                if groups:
                    blocked |= {groups[answer[0]] for answer in answers if answer[1] in ("invalid", "held")}
                continue
            if len(piece) > 1 and depth < POLICIES[answers].halvings and self._calls.has_time(invocation):
                invocation.halvings += 1
                middle = len(piece) // 2
                # The second half is put down first, so that records keep their order.
                pieces += [(piece[middle:], depth + 1), (piece[:middle], depth + 1)]
                continue
            _settle(piece, answers, invocation, written)
            if groups:
                blocked |= {groups[row.id] for row in piece}
        return written


def _hold(piece: Sequence[Row], blocked: set[str], groups: Mapping[UUID, str], written: Written) -> list[Row]:
    """Give back what of `piece` is in a blocked group; returns the rest."""
    free = []
    for row in piece:
        if groups[row.id] in blocked:
            written.given_back[row.id] = Failure.HELD
        else:
            free.append(row)
    return free


def _settle(piece: Sequence[Row], failure: Failure, invocation: Invocation, written: Written) -> None:
    """No more to be done for `piece`: a single message at fault is answered for, everything else is given back."""
    if failure is Failure.POISON and len(piece) == 1:
        sqlstate = getattr(invocation.errors[-1][1], "sqlstate", None)
        written.answers.append(Answer(piece[0].id, "invalid", sqlstate, "refused by the database"))
    else:
        written.given_back.update((row.id, failure) for row in piece)


def check_answers(rows: Sequence[Row], answers: Sequence[Sequence[Any]]) -> None:
    """Raise ResultMismatch unless `answers` are about exactly the events in `rows`, one each.

    RDS Proxy has been seen to hand a client another client's rows (opengovsg/rdsproxy-test, 2024): such an answer must
    never look like success.
    """
    if len(answers) != len(rows) or {row.id.int for row in rows} != {answer[0].int for answer in answers}:
        raise ResultMismatch(f"expected answers for the {len(rows)} events sent, got {len(answers)} for others")
