"""From moments to numbers: how long nothing happened, and what became of each probe. No clock and no I/O in here.

Moments are seconds since the epoch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from spillway.drill.probes import Sent
    from spillway.fleet.canaries import Fate


class Gap(NamedTuple):
    """For how long nothing happened that should have, in seconds, and between which two moments."""

    seconds: float
    since: float | None = None
    until: float | None = None


class Fates(NamedTuple):
    """What became of the probes that SQS took, as message ids, and how often a worker gave one back, by outcome.

    `doubled` are those that took effect more than once; each is in `done`, too.
    """

    done: dict[str, float]
    dead: dict[str, Fate]
    lost: list[str]
    doubled: list[str]
    given_back: Counter[str]


def longest_gap(moments: Iterable[float], every: float) -> Gap:
    """The longest time between two neighbours of `moments`, less `every`, which is how far apart they should be."""
    ordered = sorted(moments)
    longest = Gap(0.0)
    for before, after in pairwise(ordered):
        if (seconds := after - before - every) > longest.seconds:
            longest = Gap(seconds, before, after)
    return longest


def usual_gap(moments: Iterable[float], every: float, began: float) -> Gap:
    """The longest gap before the failover `began`."""
    return longest_gap((one for one in moments if one < began), every)


def interruption(moments: Iterable[float], every: float, began: float, ended: float | None = None) -> Gap:
    """The longest gap since the failover `began`; the last moment before it is where the first gap starts.

    `ended` is when the drill stopped looking, given where something was still to come: then that is missing until then
    at least.
    """
    ordered = sorted(moments)
    first = bisect_left(ordered, began)
    within = ordered[max(first - 1, 0) :]
    return longest_gap(within if ended is None else [*within, ended], every)


def fates_of(sent: Iterable[Sent], fates: Iterable[Fate]) -> Fates:
    """Sort out what was told about the probes in `sent`; of others nothing is said.

    A probe is done when a worker says so for the first time. It has taken effect once for each `applied`: what comes
    again changes nothing, and is told as `duplicate` or `stale`.
    """
    told: defaultdict[str, list[Fate]] = defaultdict(list)
    for fate in fates:
        told[fate.message_id].append(fate)
    found = Fates({}, {}, [], [], Counter())
    for one in sent:
        if one.message_id is None:
            continue
        its = told[one.message_id]
        if done := [fate.at.timestamp() for fate in its if fate.done]:
            found.done[one.message_id] = min(done)
        elif dead := [fate for fate in its if fate.dead]:
            found.dead[one.message_id] = dead[0]
        else:
            found.lost.append(one.message_id)
        if sum(fate.outcome == "applied" for fate in its) > 1:
            found.doubled.append(one.message_id)
        found.given_back.update(fate.outcome for fate in its if not (fate.done or fate.dead))
    return found


def longest_wait(sent: Iterable[Sent], done: Mapping[str, float]) -> float:
    """The longest time from a probe's acceptance by SQS until a worker was done with it; clocks may differ a little."""
    waits = (done[one.message_id] - one.at for one in sent if one.message_id is not None and one.message_id in done)
    return max(waits, default=0.0)


def pending_at_end(sent: Sequence[Sent], fates: Fates) -> bool:
    """Whether the last that is known of the consumers is that they did not answer: what was sent after the last probe
    that is done is not done."""
    last = max(fates.done.values(), default=0.0)
    lost = set(fates.lost)
    return any(one.message_id in lost and one.at >= last for one in sent)
