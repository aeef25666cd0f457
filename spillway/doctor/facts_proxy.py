"""The RDS Proxy: its settings and targets, as RDS describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.doctor.facts import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the proxy connects to. `state`, `reason` and `role` are words of the API; '' where it says nothing."""

    name: str
    state: str
    role: str = ""
    reason: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A door of the proxy beside its own."""

    name: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret that the proxy logs in with, and whether clients of its user must come with IAM."""

    arn: str
    iam: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy and its target group. Times are in seconds; `owned` is whether the stack made it."""

    name: str
    owned: bool
    status: str
    require_tls: bool
    default_auth: str
    secrets: tuple[Secret, ...]
    idle_client_timeout: int
    debug_logging: bool
    groups: tuple[str, ...]
    borrow_timeout: int
    max_connections_percent: int
    max_idle_connections_percent: int
    targets: tuple[Target, ...]
    endpoints: tuple[Endpoint, ...]


def name_of(facts: Facts) -> str:
    """The proxy's name on AWS: the stack's own, or the one that the parameter ProxyName names; '' for neither."""
    for one in facts.fleet.of_type("AWS::RDS::DBProxy"):
        return one.physical_id
    return facts.stack.parameters.get("ProxyName", "")


def load(facts: Facts) -> Proxy | None:
    """The proxy as RDS describes it; None where the fleet has none that is known by name."""
    name = name_of(facts)
    if not name:
        return None
    client = facts.fleet.client("rds")
    about = client.describe_db_proxies(DBProxyName=name)["DBProxies"][0]
    (group,) = client.describe_db_proxy_target_groups(DBProxyName=name, TargetGroupName="default")["TargetGroups"]
    pool = group["ConnectionPoolConfig"]
    return Proxy(
        name=name,
        owned=any(facts.fleet.of_type("AWS::RDS::DBProxy")),
        status=about["Status"],
        require_tls=about["RequireTLS"],
        default_auth=about.get("DefaultAuthScheme", "NONE"),
        secrets=tuple(
            Secret(arn=one.get("SecretArn", ""), iam=one.get("IAMAuth", "DISABLED")) for one in about.get("Auth", ())
        ),
        idle_client_timeout=about["IdleClientTimeout"],
        debug_logging=about["DebugLogging"],
        groups=tuple(about.get("VpcSecurityGroupIds", ())),
        borrow_timeout=pool["ConnectionBorrowTimeout"],
        max_connections_percent=pool["MaxConnectionsPercent"],
        max_idle_connections_percent=pool["MaxIdleConnectionsPercent"],
        targets=tuple(_targets(client, name)),
        endpoints=tuple(_endpoints(client, name)),
    )


def _targets(client: Any, name: str) -> Iterator[Target]:
    for page in client.get_paginator("describe_db_proxy_targets").paginate(DBProxyName=name):
        for one in page["Targets"]:
            if one.get("Type") == "TRACKED_CLUSTER":
                continue  # an Aurora cluster itself, which has no health; its members are targets of their own
            health = one.get("TargetHealth", {})
            yield Target(
                name=one.get("RdsResourceId") or one.get("Endpoint") or name,
                state=health.get("State", ""),
                role=one.get("Role", ""),
                reason=health.get("Reason", ""),
                description=health.get("Description", ""),
            )


def _endpoints(client: Any, name: str) -> Iterator[Endpoint]:
    for page in client.get_paginator("describe_db_proxy_endpoints").paginate(DBProxyName=name):
        for one in page["DBProxyEndpoints"]:
            yield Endpoint(name=one["DBProxyEndpointName"], status=one["Status"])
