"""template.yaml, translated as CloudFormation would, and read for what the local stack runs.

Nothing of the fleet is configured a second time: sizes, windows, times and variables all come from here.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillway.stack.errors import StackError
from spillway.stack.intrinsics import Resolver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spillway.stack.queues import CreatedQueue

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = REPOSITORY / "template.yaml"

#: What CloudFormation fills in by itself; names and ids as ministack and Lambda would show them locally.
ACCOUNT = "000000000000"
REGION = "us-east-1"
STACK_NAME = "spillway"

#: The properties of AWS::SQS::Queue that CreateQueue takes as attributes under the same name, encryption left out.
QUEUE_ATTRIBUTES = (
    "VisibilityTimeout",
    "MessageRetentionPeriod",
    "DelaySeconds",
    "ReceiveMessageWaitTimeSeconds",
    "MaximumMessageSize",
    "FifoQueue",
    "ContentBasedDeduplication",
    "DeduplicationScope",
    "FifoThroughputLimit",
)


@dataclass(frozen=True, slots=True)
class Queue:
    """An AWS::SQS::Queue. `attributes` are those of CreateQueue without the redrive policy."""

    logical_id: str
    name: str
    attributes: dict[str, str]
    dead_letter_queue: str | None
    max_receive_count: int | None

    @property
    def fifo(self) -> bool:
        return self.name.endswith(".fifo")


@dataclass(frozen=True, slots=True)
class Function:
    """An AWS::Lambda::Function. `environment` still holds intrinsics: queue URLs are not known yet."""

    logical_id: str
    name: str
    handler: str
    timeout_s: int
    memory_mb: int
    environment: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventSource:
    """An AWS::Lambda::EventSourceMapping from an SQS queue; both ends by logical id."""

    logical_id: str
    queue: str
    function: str
    batch_size: int
    window_s: int
    maximum_concurrency: int | None
    report_batch_item_failures: bool


@dataclass(frozen=True, slots=True)
class FunctionSchedule:
    """One function that EventBridge invokes by the clock (an AWS::Events::Rule or an AWS::Scheduler::Schedule).

    `function` is a logical id. `expression` is as EventBridge takes it, `input` the JSON text that the function gets;
    None where that is EventBridge's own event.
    """

    logical_id: str
    function: str
    expression: str
    input: str | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything of one template that the local stack runs."""

    queues: dict[str, Queue]
    functions: dict[str, Function]
    mappings: list[EventSource]
    schedules: list[FunctionSchedule]
    template: dict[str, Any]
    parameters: dict[str, Any]

    def environment(self, function: Function, queues: Mapping[str, CreatedQueue]) -> dict[str, str]:
        """The variables of `function`, given each queue by logical id."""

        def attribute(logical_id: str, name: str | None) -> str | None:
            queue = self.queues.get(logical_id)
            if queue is None:
                return None
            created = queues[logical_id]
            return {None: created.url, "Arn": created.arn, "QueueName": queue.name}.get(name)

        resolved = Resolver(self.template, self.parameters, attribute).resolve(function.environment)
        return {name: str(value) for name, value in resolved.items()}


def translate(path: Path = TEMPLATE) -> dict[str, Any]:
    """The CloudFormation template that SAM makes of the one at `path`; JSON-like, intrinsics kept.

    Raises StackError when the file cannot be read or is not valid SAM.
    """
    # All slow to import, and only the stack needs them.
    import botocore.session  # noqa: PLC0415
    import yaml  # noqa: PLC0415
    from boto3.session import Session  # noqa: PLC0415
    from samcli.yamlhelper import yaml_parse  # noqa: PLC0415
    from samtranslator.parser.parser import Parser  # noqa: PLC0415
    from samtranslator.public.exceptions import InvalidDocumentException  # noqa: PLC0415
    from samtranslator.translator.translator import Translator  # noqa: PLC0415

    try:
        source = yaml_parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StackError(f"{path} cannot be read: {error.strerror}.", "Run this from a Spillway checkout.") from error
    except yaml.YAMLError as error:
        raise StackError(f"{path} is not YAML: {' '.join(str(error).split())}.", "Correct it.") from error
    if not isinstance(source, dict) or not isinstance(source.get("Resources"), dict):
        raise StackError(f"{path} is no SAM template: it has no Resources.", "Name another one with --template.")
    for resource in source["Resources"].values():
        # A relative CodeUri is for `sam build`; the translator wants what an upload would leave there.
        if resource.get("Type") == "AWS::Serverless::Function":
            resource.setdefault("Properties", {})["CodeUri"] = "s3://local/code.zip"
    source.get("Globals", {}).get("Function", {}).pop("CodeUri", None)
    # It warns of feature toggles that only AWS's own deployment of it has.
    logging.getLogger("samtranslator").setLevel(logging.ERROR)
    try:
        # Only the region is read from it; a profile that AWS_PROFILE names need not exist here.
        core = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
        session = Session(region_name=REGION, botocore_session=core)
        translated = Translator({}, Parser(), boto_session=session).translate(source, {})
    except InvalidDocumentException as error:
        causes = "; ".join(cause.message for cause in error.causes)
        raise StackError(f"{path.name} is not valid: {causes}.", "Run `sam validate --lint`.") from error
    result: dict[str, Any] = json.loads(json.dumps(translated))
    return result


def load_fleet(overrides: Mapping[str, Any], path: Path = TEMPLATE) -> Fleet:
    """Translate the template at `path`, then as `resolve`."""
    return resolve(translate(path), overrides)


