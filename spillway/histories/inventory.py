"""A seeded history of stock movements as a queue would deliver it, and what must hold once all of it is done.

Which reservations get the last pieces depends on the order of arrival, so there is no one true end. But each event's
outcome must be one that its rules allow, and given the reservations that were granted, everything else follows from the
messages alone.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from spillway.histories.base import VALID, History, Message, deliver, event_id, shares, stamp
from spillway.histories.inventory_poison import POISON
from workers.inventory.contract import InventoryEvent, StockReceived, StockReleased, StockReserved
from workers.runtime.envelope import EventDecoder

#: A duplicate comes at most this many messages after the first one.
_DUPLICATE_GAP = 2_000
#: Shares of the events.
_RECEIPTS, _RELEASES = 0.3, 0.25
#: Of these, what a producer sends again under another event id, and releases of reservations that nobody makes.
_SENT_AGAIN, _UNMET = 0.02, 0.02
#: Documents with many lines, and how many.
_LONG, _LONG_LINES = 0.005, 150
#: A release takes back one of the last so many reservations: often one that is still under way.
_RECENT = 200

_START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_STEP = timedelta(milliseconds=250)
_UUID = re.compile(r'"id":"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"')

Lines = dict[str, int]


class Entry(NamedTuple):
    """One row of the ledger."""

    entry: int
    sku: str
    movement: str
    quantity: int
    event_id: UUID
    document_id: str


class Claim(NamedTuple):
    """What became of an event."""

    outcome: str
    reason: str | None
    sku: str | None
    available: int | None


@dataclass
class Document:
    """A receipt's or a reservation's events: those that open it with their lines, and those that release it."""

    opened_by: dict[UUID, Lines] = field(default_factory=dict)
    released_by: list[UUID] = field(default_factory=list)


class InventoryHistory(History):
    """A history of stock movements. `tag` starts all of its SKUs and documents, and nobody else's."""

    worker = "inventory"
    claims = "inventory_events"
    poison = POISON

    def __init__(self, messages: list[Message], tag: str) -> None:
        super().__init__(messages)
        self.tag = tag

    @cached_property
    def events(self) -> list[Any]:
        """The valid events, each once."""
        decode = EventDecoder[InventoryEvent](InventoryEvent).decode
        return [decode(message.body) for message in self.messages if message.kind == VALID]

    @cached_property
    def receipts(self) -> dict[str, Document]:
        """By receipt id."""
        return self._documents(StockReceived)

    @cached_property
    def reservations(self) -> dict[str, Document]:
        """By reservation id, those that are only released among them."""
        return self._documents(StockReserved)

    def _documents(self, opening: type[StockReceived | StockReserved]) -> dict[str, Document]:
        documents: defaultdict[str, Document] = defaultdict(Document)
        for event in self.events:
            if isinstance(event, opening):
                documents[event.subject].opened_by[event.id] = _totals(event)
            elif isinstance(event, StockReleased) and opening is StockReserved:
                documents[event.subject].released_by.append(event.id)
        return dict(documents)

    def violations(self, connection: Connection[Any]) -> list[str]:
        """What is wrong with the stock, the ledger, the documents and the claims of this history."""
        claims = _claims(connection, self.event_ids)
        ledger = _ledger(connection, self.tag)
        found = [f"event {lost} was never decided upon" for lost in self.event_ids - claims.keys()]
        found += self._of_poison(connection)
        found += self._of_outcomes(claims)
        found += self._of_effects(claims, ledger)
        found += self._of_books(connection, claims, ledger)
        found += self._of_documents(connection, claims)
        return sorted(found)

    def _of_poison(self, connection: Connection[Any]) -> Iterator[str]:
        """No broken message was ever decided upon."""
        ids = {UUID(text) for body in self.broken for text in _UUID.findall(body)} - self.event_ids
        for claimed in _claims(connection, ids):
            yield f"event {claimed} is of a broken message and was decided upon"

    def _of_outcomes(self, claims: dict[UUID, Claim]) -> Iterator[str]:
        """Each document takes effect at most once, and each event ended as its document allows."""
        for receipt_id, document in self.receipts.items():
            yield from _once(f"receipt {receipt_id}", document.opened_by, claims, "already_received")
        for reservation_id, document in self.reservations.items():
            what = f"reservation {reservation_id}"
            yield from _once(f"the release of {what}", document.released_by, claims, "already_released")
            granted = [event for event in document.opened_by if event in claims and claims[event].outcome == "applied"]
            if len(granted) > 1:
                yield f"{what} was granted {len(granted)} times"
            for event, lines in document.opened_by.items():
                claim = claims.get(event)
                match claim:
                    case None | Claim("applied"):
                        continue
                    case Claim("stale") if document.released_by:
                        continue
                    case Claim("rejected", "already_reserved") if granted:
                        continue
                    case Claim("rejected", "insufficient_stock", sku, available):
                        if sku in lines and available is not None and 0 <= available < lines[sku]:
                            continue
                yield f"event {event} of {what} is {claim}"

    def _of_effects(self, claims: dict[UUID, Claim], ledger: list[Entry]) -> Iterator[str]:
        """An applied event moved exactly its lines, once; any other nothing."""
        moved: defaultdict[UUID, list[tuple[str, str, int]]] = defaultdict(list)
        for entry in ledger:
            moved[entry.event_id].append((entry.movement, entry.sku, entry.quantity))
        for unknown in moved.keys() - self.event_ids:
            yield f"event {unknown} is not of this history and moved its stock"
        for documents, movement, sign in ((self.receipts, "received", 1), (self.reservations, "reserved", -1)):
            for document in documents.values():
                granted: Lines = {}
                for event, lines in document.opened_by.items():
                    applied = event in claims and claims[event].outcome == "applied"
                    granted = lines if applied else granted
                    expected = lines if applied else {}
                    yield from _compare(event, moved[event], movement, sign, expected)
                for event in document.released_by:
                    applied = event in claims and claims[event].outcome == "applied"
                    yield from _compare(event, moved[event], "released", 1, granted if applied else {})

    def _of_books(self, connection: Connection[Any], claims: dict[UUID, Claim], ledger: list[Entry]) -> Iterator[str]:
        """Messages, ledger and stock agree, and nothing was ever oversold."""
        available: Counter[str] = Counter()
        seen: defaultdict[str, set[int]] = defaultdict(lambda: {0})
        sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for entry in ledger:
            available[entry.sku] += entry.quantity
            seen[entry.sku].add(available[entry.sku])
            sums[entry.sku][entry.movement] += abs(entry.quantity)
            if available[entry.sku] < 0:
                yield f"{entry.sku} was oversold to {available[entry.sku]} by ledger entry {entry.entry}"
        for event, claim in claims.items():
            if claim.sku is not None and claim.available not in seen[claim.sku]:
                yield f"event {event} saw {claim.available} of {claim.sku}, which there never were"
        stock = {
            sku: (columns, left)
            for sku, *columns, left in connection.execute(
                "SELECT sku, received, reserved, released, available FROM spillway.stock WHERE starts_with(sku, %s)",
                (self.tag,),
            )
        }
        truth = self._truth(claims)
        for sku in sorted(stock.keys() | sums.keys() | truth.keys()):
            columns, left = stock.get(sku, ([0, 0, 0], 0))
            booked = [sums[sku][movement] for movement in ("received", "reserved", "released")]
            if columns != booked:
                yield f"{sku}: received, reserved and released are {columns}, and {booked} in the ledger"
            if left != truth[sku]:
                yield f"{sku}: {left} available, expected {truth[sku]}"

    def _truth(self, claims: dict[UUID, Claim]) -> Counter[str]:
        """What is available by SKU: all receipts, less the reservations that were granted and that nobody released."""
        truth: Counter[str] = Counter()
        for document in self.receipts.values():
            truth.update(next(iter(document.opened_by.values())))
        for document in self.reservations.values():
            if not document.released_by:
                for event, lines in document.opened_by.items():
                    if event in claims and claims[event].outcome == "applied":
                        truth.subtract(lines)
        return truth

    def _of_documents(self, connection: Connection[Any], claims: dict[UUID, Claim]) -> Iterator[str]:
        """The documents in the database are the messages'."""
        rows = {
            (kind, document_id): state
            for kind, document_id, state in connection.execute(
                "SELECT kind, document_id, state FROM spillway.stock_documents WHERE starts_with(document_id, %s)",
                (self.tag,),
            )
        }
        expected = {("receipt", receipt_id): "received" for receipt_id in self.receipts}
        for reservation_id, document in self.reservations.items():
            if document.released_by:
                expected["reservation", reservation_id] = "released"
            elif any(event in claims and claims[event].outcome == "applied" for event in document.opened_by):
                expected["reservation", reservation_id] = "reserved"
        for key in sorted(rows.keys() | expected.keys()):
            if rows.get(key) != expected.get(key):
                yield f"{' '.join(key)} is {rows.get(key)}, expected {expected.get(key)}"


