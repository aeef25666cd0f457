"""The doctor on what AWS runs for the fleet: each fault is seeded alone into a good account, and found alone."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from moto import mock_aws

from spillway.doctor.facts import Facts
from spillway.doctor.facts_functions import GOVERNOR, MIGRATE
from spillway.doctor.facts_load import Load, Minute
from spillway.doctor.facts_network import ROLES
from spillway.doctor.facts_proxy import Proxy, Target
from spillway.doctor.facts_proxy import Secret as ProxySecret
from spillway.doctor.finding import Finding, Level
from spillway.doctor.registry import run, select
from spillway.fleet.fleet import Fleet, Resource
from spillway.rdsproxy.admin import AdminServer
from spillway.rdsproxy.metrics import Metrics
from spillway.rdsproxy.settings import Target as DatabaseTarget
from spillway.stack.state import StackState
from tests.template.resolved import template
from tests.unit.doctor_aws_fleet import AREAS, BUSY, DAY, NAME, NOW, SECRET, Aws, aws, checked, metrics, target
from tests.unit.doctor_fleet import REGION, troubles, unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answer = dict[str, Any]

WARN, FAIL, SKIP, PASS = Level.WARN, Level.FAIL, Level.SKIP, Level.PASS
HALF_HOUR = timedelta(minutes=30)
NEW_VERSION = "0" * 32


@pytest.fixture(scope="module")
def good() -> Iterator[Aws]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        yield aws()


@dataclass(frozen=True)
class Fault:
    """`change` seeds it into the answer to `operation`; `said` and `fix` are words of the one finding about it."""

    name: str
    service: str
    operation: str
    change: Callable[[Answer], object]
    check: str
    level: Level
    said: str
    fix: str


def only(key: str) -> Callable[[Answer], Answer]:
    """Of an answer the single thing that it lists."""

    def pick(answer: Answer) -> Answer:
        (one,) = answer[key]
        return one

    return pick


def sets(key: str, *path: str, **values: Any) -> Callable[[Answer], None]:
    """Changes fields of the single thing that an answer lists."""

    def change(answer: Answer) -> None:
        one = only(key)(answer)
        for step in path:
            one = one[step]
        one.update(values)

    return change


proxy = partial(Fault, service="rds", operation="DescribeDBProxies")
pool = partial(Fault, service="rds", operation="DescribeDBProxyTargetGroups")
instance = partial(Fault, service="rds", operation="DescribeDBInstances")
secret = partial(Fault, service="secretsmanager", operation="DescribeSecret")
alarm = partial(Fault, service="cloudwatch", operation="DescribeAlarms")


def unhealthy(reason: str, check_fix: str, description: str = "") -> Fault:
    return Fault(
        name=f"target {reason}",
        service="rds",
        operation="DescribeDBProxyTargets",
        change=lambda answer: answer.update(Targets=[target("UNAVAILABLE", reason, description)]),
        check="proxy-targets",
        level=FAIL,
        said=f"UNAVAILABLE ({reason}",
        fix=check_fix,
    )


def alarms(name: str, **values: Any) -> Callable[[Answer], None]:
    """Changes the fleet's alarm `name`."""

    def change(answer: Answer) -> None:
        (one,) = (one for one in answer["MetricAlarms"] if one["AlarmName"] == f"{NAME}-{name}")
        one.update(values)

    return change


