"""What was changed in dead-letter queues, by whom, and when: a SQLite file, which also makes a redrive resumable."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from spillway.dlq.letters import Cause
from spillway.dlq.owner import is_alive, this_process, user
from spillway.dlq.records import (
    BROKEN_OFF,
    DELETED,
    DONE,
    KEPT,
    REFUSED,
    RUNNING,
    SENDING,
    SENT,
    CauseRecord,
    LetterRecord,
    RunRecord,
    iso,
    text,
)
from spillway.dlq.run import Run
from spillway.dlq.verdicts import DIED
from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from spillway.dlq.filters import Filter

VARIABLE = "SPILLWAY_JOURNAL"
#: Of the tables below. A file with a higher one is a newer Spillway's.
VERSION = 1
#: Pages of 4 KiB that collect in SQLite's write-ahead log before they are copied into the file: 16 MiB.
CHECKPOINT_PAGES = 4096
#: Seconds to wait for another process that writes the same journal.
BUSY_S = 30.0

# Letters are kept in the order of their coming, not of their ids, so that a piece's hundred are side by side: with ids
# as the key each transaction wrote a hundred pages, and a redrive of 20,000 letters a third of its time.
_TABLES = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, started TEXT NOT NULL, ended TEXT, state TEXT NOT NULL,
    who TEXT NOT NULL, process TEXT NOT NULL, fleet TEXT NOT NULL, queue TEXT NOT NULL,
    filter TEXT NOT NULL, details TEXT NOT NULL, counts TEXT NOT NULL
) STRICT;
CREATE TABLE letters (
    message_id TEXT NOT NULL, run TEXT NOT NULL, cause TEXT NOT NULL, event_id TEXT NOT NULL, state TEXT NOT NULL,
    canary INTEGER NOT NULL, new_message_id TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
    before TEXT, after TEXT, at TEXT NOT NULL, UNIQUE (message_id, run)
) STRICT;
CREATE INDEX letters_by_run ON letters (run);
CREATE TABLE causes (
    run TEXT NOT NULL, key TEXT NOT NULL, cause TEXT NOT NULL, verdict TEXT NOT NULL DEFAULT '',
    why TEXT NOT NULL DEFAULT '', stayed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;
"""


