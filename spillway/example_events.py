"""Valid events to show, to test with and to break, and the envelopes other AWS services put around them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

PLACED_AT = "2026-01-15T10:30:00+01:00"
CHANGED_AT = "2026-01-15T10:45:00+01:00"


def placed(order_id: str) -> dict[str, Any]:
    """A valid `order.placed`, version 1, of two items."""
    return _event("order.placed", PLACED_AT, _order(order_id, version=1, quantity=2))


def updated(order_id: str, *, version: int, quantity: int) -> dict[str, Any]:
    """A valid `order.updated` that changed the first item's quantity."""
    data = _order(order_id, version=version, quantity=quantity) | {"updated_at": CHANGED_AT}
    return _event("order.updated", CHANGED_AT, data)


def cancelled(order_id: str, *, version: int) -> dict[str, Any]:
    """A valid `order.cancelled`."""
    data = _order(order_id, version=version, quantity=2) | {"cancelled_at": CHANGED_AT, "reason": "changed my mind"}
    return _event("order.cancelled", CHANGED_AT, data)


def examples() -> dict[str, dict[str, Any]]:
    """One valid event for each event type."""
    events = [placed("ord-1001"), updated("ord-1001", version=2, quantity=3), cancelled("ord-1002", version=2)]
    return {event["type"]: event for event in events}


def body_of(event: dict[str, Any]) -> str:
    """The event as a message body."""
    return json.dumps(event, separators=(",", ":"))


def eventbridge(event: dict[str, Any]) -> str:
    """The body of a message that an EventBridge rule sent to the queue."""
    envelope = {
        "version": "0",
        "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718",
        "detail-type": event["type"],
        "source": "shop.checkout",
        "account": "123456789012",
        "time": "2026-01-15T09:30:00Z",
        "region": "eu-central-1",
        "resources": [],
        "detail": event,
    }
    return json.dumps(envelope, separators=(",", ":"))


def sns(message: str) -> str:
    """The body of a message that an SNS subscription without raw message delivery sent to the queue."""
    topic = "arn:aws:sns:eu-central-1:123456789012:orders"
    envelope = {
        "Type": "Notification",
        "MessageId": "dc1e94d9-56c5-5e96-808d-cc7f68faa162",
        "TopicArn": topic,
        "Message": message,
        "Timestamp": "2026-01-15T09:30:00.000Z",
        "SignatureVersion": "1",
        "Signature": "RVhBTVBMRQ==",
        "SigningCertURL": "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-EXAMPLE.pem",
        "UnsubscribeURL": f"https://sns.eu-central-1.amazonaws.com/?Action=Unsubscribe&SubscriptionArn={topic}:EXAMPLE",
    }
    return json.dumps(envelope, separators=(",", ":"))


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


def _event(event_type: str, time: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": _event_id(f"{event_type}/{data['order_id']}/{data['version']}"),
        "source": "/shop/checkout",
        "type": event_type,
        "subject": data["order_id"],
        "time": time,
        "datacontenttype": "application/json",
        "data": data,
    }


def _event_id(name: str) -> str:
    """A UUID of version 7 whose random bits come from `name`, so that files do not change from run to run."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"019bc0fd-89c0-7{digest[:3]}-8{digest[3:6]}-{digest[6:18]}"
