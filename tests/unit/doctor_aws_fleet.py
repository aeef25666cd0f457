"""What infra/ makes on AWS, in moto: network, secret, alarms. What moto lacks, or cannot set, is answered here.

Every answer is held against botocore's model of the operation, so that none has a field that AWS does not know.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import botocore.session
from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator

from spillway.doctor.facts import Facts
from spillway.doctor.facts_functions import EventSource, Function
from spillway.doctor.facts_stack import Stack
from spillway.doctor.registry import run, select
from spillway.fleet.fleet import Resource
from tests.template.resolved import resolved, template
from tests.unit.doctor_fleet import NAME, REGION, MotoFleet, unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from spillway.doctor.finding import Finding

    Change = Callable[[dict[str, Any]], object]

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
TOPIC = f"arn:aws:sns:{REGION}:123456789012:oncall"
AREAS = ("proxy", "network", "instance", "secrets", "alarms")
PROXY_ARN = f"arn:aws:rds:{REGION}:123456789012:db-proxy:prx-1"
SECRET = f"{NAME}/database/spillway_app"
_SESSION = botocore.session.Session()

PARAMETERS = {
    "DirectAccess": "closed",
    "DatabaseRoute": "proxy",
    "DatabasePort": "5432",
    "DatabaseBorrowTimeout": "20",
    "ProxyMaxConnectionsPercent": "75",
    "ProxyMaxIdleConnectionsPercent": "50",
    "ProxyIdleClientTimeout": "1800",
    "ProxyAuthentication": "secret",
    "Alarms": "on",
    "AlarmTopicArn": TOPIC,
    "Governor": "observe",
}


@dataclass(frozen=True, kw_only=True)
class Aws:
    """A good fleet on AWS. `ids` maps the logical ids of infra/network.yaml to moto's physical ones."""

    fleet: MotoFleet
    ids: Mapping[str, str]
    parameters: Mapping[str, str]
    functions: Mapping[str, Function]
    mappings: Mapping[str, EventSource]

    def look(self, *only: str, areas: Sequence[str] = ()) -> list[Finding]:
        """What the doctor says; of every area of AWS's own unless told."""
        facts = Facts(
            self.fleet,
            now=NOW,
            known={
                "stack": Stack(name=NAME, status="", parameters=self.parameters, wanted=cast("Any", None)),
                "functions": dict(self.functions),
                "mappings": dict(self.mappings),
            },
        )
        return run(facts, select(only, areas or ((), AREAS)[not only]))

    def given(self, **parameters: str) -> Aws:
        """Deployed with these parameters; the resources are as they were."""
        return replace(self, parameters={**self.parameters, **parameters})

    def without(self, *gone: str) -> Aws:
        """A stack that has made no resource of these types or logical ids."""
        left = [one for one in self.fleet.resources if not {one.type, one.logical_id} & set(gone)]
        return replace(self, fleet=replace(self.fleet, resources=left))

    @contextmanager
    def changed(self, service: str, operation: str, change: Change) -> Iterator[None]:
        """Within, the good answer to `operation` is as `change` has left it."""
        good = self.fleet.answers.get((service, operation))

        def answer(asked: dict[str, Any]) -> dict[str, Any]:
            found = copy.deepcopy(good(asked) if good else from_moto(service, operation, asked))
            change(found)
            return checked(service, operation, found)

        with self.fleet.answering(service, operation, answer):
            yield

    @contextmanager
    def broken(self, service: str, operation: str, code: str, message: str = "") -> Iterator[None]:
        """Within, the operation fails."""

        def refuse(_asked: dict[str, Any]) -> Any:
            raise ClientError({"Error": {"Code": code, "Message": message}}, operation)

        with self.fleet.answering(service, operation, refuse):
            yield


