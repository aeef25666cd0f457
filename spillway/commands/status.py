"""`spillway status`: what a fleet is doing now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from spillway import screens
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet
from spillway.interrupts import interrupts

if TYPE_CHECKING:
    from collections.abc import Callable

    from spillway.fleet.fleet import Fleet
    from spillway.status.reading import Reading

#: Seconds between two looks, unless --every says otherwise, and on AWS the least there may be.
LOCAL_S, AWS_S = 2.0, 10.0


def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[
        float | None,
        typer.Option(
            "--every", min=0.5, help="With --watch: seconds between two looks (default: 2; on AWS 10, and no less)."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch a document a line.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Show on one screen what a fleet is doing: the local stack that runs, or one on AWS.

    Per queue: messages waiting, in flight and dead-lettered, the age of the oldest, what becomes of messages each
    second, and its event source mapping with the concurrency now, of the maximum. Then the RDS Proxy's connections,
    pins and borrow latency, what breakers turned away, what the governor holds down, and alarms in ALARM. The last
    lines name the commands that go further. Looking receives no message.

    \b
    spillway status
    spillway status --watch --every 1
    spillway status --stack spillway-prod --region eu-west-1 --watch
    spillway status --json | jq '.queues[].dead'

    On AWS the metrics are CloudWatch's, of complete minutes, and one to three minutes late. A look at four workers
    asks for 71 metrics at $0.01 per 1,000: $0.0007, and $0.26 for an hour of --watch. A part that the credentials may
    not read says so, with the action that is missing; the rest is shown. The local age of the oldest message is that
    of the latest batches, its latencies are since the start.

    Exit status: 0, also after Ctrl-C; 1 when there is no such stack, or it does not answer.
    """
    if every is not None and not watch:
        raise typer.BadParameter("it says how often --watch looks: add --watch.", param_hint="--every")
    fleet = find_fleet(stack, region, profile)
    least = LOCAL_S if fleet.local is not None else AWS_S
    if every is not None and fleet.local is None and every < AWS_S:
        raise typer.BadParameter(
            f"at least {AWS_S:.0f} on AWS: every look costs, and metrics come by the minute.", param_hint="--every"
        )
    read = partial(_read, _reader(fleet), stack=stack, region=region, profile=profile)
    console = screens.console()
    if watch:
        # Not above: what it needs takes 0.1 s.
        from spillway.status.watch import watch as look_again  # noqa: PLC0415

        with interrupts() as stop:
            look_again(read, console, stop, every_s=every or least, json=json)
        return
    reading = read()
    if json:
        typer.echo(msgspec.json.encode(reading))
        return
    from spillway.status.screen import Screen  # noqa: PLC0415

    console.print(Screen(reading))


def _reader(fleet: Fleet) -> Callable[[], Reading]:
    if fleet.local is not None:
        from spillway.status.local import LocalReader  # noqa: PLC0415

        return LocalReader(fleet).read
    from spillway.status.aws import AwsReader  # noqa: PLC0415

    return AwsReader(fleet).read


def _read(read: Callable[[], Reading], *, stack: str | None, region: str | None, profile: str | None) -> Reading:
    from spillway.status.reading import with_next_commands  # noqa: PLC0415

    return with_next_commands(read(), stack=stack, region=region, profile=profile)
