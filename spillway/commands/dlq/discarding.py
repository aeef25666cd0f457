"""`spillway dlq discard`: dead letters away for good, after a copy was made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

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
from spillway.commands.dlq.transfer import (
    SOME_STAYED,
    JsonOption,
    WrongUsage,
    client_of,
    letters,
    print_json,
    progress,
    select,
)
from spillway.dlq import screens, transfer
from spillway.dlq.filters import Filter
from spillway.dlq.groups import Group
from spillway.dlq.holding import Holder
from spillway.dlq.journal import Journal
from spillway.dlq.transfer import Discarded, Exported, LetterFile
from spillway.errors import SpillwayError
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet
from spillway.fleet.fleet import Fleet, Worker
from spillway.interrupts import INTERRUPTED, interrupts
from spillway.rdsproxy.watch import one_line
from spillway.screens import console

#: How many groups are listed before the rest is only counted.
LISTED_GROUPS = 12


def discard(
    queue: QueueArgument,
    *,
    file: Annotated[Path, typer.Option("--export", metavar="FILE.jsonl", help="Where the letters are kept.")],
    reason: ReasonOption = None,
    type_: TypeOption = None,
    event_id: EventIdOption = None,
    subject: SubjectOption = None,
    group: GroupOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    where: WhereOption = None,
    count: Annotated[
        int | None, typer.Option(min=0, help="For scripts: how many there must be, instead of the question.")
    ] = None,
    json: JsonOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Delete dead letters for good, after writing them to a file.

    Shows what matches, by group, writes it to the file of --export, reads
    that again, and asks for the number of letters to be typed. Then it
    deletes exactly the letters that the file has; what arrived since stays.
    `spillway dlq import` brings them back. The file is never overwritten.

    \b
    Examples:
      spillway dlq discard orders --group 3fa9c1d2 --export gone.jsonl
      spillway dlq discard audit --until 10d --export old.jsonl --count 37

    Exit status: 0 all that matched were deleted; 1 something failed, or the
    number was another; 2 wrong usage; 3 SQS did not delete some; 130
    interrupted: what was deleted by then is said, and the file has all.
    """
    chosen = filter_of(reason, type_, event_id, subject, group, since, until, where)
    if count is None and json:
        raise WrongUsage("--json asks no question.", "Say with --count how many letters there must be.")
    if count is None and not sys.stdin.isatty():
        raise WrongUsage(
            "There is nobody to ask: standard input is no terminal.",
            "Say with --count how many letters there must be; `spillway dlq show` counts them.",
        )
    fleet = find_fleet(stack, region, profile)
    worker = fleet.find_worker(queue)
    client = client_of(fleet)
    with Journal.open() as journal, Holder(client, worker.dead_letter_url) as holder:
        with LetterFile(file) as target, interrupts() as stop:
            exported = select(fleet, worker, chosen, holder, client=client, file=target.file, name=str(file), stop=stop)
            if exported.letters and not exported.interrupted:
                target.publish()
        if exported.interrupted:
            typer.echo("Interrupted. Nothing was deleted, and all letters were given back.", err=True)
            raise typer.Exit(INTERRUPTED)
        if not exported.letters:
            _say_nothing_matches(exported, json=json)
            raise typer.Exit(0 if count in (None, 0) else 1)
        ids = transfer.read_back(file, exported)
        if not json:
            _show_groups(exported)
        with transfer.kept_held(holder):
            _confirm(exported, count)
            discarded = _discard(fleet, worker, chosen, holder, journal=journal, exported=exported, ids=ids)
    _say_discarded(fleet, discarded, json=json)
    if discarded.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_STAYED if discarded.kept else 0)


def _discard(
    fleet: Fleet,
    worker: Worker,
    chosen: Filter,
    holder: Holder,
    *,
    journal: Journal,
    exported: Exported,
    ids: list[str],
) -> Discarded:
    deleted = 0
    with progress("deleting", len(ids)) as advance, interrupts() as stop:

        def on_deleted(count: int) -> None:
            nonlocal deleted
            deleted += count
            advance(count)

        try:
            return transfer.discard(
                fleet,
                worker,
                chosen,
                holder,
                journal=journal,
                exported=exported,
                ids=ids,
                stop=stop,
                on_deleted=on_deleted,
            )
        except BaseException:
            typer.echo(f"{deleted:,} of {len(ids):,} letters were deleted; {exported.file} has all of them.", err=True)
            raise


def _confirm(exported: Exported, count: int | None) -> None:
    """Raises SpillwayError unless a person, or the script, says the number of letters."""
    kept = f"Nothing was deleted; {exported.file} has a copy of what matched."
    if count is not None:
        if count != exported.letters:
            raise SpillwayError(f"{exported.letters:,} letters match, not {count:,}.", kept)
        return
    try:
        typed = typer.prompt(f"Type {exported.letters} to delete them for good", default="", show_default=False)
    except typer.Abort:  # Ctrl-C, or Ctrl-D
        typer.echo(f"\n{kept}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if typed.strip().replace(",", "") != str(exported.letters):
        raise SpillwayError(f"That is not {exported.letters}.", kept)


def _say_nothing_matches(exported: Exported, *, json: bool) -> None:
    if json:
        return print_json(
            Discarded(
                queue=exported.queue, file="", sha256="", selected=0, deleted=0, kept=0, interrupted=False, run=""
            )
        )
    typer.echo(f"No letter of {exported.queue} matches. {exported.coverage.described()}")
    return None


def _say_discarded(fleet: Fleet, discarded: Discarded, *, json: bool) -> None:
    if json:
        return print_json(discarded)
    typer.echo(f"Deleted {letters(discarded.deleted)} of {discarded.queue}; {discarded.file} has them.")
    if discarded.kept:
        why = "interrupted" if discarded.interrupted else "SQS did not confirm them"
        typer.echo(f"{letters(discarded.kept)} stayed: {why}. They are in {discarded.file}, too.")
    back = screens.command(
        fleet, "dlq", "import", discarded.file, "--to", discarded.queue, "--as-dead-letters", "--yes"
    )
    typer.echo(f"To have them back: {back}")
    return None


def _show_groups(exported: Exported) -> None:
    """What would be deleted."""
    screen = console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("letters", justify="right", no_wrap=True, min_width=7)
    table.add_column("group", no_wrap=True, min_width=8)
    table.add_column("reason", no_wrap=True, min_width=11)
    table.add_column("type", overflow="ellipsis", no_wrap=True, max_width=20)
    table.add_column("detail", overflow="ellipsis", no_wrap=True)
    for group in exported.groups[:LISTED_GROUPS]:
        table.add_row(f"{group.count:,}", group.key, *map(Text, _words(group)))
    screen.print(f"{letters(exported.letters)} of {exported.queue} match; {exported.file} has a copy of each.")
    screen.print(table)
    if hidden := exported.groups[LISTED_GROUPS:]:
        screen.print(f"and {sum(group.count for group in hidden):,} in {len(hidden):,} more groups")
    if not exported.complete:
        screen.print(exported.coverage.described(), soft_wrap=True)


def _words(group: Group) -> tuple[str, str, str]:
    cause = group.cause
    reason = f"{cause.reason} {cause.code}".strip()
    return one_line(reason), one_line(cause.event_type) or "-", one_line(cause.detail) or "-"
