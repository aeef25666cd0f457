"""What `spillway dlq export`, `import` and `discard` have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, BinaryIO

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spillway.dlq import reading, transfer
from spillway.dlq.filters import Filter
from spillway.dlq.holding import Holder
from spillway.dlq.transfer import Exported
from spillway.errors import SpillwayError
from spillway.fleet.fleet import Fleet, Worker

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

#: "Done, but some of what was selected stays."
SOME_STAYED = 3

JsonOption = Annotated[bool, typer.Option("--json", help="Print what it came to as JSON.")]


class WrongUsage(SpillwayError):
    """Options that cannot be meant together."""

    exit_code = 2


def client_of(fleet: Fleet) -> SQSClient:
    """A client for as many threads as read, delete and renew at once."""
    return fleet.sqs(connections=2 * reading.THREADS)


def select(
    fleet: Fleet,
    worker: Worker,
    chosen: Filter,
    holder: Holder,
    *,
    client: SQSClient,
    file: BinaryIO,
    name: str,
    limit: int | None = None,
    stop: threading.Event,
) -> Exported:
    """`transfer.export` with a progress bar."""
    depth = reading.depth_of(client, worker.dead_letter_url)
    with progress("reading", depth.total) as advance:
        return transfer.export(
            fleet,
            worker,
            chosen,
            holder,
            file,
            name=name,
            depth=depth,
            limit=limit,
            stop=stop,
            on_letter=lambda _: advance(1),
        )


def letters(count: int) -> str:
    """`count` letters, in words."""
    return "1 letter" if count == 1 else f"{count:,} letters"


def print_json(value: msgspec.Struct) -> None:
    """On standard output."""
    typer.echo(msgspec.json.encode(value).decode())


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; what it gives is told how many more are done."""
    screen = Console(stderr=True)
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        disable=not screen.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
