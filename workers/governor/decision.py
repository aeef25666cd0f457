"""What to do about one mapping: observations and memory in, a decision out. No I/O, no clock.

Concurrency follows AIMD, as TCP's congestion window does: lowered by a factor while the pool is overloaded, raised by a
step when it has been calm for some minutes, and after an outage doubled from the least up to what was good before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from workers.governor.load import PERIOD_S, WINDOW, Health, Level, Minute
from workers.governor.record import Record, Setting
from workers.governor.settings import LEAST_CONCURRENCY

#: Factors of a lowering: messages are turned away, or the wait is too long.
SATURATED_FACTOR = 0.5
WAITING_FACTOR = 0.7
#: A raise is this share of the maximum, at least 1.
STEP_SHARE = 0.1
#: Calm minutes before a raise: above the goal, and on the way to it.
CALM_MINUTES = 3
CALM_MINUTES_TO_GOAL = 1
#: From a change to the first minute that shows it: an update takes up to a minute or so, and batches in progress go on.
EFFECT = timedelta(seconds=60)

#: An outage is believed when it is seen twice in a row, this far apart at least (two runs in the same minute are one
#: look): a failover of Aurora is over within about 30 s, and stopping for it would cost minutes of a ramp. The price is
#: one more minute in which messages are given back, each with a back-off, out of a maxReceiveCount of 1,000.
CONFIRMED_AFTER = timedelta(seconds=45)
#: An older sight is none: the governor did not run in between.
FORGOTTEN_AFTER = timedelta(minutes=5)
#: How often it is written down that a disabled mapping's target is still down.
NOTED_EVERY = timedelta(minutes=5)
#: A mapping is enabled again when the target's state could not be read, or was none of the clear ones, for this long:
#: standing still for want of a reading would be an outage of the governor's own. The workers' breakers stay.
BLIND_LIMIT = timedelta(minutes=15)

#: States of a mapping in which it can be changed (API reference, EventSourceMappingConfiguration); others pass.
SETTLED_STATES = frozenset({"Enabled", "Disabled"})

MANUAL = "manual"
_HANDED_BACK = frozenset({"", "on"})


class Action(Enum):
    HOLD = "hold"
    WAIT = "wait"  # the mapping is in transition
    HANDS_OFF = "hands-off"
    LOWER = "lower"
    RAISE = "raise"
    DISABLE = "disable"
    ENABLE = "enable"
    GIVE_BACK = "give-back"  # the governor was turned off: as deployed, at once


@dataclass(frozen=True, slots=True)
class Seen:
    """A mapping as it is. note: the tag between governor and people, "" where there is none."""

    state: str
    setting: Setting
    note: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """What all mappings share. health None: there is no proxy. minutes: newest first, () where they cannot be read."""

    health: Health | None
    minutes: tuple[Minute, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """setting: what to change the mapping to, None for no change. record, note: what its tags must say afterwards.

    The tags are written before the mapping is changed, in one call.
    """

    action: Action
    reason: str
    record: Record | None
    note: str
    setting: Setting | None = None


def decide(now: datetime, seen: Seen, maximum: int, record: Record | None, world: World) -> Decision:
    """What to do about a mapping whose deployed MaximumConcurrency is `maximum`."""
    kept = _kept_off(seen, record)
    if kept:
        return kept
    base = _base(now, seen.setting, maximum, record)
    if not base:
        return _hands_off(now, seen, maximum, record)
    decision = _steer(now, seen.setting, maximum, base, world)
    at_rest = Record(was=seen.setting, to=seen.setting, goal=maximum)
    if seen.setting == _deployed(maximum) and _forgetting(now, decision.record) == at_rest:
        decision = replace(decision, record=None)  # nothing to remember: a fleet at rest has no tags
    return replace(decision, note=_cleared(seen.note))


def give_back(now: datetime, seen: Seen, maximum: int, record: Record | None) -> Decision:
    """What to do about a mapping while the governor is turned off: undo what it did, and forget."""
    kept = _kept_off(seen, record)
    if kept:
        return kept
    deployed = _deployed(maximum)
    if seen.setting == deployed:
        return Decision(Action.HOLD, "turned off", None, _cleared(seen.note))
    if record is None:
        return Decision(Action.HOLD, "turned off", None, seen.note)
    if not _ours(seen.setting, maximum, record):
        return Decision(Action.HANDS_OFF, "changed by hand", record, seen.note)
    intended = replace(record, was=seen.setting, to=deployed, at=now, down=None)
    return Decision(Action.GIVE_BACK, "turned off", intended, _cleared(seen.note), deployed)


def _deployed(maximum: int) -> Setting:
    return Setting(enabled=True, concurrency=maximum)


def _cleared(note: str) -> str:
    """The note without what the governor wrote."""
    return "" if note.startswith(MANUAL) else note


def _forgetting(now: datetime, record: Record | None) -> Record | None:
    """The record without a time that has come to mean nothing, because no minute is looked at that is as old."""
    old = record and record.at and now - record.at > timedelta(seconds=(WINDOW + 2) * PERIOD_S)
    return replace(record, at=None) if record and old else record


def _kept_off(seen: Seen, record: Record | None) -> Decision | None:
    if seen.note not in _HANDED_BACK and not seen.note.startswith(MANUAL):
        return Decision(Action.HANDS_OFF, f"tagged {seen.note}", record, seen.note)
    if seen.state not in SETTLED_STATES:
        return Decision(Action.WAIT, f"in transition: {seen.state}", record, seen.note)
    return None


def _ours(there: Setting, maximum: int, record: Record | None) -> bool:
    """Whether the governor has set it so. What somebody disabled by hand never becomes its own."""
    if record is None or (record.manual and not there.enabled):
        return False
    # A deployment sets the concurrency of a mapping that the governor disabled, and leaves it disabled.
    deployed_over = not record.to.enabled and there == Setting(enabled=False, concurrency=maximum)
    # `was` is its own, too, until the change was seen: the run may have ended between writing it down and making it.
    return there in (record.was, record.to) or deployed_over


def _base(now: datetime, there: Setting, maximum: int, record: Record | None) -> Record | None:
    """The record to go on from, as of what is there now; None where somebody else set the mapping."""
    fresh = Record(was=there, to=there, goal=maximum)
    if record and _ours(there, maximum, record):
        # What is not there was not done, and gives no reason to wait.
        at = None if there == record.was != record.to else record.at
        return replace(record, was=there, to=there, at=at, manual=False)
    if there != _deployed(maximum):
        return None
    # Deployed anew, or set back by hand, which comes to the same: the minutes before it tell of something else.
    return replace(fresh, at=now) if record else fresh


def _hands_off(now: datetime, seen: Seen, maximum: int, record: Record | None) -> Decision:
    known = record or Record(was=_deployed(maximum), to=_deployed(maximum), goal=maximum)
    if not known.manual:
        # Both tags in one call, so that a note that is missing later was removed by somebody.
        note = f"{MANUAL}: {seen.setting} is not {known.to}"
        return Decision(Action.HANDS_OFF, f"changed by hand: {seen.setting}", replace(known, manual=True), note)
    if seen.note.startswith(MANUAL):
        return Decision(Action.HANDS_OFF, f"changed by hand: {seen.setting}", known, seen.note)
    if not seen.setting.enabled:
        return Decision(Action.HANDS_OFF, "disabled by hand", known, seen.note)
    # The note was removed: what is there is where to go on from, once some minutes tell of it.
    goal = min(seen.setting.concurrency or maximum, maximum)
    taken = Record(was=seen.setting, to=seen.setting, goal=goal, at=now)
    return Decision(Action.HOLD, "handed back", taken, "")


def _steer(now: datetime, there: Setting, maximum: int, base: Record, world: World) -> Decision:
    if world.health is Health.DOWN:
        return _outage(now, there, base)
    if not there.enabled:
        return _after_outage(now, base, world)
    base = replace(base, down=None)
    if there.concurrency is None or there.concurrency > maximum:
        return _change(Action.LOWER, "above the maximum", now, base, _deployed(maximum), goal=maximum)
    return _aimd(now, there.concurrency, maximum, replace(base, goal=min(base.goal, maximum)), world)


def _outage(now: datetime, there: Setting, base: Record) -> Decision:
    if not there.enabled:
        due = base.down is None or now - base.down >= NOTED_EVERY
        return Decision(Action.HOLD, "target still down", replace(base, down=now) if due else base, "")
    since = now - base.down if base.down else FORGOTTEN_AFTER
    if since >= FORGOTTEN_AFTER:
        return Decision(Action.HOLD, "target seen down once", replace(base, down=now), "")
    if since < CONFIRMED_AFTER:
        return Decision(Action.HOLD, "target seen down once", base, "")
    # The least concurrency with it: enabled by hand it then differs from what was deployed, and can be told from it.
    goal = max(base.goal, there.concurrency or 0)
    disabled = Setting(enabled=False, concurrency=LEAST_CONCURRENCY)
    return _change(Action.DISABLE, "target down", now, replace(base, down=now), disabled, goal=goal)


def _after_outage(now: datetime, base: Record, world: World) -> Decision:
    if world.health is Health.UNKNOWN and base.down and now - base.down < BLIND_LIMIT:
        return Decision(Action.HOLD, "target's state unknown", base, "")
    reason = "target's state unknown for too long" if world.health is Health.UNKNOWN else "target available"
    enabled = Setting(enabled=True, concurrency=LEAST_CONCURRENCY)
    return _change(Action.ENABLE, reason, now, replace(base, down=None), enabled, goal=base.goal)


def _aimd(now: datetime, concurrency: int, maximum: int, base: Record, world: World) -> Decision:
    # Only minutes that lie wholly after the last change: earlier ones tell of another concurrency.
    first = (base.at + EFFECT).timestamp() if base.at else 0.0
    levels = [m.level for m in world.minutes if m.start >= first and m.level is not Level.UNKNOWN]
    if levels and levels[0] >= Level.WAITING:
        saturated = levels[0] is Level.SATURATED
        reason = "messages are turned away" if saturated else "the wait for a connection is too long"
        if concurrency <= LEAST_CONCURRENCY:
            return Decision(Action.HOLD, f"{reason}, at the least", base, "")
        factor = SATURATED_FACTOR if saturated else WAITING_FACTOR
        lower = max(LEAST_CONCURRENCY, int(concurrency * factor))
        return _change(Action.LOWER, reason, now, base, Setting(True, lower), goal=lower)
    if concurrency >= maximum:
        return Decision(Action.HOLD, "at the maximum", replace(base, goal=maximum), "")
    if world.health is Health.UNKNOWN:
        return Decision(Action.HOLD, "target's state unknown", base, "")
    needed = CALM_MINUTES_TO_GOAL if concurrency < base.goal else CALM_MINUTES
    if len(levels) < needed or any(level is not Level.CALM for level in levels[:needed]):
        return Decision(Action.HOLD, "not calm for long enough", base, "")
    step = max(1, math.ceil(maximum * STEP_SHARE))
    higher = min(2 * concurrency, base.goal) if concurrency < base.goal else min(concurrency + step, maximum)
    return _change(Action.RAISE, "calm", now, base, Setting(True, higher), goal=base.goal)


def _change(action: Action, reason: str, now: datetime, base: Record, to: Setting, *, goal: int) -> Decision:
    return Decision(action, reason, replace(base, to=to, at=now, goal=goal), "", to)
