"""Checks on the network: each hop is let through, and nobody else reaches the proxy or the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.doctor.facts_functions import GOVERNOR, MIGRATE
from spillway.doctor.facts_network import ANYWHERE
from spillway.doctor.finding import fail, passed, skip, warn
from spillway.doctor.fixes import set_back
from spillway.doctor.registry import check, deployed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_network import Network, Rule
    from spillway.doctor.finding import Finding

#: Of what the stack makes (infra/network.yaml); a proxy or database of one's own has the parameter DatabasePort.
DATABASE_PORT = 5432
HTTPS = 443
#: A gateway or a standby in one zone is gone with it; RDS Proxy takes no fewer either.
FEWEST_ZONES = 2


@check("network-hops", area="network", needs=deployed)
def hops(facts: Facts) -> Iterator[Finding]:
    """Security groups let each hop through, on both sides."""
    network, wanted = facts.network, list(_hops(facts))
    for client, server, port in wanted:
        hop = f"{client} -> {server}"
        source, target = network.groups[client], network.groups[server]
        out = any(rule.peer == target or rule.peer in ANYWHERE for rule in network.outbound(source, port))
        into = any(rule.peer == source or rule.peer in ANYWHERE for rule in network.inbound(target, port))
        if out and into:
            yield passed(hop, f"port {port} is open on both sides")
        if not out:
            said = f"{source} does not let out to {target} on port {port}"
            yield fail(hop, said, _authorize("egress", source, target, port))
        if not into:
            said = f"{target} does not let {source} in on port {port}"
            yield fail(hop, said, _authorize("ingress", target, source, port))
    if not wanted:
        yield skip(facts.fleet.name, "this stack has made no security groups: infra/network.yaml does")


@check("database-exposure", area="network", needs=deployed)
def database_exposure(facts: Facts) -> Iterator[Finding]:
    """Nothing reaches the database but the proxy, migrations and the rotation of its secret."""
    network = facts.network
    if (group := network.groups.get("database")) is None:
        yield _not_made(facts, "database")
        return
    allowed = {"proxy", "migrator", "rotator"}
    if _direct(facts):
        allowed.add("consumers")
    yield from _strangers(network, group, DATABASE_PORT, allowed, "database")


@check("proxy-exposure", area="network", needs=deployed)
def proxy_exposure(facts: Facts) -> Iterator[Finding]:
    """Nothing reaches the proxy but the consumers."""
    network = facts.network
    if (group := network.groups.get("proxy")) is None:
        yield _not_made(facts, "proxy")
    elif facts.stack.parameters.get("DatabaseSecurityGroupId"):
        public = [rule for rule in network.inbound(group, _proxy_port(facts)) if rule.peer in ANYWHERE]
        yield from map(_public, public)
        if not public:
            yield skip(group, "the proxy or database is yours, and others may use it; no rule is for everybody")
    else:
        yield from _strangers(network, group, DATABASE_PORT, {"consumers"}, "proxy")


@check("direct-access", area="network", needs=deployed)
def direct_access(facts: Facts) -> Iterator[Finding]:
    """The consumers' way past the proxy is open only while the stack says so."""
    network = facts.network
    if (group := network.groups.get("database")) is None:
        yield _not_made(facts, "database")
        return
    consumers = network.groups.get("consumers")
    found = [rule for rule in network.inbound(group, DATABASE_PORT) if rule.peer == consumers]
    if not _direct(facts):
        for rule in found:
            said = f"the consumers may go past the proxy by rule {rule.id}, but DirectAccess is closed"
            yield fail(group, said, f"Remove it: {_revoke(rule)}")
        if not found:
            yield passed(group, "the consumers reach it through the proxy only")
    elif facts.stack.parameters.get("DatabaseRoute") == "proxy":
        fix = "Deploy with DirectAccess=closed once the move between the routes is over."
        yield warn(group, "the consumers may go past the proxy (DirectAccess=open), and need not", fix)
    else:
        yield passed(group, "the consumers go past the proxy, as the stack says (DatabaseRoute=direct)")


