"""The fleet's functions and event source mappings, as Lambda describes them; locally, as the template has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from spillway.aws_errors import code_of

if TYPE_CHECKING:
    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_stack import Stack

#: The alias that a mapping invokes (template.yaml, AutoPublishAlias).
ALIAS = "live"
#: Logical ids of those that do not go the workers' way to the database: one passes the proxy by, one never connects.
MIGRATE, GOVERNOR = "MigrateFunction", "GovernorFunction"
#: Lambda's name for no resource (API reference, ResourceNotFoundException).
_MISSING = "ResourceNotFoundException"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function: the version that its alias leads to, where it has one. `worker` is '' for one without a queue.

    `version` is that version, `weights` are other versions' shares while a rollout is under way. `alias` is None
    where the function has none and should not. `reserved` is its reserved concurrency, None for none. `subnets` and
    `groups` (security groups) are those of its VPC, none for a function in no VPC.
    """

    name: str
    logical_id: str
    timeout_s: int
    environment: Mapping[str, str] = field(repr=False)
    worker: str = ""
    runtime: str = ""
    state: str = ""
    state_reason: str = ""
    update: str = ""
    update_reason: str = ""
    alias: str | None = None
    version: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    reserved: int | None = None
    subnets: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSource:
    """A worker's event source mapping. `target` is the ARN of what it invokes; `logical_id` is '' if not the stack's.

    `others` are the ARNs of what else reads the queue by a mapping.
    """

    worker: str
    logical_id: str
    batch_size: int
    window_s: int
    maximum_concurrency: int | None
    partial_responses: bool
    uuid: str = ""
    arn: str = ""
    state: str = ""
    state_reason: str = ""
    target: str = ""
    last_modified: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """The region's limits: executions at once, and those that no function has reserved."""

    concurrency: int
    unreserved: int


def load_functions(facts: Facts) -> dict[str, Function]:
    """By name. Raises botocore's errors."""
    if facts.fleet.local is not None:
        return _local_functions(facts.stack)
    client = facts.fleet.client("lambda")
    workers = {worker.function: worker.name for worker in facts.fleet.workers.values()}
    aliased = {
        one.logical_id.removesuffix(f"Alias{ALIAS}") for one in facts.fleet.of_type("AWS::Lambda::Alias")
    }  # SAM names it OrdersConsumerAliaslive
    return {
        one.physical_id: _function(
            client, one.physical_id, one.logical_id, workers.get(one.physical_id, ""), one.logical_id in aliased
        )
        for one in facts.fleet.of_type("AWS::Lambda::Function")
    }


def load_mappings(facts: Facts) -> dict[str, EventSource]:
    """By worker; a worker whose mapping does not exist is missing. Raises botocore's errors."""
    if facts.fleet.local is not None:
        return _local_mappings(facts.stack)
    client = facts.fleet.client("lambda")
    logical = {one.physical_id: one.logical_id for one in facts.fleet.of_type("AWS::Lambda::EventSourceMapping")}
    pages = client.get_paginator("list_event_source_mappings")
    found = {}
    for worker in facts.fleet.workers.values():
        if (queue := facts.queues.get(worker.queue)) is None:
            continue
        # By queue, not by the stack's own id: one that was made anew by hand is what counts, and one too many is found.
        every = [one for page in pages.paginate(EventSourceArn=queue.arn) for one in page["EventSourceMappings"]]
        ours = [one for one in every if function_of(one["FunctionArn"]) == worker.function]
        if ours:
            tags = client.list_tags(Resource=ours[0]["EventSourceMappingArn"]).get("Tags", {})
            others = tuple(one["FunctionArn"] for one in every if one is not ours[0])
            found[worker.name] = _mapping(worker.name, logical.get(ours[0]["UUID"], ""), ours[0], tags, others)
    return found


