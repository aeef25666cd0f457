"""What can be broken on purpose, by name: through the API, the admin port, the command line or the pytest fixture.

Where a fault chooses its victims it does so by the proxy's seed over connections in the order of their numbers, so that
a test that failed can be repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spillway.rdsproxy.settings import RdsProxyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from spillway.rdsproxy.proxy import RdsProxy

#: Names and their arguments with defaults; seconds 0: until `clear`.
ARGUMENTS: dict[str, dict[str, float]] = {
    "fail-over": {"outage": 1.0},
    "saturate": {"seconds": 0.0, "leave": 0.0},
    "latency": {"per_request": 0.1, "seconds": 0.0},
    "drop-connections": {"count": 0.0, "share": 1.0},
    "refuse-clients": {"seconds": 0.0},
    "close-idle-clients": {},
    "clear": {},
}
FAULTS = tuple(ARGUMENTS)


class Faults:
    """The faults of one proxy. All methods belong to the event loop's thread."""

    def __init__(self, proxy: RdsProxy, random: Random) -> None:
        self._proxy = proxy
        self._random = random
        self.refusing = False
        #: Which setting of a fault is in force; an older timer must not end a younger fault.
        self._generation: dict[str, int] = {}

    def inject(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Break something. Returns what was done. Raises RdsProxyError for an unknown fault or a wrong argument."""
        if name not in ARGUMENTS:
            raise RdsProxyError(f"There is no fault {name!r}.", f"Faults: {', '.join(FAULTS)}.")
        values = dict(ARGUMENTS[name])
        for argument, value in arguments.items():
            if argument not in values:
                known = ", ".join(values) or "none"
                raise RdsProxyError(f"{name} has no argument {argument!r}.", f"Arguments: {known}.")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
                raise RdsProxyError(f"{name}: expected {argument} to be a number from 0, got {value!r}.")
            values[argument] = float(value)
        if name == "drop-connections":
            if "count" in arguments and "share" in arguments:
                raise RdsProxyError("drop-connections: give count or share, not both.")
            if values["share"] > 1:
                raise RdsProxyError(f"drop-connections: expected share to be from 0 to 1, got {values['share']:g}.")
            if "count" in arguments:
                values["share"] = 0.0
        method: Callable[..., dict[str, Any]] = getattr(self, "_" + name.replace("-", "_"))
        return {"fault": name, **method(**values)}

    def _fail_over(self, outage: float) -> dict[str, Any]:
        """Every database connection ends; for `outage` seconds there is no database to connect to."""
        pool = self._proxy.pool
        pool.unreachable_until = self._proxy.loop.time() + outage
        pool.available = False
        connections = sorted(pool.connections, key=lambda one: one.state.number)
        for connection in connections:
            connection.abort()
        if not self._for("fail-over", outage, pool.end_outage):
            pool.end_outage()
        return {"outage": outage, "connections": len(connections)}

    def _saturate(self, seconds: float, leave: float) -> dict[str, Any]:
        """Lend no more than `leave` connections at once."""
        self._proxy.pool.lend_limit = int(leave)
        self._for("saturate", seconds, self._end_saturation)
        return {"seconds": seconds, "leave": int(leave)}

    def _end_saturation(self) -> None:
        pool = self._proxy.pool
        pool.lend_limit = pool.size
        pool.serve()

    def _latency(self, per_request: float, seconds: float) -> dict[str, Any]:
        """Hold every request back for `per_request` seconds."""
        self._proxy.latency = per_request
        self._for("latency", seconds, self._end_latency)
        return {"per_request": per_request, "seconds": seconds}

    def _end_latency(self) -> None:
        self._proxy.latency = 0.0

    def _drop_connections(self, count: float, share: float) -> dict[str, Any]:
        """End `count` database connections, or a `share` (0 to 1) of them, chosen by the seed."""
        connections = sorted(self._proxy.pool.connections, key=lambda one: one.state.number)
        wanted = int(count) or round(len(connections) * share)
        victims = self._random.sample(connections, min(wanted, len(connections)))
        for connection in victims:
            connection.abort()
        return {"connections": sorted(one.state.number for one in victims)}

    def _refuse_clients(self, seconds: float) -> dict[str, Any]:
        """Let nobody log in."""
        self.refusing = True
        self._for("refuse-clients", seconds, self._end_refusal)
        return {"seconds": seconds}

    def _end_refusal(self) -> None:
        self.refusing = False

    def _close_idle_clients(self) -> dict[str, Any]:
        """End the connections of clients that have no request under way."""
        idle = [client for client in self._proxy.clients if client.idle_since() is not None]
        for client in idle:
            client.close("a fault closes idle clients")
        return {"clients": len(idle)}

    def _clear(self) -> dict[str, Any]:
        """End every fault that is in force."""
        for name in self._generation:
            self._generation[name] += 1
        self._end_latency()
        self._end_refusal()
        self._proxy.pool.end_outage()
        self._end_saturation()
        return {}

    def _for(self, name: str, seconds: float, end: Callable[[], None]) -> bool:
        """Call `end` after `seconds`, unless the fault was set anew meanwhile; False for 0 seconds, which is never."""
        generation = self._generation[name] = self._generation.get(name, 0) + 1

        def over() -> None:
            if self._generation[name] == generation:
                end()

        if seconds:
            self._proxy.loop.call_later(seconds, over)
        return bool(seconds)