FAULTS = [
    unhealthy("AUTH_FAILURE", "rotate-secret", "Proxy does not have any registered credentials"),
    unhealthy("UNREACHABLE", "security group"),
    unhealthy("CONNECTION_FAILED", "max_connections"),
    unhealthy("PENDING_PROXY_CAPACITY", "wait some minutes"),
    unhealthy("INVALID_REPLICATION_STATE", "describe-blue-green-deployments"),
    unhealthy("PROMOTED", "blue/green"),
    Fault(
        "no target",
        "rds",
        "DescribeDBProxyTargets",
        lambda answer: answer.update(Targets=[]),
        "proxy-targets",
        FAIL,
        "no target",
        "register-db-proxy-targets",
    ),
    Fault(
        "target being registered",
        "rds",
        "DescribeDBProxyTargets",
        lambda answer: answer.update(Targets=[target("REGISTERING")]),
        "proxy-targets",
        WARN,
        "being registered",
        "some minutes",
    ),
    Fault(
        "endpoint in a full subnet",
        "rds",
        "DescribeDBProxyEndpoints",
        lambda answer: answer["DBProxyEndpoints"].append(
            {"DBProxyEndpointName": f"{NAME}-reader", "Status": "insufficient-resource-limits"}
        ),
        "proxy-endpoints",
        FAIL,
        "insufficient-resource-limits",
        "subnets",
    ),
    proxy(
        name="proxy suspended",
        change=sets("DBProxies", Status="suspended"),
        check="proxy-endpoints",
        level=FAIL,
        said="suspended",
        fix="describe-db-proxies",
    ),
    proxy(
        name="TLS optional",
        change=sets("DBProxies", RequireTLS=False),
        check="proxy-tls",
        level=FAIL,
        said="without TLS",
        fix="--require-tls",
    ),
    proxy(
        name="password login",
        change=lambda answer: only("Auth")(only("DBProxies")(answer)).update(IAMAuth="DISABLED"),
        check="proxy-iam",
        level=FAIL,
        said=f"passwords for {SECRET}",
        fix="IAMAuth=REQUIRED",
    ),
    proxy(
        name="no way to log in",
        change=sets("DBProxies", Auth=[]),
        check="proxy-iam",
        level=FAIL,
        said="no way to log in",
        fix="--default-auth-scheme IAM_AUTH",
    ),
    pool(
        name="borrow timeout raised",
        change=sets("TargetGroups", "ConnectionPoolConfig", ConnectionBorrowTimeout=120),
        check="proxy-borrow-timeout",
        level=FAIL,
        said="wait 120 s",
        fix="ConnectionBorrowTimeout=20",
    ),
    pool(
        name="borrow timeout lowered",
        change=sets("TargetGroups", "ConnectionPoolConfig", ConnectionBorrowTimeout=5),
        check="proxy-borrow-timeout",
        level=WARN,
        said="sooner than they could",
        fix="ConnectionBorrowTimeout=20",
    ),
    proxy(
        name="debug logging",
        change=sets("DBProxies", DebugLogging=True),
        check="proxy-debug-logging",
        level=WARN,
        said="payloads",
        fix="--no-debug-logging",
    ),
    proxy(
        name="set by hand",
        change=sets("DBProxies", IdleClientTimeout=3600),
        check="proxy-settings",
        level=WARN,
        said="ProxyIdleClientTimeout is 3600, deployed with 1800",
        fix="modify-db-proxy --db-proxy-name spillway-test --idle-client-timeout 1800",
    ),
    Fault(
        "no private DNS",
        "ec2",
        "DescribeVpcEndpoints",
        lambda answer: endpoint(answer, "sqs").update(PrivateDnsEnabled=False),
        "vpc-endpoints",
        FAIL,
        "no private DNS",
        "--private-dns-enabled",
    ),
    Fault(
        "endpoint failed",
        "ec2",
        "DescribeVpcEndpoints",
        lambda answer: endpoint(answer, "sqs").update(State="Failed"),
        "vpc-endpoints",
        FAIL,
        "sqs is failed",
        "describe-vpc-endpoints",
    ),
    Fault(
        "endpoint deleted",
        "ec2",
        "DescribeVpcEndpoints",
        lambda answer: answer["VpcEndpoints"].remove(endpoint(answer, "secretsmanager")),
        "vpc-endpoints",
        FAIL,
        "no interface endpoint for secretsmanager",
        "create-vpc-endpoint",
    ),
    Fault(
        "one zone",
        "ec2",
        "DescribeSubnets",
        lambda answer: [one.update(AvailabilityZone="eu-west-1a") for one in answer["Subnets"]],
        "subnet-zones",
        FAIL,
        "all subnets are in eu-west-1a",
        "SubnetIds",
    ),
    instance(
        name="database down",
        change=sets("DBInstances", DBInstanceStatus="storage-full"),
        check="instance-status",
        level=FAIL,
        said="storage-full",
        fix="--source-type db-instance",
    ),
    instance(
        name="database restarts",
        change=sets("DBInstances", DBInstanceStatus="rebooting"),
        check="instance-status",
        level=WARN,
        said="rebooting",
        fix="Look again",
    ),
    instance(
        name="public database",
        change=sets("DBInstances", PubliclyAccessible=True),
        check="instance-public",
        level=FAIL,
        said="public address",
        fix="--no-publicly-accessible",
    ),
    instance(
        name="plain storage",
        change=sets("DBInstances", StorageEncrypted=False),
        check="instance-encryption",
        level=FAIL,
        said="not encrypted",
        fix="--kms-key-id",
    ),
    instance(
        name="IAM off",
        change=sets("DBInstances", IAMDatabaseAuthenticationEnabled=False),
        check="instance-iam",
        level=FAIL,
        said="no IAM tokens",
        fix="--enable-iam-database-authentication",
    ),
    instance(
        name="no backups",
        change=sets("DBInstances", BackupRetentionPeriod=0),
        check="instance-backups",
        level=FAIL,
        said="no automatic backups",
        fix="BackupRetentionDays=14",
    ),
    instance(
        name="unprotected",
        change=sets("DBInstances", DeletionProtection=False),
        check="instance-protection",
        level=WARN,
        said="is off",
        fix="DeletionProtection=on",
    ),
    instance(
        name="no standby",
        change=sets("DBInstances", MultiAZ=False),
        check="instance-standby",
        level=WARN,
        said="nothing takes over",
        fix="MultiAz=true",
    ),
    instance(
        name="certificate expired",
        change=sets("DBInstances", "CertificateDetails", ValidTill=NOW - DAY),
        check="instance-certificate",
        level=FAIL,
        said="expired on",
        fix="--ca-certificate-identifier",
    ),
    Fault(
        "authority expires",
        "rds",
        "DescribeCertificates",
        sets("Certificates", ValidTill=NOW + 89 * DAY),
        "instance-certificate",
        WARN,
        "rds-ca-rsa2048-g1 expires on",
        "--ca-certificate-identifier",
    ),
    Fault(
        "upgrade pending",
        "rds",
        "DescribePendingMaintenanceActions",
        lambda answer: answer["PendingMaintenanceActions"].append(
            {
                "ResourceIdentifier": f"arn:aws:rds:{REGION}:123456789012:db:{NAME}",
                "PendingMaintenanceActionDetails": [{"Action": "system-update", "Description": "New OS"}],
            }
        ),
        "instance-maintenance",
        WARN,
        "system-update is pending: New OS",
        "--apply-action system-update",
    ),
    instance(
        name="stranger's group on the database",
        change=lambda answer: only("DBInstances")(answer)["VpcSecurityGroups"].append({"VpcSecurityGroupId": "sg-9"}),
        check="attached-groups",
        level=FAIL,
        said="in sg-9, too",
        fix="modify-db-instance",
    ),
    proxy(
        name="stranger's group on the proxy",
        change=lambda answer: only("DBProxies")(answer)["VpcSecurityGroupIds"].append("sg-9"),
        check="attached-groups",
        level=FAIL,
        said="in sg-9, too",
        fix="modify-db-proxy",
    ),
    secret(
        name="a rotation has stopped",
        change=lambda answer: (
            answer["VersionIdsToStages"].update({NEW_VERSION: ["AWSPENDING"]}) if answer["Name"] == SECRET else None
        ),
        check="secret-pending",
        level=WARN,
        said="AWSPENDING",
        fix=f"rotate-secret --secret-id {SECRET}",
    ),
    instance(
        name="master password by hand",
        change=lambda answer: only("DBInstances")(answer).pop("MasterUserSecret"),
        check="secret-master",
        level=FAIL,
        said="somebody else than RDS",
        fix="--manage-master-user-password",
    ),
    instance(
        name="master secret impaired",
        change=sets("DBInstances", "MasterUserSecret", SecretStatus="impaired"),
        check="secret-master",
        level=FAIL,
        said="impaired",
        fix="--no-manage-master-user-password",
    ),
    alarm(
        name="alarm deleted",
        change=lambda answer: [
            answer["MetricAlarms"].remove(one)
            for one in list(answer["MetricAlarms"])
            if one["AlarmName"] == f"{NAME}-orders-saturated"
        ],
        check="alarms-exist",
        level=FAIL,
        said="deleted past CloudFormation",
        fix="Alarms=off",
    ),
    alarm(
        name="alarm muted",
        change=alarms("pinned", ActionsEnabled=False),
        check="alarms-tell",
        level=FAIL,
        said="switched off",
        fix=f"enable-alarm-actions --alarm-names {NAME}-pinned",
    ),
    alarm(
        name="alarm tells another topic",
        change=alarms("pinned", AlarmActions=["arn:aws:sns:eu-west-1:1:old"]),
        check="alarms-tell",
        level=FAIL,
        said="does not tell the topic",
        fix="Deploy without AlarmTopicArn",
    ),
    alarm(
        name="alarm in ALARM",
        change=alarms("orders-dead-letters", StateValue="ALARM", StateTransitionedTimestamp=NOW - HALF_HOUR),
        check="alarms-quiet",
        level=FAIL,
        said=f"ALARM since {NOW - HALF_HOUR:%Y-%m-%d %H:%M} UTC",
        fix="docs/operations.md#dead-letters",
    ),
    alarm(
        name="rollback alarm in ALARM",
        change=alarms("orders-rollback-unknown", StateValue="ALARM"),
        check="alarms-quiet",
        level=WARN,
        said="would be rolled back",
        fix="#rollback-unknown",
    ),
    alarm(
        name="housekeeping silent",
        change=alarms("housekeeping", StateValue="INSUFFICIENT_DATA", StateTransitionedTimestamp=NOW - 2 * DAY),
        check="alarms-see",
        level=FAIL,
        said="no data since",
        fix="docs/operations.md#housekeeping",
    ),
    alarm(
        name="CPU unseen",
        change=alarms("proxy-availability", StateValue="INSUFFICIENT_DATA", StateTransitionedTimestamp=NOW - 2 * DAY),
        check="alarms-see",
        level=WARN,
        said="no data since",
        fix="describe-alarms",
    ),
]


