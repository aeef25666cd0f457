"""What a redrive would do, found out without doing it: read, select, edit, and give everything back."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from spillway.dlq.edits import EditRefused
from spillway.dlq.letters import Cause
from spillway.dlq.pieces import body_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from spillway.dlq.edits import Editor
    from spillway.dlq.filters import Filter
    from spillway.dlq.letters import Letter


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One letter's body before and after the edit."""

    message_id: str
    before: str
    after: str


class PlannedGroup(msgspec.Struct, kw_only=True):
    """The letters of one cause: `count` would be sent, `refused` would not, by reason. `example` is of an edit."""

    key: str
    cause: Cause
    count: int = 0
    refused: dict[str, int] = {}
    example: Change | None = None

    @property
    def total(self) -> int:
        return self.count + sum(self.refused.values())


class Rehearsal:
    """Is told of every letter, and keeps counts and one example of each group. `limit` counts letters to be sent."""

    def __init__(
        self,
        *,
        selected: Filter,
        arrived_by: datetime,
        sent_before: Callable[[Sequence[str]], dict[str, str]],
        editor: Editor | None = None,
        limit: int | None = None,
        to_fifo: bool = False,
    ) -> None:
        self._filter = selected
        self._arrived_by = arrived_by
        self._sent_before = sent_before
        self._editor = editor
        self._limit = limit
        self._to_fifo = to_fifo
        self._groups: dict[Cause, PlannedGroup] = {}
        self.looked_at = self.cleared = self.count = 0

    def note(self, letter: Letter) -> bool:
        """Count one letter; returns whether that was the last that is needed."""
        self.looked_at += 1
        if letter.sent_at <= self._arrived_by and self._filter.matches(letter):
            if self._sent_before([letter.message_id]):
                self.cleared += 1
            else:
                self._plan(letter)
        return self._limit is not None and self.count >= self._limit

    @property
    def groups(self) -> list[PlannedGroup]:
        """Largest first."""
        return sorted(self._groups.values(), key=lambda group: (-group.total, group.cause))

    @property
    def refused(self) -> Counter[str]:
        """How many would be refused, by reason."""
        total: Counter[str] = Counter()
        for group in self._groups.values():
            total.update(group.refused)
        return total

    def _plan(self, letter: Letter) -> None:
        group = self._groups.setdefault(letter.cause, PlannedGroup(key=letter.cause.key, cause=letter.cause))
        try:
            after = body_of(letter, self._editor, to_fifo=self._to_fifo)
        except EditRefused as refused:
            group.refused[str(refused)] = group.refused.get(str(refused), 0) + 1
            return
        group.count += 1
        self.count += 1
        if after != letter.body and group.example is None:
            group.example = Change(message_id=letter.message_id, before=letter.body, after=after)
