"""`spillway dlq list | show | peek`: what is dead, why, and what is in it. Nothing is consumed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spillway.commands.dlq import options as of
from spillway.dlq import screens
from spillway.dlq.contents import Contents, contents_of
from spillway.dlq.groups import Group, Groups
from spillway.dlq.holding import Holder
from spillway.dlq.letter_screen import letter
from spillway.dlq.overview import QueueOverview, survey
from spillway.dlq.reading import THREADS, Coverage, depth_of, read
from spillway.dlq.redaction import Path
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet
from spillway.interrupts import INTERRUPTED, interrupts
from spillway.screens import console

if TYPE_CHECKING:
    from spillway.dlq.letters import Letter

#: How much of a queue `show` reads, and `list` of each.
LIMIT = 1_000
SAMPLE = 100
#: Groups and bytes of a body that a screen has room for.
TOP = 10
MAX_BODY = 4_096

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class ListDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `list --json` prints."""

    fleet: str
    at: datetime
    queues: list[QueueOverview]


class ShowDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `show --json` prints. `matching` letters of those that were read met the filter, and are in `groups`."""

    fleet: str
    at: datetime
    queue: str
    coverage: Coverage
    complete: bool
    matching: int
    filter: list[str]
    groups: list[Group]


class PeekDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `peek --json` prints."""

    fleet: str
    at: datetime
    queue: str
    letters: list[Contents]


