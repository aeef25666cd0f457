"""The orders worker's samples."""

from __future__ import annotations

import base64
from typing import Any

from spillway.samples.broken import BrokenBody
from spillway.samples.events import Event, body_of, eventbridge, sns
from spillway.samples.orders_broken import BROKEN
from spillway.samples.orders_events import cancelled, placed, updated
from spillway.samples.records import Sample, events_of, fifo_events_of, message_attribute, record

QUEUE = "spillway-orders"


def examples() -> dict[str, Event]:
    """One valid event for each event type."""
    events = [placed("ord-1001"), updated("ord-1001", version=2, quantity=3), cancelled("ord-1002", version=2)]
    return {event["type"]: event for event in events}


def broken() -> list[BrokenBody]:
    """Every kind of body that no worker, or not this one, can use."""
    return list(BROKEN)


def samples() -> list[Sample]:
    """The samples of which every body decodes, and the batch that mixes them with poison."""
    return [
        Sample("orders.single", "One order, one record.", "Applied.", _events(placed("ord-1001"))),
        Sample(
            "orders.batch",
            "Ten records: three versions of one order, versions out of order, one event sent twice.",
            "Nothing returned. Rows: ord-1001 v3, ord-1002 v2 (cancelled), ord-1003 v2, ord-1004 v1, ord-1005 v1.",
            _events(*_batch()),
        ),
        Sample(
            "orders.batch_with_poison",
            "Five records; the second is not JSON, the fourth breaks the contract.",
            "Three applied; two dead-lettered, as `undecodable` and `contract`. Without a dead-letter queue to send to,"
            " those two are returned as failed.",
            events_of(QUEUE, _batch_with_poison()),
        ),
        Sample(
            "orders.fifo",
            "A FIFO queue's attributes: two message groups, in order within each.",
            "All three applied.",
            _fifo(),
        ),
        Sample(
            "orders.eventbridge",
            "The event is the `detail` of an EventBridge event.",
            "Unwrapped and applied.",
            events_of(QUEUE, [eventbridge(placed("ord-1001"))]),
        ),
        Sample(
            "orders.sns",
            "The event is the `Message` of an SNS notification (no raw message delivery).",
            "Unwrapped and applied.",
            events_of(QUEUE, [sns(body_of(placed("ord-1001")))]),
        ),
        Sample(
            "orders.sns_eventbridge",
            "EventBridge behind SNS: two envelopes.",
            "Unwrapped twice and applied.",
            events_of(QUEUE, [sns(eventbridge(placed("ord-1001")))]),
        ),
        Sample(
            "orders.attributes",
            "String, number and binary message attributes, a sampled trace, a fair queue's tenant (`MessageGroupId`).",
            "Applied; attributes change nothing.",
            _with_attributes(),
        ),
        Sample(
            "orders.redelivered",
            "A message received for the fourth time.",
            "Applied, and counted as redelivered.",
            _redelivered(),
        ),
    ]


def _events(*events: Event) -> dict[str, Any]:
    return events_of(QUEUE, [body_of(event) for event in events])


def _batch() -> list[dict[str, Any]]:
    first = placed("ord-1001")
    return [
        first,
        placed("ord-1002"),
        updated("ord-1001", version=2, quantity=3),
        updated("ord-1003", version=2, quantity=5),
        placed("ord-1003"),
        first,
        cancelled("ord-1002", version=2),
        placed("ord-1004"),
        updated("ord-1001", version=3, quantity=1),
        placed("ord-1005"),
    ]


def _batch_with_poison() -> list[str]:
    kinds = {kind.name: kind.body for kind in BROKEN}
    return [
        body_of(placed("ord-1001")),
        kinds["order_placed.truncated"],
        body_of(placed("ord-1002")),
        kinds["order_placed.bad_total"],
        body_of(placed("ord-1003")),
    ]


def _fifo() -> dict[str, Any]:
    events = [placed("ord-1001"), updated("ord-1001", version=2, quantity=3), placed("ord-1002")]
    return fifo_events_of(f"{QUEUE}.fifo", events)


def _with_attributes() -> dict[str, Any]:
    trace = "Root=1-6968b398-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
    return {
        "Records": [
            record(
                body_of(placed("ord-1001")),
                queue=QUEUE,
                attributes={"AWSTraceHeader": trace, "MessageGroupId": "tenant-7"},
                message_attributes={
                    "channel": message_attribute("String", stringValue="web"),
                    "attempt": message_attribute("Number", stringValue="1"),
                    "checksum": message_attribute("Binary", binaryValue=base64.b64encode(bytes(range(16))).decode()),
                },
            )
        ]
    }


def _redelivered() -> dict[str, Any]:
    body = body_of(placed("ord-1001"))
    return {"Records": [record(body, queue=QUEUE, attributes={"ApproximateReceiveCount": "4"})]}
