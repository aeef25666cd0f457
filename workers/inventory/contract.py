"""What travels on the inventory queue: stock that came in, was reserved for somebody, or is given back.

A receipt and a reservation are documents with an id and lines; a release names the reservation that it ends. The queue
keeps no order, so the rules hold for any order of arrival: a reservation whose release came first takes nothing.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from workers.runtime.envelope import CloudEvent

#: MAX_LINES x MAX_QUANTITY stays within PostgreSQL's integer, should all lines be about one SKU.
MAX_QUANTITY = 10**6
MAX_LINES = 200

Identifier = Annotated[str, Meta(min_length=1, max_length=64)]


class Line(msgspec.Struct, frozen=True, gc=False):
    """Pieces of one SKU."""

    sku: Annotated[Identifier, Meta(description="Stock keeping unit.", examples=["SKU-00042"])]
    quantity: Annotated[int, Meta(ge=1, le=MAX_QUANTITY, description="Pieces.")]


Lines = Annotated[
    list[Line],
    Meta(
        min_length=1,
        max_length=MAX_LINES,
        description="They take effect together or not at all; lines about the same SKU are added up.",
    ),
]


class Receipt(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """Stock that came in."""

    receipt_id: Annotated[
        Identifier,
        Meta(description="The receipt; equals the event's `subject`. It is booked once.", examples=["rcp-2001"]),
    ]
    lines: Lines


class Reservation(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """Stock that is set aside for somebody."""

    reservation_id: Annotated[
        Identifier,
        Meta(description="The reservation; equals the event's `subject`.", examples=["rsv-3001"]),
    ]
    lines: Lines


class Release(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """The end of a reservation: everything it took is available again, and it can take nothing any more."""

    reservation_id: Annotated[
        Identifier,
        Meta(description="The reservation that ends; equals the event's `subject`.", examples=["rsv-3001"]),
    ]
    reason: Annotated[str, Meta(max_length=256, description="Why it ended.")] = ""


class StockReceived(CloudEvent, kw_only=True, frozen=True, gc=False, tag="stock.received"):
    """Stock came in."""

    data: Receipt

    def __post_init__(self) -> None:
        CloudEvent.__post_init__(self)
        if self.subject != self.data.receipt_id:
            raise ValueError("Expected `subject` to equal `data.receipt_id`")


class StockReserved(CloudEvent, kw_only=True, frozen=True, gc=False, tag="stock.reserved"):
    """Stock is to be set aside; rejected as a whole where one line asks for more than is available."""

    data: Reservation

    def __post_init__(self) -> None:
        CloudEvent.__post_init__(self)
        if self.subject != self.data.reservation_id:
            raise ValueError("Expected `subject` to equal `data.reservation_id`")


class StockReleased(CloudEvent, kw_only=True, frozen=True, gc=False, tag="stock.released"):
    """A reservation ended; it may arrive before its reservation, which then takes nothing."""

    data: Release

    def __post_init__(self) -> None:
        CloudEvent.__post_init__(self)
        if self.subject != self.data.reservation_id:
            raise ValueError("Expected `subject` to equal `data.reservation_id`")


InventoryEvent = StockReceived | StockReserved | StockReleased
