"""`spillway dlq`: dead letters understood, redriven, moved to a file and back."""

from __future__ import annotations

from collections.abc import Callable

import typer

from spillway.commands.dlq.discarding import discard
from spillway.commands.dlq.exporting import export
from spillway.commands.dlq.importing import import_
from spillway.commands.dlq.journaled import history
from spillway.commands.dlq.look import list_queues, peek, show
from spillway.commands.dlq.redriving import redrive

app = typer.Typer(
    help="Understand dead letters, and redrive exactly those that should be.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_queues,
    "show": show,
    "peek": peek,
    "redrive": redrive,
    "history": history,
    "export": export,
    "import": import_,
    "discard": discard,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)
