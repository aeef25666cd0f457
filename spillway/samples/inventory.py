"""The inventory worker's samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spillway.samples.broken import BrokenBody, changed, contract, without
from spillway.samples.events import Event, body_of, event
from spillway.samples.records import Sample, events_of, record

QUEUE = "spillway-inventory"
TIME = "2026-01-15T10:30:00+01:00"


def received(receipt_id: str, **lines: int) -> Event:
    """A valid `stock.received`; `lines` are SKUs without their dash: SKU1=10."""
    return _event("stock.received", receipt_id, {"receipt_id": receipt_id, "lines": _lines(lines)})


def reserved(reservation_id: str, **lines: int) -> Event:
    """A valid `stock.reserved`."""
    return _event("stock.reserved", reservation_id, {"reservation_id": reservation_id, "lines": _lines(lines)})


def released(reservation_id: str) -> Event:
    """A valid `stock.released`."""
    return _event("stock.released", reservation_id, {"reservation_id": reservation_id, "reason": "order cancelled"})


def examples() -> dict[str, Event]:
    """One valid event for each event type."""
    events = [
        received("rcp-2001", SKU42=100, SKU7=25),
        reserved("rsv-3001", SKU42=2, SKU7=1),
        released("rsv-3001"),
    ]
    return {event["type"]: event for event in events}


def samples() -> list[Sample]:
    """The samples of which every body decodes, and the batch that mixes them with poison."""
    first = received("rcp-2001", SKU42=10, SKU7=5)
    return [
        Sample("inventory.single", "A receipt of two SKUs.", "Applied.", _events(first)),
        Sample(
            "inventory.batch",
            "A receipt sent twice; three reservations, of which two are released; a second receipt.",
            "Seven applied, one `duplicate`; nothing returned. Available: SKU-42 10, SKU-7 4.",
            _events(
                first,
                reserved("rsv-3001", SKU42=4),
                first,
                reserved("rsv-3002", SKU42=6, SKU7=1),
                released("rsv-3001"),
                reserved("rsv-3003", SKU42=4, SKU7=4),
                released("rsv-3003"),
                received("rcp-2002", SKU42=6),
            ),
        ),
        Sample(
            "inventory.batch_with_poison",
            "Five records; the second is not JSON, the fourth breaks the contract.",
            "Three applied; two dead-lettered, as `undecodable` and `contract`. Without a dead-letter queue to send to,"
            " those two are returned as failed.",
            events_of(
                QUEUE,
                [
                    body_of(first),
                    body_of(reserved("rsv-3001", SKU42=1))[:-20],
                    body_of(reserved("rsv-3002", SKU42=1)),
                    body_of(changed(reserved("rsv-3003", SKU42=1), "data.lines.0.quantity", 0)),
                    body_of(released("rsv-3002")),
                ],
            ),
        ),
        Sample(
            "inventory.redelivered",
            "A message received for the second time.",
            "Applied, and counted as redelivered.",
            {"Records": [record(body_of(first), queue=QUEUE, attributes={"ApproximateReceiveCount": "2"})]},
        ),
        Sample(
            "inventory.insufficient_stock",
            "Ten pieces, and a reservation of twelve; its other line would fit. A smaller reservation after it.",
            "Two applied; one `rejected` as a whole (`insufficient_stock`): done and counted, no failure."
            " Available: SKU-42 3, SKU-7 5.",
            _events(first, reserved("rsv-3001", SKU42=12, SKU7=1), reserved("rsv-3002", SKU42=7)),
        ),
        Sample(
            "inventory.released_first",
            "A release arrives before its reservation, as it may on a queue without order.",
            "The receipt and the release are applied; the reservation is `stale` and takes nothing. Available: SKU-42"
            " 10, SKU-7 5.",
            _events(first, released("rsv-3001"), reserved("rsv-3001", SKU42=4)),
        ),
        Sample(
            "inventory.sent_again",
            "A producer sends a receipt and a reservation again under other event ids.",
            "Two applied; two `rejected` (`already_received`, `already_reserved`). Available: SKU-42 6, SKU-7 5.",
            _events(
                first,
                reserved("rsv-3001", SKU42=4),
                first | {"id": received("rcp-2001 again")["id"]},
                reserved("rsv-3001", SKU42=4) | {"id": reserved("rsv-3001 again")["id"]},
            ),
        ),
    ]


def broken() -> list[BrokenBody]:
    """What breaks this worker's contract; what breaks the envelope is among the samples of orders."""
    return list(_broken())


def _broken() -> Iterator[BrokenBody]:
    receipt, reservation, release = examples().values()
    yield contract(
        "stock_received.subject_mismatch",
        "`subject` names another receipt than `data`.",
        changed(receipt, "subject", "rcp-2002"),
        "Expected `subject` to equal `data.receipt_id`",
        schema_refuses=False,
    )
    yield contract(
        "stock_received.no_lines",
        "Nothing came in.",
        changed(receipt, "data.lines", []),
        "Expected `array` of length >= 1 - at `$.data.lines`",
    )
    yield contract(
        "stock_received.too_many_lines",
        "201 lines.",
        changed(receipt, "data.lines", receipt["data"]["lines"][:1] * 201),
        "Expected `array` of length <= 200 - at `$.data.lines`",
    )
    yield contract(
        "stock_reserved.quantity_zero",
        "A line about nothing.",
        changed(reservation, "data.lines.0.quantity", 0),
        "Expected `int` >= 1 - at `$.data.lines[0].quantity`",
    )
    yield contract(
        "stock_reserved.quantity_negative",
        "A release in disguise.",
        changed(reservation, "data.lines.1.quantity", -1),
        "Expected `int` >= 1 - at `$.data.lines[1].quantity`",
    )
    yield contract(
        "stock_reserved.quantity_too_large",
        "More than 1,000,000 pieces on one line.",
        changed(reservation, "data.lines.0.quantity", 1_000_001),
        "Expected `int` <= 1000000 - at `$.data.lines[0].quantity`",
    )
    yield contract(
        "stock_reserved.quantity_with_fraction",
        "Half a piece.",
        changed(reservation, "data.lines.0.quantity", 0.5),
        "Expected `int`, got `float` - at `$.data.lines[0].quantity`",
    )
    yield contract(
        "stock_reserved.missing_sku",
        "A line that does not say of what.",
        without(reservation, "data.lines.0.sku"),
        "Object missing required field `sku` - at `$.data.lines[0]`",
    )
    yield contract(
        "stock_reserved.long_sku",
        "A SKU of 65 characters.",
        changed(reservation, "data.lines.0.sku", "S" * 65),
        "Expected `str` of length <= 64 - at `$.data.lines[0].sku`",
    )
    yield contract(
        "stock_released.missing_reservation_id",
        "A release of no reservation in particular.",
        without(release, "data.reservation_id"),
        "Object missing required field `reservation_id` - at `$.data`",
    )


def _lines(lines: dict[str, int]) -> list[dict[str, Any]]:
    return [{"sku": sku.replace("SKU", "SKU-"), "quantity": quantity} for sku, quantity in lines.items()]


def _event(event_type: str, document_id: str, data: dict[str, Any]) -> Event:
    return event(
        event_type,
        key=f"{event_type}/{document_id}",
        source="/warehouse/berlin",
        subject=document_id,
        time=TIME,
        data=data,
    )


def _events(*events: Event) -> dict[str, Any]:
    return events_of(QUEUE, [body_of(event) for event in events])