def endpoint(answer: Answer, service: str) -> Answer:
    (one,) = (one for one in answer["VpcEndpoints"] if one["ServiceName"].endswith(f".{service}"))
    return one


def test_a_good_account_is_passed_by_every_check(good: Aws) -> None:
    findings = good.look()
    assert {(one.check, one.level) for one in findings} == {(one.name, PASS) for one in select((), AREAS)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_alone(good: Aws, fault: Fault) -> None:
    with good.changed(fault.service, fault.operation, fault.change):
        findings = good.look()
    assert troubles(findings) == [(fault.check, fault.level)]
    (finding,) = (one for one in findings if one.level is fault.level)
    assert fault.said in finding.said
    assert fault.fix in finding.fix
    assert finding.docs == f"docs/doctor.md#{fault.check}"
    assert {one.check for one in findings} == {one.name for one in select((), AREAS)}
    assert SKIP not in {one.level for one in findings}


# The network: one rule more, or one less


HOPS = [
    ("ConsumerSecurityGroup", "ProxySecurityGroup", "consumers -> proxy"),
    ("ProxySecurityGroup", "DatabaseSecurityGroup", "proxy -> database"),
    ("MigratorSecurityGroup", "DatabaseSecurityGroup", "migrator -> database"),
    ("RotatorSecurityGroup", "DatabaseSecurityGroup", "rotator -> database"),
]


def peer_of(rule: Answer) -> str:
    return rule.get("ReferencedGroupInfo", {}).get("GroupId", "")


@pytest.mark.parametrize("egress", [True, False], ids=["egress", "ingress"])
@pytest.mark.parametrize(("client", "server", "hop"), HOPS, ids=[hop for _, _, hop in HOPS])
def test_a_hop_needs_a_rule_on_each_side(good: Aws, client: str, server: str, hop: str, egress: bool) -> None:
    group, peer = (good.ids[client], good.ids[server])[:: 1 if egress else -1]

    def change(answer: Answer) -> None:
        rules = answer["SecurityGroupRules"]
        (rule,) = (
            one for one in rules if one["GroupId"] == group and peer_of(one) == peer and one["IsEgress"] is egress
        )
        rules.remove(rule)

    with good.changed("ec2", "DescribeSecurityGroupRules", change):
        findings = good.look()
    assert troubles(findings) == [("network-hops", FAIL)]
    (finding,) = (one for one in findings if one.level is FAIL)
    assert finding.resource == hop
    side = "egress" if egress else "ingress"
    assert f"authorize-security-group-{side} --group-id {group} " in finding.fix
    assert f"UserIdGroupPairs=[{{GroupId={peer}}}]" in finding.fix


def lets_in(group: str, *, port: int = 5432, protocol: str = "tcp", **peer: Any) -> Callable[[Answer], None]:
    """One more rule on `group`."""
    rule = {"SecurityGroupRuleId": "sgr-1", "GroupId": group, "IsEgress": False, "IpProtocol": protocol}
    return lambda answer: answer["SecurityGroupRules"].append(rule | {"FromPort": port, "ToPort": port} | peer)


@pytest.mark.parametrize(
    ("server", "check"), [("DatabaseSecurityGroup", "database-exposure"), ("ProxySecurityGroup", "proxy-exposure")]
)
@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ({"CidrIpv4": "10.0.0.0/8"}, "10.0.0.0/8 reach the"),
        ({"ReferencedGroupInfo": {"GroupId": "sg-9"}}, "sg-9 reach the"),
        ({"PrefixListId": "pl-1"}, "pl-1 reach the"),
        ({"CidrIpv4": "0.0.0.0/0"}, "everybody in (0.0.0.0/0)"),
        ({"CidrIpv6": "::/0"}, "everybody in (::/0)"),
        ({"CidrIpv4": "10.0.0.0/8", "IpProtocol": "-1", "FromPort": -1, "ToPort": -1}, "10.0.0.0/8 reach the"),
    ],
    ids=["range", "group", "prefix list", "everybody", "everybody by IPv6", "every protocol"],
)
def test_nobody_else_is_let_in(good: Aws, server: str, check: str, peer: Answer, said: str) -> None:
    with good.changed("ec2", "DescribeSecurityGroupRules", lets_in(good.ids[server], **peer)):
        findings = good.look()
    assert troubles(findings) == [(check, FAIL)]
    (finding,) = (one for one in findings if one.level is FAIL)
    assert said in finding.said
    assert f"--group-id {good.ids[server]} --security-group-rule-ids sgr-1" in finding.fix


