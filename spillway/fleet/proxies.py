"""The RDS Proxy of a deployed fleet: its own, or one that was brought along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from spillway.fleet.fleet import Fleet


def find_proxy(fleet: Fleet) -> str | None:
    """The name of the proxy that the deployed `fleet` made or was given as its parameter ProxyName; None without one.

    Asks CloudFormation only for the parameter.
    """
    own = next(fleet.of_type("AWS::RDS::DBProxy"), None)
    if own is not None and own.physical_id:
        return own.physical_id
    [stack] = fleet.client("cloudformation").describe_stacks(StackName=fleet.name)["Stacks"]
    given = {one["ParameterKey"]: one.get("ParameterValue", "") for one in stack.get("Parameters", [])}
    return given.get("ProxyName") or None


def require_proxy(fleet: Fleet, said: str | None) -> str:
    """The proxy's name: `said` if there is one. Raises SpillwayError where the fleet has no proxy that is known."""
    if name := said or find_proxy(fleet):
        return name
    raise SpillwayError(
        f"{fleet.title} has no RDS Proxy, and its parameter ProxyName names none.",
        "Name one with --proxy; `aws rds describe-db-proxies` lists them.",
    )
