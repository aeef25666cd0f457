"""`spillway dlq export`: dead letters into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from spillway.commands.dlq.options import (
    EventIdOption,
    GroupOption,
    QueueArgument,
    ReasonOption,
    SinceOption,
    SubjectOption,
    TypeOption,
    UntilOption,
    WhereOption,
    filter_of,
)
from spillway.commands.dlq.transfer import JsonOption, WrongUsage, client_of, letters, print_json, select
from spillway.dlq.filters import Filter
from spillway.dlq.holding import Holder
from spillway.dlq.transfer import Exported, LetterFile
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet
from spillway.fleet.fleet import Fleet, Worker
from spillway.interrupts import INTERRUPTED, interrupts

LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many letters.")]


def export(
    queue: QueueArgument,
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="The file to make; `-` is standard output.")],
    *,
    reason: ReasonOption = None,
    type_: TypeOption = None,
    event_id: EventIdOption = None,
    subject: SubjectOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    where: WhereOption = None,
    limit: LimitOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: JsonOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Write dead letters to a file; all of them stay where they are.

    One JSON object a line: a header, the letters with body, attributes, the
    worker's reasons and SQS's own attributes, and a last line that says how
    many there are. Bodies come back byte for byte with `spillway dlq import`.
    The file is for your eyes only (mode 0600), and is there whole or not at
    all. Reading counts as a receive, which has no effect in a dead-letter
    queue; other readers do not see the letters meanwhile.

    \b
    Examples:
      spillway dlq export orders orders.jsonl
      spillway dlq export orders today.jsonl --since 12h --reason contract
      spillway dlq export payments - | jq -r 'select(.body) | .body'

    Exit status: 0 done; 1 something failed; 2 wrong usage; 130 interrupted.
    """
    chosen = filter_of(reason, type_, event_id, subject, group, since, until, where)
    to_stdout = file == "-"
    if to_stdout and json:
        raise WrongUsage("Standard output cannot have both the letters and --json.", "Name a file.")
    fleet = find_fleet(stack, region, profile)
    worker = fleet.find_worker(queue)
    if to_stdout:
        exported = _export(fleet, worker, chosen, sys.stdout.buffer, limit=limit)
        sys.stdout.buffer.flush()
    else:
        with LetterFile(Path(file), replace=force, hint="Name another file, or add --force.") as target:
            exported = _export(fleet, worker, chosen, target.file, name=file, limit=limit)
            if not exported.interrupted:
                target.publish()
    if exported.interrupted:
        what = "The output is not whole." if to_stdout else f"{file} was not written."
        typer.echo(f"Interrupted. {what} All letters were given back.", err=True)
        raise typer.Exit(INTERRUPTED)
    _say_exported(exported, limit, json=json, err=to_stdout)


def _export(
    fleet: Fleet, worker: Worker, chosen: Filter, file: BinaryIO, *, name: str = "-", limit: int | None
) -> Exported:
    client = client_of(fleet)
    with Holder(client, worker.dead_letter_url) as holder, interrupts() as stop:
        return select(fleet, worker, chosen, holder, client=client, file=file, name=name, limit=limit, stop=stop)


def _say_exported(exported: Exported, limit: int | None, *, json: bool, err: bool) -> None:
    if json:
        return print_json(exported)
    typer.echo(
        f"Wrote {letters(exported.letters)} of {exported.queue} to {'standard output' if err else exported.file}.",
        err=err,
    )
    if limit is not None and exported.letters == limit and not exported.complete:
        typer.echo(f"There may be more: --limit is {limit:,}.", err=err)
    else:
        typer.echo(exported.coverage.described(), err=err)
    return None