def _totals(event: StockReceived | StockReserved) -> Lines:
    totals: Counter[str] = Counter()
    for line in event.data.lines:
        totals[line.sku] += line.quantity
    return dict(totals)


def _once(what: str, events: Iterable[UUID], claims: dict[UUID, Claim], again: str) -> Iterator[str]:
    """Of `events` one was applied, the others rejected for the reason `again`."""
    ended = [claims[event] for event in events if event in claims]
    applied = sum(claim.outcome == "applied" for claim in ended)
    if ended and applied != 1:
        yield f"{what} was applied {applied} times"
    for claim in ended:
        if claim.outcome != "applied" and (claim.outcome, claim.reason) != ("rejected", again):
            yield f"an event of {what} is {claim}"


def _compare(
    event: UUID, moved: list[tuple[str, str, int]], movement: str, sign: int, expected: Lines
) -> Iterator[str]:
    wanted = sorted((movement, sku, sign * quantity) for sku, quantity in expected.items())
    if sorted(moved) != wanted:
        yield f"event {event} moved {sorted(moved)}, expected {wanted}"


def _claims(connection: Connection[Any], ids: Iterable[UUID]) -> dict[UUID, Claim]:
    rows = connection.execute(
        "SELECT event_id, outcome, reason, sku, available FROM spillway.inventory_events WHERE event_id = ANY(%s)",
        (list(ids),),
    )
    return {event: Claim(*claim) for event, *claim in rows}


