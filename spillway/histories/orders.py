"""A seeded history of orders as a queue would deliver it, and the truth that any worker must arrive at."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate
from typing import Any
from uuid import UUID

import msgspec
from psycopg import Connection
from psycopg.rows import dict_row

from spillway.histories.base import DUPLICATE, VALID, History, deliver, event_id, shares, stamp
from spillway.histories.orders_poison import POISON
from workers.orders.contract import CancelledOrder, Item, OrderCancelled, OrderEvent, OrderPlaced, UpdatedOrder
from workers.runtime.envelope import EventDecoder

#: A duplicate comes at most this many messages after the first one.
_DUPLICATE_GAP = 2_000
#: Events that carry a version some other event of their order has, too: the event id decides.
_CONFLICTS = 0.01
_CANCELLED = 0.15
#: Zipf's exponent and shift for how often an order changes: a few hot ones, a long tail.
_POPULARITY, _FLATTEN = 1.1, 20

_CURRENCIES = ("EUR", "EUR", "EUR", "USD", "USD", "GBP", "CHF", "SEK", "JPY")
_REASONS = ("changed my mind", "found it cheaper", "délai trop long", "在庫切れ", "paid twice 🙈", "")
_START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_STEP = timedelta(milliseconds=250)


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """The state of one order; `status` is `placed`, `updated` or `cancelled`, `reason` "" unless it is cancelled."""

    order_id: str
    version: int
    event_id: UUID
    status: str
    customer: str
    currency: str
    items: list[Item]
    total: int
    placed_at: datetime
    updated_at: datetime | None = None
    cancelled_at: datetime | None = None
    reason: str = ""


class Expected(msgspec.Struct, kw_only=True, frozen=True):
    """The truth about a history. applied + stale must equal `distinct`; their split depends on the arrival order."""

    rows: dict[str, Row]
    distinct: int
    duplicates: int
    poison: dict[str, int]

    @property
    def poison_by_reason(self) -> dict[str, int]:
        """Poison messages by the reason a worker gives."""
        reasons: Counter[str] = Counter()
        for kind, count in self.poison.items():
            reasons[str(POISON[kind].reason)] += count
        return dict(reasons)


class OrdersHistory(History):
    """A history of orders; `expected` is what must become of it."""

    worker = "orders"
    claims = "order_events"
    poison = POISON

    @cached_property
    def expected(self) -> Expected:
        """What becomes of the messages, worked out from their bodies."""
        decode = EventDecoder[OrderEvent](OrderEvent).decode
        kinds = Counter(message.kind for message in self.messages)
        valid = [decode(message.body) for message in self.messages if message.kind == VALID]
        return Expected(
            rows=reference_rows(valid),
            distinct=kinds.pop(VALID, 0),
            duplicates=kinds.pop(DUPLICATE, 0),
            poison=dict(sorted(kinds.items())),
        )

    def violations(self, connection: Connection[Any]) -> list[str]:
        """What is wrong with the orders of this history."""
        expected = self.expected.rows
        rows = read_rows(connection, expected)
        found = [f"order {key} has no row" for key in expected.keys() - rows.keys()]
        found += [
            f"order {key} is {row}, expected {expected[key]}" for key, row in rows.items() if row != expected[key]
        ]
        return sorted(found)


def read_rows(connection: Connection[Any], order_ids: Iterable[str] | None = None) -> dict[str, Row]:
    """The orders in the database, all or those of `order_ids`, in the reference's shape, by order id."""
    wanted = None if order_ids is None else list(order_ids)
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT order_id, version, event_id, status, customer, currency, items, total, placed_at, updated_at,"
            " cancelled_at, reason FROM spillway.orders WHERE %(wanted)s::text[] IS NULL OR order_id = ANY(%(wanted)s)",
            {"wanted": wanted},
        )
        return {row["order_id"]: msgspec.convert(row, Row) for row in cursor}


def reference_rows(events: Iterable[OrderEvent]) -> dict[str, Row]:
    """The orders after `events`, one at a time in any order: the highest (version, event id) of an order wins."""
    rows: dict[str, Row] = {}
    for event in events:
        row = rows.get(event.data.order_id)
        if row is None or (event.data.version, event.id) > (row.version, row.event_id):
            rows[event.data.order_id] = _row(event)
    return rows


