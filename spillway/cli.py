"""The command line: which commands there are, and how every one of them ends when something goes wrong."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from importlib import import_module
from typing import NoReturn

import typer

from spillway.aws_errors import explained
from spillway.errors import SpillwayError
from spillway.interrupts import INTERRUPTED
from workers.runtime.failures import WorkerError

#: Where every command is, below spillway.commands, in the order of the help; `app` is a group of commands.
COMMANDS = {
    "demo": "demo:demo",
    "up": "up:up",
    "send": "send:send",
    "status": "status:status",
    "doctor": "doctor:doctor",
    "failover-drill": "drill:failover_drill",
    "pinned": "pinned:pinned",
    "migrate": "migrate:migrate",
    "generate": "generate:generate",
    "pins": "pins:pins",
    "dlq": "dlq:app",
    "rdsproxy": "rdsproxy:app",
    "new": "new:app",
}


def program(asked: str | None = None) -> typer.Typer:
    """The command line with the command that was asked for, or with all of them if there is no such.

    Only the one is imported: the others would take longer than most commands do.
    """
    app = typer.Typer(
        help="Spillway: SQS events into PostgreSQL through Lambda, whole batches at a time. "
        "With --debug anywhere, errors show their traceback.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
    )
    app.callback()(lambda: None)  # else typer takes an only command for the program itself
    for name in [asked] if asked in COMMANDS else COMMANDS:
        module, _, attribute = COMMANDS[name].partition(":")
        command = getattr(import_module(f"spillway.commands.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main() -> NoReturn:
    """Run the command line and exit: 0 success, 1 a failure that was explained, 2 wrong usage, 130 Ctrl-C."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or bool(os.environ.get("SPILLWAY_DEBUG"))
    if not debug:
        # Else Python prints every library's warnings to the terminal; what matters is in the error that we explain.
        logging.getLogger().addHandler(logging.NullHandler())
    words = [argument for argument in arguments if argument != "--debug"]
    try:
        program(words[0] if words else None)(words, prog_name="spillway")
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
