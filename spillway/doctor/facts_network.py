"""The network that the functions, the proxy and the database share: security groups, endpoints, subnets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spillway.doctor.facts import Facts

#: Who connects to whom: the security groups of infra/network.yaml by their logical ids.
ROLES = {
    "ConsumerSecurityGroup": "consumers",
    "ProxySecurityGroup": "proxy",
    "DatabaseSecurityGroup": "database",
    "MigratorSecurityGroup": "migrator",
    "RotatorSecurityGroup": "rotator",
    "EndpointSecurityGroup": "endpoints",
}
ANYWHERE = frozenset({"0.0.0.0/0", "::/0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule of a security group. `peer` is a group, a range of addresses or a prefix list; ports are inclusive."""

    id: str
    group: str
    egress: bool
    protocol: str
    from_port: int
    to_port: int
    peer: str

    def admits(self, port: int) -> bool:
        """Whether TCP to `port` passes; protocol -1 is all of them."""
        return self.protocol == "-1" or (self.protocol == "tcp" and self.from_port <= port <= self.to_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class VpcEndpoint:
    """`service` is the last part of its name, such as sqs."""

    id: str
    service: str
    state: str
    private_dns: bool
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`groups` are security groups by role (ROLES); `zones` are the availability zones of the functions' subnets."""

    vpc: str
    owned: bool
    groups: Mapping[str, str]
    rules: tuple[Rule, ...]
    endpoints: tuple[VpcEndpoint, ...]
    zones: Mapping[str, str]

    def inbound(self, group: str, port: int) -> Iterator[Rule]:
        """The rules that let somebody reach `port` of what is in `group`."""
        return (rule for rule in self.rules if rule.group == group and not rule.egress and rule.admits(port))

    def outbound(self, group: str, port: int) -> Iterator[Rule]:
        """The rules that let what is in `group` reach somebody's `port`."""
        return (rule for rule in self.rules if rule.group == group and rule.egress and rule.admits(port))

    def name_of(self, peer: str) -> str:
        """A peer for people: its role and id, or the id alone."""
        roles = [role for role, group in self.groups.items() if group == peer]
        return f"{roles[0]} ({peer})" if roles else peer


def load(facts: Facts) -> Network:
    """The network as EC2 describes it."""
    fleet, parameters = facts.fleet, facts.stack.parameters
    groups = {
        role: one.physical_id
        for one in fleet.of_type("AWS::EC2::SecurityGroup", "Network")
        if (role := ROLES.get(one.logical_id))
    }
    if theirs := parameters.get("EndpointSecurityGroupId"):
        groups["endpoints"] = theirs
    if theirs := parameters.get("DatabaseSecurityGroupId"):
        # Of a proxy or database that exists: the consumers' next hop, whichever it is.
        groups["proxy"] = theirs
    own = [one.physical_id for one in fleet.of_type("AWS::EC2::VPC", "Network")]
    vpc = own[0] if own else parameters.get("VpcId", "")
    subnets = [one.physical_id for one in fleet.of_type("AWS::EC2::Subnet", "Network")]
    subnets = subnets or [one.strip() for one in parameters.get("SubnetIds", "").split(",") if one.strip()]
    client = fleet.client("ec2")
    endpoints = tuple(_endpoints(client, vpc))
    every = {*groups.values(), *(group for one in endpoints for group in one.groups)}
    return Network(
        vpc=vpc,
        owned=bool(own),
        groups=groups,
        rules=tuple(_rules(client, every)),
        endpoints=endpoints,
        zones=_zones(client, subnets),
    )


def _rules(client: Any, groups: set[str]) -> Iterator[Rule]:
    if not groups:
        return
    wanted = [{"Name": "group-id", "Values": sorted(groups)}]
    for page in client.get_paginator("describe_security_group_rules").paginate(Filters=wanted):
        for one in page["SecurityGroupRules"]:
            peers = (
                one.get("ReferencedGroupInfo", {}).get("GroupId"),
                one.get("CidrIpv4"),
                one.get("CidrIpv6"),
                one.get("PrefixListId"),
            )
            yield Rule(
                id=one["SecurityGroupRuleId"],
                group=one["GroupId"],
                egress=one["IsEgress"],
                protocol=one["IpProtocol"],
                from_port=one.get("FromPort", -1),
                to_port=one.get("ToPort", -1),
                peer=next((peer for peer in peers if peer), "unknown"),
            )


def _endpoints(client: Any, vpc: str) -> Iterator[VpcEndpoint]:
    if not vpc:
        return
    wanted = [{"Name": "vpc-id", "Values": [vpc]}]
    for page in client.get_paginator("describe_vpc_endpoints").paginate(Filters=wanted):
        for one in page["VpcEndpoints"]:
            if one["VpcEndpointType"] == "Interface":
                yield VpcEndpoint(
                    id=one["VpcEndpointId"],
                    service=one["ServiceName"].rpartition(".")[2],
                    state=one["State"].lower(),  # the API has written it both ways
                    private_dns=one.get("PrivateDnsEnabled", False),
                    groups=tuple(group["GroupId"] for group in one.get("Groups", ())),
                )


def _zones(client: Any, subnets: list[str]) -> dict[str, str]:
    if not subnets:
        return {}
    pages = client.get_paginator("describe_subnets").paginate(SubnetIds=subnets)
    return {one["SubnetId"]: one["AvailabilityZone"] for page in pages for one in page["Subnets"]}
