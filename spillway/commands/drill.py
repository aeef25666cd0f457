"""`spillway failover-drill`: a failover on purpose, and who noticed it for how long."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from spillway import screens
from spillway.contracts import CONTRACTS
from spillway.drill.drill import Drill, Options, Progress
from spillway.drill.probes import CONTRACT, CUSTOMER, run_name
from spillway.drill.report import screen
from spillway.drill.verdict import remove_rows
from spillway.errors import SpillwayError
from spillway.fleet.canaries import watch
from spillway.fleet.find import ProfileOption, RegionOption, StackOption, find_fleet
from spillway.interrupts import INTERRUPTED, interrupts
from spillway.producer import Producer

if TYPE_CHECKING:
    from spillway.drill.failover import Failover
    from spillway.fleet.fleet import Fleet, Worker

MISSED = 3
#: Given to the last probes beyond the queue's visibility timeout: that is when those of a killed invocation come again.
GRACE_S = 30.0
#: How often the workers' log is read: a file, or CloudWatch Logs, whose quota is 5 calls/s of FilterLogEvents.
LOCAL_POLL_S, AWS_POLL_S = 0.2, 3.0
#: The workers' clocks, and this one.
SKEW = timedelta(minutes=1)


def failover_drill(
    *,
    worker: Annotated[str, typer.Option(help="The worker that gets the probes; it must take orders.")] = "orders",
    rate: Annotated[float, typer.Option(min=0.1, max=100, help="Probes per second.")] = 5.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long probes flow after the failover began.")] = 120.0,
    outage: Annotated[float, typer.Option(min=0.1, max=600, help="Local stack: seconds without a database.")] = 10.0,
    goal: Annotated[float, typer.Option(min=0, help="The longest interruption that is accepted, in seconds.")] = 35.0,
    grace: Annotated[
        float | None,
        typer.Option(min=0, help="How long the last probes may take (default: the visibility timeout and 30 s)."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a failover on AWS.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
    profile: ProfileOption = None,
) -> None:
    """Fail the database over while probe events flow, and report who was interrupted for how long.

    On AWS an RDS instance is rebooted with failover and a cluster fails over to a reader, after you have typed the
    stack's name; a database that has nothing to fail over to is left alone. On the local stack the emulated RDS Proxy
    loses its database for --outage seconds. Nothing is broken before the first probes are done.

    The probes are orders of the customer spillway-drill. They stay as rows; the statement that removes them is printed
    at the end. Events must be neither lost nor doubled, and no interruption may be longer than the goal.

    \b
    Examples:
      spillway failover-drill                                    the local stack, for two minutes
      spillway failover-drill --outage 30 --seconds 60 --goal 40
      spillway failover-drill --stack shop --region eu-west-1    asks before it acts
      spillway failover-drill --stack shop --yes --json > drill.json

    Exit status: 0 the goal is met; 3 it is missed; 1 the drill could not start; 2 wrong usage; 130 interrupted by
    Ctrl-C.
    """
    fleet = find_fleet(stack, region, profile)
    target = _target(fleet, worker)
    if fleet.local is not None and seconds <= outage:
        raise typer.BadParameter(
            f"expected more than --outage ({outage:g} s), else nobody sees its end", param_hint="--seconds"
        )
    failover = _failover(fleet, outage)
    failover.check()
    options = Options(
        rate=rate,
        seconds=seconds,
        goal_s=goal,
        grace_s=grace if grace is not None else _visibility(fleet, target) + GRACE_S,
        poll_s=LOCAL_POLL_S if fleet.local is not None else AWS_POLL_S,
    )
    # What goes on is told on standard error, so that standard output is the report and nothing else.
    console = Console(stderr=True, highlight=False)
    _announce(target, failover, options, console)
    if fleet.local is None and not yes:
        _ask(fleet)
    run = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(2)}"
    with interrupts() as interrupted, _shown(console, run) as show:
        drill = Drill(
            failover,
            _producer(fleet, target),
            watch(fleet, target, run_name(run), datetime.now(UTC) - SKEW),
            run,
            options,
            interrupted=interrupted,
            say=lambda phase: console.print(f"{datetime.now():%H:%M:%S}  {phase}", soft_wrap=True, markup=False),
            show=show,
        )
        try:
            report = drill.run(fleet.name, target.name)
        except BaseException:
            _say_left(drill, run, console)
            raise
    if report is None:
        _say_left(drill, run, console)
        raise typer.Exit(INTERRUPTED)
    if json:
        typer.echo(msgspec.json.encode(report))
    else:
        screens.console().print(screen(report))
    raise typer.Exit(0 if report.goal_met else MISSED)


def _target(fleet: Fleet, worker: str) -> Worker:
    found = fleet.find_worker(worker)
    if CONTRACTS.get(found.name) != CONTRACT:
        able = ", ".join(name for name in fleet.workers if CONTRACTS.get(name) == CONTRACT) or "none"
        raise SpillwayError(
            f"The worker {found.name} takes no orders, and the probes are orders.", f"Workers that do: {able}."
        )
    return found


def _failover(fleet: Fleet, outage: float) -> Failover:
    if fleet.local is not None:
        from spillway.drill.local import LocalFailover  # noqa: PLC0415

        return LocalFailover(fleet.local, outage)
    from spillway.drill.aws import AwsFailover  # noqa: PLC0415

    return AwsFailover(fleet)


def _visibility(fleet: Fleet, worker: Worker) -> float:
    found = fleet.sqs().get_queue_attributes(QueueUrl=worker.queue_url, AttributeNames=["VisibilityTimeout"])
    return float(found["Attributes"]["VisibilityTimeout"])


def _producer(fleet: Fleet, worker: Worker) -> Producer:
    # Each send is tried once, here and in the client: a failed one is what the drill is there to see.
    from spillway import aws  # noqa: PLC0415

    endpoint = fleet.local.endpoint_url if fleet.local is not None else None
    client = aws.sqs_client(endpoint, fleet.region, fleet.profile, attempts=1)
    return Producer(client, worker.queue_url, CONTRACT, max_attempts=1)


def _announce(worker: Worker, failover: Failover, options: Options, console: Console) -> None:
    probes = options.rate * options.seconds
    console.print(
        f"This fails over {failover.title}: until another takes its place, nothing can be written."
        f"\nAbout {probes:,.0f} probes go to {worker.queue}: orders of the customer {CUSTOMER}, which stay as rows.",
        soft_wrap=True,
        markup=False,
    )


def _ask(fleet: Fleet) -> None:
    # Not typer.prompt: it writes to standard output, which is the report's.
    typer.echo(f"Type {fleet.name} to go on: ", nl=False, err=True)
    if sys.stdin.readline().strip() != fleet.name:
        raise SpillwayError("That is not the stack's name: nothing was failed over.", "--yes does not ask.")


@contextmanager
def _shown(console: Console, run: str) -> Iterator[Callable[[Progress], None]]:
    """A line that tells what goes on, on a terminal only."""
    with console.status(f"drill {run}") as status:

        def show(progress: Progress) -> None:
            trouble = f", database: {progress.trouble}" if progress.trouble else ", database answers"
            waiting = progress.sent - progress.done
            line = f"{progress.sent:,} sent, {progress.done:,} done, {waiting:,} waiting{trouble}"
            status.update(line[: max(console.width - 4, 20)].replace("[", "\\["))

        yield show


def _say_left(drill: Drill, run: str, console: Console) -> None:
    """What an unfinished drill leaves behind."""
    if drill.started:
        console.print(f"The failover was started and goes on: {drill.started}.", soft_wrap=True, markup=False)
    elif drill.failover_at:
        console.print("The failover was asked for, and not confirmed.")
    else:
        console.print("No failover was started.")
    if drill.began:
        console.print(f"Probes may become rows; remove them with: {remove_rows(run)}", soft_wrap=True, markup=False)
