"""`spillway pinned`: which statements pin sessions of the RDS Proxy, and the way out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from spillway import screens
from spillway.dlq.filters import read_moment
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet
from spillway.fleet.proxies import require_proxy
from spillway.pinned.aws import MAX_LINES, logged_pins, pinned_now
from spillway.pinned.groups import Group, group
from spillway.pinned.local import local_pins
from spillway.pinned.report import PinnedReport, screen

if TYPE_CHECKING:
    from spillway.fleet.fleet import Fleet


def pinned(
    *,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="How far back to look: ISO 8601, or an age like 90m, 12h, 3d.")
    ] = "3h",
    limit: Annotated[int, typer.Option(min=1, help="How many kinds of pins to show.")] = 20,
    proxy: Annotated[str | None, typer.Option(help="Another RDS Proxy than the stack's own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Show what pins sessions of the RDS Proxy, by statement, with the way out of each.

    A pinned session has a database connection to itself until its client disconnects, so the pool runs dry. The
    proxy's log says why: on AWS it is read by CloudWatch Logs Insights, which is billed by what it scans; locally it
    is the emulator's. docs/pinning.md has every rule; `spillway pins` finds such statements without running them.

    \b
    Examples:
      spillway pinned                               the local stack, the last three hours
      spillway pinned --stack shop --since 2d
      spillway pinned --stack shop --proxy shared   a proxy that was brought along
      spillway pinned --json | jq '.groups[] | {rule, times, statement}'

    Exit status: 0, also when something is pinned; 1 when the log cannot be read; 2 wrong usage; 130 interrupted by
    Ctrl-C.
    """
    now = datetime.now(UTC)
    begin = read_moment(since, now)
    if begin >= now:
        raise typer.BadParameter("expected a moment in the past", param_hint="--since")
    fleet = find_fleet(stack, region, profile)
    if fleet.local is not None and proxy is not None:
        raise typer.BadParameter("the local stack has one proxy only", param_hint="--proxy")
    name, groups, pinned_sessions = _read(fleet, proxy, begin, now)
    total = sum(one.times for one in groups)
    report = PinnedReport(
        fleet=fleet.name,
        proxy=name,
        since=begin,
        until=now,
        pinned_now=pinned_sessions,
        pins=total,
        complete=fleet.local is not None or total < MAX_LINES,
        group_count=len(groups),
        groups=groups[:limit],
    )
    if json:
        typer.echo(msgspec.json.encode(report))
    else:
        screens.console().print(screen(report))


def _read(fleet: Fleet, proxy: str | None, since: datetime, until: datetime) -> tuple[str, list[Group], int | None]:
    if fleet.local is not None:
        return "emulator", *local_pins(fleet.local, since)
    name = require_proxy(fleet, proxy)
    lines = logged_pins(fleet.client("logs"), name, since, until)
    return name, group(lines), pinned_now(fleet, name, until)