class Journal:
    """The journal. Several threads and processes may use it; whoever shares the user's account can read and edit it.

    It holds no body but those that a redrive edited, before and after. Raises SpillwayError for everything that keeps
    it from being read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._explained():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives what it makes beside the file the file's own permissions.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    @classmethod
    def open(cls) -> Journal:
        """The user's journal: see journal_path."""
        return cls(journal_path())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def begin(
        self,
        *,
        kind: str,
        fleet: str,
        queue: str,
        filter: Filter | None = None,
        details: Mapping[str, Any] | None = None,
        who: str | None = None,
    ) -> Run:
        """Note that a run begins: `kind` is redrive, native, discard or import; `who` is user@host by default."""
        now = datetime.now(UTC)
        run_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        with self.transaction() as db:
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, '{}')",
                (
                    *(run_id, kind, iso(now), RUNNING, who or user(), this_process(), fleet, queue),
                    *(text(filter if filter is not None else {}), text(details or {})),
                ),
            )
        return Run(self, run_id)

    def resume(self, record: RunRecord) -> Run:
        """Go on with a run that did not end. Raises SpillwayError if it did, or still goes on."""
        if record.state == DONE:
            raise SpillwayError(f"The run {record.id} is done.", "`spillway dlq history` lists the runs.")
        if record.state == RUNNING:
            raise SpillwayError(f"The run {record.id} still goes on.", "Wait for it, or stop it with Ctrl-C.")
        with self.transaction() as db:
            db.execute(
                "UPDATE runs SET state = ?, ended = NULL, process = ? WHERE id = ?",
                (RUNNING, this_process(), record.id),
            )
            db.execute("UPDATE causes SET stayed = 0 WHERE run = ?", (record.id,))
        return Run(self, record.id)

    def runs(self, limit: int = -1) -> list[RunRecord]:
        """The newest runs first, at most `limit`."""
        return [
            _run(row) for row in self.rows("SELECT * FROM runs ORDER BY started DESC, rowid DESC LIMIT ?", (limit,))
        ]

    def find(self, said: str, kind: str | None = None) -> RunRecord:
        """The run that `said` means: its id or the end of it, or `last`. Raises SpillwayError unless it is one."""
        known = [run for run in self.runs() if kind in (None, run.kind)]
        found = known[:1] if said == "last" else [run for run in known if run.id.endswith(said)]
        if len(found) == 1:
            return found[0]
        if found:
            raise SpillwayError(f"{len(found)} runs' names end in {said!r}.", "Give more of the name.")
        raise SpillwayError(
            f"The journal {self.path} has no run {said!r}."
            if known or said != "last"
            else f"The journal {self.path} is empty.",
            "`spillway dlq history` lists the runs.",
        )

    def counts(self, run_id: str) -> dict[str, int]:
        """What a redrive came to so far, by what became of its letters; nothing for other kinds of runs.

        `redriven` were sent, of which `died_again` are canaries that are new dead letters now and `undeleted` are still
        in the dead-letter queue, too; `unknown` may have been sent or not; `refused` and `stayed` were not.
        """
        found: dict[str, int] = dict(
            self.rows("SELECT state, count(*) FROM letters WHERE run = ? GROUP BY state", (run_id,))
        )
        [[stayed, died]] = self.rows(
            "SELECT coalesce(sum(stayed), 0), count(*) FILTER (WHERE verdict = ?) FROM causes WHERE run = ?",
            (DIED, run_id),
        )
        counts = {
            "redriven": found.get(SENT, 0) + found.get(DELETED, 0),
            "died_again": died,
            "undeleted": found.get(SENT, 0),
            "refused": found.get(REFUSED, 0),
            "stayed": found.get(KEPT, 0) + stayed,
            "unknown": found.get(SENDING, 0),
        }
        return {name: count for name, count in counts.items() if count}

    def reasons(self, run_id: str, state: str) -> dict[str, int]:
        """How many letters of a run are in `state`, by reason."""
        return dict(
            self.rows(
                "SELECT reason, count(*) FROM letters WHERE run = ? AND state = ? GROUP BY reason", (run_id, state)
            )
        )

    def edited(self, run_id: str) -> int:
        """How many letters of a run were edited."""
        [[count]] = self.rows("SELECT count(*) FROM letters WHERE run = ? AND before IS NOT NULL", (run_id,))
        return int(count)

    def causes(self, run_id: str) -> list[CauseRecord]:
        """A run's groups, largest first."""
        counts: dict[str, dict[str, int]] = {}
        for key, state, count in self.rows(
            "SELECT cause, state, count(*) FROM letters WHERE run = ? GROUP BY cause, state", (run_id,)
        ):
            counts.setdefault(key, {})[state] = count
        records = [
            CauseRecord(
                key=key,
                cause=msgspec.json.decode(cause, type=Cause),
                verdict=verdict,
                why=why,
                stayed=stayed,
                letters=counts.get(key, {}),
            )
            for key, cause, verdict, why, stayed in self.rows(
                "SELECT key, cause, verdict, why, stayed FROM causes WHERE run = ?", (run_id,)
            )
        ]
        return sorted(records, key=lambda one: -one.stayed - sum(one.letters.values()))

    def letters(
        self, run_id: str, *, state: str | None = None, edited: bool = False, canary: bool = False, limit: int = -1
    ) -> list[LetterRecord]:
        """A run's letters, or those of a state, the edited, the canaries; in the order in which they were touched."""
        rows = self.rows(
            "SELECT message_id, cause, event_id, state, canary, new_message_id, reason, before, after, at FROM letters"
            " WHERE run = ?1 AND (?2 IS NULL OR state = ?2) AND (NOT ?3 OR before IS NOT NULL) AND (NOT ?4 OR canary)"
            " ORDER BY at, message_id LIMIT ?5",
            (run_id, state, edited, canary, limit),
        )
        names = LetterRecord.__struct_fields__
        return [msgspec.convert(dict(zip(names, row, strict=True)), LetterRecord, strict=False) for row in rows]

    def sent_before(self, message_ids: Sequence[str]) -> dict[str, str]:
        """Those of these letters that some run sent, message id -> run. What is left of them is only to be deleted."""
        rows = self.rows(
            "SELECT message_id, run FROM letters"
            " WHERE message_id IN (SELECT value FROM json_each(?)) AND state IN (?, ?)",
            (text(message_ids), SENT, DELETED),
        )
        return dict(rows)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction: all of what happens within, or nothing.

        A power failure may undo one that is not `durable`; the death of this process does not.
        """
        with self._lock, self._explained():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have rolled back already: a full disk does that
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, statement: str, parameters: Iterable[Any]) -> list[Any]:
        """What a SELECT gives."""
        with self._lock, self._explained():
            return self._db.execute(statement, tuple(parameters)).fetchall()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        self._db.execute("BEGIN IMMEDIATE")
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._db.execute("COMMIT")
        if version > VERSION:
            raise SpillwayError(f"{self.path} is a newer Spillway's journal.", f"Name another file with {VARIABLE}.")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise JournalBroken(
                f"The journal {self.path} cannot be used: {said}.",
                f"Make room or mend its permissions, or name another file with {VARIABLE}.",
            ) from error


class JournalBroken(SpillwayError):
    """The journal cannot be read or written: a full disk, permissions, a file that is no SQLite database."""


def journal_path() -> Path:
    """Where the journal is: a file of the user's own, beside what other programs keep between two runs."""
    if path := os.environ.get(VARIABLE):
        return Path(path)
    # "XDG Base Directory Specification": what should outlive a restart, and is neither data nor configuration.
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state") / "spillway/journal.sqlite3"


def _run(row: Sequence[Any]) -> RunRecord:
    run_id, kind, started, ended, state, who, process, fleet, queue, selected, details, counts = row
    return RunRecord(
        id=run_id,
        kind=kind,
        started=datetime.fromisoformat(started),
        ended=datetime.fromisoformat(ended) if ended else None,
        state=BROKEN_OFF if state == RUNNING and not is_alive(process) else state,
        who=who,
        fleet=fleet,
        queue=queue,
        filter=msgspec.json.decode(selected, type=dict[str, Any]),
        details=msgspec.json.decode(details, type=dict[str, Any]),
        counts=msgspec.json.decode(counts, type=dict[str, int]),
    )
