"""What the governor remembers of a mapping, as the value of a tag on it: it has no storage of its own.

A tag's value takes 256 characters: letters, digits, spaces and _ . : / = + - @ (Lambda API reference, TagResource).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

#: The governor's memory: written and read by it alone.
RECORD_TAG = "spillway:governor-record"
#: Between the governor and people: `off` keeps it away, `manual...` is what it writes when it found that somebody else
#: changed the mapping; removing the tag hands the mapping back to it.
NOTE_TAG = "spillway:governor"

MAX_TAG_VALUE = 256

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_WORDS = {True: "on", False: "off"}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a mapping is set to; concurrency None: it has no MaximumConcurrency at all."""

    enabled: bool
    concurrency: int | None

    def __str__(self) -> str:
        return f"{_WORDS[self.enabled]}:{self.concurrency or 'none'}"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """The inverse of str(). Raises ValueError."""
        word, _, number = text.partition(":")
        if word not in ("on", "off"):
            raise ValueError(f"expected on or off, got {word!r}")
        return cls(word == "on", None if number == "none" else int(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One mapping's memory.

    was, to: the last change, written before it is made; they are equal once it was seen to be made.
    at: when that was; None: nothing was changed, every minute may be judged.
    goal: the concurrency up to which it is raised fast, because it was good before an outage.
    down: of an enabled mapping, when the target was first seen unavailable in a row; of one that the governor
    disabled, when it was last seen so (to within a few minutes).
    manual: somebody else changed the mapping, and the governor keeps off.
    """

    was: Setting
    to: Setting
    goal: int
    at: datetime | None = None
    down: datetime | None = None
    manual: bool = False

    def encode(self) -> str:
        words = [f"was={self.was}", f"to={self.to}", f"goal={self.goal}"]
        words += [f"{name}={time.strftime(_TIME)}" for name, time in (("at", self.at), ("down", self.down)) if time]
        return " ".join(words + ["manual=yes"] * self.manual)

    @classmethod
    def decode(cls, text: str | None) -> Record | None:
        """The record in a tag's value; None where there is none, or none that can be read."""
        try:
            values = dict(word.split("=", 1) for word in (text or "").split())
            times = {name: _time(values[name]) for name in ("at", "down") if name in values}
            return cls(
                was=Setting.parse(values["was"]),
                to=Setting.parse(values["to"]),
                goal=int(values["goal"]),
                manual=values.get("manual") == "yes",
                **times,
            )
        except (KeyError, ValueError):
            return None


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
