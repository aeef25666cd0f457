"""`spillway dlq redrive --native`: by SQS's own move task."""

from __future__ import annotations

import msgspec
import typer

from spillway.dlq import native, owner, reports, screens
from spillway.dlq.destination import destination_of
from spillway.dlq.journal import Journal
from spillway.dlq.native import LIMITS, MAX_RATE, Task
from spillway.dlq.progress import progress
from spillway.dlq.reading import depth_of
from spillway.dlq.records import DONE, FAILED
from spillway.dlq.records import INTERRUPTED as STOPPED
from spillway.errors import SpillwayError
from spillway.fleet.fleet import Fleet, Worker
from spillway.interrupts import INTERRUPTED, interrupts


class BadRate(SpillwayError):
    """A rate that SQS does not take."""

    exit_code = 2


class NativeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `redrive --native --json` prints. Without --yes `task` is None and `run` ''; `command` does it."""

    fleet: str
    queue: str
    destination: str
    depth: int
    limits: tuple[str, ...]
    run: str = ""
    task: Task | None = None
    command: str = ""


def move(fleet: Fleet, worker: Worker, to: str | None, rate: float | None, *, yes: bool, json: bool) -> None:
    """Move all dead letters of `worker` and wait; or, without `yes`, say what that would mean. Raises SpillwayError."""
    if rate is not None and not (1 <= rate <= MAX_RATE and rate == int(rate)):
        raise BadRate(
            f"--native takes a --rate from 1 to {MAX_RATE}, a whole number.", "Or leave it to SQS: no --rate."
        )
    target = destination_of(fleet, worker, to)
    client = fleet.sqs()
    source = native.arn_of(client, worker.dead_letter_url)
    destination = native.arn_of(client, target.url)
    running = native.latest(client, source)
    if running is not None and not running.over:
        raise SpillwayError(
            f"A move task of {worker.dead_letter_queue} is running: {_moved(running)}.",
            "SQS allows one for a queue. Wait for it, or cancel it: aws sqs cancel-message-move-task.",
        )
    depth = depth_of(client, worker.dead_letter_url).total
    document = NativeDocument(
        fleet=fleet.identity, queue=worker.dead_letter_queue, destination=target.url, depth=depth, limits=LIMITS
    )
    if not yes:
        words = ["--to", target.worker or target.url] if to is not None else []
        words += [] if rate is None else ["--rate", f"{rate:g}"]
        todo = screens.command(fleet, "dlq", "redrive", worker.name, "--native", *words, "--yes")
        if json:
            typer.echo(screens.json_text(msgspec.structs.replace(document, command=todo)))
        else:
            typer.echo(
                f"SQS would move all of about {depth:,} messages from {worker.dead_letter_queue} to {target.name}."
            )
            _say_limits()
            typer.echo(f"\nNothing was moved. To do it:  {todo}")
        return
    if not json:
        typer.echo(f"SQS moves all of about {depth:,} messages from {worker.dead_letter_queue} to {target.name}.")
        _say_limits()
    with Journal.open() as journal:
        run = journal.begin(
            kind="native",
            fleet=fleet.identity,
            queue=worker.dead_letter_queue,
            details={"destination": target.url, "rate": rate},
            who=owner.caller(fleet),
        )
        try:
            with interrupts() as stop, progress("moving", depth) as update:
                handle = native.start(client, source, destination, None if rate is None else int(rate))
                task = native.follow(
                    client, source, handle, on_progress=lambda now: update(now.moved, now.status.lower()), stop=stop
                )
        except BaseException:
            run.finish({}, FAILED)
            raise
        state = {native.COMPLETED: DONE, native.CANCELLED: STOPPED}.get(task.status, FAILED)
        run.finish({"redriven": task.moved}, state)
    if json:
        typer.echo(screens.json_text(msgspec.structs.replace(document, run=run.id, task=task)))
    elif state == DONE:
        typer.echo(f"Moved about {reports.several(task.moved, 'message')} to {target.name} (run {run.id}).")
    elif state == STOPPED:
        typer.echo(f"Cancelled: about {_moved(task)} had been moved to {target.name} and stay there (run {run.id}).")
    if state == STOPPED:
        raise typer.Exit(INTERRUPTED)
    if state == FAILED:
        raise SpillwayError(
            f"The move task ended as {task.status} after {_moved(task)}: {task.failure or 'SQS gives no reason'}.",
            f"What was not moved is still in {worker.dead_letter_queue}.",
        )


def _say_limits() -> None:
    for limit in LIMITS:
        typer.echo(f"  {limit}")


def _moved(task: Task) -> str:
    return f"{task.moved:,} of {task.to_move:,} messages" if task.to_move else reports.several(task.moved, "message")
