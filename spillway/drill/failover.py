"""What a drill asks of a place that it can fail over: locally or on AWS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol


class Note(NamedTuple):
    """Something that happened, for the timeline; `at` is seconds since the epoch."""

    at: float
    what: str


class Failover(Protocol):
    """One database whose failover can be started."""

    #: What is failed over, for a sentence.
    title: str
    #: Seconds between two calls of `ask`.
    every: float
    #: What `ask` looks at, for a column of the report.
    asks: str

    def check(self) -> None:
        """Raises SpillwayError, with the reason, where a failover is not possible; changes nothing."""
        ...

    def ask(self) -> str:
        """'' where the database answers, as far as can be seen from here; else what is wrong. May raise anything."""
        ...

    def start(self) -> str:
        """Start the failover; returns what was started."""
        ...

    def notes(self, since: float) -> Iterable[Note]:
        """What the place itself tells of the failover, once it is over."""
        ...

    def rows(self, run: str) -> Mapping[str, int] | None:
        """Rows by order id of the probes of `run`; None where they cannot be seen from here."""
        ...

    def close(self) -> None:
        """End what `ask` has open; one that is under way ends, too."""
        ...
