"""`spillway dlq redrive` without --yes: what it would do."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import typer

from spillway.dlq import reports, screens
from spillway.dlq.holding import Holder
from spillway.dlq.progress import progress
from spillway.dlq.reading import Coverage, depth_of, read
from spillway.dlq.redrive import THREADS
from spillway.dlq.rehearsal import PlannedGroup, Rehearsal
from spillway.interrupts import INTERRUPTED, interrupts
from spillway.screens import console

if TYPE_CHECKING:
    from spillway.dlq.job import Job
    from spillway.dlq.journal import Journal
    from spillway.dlq.letters import Letter


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `redrive --json` prints without --yes. `sent_before` letters were sent by a run that did not get to delete
    them. `command` does what is planned."""

    fleet: str
    queue: str
    destination: str
    coverage: Coverage
    filter: list[str]
    selected: int
    refused: dict[str, int]
    sent_before: int
    groups: list[PlannedGroup]
    command: str


def plan(job: Job, journal: Journal, *, todo: str, json: bool) -> None:
    """Read, select, edit, give everything back, and print what would be done by the command `todo`."""
    worker, target, orders = job.worker, job.target, job.orders
    client = job.fleet.sqs(connections=2 * THREADS)
    depth = depth_of(client, worker.dead_letter_url)
    rehearsal = Rehearsal(
        selected=job.filter,
        arrived_by=orders.arrived_by,
        sent_before=journal.sent_before,
        editor=orders.editor,
        limit=orders.limit,
        to_fifo=target.fifo,
    )
    with (
        interrupts() as stop,
        Holder(client, worker.dead_letter_url) as holder,
        progress("reading", depth.visible) as advance,
    ):

        def note(letter: Letter) -> bool:
            enough = rehearsal.note(letter)
            advance(rehearsal.looked_at, "")
            return enough

        to_the_end = read(holder, note, stop=stop)
    coverage = Coverage(read=rehearsal.looked_at, depth=depth, to_the_end=to_the_end, fifo=worker.fifo)
    if json:
        document = PlanDocument(
            fleet=job.fleet.identity,
            queue=worker.dead_letter_queue,
            destination=target.url,
            coverage=coverage,
            filter=job.filter.described(),
            selected=rehearsal.count,
            refused=dict(rehearsal.refused),
            sent_before=rehearsal.cleared,
            groups=rehearsal.groups,
            command=todo,
        )
        typer.echo(screens.json_text(document))
    else:
        notes = _notes(job, rehearsal, coverage)
        letters = reports.several(rehearsal.looked_at, "dead letter")
        console().print(
            reports.plan(
                rehearsal.groups,
                title=f"{worker.dead_letter_queue}: {rehearsal.count:,} of {letters} would go to {target.name}",
                conditions=job.filter.described(),
                notes=notes,
                todo=todo if rehearsal.count or rehearsal.cleared else "",
            )
        )
    if stop.is_set():
        typer.echo("Interrupted; everything was given back.", err=True)
        raise typer.Exit(INTERRUPTED)


def _notes(job: Job, rehearsal: Rehearsal, coverage: Coverage) -> list[str]:
    worker, target, orders = job.worker, job.target, job.orders
    notes = [coverage.described()] if not (orders.limit and rehearsal.count >= orders.limit) else []
    if rehearsal.cleared:
        notes.append(
            f"{reports.several(rehearsal.cleared, 'letter')} more were sent by a run that did not get to delete them: "
            "they would only be deleted."
        )
    if rehearsal.refused:
        notes.append(f"{reports.several(rehearsal.refused.total(), 'letter')} would be refused, and stay.")
    groups = sum(group.count > 0 for group in rehearsal.groups)
    if groups and orders.canary_s is not None:
        notes.append(
            f"One letter {'of each of the ' + str(groups) + ' groups ' if groups > 1 else ''}would go first, as a "
            f"canary; the others follow if {target.worker} is done with it within {orders.canary_s:g} s."
        )
    if orders.rate is not None and rehearsal.count:
        took = timedelta(seconds=round(rehearsal.count / orders.rate))
        notes.append(f"At {orders.rate:g} a second that takes {took}.")
    if worker.fifo and not target.fifo:
        notes.append(f"{target.name} is no FIFO queue: letters lose the order of their message groups.")
    return notes
