"""`spillway up`: the local stack in the foreground, for other terminals to use."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from spillway import screens
from spillway.errors import SpillwayError
from spillway.interrupts import interrupts
from spillway.stack.containers import write_variables
from spillway.stack.local import LocalStack, Route, StackOptions
from spillway.stack.processes import Processes
from spillway.stack.snapshot import History, Snapshot, status_file, take
from spillway.stack.state import StackState, read_state, remove_state, write_state
from spillway.stack.template import TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

#: How often `spillway status` gets new numbers and a terminal's status line is refreshed, in seconds.
REFRESH_S = 1.0
#: How often the line is printed, if it changed, where there is no terminal.
PRINT_S = 10.0

#: Where samconfig.toml lets `sam local invoke` look for the functions' variables; SAM's own folder, which git ignores.
ENV_VARS = Path(".aws-sam/local-env.json")
FOR_CONTAINERS = "Containers find the stack with the variables in {file}: sam local invoke FUNCTION -e EVENT.\n"


RouteOption = Annotated[
    Route,
    typer.Option(
        envvar="DATABASE_ROUTE",
        show_envvar=True,
        help="The workers' way to PostgreSQL: the RDS Proxy with IAM tokens and TLS, or direct with a password.",
    ),
]


def up(
    *,
    route: RouteOption = "proxy",
    sqs_endpoint: Annotated[
        str | None, typer.Option(help="An SQS-compatible server, or AWS's own, instead of the embedded one.")
    ] = None,
    sqs_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the embedded SQS server.")] = None,
    postgres_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of PostgreSQL.")] = None,
    proxy_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the RDS Proxy.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Keep PostgreSQL's data here from run to run.")] = None,
    ramp: Annotated[bool, typer.Option(help="Scale up as slowly as Lambda does.")] = True,
    docker: Annotated[
        bool, typer.Option("--docker", help="Let containers use it, too: for `sam local invoke` and `start-lambda`.")
    ] = False,
    env_vars: Annotated[
        Path | None,
        typer.Option(help=f"With --docker: the file for SAM's --env-vars (default: {ENV_VARS} beside the template)."),
    ] = None,
    parameter: Annotated[list[str], typer.Option("--parameter", "-P", help="A template parameter, Name=value.")] = [],  # noqa: B006  (typer copies it)
    template: Annotated[Path, typer.Option(help="The SAM template to run.")] = TEMPLATE,
) -> None:
    """Run the local stack in the foreground until Ctrl-C.

    It is made from template.yaml: the same queues, batch sizes, windows, times and concurrency. While it runs,
    `spillway send`, `spillway status`, psql and any AWS SDK work against it from other terminals.

    Exit status: 0 after Ctrl-C; 1 when something could not start or died.
    """
    console = screens.console()
    refuse_a_second_stack()
    if sqs_endpoint is not None and not sqs_endpoint.startswith(("http://", "https://")):
        raise SpillwayError(
            f"--sqs-endpoint {sqs_endpoint!r} is not a URL.", "Expected one like http://127.0.0.1:4566."
        )
    if env_vars is not None and not docker:
        raise SpillwayError("--env-vars names a file for containers, which only --docker lets in.", "Add --docker.")
    if proxy_port is not None and route == "direct":
        raise SpillwayError("--proxy-port is for the RDS Proxy, which --route direct leaves out.", "Drop one of them.")
    options = StackOptions(
        route=route,
        sqs_endpoint=sqs_endpoint,
        sqs_port=sqs_port,
        postgres_port=postgres_port,
        proxy_port=proxy_port,
        data_dir=data_dir,
        ramp=ramp,
        docker=docker,
        template=template,
        parameters=dict(_pairs(parameter)),
    )
    with interrupts() as interrupted, Processes() as processes:
        stack = LocalStack(processes, options)
        if start(stack, console, interrupted):
            try:
                publish(stack)
                describe(stack, console)
                with ExitStack() as until_stopped:
                    if docker:
                        file = env_vars or template.absolute().parent / ENV_VARS
                        directory = processes.temporary_directory("spillway-variables-")
                        write_variables(file, stack.container_variables(), directory)
                        until_stopped.callback(file.unlink, missing_ok=True)
                        console.print(FOR_CONTAINERS.format(file=file), soft_wrap=True, markup=False)
                    watch(stack, console, interrupted, until_stopped.enter_context(stack.watcher()))
            finally:
                remove_state()
        console.print("Stopping ...")
        stack.stop()


def refuse_a_second_stack() -> None:
    """Raise SpillwayError if a stack is published already: other terminals could not tell which one they talk to."""
    if (running := read_state()) is not None:
        raise SpillwayError(
            f"A local stack is running already (process {running.pid}, SQS at {running.endpoint_url}).",
            "Use it, stop it, or set SPILLWAY_STATE to another file to run a second one.",
        )


def start(stack: LocalStack, console: Console, interrupted: threading.Event) -> bool:
    """Start `stack` and show what it is at; False if it was interrupted meanwhile."""
    with console.status("Starting") as line:

        def report(what: str) -> None:
            if interrupted.is_set():
                raise InterruptedError
            line.update(what)

        try:
            stack.start(report)
        except InterruptedError:
            return False
    return not interrupted.is_set()


def publish(stack: LocalStack) -> None:
    """Let other terminals find the stack."""
    workers = stack.workers()
    write_state(
        StackState(
            pid=os.getpid(),
            endpoint_url=stack.endpoint_url,
            region=stack.client.meta.region_name,
            queues={name: stack.queue_urls[queue] for name, (queue, _) in workers.items()},
            dead_letter_queues={name: stack.queue_urls[dead] for name, (_, dead) in workers.items() if dead},
            dsn=stack.dsn,
            started_at=time.time(),
            log_dir=str(stack.log_dir),
            proxy_admin_url=stack.proxy.admin_url if stack.proxy is not None else None,
            functions=stack.functions(),
            login=stack.login,
            template=str(stack.template),
            parameters={name: _as_text(value) for name, value in stack.fleet.parameters.items()},
        )
    )


def describe(stack: LocalStack, console: Console) -> None:
    """Print how to reach the stack."""
    facts = [("SQS endpoint", stack.endpoint_url)]
    for name, (queue, dead) in stack.workers().items():
        facts.append((f"{name} queue", stack.queue_urls[queue]))
        if dead:
            facts.append(("  dead letters", stack.queue_urls[dead]))
    for schedule in stack.scheduled():
        running = stack.schedules.get(schedule.logical_id)
        if running is None or (next_at := running.stats.next_at) is None:
            when = "not run here: only rate(...) is"
        else:
            when = f"first at {datetime.fromtimestamp(next_at).astimezone():%H:%M:%S}"
        facts.append((stack.worker_of(schedule), f"{schedule.expression}, {when}"))
    facts.append(("PostgreSQL", stack.dsn))
    if stack.proxy is None:
        facts += [
            ("RDS Proxy", "none: the workers connect to PostgreSQL directly, with a password, without TLS"),
            ("  workers", stack.worker_dsn),
        ]
    else:
        borrow, region = stack.fleet.parameters["DatabaseBorrowTimeout"], stack.client.meta.region_name
        facts += [
            (
                "RDS Proxy",
                f"{stack.proxy.host}:{stack.proxy.port}, {stack.proxy.max_connections} database connections, "
                f"{borrow} s to borrow one",
            ),
            ("  workers", stack.worker_dsn),
            ("  password", f"an IAM token for {region}, signed with access key {stack.access_key}"),
            ("  CA file", str(stack.proxy.ca_file)),
            ("  metrics", f"{stack.proxy.admin_url}/metrics"),
            ("  watch it", f"spillway rdsproxy watch --admin-url {stack.proxy.admin_url}"),
        ]
    facts.append(("logs", str(stack.log_dir)))
    # No table: whatever is copied from here must be whole, however narrow the terminal is.
    for name, fact in facts:
        console.print(f"{name:<16}{fact}", soft_wrap=True, markup=False)
    console.print("From another terminal: spillway send orders FILE.jsonl, spillway status, psql DSN. Ctrl-C stops.\n")


def watch(
    stack: LocalStack, console: Console, interrupted: threading.Event, admin: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """Show the status line until interrupted. Raises StackError when a server dies."""
    file, history = status_file(stack.log_dir), History()

    def snapshots() -> Iterator[Snapshot]:
        while not interrupted.is_set():
            stack.check_alive()
            snapshot = take(stack, admin, history)
            # In one step: somebody may be reading it.
            partial = file.with_suffix(".new")
            partial.write_bytes(msgspec.json.encode(snapshot))
            partial.replace(file)
            yield snapshot

    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for snapshot in snapshots():
                live.update(snapshot.line(), refresh=True)
                interrupted.wait(REFRESH_S)
        return
    shown, due_at = "", 0.0
    for snapshot in snapshots():
        if (line := snapshot.line()) != shown and time.monotonic() >= due_at:
            console.print(line, soft_wrap=True)
            shown, due_at = line, time.monotonic() + PRINT_S
        interrupted.wait(REFRESH_S)


def _as_text(parameter: Any) -> str:
    return ",".join(parameter) if isinstance(parameter, list) else str(parameter)


def _pairs(parameters: list[str]) -> Iterator[tuple[str, str]]:
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not equals:
            raise SpillwayError(f"--parameter {parameter!r} has no value.", "Expected Name=value.")
        yield name, value