def aws() -> Aws:
    """The fleet as infra/ makes it with the default parameters and a topic for its alarms; within mock_aws."""
    ids, network = _network()
    alarms = list(_alarms())
    unanswered("secretsmanager").create_secret(Name=SECRET, SecretString="x")
    fleet = MotoFleet(
        name=NAME,
        region=REGION,
        workers={},
        resources=(
            *network,
            *alarms,
            Resource("Proxy", "AWS::RDS::DBProxy", NAME, "Proxy"),
            Resource("Instance", "AWS::RDS::DBInstance", NAME, "Database"),
            Resource("ApplicationSecret", "AWS::SecretsManager::Secret", SECRET, "Database"),
        ),
    )
    answers = {
        ("rds", "DescribeDBProxies"): _proxies(ids["ProxySecurityGroup"]),
        ("rds", "DescribeDBProxyTargetGroups"): _target_groups(),
        ("rds", "DescribeDBProxyTargets"): {"Targets": [target("AVAILABLE")]},
        ("rds", "DescribeDBProxyEndpoints"): {"DBProxyEndpoints": []},
        ("rds", "DescribeDBInstances"): _instances(ids["DatabaseSecurityGroup"]),
        ("rds", "DescribeCertificates"): {
            "Certificates": [{"CertificateIdentifier": "rds-ca-rsa2048-g1", "ValidTill": NOW + 9000 * DAY}]
        },
        ("rds", "DescribePendingMaintenanceActions"): {"PendingMaintenanceActions": []},
    }
    for (service, operation), answer in answers.items():
        fleet.answers[service, operation] = partial(_always, checked(service, operation, answer))
    for service, operation in (
        ("ec2", "DescribeSecurityGroupRules"),
        ("ec2", "DescribeVpcEndpoints"),
        ("ec2", "DescribeSubnets"),
        ("cloudwatch", "DescribeAlarms"),
    ):
        fleet.answers[service, operation] = _remembered(service, operation)
    fleet.answers["cloudwatch", "GetMetricData"] = lambda asked: metrics(asked, BUSY)
    fleet.answers["secretsmanager", "DescribeSecret"] = _secret
    return Aws(
        fleet=fleet,
        ids=ids,
        parameters=PARAMETERS,
        functions={
            **{name: _function(name, ids) for name in ("orders", "payments")},
            "migrate": Function(
                name=f"{NAME}-migrate",
                logical_id="MigrateFunction",
                timeout_s=60,
                environment={},
                subnets=_subnets(ids),
                groups=(ids["MigratorSecurityGroup"],),
            ),
            "governor": Function(name=f"{NAME}-governor", logical_id="GovernorFunction", timeout_s=60, environment={}),
        },
        mappings={name: _mapping(name) for name in ("orders", "payments")},
    )


