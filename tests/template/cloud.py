"""AWS as a deployed fleet sees it, without AWS: answers of the documented shape, and a note of every call.

The answers are made of botocore's own models, so a command gets whatever it may get by the API reference; what it does
depends on are the few in `_Answers`. What SQS, CloudWatch and the others really do is tested elsewhere.
"""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import boto3
from botocore.awsrequest import AWSResponse

from spillway import aws
from spillway.stack.template import ACCOUNT, REGION, STACK_NAME
from tests.template.combinations import COMBINATIONS, root, stacks_with_values
from workers.runtime.dead_letters import CANARY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pytest

FLEET = STACK_NAME
SQS = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/"
_PAGES = {"NextToken", "nextToken", "Marker", "NextMarker"}


class Call(NamedTuple):
    """One call: the IAM action that it needs, and the ARN that it is about ('*' where actions know no resource)."""

    action: str
    resource: str


def arn(service: str, rest: str) -> str:
    """The ARN of a resource of this account and region."""
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{rest}"


class Cloud:
    """Answers every client that spillway.aws makes, within `installed`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self.answers = _Answers()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Until `monkeypatch` is undone."""
        monkeypatch.setattr(aws, "client", self._client)

    def _client(self, service: str, *_: Any, **__: Any) -> Any:
        made = _client(service)
        events = made.meta.events
        # Registered under a name: the Cloud before this one asks no more.
        for event, handler in (("provide-client-params", self._note), ("before-call", self._answer)):
            events.unregister(f"{event}.*.*", unique_id=event)
            events.register(f"{event}.*.*", handler, unique_id=event)
        return made

    def _note(self, params: Mapping[str, Any], model: Any, context: dict[str, Any], **_: Any) -> None:
        context["asked"] = params
        with self._lock:
            self.calls += calls_of(model.service_model.service_name, model.name, params)

    def _answer(self, model: Any, context: Mapping[str, Any], **_: Any) -> tuple[AWSResponse, Any]:
        answer = generated(model.output_shape)
        known: Callable[[Mapping[str, Any]], Any] | None = getattr(self.answers, model.name, None)
        with self._lock:
            answer |= known(context["asked"]) if known is not None else {}
        return AWSResponse("", 200, {}, None), answer | {"ResponseMetadata": {"HTTPHeaders": {}}}


