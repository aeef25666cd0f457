"""The catalogue: every fault by name, and what a fault is.

A fault strikes once per run, heals by itself, and says how often it really happened. One that did not happen proves
nothing, so such a run is made again and never counted.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tests.chaos.hooks import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Strike:
    """Where and how a fault strikes. `worker` is the victim of a fault that has one; `quick`: times are compressed.

    `killer_seed` is what messages that kill are made from.
    """

    fleet: Fleet
    worker: str
    rng: random.Random
    quick: bool
    killer_seed: int

    #: How long a fault waits for what it needs (a batch in flight, a dead letter), in seconds.
    PATIENCE_S: ClassVar[float] = 15.0

    def wait(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        return wait_until(condition, self.PATIENCE_S if timeout_s is None else timeout_s)

    def seconds(self, low: float, high: float) -> float:
        """A duration; a third of it in a compressed run, but a second at least."""
        drawn = self.rng.uniform(low, high)
        return max(1.0, drawn / 3) if self.quick else drawn

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class Fault(ABC):
    """One kind of fault. An object of it strikes once."""

    name: ClassVar[str]
    #: Whether a function may run into its timeout. Where it may not, the time budget has to see to that.
    may_time_out: ClassVar[bool] = False
    #: Whether it takes a minute, for want of a shorter visibility timeout.
    slow: ClassVar[bool] = False
    #: The only workers that it makes sense for; empty: all.
    only: ClassVar[tuple[str, ...]] = ()

    #: What it takes for itself: of two faults that take the same, the one would end or hide the other.
    takes: ClassVar[str] = ""
    #: How many messages are sent at once; None: it does not matter.
    burst: ClassVar[int | None] = None

    @abstractmethod
    def strike(self, strike: Strike) -> int:
        """Break something, wait, mend it; returns how often it happened."""

    def heal(self, strike: Strike) -> None:  # noqa: B027 - most have nothing to mend
        """Mend what `strike` broke, also if that was interrupted. Called after each strike."""


CATALOGUE: dict[str, type[Fault]] = {}


def fault(kind: type[Fault]) -> type[Fault]:
    """A decorator that puts a fault into the catalogue."""
    CATALOGUE[kind.name] = kind
    return kind


def load() -> dict[str, type[Fault]]:
    """The whole catalogue."""
    from tests.chaos import (  # noqa: F401, PLC0415 - they register themselves
        database_faults,
        environment_faults,
        proxy_faults,
        queue_faults,
    )

    return CATALOGUE
