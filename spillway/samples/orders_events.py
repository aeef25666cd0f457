"""Valid order events: what the orders worker's samples, its broken bodies and the tests are made of."""

from __future__ import annotations

from typing import Any

from spillway.samples.events import Event, event

PLACED_AT = "2026-01-15T10:30:00+01:00"
CHANGED_AT = "2026-01-15T10:45:00+01:00"


def placed(order_id: str) -> Event:
    """A valid `order.placed`, version 1, of two items."""
    return _event("order.placed", PLACED_AT, _order(order_id, version=1, quantity=2))


def updated(order_id: str, *, version: int, quantity: int) -> Event:
    """A valid `order.updated` that changed the first item's quantity."""
    data = _order(order_id, version=version, quantity=quantity) | {"updated_at": CHANGED_AT}
    return _event("order.updated", CHANGED_AT, data)


def cancelled(order_id: str, *, version: int) -> Event:
    """A valid `order.cancelled`."""
    data = _order(order_id, version=version, quantity=2) | {"cancelled_at": CHANGED_AT, "reason": "changed my mind"}
    return _event("order.cancelled", CHANGED_AT, data)


def _order(order_id: str, *, version: int, quantity: int) -> dict[str, Any]:
    items: list[dict[str, Any]] = [
        {"sku": "SKU-00042", "quantity": quantity, "unit_price": 1999},
        {"sku": "SKU-00007", "quantity": 1, "unit_price": 500},
    ]
    return {
        "order_id": order_id,
        "version": version,
        "customer": "cus-77",
        "currency": "EUR",
        "items": items,
        "total": sum(item["quantity"] * item["unit_price"] for item in items),
        "placed_at": PLACED_AT,
    }


def _event(event_type: str, time: str, data: dict[str, Any]) -> Event:
    key = f"{event_type}/{data['order_id']}/{data['version']}"
    return event(event_type, key=key, source="/shop/checkout", subject=data["order_id"], time=time, data=data)
