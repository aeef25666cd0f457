"""Which messages have killed the environment that tried them: remembered in the database, not by receive counts.

A receive count grows in every outage, whoever is at fault. So a suspect's attempt is written down before it is decoded
and crossed out after it ended, in whatever way; what is still there when the message comes again did not end.

An attempt that ended while the database was out of reach cannot be crossed out at once, and must not count:
* this environment crosses it out as soon as it can (it lives, or it would not know of it);
* a message that comes again before its visibility timeout can have passed was given back by an environment that lived;
* the table is unlogged: a crash of the server itself wipes it.
What is left errs towards trying a message once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from workers.runtime.failures import Failure, ResultMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from workers.runtime.calls import Calls, Rows
    from workers.runtime.invocation import Invocation

#: From this receive on a message is a suspect: twice it has not ended well, for whatever reason.
SUSPECT_RECEIVES = 3
#: Up to so many suspects of a batch are tried one by one from the start. More are rather an outage's backlog than
#: killers, and one by one would cost it 25 times as much.
SOLO_MAX = 20
#: So many attempts of a message alone that did not end, and it is not tried again.
CRASH_LIMIT = 3

BEGIN = "SELECT message_id, attempts FROM spillway.begin_attempts(%s)"
END = "SELECT spillway.end_attempts(%s)"

#: Attempts that ended and are not crossed out yet; older ones are forgotten.
MAX_UNENDED = 20_000

_encode = msgspec.json.Encoder().encode


class Attempts:
    """The memory of one worker's attempts. Coming again sooner than `survived_s` proves that nothing was killed."""

    def __init__(self, calls: Calls, worker: str, *, survived_s: float = 0.0) -> None:
        self._calls = calls
        self._worker = worker
        self._survived_s = survived_s
        self._ended: dict[str, None] = {}

    def begin(
        self, message_ids: Sequence[str], invocation: Invocation, *, alone: bool
    ) -> dict[str, int | None] | Failure:
        """Write down that these messages are being tried; returns what is remembered of each, or why nothing was done.

        Remembered is None for a message without an unfinished attempt, else how many of its attempts *alone* did not
        end. With `alone` the new attempt counts as one of them; without, a message that is remembered is not begun.
        """
        ended = list(self._ended)
        message = {
            "worker": self._worker,
            "message_ids": message_ids,
            "alone": alone,
            "ended": ended,
            "survived_s": self._survived_s,
        }
        asked = set(message_ids)

        def check(rows: Rows) -> None:
            if len(rows) != len(asked) or {row[0] for row in rows} != asked:
                raise ResultMismatch(f"expected the attempts of {len(asked)} messages, got {len(rows)} of others")

        rows = self._calls.call(BEGIN, lambda: _encode(message), invocation, check)
        if isinstance(rows, Failure):
            return rows
        self._forget(ended)
        return dict[str, Any](rows)

    def ended(self, message_ids: Iterable[str]) -> None:
        """The attempts of these messages ended; the next call of the database says so."""
        self._ended.update(dict.fromkeys(message_ids))
        if len(self._ended) > MAX_UNENDED:
            self._forget(list(self._ended)[: len(self._ended) - MAX_UNENDED])

    def flush(self, invocation: Invocation) -> None:
        """Cross out what ended and has not been yet; what cannot be now is kept for the next invocation."""
        if ended := list(self._ended):
            result = self._calls.call(END, lambda: _encode(ended), invocation, _one_row)
            if not isinstance(result, Failure):
                self._forget(ended)

    def _forget(self, message_ids: Iterable[str]) -> None:
        for message_id in message_ids:
            self._ended.pop(message_id, None)


def _one_row(rows: Rows) -> None:
    if len(rows) != 1:
        raise ResultMismatch(f"expected one row, got {len(rows)}")
