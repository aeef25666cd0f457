"""What travels on the orders queue: three events, each carrying the whole order as of its version.

Carrying the whole state is what makes the worker independent of arrival order: the highest version wins, and nothing
that is missing has to be waited for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from workers.runtime.envelope import CloudEvent, require_storable

#: PostgreSQL's integer, the type of orders.version and of a quantity.
MAX_INTEGER = 2**31 - 1
#: Money is in minor units; this bound keeps 500 items x MAX_QUANTITY x MAX_UNIT_PRICE within bigint.
MAX_UNIT_PRICE = 10**9
MAX_QUANTITY = 10**6
MAX_ITEMS = 500

# Lengths and ranges are checked in C while decoding; each regular expression costs about 0.35 us per value, and seven
# of them cost as much as the rest of the decoding together three times over. So there are none on this path.
Identifier = Annotated[str, Meta(min_length=1, max_length=64)]
Currency = Annotated[str, Meta(min_length=3, max_length=3, extra_json_schema={"pattern": "^[A-Z]{3}$"})]


class Item(msgspec.Struct, frozen=True, gc=False):
    """One line of an order."""

    sku: Annotated[Identifier, Meta(description="Stock keeping unit.", examples=["SKU-00042"])]
    quantity: Annotated[int, Meta(ge=1, le=MAX_QUANTITY, description="Pieces.")]
    unit_price: Annotated[int, Meta(ge=0, le=MAX_UNIT_PRICE, description="Price of one piece in minor units.")]


class Order(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """An order as of one version. `total` must equal the sum of its items."""

    order_id: Annotated[Identifier, Meta(description="The order; equals the event's `subject`.", examples=["ord-1001"])]
    version: Annotated[int, Meta(ge=1, le=MAX_INTEGER, description="Grows by change; the highest version wins.")]
    customer: Annotated[Identifier, Meta(description="The customer.", examples=["cus-77"])]
    currency: Annotated[Currency, Meta(description="ISO 4217 code.", examples=["EUR"])]
    items: Annotated[list[Item], Meta(min_length=1, max_length=MAX_ITEMS, description="Lines of the order.")]
    total: Annotated[int, Meta(ge=0, description="Sum of quantity x unit_price, in minor units.")]
    placed_at: Annotated[datetime, Meta(tz=True, description="When the customer placed the order.")]

    def __post_init__(self) -> None:
        if self.placed_at.tzinfo is not UTC:
            require_storable(self.placed_at, "placed_at")
        if not (self.currency.isascii() and self.currency.isalpha() and self.currency.isupper()):
            raise ValueError("Expected `currency` to be three capital letters A-Z")
        total = 0
        for item in self.items:
            total += item.quantity * item.unit_price
        if self.total != total:
            raise ValueError("Expected `total` to equal the sum of quantity x unit_price over `items`")


class UpdatedOrder(Order, kw_only=True, frozen=True, gc=False):
    """An order after a change."""

    updated_at: Annotated[datetime, Meta(tz=True, description="When the change was made.")]

    def __post_init__(self) -> None:
        Order.__post_init__(self)
        if self.updated_at.tzinfo is not UTC:
            require_storable(self.updated_at, "updated_at")


class CancelledOrder(Order, kw_only=True, frozen=True, gc=False):
    """An order as it stood when it was cancelled."""

    cancelled_at: Annotated[datetime, Meta(tz=True, description="When the order was cancelled.")]
    reason: Annotated[str, Meta(max_length=256, description="Why it was cancelled.")] = ""

    def __post_init__(self) -> None:
        Order.__post_init__(self)
        if self.cancelled_at.tzinfo is not UTC:
            require_storable(self.cancelled_at, "cancelled_at")


class _AboutOrder(CloudEvent, kw_only=True, frozen=True, gc=False):
    data: Order

    def __post_init__(self) -> None:
        CloudEvent.__post_init__(self)
        if self.subject != self.data.order_id:
            raise ValueError("Expected `subject` to equal `data.order_id`")


class OrderPlaced(_AboutOrder, kw_only=True, frozen=True, gc=False, tag="order.placed"):
    """A customer placed an order."""

    data: Order


class OrderUpdated(_AboutOrder, kw_only=True, frozen=True, gc=False, tag="order.updated"):
    """An order was changed; `data` is the whole order after the change."""

    data: UpdatedOrder


class OrderCancelled(_AboutOrder, kw_only=True, frozen=True, gc=False, tag="order.cancelled"):
    """An order was cancelled; `data` is the whole order as it stood."""

    data: CancelledOrder


OrderEvent = OrderPlaced | OrderUpdated | OrderCancelled
