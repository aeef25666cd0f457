"""Checks on the RDS Proxy: its target, its doors, how it lets clients in, its pool's settings."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from spillway.doctor.finding import fail, passed, skip, warn
from spillway.doctor.registry import check, deployed
from workers.runtime.database import MAX_IDLE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_proxy import Proxy
    from spillway.doctor.finding import Finding
    from spillway.doctor.registry import Look

    LookAtProxy = Callable[[Facts, Proxy], Iterator[Finding]]

#: Above it, migrations, monitoring and people hardly find a connection. The user guide advises to keep 30 % more than
#: the highest recent use ("RDS Proxy connection considerations", MaxConnectionsPercent); the template's default is 75.
MOST_CONNECTIONS_PERCENT = 90

# By the words of the API (RDS API Reference, TargetHealth). Places: {proxy}.
_REASONS = {
    "UNREACHABLE": "Is the database up (aws rds describe-db-instances)? Does its security group let the proxy's in "
    "(`spillway doctor --area network`)?",
    "CONNECTION_FAILED": "Is the database up, and has it connections left (max_connections)? The proxy's log says "
    "more: aws logs tail /aws/rds/proxy/{proxy} --since 30m.",
    "AUTH_FAILURE": "With a secret, rotate it again: aws secretsmanager rotate-secret; the role must not have "
    "rds_iam. With ProxyAuthentication=iam the role must have rds_iam: `spillway doctor --area database`.",
    "PENDING_PROXY_CAPACITY": "The proxy is growing: wait some minutes. If it stays so, see that its subnets have "
    "free addresses.",
    "INVALID_REPLICATION_STATE": "The target is not replicating: aws rds describe-db-instances and "
    "describe-blue-green-deployments show its state.",
    "PROMOTED": "A blue/green deployment has promoted another database: finish it, and register that one as target.",
}
_ELSE = "See docs/operations.md#proxy-availability."


def nothing_known(facts: Facts) -> Finding:
    """What a check says of a fleet without a proxy, or with one whose name nobody gave."""
    if facts.fleet.local is not None:
        return skip(facts.fleet.name, "the workers connect to the database directly")
    if facts.stack.parameters.get("DatabaseHost"):
        return skip(facts.fleet.name, "the proxy or database is yours, and ProxyName does not name it")
    return skip(facts.fleet.name, "this stack has no proxy (CreateProxy=false)")


def of_the_proxy(look: LookAtProxy) -> Look:
    """`look` gets the proxy; a fleet without one that is known is skipped, and says why."""

    @wraps(look)
    def looks(facts: Facts) -> Iterator[Finding]:
        if (proxy := facts.proxy) is None:
            yield nothing_known(facts)
        else:
            yield from look(facts, proxy)

    return looks


@check("proxy-targets", area="proxy")
def targets(facts: Facts) -> Iterator[Finding]:
    """The proxy reaches the database: every target is AVAILABLE."""
    yield from _targets(facts) if facts.fleet.local is None else _emulator(facts)


@of_the_proxy
def _targets(_facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    if not proxy.targets:
        fix = (
            f"Register it: aws rds register-db-proxy-targets --db-proxy-name {proxy.name} --db-instance-identifiers ID."
        )
        yield fail(proxy.name, "it has no target: there is no database behind it", fix)
    for one in proxy.targets:
        role = f", {one.role}" if one.role else ""
        if one.state == "AVAILABLE":
            yield passed(proxy.name, f"the target {one.name}{role} is AVAILABLE")
        elif one.state == "UNUSED":
            yield skip(proxy.name, f"the target {one.name}{role} is UNUSED, as in a blue/green deployment")
        elif one.state == "REGISTERING":
            yield warn(proxy.name, f"the target {one.name}{role} is being registered", "Look again in some minutes.")
        else:
            why = ": ".join(part for part in (one.reason, one.description) if part) or "RDS gives no reason"
            fix = _REASONS.get(one.reason, _ELSE).format(proxy=proxy.name)
            yield fail(proxy.name, f"the target {one.name}{role} is {one.state or 'in no state'} ({why})", fix)


def _emulator(facts: Facts) -> Iterator[Finding]:
    load = facts.proxy_load
    if load is None:
        yield nothing_known(facts)
    elif load.available:
        yield passed(load.proxy, "it reaches its database")
    else:
        fix = "A failover ends by itself: look again in a minute. Else start the stack anew: spillway up."
        yield fail(load.proxy, "it does not reach its database", fix)


@check("proxy-endpoints", area="proxy", needs=deployed)
@of_the_proxy
def endpoints(_facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """The proxy and its further endpoints are available."""
    for name, status in ((proxy.name, proxy.status), *((one.name, one.status) for one in proxy.endpoints)):
        if status == "available":
            yield passed(name, "it is available")
        elif status in {"creating", "modifying", "reactivating"}:
            yield warn(name, f"it is {status}", "Look again in some minutes.")
        else:
            fix = f"See why: aws rds describe-db-proxies --db-proxy-name {proxy.name}."
            if status in {"incompatible-network", "insufficient-resource-limits"}:
                fix = "Its subnets must have free addresses, in two zones: aws rds describe-db-proxies shows which."
            yield fail(name, f"it is {status}", fix)


@check("proxy-tls", area="proxy", needs=deployed)
@of_the_proxy
def tls(_facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """The proxy refuses connections without TLS."""
    if proxy.require_tls:
        yield passed(proxy.name, "it requires TLS")
    else:
        yield fail(proxy.name, "it takes connections without TLS", _modify(proxy, "--require-tls"))


@check("proxy-iam", area="proxy", needs=deployed)
@of_the_proxy
def iam(_facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """Clients log in to the proxy with IAM; it refuses passwords."""
    takes = [one.arn.rpartition(":")[2] or "a user without a secret" for one in proxy.secrets if one.iam != "REQUIRED"]
    if takes:
        auth = (f"AuthScheme=SECRETS,SecretArn={one.arn},IAMAuth=REQUIRED" for one in proxy.secrets)
        fix = _modify(proxy, f"--auth {' '.join(auth)}")
        yield fail(proxy.name, f"it takes passwords for {', '.join(takes)} (IAMAuth is not REQUIRED)", fix)
    elif not proxy.secrets and proxy.default_auth != "IAM_AUTH":
        fix = _modify(
            proxy, "--auth AuthScheme=SECRETS,SecretArn=ARN,IAMAuth=REQUIRED, or --default-auth-scheme IAM_AUTH."
        )
        yield fail(proxy.name, "it has no way to log in to the database", fix)
    else:
        how = "with IAM" if proxy.default_auth == "IAM_AUTH" else f"with {len(proxy.secrets)} secret(s)"
        yield passed(proxy.name, f"clients need IAM; it logs in to the database {how}")


@check("proxy-borrow-timeout", area="proxy", needs=deployed)
@of_the_proxy
def borrow_timeout(facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """The functions reckon with the time that the proxy really makes them wait for a connection."""
    waits: dict[str, list[str]] = {}
    for one in facts.functions.values():
        if one.environment.get("DATABASE_ROUTE") == "proxy":
            waits.setdefault(one.environment.get("DATABASE_BORROW_TIMEOUT", ""), []).append(one.name)
    if not waits:
        yield skip(proxy.name, "no function goes through the proxy (DatabaseRoute=direct)")
    for told, names in waits.items():
        said = f"it lets clients wait {proxy.borrow_timeout} s for a connection, {', '.join(names)} reckon with "
        said += f"{told or 'nothing'}"
        fix = _set_pool(proxy, f"ConnectionBorrowTimeout={told or 'SECONDS'}")
        fix += "; for another time deploy with DatabaseBorrowTimeout, which the functions' own follow from."
        if not told.isdecimal() or proxy.borrow_timeout > int(told):
            yield fail(proxy.name, f"{said}: an invocation can run out of time while it waits", fix)
        elif proxy.borrow_timeout < int(told):
            yield warn(proxy.name, f"{said}: they give up sooner than they could", fix)
        else:
            yield passed(proxy.name, f"it lets clients wait {proxy.borrow_timeout} s, as the functions reckon")


@check("proxy-pool-size", area="proxy", needs=deployed)
@of_the_proxy
def pool_size(_facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """The proxy leaves connections of the database for migrations, monitoring and people."""
    most, idle = proxy.max_connections_percent, proxy.max_idle_connections_percent
    if most > MOST_CONNECTIONS_PERCENT:
        said = f"it may take {most} % of the database's connections, which leaves too few for everybody else"
        fix = f"Deploy with ProxyMaxConnectionsPercent=75, or {_set_pool(proxy, 'MaxConnectionsPercent=75')}."
        yield warn(proxy.name, said, fix)
    elif idle > most:
        said = f"it may keep {idle} % of the database's connections idle, but open only {most} %"
        fix = f"Deploy with ProxyMaxIdleConnectionsPercent={most} or less, or "
        yield warn(proxy.name, said, f"{fix}{_set_pool(proxy, f'MaxIdleConnectionsPercent={most}')}.")
    else:
        yield passed(proxy.name, f"it may open {most} % of the database's connections and keep {idle} % idle")


@check("proxy-idle-timeout", area="proxy", needs=deployed)
@of_the_proxy
def idle_timeout(_facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """The proxy keeps an idle client for longer than a worker keeps its connection."""
    if proxy.idle_client_timeout > MAX_IDLE_S:
        yield passed(proxy.name, f"it keeps idle clients for {proxy.idle_client_timeout} s")
    else:
        said = f"it closes clients that were idle for {proxy.idle_client_timeout} s, but workers reuse theirs for "
        said += f"{MAX_IDLE_S} s: their next write fails first"
        fix = f"Deploy with ProxyIdleClientTimeout=1800, or {_modify(proxy, '--idle-client-timeout 1800')}."
        yield warn(proxy.name, said, fix)


@check("proxy-debug-logging", area="proxy", needs=deployed)
@of_the_proxy
def debug_logging(_facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """The proxy does not log statements."""
    if proxy.debug_logging:
        said = f"it logs every statement, payloads too, to /aws/rds/proxy/{proxy.name}"
        yield warn(proxy.name, said, _modify(proxy, "--no-debug-logging"))
    else:
        yield passed(proxy.name, "statements are not logged")


@check("proxy-settings", area="proxy", needs=deployed)
@of_the_proxy
def settings(facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """The stack's own proxy is set as the stack's parameters say."""
    if not proxy.owned:
        yield skip(proxy.name, "the proxy is yours, not the stack's")
        return
    parameters = facts.stack.parameters
    drifted = False
    for name, now, set_back in _settings(proxy):
        if (deployed_with := parameters.get(name, now)) != now:
            drifted = True
            # CloudFormation compares with what it deployed last, not with what is there.
            fix = f"Deploying does not notice: {set_back.format(deployed_with)}"
            yield warn(proxy.name, f"{name} is {now}, deployed with {deployed_with}", fix)
    if not drifted:
        yield passed(proxy.name, "it is as it was deployed")


def _settings(proxy: Proxy) -> Iterator[tuple[str, str, str]]:
    """Parameters, what they are now, and the command that sets them. The borrow timeout has a check of its own."""
    most, idle = "MaxConnectionsPercent", "MaxIdleConnectionsPercent"
    yield f"Proxy{most}", str(proxy.max_connections_percent), _set_pool(proxy, most + "={}")
    yield f"Proxy{idle}", str(proxy.max_idle_connections_percent), _set_pool(proxy, idle + "={}")
    timeout = _modify(proxy, "--idle-client-timeout {}")
    yield "ProxyIdleClientTimeout", str(proxy.idle_client_timeout), timeout
    if proxy.default_auth == "IAM_AUTH":
        secrets = "--default-auth-scheme NONE --auth AuthScheme=SECRETS,SecretArn=ARN,IAMAuth=REQUIRED"
        yield "ProxyAuthentication", "iam", _modify(proxy, secrets)
    else:
        yield "ProxyAuthentication", "secret", _modify(proxy, "--default-auth-scheme IAM_AUTH")


def _modify(proxy: Proxy, change: str) -> str:
    return f"aws rds modify-db-proxy --db-proxy-name {proxy.name} {change}"


def _set_pool(proxy: Proxy, change: str) -> str:
    target_group = f"--db-proxy-name {proxy.name} --target-group-name default"
    return f"aws rds modify-db-proxy-target-group {target_group} --connection-pool-config {change}"