@check("attached-groups", area="network", needs=deployed)
def attached_groups(facts: Facts) -> Iterator[Finding]:
    """Proxy and database are in their own security group and in no other."""
    network = facts.network
    proxy, instance = facts.proxy, facts.instance
    servers = (
        ("proxy", proxy.name if proxy else "", proxy.groups if proxy and proxy.owned else None),
        ("database", instance.name if instance else "", instance.groups if instance else None),
    )
    for role, name, attached in servers:
        own = network.groups.get(role)
        if attached is None or own is None:
            yield _not_made(facts, role)
        elif set(attached) != {own}:
            others = ", ".join(sorted(set(attached) - {own}))
            said = f"it is in {others}, too, whose rules nobody here looks at" if others else f"it is not in {own}"
            if instance is not None and role == "database":
                command = f"modify-{instance.kind} --{instance.kind}-identifier {name} --vpc-security-group-ids {own}"
            else:
                command = f"modify-db-proxy --db-proxy-name {name} --security-groups {own}"
            yield fail(name, said, f"aws rds {command}")
        else:
            yield passed(name, f"it is in {own} only")


@check("function-network", area="network", needs=deployed)
def function_network(facts: Facts) -> Iterator[Finding]:
    """Every function that connects to the database is in the VPC's subnets, and in its own security group alone."""
    network = facts.network
    for function in facts.functions.values():
        if function.logical_id == GOVERNOR:
            continue
        role = "migrator" if function.logical_id == MIGRATE else "consumers"
        own = network.groups.get(role)
        foreign = ", ".join(sorted(set(function.subnets) - network.zones.keys()))
        if own is None or not network.zones:
            yield _not_made(facts, role)
        elif not function.groups:
            yield fail(function.name, "it is in no VPC, and so reaches neither proxy nor database", set_back(facts))
        elif set(function.groups) != {own}:
            others = ", ".join(sorted(set(function.groups) - {own}))
            said = f"it is in {others}, too, whose rules nobody here looks at"
            yield fail(function.name, said if own in function.groups else f"it is not in {own}", set_back(facts))
        elif foreign:
            yield fail(function.name, f"it is in {foreign}, which is none of the stack's subnets", set_back(facts))
        else:
            yield passed(function.name, f"it is in {own} only, and in the stack's subnets")


@check("vpc-endpoints", area="network", needs=deployed)
def vpc_endpoints(facts: Facts) -> Iterator[Finding]:
    """Functions reach SQS and Secrets Manager: endpoints are there, with private DNS, and let them in."""
    network, parameters = facts.network, facts.stack.parameters
    if "consumers" not in network.groups:
        yield skip(facts.fleet.name, "this stack has made no security groups: infra/network.yaml does")
        return
    if not network.owned and not parameters.get("EndpointSecurityGroupId"):
        yield skip(network.vpc, "the VPC is yours, and no EndpointSecurityGroupId names its endpoints: NAT, presumably")
        return
    callers = {"sqs": ("consumers",), "secretsmanager": ("migrator", "rotator")}
    for service, roles in callers.items():
        present = [role for role in roles if role in network.groups]
        if not present:
            continue
        found = [one for one in network.endpoints if one.service == service]
        if not found:
            name = f"com.amazonaws.{facts.fleet.region}.{service}"
            door = network.groups.get("endpoints", "GROUP")
            fix = f"aws ec2 create-vpc-endpoint --vpc-endpoint-type Interface --service-name {name} "
            fix += f"--vpc-id {network.vpc} --subnet-ids {' '.join(network.zones)} --security-group-ids {door}"
            yield fail(network.vpc, f"it has no interface endpoint for {service}", fix)
        for one in found:
            about = f"aws ec2 describe-vpc-endpoints --vpc-endpoint-ids {one.id}"
            shut = [role for role in present if not _let_in(network, one.groups, network.groups[role])]
            kept = [role for role in present if not _let_out(network, one.groups, network.groups[role])]
            if one.state != "available":
                yield fail(one.id, f"the endpoint for {service} is {one.state}", f"See why: {about}.")
            elif not one.private_dns:
                said = f"the endpoint for {service} has no private DNS: its name leads out of the VPC"
                fix = f"aws ec2 modify-vpc-endpoint --vpc-endpoint-id {one.id} --private-dns-enabled"
                yield fail(one.id, said, fix)
            elif shut:
                said = f"the endpoint for {service} does not let {', '.join(shut)} in on {HTTPS}"
                door = next(iter(one.groups), "GROUP")
                yield fail(one.id, said, _authorize("ingress", door, network.groups[shut[0]], HTTPS))
            elif kept:
                said = f"{', '.join(kept)} may not go out to the endpoint for {service} on {HTTPS}"
                door = next(iter(one.groups), "GROUP")
                yield fail(one.id, said, _authorize("egress", network.groups[kept[0]], door, HTTPS))
            else:
                yield passed(one.id, f"the endpoint for {service} is available to {', '.join(present)}")


