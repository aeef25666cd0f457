"""`spillway dlq redrive`: dead letters go back to work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from spillway.commands.dlq import options as of
from spillway.commands.dlq.acting import Acting
from spillway.commands.dlq.native import move
from spillway.commands.dlq.planning import plan
from spillway.dlq import screens
from spillway.dlq.destination import destination_of
from spillway.dlq.intake import now_by_sqs
from spillway.dlq.job import Job
from spillway.dlq.journal import Journal
from spillway.dlq.orders import Orders, orders_of, require_same
from spillway.dlq.verdicts import TIMEOUT_S
from spillway.errors import SpillwayError
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet

if TYPE_CHECKING:
    from spillway.dlq.records import RunRecord
    from spillway.fleet.fleet import Fleet, Worker


class WrongUsage(SpillwayError):
    """Options that cannot be meant together."""

    exit_code = 2


def redrive(
    queue: of.QueueArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without, it only says what it would do.")] = False,
    reason: of.ReasonOption = None,
    type_: of.TypeOption = None,
    event_id: of.EventIdOption = None,
    subject: of.SubjectOption = None,
    group: of.GroupOption = None,
    since: of.SinceOption = None,
    until: of.UntilOption = None,
    where: of.WhereOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Send so many letters at most.")] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="QUEUE", help="Send to this worker's queue, or to any queue's URL."),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.01, help="Letters per second at most.")] = None,
    edit: Annotated[
        str | None,
        typer.Option("--edit", metavar="PATCH", help="Edit each event by this JSON merge patch (RFC 7396)."),
    ] = None,
    edit_with: Annotated[
        str | None,
        typer.Option(
            "--edit-with",
            metavar="COMMAND",
            help="Edit each body with this command, from standard input to standard output; exit 0, or the letter "
            "stays.",
        ),
    ] = None,
    no_canary: Annotated[bool, typer.Option("--no-canary", help="Do not try one letter of each group first.")] = False,
    canary_timeout: Annotated[
        float | None,
        typer.Option("--canary-timeout", min=1, help=f"Seconds to wait for a canary (default: {TIMEOUT_S:.0f})."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run: its name, or `last`."),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Use SQS's own move task: everything, without canary or edit.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Send dead letters back to their worker's queue: those that the filter selects, one of each group first.

    Without --yes nothing is sent: it says what would go, and what an edit would
    do. With it, one letter of each group goes ahead as a canary. If the worker
    is done with it, its group follows; if it is dead-lettered again, the group
    stays. An edited event must satisfy its worker's contract and keep its id.

    Letters are sent, then deleted. Should this be killed in between, a letter
    is at most sent twice, and the event's id keeps it from taking effect twice.
    Ctrl-C ends it cleanly, and --resume goes on. Letters that die again go to
    the dead-letter queue as new ones, and are not taken again by the same run.

    Every run is in the journal, ~/.local/state/spillway/journal.sqlite3 or the
    file $SPILLWAY_JOURNAL names: who, when, which letters. Of a letter that was
    edited it holds the body, before and after.

    \b
    Examples:
      spillway dlq redrive orders
      spillway dlq redrive orders --reason data --since 3h --yes
      spillway dlq redrive orders --group 1f2e3d4c --limit 10 --rate 2 --yes
      spillway dlq redrive orders --edit '{"data": {"currency": "EUR"}}' --yes
      spillway dlq redrive payments --edit-with 'jq -c .data.amount=0' --yes
      spillway dlq redrive orders --resume last

    Exit status: 0 everything selected was redriven, or this was a dry run;
    1 it failed; 2 wrong usage; 3 some of what was selected stays, it says why;
    130 interrupted by Ctrl-C.
    """
    given: dict[str, Any]
    chosen = of.filter_of(reason, type_, event_id, subject, group, since, until, where)
    if native:
        given = {"a filter": not chosen.empty, "--limit": limit, "--edit": edit, "--edit-with": edit_with}
        given |= {"--no-canary": no_canary, "--canary-timeout": canary_timeout, "--resume": resume}
        if refused := [name for name, value in given.items() if value]:
            raise WrongUsage(f"--native cannot be used with {', '.join(refused)}.", "SQS's move task moves everything.")
        fleet = find_fleet(stack, region, profile)
        move(fleet, fleet.find_worker(queue), to, rate, yes=yes, json=json)
        return
    fleet = find_fleet(stack, region, profile)
    worker = fleet.find_worker(queue)
    with Journal.open() as journal:
        if resume is not None:
            record = journal.find(resume, kind="redrive")
            _require_queue(record, fleet, worker)
            destination = None if to is None else destination_of(fleet, worker, to).url
            given = {"--limit": limit, "--rate": rate, "--edit": edit, "--edit-with": edit_with, "--to": destination}
            given |= {"--no-canary": no_canary or None, "--canary-timeout": canary_timeout}
            require_same(record, given, chosen)
            orders, chosen = orders_of(record)
            target = destination_of(fleet, worker, orders.destination)
            Acting(Job(fleet, worker, target, orders, chosen), journal, json=json).go_on(record)
            return
        target = destination_of(fleet, worker, to)
        if no_canary and canary_timeout is not None:
            raise WrongUsage("--no-canary and --canary-timeout were both given.", "Give one of them.")
        if not target.worker and not no_canary:
            raise WrongUsage(
                f"No worker of {fleet.name} reads {target.name}, so nobody tells what becomes of a canary.",
                "Redrive there with --no-canary.",
            )
        orders = Orders(
            destination=target.url,
            contract=target.contract,
            arrived_by=now_by_sqs(fleet.sqs(), worker.dead_letter_url),
            edit=edit,
            edit_with=edit_with,
            rate=rate,
            limit=limit,
            canary_s=None if no_canary else canary_timeout or TIMEOUT_S,
        )
        again = screens.command(fleet, "dlq", "redrive", queue, *chosen.options(), *orders.options(target, to), "--yes")
        if yes:
            Acting(Job(fleet, worker, target, orders, chosen), journal, json=json).begin()
        else:
            plan(Job(fleet, worker, target, orders, chosen), journal, todo=again, json=json)


def _require_queue(record: RunRecord, fleet: Fleet, worker: Worker) -> None:
    if record.queue != worker.dead_letter_queue:
        raise WrongUsage(f"The run {record.id} is of {record.queue}.", "Name that queue, or another run.")
    if record.fleet != fleet.identity:
        raise WrongUsage(
            f"The run {record.id} is of another fleet: {record.fleet}.",
            "Name it with --stack and --region. A local stack's queues are gone with it.",
        )
