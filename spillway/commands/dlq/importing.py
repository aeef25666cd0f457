"""`spillway dlq import`: the messages of a file into a queue."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import typer

from spillway.aws_errors import explained
from spillway.commands.dlq.transfer import SOME_STAYED, JsonOption, WrongUsage, print_json, progress
from spillway.commands.files import opened
from spillway.contracts import CONTRACTS
from spillway.dlq import importing, owner
from spillway.dlq.files import BadLine
from spillway.dlq.importing import Checked, Destination
from spillway.dlq.journal import Journal
from spillway.dlq.records import DONE, FAILED
from spillway.dlq.records import INTERRUPTED as STOPPED
from spillway.errors import SpillwayError
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet
from spillway.fleet.fleet import Fleet, Worker
from spillway.interrupts import INTERRUPTED, interrupts
from spillway.pace import TokenBucket
from spillway.packing import MAX_BATCH_ENTRIES
from spillway.producer import Producer
from spillway.rdsproxy.watch import one_line
from spillway.send_result import SendError
from workers.runtime.envelope import CloudEvent, EventDecoder

#: Threads that send to a standard queue.
SENDERS = 4


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an import came to. `letters` are the file's; a dry run sends nothing, has no `run` in the journal, and says
    how many are `hopeless`: the worker's contract refuses them."""

    file: str
    sha256: str
    queue: str
    as_dead_letters: bool
    dry_run: bool
    letters: int
    bytes: int
    hopeless: int = 0
    sent: int = 0
    failed: dict[str, int] = msgspec.field(default_factory=dict)
    interrupted: bool = False
    run: str = ""


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="What `spillway dlq export` wrote.")],
    *,
    to: Annotated[str, typer.Option("--to", metavar="QUEUE", help="The worker whose queue gets the messages.")],
    as_dead_letters: Annotated[
        bool, typer.Option("--as-dead-letters", help="Put them into its dead-letter queue, with their reasons.")
    ] = False,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Messages per second at most.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send them; without it, only check the file.")] = False,
    json: JsonOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Send the messages of a file that `spillway dlq export` wrote.

    They go to a worker's queue as they were before they were dead. Without
    --yes nothing is sent: the file is checked, what would be sent is
    counted, and what the worker's contract would refuse is named. Nothing is
    sent while any line is bad. The lines may have been
    filtered or reordered; a message group (FIFO) is sent in the file's order.

    An import that broke off is repeated: an event that took effect does
    nothing the second time, because its id is known. Only --as-dead-letters
    would make a letter twice.

    \b
    Examples:
      spillway dlq import orders.jsonl --to orders
      spillway dlq import orders.jsonl --to orders --rate 50 --yes
      jq -c 'select(.reasons.reason == "gap")' all.jsonl | spillway dlq import - --to payments --yes

    Exit status: 0 every message was sent, or would be; 1 something failed;
    2 wrong usage; 3 SQS did not take some; 130 interrupted.
    """
    fleet = find_fleet(stack, region, profile)
    worker = fleet.find_worker(to)
    if not as_dead_letters and _names_dead_letters(to, fleet, worker):
        raise WrongUsage(
            f"{worker.dead_letter_queue} is a dead-letter queue.",
            f"Add --as-dead-letters if that is meant, or send to its worker: --to {worker.name}.",
        )
    destination = Destination(worker.dead_letter_url if as_dead_letters else worker.queue_url, as_dead_letters)
    name = "standard input" if file == "-" else file
    with opened(file) as source:
        # A dead-letter queue takes anything, and who says --yes has decided.
        decoder: EventDecoder[CloudEvent] | None = None
        if worker.name in CONTRACTS and not (yes or as_dead_letters):
            decoder = EventDecoder(CONTRACTS[worker.name])
        checked = importing.check(source, destination, decoder)
        _refuse_bad_lines(checked, name)
        queue = worker.dead_letter_queue if as_dead_letters else worker.queue
        imported = Imported(
            file=file,
            sha256=checked.sha256,
            queue=queue,
            as_dead_letters=as_dead_letters,
            dry_run=not yes,
            letters=checked.letters,
            bytes=checked.bytes,
            hopeless=checked.hopeless,
        )
        _warn_of_the_file(checked, worker, name)
        if yes and checked.letters:
            source.seek(0)
            with Journal.open() as journal:
                imported = _import(fleet, journal, source, destination, imported, rate=rate)
    _say_imported(imported, checked, name, json=json)
    if imported.interrupted:
        raise typer.Exit(INTERRUPTED)
    if yes and imported.sent < imported.letters:
        raise typer.Exit(SOME_STAYED)


def _import(
    fleet: Fleet,
    journal: Journal,
    source: BinaryIO,
    destination: Destination,
    imported: Imported,
    *,
    rate: float | None,
) -> Imported:
    stop = threading.Event()
    threads = 1 if destination.fifo else SENDERS
    entries = MAX_BATCH_ENTRIES if rate is None else max(1, min(MAX_BATCH_ENTRIES, int(rate / 2)))
    # The contract is not asked: the messages are dead letters, sent as they are.
    producer = Producer(
        fleet.sqs(connections=threads),
        destination.queue_url,
        CloudEvent,
        max_entries=entries,
        concurrency=threads,
        sleep=stop.wait,
    )
    bucket = TokenBucket(rate, entries, sleep=stop.wait) if rate is not None else None
    run = journal.begin(
        kind="import",
        fleet=fleet.identity,
        queue=imported.queue,
        details={
            "file": imported.file if imported.file == "-" else str(Path(imported.file).resolve()),
            "sha256": imported.sha256,
            "as_dead_letters": imported.as_dead_letters,
        },
        who=owner.caller(fleet),
    )
    try:
        with progress("sending", imported.letters) as advance, interrupts(stop):
            outcome = importing.deliver(
                source,
                destination,
                producer,
                imported.sha256,
                bucket=bucket,
                stop=stop,
                on_result=lambda: advance(1),
            )
    except BaseException:
        run.finish({"letters": imported.letters}, FAILED)
        raise
    state = STOPPED if outcome.stopped else DONE
    run.finish({"letters": imported.letters, "sent": outcome.sent, "failed": outcome.failed.total()}, state)
    return msgspec.structs.replace(
        imported,
        sent=outcome.sent,
        failed={_why(error): count for error, count in outcome.failed.most_common()},
        interrupted=outcome.stopped,
        run=run.id,
    )


def _why(error: SendError) -> str:
    """What SQS said of an entry, or of a whole call: then with the action that is missing, for one."""
    from botocore.exceptions import ClientError  # noqa: PLC0415  (loaded already: something was sent)

    if not error.whole_call or error.code.endswith("Error"):
        return f"{error.code}: {error.message}"
    refused = ClientError({"Error": {"Code": error.code, "Message": error.message}}, "SendMessageBatch")
    return str(explained(refused))


def _names_dead_letters(said: str, fleet: Fleet, worker: Worker) -> bool:
    """Whether `said` is the worker's dead-letter queue: its name, URL or ARN."""
    dead = worker.dead_letter_queue.removesuffix(".fifo")
    name = said.rstrip("/").rpartition("/")[2].rpartition(":")[2].removesuffix(".fifo")
    return name in (dead, dead.removeprefix(f"{fleet.name}-"))


