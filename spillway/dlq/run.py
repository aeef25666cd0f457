"""A run that goes on, as it writes itself down in the journal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from spillway.dlq.records import DELETED, DONE, KEPT, REFUSED, SENDING, SENT, clean, iso, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from spillway.dlq.journal import Journal
    from spillway.dlq.letters import Cause
    from spillway.dlq.records import Entry

# One statement for a piece, its rows as JSON: for each row of an executemany the threads that make calls of SQS would
# have to let this one in again, which took a tenth of a redrive's time.
_PUT = """
    INSERT OR REPLACE INTO letters
    SELECT value ->> 0, :run, value ->> 1, value ->> 2, :state, value ->> 3, '', value ->> 4, NULL, NULL, :now
    FROM json_each(:rows)"""
# +run keeps SQLite from the index on run, by which it would go through the whole run for each piece.
_MARK = """
    UPDATE letters SET state = :state, at = :now,
        new_message_id = CASE value ->> 1 WHEN '' THEN new_message_id ELSE value ->> 1 END,
        reason = CASE value ->> 2 WHEN '' THEN reason ELSE value ->> 2 END
    FROM json_each(:rows) WHERE message_id = value ->> 0 AND +run = :run"""
_SETTLE = """
    UPDATE letters SET state = :kept, reason = :why
    FROM json_each(:rows) WHERE message_id = value ->> 0 AND run <> :run AND state = :sending"""


class Run:
    """A run that goes on. What each method says happened is in the file when it returns. Safe in several threads."""

    def __init__(self, journal: Journal, run_id: str) -> None:
        self.id = run_id
        self._journal = journal
        self._causes: set[str] = set()

    def sent_before(self, message_ids: Sequence[str]) -> dict[str, str]:
        """Those of these letters that this run or one before sent, message id -> run. They are only to be deleted."""
        return self._journal.sent_before(message_ids) if message_ids else {}

    def cleared(self, message_ids: Iterable[str]) -> None:
        """These, which this run or one before had sent, left the dead-letter queue."""
        with self._journal.transaction() as db:
            db.executemany(
                "UPDATE letters SET state = ? WHERE message_id = ? AND state = ?",
                [(DELETED, one, SENT) for one in message_ids],
            )

    def sending(self, entries: Sequence[Entry]) -> None:
        """These are about to be sent. What a run before left in doubt about them is settled by that."""
        self._put(entries, SENDING)

    def sent(self, new_ids: Mapping[str, str]) -> None:
        """SQS confirmed these: message id -> the new one."""
        self._mark(SENT, [(old, new, "") for old, new in new_ids.items()])

    def deleted(self, message_ids: Iterable[str]) -> None:
        """These left the dead-letter queue. Not worth a wait for the disk: that they were sent is there already."""
        self._mark(DELETED, [(one, "", "") for one in message_ids], durable=False)

    def refused(self, entries: Sequence[Entry]) -> None:
        """These stay, for their `reason`: the edit or SQS refused them."""
        self._put(entries, REFUSED)

    def kept(self, message_ids: Iterable[str], reason: str) -> None:
        """These were to be sent and were not."""
        self._mark(KEPT, [(one, "", reason) for one in message_ids])

    def verdict(self, cause: Cause, verdict: str, why: str = "") -> None:
        """What the canary of a group came to."""
        with self._journal.transaction() as db:
            db.executemany(*self._new_causes([cause]))
            db.execute(
                "UPDATE causes SET verdict = ?, why = ? WHERE run = ? AND key = ?", (verdict, why, self.id, cause.key)
            )

    def verdicts(self) -> dict[Cause, tuple[str, str]]:
        """The verdicts so far, and why: those of the run that this one resumes."""
        return {one.cause: (one.verdict, one.why) for one in self._journal.causes(self.id) if one.verdict}

    def stayed(self, counts: Mapping[Cause, int], why: Mapping[Cause, str]) -> None:
        """How many of each group were selected and stay untried, and why."""
        with self._journal.transaction() as db:
            db.executemany(*self._new_causes(counts))
            db.executemany(
                "UPDATE causes SET stayed = ?, why = ? WHERE run = ? AND key = ?",
                [(count, why.get(cause, ""), self.id, cause.key) for cause, count in counts.items()],
            )

    def found_gone(self) -> int:
        """The dead-letter queue was read to its end: what was sent and is not there was deleted. Returns how many."""
        with self._journal.transaction() as db:
            return db.execute(
                "UPDATE letters SET state = ? WHERE run = ? AND state = ?", (DELETED, self.id, SENT)
            ).rowcount

    def count(self, state: str) -> int:
        """The letters that are in `state`."""
        [[count]] = self._journal.rows("SELECT count(*) FROM letters WHERE run = ? AND state = ?", (self.id, state))
        return int(count)

    def finish(self, counts: Mapping[str, int], state: str = DONE) -> None:
        """It is over: DONE, INTERRUPTED or FAILED, with what it came to."""
        with self._journal.transaction() as db:
            db.execute(
                "UPDATE runs SET counts = ?, state = ?, ended = ? WHERE id = ?",
                (text(counts), state, iso(datetime.now(UTC)), self.id),
            )

    def _put(self, entries: Sequence[Entry], state: str) -> None:
        rows = [(one.message_id, one.cause.key, clean(one.event_id), one.canary, clean(one.reason)) for one in entries]
        edited = [(one.before, one.after, one.message_id, self.id) for one in entries if one.before is not None]
        with self._journal.transaction() as db:
            db.executemany(*self._new_causes({entry.cause for entry in entries}))
            db.execute(_PUT, {"rows": text(rows), "run": self.id, "state": state, "now": iso(datetime.now(UTC))})
            db.executemany("UPDATE letters SET before = ?, after = ? WHERE message_id = ? AND run = ?", edited)
            if state == SENDING:
                why = f"interrupted; {self.id} sent it"
                db.execute(_SETTLE, {"rows": text(rows), "run": self.id, "kept": KEPT, "why": why, "sending": SENDING})
        self._causes.update(entry.cause.key for entry in entries)

    def _mark(self, state: str, rows: Iterable[tuple[str, str, str]], *, durable: bool = True) -> None:
        """`rows`: message id, its new one, the reason; '' leaves what there is."""
        marked = text(list(rows))
        with self._journal.transaction(durable=durable) as db:
            db.execute(_MARK, {"rows": marked, "run": self.id, "state": state, "now": iso(datetime.now(UTC))})

    def _new_causes(self, causes: Iterable[Cause]) -> tuple[str, list[tuple[str, str, str]]]:
        return (
            "INSERT OR IGNORE INTO causes (run, key, cause) VALUES (?, ?, ?)",
            [(self.id, one.key, text(_storable(one))) for one in causes if one.key not in self._causes],
        )


def _storable(cause: Cause) -> Cause:
    """Half a surrogate pair, in what somebody else wrote into a reason, is text for Python and not for a file."""
    return type(cause)(*map(clean, msgspec.structs.astuple(cause)))
