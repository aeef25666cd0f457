"""`spillway doctor`: what is wrong with the fleet, and what to do about it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from spillway import screens
from spillway.errors import SpillwayError
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet

DSN_VARIABLE = "SPILLWAY_DSN"


class ListedCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `--list --json`."""

    check: str
    area: str
    about: str
    docs: str


def doctor(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="CHECK",
            help="Run this check alone; may be repeated.",
            autocompletion=lambda incomplete: _known("name", incomplete),
        ),
    ] = None,
    area: Annotated[
        list[str] | None,
        typer.Option(
            "--area",
            metavar="AREA",
            help="Run the checks of this area; may be repeated.",
            autocompletion=lambda incomplete: _known("area", incomplete),
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the checks and do nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List what passed and was skipped, too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML there as well.", dir_okay=False)
    ] = None,
    dsn: Annotated[
        str | None,
        typer.Option(
            "--dsn",
            envvar=DSN_VARIABLE,
            show_envvar=False,
            help=f"The database as an administrator, directly and not through a proxy; better in {DSN_VARIABLE}. "
            "The local stack's is known.",
        ),
    ] = None,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Check queues, functions, mappings, times, database, login, proxy, network, secrets and alarms.

    Nothing is changed. What fails or deserves a look is printed with the fix; docs/doctor.md explains every check. A
    check that these credentials may not make is skipped and names the permission.

    \b
    Examples:
      spillway doctor                                      the local stack
      spillway doctor --stack spillway-prod --profile ops  a stack on AWS
      spillway doctor --area queues --area mappings        some areas
      spillway doctor --only chain-of-times --verbose      one check, with what passed
      spillway doctor --stack spillway-prod --junit doctor.xml --json

    Exit status: 0 nothing failed (warnings are printed); 1 something failed; 2 wrong usage.
    """
    from spillway.doctor.facts import Facts  # noqa: PLC0415  (with the checks, 0.1 s)
    from spillway.doctor.registry import run, select  # noqa: PLC0415
    from spillway.doctor.report import junit as as_junit  # noqa: PLC0415
    from spillway.doctor.report import report, screen  # noqa: PLC0415

    try:
        selected = select(only or (), area or ())
    except SpillwayError as error:
        raise typer.BadParameter(f"{error.message} {error.hint}") from error
    if list_:
        _list(
            [ListedCheck(check=one.name, area=one.area, about=one.about, docs=one.docs) for one in selected], json=json
        )
        return
    fleet = find_fleet(stack, region, profile)
    console = screens.console()
    with console.status("Looking at the fleet") if console.is_terminal and not json else nullcontext():
        findings = run(Facts(fleet, dsn), selected)
    found = report(fleet, findings)
    if junit is not None:
        junit.write_bytes(as_junit(found))
    if json:
        typer.echo(msgspec.json.encode(found))
    else:
        console.print(screen(found, verbose=verbose))
    if found.verdict == "fail":
        raise typer.Exit(1)


def _known(what: str, incomplete: str) -> list[str]:
    """The names of checks, or the areas, that begin so: for the shell to complete."""
    from spillway.doctor.registry import checks  # noqa: PLC0415

    return list(dict.fromkeys(name for one in checks() if (name := getattr(one, what)).startswith(incomplete)))


def _list(listed: list[ListedCheck], *, json: bool) -> None:
    if json:
        typer.echo(msgspec.json.encode(listed))
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold", max_width=60)  # all fits 100 columns
    before = ""
    for one in listed:
        table.add_row("" if one.area == before else one.area, one.check, one.about)
        before = one.area
    screens.console().print(table)