@cache
def _client(service: str) -> Any:
    """One for all tests: to make one takes a tenth of a second."""
    return boto3.client(service, region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test")


def calls_of(service: str, operation: str, params: Mapping[str, Any]) -> Iterator[Call]:
    """What a call is authorized as. Raises KeyError for one that nobody has thought of."""
    action = f"{_PREFIXES.get(service, service)}:{operation.removesuffix('Batch')}"
    for resource in _RESOURCES[action](params):
        yield Call(action, resource)
    if operation == "StartMessageMoveTask":
        # The task uses its starter's rights ("Configuring queue permissions for dead-letter queue redrive").
        yield Call("sqs:ReceiveMessage", params["SourceArn"])
        yield Call("sqs:DeleteMessage", params["SourceArn"])
        yield Call("sqs:GetQueueAttributes", params["SourceArn"])
        yield Call("sqs:SendMessage", params["DestinationArn"])


_PREFIXES = {"monitoring": "cloudwatch"}


def _queue(params: Mapping[str, Any]) -> list[str]:
    return [arn("sqs", params["QueueUrl"].rpartition("/")[2])]


def _move(params: Mapping[str, Any]) -> list[str]:
    return [params["SourceArn"]]


def _function(params: Mapping[str, Any]) -> list[str]:
    qualifier = params.get("Qualifier") or params.get("Name", "")
    return [arn("lambda", f"function:{params['FunctionName']}" + f":{qualifier}" * bool(qualifier))]


def _stack(params: Mapping[str, Any]) -> list[str]:
    name = params["StackName"]
    return [name if name.startswith("arn:") else arn("cloudformation", f"stack/{name}/{uuid4()}")]


def _proxy(params: Mapping[str, Any]) -> list[str]:
    assert params["DBProxyName"]
    return [arn("rds", "db-proxy:prx-0a1b2c3d4e5f60718")]


def _targets(params: Mapping[str, Any]) -> list[str]:
    return [*_proxy(params), arn("rds", "target-group:prx-tg-0a1b2c3d4e5f60718")]


def _endpoints(params: Mapping[str, Any]) -> list[str]:
    return [*_proxy(params), arn("rds", "db-proxy-endpoint:prx-endpoint-0a1b2c3d4e5f60718")]


def _instance(params: Mapping[str, Any]) -> list[str]:
    return [arn("rds", f"db:{params.get('DBInstanceIdentifier', '*')}")]


def _cluster(params: Mapping[str, Any]) -> list[str]:
    return [arn("rds", f"cluster:{params.get('DBClusterIdentifier', '*')}")]


def _log_group(params: Mapping[str, Any]) -> list[str]:
    return [arn("logs", f"log-group:{params['logGroupName']}:log-stream:")]


def _alarms(params: Mapping[str, Any]) -> list[str]:
    names = params.get("AlarmNames") or ["*"]
    return [arn("cloudwatch", f"alarm:{name}") for name in names]


def _anything(_: Mapping[str, Any]) -> list[str]:
    return ["*"]


_RESOURCES: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("sqs:GetQueueAttributes", "sqs:ReceiveMessage", "sqs:ChangeMessageVisibility"),
            *("sqs:DeleteMessage", "sqs:SendMessage"),
        ),
        _queue,
    ),
    "sqs:ListMessageMoveTasks": _move,
    "sqs:StartMessageMoveTask": lambda params: [params["SourceArn"]],
    "sqs:CancelMessageMoveTask": lambda _: [arn("sqs", f"{FLEET}-orders-dlq")],  # its handle is opaque
    **dict.fromkeys(("cloudformation:DescribeStacks", "cloudformation:GetTemplate"), _stack),
    "cloudformation:ListStackResources": _stack,
    **dict.fromkeys(("lambda:GetAlias", "lambda:GetFunctionConcurrency", "lambda:GetFunctionConfiguration"), _function),
    "lambda:GetEventSourceMapping": lambda params: [arn("lambda", f"event-source-mapping:{params['UUID']}")],
    "lambda:ListTags": lambda params: [params["Resource"]],
    "rds:DescribeDBProxies": _proxy,
    "rds:DescribeDBProxyTargetGroups": _targets,
    "rds:DescribeDBProxyTargets": _targets,
    "rds:DescribeDBProxyEndpoints": _endpoints,
    **dict.fromkeys(("rds:DescribeDBInstances", "rds:RebootDBInstance"), _instance),
    **dict.fromkeys(("rds:DescribeDBClusters", "rds:FailoverDBCluster"), _cluster),
    "rds:DescribePendingMaintenanceActions": lambda params: [params["ResourceIdentifier"]],
    "secretsmanager:DescribeSecret": lambda params: [params["SecretId"]],
    **dict.fromkeys(("logs:FilterLogEvents", "logs:StartQuery"), _log_group),
    "cloudwatch:DescribeAlarms": _alarms,
    **dict.fromkeys(
        (
            *("cloudwatch:GetMetricData", "ec2:DescribeSecurityGroupRules", "ec2:DescribeSubnets"),
            *("ec2:DescribeVpcEndpoints", "lambda:GetAccountSettings", "lambda:ListEventSourceMappings"),
            *("logs:GetQueryResults", "logs:StopQuery", "rds:DescribeCertificates", "rds:DescribeEvents"),
            "sts:GetCallerIdentity",
        ),
        _anything,
    ),
}


def generated(shape: Any, depth: int = 0) -> Any:
    """A value of `shape`, one of botocore's: every member there, one element in each list, and no further page."""
    match shape.type_name if shape is not None else None:
        case None:
            return {}
        case "structure" if depth < 6:
            return {name: generated(member, depth + 1) for name, member in shape.members.items() if name not in _PAGES}
        case "list":
            return [generated(shape.member, depth + 1)] if depth < 6 else []
        case "string":
            return shape.enum[0] if shape.enum else "x"
        case "integer" | "long" | "double" | "float":
            return 1
        case "boolean":
            return False
        case "timestamp":
            return datetime.now(UTC)
        case "blob":
            return b""
    return {}


