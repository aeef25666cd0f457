"""What one run does, worked out from one seed and the run's number alone, so that it can be made again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.faults import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.chaos.faults import Fault

#: Every so many runs several faults strike at once.
TOGETHER_EVERY = 4
MAX_TOGETHER = 3
BURSTS = (5, 10, 40)
#: A run whose faults did not happen is made again.
MAX_ATTEMPTS = 3
MAX_RUNS = 100_000


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault: its name, the worker that it is meant for, and how long after the others it strikes, in seconds."""

    fault: str
    worker: str
    after_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `events` is the size of each worker's history, `seed` what everything in the run is drawn from.

    `burst` is how many messages are sent at once when faults begin: few keep batches small, many keep all owners busy.
    """

    seed: int
    run: int
    faults: tuple[Planned, ...]
    events: int
    burst: int
    quick: bool
    attempt: int = 0

    @property
    def history_seed(self) -> int:
        """No two runs of a suite share one."""
        return self.killer_seed - MAX_ATTEMPTS + self.attempt

    @property
    def killer_seed(self) -> int:
        """That of the messages that kill, which are none of the history."""
        return (self.seed * MAX_RUNS + self.run) * (MAX_ATTEMPTS + 1) + MAX_ATTEMPTS

    def rng(self, what: str) -> random.Random:
        """A generator for one purpose; the same for the same run."""
        return random.Random(f"{self.seed}/{self.run}/{self.attempt}/{what}")

    def __str__(self) -> str:
        return " + ".join(f"{one.fault} ({one.worker})" for one in self.faults)


def _together(rng: random.Random, names: Sequence[str], catalogue: Mapping[str, type[Fault]]) -> list[str]:
    """Two or more faults that do not get into each other's way."""
    wanted, chosen, taken = rng.randint(2, MAX_TOGETHER), list[str](), set[str]()
    for name in rng.sample(names, len(names)):
        if len(chosen) < wanted and catalogue[name].takes not in taken:
            chosen.append(name)
            taken |= {catalogue[name].takes} - {""}
    return chosen


def plan(
    seed: int,
    run: int,
    workers: Sequence[str],
    *,
    faults: Sequence[str] | None = None,
    quick: bool = False,
    attempt: int = 0,
) -> Plan:
    """Run number `run` of `seed`. Each fault has its turn before any comes again.

    `faults`: only these, one at a time. `quick`: compressed times and small histories, and nothing that takes a minute.
    """
    catalogue = load()
    rng = random.Random(f"{seed}/{run}")
    names = [name for name in (faults or catalogue) if not (quick and faults is None and catalogue[name].slow)]
    together = faults is None and run % TOGETHER_EVERY == TOGETHER_EVERY - 1
    if together:
        chosen = _together(rng, [name for name in names if not catalogue[name].slow], catalogue)
    else:
        # Runs of several faults are not a turn.
        turn = run - run // TOGETHER_EVERY if faults is None else run
        order = random.Random(f"{seed}/order/{turn // len(names)}").sample(names, len(names))
        chosen = [order[turn % len(names)]]
    planned = tuple(
        Planned(name, rng.choice(catalogue[name].only or tuple(workers)), 0.0 if first else rng.uniform(0, 3))
        for first, name in zip([True, *[False] * len(chosen)], chosen, strict=False)
    )
    events = rng.randrange(60, 81 if quick else 181)
    burst = next((one for name in chosen if (one := catalogue[name].burst)), rng.choice(BURSTS))
    return Plan(seed, run, planned, events, burst, quick, attempt)
