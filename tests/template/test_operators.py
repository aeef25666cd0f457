"""infra/operators.yaml: its policies allow what the operators' commands call, on this fleet's resources, and no more.

Three things are held equal: the policies, the table below of what each command may call, and the code. The code is read
for every call that it could make, and the commands are run against answers of the documented shape for those it does.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cfnlint
import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.session import Session
from typer.testing import CliRunner

from spillway import aws_permissions
from spillway.aws_errors import missing_action
from spillway.cli import program
from spillway.stack.template import ACCOUNT, REGION, REPOSITORY
from tests.template.cloud import FLEET, Call, Cloud, arn, calls_of
from tests.template.resolved import resolved, statements, template

READ, REDRIVE, FAILOVER = "Read", "Redrive", "Failover"
_FIND = "cloudformation:ListStackResources"
_LOOK = f"{_FIND} sqs:GetQueueAttributes sqs:ReceiveMessage sqs:ChangeMessageVisibility"


class Command(NamedTuple):
    """`policies` are those that the command needs, `calls` the actions of all calls that it may make."""

    policies: tuple[str, ...]
    calls: str


COMMANDS = {
    "dlq list": Command((READ,), f"{_LOOK} cloudwatch:GetMetricData"),
    "dlq show": Command((READ,), _LOOK),
    "dlq peek": Command((READ,), _LOOK),
    "dlq export": Command((READ,), _LOOK),
    "status": Command(
        (READ,),
        f"{_FIND} sqs:GetQueueAttributes cloudwatch:GetMetricData cloudwatch:DescribeAlarms rds:DescribeDBProxyTargets "
        "lambda:GetEventSourceMapping lambda:GetFunctionConcurrency lambda:GetFunctionConfiguration lambda:ListTags",
    ),
    "doctor": Command(
        (READ,),
        f"{_FIND} cloudformation:DescribeStacks cloudformation:GetTemplate sqs:GetQueueAttributes "
        "cloudwatch:GetMetricData cloudwatch:DescribeAlarms lambda:GetAlias lambda:GetFunctionConcurrency "
        "lambda:GetFunctionConfiguration lambda:GetAccountSettings lambda:ListEventSourceMappings lambda:ListTags "
        "ec2:DescribeSecurityGroupRules ec2:DescribeSubnets ec2:DescribeVpcEndpoints rds:DescribeCertificates "
        "rds:DescribeDBClusters rds:DescribeDBInstances rds:DescribeDBProxies rds:DescribeDBProxyEndpoints "
        "rds:DescribeDBProxyTargetGroups rds:DescribeDBProxyTargets rds:DescribePendingMaintenanceActions "
        "secretsmanager:DescribeSecret",
    ),
    "pinned": Command(
        (READ,),
        f"{_FIND} cloudformation:DescribeStacks cloudwatch:GetMetricData logs:StartQuery logs:GetQueryResults "
        "logs:StopQuery",
    ),
    "dlq redrive": Command(
        (READ, REDRIVE),
        f"{_LOOK} sqs:SendMessage sqs:DeleteMessage sqs:StartMessageMoveTask sqs:ListMessageMoveTasks "
        "sqs:CancelMessageMoveTask logs:FilterLogEvents sts:GetCallerIdentity",
    ),
    "dlq import": Command((READ, REDRIVE), f"{_FIND} sqs:SendMessage sts:GetCallerIdentity"),
    "dlq discard": Command((READ, REDRIVE), f"{_LOOK} sqs:DeleteMessage sts:GetCallerIdentity"),
    "failover-drill": Command(
        (READ, FAILOVER),
        f"{_FIND} cloudformation:DescribeStacks sqs:GetQueueAttributes sqs:SendMessage logs:FilterLogEvents "
        "rds:DescribeDBClusters rds:DescribeDBInstances rds:DescribeDBProxyTargets rds:DescribeEvents "
        "rds:FailoverDBCluster rds:RebootDBInstance",
    ),
}
#: "No permissions are required to perform this operation" (GetCallerIdentity, STS API reference).
FREE = {"sts:GetCallerIdentity"}

#: Where the commands' calls are.
SOURCES = [
    *(f"spillway/{name}" for name in ("dlq", "doctor", "drill", "fleet", "pinned", "status", "commands")),
    "spillway/producer.py",
    "workers/governor/aws.py",
]
#: What is in those files, and no operator's command calls.
NOT_THEIRS = {"lambda:TagResource", "lambda:UntagResource", "lambda:UpdateEventSourceMapping"}  # the governor's own

#: For these the Service Authorization Reference names resources, and they do not help: why.
ONLY_STAR = {
    "cloudwatch:GetMetricData": "a dataset is OpenTelemetry's; AWS's own metrics belong to none",
    "logs:GetQueryResults": "the log group is the query's, which is not asked for by name",
}


@cache
def policies(**given: str) -> dict[str, list[dict[str, Any]]]:
    stack = resolved(template("operators"), {"FleetName": FLEET} | given)
    found = stack.of_type("AWS::IAM::ManagedPolicy")
    return {name: statements(policy["PolicyDocument"]) for name, policy in found.items()}


def allows(call: Call, names: tuple[str, ...], **given: str) -> bool:
    """Whether one of these policies lets the call through: IAM's wildcards, on ARNs that may hold any."""
    known = [one for name in names for one in policies(**given)[name]]
    return call.action in FREE or any(
        call.action in one["Action"] and any(_like(pattern, call.resource) for pattern in one["Resource"])
        for one in known
    )


