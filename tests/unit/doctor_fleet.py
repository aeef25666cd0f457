"""A good fleet in moto, made of template.yaml, that a test breaks in one place and the doctor looks at.

What moto does not have, `Answers` answer: by service and operation, what botocore would have parsed.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore import xform_name
from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT

from spillway.doctor.facts import Facts
from spillway.doctor.finding import Finding, Level
from spillway.doctor.registry import run, select
from spillway.fleet.fleet import Fleet, Resource, Worker
from spillway.stack import template
from spillway.stack.intrinsics import Resolver
from spillway.stack.queues import create_queues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REGION = "eu-west-1"
NAME = "spillway-test"
PROXY_HOST = "proxy.example"
#: The outputs of nested stacks that functions have in their environment.
OUTPUTS = {
    "Proxy": {"ProxyEndpoint": PROXY_HOST, "ProxyName": NAME},
    "Database": {
        "DatabaseEndpoint": "database.example",
        "MasterSecretArn": "arn:master",
        "ApplicationSecretArn": "arn:app",
    },
}
_TLS_ONLY = {
    "Effect": "Deny",
    "Principal": "*",
    "Action": "sqs:*",
    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
}


@dataclass(frozen=True, kw_only=True)
class MotoFleet(Fleet):
    """A fleet whose clients are made once, and whose calls `answers` may answer before moto does.

    A key is (service, operation) as in ("lambda", "GetAccountSettings"). A value is given the call's arguments and
    returns the answer, None to leave it to moto, or raises.
    """

    answers: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = field(default_factory=dict, repr=False)
    clients: dict[str, Any] = field(default_factory=dict, repr=False)

    def client(self, service: str, *, connections: int = 10) -> Any:
        if service not in self.clients:
            made = boto3.client(service, region_name=REGION)
            made.meta.events.register("before-parameter-build", self._remember)
            made.meta.events.register("before-call", self._answer)
            self.clients[service] = made
        return self.clients[service]

    @staticmethod
    def _remember(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["asked"] = params

    def _answer(self, model: Any, context: dict[str, Any], **_: Any) -> Any:
        answer = self.answers.get((model.service_model.service_name, model.name))
        found = answer(context["asked"]) if answer else None
        return None if found is None else (_Http(), found)

    @contextmanager
    def altering(
        self, service: str, operation: str, change: Callable[[dict[str, Any]], Any], **asked: str
    ) -> Iterator[None]:
        """Within, `change` alters the answers to calls whose arguments have `asked`; what it returns replaces them."""
        before = self.answers.get((service, operation))
        method = xform_name(operation)

        def altered(call: dict[str, Any]) -> Any:
            found = before(call) if before else None
            if found is None:
                found = getattr(unanswered(service), method)(**call)
            if all(call.get(name) == value for name, value in asked.items()):
                found = deepcopy(found)
                return change(found) or found
            return found

        with self.answering(service, operation, altered):
            yield

    @contextmanager
    def answering(self, service: str, operation: str, answer: Callable[[dict[str, Any]], Any]) -> Iterator[None]:
        """Within, `answer` answers the operation."""
        before = self.answers.get((service, operation))
        self.answers[service, operation] = answer
        try:
            yield
        finally:
            if before is None:
                del self.answers[service, operation]
            else:
                self.answers[service, operation] = before


class _Http:
    status_code = 200
    headers: Mapping[str, str] = {}
    content = b""


@cache
def unanswered(service: str) -> Any:
    """A client that only moto answers."""
    return boto3.client(service, region_name=REGION)


@cache
def translated() -> dict[str, Any]:
    """template.yaml as CloudFormation gets it."""
    return template.translate()


def good_fleet(parameters: Mapping[str, str] | None = None, resources: Sequence[Resource] = ()) -> MotoFleet:
    """A deployed fleet as the template makes it, within mock_aws: queues, functions, aliases and mappings.

    `parameters` override the template's, `resources` are further ones, such as those of nested stacks.
    """
    wanted = template.resolve(translated(), dict(parameters or {}))
    pseudo = {
        "AWS::StackName": NAME,
        "AWS::Region": REGION,
        "AWS::AccountId": ACCOUNT,
        "AWS::Partition": "aws",
    }
    wanted = replace(wanted, queues={name: _renamed(queue) for name, queue in wanted.queues.items()})
    sqs, lambda_ = unanswered("sqs"), unanswered("lambda")
    role = unanswered("iam").create_role(RoleName="worker", AssumeRolePolicyDocument="{}")
    queues = create_queues(sqs, wanted)
    physical = {name: queue.url for name, queue in queues.items()}
    for queue in queues.values():
        policy = {"Version": "2012-10-17", "Statement": [_TLS_ONLY | {"Resource": queue.arn}]}
        attributes = {"SqsManagedSseEnabled": "true", "Policy": json.dumps(policy)}
        sqs.set_queue_attributes(QueueUrl=queue.url, Attributes=attributes)
    kinds = dict.fromkeys(queues, "AWS::SQS::Queue")

    def attribute(logical_id: str, name: str | None) -> str | None:
        if name is None:
            return physical.get(logical_id)
        return OUTPUTS.get(logical_id, {}).get(name.removeprefix("Outputs."))

    aliased = {one.function for one in wanted.mappings} | {"MigrateFunction"}
    resolver = Resolver(wanted.template, wanted.parameters | pseudo, attribute)
    functions = sorted(
        wanted.functions.values(), key=lambda one: one.logical_id == "GovernorFunction"
    )  # knows mappings
    for function in functions:
        name = function.name.replace(template.STACK_NAME, NAME, 1)
        made = lambda_.create_function(
            FunctionName=name,
            Runtime="python3.13",
            Role=role["Role"]["Arn"],
            Handler=function.handler,
            Timeout=function.timeout_s,
            Environment={
                "Variables": {key: str(value) for key, value in resolver.resolve(function.environment).items()}
            },
            Code={"ZipFile": b"x"},
            Publish=True,
        )
        physical[function.logical_id] = name
        kinds[function.logical_id] = "AWS::Lambda::Function"
        if function.logical_id in aliased:
            lambda_.create_alias(FunctionName=name, Name="live", FunctionVersion=made["Version"])
            physical[f"{function.logical_id}Aliaslive"] = f"{name}:live"
            kinds[f"{function.logical_id}Aliaslive"] = "AWS::Lambda::Alias"
        for source in (one for one in wanted.mappings if one.function == function.logical_id):
            physical[source.logical_id] = lambda_.create_event_source_mapping(
                FunctionName=f"{name}:live",
                EventSourceArn=queues[source.queue].arn,
                BatchSize=source.batch_size,
                MaximumBatchingWindowInSeconds=source.window_s,
                FunctionResponseTypes=["ReportBatchItemFailures"],
                ScalingConfig={"MaximumConcurrency": source.maximum_concurrency},
            )["UUID"]
            kinds[source.logical_id] = "AWS::Lambda::EventSourceMapping"
    nested = [Resource(name, "AWS::CloudFormation::Stack", f"{NAME}-{name}") for name in OUTPUTS]
    fleet = MotoFleet(
        name=NAME,
        region=REGION,
        workers={worker.name: worker for worker in _workers(wanted, physical)},
        resources=(*(Resource(name, kinds[name], physical[name]) for name in kinds), *nested, *resources),
    )
    declared = translated()["Parameters"]
    values = {
        name: "****" if declared[name].get("NoEcho") else _text(value)
        for name, value in wanted.parameters.items()
        if not name.startswith("AWS::")
    }
    fleet.answers.update(
        {
            ("cloudformation", "DescribeStacks"): lambda asked: _described(asked["StackName"], values),
            ("cloudformation", "GetTemplate"): lambda asked: {"TemplateBody": translated()},
            ("lambda", "GetAccountSettings"): lambda asked: {
                "AccountLimit": {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 1000}
            },
            ("lambda", "ListEventSourceMappings"): _by_alias,
            ("sqs", "GetQueueAttributes"): lambda asked: _with_allowed_sources(asked, wanted, queues),
        }
    )
    return fleet


def look(fleet: Fleet, *only: str, areas: Sequence[str] = (), **known: Any) -> list[Finding]:
    """What the doctor says of `fleet` now; `known` are facts that are given instead of fetched."""
    return run(Facts(fleet, known=known), select(only, areas))


def troubles(findings: Sequence[Finding]) -> list[tuple[str, Level]]:
    """Check and level of what is neither a pass nor a skip."""
    return [(one.check, one.level) for one in findings if one.level in (Level.WARN, Level.FAIL)]


def _renamed(queue: template.Queue) -> template.Queue:
    return replace(queue, name=queue.name.replace(template.STACK_NAME, NAME, 1))


def _workers(wanted: template.Fleet, physical: Mapping[str, str]) -> Iterator[Worker]:
    for source in wanted.mappings:
        function = physical[source.function]
        yield Worker(
            name=function.removeprefix(f"{NAME}-"),
            queue_url=physical[source.queue],
            dead_letter_url=physical[wanted.queues[source.queue].dead_letter_queue or ""],
            function=function,
            logs=f"/aws/lambda/{function}",
        )


def _described(stack: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    outputs = OUTPUTS.get(stack.removeprefix(f"{NAME}-"), {}) if stack != NAME else {}
    one = {
        "StackName": stack,
        "StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{stack}/0",
        "StackStatus": "UPDATE_COMPLETE",
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        "Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items()],
    }
    return {"Stacks": [one]}


def _with_allowed_sources(asked: dict[str, Any], wanted: template.Fleet, queues: Mapping[str, Any]) -> Any:
    """moto's answer, and the RedriveAllowPolicy that it does not keep."""
    plain = unanswered("sqs").get_queue_attributes(**asked)
    for queue in wanted.queues.values():
        if queue.dead_letter_queue and queues[queue.dead_letter_queue].url == asked["QueueUrl"]:
            allowed = {"redrivePermission": "byQueue", "sourceQueueArns": [queues[queue.logical_id].arn]}
            plain["Attributes"]["RedriveAllowPolicy"] = json.dumps(allowed)
    return plain


def _by_alias(asked: dict[str, Any]) -> Any:
    """moto's answer, where a mapping names the version that its alias stood for."""
    found = unanswered("lambda").list_event_source_mappings(**asked)
    for one in found["EventSourceMappings"]:
        function, _, version = one["FunctionArn"].rpartition(":")
        one["FunctionArn"] = f"{function}:live" if version == "1" else one["FunctionArn"]
    return found


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