@cache
def deployed() -> tuple[dict[str, list[dict[str, str]]], dict[str, Any], dict[str, str]]:
    """Resources by stack, the root's template, and its parameters: the environment `prod`."""
    document, given = root(), COMBINATIONS["prod"]
    resources: dict[str, list[dict[str, str]]] = {}
    values: dict[str, Any] = {}
    for name, decided, known in stacks_with_values(document, given):
        within = name.rpartition("/")[2]
        key = FLEET if name == "root" else _physical(within, "AWS::CloudFormation::Stack", {})
        values = values or known
        resources[key] = [
            {
                "LogicalResourceId": logical_id,
                "ResourceType": one["Type"],
                "PhysicalResourceId": _physical(logical_id, one["Type"], one.get("Properties", {})),
                "ResourceStatus": "CREATE_COMPLETE",
            }
            for logical_id, one in decided["Resources"].items()
        ]
    return resources, document, {name: str(value) for name, value in values.items()}


def _physical(logical_id: str, kind: str, properties: Mapping[str, Any]) -> str:
    def said(name: str) -> str:
        value = properties.get(name, "")
        text = value.get("Fn::Sub", logical_id) if isinstance(value, dict) else value
        text = text[0] if isinstance(text, list) else text
        return re.sub(r"\$\{(AWS::StackName|FleetName)\}", FLEET, str(text))

    match kind:
        case "AWS::SQS::Queue":
            return SQS + said("QueueName")
        case "AWS::Lambda::Function":
            return said("FunctionName")
        case "AWS::CloudFormation::Stack":
            return arn("cloudformation", f"stack/{FLEET}-{logical_id}-1A2B3C/{uuid4_of(logical_id)}")
        case "AWS::CloudWatch::Alarm":
            return said("AlarmName")
        case "AWS::Lambda::EventSourceMapping":
            return uuid4_of(logical_id)
        case "AWS::RDS::DBProxy" | "AWS::RDS::DBInstance" | "AWS::RDS::DBCluster":
            return FLEET
        case "AWS::SecretsManager::Secret":
            return arn("secretsmanager", f"secret:{FLEET}/database/spillway_app-AbCdEf")
    return logical_id


def uuid4_of(text: str) -> str:
    """The same each time."""
    return f"00000000-0000-4000-8000-{abs(hash(text)) % 10**12:012}"