@check("subnet-zones", area="network", needs=deployed)
def subnet_zones(facts: Facts) -> Iterator[Finding]:
    """The functions' subnets are in two availability zones or more."""
    network = facts.network
    zones = sorted(set(network.zones.values()))
    if not network.zones:
        yield skip(network.vpc, "the stack does not say in which subnets its functions are")
    elif len(zones) < FEWEST_ZONES:
        said = f"all subnets are in {zones[0]}: the fleet stops when it does"
        yield fail(network.vpc, said, "Deploy with SubnetIds in two availability zones or more.")
    else:
        yield passed(network.vpc, f"subnets in {', '.join(zones)}")


def _hops(facts: Facts) -> Iterator[tuple[str, str, int]]:
    """Client, server and port, by the roles that this stack has."""
    groups, port = facts.network.groups, _proxy_port(facts)
    wanted = [("consumers", "proxy", port), ("proxy", "database", DATABASE_PORT)]
    wanted += [("migrator", "database", DATABASE_PORT), ("rotator", "database", DATABASE_PORT)]
    if _direct(facts):
        wanted.append(("consumers", "database", DATABASE_PORT))
    yield from (hop for hop in wanted if hop[0] in groups and hop[1] in groups)


def _strangers(network: Network, group: str, port: int, allowed: Iterable[str], server: str) -> Iterator[Finding]:
    """Rules on `group` for whom no hop is meant. The consumers' on the database are direct-access's to judge."""
    known = {network.groups[role] for role in (*allowed, "consumers") if role in network.groups}
    found = [rule for rule in network.inbound(group, port) if rule.peer not in known]
    for rule in found:
        if rule.peer in ANYWHERE:
            yield _public(rule)
        else:
            said = f"rule {rule.id} lets {network.name_of(rule.peer)} reach the {server}"
            yield fail(group, said, f"Remove it: {_revoke(rule)}")
    if not found:
        yield passed(group, f"only {', '.join(sorted(allowed))} reach the {server}")


def _public(rule: Rule) -> Finding:
    said = f"rule {rule.id} lets everybody in ({rule.peer})"
    return fail(rule.group, said, f"Remove it now: {_revoke(rule)}")


def _revoke(rule: Rule) -> str:
    return f"aws ec2 revoke-security-group-ingress --group-id {rule.group} --security-group-rule-ids {rule.id}"


def _authorize(direction: str, group: str, peer: str, port: int) -> str:
    rule = f"IpProtocol=tcp,FromPort={port},ToPort={port},UserIdGroupPairs=[{{GroupId={peer}}}]"
    return f"aws ec2 authorize-security-group-{direction} --group-id {group} --ip-permissions '{rule}'"


def _let_in(network: Network, doors: Iterable[str], caller: str) -> bool:
    rules = (rule for door in doors for rule in network.inbound(door, HTTPS))
    return any(rule.peer == caller or rule.peer in ANYWHERE for rule in rules)


def _let_out(network: Network, doors: Collection[str], caller: str) -> bool:
    return any(rule.peer in doors or rule.peer in ANYWHERE for rule in network.outbound(caller, HTTPS))


def _direct(facts: Facts) -> bool:
    return facts.stack.parameters.get("DirectAccess") == "open"


def _proxy_port(facts: Facts) -> int:
    return int(facts.stack.parameters.get("DatabasePort") or DATABASE_PORT)


def _not_made(facts: Facts, server: str) -> Finding:
    return skip(facts.fleet.name, f"this stack has not made the {server}: who reaches it is its owner's to say")
