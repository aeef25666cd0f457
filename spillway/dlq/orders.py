"""What a redrive was told to do: kept in the journal, so that an interrupted one goes on in the same way."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from spillway.contracts import contract_of
from spillway.dlq.edits import Editor, edit_of
from spillway.dlq.filters import Filter
from spillway.dlq.pieces import MAX_LETTERS
from spillway.dlq.redrive import THREADS
from spillway.dlq.verdicts import TIMEOUT_S
from spillway.errors import SpillwayError
from spillway.packing import MAX_BATCH_ENTRIES

if TYPE_CHECKING:
    from spillway.dlq.destination import Destination
    from spillway.dlq.records import RunRecord


#: Letters a second that one thread carries on AWS, too.
SLOW = 100


class OtherOrders(SpillwayError):
    """Options beside --resume that are not the run's own."""

    exit_code = 2


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides what a redrive does, but the filter. `rate` is in letters per second, `arrived_by` see
    Intake; `canary_s` is how long to wait for a canary, None if there are none."""

    destination: str
    contract: str
    arrived_by: datetime
    edit: str | None = None
    edit_with: str | None = None
    rate: float | None = None
    limit: int | None = None
    canary_s: float | None = TIMEOUT_S

    @property
    def editor(self) -> Editor | None:
        """What edits, and holds against the contract. Raises SpillwayError for an edit that cannot be meant."""
        edit = edit_of(self.edit, self.edit_with)
        return None if edit is None else Editor(edit, contract_of(self.contract))

    @property
    def threads(self) -> int:
        """Threads that carry pieces: one is enough for a low rate."""
        return 1 if self.rate is not None and self.rate <= SLOW else THREADS

    @property
    def piece_letters(self) -> int:
        """Letters of a piece: under a rate so few that each thread sends twice a second, rather than many at once."""
        return MAX_LETTERS if self.rate is None else max(1, min(MAX_LETTERS, int(self.rate / (2 * self.threads))))

    @property
    def burst(self) -> int:
        """How many may leave at once."""
        return min(MAX_BATCH_ENTRIES, self.piece_letters)

    def options(self, destination: Destination, to: str | None) -> list[str]:
        """The command-line options that give these orders again, not quoted for a shell."""
        given: dict[str, Any] = {
            "--limit": self.limit,
            "--to": None if to is None else (destination.worker or destination.url),
            "--rate": None if self.rate is None else f"{self.rate:g}",
            "--edit": self.edit,
            "--edit-with": self.edit_with,
            "--canary-timeout": None if self.canary_s in (None, TIMEOUT_S) else f"{self.canary_s:g}",
        }
        words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        return words + (["--no-canary"] if self.canary_s is None else [])


def orders_of(record: RunRecord) -> tuple[Orders, Filter]:
    """What a run of the journal was told to do."""
    return msgspec.convert(record.details, Orders), msgspec.convert(record.filter, Filter)


def require_same(record: RunRecord, given: dict[str, Any], selected: Filter) -> None:
    """Raise OtherOrders if an option is given (not None) that is not the run's own, by the option's name."""
    orders, was = orders_of(record)
    own = {
        "--to": orders.destination,
        "--limit": orders.limit,
        "--rate": orders.rate,
        "--edit": orders.edit,
        "--edit-with": orders.edit_with,
        "--canary-timeout": orders.canary_s,
        "--no-canary": True if orders.canary_s is None else None,
    }
    differing = [name for name, value in given.items() if value is not None and value != own[name]]
    if not selected.empty and selected != was:
        differing.append("the filter")
    if differing:
        raise OtherOrders(
            f"The run {record.id} was begun with something else for {', '.join(differing)}.",
            "It goes on as it began: give --resume alone, or begin a new redrive.",
        )
