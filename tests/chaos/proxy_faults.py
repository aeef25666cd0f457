"""Faults of the RDS Proxy, and of the way to the database behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.rdsproxy.settings import RdsProxyError
from spillway.stack.rds_proxy import Credentials
from tests.chaos.faults import Fault, Strike, fault

if TYPE_CHECKING:
    from spillway.rdsproxy.metrics import Snapshot
    from tests.chaos.fleet import Fleet


def _snapshot(fleet: Fleet) -> Snapshot | None:
    try:
        return fleet.proxy.snapshot()
    except RdsProxyError:
        return None


def _inject(strike: Strike, name: str, **arguments: float) -> dict[str, object]:
    """The proxy's answer; empty if somebody else's fault has just ended the proxy."""
    try:
        return strike.fleet.proxy.admin.fault(name, arguments)
    except RdsProxyError:
        return {}


@fault
class ProxyRestart(Fault):
    """Killed and started again on its port: every client's connection is gone."""

    name = "RDS Proxy restarts"
    takes = "the proxy"

    def strike(self, strike: Strike) -> int:
        strike.fleet.restart_proxy()
        return 1


@fault
class FailOver(Fault):
    """Every database connection ends, and for a while there is no writer."""

    name = "fail-over of 5 to 20 s"
    takes = "the proxy"

    def strike(self, strike: Strike) -> int:
        outage = strike.seconds(5, 20)
        happened = bool(_inject(strike, "fail-over", outage=outage))
        strike.pause(outage)
        return int(happened)


@fault
class OutageAfterOutage(Fault):
    """Short outages in a row: messages come again and again, through no fault of theirs."""

    name = "outage after outage"
    takes = "the proxy"

    def strike(self, strike: Strike) -> int:
        happened = 0
        for _ in range(3 if strike.quick else 6):
            happened += bool(_inject(strike, "fail-over", outage=1.2))
            strike.pause(1.2 + strike.rng.uniform(0.3, 1.2))
        return happened


@fault
class Saturation(Fault):
    """No connection to be had for longer than the borrow timeout."""

    name = "pool saturated"
    takes = "the proxy"

    def strike(self, strike: Strike) -> int:
        before = _snapshot(strike.fleet)
        if before is None or not _inject(strike, "saturate"):
            return 0

        def timeouts() -> int:
            now = _snapshot(strike.fleet)
            return now.borrow_timeouts - before.borrow_timeouts if now else 0

        strike.pause(strike.seconds(4, 9))
        strike.wait(lambda: timeouts() > 0)
        return max(0, timeouts())

    def heal(self, strike: Strike) -> None:
        strike.fleet.proxy.admin.fault("saturate", {"seconds": 0.01})


@fault
class Latency(Fault):
    """Every request takes longer."""

    name = "latency"
    takes = "the proxy"

    def strike(self, strike: Strike) -> int:
        before = _snapshot(strike.fleet)
        if before is None or not _inject(strike, "latency", per_request=strike.rng.uniform(0.1, 0.6)):
            return 0

        def requests() -> int:
            now = _snapshot(strike.fleet)
            return int(now.cloudwatch["QueryRequests"] - before.cloudwatch["QueryRequests"]) if now else 0

        strike.pause(strike.seconds(3, 6))
        strike.wait(lambda: requests() > 0)
        return max(0, requests())

    def heal(self, strike: Strike) -> None:
        strike.fleet.proxy.admin.fault("latency", {"per_request": 0.0})


@fault
class DroppedConnections(Fault):
    """Half of the database connections end under their clients, several times."""

    name = "dropped database connections"

    def strike(self, strike: Strike) -> int:
        dropped = 0
        for _ in range(strike.rng.randint(4, 8)):
            victims = _inject(strike, "drop-connections", share=0.5).get("connections")
            dropped += len(victims) if isinstance(victims, list) else 0
            strike.pause(strike.rng.uniform(0.1, 0.6))
        return dropped


@fault
class RefusedTokens(Fault):
    """The proxy believes in other keys than the functions sign with, as if rds-db:connect had been taken away."""

    name = "refused IAM tokens"
    takes = "the proxy"

    def strike(self, strike: Strike) -> int:
        fleet = strike.fleet
        fleet.restart_proxy(Credentials("AKIACHAOS", "another secret"))
        strike.pause(strike.seconds(2, 4))

        def refused() -> int:
            seen = _snapshot(fleet)
            return int(seen.cloudwatch["ClientConnectionsSetupFailedAuth"]) if seen else 0

        strike.wait(lambda: refused() > 0)
        return refused()

    def heal(self, strike: Strike) -> None:
        strike.fleet.restart_proxy()