def list_queues(
    *,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Letters to read of each queue.")] = SAMPLE,
    json: JsonOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """List the dead-letter queues: how deep, how old, since when, and why.

    The reasons are those of up to --sample letters of each queue. They are
    received and given back at once; that counts as a receive, which has no
    effect on a dead-letter queue.

    \b
    Examples:
      spillway dlq list
      spillway dlq list --stack spillway-prod --region eu-west-1
      spillway dlq list --sample 1000 --json

    Exit status: 0 listed, also where nothing is dead; 130 interrupted by
    Ctrl-C, with everything given back.
    """
    fleet = find_fleet(stack, region, profile)
    with interrupts() as stop:
        queues = survey(fleet, sample, stop)
    _end_if(stop)
    now = datetime.now(UTC)
    if json:
        typer.echo(screens.json_text(ListDocument(fleet=fleet.identity, at=now, queues=queues)))
    else:
        console().print(screens.queue_list(fleet, queues, now))


def show(
    queue: of.QueueArgument,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Letters to read.")] = LIMIT,
    every: Annotated[bool, typer.Option("--all", help="Read every letter.")] = False,
    top: Annotated[int, typer.Option("--top", min=0, help="Groups to print; 0 prints all. Not for --json.")] = TOP,
    reason: of.ReasonOption = None,
    type_: of.TypeOption = None,
    event_id: of.EventIdOption = None,
    subject: of.SubjectOption = None,
    group: of.GroupOption = None,
    since: of.SinceOption = None,
    until: of.UntilOption = None,
    where: of.WhereOption = None,
    json: JsonOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Show why the letters of a dead-letter queue are dead: grouped by cause, the largest group first.

    A cause is the reason, the SQLSTATE, the detail without what differs from
    message to message, the event type and the worker's version. Its key is for
    --group of this and the other commands. A queue is read by receiving, so a
    large one is sampled: the screen says how sure its numbers are. What is
    received is invisible to others for that time, and given back at the end;
    its receive count goes up, which has no effect on a dead-letter queue.

    \b
    Examples:
      spillway dlq show orders
      spillway dlq show orders --all --since 3h
      spillway dlq show payments --reason gap --where "data.account == 'a-17'"

    Exit status: 0 shown; 2 wrong usage, a bad filter for one; 130 interrupted
    by Ctrl-C, with everything given back.
    """
    chosen = of.filter_of(reason, type_, event_id, subject, group, since, until, where)
    fleet = find_fleet(stack, region, profile)
    worker = fleet.find_worker(queue)
    client = fleet.sqs(connections=THREADS)
    depth = depth_of(client, worker.dead_letter_url)
    most = None if every else limit
    groups = Groups()
    count = 0
    expected = depth.visible if most is None else min(most, depth.visible)
    with (
        interrupts() as stop,
        Holder(client, worker.dead_letter_url) as holder,
        _progress(expected) as advance,
    ):

        def note(one: Letter) -> None:
            nonlocal count
            count += 1
            if chosen.matches(one):
                groups.add(one)
            advance()

        to_the_end = read(holder, note, limit=most, stop=stop)
    coverage = Coverage(read=count, depth=depth, to_the_end=to_the_end, fifo=worker.fifo)
    now = datetime.now(UTC)
    if json:
        document = ShowDocument(
            fleet=fleet.identity,
            at=now,
            queue=worker.dead_letter_queue,
            coverage=coverage,
            complete=coverage.complete,
            matching=groups.count,
            filter=chosen.described(),
            groups=list(groups),
        )
        typer.echo(screens.json_text(document))
    else:
        screen = screens.group_list(
            fleet,
            worker.name,
            worker.dead_letter_queue,
            groups,
            coverage,
            conditions=chosen.described(),
            now=now,
            top=top or None,
        )
        console().print(screen)
    _end_if(stop)


def peek(
    queue: of.QueueArgument,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Letters to show.")] = 1,
    max_body: Annotated[
        int, typer.Option("--max-body", min=0, help="Bytes of a body to show at most; 0 shows all. Not for --json.")
    ] = MAX_BODY,
    redact: Annotated[
        list[str] | None,
        typer.Option(
            "--redact",
            metavar="PATH",
            help="Hide what is there: data.customer, data.items[*].sku, attributes.tenant. Repeatable.",
        ),
    ] = None,
    reason: of.ReasonOption = None,
    type_: of.TypeOption = None,
    event_id: of.EventIdOption = None,
    subject: of.SubjectOption = None,
    group: of.GroupOption = None,
    since: of.SinceOption = None,
    until: of.UntilOption = None,
    where: of.WhereOption = None,
    json: JsonOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Print single letters: why they are dead, their attributes, and the body as indented JSON.

    Bodies are data, and go to your terminal: --redact hides parts of them. A
    body that cannot be read as JSON is not shown then. Control characters are
    shown as \\uXXXX, and never reach the terminal. The letters are given back
    at once; their receive count goes up, which has no effect on a dead-letter
    queue.

    \b
    Examples:
      spillway dlq peek orders
      spillway dlq peek orders --group 1f2e3d4c --limit 3
      spillway dlq peek orders --redact data.customer --redact 'data.items[*].sku'
      spillway dlq peek payments --event-id 018f3c5e-7b1a-7e6f-9a3b-5d2c4e6f8a01 --json

    Exit status: 0 printed; 1 no letter matches; 2 wrong usage, a bad filter
    for one; 130 interrupted by Ctrl-C, with everything given back.
    """
    chosen = of.filter_of(reason, type_, event_id, subject, group, since, until, where)
    hidden = [Path.parse(path) for path in redact or ()]
    fleet = find_fleet(stack, region, profile)
    worker = fleet.find_worker(queue)
    client = fleet.sqs(connections=THREADS)
    found: list[Contents] = []
    count = 0
    with interrupts() as stop, Holder(client, worker.dead_letter_url) as holder:

        def note(one: Letter) -> bool:
            nonlocal count
            count += 1
            if chosen.matches(one):
                found.append(contents_of(one, hidden))
            return len(found) >= limit

        # Without a filter no letter is held that is not shown.
        read(holder, note, limit=limit if chosen.empty else None, threads=1 if chosen.empty else THREADS, stop=stop)
    now = datetime.now(UTC)
    if json:
        document = PeekDocument(fleet=fleet.identity, at=now, queue=worker.dead_letter_queue, letters=found)
        typer.echo(screens.json_text(document))
    else:
        out = console()
        for number, one in enumerate(found):
            if number:
                out.rule(style="dim")
            head, body = letter(one, max_body, now)
            out.print(head)
            if body:
                typer.echo(body)  # not wrapped: somebody may want to copy it
    _end_if(stop)
    if not found:
        why = f"none of the {count:,} letters read matches" if count else "there is no letter to be seen"
        typer.echo(f"{worker.dead_letter_queue}: {why}.", err=True)
        raise typer.Exit(1)


def _end_if(stop: threading.Event) -> None:
    if stop.is_set():
        typer.echo("Interrupted; everything was given back.", err=True)
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    errors = Console(stderr=True)
    bar = Progress(
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        disable=not errors.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("reading", total=total)
        yield lambda: bar.advance(task)
