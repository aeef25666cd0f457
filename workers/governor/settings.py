"""What the governor reads from its environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from workers.runtime.settings import Reader, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What Lambda takes for an SQS mapping's MaximumConcurrency (API reference, ScalingConfig).
LEAST_CONCURRENCY = 2
MOST_CONCURRENCY = 1_000

Mode = Literal["off", "observe", "on"]

_MAPPING = re.compile(
    r"(?P<worker>[a-z][a-z0-9_-]*)=(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(?P<maximum>[0-9]{1,4})"
)


@dataclass(frozen=True, slots=True)
class Governed:
    """An event source mapping that the governor moves; maximum: the MaximumConcurrency that was deployed."""

    worker: str
    uuid: str
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorSettings:
    """The governor's configuration. proxy_name "": there is no proxy, only saturation is looked at.

    borrow_timeout is the proxy's, in seconds; 0 without a proxy.
    """

    mode: Mode
    fleet: str
    namespace: str
    proxy_name: str
    borrow_timeout: int
    mappings: tuple[Governed, ...]

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> GovernorSettings:
        """Read and check all variables. Raises SettingsError for the first that is wrong."""
        read = Reader(env)
        mode = read.choice("GOVERNOR_MODE", "off", "observe", "on")
        proxy_name = env.get("PROXY_NAME", "")
        return cls(
            mode="on" if mode == "on" else "observe" if mode == "observe" else "off",
            fleet=read.text("FLEET_NAME"),
            namespace=read.text("POWERTOOLS_METRICS_NAMESPACE"),
            proxy_name=proxy_name,
            # Without a proxy nothing is borrowed, and the variable may be 0 or missing.
            borrow_timeout=read.integer("BORROW_TIMEOUT", 1, 300) if proxy_name else 0,
            mappings=_mappings(read.text("MAPPINGS")),
        )


def _mappings(text: str) -> tuple[Governed, ...]:
    found: list[Governed] = []
    for word in text.split():
        match = _MAPPING.fullmatch(word)
        if not match or not LEAST_CONCURRENCY <= int(match["maximum"]) <= MOST_CONCURRENCY:
            raise SettingsError(
                "MAPPINGS: expected worker=<uuid of its mapping>:<maximum concurrency from"
                f" {LEAST_CONCURRENCY} to {MOST_CONCURRENCY}>, separated by spaces, got {word!r}"
            )
        found.append(Governed(match["worker"], match["uuid"], int(match["maximum"])))
    for values in ([each.worker for each in found], [each.uuid for each in found]):
        if len(set(values)) != len(values):
            raise SettingsError(f"MAPPINGS: expected every worker and every mapping once, got {text!r}")
    if not found:
        raise SettingsError("MAPPINGS: expected at least one mapping, got none")
    return tuple(found)