def load_account(facts: Facts) -> Account:
    """Raises botocore's errors."""
    limits = facts.fleet.client("lambda").get_account_settings()["AccountLimit"]
    return Account(limits["ConcurrentExecutions"], limits["UnreservedConcurrentExecutions"])


def function_of(arn: str) -> str:
    """The function's name in its ARN, with an alias or version or without."""
    return arn.split(":")[6]


def _function(client: Any, name: str, logical_id: str, worker: str, aliased: bool) -> Function:
    alias = _or_none(client.get_alias, FunctionName=name, Name=ALIAS) if aliased or worker else None
    qualifier = {"Qualifier": ALIAS} if alias else {}
    found = client.get_function_configuration(FunctionName=name, **qualifier)
    concurrency = client.get_function_concurrency(FunctionName=name)
    network = found.get("VpcConfig") or {}
    return Function(
        name=name,
        logical_id=logical_id,
        worker=worker,
        timeout_s=found["Timeout"],
        environment=found.get("Environment", {}).get("Variables", {}),
        runtime=found.get("Runtime", ""),
        state=found.get("State", ""),
        state_reason=found.get("StateReason", ""),
        update=found.get("LastUpdateStatus", ""),
        update_reason=found.get("LastUpdateStatusReason", ""),
        alias=ALIAS if alias else "" if aliased or worker else None,
        version=alias["FunctionVersion"] if alias else "",
        weights=((alias or {}).get("RoutingConfig") or {}).get("AdditionalVersionWeights", {}),
        reserved=concurrency.get("ReservedConcurrentExecutions"),
        subnets=tuple(network.get("SubnetIds", ())),
        groups=tuple(network.get("SecurityGroupIds", ())),
    )


def _mapping(
    worker: str, logical_id: str, found: Mapping[str, Any], tags: Mapping[str, str], others: tuple[str, ...]
) -> EventSource:
    return EventSource(
        worker=worker,
        logical_id=logical_id,
        batch_size=found["BatchSize"],
        window_s=found.get("MaximumBatchingWindowInSeconds") or 0,
        maximum_concurrency=(found.get("ScalingConfig") or {}).get("MaximumConcurrency"),
        partial_responses="ReportBatchItemFailures" in (found.get("FunctionResponseTypes") or ()),
        uuid=found["UUID"],
        arn=found["EventSourceMappingArn"],
        state=found["State"],
        state_reason=found.get("StateTransitionReason", ""),
        target=found["FunctionArn"],
        last_modified=found.get("LastModified"),
        tags=tags,
        others=others,
    )


def _local_functions(stack: Stack) -> dict[str, Function]:
    queues = {function: worker for worker, function in _workers(stack).items()}
    return {
        one.name: Function(
            name=one.name,
            logical_id=one.logical_id,
            worker=queues.get(one.logical_id, ""),
            timeout_s=one.timeout_s,
            environment=stack.environment(one.logical_id),
        )
        for one in stack.wanted.functions.values()
    }


def _local_mappings(stack: Stack) -> dict[str, EventSource]:
    workers = {function: worker for worker, function in _workers(stack).items()}
    return {
        workers[one.function]: EventSource(
            worker=workers[one.function],
            logical_id=one.logical_id,
            batch_size=one.batch_size,
            window_s=one.window_s,
            maximum_concurrency=one.maximum_concurrency,
            partial_responses=one.report_batch_item_failures,
        )
        for one in stack.wanted.mappings
    }


def _workers(stack: Stack) -> dict[str, str]:
    """Worker -> its function's logical id: the worker is the folder that the handler is in."""
    functions = stack.wanted.functions
    return {functions[one.function].handler.split(".")[1]: one.function for one in stack.wanted.mappings}


def _or_none(call: Any, **arguments: Any) -> Any:
    from botocore.exceptions import ClientError  # noqa: PLC0415

    try:
        return call(**arguments)
    except ClientError as error:
        if code_of(error) != _MISSING:
            raise
        return None
