"""Looks at a fleet again and again, and goes on when a look fails."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.live import Live

from spillway.aws_errors import explained
from spillway.errors import SpillwayError
from spillway.rdsproxy.watch import one_line
from spillway.status.reading import FleetGoneError, Reading
from spillway.status.screen import Screen, line

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from rich.console import Console

#: Seconds between the lines where there is no terminal.
PRINT_S = 10.0


def watch(read: Callable[[], Reading], console: Console, stop: threading.Event, *, every_s: float, json: bool) -> None:
    """Show what `read` gives until `stop` is set: as JSON, one document a line; as a live screen; or line by line.

    A look that fails is told, and another made. Raises FleetGoneError when there is nothing left to look at.
    """
    if json:
        for reading, error in _looks(read, stop, every_s):
            if error:
                print(error, file=sys.stderr, flush=True)  # noqa: T201  (documents only on standard output)
            else:
                typer.echo(msgspec.json.encode(reading))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            for reading, error in _looks(read, stop, every_s):
                live.update(Screen(reading, error, live=True) if reading is not None else error, refresh=True)
    else:
        for reading, error in _looks(read, stop, max(every_s, PRINT_S)):
            text = error or (line(reading) if reading is not None else "")
            console.print(text, soft_wrap=True, markup=False)


def _looks(read: Callable[[], Reading], stop: threading.Event, every_s: float) -> Iterator[tuple[Reading | None, str]]:
    """The latest reading, None while there is none, and what went wrong with the look after it."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (with boto3, 0.2 s)

    latest: Reading | None = None
    while not stop.is_set():
        error = ""
        try:
            latest = read()
        except FleetGoneError:
            raise
        except SpillwayError as raised:
            error = raised.message
        except (BotoCoreError, ClientError) as raised:
            error = explained(raised).message
        yield latest, one_line(error)
        stop.wait(every_s)
