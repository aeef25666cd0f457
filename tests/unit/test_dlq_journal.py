"""The journal of what was changed in dead-letter queues: what it remembers, for whom, and what it does without room."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spillway.dlq.filters import Filter
from spillway.dlq.journal import VERSION, Journal, JournalBroken, journal_path
from spillway.dlq.letters import Cause
from spillway.dlq.records import BROKEN_OFF, DELETED, DONE, INTERRUPTED, KEPT, REFUSED, RUNNING, SENDING, SENT, Entry
from spillway.dlq.run import Run
from spillway.dlq.verdicts import DIED, PASSED
from spillway.errors import SpillwayError

CAUSE = Cause("data", "23514", "constraint orders_total", "order.placed", "1.0")
OTHER = Cause("contract")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "state" / "journal.sqlite3") as one:
        yield one


def begin(journal: Journal, **said: object) -> Run:
    return journal.begin(**({"kind": "redrive", "fleet": "local", "queue": "orders-dlq"} | said))  # type: ignore[arg-type]


def entries(*ids: str, cause: Cause = CAUSE, **said: object) -> list[Entry]:
    return [Entry(message_id=one, cause=cause, event_id=f"e-{one}", **said) for one in ids]  # type: ignore[arg-type]


def states(journal: Journal, run: Run) -> dict[str, str]:
    return {one.message_id: one.state for one in journal.letters(run.id)}


def test_only_its_user_can_read_it(journal: Journal) -> None:
    begin(journal)
    files = list(journal.path.parent.iterdir())
    assert len(files) > 1, "SQLite's own files beside it"
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPILLWAY_JOURNAL", "/somewhere/else.sqlite3")
    assert journal_path() == Path("/somewhere/else.sqlite3")
    monkeypatch.delenv("SPILLWAY_JOURNAL")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert journal_path() == Path("/state/spillway/journal.sqlite3")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, says the specification
    assert journal_path() == Path.home() / ".local/state/spillway/journal.sqlite3"


def test_a_run_from_begin_to_end(journal: Journal) -> None:
    run = begin(journal, filter=Filter(reasons=("data",)), details={"rate": 5}, who="ann@ops")
    [record] = journal.runs()
    assert (record.id, record.state, record.who, record.ended) == (run.id, RUNNING, "ann@ops", None)
    assert (record.filter["reasons"], record.details) == (["data"], {"rate": 5})
    run.sending(entries("a", "b", "c"))
    run.sent({"a": "new-a", "b": "new-b"})
    run.deleted(["a"])
    run.refused(entries("d", cause=OTHER, reason="SQS refused it: no"))
    run.stayed({OTHER: 7}, {OTHER: "the canary was dead-lettered again"})
    assert states(journal, run) == {"a": DELETED, "b": SENT, "c": SENDING, "d": REFUSED}
    assert journal.counts(run.id) == {"redriven": 2, "undeleted": 1, "unknown": 1, "refused": 1, "stayed": 7}
    other, cause = journal.causes(run.id)
    assert (other.cause, other.stayed, other.why) == (OTHER, 7, "the canary was dead-lettered again")
    assert (cause.cause, cause.letters) == (CAUSE, {DELETED: 1, SENT: 1, SENDING: 1})
    assert journal.letters(run.id, state=REFUSED)[0].reason == "SQS refused it: no"
    run.finish({"redriven": 2}, INTERRUPTED)
    [record] = journal.runs()
    assert (record.state, record.counts) == (INTERRUPTED, {"redriven": 2})
    assert record.ended is not None


def test_what_any_run_sent_is_known_and_what_may_have_been_sent_is_not(journal: Journal) -> None:
    first = begin(journal)
    first.sending(entries("sending", "sent", "deleted", "kept"))
    first.sent({"sent": "1", "deleted": "2"})
    first.deleted(["deleted"])
    first.kept(["kept"], "SQS was busy")
    second = begin(journal)
    asked = ["sending", "sent", "deleted", "kept", "unheard of"]
    assert second.sent_before(asked) == {"sent": first.id, "deleted": first.id}
    assert second.sent_before([]) == {}
    second.cleared(["sent"])
    assert states(journal, first)["sent"] == DELETED


def test_a_letter_in_doubt_is_settled_by_the_run_that_sends_it_again(journal: Journal) -> None:
    first = begin(journal)
    first.sending(entries("a", "b"))
    second = begin(journal)
    second.sending(entries("a"))
    assert states(journal, first) == {"a": KEPT, "b": SENDING}
    assert second.id in journal.letters(first.id, state=KEPT)[0].reason
    assert states(journal, second) == {"a": SENDING}


def test_after_a_complete_look_what_was_sent_and_is_gone_was_deleted(journal: Journal) -> None:
    run = begin(journal)
    run.sending(entries("a", "b"))
    run.sent({"a": "new"})
    assert run.found_gone() == 1
    assert states(journal, run) == {"a": DELETED, "b": SENDING}


def test_a_canary_that_died_again_is_not_counted_as_mere_success(journal: Journal) -> None:
    run = begin(journal)
    run.sending(entries("a", canary=True))
    run.sent({"a": "new"})
    run.verdict(CAUSE, DIED, "the canary was dead-lettered again: data")
    run.verdict(OTHER, PASSED, "applied")
    assert journal.counts(run.id)["died_again"] == 1
    assert run.verdicts() == {CAUSE: (DIED, "the canary was dead-lettered again: data"), OTHER: (PASSED, "applied")}
    assert [one.message_id for one in journal.letters(run.id, canary=True)] == ["a"]


def test_only_bodies_of_edited_letters_are_kept(journal: Journal) -> None:
    run = begin(journal)
    run.sending([*entries("a"), *entries("b", before="old", after="new")])
    assert [(one.message_id, one.before, one.after) for one in journal.letters(run.id, edited=True)] == [
        ("b", "old", "new")
    ]
    assert journal.edited(run.id) == 1


def test_half_a_surrogate_pair_in_a_foreign_reason_is_no_obstacle(journal: Journal) -> None:
    run = begin(journal)
    run.sending([Entry(message_id="a", cause=Cause("\ud800"), event_id="\udfff")])
    assert states(journal, run) == {"a": SENDING}
    assert journal.causes(run.id)[0].cause.reason == "?"


def test_finding_a_run(journal: Journal) -> None:
    with pytest.raises(SpillwayError, match="is empty"):
        journal.find("last")
    first, second = begin(journal), begin(journal, kind="discard")
    assert journal.find("last").id == second.id
    assert journal.find("last", kind="redrive").id == first.id
    assert journal.find(first.id[-4:]).id == first.id
    with pytest.raises(SpillwayError, match="has no run 'zzz'"):
        journal.find("zzz")
    with pytest.raises(SpillwayError, match="2 runs' names end in ''"):
        journal.find("")


def test_a_run_that_goes_on_or_is_done_is_not_resumed(journal: Journal) -> None:
    run = begin(journal)
    with pytest.raises(SpillwayError, match="still goes on"):
        journal.resume(journal.find(run.id))
    run.stayed({CAUSE: 3}, {})
    run.finish({}, INTERRUPTED)
    assert journal.resume(journal.find(run.id)).id == run.id
    [record] = journal.runs()
    assert (record.state, record.ended) == (RUNNING, None)
    assert journal.counts(run.id) == {}, "what stays is counted anew"
    run.finish({}, DONE)
    with pytest.raises(SpillwayError, match="is done"):
        journal.resume(journal.find(run.id))


def test_a_run_whose_process_died_is_seen_to_have_broken_off(journal: Journal) -> None:
    code = (
        "import os, sys; from pathlib import Path; from spillway.dlq.journal import Journal\n"
        "Journal(Path(sys.argv[1])).begin(kind='redrive', fleet='f', queue='q'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(journal.path)], check=False)
    [record] = journal.runs()
    assert record.state == BROKEN_OFF
    assert journal.resume(record).id == record.id
    assert journal.runs()[0].state == RUNNING


def test_without_room_nothing_is_half_written(journal: Journal) -> None:
    run = begin(journal)
    run.sending(entries("a"))
    [[pages]] = journal.rows("PRAGMA page_count", ())
    journal.rows(f"PRAGMA max_page_count = {pages + 2}", ())
    with pytest.raises(JournalBroken, match=r"journal\.sqlite3 cannot be used: database or disk is full"):
        run.sending(entries(*(f"{number:03d}" * 40 for number in range(500))))
    assert states(journal, run) == {"a": SENDING}
    run.sent({"a": "new"})
    assert states(journal, run) == {"a": SENT}


def test_files_that_cannot_be_a_journal(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite3"
    text.write_text("not a database, and long enough for SQLite to look at it" * 20)
    with pytest.raises(JournalBroken, match="file is not a database"):
        Journal(text)
    with pytest.raises(JournalBroken, match="File exists"):
        Journal(text / "below")
    newer = tmp_path / "newer.sqlite3"
    with sqlite3.connect(newer) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    with pytest.raises(SpillwayError, match="newer Spillway"):
        Journal(newer)


def test_threads_and_processes_share_it(journal: Journal) -> None:
    with Journal(journal.path) as another:
        runs = [begin(journal), begin(another)]

        def work(run: Run, mine: str) -> None:
            for number in range(10):
                run.sending(entries(f"{mine}-{number}"))
                run.sent({f"{mine}-{number}": "new"})

        threads = [
            threading.Thread(target=work, args=(run, f"{i}-{j}")) for i, run in enumerate(runs) for j in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [journal.counts(run.id) for run in runs] == [{"redriven": 30, "undeleted": 30}] * 2
