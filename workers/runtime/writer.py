"""Writes one batch: one call of the worker's SQL function if all goes well, the failure table if it does not."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

import msgspec

from workers.runtime.failures import POLICIES, Failure, ResultMismatch, classify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Row(Protocol):
    """What a record handler makes of an event: a struct of the fields its SQL function reads, `id` among them."""

    @property
    def id(self) -> UUID: ...


class Store(Protocol):
    """What the writer needs of the database (workers.runtime.database.Database)."""

    @property
    def connected(self) -> bool: ...

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]: ...

    def discard(self) -> None: ...


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
    errors: list[tuple[Failure, BaseException]] = field(default_factory=list)
    halvings: int = 0


class BatchWriter:
    """Calls `statement` with batches and follows the failure table; raises nothing that a database can cause."""

    def __init__(
        self,
        store: Store,
        statement: str,
        *,
        attempt_s: float,
        connect_timeout_s: float,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._statement = statement
        self._attempt_s = attempt_s
        self._connect_timeout_s = connect_timeout_s
        self._sleep = sleep
        # Jitter, not secrecy: environments that failed together must not come back together.
        self._rng = rng or random.Random()  # noqa: S311
        self._encode = msgspec.json.Encoder().encode

    def write(self, rows: Sequence[Row], remaining_s: Callable[[], float]) -> Written:
        """Write `rows` (distinct ids) within `remaining_s()` seconds; what could not be finished is given back."""
        written = Written()
        pieces = [(rows, 0)] if rows else []
        while pieces:
            piece, depth = pieces.pop()
            failure = self._write_piece(piece, written, remaining_s)
            if failure is None:
                continue
            policy = POLICIES[failure]
            if len(piece) > 1 and depth < policy.halvings and self._has_time(remaining_s):
                written.halvings += 1
                middle = len(piece) // 2
                # The second half is put down first, so that records keep their order.
                pieces += [(piece[middle:], depth + 1), (piece[:middle], depth + 1)]
                continue
            self._settle(piece, failure, written)
            if policy.stop:
                for left, _ in pieces:
                    written.given_back.update((row.id, failure) for row in left)
                break
        return written

    def _write_piece(self, piece: Sequence[Row], written: Written, remaining_s: Callable[[], float]) -> Failure | None:
        """Try one piece as often as its failures allow. None means that it was written and answered for."""
        failure = Failure.SLOW  # what it is called when there is not even time for a first attempt
        attempt = 0
        while self._has_time(remaining_s):
            attempt += 1
            try:
                answers = self._store.fetch(self._statement, self._encode(piece))
                check_answers(piece, answers)
            except Exception as error:  # classified at once; an unknown one is given back
                failure = classify(error)
                written.errors.append((failure, error))
            else:
                written.answers += answers
                return None
            policy = POLICIES[failure]
            if policy.reconnect:
                self._store.discard()
            if attempt >= policy.attempts:
                break
            ceiling = min(policy.max_delay_s, policy.base_delay_s * 2 ** (attempt - 1))
            self._sleep(self._rng.uniform(0, ceiling))
        return failure

    def _has_time(self, remaining_s: Callable[[], float]) -> bool:
        needed = self._attempt_s + (0 if self._store.connected else self._connect_timeout_s)
        return remaining_s() >= needed

    @staticmethod
    def _settle(piece: Sequence[Row], failure: Failure, written: Written) -> None:
        """No more to be done for `piece`: a single message at fault is answered for, everything else is given back."""
        error = written.errors[-1][1] if written.errors else None
        if failure is Failure.POISON and len(piece) == 1:
            sqlstate = getattr(error, "sqlstate", None)
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
