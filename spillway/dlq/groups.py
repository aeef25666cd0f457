"""Dead letters by their cause: how many, since when, and one to look at."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from spillway.dlq.letters import Cause

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.dlq.letters import Letter


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One letter of a group. `place` is where in its body the trouble is, as far as the worker said."""

    message_id: str
    event_id: str | None = None
    subject: str | None = None
    place: str = ""
    bytes: int = 0


class Group(msgspec.Struct, kw_only=True):
    """The letters of one cause. `first_seen` and `last_seen` are when the first and the last of them died."""

    key: str
    cause: Cause
    count: int
    first_seen: datetime
    last_seen: datetime
    example: Example


class Groups:
    """Counts letters as they are read; keeps one example of each cause, the latest, and no body."""

    def __init__(self) -> None:
        self._groups: dict[Cause, Group] = {}
        self.count = 0

    def add(self, letter: Letter) -> Group:
        """Count one letter; returns its group."""
        self.count += 1
        group = self._groups.get(letter.cause)
        if group is None:
            group = self._groups[letter.cause] = Group(
                key=letter.cause.key,
                cause=letter.cause,
                count=0,
                first_seen=letter.dead_since,
                last_seen=letter.dead_since,
                example=_example(letter),
            )
        group.count += 1
        group.first_seen = min(group.first_seen, letter.dead_since)
        if letter.dead_since > group.last_seen:
            group.last_seen = letter.dead_since
            group.example = _example(letter)
        return group

    def __iter__(self) -> Iterator[Group]:
        """Largest first."""
        return iter(sorted(self._groups.values(), key=lambda group: (-group.count, group.cause)))

    def __len__(self) -> int:
        return len(self._groups)


def _example(letter: Letter) -> Example:
    return Example(
        message_id=letter.message_id,
        event_id=letter.event_id,
        subject=letter.subject,
        place=letter.place,
        bytes=letter.size,
    )
