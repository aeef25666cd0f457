"""How far a redrive is, on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Task


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="dim")


@contextmanager
def progress(what: str, total: int | None, *, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A bar on standard error, if that is a terminal, gone at the end: done of total, rate, time left, and a note.

    What it gives is called with how much is done now and the note.
    """
    screen = Console(stderr=True)
    bar = Progress(
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="yellow", markup=False),
        console=screen,
        disable=not screen.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total, completed=done, note="")

        def update(now: int, note: str = "") -> None:
            # What is left is an estimate of SQS's: done may be more.
            shown = bar.tasks[0].total
            bar.update(task, completed=now, total=shown if shown is None else max(shown, now), note=note)

        yield update
