"""What a redrive came to so far, for who watches it; the journal has it letter by letter."""

from __future__ import annotations

from collections import Counter

import msgspec

from spillway.dlq.letters import Cause


class Tally(msgspec.Struct):
    """`redriven` includes what the run did before it was interrupted and resumed.

    `cleared` were sent by another run before and only deleted now. `undeleted` were sent and are still in the
    dead-letter queue, too: the next redrive only deletes them. `later` arrived after the run's start. `refused` and
    `kept` are by why. `stayed` were selected and not tried, by cause, and `why` they stayed.
    """

    looked_at: int = 0
    redriven: int = 0
    cleared: int = 0
    undeleted: int = 0
    later: int = 0
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    kept: Counter[str] = msgspec.field(default_factory=Counter)
    stayed: dict[Cause, int] = {}
    why: dict[Cause, str] = {}

    @property
    def staying(self) -> int:
        """How many were selected and stay, tried or not."""
        return sum(self.stayed.values()) + self.kept.total()

    @property
    def complete(self) -> bool:
        """Whether everything that was selected left the dead-letter queue."""
        return not (self.refused or self.staying or self.undeleted)
