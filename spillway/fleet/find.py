"""Finds the fleet: the local stack by the state it publishes, a deployed one by its CloudFormation stack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spillway import aws
from spillway.aws_errors import code_of, explained
from spillway.errors import SpillwayError
from spillway.fleet.fleet import ATTEMPTS, Fleet, Resource, Worker
from spillway.stack.state import StackState, read_state
from spillway.stack.template import STACK_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

STACK_VARIABLE = "SPILLWAY_STACK"

StackOption = Annotated[
    str | None,
    typer.Option("--stack", envvar=STACK_VARIABLE, help="A stack on AWS (default: the local stack that runs)."),
]
RegionOption = Annotated[str | None, typer.Option("--region", help="The AWS region of --stack.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="The AWS profile to use for --stack.")]


def find_fleet(stack: str | None = None, region: str | None = None, profile: str | None = None) -> Fleet:
    """The stack of that name on AWS, with credentials as the AWS CLI finds them; the running local stack without one.

    Raises SpillwayError where there is neither, and for what AWS answers instead.
    """
    # Now, while there is one thread: commands ask for many things side by side, and threads that import it at the same
    # moment may get half of it ("cannot import name ... from partially initialized module").
    import boto3  # noqa: F401, PLC0415  (0.2 s; every command that looks for a fleet needs it)

    if stack is not None:
        return deployed(stack, region, profile)
    if region or profile:
        raise SpillwayError(
            "--region and --profile are for a stack on AWS.", f"Name it with --stack or {STACK_VARIABLE}."
        )
    state = read_state()
    if state is None:
        raise SpillwayError(
            "No local stack is running, and no stack on AWS is named.",
            f"Start one with `spillway up`, or name a deployed one with --stack or {STACK_VARIABLE}.",
        )
    return local(state)


def local(state: StackState) -> Fleet:
    """The local stack."""
    workers = {
        name: Worker(
            name=name,
            queue_url=url,
            dead_letter_url=state.dead_letter_queues[name],
            function=state.functions.get(name, name),
            logs=str(Path(state.log_dir) / f"{state.functions.get(name, name)}.log"),
        )
        for name, url in state.queues.items()
        if name in state.dead_letter_queues
    }
    return Fleet(name=STACK_NAME, workers=workers, region=state.region, local=state)


def deployed(stack: str, region: str | None, profile: str | None) -> Fleet:
    """The stack on AWS. Raises SpillwayError."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (with boto3, 0.2 s)

    client = aws.client("cloudformation", None, region, profile, attempts=ATTEMPTS)
    region = client.meta.region_name
    try:
        resources = tuple(_resources(client, stack))
    except ClientError as error:
        if code_of(error) == "ValidationError" and "does not exist" in str(error):
            raise SpillwayError(
                f"There is no stack {stack!r} in {region}.",
                "Check --stack, --region and --profile; `aws cloudformation list-stacks` lists them.",
            ) from error
        raise explained(error) from error
    except BotoCoreError as error:
        raise explained(error) from error
    workers = {worker.name: worker for worker in _workers(stack, resources)}
    if not workers:
        raise SpillwayError(
            f"The stack {stack} has no worker: no function with a queue and a dead-letter queue.",
            "Is it a Spillway stack?",
        )
    return Fleet(name=stack, workers=workers, region=region, profile=profile, resources=resources)


def _resources(client: Any, stack: str, within: str = "") -> Iterator[Resource]:
    for page in client.get_paginator("list_stack_resources").paginate(StackName=stack):
        for one in page["StackResourceSummaries"]:
            physical = one.get("PhysicalResourceId", "")
            yield Resource(
                one["LogicalResourceId"], one["ResourceType"], physical, within, one.get("ResourceStatus", "")
            )
            if one["ResourceType"] == "AWS::CloudFormation::Stack" and physical:
                yield from _resources(client, physical, one["LogicalResourceId"])


def _workers(stack: str, resources: tuple[Resource, ...]) -> Iterator[Worker]:
    """Those whose logical ids follow the template: OrdersQueue, OrdersDeadLetterQueue, OrdersConsumer."""
    found = {(one.type, one.logical_id): one.physical_id for one in resources if not one.stack}
    for (kind, logical_id), function in found.items():
        if kind != "AWS::Lambda::Function" or not logical_id.endswith("Consumer"):
            continue
        begins = logical_id.removesuffix("Consumer")
        queue = found.get(("AWS::SQS::Queue", f"{begins}Queue"))
        dead = found.get(("AWS::SQS::Queue", f"{begins}DeadLetterQueue"))
        if queue and dead and function:
            yield Worker(
                name=function.removeprefix(f"{stack}-"),
                queue_url=queue,
                dead_letter_url=dead,
                function=function,
                logs=f"/aws/lambda/{function}",
            )
