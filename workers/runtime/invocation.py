"""What one invocation has left and has learnt, and what became of its records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from workers.runtime.failures import Failure
    from workers.runtime.sqs import Record


@dataclass(slots=True)
class Invocation:
    """What one invocation has left, in seconds, and what it has learnt about the database.

    `reserved_s` of the time is kept free of writing, for what has to be told SQS afterwards.
    """

    remaining_s: Callable[[], float]
    reserved_s: float = 0.0
    stopped: Failure | None = None  # by a failure after which nothing else is written
    turned_away: bool = False  # by the breaker
    halvings: int = 0
    write_s: float = 0.0
    errors: list[tuple[Failure, BaseException]] = field(default_factory=list)

    def time_to_write(self) -> float:
        """Seconds that writing may still take."""
        return self.remaining_s() - self.reserved_s


@dataclass(slots=True)
class Ledger:
    """What became of each record: it is in exactly one of `done` and `given_back` in the end.

    `canaries`: the outcome of each message that is one, by message id; '' until there is one.
    """

    done: list[Record] = field(default_factory=list)
    given_back: list[tuple[Record, Failure]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    canaries: dict[str, str] = field(default_factory=dict)

    def finish(self, outcome: str, record: Record) -> None:
        """`record` is done."""
        self.done.append(record)
        self.outcomes[outcome] += 1
        self._note([record], outcome)

    def finish_all(self, outcomes: Counter[str], records: Collection[Record]) -> None:
        """All of `records` are done, and `outcomes` counts how; none of them is a canary."""
        if self.outcomes:
            self.outcomes.update(outcomes)
        else:  # nearly always; updating a Counter takes 2 us
            self.outcomes = outcomes
        self.done += records

    def give_back(self, records: list[Record], failure: Failure) -> None:
        """`records` go back to their queue."""
        self.given_back += [(record, failure) for record in records]
        self.outcomes[failure.value] += len(records)
        self._note(records, failure.value)

    def _note(self, records: list[Record], outcome: str) -> None:
        if self.canaries:
            for record in records:
                if record["messageId"] in self.canaries:
                    self.canaries[record["messageId"]] = outcome
