"""The envelope of an event, and the envelopes other AWS services put around it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

Event = dict[str, Any]


def event(event_type: str, *, key: str, source: str, subject: str, time: str, data: dict[str, Any]) -> Event:
    """A CloudEvent whose id comes from `key` alone, so that files do not change from run to run."""
    return {
        "specversion": "1.0",
        "id": _event_id(key),
        "source": source,
        "type": event_type,
        "subject": subject,
        "time": time,
        "datacontenttype": "application/json",
        "data": data,
    }


def body_of(event: Event) -> str:
    """The event as a message body."""
    return json.dumps(event, separators=(",", ":"))


def eventbridge(event: Event) -> str:
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


def _event_id(key: str) -> str:
    """A UUID of version 7 with random bits that come from `key`."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"019bc0fd-89c0-7{digest[:3]}-8{digest[3:6]}-{digest[6:18]}"