class _Answers:
    """By operation: what of its answer matters, from what was asked."""

    def __init__(self) -> None:
        self.dead = ["{", '{"id": 1}']
        self._canaries: list[tuple[str, str]] = []

    def ListStackResources(self, asked: Mapping[str, Any]) -> Any:  # noqa: N802
        resources, _, _ = deployed()
        return {"StackResourceSummaries": resources[asked["StackName"]]}

    def DescribeStacks(self, asked: Mapping[str, Any]) -> Any:  # noqa: N802
        _, _, parameters = deployed()
        name = asked["StackName"]
        found = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
        identity = name if name.startswith("arn:") else arn("cloudformation", f"stack/{name}/{uuid4_of(name)}")
        return {
            "Stacks": [{"StackName": name, "StackId": identity, "StackStatus": "CREATE_COMPLETE", "Parameters": found}]
        }

    def GetTemplate(self, _: Mapping[str, Any]) -> Any:  # noqa: N802
        return {"TemplateBody": json.dumps(deployed()[1])}

    def GetQueueAttributes(self, asked: Mapping[str, Any]) -> Any:  # noqa: N802
        name = asked["QueueUrl"].rpartition("/")[2]
        counts = {f"ApproximateNumberOfMessages{which}": "0" for which in ("NotVisible", "Delayed")}
        return {
            "Attributes": counts
            | {
                "QueueArn": arn("sqs", name),
                "ApproximateNumberOfMessages": str(len(self.dead)),
                "VisibilityTimeout": "60",
            }
        }

    def ReceiveMessage(self, _: Mapping[str, Any]) -> Any:  # noqa: N802
        bodies, self.dead = self.dead, []
        return {
            "Messages": [
                {
                    "MessageId": f"m-{number}",
                    "ReceiptHandle": f"r-{number}",
                    "Body": body,
                    "Attributes": {"SentTimestamp": "1795000000000", "ApproximateReceiveCount": "1"},
                    "MessageAttributes": {},
                }
                for number, body in enumerate(bodies)
            ]
        }

    def SendMessageBatch(self, asked: Mapping[str, Any]) -> Any:  # noqa: N802
        entries = [(one, str(uuid4())) for one in asked["Entries"]]
        self._canaries += [
            (one["MessageAttributes"][CANARY]["StringValue"], message_id)
            for one, message_id in entries
            if CANARY in one.get("MessageAttributes", {})
        ]
        return {"Successful": [{"Id": one["Id"], "MessageId": message_id} for one, message_id in entries], "Failed": []}

    DeleteMessageBatch = ChangeMessageVisibilityBatch = SendMessageBatch

    def FilterLogEvents(self, asked: Mapping[str, Any]) -> Any:  # noqa: N802
        found = re.search(r'\$\.canary = "([^"]*)"', asked["filterPattern"])
        assert found is not None
        said = {"message": "canary", "outcome": "applied", "timestamp": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S,000%z}"}
        return {
            "events": [
                {"eventId": message_id, "message": json.dumps(said | {"canary": name, "message_id": message_id})}
                for name, message_id in self._canaries
                if name == found[1]
            ]
        }

    def GetQueryResults(self, _: Mapping[str, Any]) -> Any:  # noqa: N802
        return {"status": "Complete", "results": []}

    def ListMessageMoveTasks(self, asked: Mapping[str, Any]) -> Any:  # noqa: N802
        done = {"Status": "COMPLETED", "SourceArn": asked["SourceArn"], "ApproximateNumberOfMessagesMoved": 2}
        return {"Results": [done | {"ApproximateNumberOfMessagesToMove": 2, "StartedTimestamp": 1}]}

    def GetFunctionConfiguration(self, asked: Mapping[str, Any]) -> Any:  # noqa: N802
        names = ("orders", "inventory", "payments", "audit")
        governor = {
            "GOVERNOR_MODE": "on",
            "FLEET_NAME": FLEET,
            "POWERTOOLS_METRICS_NAMESPACE": f"Spillway/{FLEET}",
            "PROXY_NAME": FLEET,
            "BORROW_TIMEOUT": "20",
            "MAPPINGS": " ".join(f"{name}={uuid4_of(name)}:10" for name in names),
        }
        return {"Environment": {"Variables": governor if asked["FunctionName"].endswith("-governor") else {}}}

    def ListEventSourceMappings(self, _: Mapping[str, Any]) -> Any:  # noqa: N802
        return {"EventSourceMappings": [self._mapping(name) for name in ("orders", "inventory", "audit")]}

    def GetEventSourceMapping(self, _: Mapping[str, Any]) -> Any:  # noqa: N802
        return self._mapping("orders")

    def _mapping(self, name: str) -> dict[str, Any]:
        return {
            "UUID": uuid4_of(name),
            "EventSourceMappingArn": arn("lambda", f"event-source-mapping:{uuid4_of(name)}"),
            "EventSourceArn": arn("sqs", f"{FLEET}-{name}"),
            "FunctionArn": arn("lambda", f"function:{FLEET}-{name}:live"),
            "State": "Enabled",
        }

    def DescribeDBInstances(self, _: Mapping[str, Any]) -> Any:  # noqa: N802
        one = {"DBInstanceIdentifier": FLEET, "DBInstanceStatus": "available", "MultiAZ": True}
        return {"DBInstances": [one | {"DBInstanceArn": arn("rds", f"db:{FLEET}"), "AvailabilityZone": "us-east-1a"}]}

    def DescribeDBProxyTargets(self, _: Mapping[str, Any]) -> Any:  # noqa: N802
        health = {"State": "AVAILABLE"}
        return {
            "Targets": [{"Role": "READ_WRITE", "RdsResourceId": FLEET, "TargetHealth": health, "Type": "RDS_INSTANCE"}]
        }

    def GetMetricData(self, asked: Mapping[str, Any]) -> Any:  # noqa: N802
        nothing: dict[str, Any] = {"StatusCode": "Complete", "Values": [], "Timestamps": [], "Label": ""}
        return {"MetricDataResults": [nothing | {"Id": one["Id"]} for one in asked["MetricDataQueries"]]}
