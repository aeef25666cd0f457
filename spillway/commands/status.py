"""`spillway status`: what the running local stack is doing."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from spillway import screens
from spillway.aws import sqs_client
from spillway.errors import SpillwayError
from spillway.stack.snapshot import Snapshot, depth, status_file
from spillway.stack.state import read_state


def status(*, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show queues, outcomes and connections of the local stack that `spillway up` runs.

    Exit status: 0; 1 when no stack is running.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (with boto3, 0.2 s)

    state = read_state()
    if state is None:
        raise SpillwayError("No local stack is running.", "Start one with `spillway up`.")
    try:
        snapshot = msgspec.json.decode(status_file(state.log_dir).read_bytes(), type=Snapshot)
    except (OSError, msgspec.DecodeError) as error:
        raise SpillwayError("The local stack is still starting.", "Try again in a moment.") from error
    # The owner's counts are up to a second old; the queues are asked now.
    client = sqs_client(state.endpoint_url, state.region)
    try:
        queues = {name: depth(client, url, state.dead_letter_queues.get(name)) for name, url in state.queues.items()}
    except (BotoCoreError, ClientError) as error:
        raise SpillwayError(
            f"The stack's SQS endpoint {state.endpoint_url} does not answer as SQS does: {error}.",
            f"Look at what `spillway up` says; it is process {state.pid}.",
        ) from error
    snapshot = msgspec.structs.replace(snapshot, queues=queues)
    if json:
        typer.echo(msgspec.json.encode(snapshot))
        return
    console = screens.console()
    table = Table(box=None, pad_edge=False)
    for heading in ("queue", "waiting", "in flight", "dead letters"):
        table.add_column(heading, justify="left" if heading == "queue" else "right")
    for name, queue in snapshot.queues.items():
        table.add_row(name, f"{queue.waiting:,}", f"{queue.in_flight:,}", f"{queue.dead:,}")
    console.print(table)
    outcomes = ", ".join(f"{count:,} {name}" for name, count in snapshot.outcomes.items()) or "none yet"
    console.print(f"\nmessages      {outcomes}")
    console.print(f"invocations   {snapshot.invocations:,} in {snapshot.environments} execution environments")
    if snapshot.failed:
        causes = ", ".join(f"{count:,} {reason}" for reason, count in snapshot.failed.items())
        console.print(f"given back    {causes}")
    console.print(f"connections   {snapshot.connections} to the database")
    if (proxy := snapshot.proxy) is not None:
        waits = f"p50 {screens.duration(proxy.borrow_p50_s)}, p99 {screens.duration(proxy.borrow_p99_s)}"
        console.print(
            f"RDS Proxy     client connections {proxy.client_connections:,}, database connections "
            f"{proxy.database_connections:,} of {proxy.max_database_connections:,}"
        )
        console.print(f"borrowing     {waits}, waiting {proxy.waiting:,}, timed out {proxy.borrow_timeouts:,}")
        console.print(f"pinned        now {proxy.pinned:,}, since the start {proxy.pinned_total:,}")
    console.print(f"running for   {time.time() - state.started_at:,.0f} s as process {state.pid}")
    console.print(f"logs          {state.log_dir}", soft_wrap=True)
    if snapshot.last_error:
        console.print(f"last error    {snapshot.last_error}")