def _like(pattern: str, resource: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), resource) is not None


@cache
def operations() -> dict[str, list[str]]:
    """The IAM actions by the name of the method that boto3 has for them, of the services that the tools ask."""
    found: dict[str, list[str]] = {}
    session = Session()
    for service in aws_permissions.OPERATIONS:
        for operation in session.get_service_model(service).operation_names:
            action = f"{service}:{operation.removesuffix('Batch')}"
            found.setdefault(xform_name(operation), []).append(action)
    return found


@cache
def nodes() -> list[ast.AST]:
    """All that stands in SOURCES."""
    paths = [REPOSITORY / source for source in SOURCES]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    return [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]


def test_every_call_in_the_code_is_in_the_table() -> None:
    in_table = {action for command in COMMANDS.values() for action in command.calls.split()}
    in_code = set()
    for node in nodes():
        named = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", "")
        for action in operations().get(named, ()) if isinstance(named, str) else ():
            # RDS and CloudFormation both have events, for one; the table says whose are meant.
            if action in in_table or not in_table.intersection(operations()[named]):
                in_code.add(action)
    in_code = {action for action in in_code if f"lambda:{action.partition(':')[2]}" not in NOT_THEIRS}
    assert in_code - in_table == set()
    assert in_table - in_code == set()


def test_no_other_service_is_asked() -> None:
    asked = {
        node.args[0].value
        for node in nodes()
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", "") or getattr(node.func, "id", "")) == "client"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert asked <= set(aws_permissions.OPERATIONS)
    assert {"sqs", "rds", "logs"} <= asked


def test_errors_name_the_action_of_every_call() -> None:
    in_table = {action for command in COMMANDS.values() for action in command.calls.split()}
    known = {f"{service}:{one}" for service, text in aws_permissions.OPERATIONS.items() for one in text.split()}
    assert known == in_table
    for action in in_table:
        denied = ClientError({"Error": {"Code": "AccessDenied", "Message": ""}}, action.partition(":")[2])
        assert missing_action(denied) == action


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_allowed_its_calls(command: str) -> None:
    needed, calls = COMMANDS[command]
    allowed = {action for name in needed for one in policies()[name] for action in one["Action"]}
    assert set(calls.split()) - allowed - FREE == set()
    # And not by less: a policy that it does not need is not asked for.
    for one in needed:
        rest = {action for name in needed if name != one for each in policies()[name] for action in each["Action"]}
        assert set(calls.split()) - rest - FREE


@pytest.mark.parametrize("name", [READ, REDRIVE, FAILOVER])
def test_nothing_is_allowed_that_no_command_needs(name: str) -> None:
    allowed = {action for one in policies()[name] for action in one["Action"]}
    needed = {action for command in COMMANDS.values() if name in command.policies for action in command.calls.split()}
    assert allowed - needed == set()
    assert not any("*" in action for action in allowed)
    assert {one["Effect"] for one in policies()[name]} == {"Allow"}


def test_only_what_knows_no_resource_is_allowed_on_every_resource() -> None:
    starred = set()
    for one in (one for found in policies().values() for one in found):
        if one["Resource"] == ["*"]:
            assert {action for action in one["Action"] if _arns(action)} <= set(ONLY_STAR)
            starred |= set(one["Action"])
            continue
        suits = {
            (action, resource): any(re.fullmatch(text, resource) for text in _arns(action))
            for action in one["Action"]
            for resource in one["Resource"]
        }
        for action in one["Action"]:
            assert any(suits[action, resource] for resource in one["Resource"]), f"{one['Sid']}: nothing for {action}"
        for resource in one["Resource"]:
            assert any(suits[action, resource] for action in one["Action"]), f"{one['Sid']}: no action knows {resource}"
    assert set(ONLY_STAR) <= starred


def _arns(action: str) -> list[str]:
    """What ARNs an action knows, as regular expressions; [] for one that knows no resource."""
    service, _, operation = action.partition(":")
    known = _reference()[service]
    return [
        text.replace("${Partition}", "aws").replace("${Region}", REGION).replace("${Account}", ACCOUNT)
        for kind in known["Actions"][operation.lower()].get("Resources", [])
        for text in known["Resources"][kind.lower()]["ARNFormats"]
    ]


@cache
def _reference() -> Any:
    """The Service Authorization Reference, which cfn-lint brings along."""
    path = Path(cfnlint.__file__).parent / "data/AdditionalSpecs/Policies.json"
    return json.loads(path.read_text(encoding="utf-8"))


#: What each policy must not let through, though it allows the action on something else.
FORBIDDEN = [
    ((READ, REDRIVE), Call("sqs:ReceiveMessage", arn("sqs", f"{FLEET}-orders"))),
    ((READ, REDRIVE), Call("sqs:ReceiveMessage", arn("sqs", f"{FLEET}-payments.fifo"))),
    ((READ, REDRIVE), Call("sqs:DeleteMessage", arn("sqs", f"{FLEET}-orders"))),
    ((READ, REDRIVE), Call("sqs:StartMessageMoveTask", arn("sqs", f"{FLEET}-orders"))),
    ((READ,), Call("sqs:DeleteMessage", arn("sqs", f"{FLEET}-orders-dlq"))),
    ((READ,), Call("sqs:SendMessage", arn("sqs", f"{FLEET}-orders-dlq"))),
    ((READ, FAILOVER), Call("sqs:DeleteMessage", arn("sqs", f"{FLEET}-orders-dlq"))),
    ((READ, REDRIVE, FAILOVER), Call("sqs:GetQueueAttributes", arn("sqs", "other-orders"))),
    ((READ, REDRIVE, FAILOVER), Call("sqs:SendMessage", arn("sqs", "other-orders"))),
    ((READ, REDRIVE, FAILOVER), Call("sqs:ReceiveMessage", arn("sqs", "other-orders-dlq"))),
    ((READ, REDRIVE, FAILOVER), Call("rds:RebootDBInstance", arn("rds", "db:other"))),
    ((READ, REDRIVE), Call("rds:RebootDBInstance", arn("rds", f"db:{FLEET}"))),
    ((READ, REDRIVE, FAILOVER), Call("rds:FailoverDBCluster", arn("rds", "cluster:other"))),
    ((READ,), Call("logs:FilterLogEvents", arn("logs", "log-group:/aws/lambda/other-orders:*"))),
    ((READ,), Call("logs:StartQuery", arn("logs", f"log-group:/aws/rds/proxy/{FLEET}-2:*"))),
    ((READ,), Call("lambda:GetFunctionConfiguration", arn("lambda", "function:other-orders"))),
    ((READ,), Call("cloudformation:GetTemplate", arn("cloudformation", "stack/other/1"))),
    ((READ,), Call("secretsmanager:DescribeSecret", arn("secretsmanager", "secret:other/database/app-1"))),
    ((READ, REDRIVE, FAILOVER), Call("secretsmanager:GetSecretValue", arn("secretsmanager", f"secret:{FLEET}/x"))),
    ((READ, REDRIVE, FAILOVER), Call("lambda:UpdateEventSourceMapping", "*")),
]


@pytest.mark.parametrize(("names", "call"), FORBIDDEN, ids=str)
def test_a_policy_ends_where_the_fleet_ends(names: tuple[str, ...], call: Call) -> None:
    assert not allows(call, names)


def test_a_proxy_and_a_database_of_your_own() -> None:
    query = Call("logs:StartQuery", arn("logs", "log-group:/aws/rds/proxy/mine:log-stream:"))
    reboot = Call("rds:RebootDBInstance", arn("rds", "db:mine"))
    fail_over = Call("rds:FailoverDBCluster", arn("rds", "cluster:mine"))
    for call, given in ((query, "ProxyName"), (reboot, "DatabaseIdentifier"), (fail_over, "DatabaseIdentifier")):
        assert allows(call, (READ, FAILOVER), **{given: "mine"})
        assert not allows(call, (READ, FAILOVER))


def test_the_policies_are_named_after_the_fleet_and_fit() -> None:
    longest = "f" * 40  # infra/proxy.yaml takes no longer name
    stack = resolved(template("operators"), {"FleetName": longest})
    for name, policy in stack.of_type("AWS::IAM::ManagedPolicy").items():
        assert policy["ManagedPolicyName"] == f"{longest}-operators-{name.lower()}"
        # "IAM and AWS STS quotas": 6,144 characters without white space.
        assert len(re.sub(r"\s", "", json.dumps(policy["PolicyDocument"]))) <= 6144
    assert set(stack.outputs) == {"ReadPolicyArn", "RedrivePolicyArn", "FailoverPolicyArn"}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cloud:
    monkeypatch.setenv("SPILLWAY_JOURNAL", str(tmp_path / "journal.sqlite3"))
    monkeypatch.setenv("SPILLWAY_STACK", FLEET)
    cloud = Cloud()
    cloud.install(monkeypatch)
    # Nobody waits for answers that are here already.
    monkeypatch.setattr("spillway.commands.drill.AWS_POLL_S", 0.05)
    monkeypatch.setattr("spillway.drill.drill.BASELINE_S", 0.1)
    monkeypatch.setattr("spillway.drill.aws.AwsFailover.every", 0.05)
    monkeypatch.setattr("spillway.dlq.verdicts.POLL_S", 0.05)
    return cloud


#: A command line -> what it must have called besides finding the fleet, for this to prove something.
RUNS = {
    "dlq list": "sqs:GetQueueAttributes sqs:ReceiveMessage sqs:ChangeMessageVisibility",
    "dlq show orders --all": "sqs:ReceiveMessage sqs:ChangeMessageVisibility",
    "dlq peek payments": "sqs:ReceiveMessage sqs:ChangeMessageVisibility",
    "dlq export orders {file}": "sqs:ReceiveMessage sqs:ChangeMessageVisibility",
    "status": COMMANDS["status"].calls,
    "pinned": "logs:StartQuery logs:GetQueryResults cloudwatch:GetMetricData",
    "doctor": (
        "cloudformation:GetTemplate cloudwatch:GetMetricData cloudwatch:DescribeAlarms lambda:ListTags lambda:GetAlias "
        "ec2:DescribeSecurityGroupRules ec2:DescribeSubnets ec2:DescribeVpcEndpoints lambda:GetFunctionConfiguration "
        "rds:DescribeDBInstances rds:DescribeDBProxies rds:DescribeDBProxyTargets secretsmanager:DescribeSecret"
    ),
    "dlq redrive orders --yes": "sqs:SendMessage sqs:DeleteMessage logs:FilterLogEvents",
    "dlq redrive orders --native --yes": "sqs:StartMessageMoveTask sqs:ListMessageMoveTasks",
    "dlq discard orders --count 2 --export {file}": "sqs:DeleteMessage",
    "dlq import {given} --to orders --yes": "sqs:SendMessage",
    "failover-drill --yes --seconds 0.2 --grace 1 --rate 50": "rds:RebootDBInstance rds:DescribeEvents sqs:SendMessage",
}


@pytest.mark.parametrize("line", RUNS)
def test_a_command_calls_what_its_policies_allow(line: str, cloud: Cloud, tmp_path: Path) -> None:
    given = tmp_path / "given.jsonl"
    given.write_text('{"message_id": "m", "body": "b"}\n')
    words = line.format(file=tmp_path / "made.jsonl", given=given).split()
    result = CliRunner().invoke(program(), words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in ((0, 1) if words[0] == "doctor" else (0,)), result.output

    command = next(name for name in COMMANDS if line == name or line.startswith(f"{name} "))
    needed, may = COMMANDS[command]
    called = {call.action for call in cloud.calls}
    assert called <= set(may.split())
    assert set(RUNS[line].split()) <= called
    assert [call for call in sorted(set(cloud.calls)) if not allows(call, needed)] == []


def test_a_call_that_nobody_thought_of_is_an_error() -> None:
    with pytest.raises(KeyError):
        list(calls_of("sqs", "PurgeQueue", {"QueueUrl": "q"}))