@pytest.mark.parametrize("rule", [{"port": 22}, {"protocol": "udp"}], ids=["port", "protocol"])
def test_a_rule_that_does_not_lead_to_the_database_is_none(good: Aws, rule: Any) -> None:
    change = lets_in(good.ids["DatabaseSecurityGroup"], CidrIpv4="10.0.0.0/8", **rule)
    with good.changed("ec2", "DescribeSecurityGroupRules", change):
        assert troubles(good.look()) == []


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, [("direct-access", FAIL)]),
        ({"DirectAccess": "open"}, [("network-hops", FAIL), ("direct-access", WARN)]),
        ({"DirectAccess": "open", "DatabaseRoute": "direct"}, [("network-hops", FAIL)]),
    ],
    ids=["closed", "left open", "in use"],
)
def test_the_way_past_the_proxy(good: Aws, parameters: dict[str, str], found: list[Any]) -> None:
    consumers = {"ReferencedGroupInfo": {"GroupId": good.ids["ConsumerSecurityGroup"]}}
    change = lets_in(good.ids["DatabaseSecurityGroup"], **consumers)
    with good.changed("ec2", "DescribeSecurityGroupRules", change):
        # Where it is meant to be open, the consumers' side of it is still missing.
        assert troubles(good.given(**parameters).look()) == found


@pytest.mark.parametrize(
    ("egress", "said"),
    [
        (False, "the endpoint for sqs does not let consumers in on 443"),
        (True, "consumers may not go out to the endpoint for sqs on 443"),
    ],
)
def test_the_way_to_an_endpoint(good: Aws, egress: bool, said: str) -> None:
    consumers, endpoints = good.ids["ConsumerSecurityGroup"], good.ids["EndpointSecurityGroup"]
    group, peer = (consumers, endpoints) if egress else (endpoints, consumers)

    def change(answer: Answer) -> None:
        rules = answer["SecurityGroupRules"]
        rules.remove(next(one for one in rules if (one["GroupId"], peer_of(one)) == (group, peer)))

    with good.changed("ec2", "DescribeSecurityGroupRules", change):
        findings = good.look()
    assert troubles(findings) == [("vpc-endpoints", FAIL)]
    (finding,) = (one for one in findings if one.level is FAIL)
    assert finding.said == said
    assert f"authorize-security-group-{'egress' if egress else 'ingress'} --group-id {group} " in finding.fix


def test_a_group_of_the_stack_that_has_no_business_there(good: Aws) -> None:
    peer = {"ReferencedGroupInfo": {"GroupId": good.ids["EndpointSecurityGroup"]}}
    with good.changed("ec2", "DescribeSecurityGroupRules", lets_in(good.ids["DatabaseSecurityGroup"], **peer)):
        findings = good.look()
    assert troubles(findings) == [("database-exposure", FAIL)]
    (finding,) = (one for one in findings if one.level is FAIL)
    assert f"lets endpoints ({good.ids['EndpointSecurityGroup']}) reach the database" in finding.said


def test_the_endpoints_of_your_vpc(good: Aws) -> None:
    """The groups that they are in count, whichever the stack names."""
    own = good.without("AWS::EC2::VPC", "EndpointSecurityGroup")
    account = own.given(VpcId=good.ids["Vpc"], EndpointSecurityGroupId=good.ids["RotatorSecurityGroup"])
    findings = account.look("vpc-endpoints")
    assert [one.level for one in findings] == [PASS, PASS]
    with account.changed("ec2", "DescribeVpcEndpoints", lambda answer: answer["VpcEndpoints"].clear()):
        findings = account.look("vpc-endpoints")
    assert [one.level for one in findings] == [FAIL, FAIL]
    assert {f"--security-group-ids {good.ids['RotatorSecurityGroup']}" in one.fix for one in findings} == {True}


@pytest.mark.parametrize(
    ("function", "change", "said"),
    [
        ("orders", {"groups": (), "subnets": ()}, "it is in no VPC"),
        ("migrate", {"groups": (), "subnets": ()}, "it is in no VPC"),
        ("orders", {"groups": ("ConsumerSecurityGroup", "sg-9")}, "it is in sg-9, too, whose rules"),
        ("orders", {"groups": ("sg-9",)}, "it is not in sg-"),
        ("migrate", {"groups": ("ConsumerSecurityGroup",)}, "it is not in sg-"),
        ("orders", {"subnets": ("SubnetA", "subnet-9")}, "it is in subnet-9, which is none of the stack's"),
    ],
)
def test_a_function_that_is_not_where_it_belongs(good: Aws, function: str, change: Any, said: str) -> None:
    ids = {name: tuple(good.ids.get(one, one) for one in named) for name, named in change.items()}
    moved = replace(good.functions[function], **ids)
    account = replace(good, functions={**good.functions, function: moved})
    findings = account.look()
    assert troubles(findings) == [("function-network", FAIL)]
    (finding,) = (one for one in findings if one.level is FAIL)
    assert finding.resource == f"{NAME}-{function}"
    assert said in finding.said
    assert "detect-stack-drift" in finding.fix


def test_functions_of_a_stack_without_a_network_of_its_own(good: Aws) -> None:
    findings = good.without("ConsumerSecurityGroup").look("function-network")
    assert [one.level for one in findings] == [SKIP, SKIP, PASS]


def test_which_functions_are_where_is_the_templates() -> None:
    functions = {
        name: one["Properties"].get("VpcConfig")
        for name, one in template("../template")["Resources"].items()
        if one["Type"] == "AWS::Serverless::Function"
    }
    assert {name for name, network in functions.items() if network is None} == {GOVERNOR}
    consumers = {"Fn::GetAtt": ["Network", "Outputs.ConsumerSecurityGroupId"]}
    others = {name for name, network in functions.items() if network and network["SecurityGroupIds"] != [consumers]}
    assert others == {MIGRATE}