def resolve(template: dict[str, Any], overrides: Mapping[str, Any]) -> Fleet:
    """Resolve everything but the functions' variables in a translated template, with `overrides` for its parameters.

    Raises StackError for an override the template has no parameter for and for a parameter without a value, or with
    one that CloudFormation would refuse.
    """
    parameters = _parameters(template, overrides)
    names = {"AWS::StackName": STACK_NAME, "AWS::Region": REGION, "AWS::AccountId": ACCOUNT, "AWS::Partition": "aws"}
    parameters |= names
    resources: dict[str, Any] = template["Resources"]
    # Logical ids stand for themselves here, so that a mapping's queue and function can be looked up by them.
    conditions = Resolver(template, parameters, lambda logical_id, _: logical_id if logical_id in resources else None)
    value_of = conditions.resolve

    resources = {
        name: resource
        for name, resource in resources.items()
        if "Condition" not in resource or conditions.condition(resource["Condition"])
    }
    queues, functions, aliases, mappings, schedules = {}, {}, {}, [], []
    for logical_id, resource in resources.items():
        properties = resource.get("Properties", {})
        match resource["Type"]:
            case "AWS::SQS::Queue":
                queues[logical_id] = _queue(logical_id, value_of(properties))
            case "AWS::Lambda::Function":
                environment = properties.get("Environment", {}).get("Variables", {})
                rest = value_of({key: value for key, value in properties.items() if key != "Environment"})
                functions[logical_id] = _function(logical_id, rest, environment)
            case "AWS::Lambda::Alias":
                aliases[logical_id] = value_of(properties["FunctionName"])
            case "AWS::Lambda::EventSourceMapping":
                mappings.append(_mapping(logical_id, value_of(properties)))
            case "AWS::Events::Rule" | "AWS::Scheduler::Schedule":
                schedules += _schedules(logical_id, value_of(properties))
    # An alias moves between versions of one function; here there is the one that was checked out.
    mappings = [replace(one, function=aliases.get(one.function, one.function)) for one in mappings]
    # A rule may have other targets, too.
    schedules = [one for one in schedules if one.function in functions]
    return Fleet(queues, functions, mappings, schedules, template, parameters)


def _parameters(template: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    declared: dict[str, Any] = template.get("Parameters", {})
    if unknown := sorted(set(overrides) - set(declared)):
        raise StackError(f"template.yaml has no parameter {unknown[0]}.", f"It has {', '.join(sorted(declared))}.")
    values = {name: overrides.get(name, spec.get("Default")) for name, spec in declared.items()}
    if missing := [name for name, value in values.items() if value is None]:
        raise StackError(f"template.yaml's parameter {missing[0]} has no value.", "Give one.")
    for name, value in values.items():
        if (expected := _refusal(declared[name], str(value))) is not None:
            raise StackError(
                f"template.yaml's parameter {name} cannot be {str(value)!r}: expected {expected}.",
                str(declared[name].get("Description", "")),
            )
    return {
        name: str(value).split(",") if declared[name]["Type"].startswith(("CommaDelimitedList", "List<")) else value
        for name, value in values.items()
    }


def _refusal(declared: Mapping[str, Any], value: str) -> str | None:
    """What CloudFormation would expect instead of `value`; None if it takes it."""
    if allowed := declared.get("AllowedValues"):
        return None if value in map(str, allowed) else f"one of {', '.join(map(str, allowed))}"
    if declared["Type"] == "Number":
        low, high = declared.get("MinValue"), declared.get("MaxValue")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        fits = math.isfinite(number) and (low is None or number >= low) and (high is None or number <= high)
        return None if fits else " ".join(["a number", *_bound("from", low), *_bound("to", high)])
    low, high = declared.get("MinLength"), declared.get("MaxLength")
    if (low is not None and len(value) < low) or (high is not None and len(value) > high):
        return " ".join(["a length", *_bound("from", low), *_bound("to", high)])
    pattern = declared.get("AllowedPattern")
    return None if pattern is None or re.fullmatch(pattern, value) else f"a match of {pattern}"


def _bound(word: str, limit: object) -> tuple[str, ...]:
    return () if limit is None else (word, str(limit))


def _queue(logical_id: str, properties: dict[str, Any]) -> Queue:
    redrive = properties.get("RedrivePolicy") or {}
    return Queue(
        logical_id,
        properties["QueueName"],
        {name: _attribute(properties[name]) for name in QUEUE_ATTRIBUTES if name in properties},
        redrive.get("deadLetterTargetArn"),
        int(redrive["maxReceiveCount"]) if redrive else None,
    )


def _attribute(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _function(logical_id: str, properties: dict[str, Any], environment: dict[str, Any]) -> Function:
    return Function(
        logical_id,
        properties["FunctionName"],
        properties["Handler"],
        int(properties["Timeout"]),
        int(properties["MemorySize"]),
        environment,
    )


def _mapping(logical_id: str, properties: dict[str, Any]) -> EventSource:
    scaling = properties.get("ScalingConfig") or {}
    return EventSource(
        logical_id,
        properties["EventSourceArn"],
        properties["FunctionName"],
        int(properties.get("BatchSize", 10)),
        int(properties.get("MaximumBatchingWindowInSeconds", 0)),
        int(scaling["MaximumConcurrency"]) if "MaximumConcurrency" in scaling else None,
        "ReportBatchItemFailures" in properties.get("FunctionResponseTypes", []),
    )


def _schedules(logical_id: str, properties: dict[str, Any]) -> list[FunctionSchedule]:
    """Those of one rule or schedule that is enabled; none of a rule that waits for events."""
    expression = properties.get("ScheduleExpression")
    if expression is None or properties.get("State") == "DISABLED":
        return []
    targets = properties["Targets"] if "Targets" in properties else [properties["Target"]]
    return [FunctionSchedule(logical_id, target["Arn"], expression, target.get("Input")) for target in targets]
