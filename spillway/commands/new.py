"""`spillway new`: what a new part of the fleet starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Write what a new part of the fleet starts from.",
)


@app.command()
def worker(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A plural in lower case, such as invoices.")],
    *,
    singular: Annotated[
        str | None, typer.Option(help="For event types, claims and classes.", show_default="made of NAME")
    ] = None,
    pattern: Annotated[
        Literal["upsert"], typer.Option(help="upsert: one row per key, the highest version wins, no locks.")
    ] = "upsert",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; list what would be written.")] = False,
    root: Annotated[Path, typer.Option(help="The repository.")] = Path(),
) -> None:
    """Write a worker that is complete: make test passes as it is, and spillway up runs it.

    Contract, handler, SQL function, migration, samples, history, test and README, its part of template.yaml, and what
    spillway generate makes of them. All of it is written, or nothing.

    For a queue in strict order (FIFO), for locks or for a log without gaps there is no template: copy workers/payments,
    workers/inventory or workers/audit.
    """
    from spillway.scaffold.names import Names  # noqa: PLC0415  (only this command needs it)
    from spillway.scaffold.worker import files_of, write  # noqa: PLC0415

    names = Names.of(name, singular)
    files = files_of(names, pattern, root)
    lines = [f"{'changed' if (root / path).exists() else 'new':<8}{path}" for path in sorted(files)]
    if dry_run:
        typer.echo("\n".join([*lines, "Nothing was written."]))
        return
    write(files, root)
    migration = next(path for path in files if path.startswith("workers/migrate/"))
    typer.echo("\n".join(lines))
    typer.echo(f"""
The worker {name} takes {names.singular}.created and {names.singular}.updated. To make it yours:
  1. workers/{name}/contract.py: what its events carry, instead of label and quantity
  2. {migration}, workers/{name}/apply.sql, workers/{name}/handler.py: what is kept
  3. spillway/samples/{name}.py, spillway/histories/{name}.py: examples, and what must become of them
  4. spillway generate, then make test
  5. spillway up, and from another terminal: spillway send {name} FILE.jsonl
workers/{name}/README.md says more.""")