def test_the_network_is_the_templates() -> None:
    groups = {
        name for name, one in template("network")["Resources"].items() if one["Type"] == "AWS::EC2::SecurityGroup"
    }
    assert groups == set(ROLES)
    root = template("../template")["Resources"]
    for nested, kind in {"Network": "network", "Database": "database", "Proxy": "proxy"}.items():
        assert root[nested]["Properties"]["TemplateURL"] == f"infra/{kind}.yaml"


# The proxy's load


@pytest.mark.parametrize(
    ("values", "minutes", "found", "said"),
    [
        ({"borrowed": 18.0}, 60, [("proxy-multiplexing", WARN)], "20 clients borrow 18 connections"),
        ({"borrowed": 17.0}, 60, [], ""),
        ({"clients": 9.0, "borrowed": 9.0}, 60, [], ""),
        ({"pinned": 1.0}, 60, [("proxy-pinned", WARN)], "up to 1 session(s) pinned in the last hour"),
        ({"pinned": 1.0}, 1, [("proxy-pinned", WARN)], "up to 1 session(s) pinned in the last hour"),
        ({"pinned": 3.0}, 60, [("proxy-pinned", FAIL)], "more than 30% of the connections"),
        ({"borrow_latency": 2.1e6}, 60, [("proxy-borrow-latency", WARN)], "up to 2.1 s on average"),
        ({"borrow_latency": 1.9e6}, 60, [], ""),
        ({"writer": 55.0}, 60, [("proxy-pool-use", WARN)], "92% of the 60 connections"),
        ({"writer": 54.0}, 60, [], ""),
        ({"allowed": 19.0}, 60, [("proxy-concurrency", WARN)], "20 batches may be written at once"),
        ({"failed_logins": 1.0}, 60, [("proxy-login-failures", WARN)], "refused 60 client(s)"),
        ({"failed_setups": 1.0}, 2, [("proxy-setup-failures", WARN)], "2 connection(s) to the database"),
    ],
)
def test_load(good: Aws, values: dict[str, float], minutes: int, found: list[Any], said: str) -> None:
    def answer(asked: Answer) -> Answer:
        return metrics(asked, BUSY | values, minutes)

    with good.fleet.answering("cloudwatch", "GetMetricData", answer):
        findings = good.look(areas=["proxy"])
    assert troubles(findings) == found
    assert [said in one.said for one in findings if one.level in (WARN, FAIL)] == [True] * len(found)


@pytest.mark.parametrize(
    "value", [{"pinned": 8.0}, {"writer": 60.0}, {"failed_logins": 9.0}, {"borrow_latency": 9e6}], ids=str
)
def test_two_minutes_of_it_are_no_fault_yet(good: Aws, value: dict[str, float]) -> None:
    def answer(asked: Answer) -> Answer:
        whole, after = metrics(asked, BUSY), metrics(asked, BUSY | value, 2)
        for one, other in zip(whole["MetricDataResults"], after["MetricDataResults"], strict=True):
            one["Values"][-2:] = other["Values"]
        return whole

    with good.fleet.answering("cloudwatch", "GetMetricData", answer):
        found = troubles(good.look(areas=["proxy"]))
    assert found == [("proxy-pinned", WARN)] * ("pinned" in value)


def test_an_idle_proxy_is_well(good: Aws) -> None:
    with good.fleet.answering("cloudwatch", "GetMetricData", lambda asked: metrics(asked, {})):
        findings = good.look(areas=["proxy"])
    assert troubles(findings) == []
    assert [(one.check, one.said) for one in findings if one.level is SKIP] == [
        ("proxy-concurrency", "the size of the pool is not known: nobody used it in the last hour")
    ]


def test_a_metric_without_an_answer_is_no_zero(good: Aws) -> None:
    def answer(asked: Answer) -> Answer:
        found = metrics(asked, BUSY)
        found["MetricDataResults"][3].update(StatusCode="InternalError", Timestamps=[], Values=[])
        return found

    with good.fleet.answering("cloudwatch", "GetMetricData", answer):
        (finding,) = good.look("proxy-pinned")
    assert finding.level is FAIL
    assert finding.said == ("could not look: CloudWatch has no answer for DatabaseConnectionsCurrentlySessionPinned.")


def test_a_mapping_without_a_limit(good: Aws) -> None:
    mappings = dict(good.mappings, payments=replace(good.mappings["payments"], maximum_concurrency=None))
    findings = replace(good, mappings=mappings).look()
    assert troubles(findings) == [("proxy-concurrency", WARN)]


def test_the_metrics_that_are_asked_for(good: Aws) -> None:
    """What moto sums up of two nodes is one proxy."""
    client, at = unanswered("cloudwatch"), NOW - timedelta(minutes=5)
    writer = {"ProxyName": NAME, "TargetGroup": "default", "TargetRole": "READ_WRITE"}
    for metric, dimensions, values in (
        ("ClientConnections", {"ProxyName": NAME}, (7, 5)),
        ("ClientConnections", {"ProxyName": "another"}, (100, 100)),
        ("DatabaseConnections", {"ProxyName": NAME}, (3, 1)),
        ("DatabaseConnections", writer, (2, 1)),
        ("MaxDatabaseConnectionsAllowed", writer, (30, 30)),
        ("DatabaseConnectionsBorrowLatency", {"ProxyName": NAME}, (1000, 3000)),
    ):
        named = [{"Name": key, "Value": value} for key, value in dimensions.items()]
        data = [{"MetricName": metric, "Dimensions": named, "Timestamp": at, "Value": value} for value in values]
        client.put_metric_data(Namespace="AWS/RDS", MetricData=data)
    with good.fleet.answering("cloudwatch", "GetMetricData", lambda _asked: None):
        load = Facts(good.fleet, now=NOW).proxy_load
    expected = Minute(clients=12, connections=4, writer=3, allowed=60, borrow_latency=0.002)
    assert load == Load(proxy=NAME, over="in the last hour", at="in the last hour", minutes=(expected,))


# Settings that no single answer holds


