"""`spillway send`: a file of events to a worker's queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spillway.aws import sqs_client
from spillway.commands.files import opened
from spillway.contracts import contract_of
from spillway.errors import SpillwayError
from spillway.interrupts import INTERRUPTED, interrupts
from spillway.journal import Journal
from spillway.jsonl import BadLineFile
from spillway.pace import TokenBucket
from spillway.packing import MAX_BATCH_ENTRIES
from spillway.preparing import Preparer
from spillway.producer import Producer
from spillway.send_result import SendResult
from spillway.sending import Checked, Sent, check, deliver
from spillway.target import Target, find_target


def send(
    worker: Annotated[str, typer.Argument(help="The worker whose queue to send to, such as `orders`.")],
    file: Annotated[
        str, typer.Argument(metavar="FILE.jsonl|-", help="One JSON event per line; `-` is standard input.")
    ],
    *,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events per second at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count; send nothing.")] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Send the good lines and put the bad ones into a file.")
    ] = False,
    invalid_to: Annotated[
        Path | None, typer.Option(help="Where --skip-invalid puts bad lines (default: FILE.invalid.jsonl).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what an interrupted send of this file already confirmed.")
    ] = False,
    fair_group: Annotated[
        str | None,
        typer.Option(help="Field that marks the tenant for SQS fair queues, such as `data.customer`."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Sender threads; a FIFO queue has one.")] = 4,
    queue_url: Annotated[str | None, typer.Option(help="A queue elsewhere (default: the local stack's).")] = None,
    endpoint_url: Annotated[str | None, typer.Option(help="The SQS endpoint of --queue-url.")] = None,
    region: Annotated[str | None, typer.Option(help="The AWS region of --queue-url.")] = None,
    profile: Annotated[str | None, typer.Option(help="The AWS profile to use.")] = None,
) -> None:
    """Check a file of events and send it to a worker's queue.

    Nothing is sent while any line is bad, unless --skip-invalid. Missing `id`,
    `specversion` and `time` are filled in; an `id` comes from the line's text,
    and equal lines are told apart by their order. So sending a file again,
    whole or after an interruption, has no second effect. --resume only saves
    time: it skips the events that FILE.journal, which an unfinished send leaves
    behind, lists as confirmed.

    Exit status: 0 every event was sent; 1 something was bad, skipped or failed;
    130 interrupted by Ctrl-C.
    """
    contract = contract_of(worker)
    if resume and file == "-":
        raise SpillwayError("Standard input cannot be resumed.", "Sending it all again has no second effect.")
    try:
        target = None
        if not dry_run or queue_url is not None:
            target = find_target(worker, queue_url, endpoint_url, region, profile)
        fifo = target is not None and target.queue_url.endswith(".fifo")
        preparer = Preparer(contract, fifo=fifo, group_by=fair_group or ("subject" if fifo else None))
        entries = _entries_for(rate)
        with ExitStack() as stack:
            source = stack.enter_context(opened(file))
            bad_lines = BadLineFile(_bad_line_path(file, invalid_to)) if skip_invalid and not dry_run else None
            checked = _checked(
                source, preparer, file, entries=entries, bad_lines=bad_lines, refuse=not skip_invalid, fifo=fifo
            )
            if dry_run or target is None:
                typer.echo(
                    f"Would send {checked.events:,} events in {checked.batches:,} batches, {checked.size:,} bytes."
                )
                _say_skipped(checked, None)
                raise typer.Exit(1 if checked.bad else 0)
            stop = threading.Event()
            threads = 1 if fifo else concurrency
            producer = Producer(
                sqs_client(target.endpoint_url, target.region, target.profile, attempts=1, connections=threads),
                target.queue_url,
                contract,
                max_entries=entries,
                concurrency=threads,
                sleep=stop.wait,
            )
            journal = _journal(file, target, resume=resume)
            if journal is not None:
                stack.enter_context(journal)
            bucket = TokenBucket(rate, entries, sleep=stop.wait) if rate is not None else None
            source.seek(0)
            outcome = _delivered(source, preparer, producer, checked=checked, journal=journal, bucket=bucket, stop=stop)
    except KeyboardInterrupt:
        typer.echo("Interrupted. Sending the same again has no second effect.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _say_outcome(_name(file), checked, outcome, journal)
    _say_skipped(checked, bad_lines)
    if outcome.stopped:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(0 if _complete(checked, outcome) and not checked.bad else 1)


def _checked(
    source: BinaryIO,
    preparer: Preparer,
    file: str,
    *,
    entries: int,
    bad_lines: BadLineFile | None,
    refuse: bool,
    fifo: bool,
) -> Checked:
    with ExitStack() as stack:
        if bad_lines is not None:
            stack.enter_context(bad_lines)
        checked = check(source, preparer, fifo=fifo, max_entries=entries, keep=bad_lines)
    if checked.bad and refuse:
        listed = [f"  {bad.describe(_name(file))}" for bad in checked.first_bad]
        if checked.bad > len(listed):
            listed.append(f"  and {checked.bad - len(listed):,} more")
        lines = "1 bad line" if checked.bad == 1 else f"{checked.bad:,} bad lines"
        raise SpillwayError(
            "\n".join([f"Nothing was sent: {_name(file)} has {lines}.", *listed]),
            "Expected one JSON event per line. Correct them, or send the rest with --skip-invalid.",
        )
    return checked


def _delivered(
    source: BinaryIO,
    preparer: Preparer,
    producer: Producer,
    *,
    checked: Checked,
    journal: Journal | None,
    bucket: TokenBucket | None,
    stop: threading.Event,
) -> Sent:
    confirmed = journal.confirmed if journal is not None else frozenset[str]()
    with _progress(checked.events - len(confirmed)) as advance, interrupts(stop):

        def on_result(result: SendResult) -> None:
            if journal is not None and result.error is None and result.event_id is not None:
                journal.confirm(result.event_id)
            advance()

        outcome = deliver(
            source, preparer, producer, confirmed=confirmed, bucket=bucket, stop=stop, on_result=on_result
        )
    if journal is not None and _complete(checked, outcome):
        journal.finish()
    return outcome


def _complete(checked: Checked, outcome: Sent) -> bool:
    return outcome.sent + outcome.confirmed_before == checked.events


def _name(file: str) -> str:
    return "stdin" if file == "-" else file


def _bad_line_path(file: str, chosen: Path | None) -> Path:
    path = chosen or Path(f"{_name(file).removesuffix('.jsonl')}.invalid.jsonl")
    if file != "-" and path.resolve() == Path(file).resolve():
        raise SpillwayError(f"{path} is the file to send.", "Name another file with --invalid-to.")
    return path


def _entries_for(rate: float | None) -> int:
    """Entries of a batch: below 20 events/s fewer, so that events leave twice a second rather than ten at a time."""
    return MAX_BATCH_ENTRIES if rate is None else max(1, min(MAX_BATCH_ENTRIES, int(rate / 2)))


def _journal(file: str, target: Target, *, resume: bool) -> Journal | None:
    if file == "-":
        return None
    path = Path(f"{file}.journal")
    try:
        return Journal(path, target.identity, resume=resume)
    except OSError as error:
        typer.echo(f"Cannot write {path} ({error.strerror}): --resume will not be possible.", err=True)
        return None


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("sending"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("sending", total=total)
        yield lambda: bar.advance(task)


def _say_skipped(checked: Checked, bad_lines: BadLineFile | None) -> None:
    if checked.bad:
        lines = "1 bad line" if checked.bad == 1 else f"{checked.bad:,} bad lines"
        typer.echo(f"Skipped {lines}" + (f": see {bad_lines.path}." if bad_lines is not None else "."))


def _say_outcome(name: str, checked: Checked, outcome: Sent, journal: Journal | None) -> None:
    before = f", {outcome.confirmed_before:,} confirmed before" if outcome.confirmed_before else ""
    typer.echo(f"Sent {outcome.sent:,} of {checked.events:,} events{before}.")
    for why, count in outcome.failed.most_common():
        typer.echo(f"  {count:,} failed: {why}", err=True)
    for line, result in outcome.first_failed:
        typer.echo(f"  {name}:{line}: event {result.event_id}", err=True)
    if _complete(checked, outcome):
        return
    untried = checked.events - outcome.sent - outcome.confirmed_before - outcome.failed.total()
    if untried:
        typer.echo(f"  {untried:,} not tried: " + ("interrupted." if outcome.stopped else "the queue did not answer."))
    again = "Run the same command again" + (" with --resume to skip what was sent." if journal is not None else ".")
    typer.echo(f"{again} Nothing takes effect twice.", err=True)
