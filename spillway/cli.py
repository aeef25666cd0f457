"""The command line: which commands there are, and how every one of them ends when something goes wrong."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import NoReturn

import typer

from spillway.aws_errors import explained
from spillway.commands.demo import demo
from spillway.commands.dlq import app as dlq
from spillway.commands.doctor import doctor
from spillway.commands.drill import failover_drill
from spillway.commands.generate import generate
from spillway.commands.migrate import migrate
from spillway.commands.new import app as new
from spillway.commands.pinned import pinned
from spillway.commands.pins import pins
from spillway.commands.rdsproxy import app as rdsproxy
from spillway.commands.send import send
from spillway.commands.status import status
from spillway.commands.up import up
from spillway.errors import SpillwayError
from spillway.interrupts import INTERRUPTED
from workers.runtime.failures import WorkerError

app = typer.Typer(
    help="Spillway: SQS events into PostgreSQL through Lambda, whole batches at a time. "
    "With --debug anywhere, errors show their traceback.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
for command in (demo, up, send, status, doctor, failover_drill, pinned, migrate, generate, pins):
    app.command()(command)
app.add_typer(dlq, name="dlq")
app.add_typer(rdsproxy, name="rdsproxy")
app.add_typer(new, name="new")


def main() -> NoReturn:
    """Run the command line and exit: 0 success, 1 a failure that was explained, 2 wrong usage, 130 Ctrl-C."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or bool(os.environ.get("SPILLWAY_DEBUG"))
    if not debug:
        # Else Python prints every library's warnings to the terminal; what matters is in the error that we explain.
        logging.getLogger().addHandler(logging.NullHandler())
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="spillway")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"spillway: {explain(error)}", file=sys.stderr)  # noqa: T201  (typer.echo could fail as we did)
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(0)


def explain(error: Exception) -> str:
    """`error` as one sentence and, where we have it, what to do."""
    if isinstance(error, SpillwayError):
        return f"{error.message}\n{error.hint}" if error.hint else error.message
    if isinstance(error, WorkerError):
        return str(error)
    if type(error).__module__.startswith("botocore."):
        return explain(explained(error))
    if isinstance(error, FileNotFoundError) and (error.strerror or "").startswith("No usable temporary directory"):
        return f"{error.strerror}.\nSet TMPDIR to a writable directory, on a disk that is not full."
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}."
    return (
        f"{type(error).__name__}: {error}\nThis was not expected; run it again with --debug to see where it happened."
    )