@pytest.mark.parametrize(
    ("parameters", "settings", "check", "said"),
    [
        ({"ProxyMaxConnectionsPercent": "95"}, {"MaxConnectionsPercent": 95}, "proxy-pool-size", "95 %"),
        ({"ProxyMaxIdleConnectionsPercent": "80"}, {"MaxIdleConnectionsPercent": 80}, "proxy-pool-size", "80 %"),
    ],
)
def test_the_pool_leaves_room(good: Aws, parameters: Any, settings: Any, check: str, said: str) -> None:
    with good.changed("rds", "DescribeDBProxyTargetGroups", sets("TargetGroups", "ConnectionPoolConfig", **settings)):
        findings = good.given(**parameters).look()
    assert troubles(findings) == [(check, WARN)]
    assert said in next(one.said for one in findings if one.level is WARN)


@pytest.mark.parametrize(
    ("parameters", "said", "fix"),
    [
        (
            {"ProxyMaxConnectionsPercent": "60"},
            "ProxyMaxConnectionsPercent is 75, deployed",
            "MaxConnectionsPercent=60",
        ),
        ({"ProxyMaxIdleConnectionsPercent": "10"}, "IdleConnectionsPercent is 50", "MaxIdleConnectionsPercent=10"),
        ({"ProxyIdleClientTimeout": "1900"}, "ProxyIdleClientTimeout is 1800", "--idle-client-timeout 1900"),
        ({"ProxyAuthentication": "iam"}, "ProxyAuthentication is secret", "--default-auth-scheme IAM_AUTH"),
    ],
)
def test_a_setting_that_was_changed_by_hand(good: Aws, parameters: dict[str, str], said: str, fix: str) -> None:
    findings = good.given(**parameters).look()
    assert troubles(findings) == [("proxy-settings", WARN)]
    (finding,) = (one for one in findings if one.level is WARN)
    assert said in finding.said
    assert fix in finding.fix


def test_the_proxy_must_not_drop_a_connection_that_a_worker_still_uses(good: Aws) -> None:
    with good.changed("rds", "DescribeDBProxies", sets("DBProxies", IdleClientTimeout=600)):
        findings = good.given(ProxyIdleClientTimeout="600").look()
    assert troubles(findings) == [("proxy-idle-timeout", WARN)]


def test_functions_that_were_not_told_the_borrow_timeout(good: Aws) -> None:
    functions = dict(good.functions, orders=replace(good.functions["orders"], environment={"DATABASE_ROUTE": "proxy"}))
    findings = replace(good, functions=functions).look()
    assert troubles(findings) == [("proxy-borrow-timeout", FAIL)]
    assert f"{NAME}-orders reckon with nothing" in next(one.said for one in findings if one.level is FAIL)


def test_a_proxy_that_logs_in_with_iam(good: Aws) -> None:
    change = sets("DBProxies", Auth=[], DefaultAuthScheme="IAM_AUTH")
    account = good.without("AWS::SecretsManager::Secret").given(ProxyAuthentication="iam")
    with account.changed("rds", "DescribeDBProxies", change):
        findings = account.look()
    assert {one.level for one in findings} == {PASS}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RotationEnabled": False}, "it is not rotated"),
        ({"LastRotatedDate": NOW - 32 * DAY}, f"was due on {NOW - 2 * DAY:%Y-%m-%d} (last on"),
        ({"LastRotatedDate": NOW - timedelta(days=30, hours=23)}, ""),
        ({"LastRotatedDate": None}, f"was due on {NOW - 10 * DAY:%Y-%m-%d} (never yet)"),
        ({"LastRotatedDate": None, "CreatedDate": NOW - 20 * DAY}, ""),
        ({"RotationRules": {"ScheduleExpression": "rate(9 days)"}, "NextRotationDate": NOW - 2 * DAY}, "was due on"),
        ({"DeletedDate": NOW}, "it is deleted"),
    ],
    ids=["off", "overdue", "due today", "never", "new", "by expression", "deleted"],
)
def test_rotation(good: Aws, changes: Answer, said: str) -> None:
    def change(name: str, answer: Answer) -> None:
        if answer["Name"] == name:
            answer.update(changes)
            for key in [key for key, value in answer.items() if value is None]:
                del answer[key]

    for name, check, fix in (
        (SECRET, "secret-rotation", f"--secret-id {SECRET}"),
        ("rds!db-1", "secret-master", "--rotate-master-user-password"),
    ):
        with good.changed("secretsmanager", "DescribeSecret", partial(change, name)):
            findings = good.look()
        assert troubles(findings) == ([(check, FAIL)] if said else [])
        (finding,) = (one for one in findings if one.check == check)
        assert said in finding.said
        assert "was due on" not in said or fix in finding.fix


def test_the_label_of_a_rotation_that_went_well_may_stay(good: Aws) -> None:
    def change(answer: Answer) -> None:
        if answer["Name"] == SECRET:
            answer["VersionIdsToStages"] = {NEW_VERSION: ["AWSCURRENT", "AWSPENDING"], "1" * 32: ["AWSPREVIOUS"]}

    with good.changed("secretsmanager", "DescribeSecret", change):
        assert troubles(good.look()) == []


def test_no_secret_is_ever_read(good: Aws) -> None:
    asked = []
    clients = [good.fleet.client(service) for service in ("secretsmanager", "rds", "ec2", "cloudwatch")]
    for client in clients:
        client.meta.events.register_first("before-call", lambda model, **_: asked.append(model.name), unique_id="asked")
    good.look()
    for client in clients:
        client.meta.events.unregister("before-call", unique_id="asked")
    assert "DescribeSecret" in asked
    assert {one.startswith("Describe") or one == "GetMetricData" for one in asked} == {True}


# Alarms


def test_alarms_that_tell_nobody(good: Aws) -> None:
    findings = good.given(AlarmTopicArn="").look()
    assert troubles(findings) == [("alarms-tell", WARN)]


def test_a_stack_without_alarms_says_so(good: Aws) -> None:
    account = good.without("AWS::CloudWatch::Alarm")
    assert {one.level for one in account.given(Alarms="off").look(areas=["alarms"])} == {SKIP}
    assert {one.level for one in account.look(areas=["alarms"])} == {FAIL}


