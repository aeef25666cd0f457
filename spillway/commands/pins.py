"""`spillway pins`: the linter for SQL that would pin an RDS Proxy session."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spillway.pins.formats import RENDER, Format


def pins(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Folders, .sql, .py, logs, .csv.")],
    *,
    format: Annotated[Format, typer.Option(help="How to print what was found.")] = Format.TEXT,
    lenient: Annotated[bool, typer.Option("--lenient", help="Leave out what AWS's documents leave unsettled.")] = False,
) -> None:
    """Find SQL that would pin an RDS Proxy session, or leak past it to another client.

    Reads .sql and .py files, in folders too; PostgreSQL logs and pg_stat_statements as .csv when named.
    `-- pins: allow <reason>` on or above a line (`#` in Python) allows it. Every rule: docs/pinning.md.

    Exit status: 0 nothing found; 1 findings; 2 a wrong call, or a file that cannot be read.
    """
    from spillway.pins.lint import files, lint  # noqa: PLC0415  (with PostgreSQL's parser, 0.1 s)

    read = list(files(paths))
    findings = [finding for file in read for finding in lint(file, strict=not lenient)]
    if report := RENDER[format](findings, len(read)):
        typer.echo(report)
    if findings:
        raise typer.Exit(1)