def _ledger(connection: Connection[Any], tag: str) -> list[Entry]:
    rows = connection.execute(
        "SELECT entry, sku, movement, quantity, event_id, document_id FROM spillway.stock_ledger"
        " WHERE starts_with(sku, %s) ORDER BY entry",
        (tag,),
    )
    return [Entry(*row) for row in rows]


def generate(
    events: int = 20_000,
    seed: int = 1,
    duplicates: float = 0.05,
    poison: float = 0.01,
    *,
    skus: int = 200,
) -> InventoryHistory:
    """Exactly `events` messages, the same for the same arguments.

    `duplicates` and `poison` are shares of all messages: repeats of an earlier event, and broken ones, all kinds
    equally often. The movements are about `skus` SKUs, a few of them in demand beyond what comes in. All keys come from
    the seed, so histories of several seeds can share a database. Raises ValueError for shares that do not fit.
    """
    valid, repeated, broken = shares(events, duplicates, poison)
    rng = random.Random(f"inventory {seed}")  # noqa: S311 - reproducible on purpose
    tag = f"{seed % 2**64:x}-"
    moved = _Warehouse(rng, tag, skus).movements(valid)
    spoilt = _Warehouse(rng, f"{tag}broken-", skus).openings(broken)
    return InventoryHistory(deliver(rng, moved, repeated, spoilt, POISON, duplicate_gap=_DUPLICATE_GAP), tag)


class _Warehouse:
    """Stock as it comes in, is reserved and is released."""

    def __init__(self, rng: random.Random, tag: str, skus: int) -> None:
        self._rng = rng
        self._tag = tag
        self._skus = skus
        self._count = 0
        self._receipts: list[dict[str, Any]] = []
        self._reservations: list[dict[str, Any]] = []
        self._released: list[dict[str, Any]] = []
        self._documents = 0

    def movements(self, count: int) -> Iterator[dict[str, Any]]:
        """The next `count` events, in the order in which they happened."""
        for _ in range(count):
            yield self._again() or self._movement()

    def openings(self, count: int) -> Iterator[dict[str, Any]]:
        """The next `count` events with lines."""
        for _ in range(count):
            yield self._opened("received" if self._rng.random() < 0.5 else "reserved")

    def _movement(self) -> dict[str, Any]:
        rng = self._rng
        chance = rng.random()
        if chance < _RECEIPTS:
            event = self._opened("received")
            self._receipts.append(event)
            return event
        if chance < _RECEIPTS + _RELEASES:
            if rng.random() < _UNMET:
                return self._event("released", self._document("rsv"), {"reason": "typed wrongly"})
            if self._reservations:
                recent = self._reservations[-_RECENT:]
                reservation = recent[int(rng.random() * len(recent))]
                self._reservations.remove(reservation)
                event = self._event("released", reservation["subject"], {"reason": "order cancelled"})
                self._released.append(event)
                return event
        event = self._opened("reserved")
        self._reservations.append(event)
        return event

    def _again(self) -> dict[str, Any] | None:
        """Now and then an earlier event once more, under an id of its own."""
        if self._rng.random() >= _SENT_AGAIN:
            return None
        earlier = (self._receipts, self._reservations, self._released)[int(self._rng.random() * 3)]
        if not earlier:
            return None
        self._count += 1
        return earlier[int(self._rng.random() * len(earlier))] | {"id": event_id(self._rng, self._now())}

    def _opened(self, what: str) -> dict[str, Any]:
        rng = self._rng
        count = _LONG_LINES if rng.random() < _LONG else 1 + int(rng.random() ** 2 * 5)
        # What is in demand comes in no more often than the rest.
        skew = 2.5 if what == "reserved" else 1.2
        most = 12 if what == "reserved" else 15
        lines = [
            {
                "sku": f"{self._tag}SKU-{int(rng.random() ** skew * self._skus):05}",
                "quantity": 1 + int(rng.random() ** 2 * most),
            }
            for _ in range(count)
        ]
        return self._event(what, self._document("rcp" if what == "received" else "rsv"), {"lines": lines})

    def _document(self, kind: str) -> str:
        self._documents += 1
        return f"{self._tag}{kind}-{self._documents:06}"

    def _event(self, what: str, document_id: str, data: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        moment = self._now()
        name = "receipt_id" if what == "received" else "reservation_id"
        return {
            "specversion": "1.0",
            "id": event_id(self._rng, moment),
            "source": "/warehouse/berlin",
            "type": f"stock.{what}",
            "subject": document_id,
            "time": stamp(moment),
            "data": {name: document_id} | data,
        }

    def _now(self) -> datetime:
        return _START + self._count * _STEP