@pytest.mark.parametrize(
    ("name", "age", "parameters"),
    [("housekeeping", 23, {}), ("governor", 48, {"Governor": "off"}), ("orders-rollback-errors", 48, {})],
    ids=["new", "no governor", "between rollouts"],
)
def test_silence_that_is_meant(good: Aws, name: str, age: int, parameters: dict[str, str]) -> None:
    since = NOW - timedelta(hours=age)
    change = alarms(name, StateValue="INSUFFICIENT_DATA", StateTransitionedTimestamp=since)
    with good.changed("cloudwatch", "DescribeAlarms", change):
        assert troubles(good.given(**parameters).look()) == []


def test_a_governor_that_has_stopped(good: Aws) -> None:
    change = alarms("governor", StateValue="INSUFFICIENT_DATA", StateTransitionedTimestamp=NOW - 2 * DAY)
    with good.changed("cloudwatch", "DescribeAlarms", change):
        assert troubles(good.look()) == [("alarms-see", FAIL)]


def test_more_alarms_than_one_call_takes(good: Aws) -> None:
    asked = []

    def answer(call: Answer) -> Answer:
        asked.append(len(call["AlarmNames"]))
        found = [{"AlarmName": name, "StateValue": "OK", "ActionsEnabled": True} for name in call["AlarmNames"]]
        return checked("cloudwatch", "DescribeAlarms", {"MetricAlarms": found})

    resources = [Resource(f"A{number}", "AWS::CloudWatch::Alarm", f"a{number}", "X") for number in range(250)]
    fleet = replace(good.fleet, resources=resources)
    with fleet.answering("cloudwatch", "DescribeAlarms", answer):
        found = Facts(fleet).alarms
    assert [one.name for one in found if one.found] == sorted(one.physical_id for one in resources)
    assert asked == [100, 100, 50]


# What is not the stack's, or may not be looked at


@pytest.mark.parametrize(
    ("service", "operation", "action", "checks"),
    [
        ("cloudwatch", "GetMetricData", "cloudwatch:GetMetricData", {"proxy-pinned", "proxy-pool-use"}),
        ("rds", "DescribeDBProxies", "rds:DescribeDBProxies", {"proxy-targets", "proxy-tls", "attached-groups"}),
        ("rds", "DescribeCertificates", "rds:DescribeCertificates", {"instance-certificate"}),
        ("secretsmanager", "DescribeSecret", "secretsmanager:DescribeSecret", {"secret-rotation", "secret-master"}),
    ],
)
def test_a_missing_permission_skips_what_needs_it(
    good: Aws, service: str, operation: str, action: str, checks: set[str]
) -> None:
    message = f"User: arn:aws:iam::1:user/on-call is not authorized to perform: {action} on resource: x"
    with good.broken(service, operation, "AccessDenied", message):
        findings = good.look()
    assert troubles(findings) == []
    skipped = [one for one in findings if one.level is SKIP]
    assert checks <= {one.check for one in skipped}
    assert {one.said for one in skipped} == {f"these credentials lack {action}"}


def test_a_proxy_and_a_network_of_ones_own(good: Aws) -> None:
    own = ("AWS::RDS::DBProxy", "AWS::RDS::DBInstance", "AWS::SecretsManager::Secret", "AWS::EC2::VPC")
    account = good.without(*own, "AWS::EC2::Subnet", "ProxySecurityGroup", "DatabaseSecurityGroup").given(
        DatabaseHost="proxy.example",
        ProxyName="theirs",
        DatabaseSecurityGroupId=good.ids["ProxySecurityGroup"],
        VpcId=good.ids["Vpc"],
        SubnetIds=f"{good.ids['SubnetA']},{good.ids['SubnetB']}",
    )
    findings = account.look()
    assert troubles(findings) == []
    assert {one.check for one in findings if one.level is SKIP} >= {
        "proxy-settings",
        "proxy-exposure",
        "vpc-endpoints",
        "attached-groups",
        "instance-status",
        "secret-master",
    }
    assert {one.resource for one in findings if one.check == "proxy-tls"} == {"theirs"}
    public = lets_in(good.ids["ProxySecurityGroup"], CidrIpv4="0.0.0.0/0")
    with account.changed("ec2", "DescribeSecurityGroupRules", public):
        assert ("proxy-exposure", FAIL) in troubles(account.look())


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"CreateProxy": "false"}, "this stack has no proxy (CreateProxy=false)"),
        ({"DatabaseHost": "pooler.example"}, "the proxy or database is yours, and ProxyName does not name it"),
    ],
)
def test_no_proxy_that_is_known(good: Aws, parameters: dict[str, str], said: str) -> None:
    findings = good.without("AWS::RDS::DBProxy").given(**parameters).look(areas=["proxy"])
    assert {(one.level, one.said) for one in findings} == {(SKIP, said)}


def test_an_aurora_cluster(good: Aws) -> None:
    resources = [one for one in good.fleet.resources if one.type != "AWS::RDS::DBInstance"]
    resources.append(Resource("Cluster", "AWS::RDS::DBCluster", NAME, "Database"))
    account = replace(good, fleet=replace(good.fleet, resources=resources))
    names = ["writer", "reader"]
    cluster = {
        "DBClusterArn": f"arn:aws:rds:{REGION}:123456789012:cluster:{NAME}",
        "Status": "available",
        "StorageEncrypted": True,
        "IAMDatabaseAuthenticationEnabled": True,
        "BackupRetentionPeriod": 14,
        "DeletionProtection": True,
        "DBClusterMembers": [{"DBInstanceIdentifier": name} for name in names],
        "VpcSecurityGroups": [{"VpcSecurityGroupId": good.ids["DatabaseSecurityGroup"]}],
        "MasterUserSecret": {"SecretArn": "arn:aws:secretsmanager:eu-west-1:1:secret:rds!cluster-1"},
    }

    targets = [target("AVAILABLE") | {"RdsResourceId": name} for name in names]
    targets.append({"RdsResourceId": NAME, "TrackedClusterId": NAME, "Type": "TRACKED_CLUSTER"})

    def members(answer: Answer) -> None:
        (one,) = answer["DBInstances"]
        answer["DBInstances"] = [one | {"DBInstanceIdentifier": name} for name in names]

    with ExitStack() as stack:
        stack.enter_context(account.fleet.answering("rds", "DescribeDBClusters", lambda _: {"DBClusters": [cluster]}))
        stack.enter_context(account.changed("rds", "DescribeDBInstances", members))
        stack.enter_context(account.fleet.answering("rds", "DescribeDBProxyTargets", lambda _: {"Targets": targets}))
        assert {one.level for one in account.look()} == {PASS}
        cluster["DBClusterMembers"] = cluster["DBClusterMembers"][:1]
        findings = account.look()
    assert troubles(findings) == [("instance-standby", WARN)]


