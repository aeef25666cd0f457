"""The fleet as deployed to ministack, with everything that ministack only keeps records of run on this machine.

The functions are ministack's processes of this Python; what they connect to is PostgreSQL, and the RDS Proxy emulator
with TLS and IAM tokens.
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.settings import ProxySettings, Target
from spillway.stack import ports
from tests.deploy.derived import FUNCTION, Change, Template, of_type, replace, without, without_property

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spillway.stack.postgres import PostgresServer
    from tests.deploy.derived import Applied
    from tests.deploy.emulator import Account
    from tests.deploy.sam import Sam

#: What `make artifact` builds for, and the copy deploys.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

#: What ministack asks for where AWS asks for the former.
_ASKED_AS = {
    "lambda:GetEventSourceMapping": "lambda:ListEventSourceMappings",
    "sqs:ChangeMessageVisibility": "sqs:ChangeMessageVisibilityBatch",
    "sqs:SendMessage": "sqs:SendMessageBatch",
}
_UNKNOWN = "ministack does not know the type"


@dataclass(frozen=True)
class Local:
    """What the deployed functions find on this machine instead of RDS."""

    proxy_port: int
    database_port: int
    #: Of a secret with the database owner's `username` and `password`, as RDS would manage it.
    master_secret_arn: str


def changes(local: Local) -> tuple[Change, ...]:
    """All that the copy has otherwise."""
    return (
        without("AWS::EC2::FlowLog", _UNKNOWN),
        without("AWS::EC2::SecurityGroupEgress", _UNKNOWN),
        without("AWS::EC2::SecurityGroupIngress", _UNKNOWN),
        without("AWS::RDS::DBProxy", _UNKNOWN + "; the emulator stands in, its host is localhost"),
        without("AWS::RDS::DBProxyEndpoint", _UNKNOWN),
        without("AWS::RDS::DBProxyTargetGroup", _UNKNOWN),
        without("AWS::SecretsManager::RotationSchedule", _UNKNOWN),
        without("AWS::CloudWatch::Alarm", "ministack knows no metric math", having="Metrics"),
        without_property(FUNCTION, "DeploymentPreference", "ministack has no CodeDeploy"),
        Change(
            f"functions in Python {PYTHON}",
            "ministack runs them with the Python that runs it",
            _runs_here,
        ),
        Change(
            "MaximumConcurrency is a number",
            "ministack's poller takes a parameter's value as text and fails",
            _literal_concurrency,
        ),
        Change(
            "policies allow some operations by another name, too",
            "ministack asks for SendMessageBatch, where on AWS the right to SendMessage is enough; others likewise",
            _other_names,
        ),
        Change(
            f"DATABASE_PORT of the workers is {local.proxy_port}",
            "5432 may be somebody's on this machine",
            lambda _, template: _set_global(template, "DATABASE_PORT", str(local.proxy_port)),
        ),
        Change(
            "the migrate function connects to this machine's PostgreSQL, without TLS",
            "ministack keeps a record of a database and runs none; the PostgreSQL here has no certificate",
            lambda _, template: _connect_the_migrator(template, local),
        ),
        Change(
            "the numbers in Mappings are text",
            "CloudFormation makes text of a variable; ministack hands a number through, and the function cannot start",
            _mappings_as_text,
        ),
        Change(
            "a Ref to a secret is its ARN",
            "it is on AWS; ministack answers with the name",
            _secrets_by_arn,
        ),
        Change(
            "the database owner's secret is made before the stack",
            "ministack makes none for ManageMasterUserPassword",
            lambda _, template: _replace_attribute(template, "MasterUserSecret.SecretArn", local.master_secret_arn),
        ),
    )


def _runs_here(_: str, template: Template) -> Iterator[str]:
    function = template.get("Globals", {}).get("Function", {})
    if function.pop("Runtime", None):
        function["Runtime"] = f"python{PYTHON}"
        yield "Globals"


def _literal_concurrency(_: str, template: Template) -> Iterator[str]:
    for logical_id, properties in of_type(template, FUNCTION):
        for event in properties.get("Events", {}).values():
            scaling = event["Properties"].get("ScalingConfig", {})
            if isinstance(scaling.get("MaximumConcurrency"), dict):
                parameter = template["Parameters"][scaling["MaximumConcurrency"]["Ref"]]
                scaling["MaximumConcurrency"] = int(parameter["Default"])
                yield logical_id


def _mappings_as_text(_: str, template: Template) -> Iterator[str]:
    for name, rows in template.get("Mappings", {}).items():
        for row in rows.values():
            for column, value in row.items():
                if isinstance(value, int):
                    row[column] = str(value)
        yield name


def _other_names(_: str, template: Template) -> Iterator[str]:
    for logical_id, properties in of_type(template, FUNCTION):
        for policy in properties.get("Policies", []):
            for statement in policy.get("Statement", []):
                action = statement.get("Action", [])
                actions = [action] if isinstance(action, str) else action
                if others := [_ASKED_AS[name] for name in actions if name in _ASKED_AS]:
                    statement["Action"] = actions + others
                    yield logical_id


def _set_global(template: Template, name: str, value: str) -> Iterator[str]:
    variables = template.get("Globals", {}).get("Function", {}).get("Environment", {}).get("Variables", {})
    if name in variables:
        variables[name] = value
        yield "Globals"


def _connect_the_migrator(template: Template, local: Local) -> Iterator[str]:
    for logical_id, properties in of_type(template, FUNCTION):
        if properties["Handler"].startswith("workers.migrate."):
            properties["Environment"]["Variables"] |= {
                "DATABASE_HOST": ports.HOST,
                "DATABASE_PORT": str(local.database_port),
                "DATABASE_SSLMODE": "disable",
            }
            yield logical_id


def _secrets_by_arn(_: str, template: Template) -> Iterator[str]:
    secrets = {logical_id for logical_id, _ in of_type(template, "AWS::SecretsManager::Secret")}
    for section in ("Resources", "Outputs"):
        template[section] = replace(
            template.get(section, {}), lambda target: {"Fn::GetAtt": [target, "Id"]} if target in secrets else None
        )
    yield from secrets


def _replace_attribute(template: Template, attribute: str, value: str) -> Iterator[str]:
    """Replace an attribute of whichever resource by a value."""
    found: list[str] = []

    def answer(target: str) -> str | None:
        logical_id, _, name = target.partition(".")
        if name != attribute:
            return None
        found.append(logical_id)
        return value

    for section in ("Resources", "Outputs"):
        template[section] = replace(template.get(section, {}), answer)
    yield from dict.fromkeys(found)


@dataclass
class FunctionKeys:
    """The credentials that ministack gives to functions: the secret access key by access key id.

    Made from a function's ARN and its role's as ministack makes them (`execution_credentials` in its
    core/lambda_runtime.py); it has no call that tells them.
    """

    account: Account
    keys: dict[str, str] = field(default_factory=dict)

    def learn(self) -> None:
        """Add the keys of all functions and versions that there are now."""
        functions = self.account.client("lambda")
        for function in functions.list_functions()["Functions"]:
            for version in functions.list_versions_by_function(FunctionName=function["FunctionName"])["Versions"]:
                digest = hashlib.sha256(f"{version['FunctionArn']}:{version['Role']}".encode()).hexdigest()
                self.keys[f"ASIA{digest[:16].upper()}"] = hashlib.sha256(f"secret:{digest}".encode()).hexdigest()


#: What a stack could leave behind: service, the call that lists it, and the way to the names in its answer.
INVENTORY = (
    ("cloudformation", "list_stacks", "StackSummaries", "StackName"),
    ("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
    ("cloudwatch", "list_dashboards", "DashboardEntries", "DashboardName"),
    ("ec2", "describe_security_groups", "SecurityGroups", "GroupId"),
    ("ec2", "describe_subnets", "Subnets", "SubnetId"),
    ("ec2", "describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
    ("ec2", "describe_vpcs", "Vpcs", "VpcId"),
    ("events", "list_rules", "Rules", "Name"),
    ("iam", "list_policies", "Policies", "PolicyName"),
    ("iam", "list_roles", "Roles", "RoleName"),
    ("kms", "list_aliases", "Aliases", "AliasName"),
    ("kms", "list_keys", "Keys", "KeyId"),
    ("lambda", "list_event_source_mappings", "EventSourceMappings", "UUID"),
    ("lambda", "list_functions", "Functions", "FunctionName"),
    ("logs", "describe_log_groups", "logGroups", "logGroupName"),
    ("rds", "describe_db_clusters", "DBClusters", "DBClusterIdentifier"),
    ("rds", "describe_db_instances", "DBInstances", "DBInstanceIdentifier"),
    ("rds", "describe_db_subnet_groups", "DBSubnetGroups", "DBSubnetGroupName"),
    ("secretsmanager", "list_secrets", "SecretList", "Name"),
    ("sqs", "list_queues", "QueueUrls", ""),
)


def inventory(account: Account) -> set[str]:
    """All that an account holds, as `service what name`; deleted stacks and keys that wait for it do not count."""
    held: set[str] = set()
    for service, call, where, name in INVENTORY:
        client = account.client(service)
        scope = {"Scope": "Local"} if call == "list_policies" else {}
        for each in getattr(client, call)(**scope).get(where, []):
            if service == "kms" and call == "list_keys":
                if client.describe_key(KeyId=each[name])["KeyMetadata"]["KeyState"] == "PendingDeletion":
                    continue
            elif service == "cloudformation" and each["StackStatus"] == "DELETE_COMPLETE":
                continue
            held.add(f"{service} {where} {each[name] if name else each}")
    return held


@dataclass
class Deployment:
    """The fleet's stack in `account`, and what it runs on."""

    account: Account
    database: PostgresServer
    sam: Sam
    local: Local
    keys: FunctionKeys
    root: Path
    applied: list[Applied]
    #: What the account held before.
    before: set[str]
    stack: str = "fleet"
    parameters: dict[str, str] = field(default_factory=dict)
    #: Where the first deployment's template is, as SAM uploaded it: with the code's places in it.
    template_url: str = ""

    def deploy(self, **parameters: str) -> str:
        """`sam deploy` with the parameters given so far and these; returns what it printed. Raises Refused."""
        wanted = self.parameters | parameters
        certificates = self.root / "certificates"
        printed = self.sam.deploy(
            self.stack,
            {"Architecture": "x86_64", "DeletionProtection": "off", "DatabaseSslRootCert": str(certificates / "ca.pem")}
            | wanted,
        )
        self.parameters = wanted
        self.keys.learn()
        return printed

    def keep_template(self) -> None:
        """Have the template stay when the stack is gone, for stacks of other parameters."""
        cloudformation, s3 = self.account.client("cloudformation"), self.account.client("s3")
        template = cloudformation.get_template(StackName=self.stack, TemplateStage="Original")["TemplateBody"]
        s3.create_bucket(Bucket="kept")
        body = template if isinstance(template, str) else json.dumps(template)
        s3.put_object(Bucket="kept", Key="template", Body=body)
        self.template_url = f"{self.account.endpoint_url}/kept/template"

    def delete(self) -> None:
        """Delete the stack as CloudFormation does.

        Not by `sam delete`, which also removes what it uploaded: it only knows addresses of S3 at AWS.
        """
        cloudformation = self.account.client("cloudformation")
        cloudformation.delete_stack(StackName=self.stack)
        cloudformation.get_waiter("stack_delete_complete").wait(
            StackName=self.stack, WaiterConfig={"Delay": 1, "MaxAttempts": 120}
        )

    @contextmanager
    def proxy(self) -> Iterator[BackgroundProxy]:
        """The RDS Proxy that the deployed one stands for: TLS, IAM tokens of the functions, the stack's own secret."""
        login = self.secret("Database", "ApplicationSecretArn")
        settings = ProxySettings(
            target=Target(
                host=ports.HOST,
                port=self.local.database_port,
                database="spillway",
                user=login["username"],
                password=login["password"],
            ),
            listen_port=self.local.proxy_port,
            endpoints=("localhost",),
            max_connections=20,
            connection_borrow_timeout=10,
            require_tls=True,
            iam_auth="required",
            region="us-east-1",
            credentials=self.keys.keys,
            certificate_dir=self.root / "certificates",
        )
        with BackgroundProxy(settings) as proxy:
            yield proxy

    def outputs(self, stack: str) -> dict[str, str]:
        """The outputs of a stack, by its name or id."""
        [described] = self.account.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])}

    def nested(self, logical_id: str) -> dict[str, str]:
        """The outputs of a nested stack."""
        resource = self.account.client("cloudformation").describe_stack_resource(
            StackName=self.stack, LogicalResourceId=logical_id
        )
        return self.outputs(resource["StackResourceDetail"]["PhysicalResourceId"])

    def secret(self, nested: str, output: str) -> dict[str, str]:
        """The value of the secret that an output of a nested stack names."""
        value = self.account.client("secretsmanager").get_secret_value(SecretId=self.nested(nested)[output])
        loaded: dict[str, str] = json.loads(value["SecretString"])
        return loaded
