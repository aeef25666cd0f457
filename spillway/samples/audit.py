"""The audit worker's samples."""

from __future__ import annotations

from typing import Any

from spillway.samples.broken import BrokenBody, changed, contract, without
from spillway.samples.events import Event, body_of, event
from spillway.samples.records import Sample, events_of, record
from workers.audit.contract import MAX_DETAILS_BYTES, MAX_DETAILS_DEPTH

QUEUE = "spillway-audit"
_TIME = "2026-01-15T10:30:00+01:00"


def examples() -> dict[str, Event]:
    """One valid event for each event type."""
    return {"audit.recorded": recorded("tenant-7", 1)}


def recorded(stream: str, number: int) -> Event:
    """A valid `audit.recorded`; another one for each `number`."""
    data: dict[str, Any] = {
        "stream": stream,
        "actor": "user/311",
        "action": "invoice.approved",
        "resource": f"invoice/{1000 + number}",
        "details": {"ip": "203.0.113.7", "amount": 1999, "second_approver": None},
    }
    return event(
        "audit.recorded",
        key=f"audit.recorded/{stream}/{number}",
        source="/back-office",
        subject=stream,
        time=_TIME,
        data=data,
    )


def samples() -> list[Sample]:
    """The samples of which every body decodes, and the batch that mixes them with poison."""
    one = recorded("tenant-7", 1)
    return [
        Sample("audit.single", "One event, one record.", "Applied: sequence 1 of tenant-7.", _events(one)),
        Sample(
            "audit.batch",
            "Six records: two streams by turns, one event sent twice.",
            "Nothing returned. Chains: tenant-7 from 1 to 3, tenant-8 from 1 to 2.",
            _events(one, recorded("tenant-8", 1), recorded("tenant-7", 2), one, recorded("tenant-8", 2), _last()),
        ),
        Sample(
            "audit.batch_with_poison",
            "Four records; the second is not JSON, the third breaks the contract.",
            "Two applied, as sequence 1 and 2 of tenant-7; two dead-lettered, as `undecodable` and `contract`. Without"
            " a dead-letter queue to send to, those two are returned as failed.",
            events_of(
                QUEUE,
                [body_of(one), "not JSON", body_of(without(one, "data.actor")), body_of(recorded("tenant-7", 2))],
            ),
        ),
        Sample(
            "audit.redelivered",
            "The fourth receive of a message.",
            "Applied once; `duplicate` if it was applied before, and the chain is as it was.",
            {"Records": [record(body_of(one), queue=QUEUE, attributes={"ApproximateReceiveCount": "4"})]},
        ),
    ]


def broken() -> list[BrokenBody]:
    """What only this worker refuses; the orders worker's samples cover the envelope."""
    one = recorded("tenant-7", 1)
    nested: Any = 1
    for _ in range(MAX_DETAILS_DEPTH):
        nested = [nested]
    return [
        contract(
            "audit_recorded.missing_actor",
            "Nobody did it.",
            without(one, "data.actor"),
            "Object missing required field `actor` - at `$.data`",
        ),
        contract(
            "audit_recorded.empty_action",
            "Nothing was done.",
            changed(one, "data.action", ""),
            "Expected `str` of length >= 1 - at `$.data.action`",
        ),
        contract(
            "audit_recorded.details_array",
            "The details are a list.",
            changed(one, "data.details", ["203.0.113.7"]),
            "Expected `object`, got `array` - at `$.data.details`",
        ),
        contract(
            "audit_recorded.details_too_large",
            "A dump that belongs into object storage.",
            changed(one, "data.details", {"dump": "x" * MAX_DETAILS_BYTES}),
            f"Expected `details` of at most {MAX_DETAILS_BYTES} bytes - at `$.data`",
            schema_refuses=False,
        ),
        contract(
            "audit_recorded.details_too_deep",
            "More levels than anybody reads.",
            changed(one, "data.details", {"nested": nested}),
            f"Expected `details` at most {MAX_DETAILS_DEPTH} levels deep - at `$.data`",
            schema_refuses=False,
        ),
        contract(
            "audit_recorded.subject_mismatch",
            "The envelope names another stream than the data.",
            changed(one, "subject", "tenant-8"),
            "Expected `subject` to equal `data.stream`",
            schema_refuses=False,
        ),
    ]


def _events(*events: Event) -> dict[str, Any]:
    return events_of(QUEUE, [body_of(event) for event in events])


def _last() -> Event:
    """Another event of tenant-7, made without details."""
    return without(recorded("tenant-7", 3), "data.details")
