"""`spillway dlq history`: what was changed in dead-letter queues, by whom, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from spillway.dlq import reports, screens
from spillway.dlq.journal import Journal
from spillway.dlq.records import REFUSED, CauseRecord, LetterRecord, RunRecord
from spillway.screens import console

#: Runs that are listed, and edits that are shown.
LIMIT = 20
EDITS = 3


class HistoryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `history --json` prints."""

    journal: str
    runs: list[RunRecord]


class RunDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `history RUN --json` prints: every letter of the run that has something to tell."""

    journal: str
    run: RunRecord
    groups: list[CauseRecord]
    canaries: list[LetterRecord]
    refused: list[LetterRecord]
    edited: list[LetterRecord]


def history(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run: its name, or `last`.")] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Runs to list.")] = LIMIT,
    every: Annotated[bool, typer.Option("--all", help="All runs; of one run, all its edits.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what redrive, discard and import changed, the newest first; or all about one run.

    All about a run: its groups and what their canaries came to, the letters
    that were refused, and the bodies of edited ones, before and after.

    The journal is ~/.local/state/spillway/journal.sqlite3, or the file that
    $SPILLWAY_JOURNAL names. It knows what was done on this machine by this
    user.

    \b
    Examples:
      spillway dlq history
      spillway dlq history last
      spillway dlq history 20261121-223015-9f3c --json

    Exit status: 0 listed; 1 there is no such run.
    """
    with Journal.open() as journal:
        if run is not None:
            _one(journal, journal.find(run), every=every, json=json)
            return
        runs = journal.runs(-1 if every else limit)
        if json:
            typer.echo(screens.json_text(HistoryDocument(journal=str(journal.path), runs=runs)))
        else:
            console().print(reports.run_list(runs, datetime.now(UTC), path=str(journal.path)))


def _one(journal: Journal, record: RunRecord, *, every: bool, json: bool) -> None:
    groups = journal.causes(record.id)
    canaries = journal.letters(record.id, canary=True)
    if json:
        document = RunDocument(
            journal=str(journal.path),
            run=record,
            groups=groups,
            canaries=canaries,
            refused=journal.letters(record.id, state=REFUSED),
            edited=journal.letters(record.id, edited=True),
        )
        typer.echo(screens.json_text(document))
        return
    edits = journal.letters(record.id, edited=True, limit=-1 if every else EDITS)
    console().print(
        reports.run_details(
            record,
            groups,
            canaries=canaries,
            refusals=journal.reasons(record.id, REFUSED),
            edits=edits,
            more_edits=journal.edited(record.id) - len(edits),
        )
    )