def _remembered(service: str, operation: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """moto's answers; what it has is not changed any more, and it takes its time."""
    known: dict[str, dict[str, Any]] = {}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if (found := known.get(repr(asked))) is None:
            found = known[repr(asked)] = checked(service, operation, from_moto(service, operation, asked))
        return found

    return answer


def _always(answer: dict[str, Any], _asked: dict[str, Any]) -> dict[str, Any]:
    return answer


def checked(service: str, operation: str, answer: dict[str, Any]) -> dict[str, Any]:
    """`answer`, if AWS's own model of the operation allows it."""
    shape = _SESSION.get_service_model(service).operation_model(operation).output_shape
    plain = {key: value for key, value in answer.items() if key != "ResponseMetadata"}
    report = ParamValidator().validate(plain, shape)
    assert not report.has_errors(), f"{service} {operation}: {report.generate_report()}"
    return plain


def from_moto(service: str, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What moto answers."""
    answer: dict[str, Any] = getattr(unanswered(service), xform_name(operation))(**asked)
    return answer


def target(state: str, reason: str = "", description: str = "") -> dict[str, Any]:
    """A proxy's target in a state of health."""
    health = {"State": state, "Reason": reason, "Description": description}
    return {
        "RdsResourceId": NAME,
        "Type": "RDS_INSTANCE",
        "Role": "READ_WRITE",
        "TargetHealth": {key: value for key, value in health.items() if value},
    }


#: What the proxy does in every minute of the hour, by facts_load's names; latency in microseconds.
BUSY = {
    "clients": 20.0,
    "connections": 8.0,
    "borrowed": 5.0,
    "pinned": 0.0,
    "writer": 8.0,
    "allowed": 60.0,
    "borrow_latency": 900.0,
    "failed_logins": 0.0,
    "failed_setups": 0.0,
}


def metrics(asked: dict[str, Any], values: Mapping[str, float], minutes: int = 60) -> dict[str, Any]:
    """An answer to GetMetricData: `values` in each of the last `minutes`, nothing for what is not among them."""
    times = [asked["EndTime"] - timedelta(minutes=minutes - number) for number in range(minutes)]
    results = [
        {
            "Id": query["Id"],
            "Label": query["MetricStat"]["Metric"]["MetricName"],
            "Timestamps": times if query["Id"] in values else [],
            "Values": [values[query["Id"]]] * minutes if query["Id"] in values else [],
            "StatusCode": "Complete",
        }
        for query in asked["MetricDataQueries"]
    ]
    return checked("cloudwatch", "GetMetricData", {"MetricDataResults": results})


def _network() -> tuple[dict[str, str], list[Resource]]:
    """infra/network.yaml in moto: VPC, subnets, groups with their rules, interface endpoints."""
    stack, ec2 = resolved(template("network"), {"FleetName": NAME}), unanswered("ec2")
    vpc = ec2.create_vpc(CidrBlock=stack.properties("Vpc")["CidrBlock"])["Vpc"]["VpcId"]
    ids = {"Vpc": vpc}
    for name, zone in (("SubnetA", "a"), ("SubnetB", "b")):
        block = stack.properties(name)["CidrBlock"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=f"{REGION}{zone}")
        ids[name] = subnet["Subnet"]["SubnetId"]
    for name, group in stack.of_type("AWS::EC2::SecurityGroup").items():
        made = ec2.create_security_group(GroupName=name, Description=group["GroupDescription"], VpcId=vpc)
        ids[name] = made["GroupId"]
        # CloudFormation replaces the rule that a new group has.
        ec2.revoke_security_group_egress(GroupId=ids[name], IpPermissions=[_permission({"CidrIp": "0.0.0.0/0"}, {})])
    by_attribute = {f"{name}.GroupId": made for name, made in ids.items()}
    for kind, allow in (
        ("AWS::EC2::SecurityGroupEgress", ec2.authorize_security_group_egress),
        ("AWS::EC2::SecurityGroupIngress", ec2.authorize_security_group_ingress),
    ):
        for rule in stack.of_type(kind).values():
            allow(GroupId=by_attribute[rule["GroupId"]], IpPermissions=[_permission(rule, by_attribute)])
    for name, endpoint in stack.of_type("AWS::EC2::VPCEndpoint").items():
        if endpoint["VpcEndpointType"] == "Interface":
            ids[name] = ec2.create_vpc_endpoint(
                VpcEndpointType="Interface",
                VpcId=vpc,
                ServiceName=endpoint["ServiceName"],
                SecurityGroupIds=[ids[one] for one in endpoint["SecurityGroupIds"]],
                PrivateDnsEnabled=endpoint["PrivateDnsEnabled"],
            )["VpcEndpoint"]["VpcEndpointId"]
    kinds = {name: stack.resources[name]["Type"] for name in ids}
    return ids, [Resource(name, kinds[name], physical, "Network") for name, physical in ids.items()]


def _permission(rule: Mapping[str, Any], groups: Mapping[str, str]) -> dict[str, Any]:
    permission: dict[str, Any] = {"IpProtocol": rule.get("IpProtocol", "-1")}
    if "FromPort" in rule:
        permission |= {"FromPort": int(rule["FromPort"]), "ToPort": int(rule["ToPort"])}
    peer = rule.get("SourceSecurityGroupId") or rule.get("DestinationSecurityGroupId")
    if peer:
        return permission | {"UserIdGroupPairs": [{"GroupId": groups[peer]}]}
    return permission | {"IpRanges": [{"CidrIp": rule["CidrIp"]}]}


def _alarms() -> Iterator[Resource]:
    """The alarms of infra/observability.yaml and of one queue, put into moto."""
    shared = {"FleetName": NAME, "AlarmTopicArn": TOPIC}
    queue = {
        "Worker": "orders",
        "QueueName": f"{NAME}-orders",
        "DeadLetterQueueName": f"{NAME}-orders-dlq",
        "FunctionName": f"{NAME}-orders",
    }
    stacks = {
        "Observability": resolved(template("observability"), shared | {"ProxyName": NAME, "OwnsProxy": "true"}),
        "OrdersAlarms": resolved(template("queue-alarms"), shared | queue),
    }
    client = unanswered("cloudwatch")
    for nested, stack in stacks.items():
        for logical_id, alarm in stack.of_type("AWS::CloudWatch::Alarm").items():
            client.put_metric_alarm(
                AlarmName=alarm["AlarmName"],
                AlarmDescription=alarm["AlarmDescription"],
                AlarmActions=alarm.get("AlarmActions", []),
                TreatMissingData=alarm["TreatMissingData"],
                ComparisonOperator=alarm["ComparisonOperator"],
                EvaluationPeriods=1,
                MetricName="m",
                Namespace="n",
                Period=60,
                Statistic="Sum",
                Threshold=0,
            )
            yield Resource(logical_id, "AWS::CloudWatch::Alarm", alarm["AlarmName"], nested)


def _proxies(group: str) -> dict[str, Any]:
    stack = resolved(
        template("proxy"),
        {
            "FleetName": NAME,
            "DatabaseIdentifier": NAME,
            "DatabaseResourceId": "db-1",
            "KeyArn": "arn:key",
            "SubnetIds": "subnet-0a1b2c3d4e5f60718,subnet-0b1c2d3e4f5061728",
            "ProxySecurityGroupId": group,
            "ApplicationSecretArn": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:{SECRET}",
            "RotatorSecurityGroupId": "sg-1",
        },
        {("Proxy", "DBProxyArn"): PROXY_ARN},
    )
    made = stack.properties("Proxy")
    about = {
        "DBProxyName": NAME,
        "DBProxyArn": PROXY_ARN,
        "Status": "available",
        "EngineFamily": made["EngineFamily"],
        "VpcSecurityGroupIds": made["VpcSecurityGroupIds"],
        "DefaultAuthScheme": made["DefaultAuthScheme"],
        "Auth": made["Auth"],
        "RequireTLS": made["RequireTLS"],
        "IdleClientTimeout": int(made["IdleClientTimeout"]),
        "DebugLogging": made["DebugLogging"],
    }
    return {"DBProxies": [about]}


def _target_groups() -> dict[str, Any]:
    pool = {"MaxConnectionsPercent": 75, "MaxIdleConnectionsPercent": 50, "ConnectionBorrowTimeout": 20}
    return {"TargetGroups": [{"DBProxyName": NAME, "TargetGroupName": "default", "ConnectionPoolConfig": pool}]}


def _instances(group: str) -> dict[str, Any]:
    about = {
        "DBInstanceIdentifier": NAME,
        "DBInstanceArn": f"arn:aws:rds:{REGION}:123456789012:db:{NAME}",
        "DBInstanceStatus": "available",
        "PubliclyAccessible": False,
        "StorageEncrypted": True,
        "MultiAZ": True,
        "IAMDatabaseAuthenticationEnabled": True,
        "BackupRetentionPeriod": 14,
        "DeletionProtection": True,
        "VpcSecurityGroups": [{"VpcSecurityGroupId": group, "Status": "active"}],
        "CertificateDetails": {"CAIdentifier": "rds-ca-rsa2048-g1", "ValidTill": NOW + 300 * DAY},
        "MasterUserSecret": {
            "SecretArn": f"arn:aws:secretsmanager:{REGION}:1:secret:rds!db-1",
            "SecretStatus": "active",
        },
    }
    return {"DBInstances": [about]}


def _secret(asked: dict[str, Any]) -> dict[str, Any]:
    """moto's secret, rotated; the master user's, which only RDS can make."""
    rotation = {
        "RotationEnabled": True,
        "RotationRules": {"AutomaticallyAfterDays": 30},
        "LastRotatedDate": NOW - 10 * DAY,
        "CreatedDate": NOW - 40 * DAY,
    }
    if "rds!" in asked["SecretId"]:
        return checked("secretsmanager", "DescribeSecret", {"Name": "rds!db-1", "OwningService": "rds", **rotation})
    found = from_moto("secretsmanager", "DescribeSecret", asked)
    return checked("secretsmanager", "DescribeSecret", {**found, **rotation})


def _function(worker: str, ids: Mapping[str, str]) -> Function:
    return Function(
        name=f"{NAME}-{worker}",
        logical_id=worker,
        worker=worker,
        timeout_s=45,
        environment={"DATABASE_ROUTE": "proxy", "DATABASE_BORROW_TIMEOUT": "20"},
        subnets=_subnets(ids),
        groups=(ids["ConsumerSecurityGroup"],),
    )


def _subnets(ids: Mapping[str, str]) -> tuple[str, ...]:
    return ids["SubnetA"], ids["SubnetB"]


def _mapping(worker: str) -> EventSource:
    return EventSource(
        worker=worker, logical_id="", batch_size=1000, window_s=1, maximum_concurrency=10, partial_responses=True
    )