def _refuse_bad_lines(checked: Checked, name: str) -> None:
    if not checked.bad:
        return
    listed = _listed(checked.first_bad, checked.bad, name)
    lines = "1 bad line" if checked.bad == 1 else f"{checked.bad:,} bad lines"
    raise SpillwayError(
        "\n".join([f"Nothing was sent: {name} has {lines}.", *listed]),
        "Expected lines as `spillway dlq export` writes them. Correct them, or take them out.",
    )


def _listed(first: list[BadLine], count: int, name: str) -> list[str]:
    lines = [f"  {name}:{line.number}: {one_line(line.why)}" for line in first]
    return [*lines, f"  and {count - len(lines):,} more"] if count > len(lines) else lines


def _warn_of_the_file(checked: Checked, worker: Worker, name: str) -> None:
    header, end = checked.header, checked.end
    if header is not None and header.worker not in ("", worker.name):
        typer.echo(f"Note: the letters are of {header.worker}, not of {worker.name}.", err=True)
    if header is not None and end is None:
        typer.echo(f"Note: {name} has no last line, so it may have been cut off.", err=True)
    if end is not None and end.letters != checked.letters:
        typer.echo(f"Note: {end.letters:,} letters were exported; {checked.letters:,} are in {name}.", err=True)


def _say_imported(imported: Imported, checked: Checked, name: str, *, json: bool) -> None:
    if json:
        return print_json(imported)
    if imported.dry_run or not imported.letters:
        what = "dead letters" if imported.as_dead_letters else "messages"
        typer.echo(f"Would send {imported.letters:,} {what}, {imported.bytes:,} bytes, to {imported.queue}.")
        for reason, count in checked.reasons.most_common():
            typer.echo(f"  {count:,} {one_line(reason) or 'without a reason'}")
        if checked.hopeless:
            typer.echo(f"By the contract that is here, {checked.hopeless:,} of them would be dead-lettered again:")
            typer.echo("\n".join(_listed(checked.first_hopeless, checked.hopeless, name)))
        if imported.letters:
            typer.echo("Nothing was sent. Add --yes to send them.")
        return None
    typer.echo(f"Sent {imported.sent:,} of {imported.letters:,} messages to {imported.queue}.")
    for why, count in imported.failed.items():
        typer.echo(f"  {count:,} failed: {why}", err=True)
    if imported.sent < imported.letters:
        again = "A letter may then be there twice." if imported.as_dead_letters else "Nothing takes effect twice."
        typer.echo(f"Run the same command again. {again}", err=True)
    return None