def test_the_proxy_of_motos_rds(good: Aws) -> None:
    """The loader reads what others make of AWS's documentation, too."""
    client = unanswered("rds")
    client.create_db_proxy(
        DBProxyName=NAME,
        EngineFamily="POSTGRESQL",
        Auth=[
            {"AuthScheme": "SECRETS", "SecretArn": "arn:aws:secretsmanager:eu-west-1:1:secret:x", "IAMAuth": "REQUIRED"}
        ],
        RoleArn="arn:aws:iam::123456789012:role/proxy",
        VpcSubnetIds=[good.ids["SubnetA"], good.ids["SubnetB"]],
        VpcSecurityGroupIds=[good.ids["ProxySecurityGroup"]],
        RequireTLS=True,
    )
    client.create_db_instance(
        DBInstanceIdentifier=NAME, DBInstanceClass="db.r7g.large", Engine="postgres", AllocatedStorage=100
    )
    client.register_db_proxy_targets(DBProxyName=NAME, DBInstanceIdentifiers=[NAME])
    with ExitStack() as stack:
        for operation in ("Proxies", "ProxyTargetGroups", "ProxyTargets", "Instances"):
            stack.enter_context(good.fleet.answering("rds", f"DescribeDB{operation}", lambda _asked: None))
        proxy = Facts(good.fleet).proxy
        instance = Facts(good.fleet).instance
    assert proxy == Proxy(
        name=NAME,
        owned=True,
        status="available",
        require_tls=True,
        default_auth="NONE",
        secrets=(ProxySecret(arn="arn:aws:secretsmanager:eu-west-1:1:secret:x", iam="REQUIRED"),),
        idle_client_timeout=1800,
        debug_logging=False,
        groups=(good.ids["ProxySecurityGroup"],),
        borrow_timeout=120,
        max_connections_percent=100,
        max_idle_connections_percent=50,
        targets=(Target(name=NAME, state="AVAILABLE"),),
        endpoints=(),
    )
    assert instance is not None
    assert (instance.name, instance.status, instance.encrypted, instance.multi_az) == (NAME, "available", False, False)


# The local stack


class Gauges:
    client_connections, database_connections, borrowed, in_transaction, session_pinned = 12, 8, 5, 2, 1
    waiting, max_database_connections, available = 0, 20, True


@pytest.mark.parametrize("borrows", [0, 2])
def test_the_emulators_counts(borrows: int) -> None:
    counts = Metrics()
    counts.pinned_sessions_total, counts.client_connections_setup_failed_auth = 3, 4
    for _ in range(borrows):
        counts.borrow_latency.add(0.5)
    database = DatabaseTarget(host="127.0.0.1", port=5432, user="u", password="p", database="d")
    server = AdminServer(
        lambda: counts.snapshot(Gauges(), proxy="emulator", endpoint="127.0.0.1:5432", target=database),
        lambda _name, _arguments: {},
        (),
    )
    server.start()
    try:
        state = StackState(**(LOCAL | {"proxy_admin_url": server.url}))
        load = Facts(Fleet(name="local", workers={}, local=state)).proxy_load
    finally:
        server.close()
    assert load == Load(
        proxy="emulator",
        over="since the emulator started",
        at="now",
        minutes=(
            Minute(
                clients=12,
                connections=8,
                borrowed=5,
                pinned=1,
                writer=8,
                allowed=20,
                borrow_latency=0.5 if borrows else None,
                failed_logins=4,
            ),
        ),
        available=True,
        pins=3,
    )


def test_a_local_stack_without_a_proxy() -> None:
    findings = run(Facts(Fleet(name="local", workers={}, local=StackState(**LOCAL))), select(["proxy-pinned"]))
    assert [(one.level, one.said) for one in findings] == [(SKIP, "the workers connect to the database directly")]


LOCAL: dict[str, Any] = {
    "pid": 1,
    "endpoint_url": "",
    "region": "",
    "queues": {},
    "dead_letter_queues": {},
    "dsn": "",
    "started_at": 0,
    "log_dir": "",
}


def local(values: dict[str, float] | None = None, **load: Any) -> list[Finding]:
    """What the doctor says of an emulator that is doing this."""
    moment = Minute(**{"clients": 20, "connections": 8, "borrowed": 5, "writer": 8, "allowed": 20} | (values or {}))
    known = {
        "proxy_load": Load(
            proxy="emulator", over="since the emulator started", at="now", minutes=(moment,), available=True, pins=0
        ),
        "functions": {},
    }
    known["proxy_load"] = replace(known["proxy_load"], **load)
    return run(Facts(Fleet(name="local", workers={}, local=StackState(**LOCAL)), known=known), select((), AREAS))


def test_a_good_local_stack_is_silent() -> None:
    findings = local()
    assert troubles(findings) == []
    assert {one.check for one in findings if one.level is PASS} == {
        "proxy-targets",
        "proxy-multiplexing",
        "proxy-pinned",
        "proxy-pool-use",
        "proxy-setup-failures",
    }


@pytest.mark.parametrize(
    ("values", "load", "found"),
    [
        ({}, {"available": False}, [("proxy-targets", FAIL)]),
        ({"pinned": 1}, {}, [("proxy-pinned", WARN)]),
        ({"pinned": 8}, {}, [("proxy-pinned", FAIL)]),
        ({}, {"pins": 2}, [("proxy-pinned", WARN)]),
        ({"borrowed": 19}, {}, [("proxy-multiplexing", WARN)]),
        ({"writer": 20}, {}, [("proxy-pool-use", WARN)]),
        ({"failed_setups": 1}, {}, [("proxy-setup-failures", WARN)]),
        ({"failed_logins": 9}, {}, []),
    ],
)
def test_the_emulator(values: dict[str, float], load: dict[str, Any], found: list[Any]) -> None:
    assert troubles(local(values, **load)) == found