def _row(event: OrderEvent) -> Row:
    data = event.data
    status = {OrderPlaced: "placed", OrderCancelled: "cancelled"}.get(type(event), "updated")
    return Row(
        order_id=data.order_id,
        version=data.version,
        event_id=event.id,
        status=status,
        customer=data.customer,
        currency=data.currency,
        items=data.items,
        total=data.total,
        placed_at=data.placed_at,
        updated_at=data.updated_at if isinstance(data, UpdatedOrder) else None,
        cancelled_at=data.cancelled_at if isinstance(data, CancelledOrder) else None,
        reason=data.reason if isinstance(data, CancelledOrder) else "",
    )


def generate(
    events: int = 20_000,
    seed: int = 1,
    duplicates: float = 0.05,
    poison: float = 0.01,
    *,
    orders: int | None = None,
    prefix: str = "ord",
) -> OrdersHistory:
    """Exactly `events` messages, the same for the same arguments.

    `duplicates` and `poison` are shares of all messages: repeats of an earlier event, and broken ones, all kinds
    equally often. `orders` is how many orders the changes are spread over, by default a quarter of the messages.
    Histories that share a database need a `prefix` each for their order ids.
    Raises ValueError for shares that do not fit.
    """
    valid, repeated, broken = shares(events, duplicates, poison)
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    shop = _Shop(rng, orders or max(1, events // 4), prefix)
    messages = deliver(rng, shop.changes(valid), repeated, shop.changes(broken), POISON, duplicate_gap=_DUPLICATE_GAP)
    return OrdersHistory(messages)


class _Shop:
    """Orders as they are placed, changed and cancelled."""

    def __init__(self, rng: random.Random, orders: int, prefix: str) -> None:
        self._rng = rng
        self._prefix = prefix
        self._weights = list(accumulate(1 / (rank + _FLATTEN) ** _POPULARITY for rank in range(orders)))
        self._orders: dict[int, dict[str, Any]] = {}
        self._generation: Counter[int] = Counter()
        self._count = 0

    def changes(self, count: int) -> Iterator[dict[str, Any]]:
        """The next `count` events, in the order in which they happened."""
        slots = self._rng.choices(range(len(self._weights)), cum_weights=self._weights, k=count)
        return map(self._change, slots)

    def _change(self, slot: int) -> dict[str, Any]:
        rng, moment = self._rng, _START + self._count * _STEP
        self._count += 1
        order = self._orders.get(slot)
        if order is None:
            order = self._orders[slot] = self._place(slot, moment)
            return self._event("placed", order, moment)
        if rng.random() >= _CONFLICTS:
            order = order | {"version": order["version"] + 1}
        order = order | _basket(rng) if rng.random() < 0.5 else dict(order)
        self._orders[slot] = order
        if rng.random() < _CANCELLED:
            # The customer's next order takes the place of this one.
            del self._orders[slot]
            extra = {"cancelled_at": stamp(moment), "reason": _choice(rng, _REASONS)}
            return self._event("cancelled", order | extra, moment)
        return self._event("updated", order | {"updated_at": stamp(moment)}, moment)

    def _place(self, slot: int, moment: datetime) -> dict[str, Any]:
        self._generation[slot] += 1
        return {
            "order_id": f"{self._prefix}-{slot:06}-{self._generation[slot]}",
            "version": 1,
            "customer": f"cus-{int(self._rng.paretovariate(0.7)) % 5_000:04}",
            "currency": _choice(self._rng, _CURRENCIES),
            **_basket(self._rng),
            "placed_at": stamp(moment),
        }

    def _event(self, what: str, order: dict[str, Any], moment: datetime) -> dict[str, Any]:
        return {
            "specversion": "1.0",
            "id": event_id(self._rng, moment),
            "source": "/shop/checkout",
            "type": f"order.{what}",
            "subject": order["order_id"],
            "time": stamp(moment),
            "data": order,
        }


def _basket(rng: random.Random) -> dict[str, Any]:
    items: list[dict[str, Any]] = [
        {
            "sku": f"SKU-{int(rng.random() ** 2 * 2_000):05}",
            "quantity": 1 + int(rng.random() ** 3 * 9),
            "unit_price": 49 + 50 * int(rng.random() * 400),
        }
        for _ in range(1 + int(rng.random() ** 2 * 5))
    ]
    return {"items": items, "total": sum(item["quantity"] * item["unit_price"] for item in items)}


def _choice(rng: random.Random, values: tuple[str, ...]) -> str:
    return values[int(rng.random() * len(values))]
