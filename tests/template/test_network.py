"""infra/network.yaml: who may reach whom, and that nothing else is open."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest

from spillway.stack.template import TEMPLATE
from tests.template.resolved import ZONES, Stack, resolved, statements, template
from tests.template.rules import refusals

DOCUMENT = template("network")
FLEET = {"FleetName": "spillway"}
YOUR_PROXY, YOUR_ENDPOINTS, S3 = "sg-0a1b2c3d4e5f60718", "sg-0b1c2d3e4f5061728", "pl-63a5400a"
VPC = {"VpcId": "vpc-0a1b2c3d4e5f60718", "SubnetIds": "subnet-0a1b2c3d4e5f60718,subnet-0b1c2d3e4f5061728"}
NO_ROTATION = {"RotatesSecret": "false"}
NO_PROXY = NO_ROTATION | {"MakesProxy": "false", "DirectAccess": "open"}
PROXY = VPC | NO_ROTATION | {"ProxySecurityGroupId": YOUR_PROXY, "MakesDatabase": "false", "MakesProxy": "false"}

COMBINATIONS: dict[str, dict[str, str]] = {
    "all made": {},
    "three zones": {"AvailabilityZones": "3"},
    "IAM, no secret to rotate": NO_ROTATION,
    "no proxy": NO_PROXY,
    "moving between routes": {"DirectAccess": "open"},
    "S3's prefix list": {"S3PrefixListId": S3},
    "your VPC": VPC,
    "your VPC and its endpoints": VPC | {"EndpointSecurityGroupId": YOUR_ENDPOINTS},
    "your VPC, endpoints and S3": VPC | {"EndpointSecurityGroupId": YOUR_ENDPOINTS, "S3PrefixListId": S3},
    "your VPC, no proxy": VPC | NO_PROXY,
    "your proxy": PROXY,
    "your database, direct": PROXY | {"DirectAccess": "open"},
    "your pooler on a port of its own": PROXY | {"ProxyPort": "6432"},
}

ANYWHERE = "0.0.0.0/0"
NOBODY = {"IpProtocol": "-1", "CidrIp": "127.0.0.1/32", "Description": "Nothing"}
#: Short names of the groups, so that a hop reads "consumer > proxy 5432".
GROUPS = {
    f"{name}SecurityGroup.GroupId": name.lower()
    for name in ("Consumer", "Migrator", "Rotator", "Proxy", "Database", "Endpoint")
} | {YOUR_PROXY: "your proxy", YOUR_ENDPOINTS: "your endpoints", S3: "S3"}

BY_PROXY = ["consumer > proxy 5432", "proxy > database 5432"]
DIRECT = ["consumer > database 5432"]
MIGRATIONS = ["migrator > database 5432"]
ROTATION = ["rotator > database 5432"]
ENDPOINTS = ["consumer > endpoint 443", "migrator > endpoint 443"]
ROTATOR_ENDPOINT = ["rotator > endpoint 443"]
YOURS = ["consumer > your endpoints 443", "migrator > your endpoints 443", "rotator > your endpoints 443"]
ALL = BY_PROXY + MIGRATIONS + ROTATION + ENDPOINTS + ROTATOR_ENDPOINT

#: Every hop that is open between two groups, and every way out to addresses.
HOPS: dict[str, tuple[list[str], list[str]]] = {
    "all made": (ALL, [f"migrator > {ANYWHERE} 443"]),
    "three zones": (ALL, [f"migrator > {ANYWHERE} 443"]),
    "IAM, no secret to rotate": (BY_PROXY + MIGRATIONS + ENDPOINTS, [f"migrator > {ANYWHERE} 443"]),
    "no proxy": (DIRECT + MIGRATIONS + ENDPOINTS, [f"migrator > {ANYWHERE} 443"]),
    "moving between routes": (ALL + DIRECT, [f"migrator > {ANYWHERE} 443"]),
    "S3's prefix list": (ALL, ["migrator > S3 443"]),
    "your VPC": (
        BY_PROXY + MIGRATIONS + ROTATION,
        [f"{who} > {ANYWHERE} 443" for who in ("consumer", "migrator", "rotator")],
    ),
    "your VPC and its endpoints": (BY_PROXY + MIGRATIONS + ROTATION + YOURS, [f"migrator > {ANYWHERE} 443"]),
    "your VPC, endpoints and S3": (BY_PROXY + MIGRATIONS + ROTATION + YOURS, ["migrator > S3 443"]),
    "your VPC, no proxy": (
        DIRECT + MIGRATIONS,
        [f"consumer > {ANYWHERE} 443", f"migrator > {ANYWHERE} 443"],
    ),
    "your proxy": (["consumer > your proxy 5432"], [f"consumer > {ANYWHERE} 443"]),
    "your database, direct": (["consumer > your proxy 5432"], [f"consumer > {ANYWHERE} 443"]),
    "your pooler on a port of its own": (["consumer > your proxy 6432"], [f"consumer > {ANYWHERE} 443"]),
}


@pytest.fixture(scope="module", params=COMBINATIONS)
def combination(request: pytest.FixtureRequest) -> tuple[str, Stack]:
    return request.param, made(COMBINATIONS[request.param])


def made(given: dict[str, str]) -> Stack:
    return resolved(DOCUMENT, FLEET | given)


def port_of(rule: dict[str, Any]) -> int:
    assert rule["IpProtocol"] == "tcp"
    assert rule["FromPort"] == rule["ToPort"]
    return int(rule["FromPort"])


def outbound(stack: Stack) -> set[tuple[str, str, int]]:
    """Every egress rule as (group, where to, port)."""
    return {
        (
            GROUPS[rule["GroupId"]],
            GROUPS.get(to := one_of(rule, "DestinationSecurityGroupId", "DestinationPrefixListId", "CidrIp"), to),
            port_of(rule),
        )
        for rule in stack.of_type("AWS::EC2::SecurityGroupEgress").values()
    }


def inbound(stack: Stack) -> set[tuple[str, str, int]]:
    """Every ingress rule as (where from, group, port)."""
    return {
        (GROUPS[one_of(rule, "SourceSecurityGroupId")], GROUPS[rule["GroupId"]], port_of(rule))
        for rule in stack.of_type("AWS::EC2::SecurityGroupIngress").values()
    }


def one_of(rule: dict[str, Any], *names: str) -> str:
    """Where a rule leads. What has another way to say so (CidrIpv6, a prefix list as a source, ...) is refused."""
    ends = set(rule) - {"GroupId", "IpProtocol", "FromPort", "ToPort", "Description"}
    assert len(ends) == 1, rule
    assert ends <= set(names), rule
    return str(rule[ends.pop()])


def written(hops: set[tuple[str, str, int]]) -> set[str]:
    return {f"{source} > {target} {port}" for source, target, port in hops}


def test_the_tables_have_the_same_combinations() -> None:
    assert set(HOPS) == set(COMBINATIONS)
    for given in COMBINATIONS.values():
        assert refusals(DOCUMENT, FLEET | given) == []


def test_who_reaches_whom(combination: tuple[str, Stack]) -> None:
    name, stack = combination
    hops, ways_out = HOPS[name]
    leaving, entering = outbound(stack), inbound(stack)
    assert written(leaving & entering) == set(hops)
    # Each hop is explicit on both sides: no rule waits for another one.
    assert written(entering - leaving) == set()
    assert written(leaving - entering) == set(ways_out)


def test_groups_have_no_rule_of_their_own(combination: tuple[str, Stack]) -> None:
    _, stack = combination
    groups = stack.of_type("AWS::EC2::SecurityGroup")
    assert "ConsumerSecurityGroup" in groups
    for name, group in groups.items():
        # Without an egress rule EC2 adds one that allows everything.
        assert group["SecurityGroupEgress"] == [NOBODY], name
        assert "SecurityGroupIngress" not in group, name
        assert re.fullmatch(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{1,255}", group["GroupDescription"]), name


def test_only_the_migrator_and_a_network_of_yours_open_a_range_of_addresses() -> None:
    # Everything the stack can make, whatever its parameters: new rules have to come into this table.
    open_to_anywhere = {
        name for name, resource in DOCUMENT["Resources"].items() if ANYWHERE in str(resource) or "::/0" in str(resource)
    }
    assert open_to_anywhere == {"MigratorToS3ByRoute", "ConsumerToAws", "MigratorToAws", "RotatorToAws"}
    for name in open_to_anywhere:
        assert DOCUMENT["Resources"][name]["Type"] == "AWS::EC2::SecurityGroupEgress"
        assert DOCUMENT["Resources"][name]["Properties"]["ToPort"] == 443


def test_the_groups_that_exist(combination: tuple[str, Stack]) -> None:
    name, stack = combination
    expected = {"ConsumerSecurityGroupId", "VpcId", "PrivateSubnetIds", "ProxySecurityGroupId"}
    if "no proxy" in name:
        expected -= {"ProxySecurityGroupId"}
    if not any(words in name for words in ("your database", "your proxy", "your pooler")):
        expected |= {"DatabaseSecurityGroupId", "MigratorSecurityGroupId"}
        if COMBINATIONS[name].get("RotatesSecret", "true") == "true":
            expected |= {"RotatorSecurityGroupId"}
    assert set(stack.outputs) == expected
    own = {GROUPS[value] for key, value in stack.outputs.items() if key.endswith("GroupId")}
    used = {group for hop in outbound(stack) | inbound(stack) for group in hop[:2] if group in GROUPS.values()}
    assert own == used - {"endpoint", "your endpoints", "S3"}


def test_a_network_of_yours_stays_as_it_is(combination: tuple[str, Stack]) -> None:
    name, stack = combination
    kinds = {resource["Type"] for resource in stack.resources.values()}
    ours = {"AWS::EC2::VPC", "AWS::EC2::Subnet", "AWS::EC2::RouteTable", "AWS::EC2::VPCEndpoint", "AWS::EC2::FlowLog"}
    assert kinds & ours == (set() if "VpcId" in COMBINATIONS[name] else ours)
    if "VpcId" in COMBINATIONS[name]:
        assert stack.outputs["VpcId"] == VPC["VpcId"]
        assert stack.outputs["PrivateSubnetIds"] == VPC["SubnetIds"]
        assert {group["VpcId"] for group in stack.of_type("AWS::EC2::SecurityGroup").values()} == {VPC["VpcId"]}


@pytest.mark.parametrize("zones", [2, 3])
@pytest.mark.parametrize("cidr", ["10.40.0.0/16", "172.20.4.0/22"])
def test_subnets_are_isolated(zones: int, cidr: str) -> None:
    stack = made({"AvailabilityZones": str(zones), "VpcCidr": cidr})
    subnets = stack.of_type("AWS::EC2::Subnet")
    assert [subnet["AvailabilityZone"] for subnet in subnets.values()] == ZONES[:zones]
    assert all(subnet["MapPublicIpOnLaunch"] is False for subnet in subnets.values())
    ranges = [ipaddress.ip_network(subnet["CidrBlock"]) for subnet in subnets.values()]
    assert all(part.subnet_of(ipaddress.ip_network(cidr)) for part in ranges)
    assert len({address for part in ranges for address in part}) == zones * 256
    routed = stack.of_type("AWS::EC2::SubnetRouteTableAssociation").values()
    assert {(part["SubnetId"], part["RouteTableId"]) for part in routed} == {(name, "RouteTable") for name in subnets}
    assert stack.outputs["PrivateSubnetIds"] == ",".join(subnets)
    for endpoint in stack.of_type("AWS::EC2::VPCEndpoint").values():
        assert endpoint.get("SubnetIds", list(subnets)) == list(subnets)
    vpc = stack.properties("Vpc")
    assert vpc["EnableDnsSupport"] is vpc["EnableDnsHostnames"] is True


def test_nothing_leads_to_the_internet() -> None:
    kinds = {resource["Type"] for resource in DOCUMENT["Resources"].values()}
    assert "AWS::EC2::RouteTable" in kinds
    assert not {kind for kind in kinds if re.search(r"Gateway|::Route$|::EIP|Peering|Transit", kind)}


ARN = "arn:aws:{}:us-east-1:000000000000:{}"
OWN_SECRETS = [ARN.format("secretsmanager", "secret:spillway/*")]
#: Endpoint policies: what each statement allows, and on what. "*" has its reason in the template.
ALLOWED: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "SqsEndpoint": {
        "DeadLetterAndDelay": (["sqs:SendMessage", "sqs:ChangeMessageVisibility"], [ARN.format("sqs", "spillway-*")]),
    },
    "SecretsManagerEndpoint": {
        "ReadSecrets": (
            ["secretsmanager:GetSecretValue"],
            [*OWN_SECRETS, ARN.format("secretsmanager", "secret:rds!*")],
        ),
        "Rotate": (
            [
                "secretsmanager:DescribeSecret",
                "secretsmanager:PutSecretValue",
                "secretsmanager:UpdateSecretVersionStage",
            ],
            OWN_SECRETS,
        ),
        "MakePasswords": (["secretsmanager:GetRandomPassword"], ["*"]),
    },
    "S3Endpoint": {
        "AnswerCloudFormation": (
            ["s3:PutObject"],
            ["arn:aws:s3:::cloudformation-custom-resource-response-useast1/*"],
        ),
    },
}
ROTATION_STATEMENTS = {"Rotate", "MakePasswords"}


@pytest.mark.parametrize("given", [{}, NO_ROTATION])
def test_endpoints_let_through_what_is_needed_only(given: dict[str, str]) -> None:
    endpoints = made(given).of_type("AWS::EC2::VPCEndpoint")
    assert set(endpoints) == set(ALLOWED)
    for name, endpoint in endpoints.items():
        found = {statement["Sid"]: statement for statement in statements(endpoint["PolicyDocument"])}
        expected = {sid: what for sid, what in ALLOWED[name].items() if not given or sid not in ROTATION_STATEMENTS}
        assert {sid: (each["Action"], each["Resource"]) for sid, each in found.items()} == expected
        for statement in found.values():
            assert statement["Effect"] == "Allow"
            # Nobody from another account; CloudFormation itself signs the URL that the answer goes to.
            condition = {"StringEquals": {"aws:PrincipalAccount": "000000000000"}}
            assert statement.get("Condition") == (None if name == "S3Endpoint" else condition)


def test_endpoints_are_private_and_answer_by_the_usual_names() -> None:
    stack = made({})
    kinds = {"SqsEndpoint": "sqs", "SecretsManagerEndpoint": "secretsmanager", "S3Endpoint": "s3"}
    for name, service in kinds.items():
        endpoint = stack.properties(name)
        assert endpoint["ServiceName"] == f"com.amazonaws.us-east-1.{service}"
        if service == "s3":
            assert (endpoint["VpcEndpointType"], endpoint["RouteTableIds"]) == ("Gateway", ["RouteTable"])
        else:
            assert (endpoint["VpcEndpointType"], endpoint["PrivateDnsEnabled"]) == ("Interface", True)
            assert endpoint["SecurityGroupIds"] == ["EndpointSecurityGroup"]


def test_the_sqs_endpoint_allows_what_consumers_ask() -> None:
    granted = set(re.findall(r"Action: (sqs:[A-Z]\w+)", TEMPLATE.read_text(encoding="utf-8")))
    (statement,) = statements(made({}).properties("SqsEndpoint")["PolicyDocument"])
    assert granted == set(statement["Action"])


def test_flow_logs_go_to_their_group_by_a_role_that_can_nothing_else() -> None:
    stack = made({"FlowLogRetentionDays": "7"})
    log = stack.properties("FlowLog")
    assert (log["ResourceId"], log["ResourceType"], log["TrafficType"]) == ("Vpc", "VPC", "ALL")
    assert (log["LogGroupName"], log["DeliverLogsPermissionArn"]) == ("FlowLogGroup", "FlowLogRole.Arn")
    assert stack.properties("FlowLogGroup")["RetentionInDays"] == "7"
    role = stack.properties("FlowLogRole")
    (trust,) = statements(role["AssumeRolePolicyDocument"])
    assert trust["Principal"] == {"Service": "vpc-flow-logs.amazonaws.com"}
    assert trust["Condition"]["StringEquals"] == {"aws:SourceAccount": "000000000000"}
    (policy,) = role["Policies"]
    assert {(tuple(each["Action"]), tuple(each["Resource"])) for each in statements(policy["PolicyDocument"])} == {
        (("logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"), ("FlowLogGroup.Arn",)),
        # A listing, which takes no narrower resource.
        (("logs:DescribeLogGroups",), (ARN.format("logs", "log-group:*"),)),
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"VpcId": VPC["VpcId"]}, "VpcId and SubnetIds go together"),
        ({"SubnetIds": VPC["SubnetIds"]}, "VpcId and SubnetIds go together"),
        (PROXY | {"VpcId": "", "SubnetIds": ""}, "give VpcId and SubnetIds, where it is"),
        (PROXY | {"MakesDatabase": "true"}, "MakesDatabase and MakesProxy are false"),
        (PROXY | {"MakesProxy": "true"}, "MakesDatabase and MakesProxy are false"),
        (NO_PROXY | {"DirectAccess": "closed"}, "MakesProxy=false needs DirectAccess=open"),
        (NO_PROXY | {"RotatesSecret": "true"}, "RotatesSecret=true needs MakesProxy=true"),
        (NO_PROXY | {"MakesDatabase": "false"}, "something to write to"),
        ({"EndpointSecurityGroupId": YOUR_ENDPOINTS}, "EndpointSecurityGroupId belongs to VpcId"),
    ],
)
@pytest.mark.parametrize("empty_list", [(), ("",)])
def test_what_does_not_go_together_is_refused(given: dict[str, str], said: str, empty_list: tuple[str, ...]) -> None:
    sentences = refusals(DOCUMENT, FLEET | given, empty_list=empty_list)
    assert len(sentences) == 1
    assert said in sentences[0]


@pytest.mark.parametrize("stack", ["network", "database", "proxy"])
@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("spillway", True),
        ("spillway-prod-2", True),
        ("a" * 40, True),
        ("a" * 41, False),
        ("Spillway", False),
        ("spillway--prod", False),
        ("spillway-", False),
        ("2spillway", False),
    ],
)
def test_a_name_that_rds_would_change_or_refuse_is_refused(stack: str, name: str, fits: bool) -> None:
    parameter = template(stack)["Parameters"]["FleetName"]
    assert (re.fullmatch(parameter["AllowedPattern"], name) is not None and len(name) <= parameter["MaxLength"]) is fits


@pytest.mark.parametrize("stack", ["network", "database", "proxy"])
def test_parameters_are_described_and_bounded(stack: str) -> None:
    for name, parameter in template(stack)["Parameters"].items():
        assert parameter["Description"].endswith("."), name
        if parameter["Type"] == "Number":
            assert "AllowedValues" in parameter or {"MinValue", "MaxValue"} <= set(parameter), name
