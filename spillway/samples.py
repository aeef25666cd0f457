"""Complete SQS events as Lambda hands them to a worker, for ``sam local invoke -e``, for tests and for the docs.

Every value is fixed, so the files change only when this module or a contract does.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from spillway.broken_bodies import BROKEN_BODIES, BrokenBody
from spillway.example_events import body_of, cancelled, eventbridge, placed, sns, updated

REGION = "eu-central-1"
ACCOUNT = "123456789012"
#: 2026-01-15T09:30:00Z in milliseconds.
SENT_AT = 1_768_469_400_000
FOLDER = "events/samples"


@dataclass(frozen=True)
class Sample:
    """One file: what it shows and what a worker makes of it on an empty database."""

    name: str
    shows: str
    outcome: str
    event: dict[str, Any]


def record(
    body: str,
    index: int = 0,
    *,
    queue: str = "spillway-orders",
    attributes: dict[str, str] | None = None,
    message_attributes: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One element of `Records`, with every field Lambda sends for SQS (facts.md lists them)."""
    message_id = str(UUID(bytes=uuid5(NAMESPACE_URL, f"{queue}/{index}/{body}").bytes, version=4))
    sent_at = SENT_AT + 100 * index
    return {
        "messageId": message_id,
        "receiptHandle": base64.b64encode(hashlib.sha512(message_id.encode()).digest()).decode(),
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": "1",
            "AWSTraceHeader": f"Root=1-{sent_at // 1000:08x}-{index:024x};Parent={index + 1:016x};Sampled=0",
            "SentTimestamp": str(sent_at),
            "SenderId": "AIDAEXAMPLESENDERID00",
            "ApproximateFirstReceiveTimestamp": str(sent_at + 25),
        }
        | (attributes or {}),
        "messageAttributes": message_attributes or {},
        "md5OfBody": hashlib.md5(body.encode(), usedforsecurity=False).hexdigest(),
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}",
        "awsRegion": REGION,
    }


def well_formed() -> list[Sample]:
    """The samples of which every body decodes, and the batch that mixes them with poison."""
    return [
        Sample("orders.single", "One order, one record.", "Applied.", _records(placed("ord-1001"))),
        Sample(
            "orders.batch",
            "Ten records: three versions of one order, versions out of order, one event sent twice.",
            "Nothing returned. Rows: ord-1001 v3, ord-1002 v2 (cancelled), ord-1003 v2, ord-1004 v1, ord-1005 v1.",
            _records(*_batch()),
        ),
        Sample(
            "orders.batch_with_poison",
            "Five records; the second is not JSON, the fourth breaks the contract.",
            "Three applied; two dead-lettered, as `undecodable` and `contract`. Without a dead-letter queue to send to,"
            " those two are returned as failed.",
            _events_of(_batch_with_poison()),
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
            _events_of([eventbridge(placed("ord-1001"))]),
        ),
        Sample(
            "orders.sns",
            "The event is the `Message` of an SNS notification (no raw message delivery).",
            "Unwrapped and applied.",
            _events_of([sns(body_of(placed("ord-1001")))]),
        ),
        Sample(
            "orders.sns_eventbridge",
            "EventBridge behind SNS: two envelopes.",
            "Unwrapped twice and applied.",
            _events_of([sns(eventbridge(placed("ord-1001")))]),
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


def broken() -> list[tuple[BrokenBody, Sample]]:
    """One sample for each kind of broken body, with what its decoding says."""
    return [
        (
            kind,
            Sample(kind.name, kind.shows, f"Dead-lettered, `{kind.reason}`: {kind.detail}", _events_of([kind.body])),
        )
        for kind in BROKEN_BODIES
    ]


def render() -> dict[str, str]:
    """The text of every generated file, by its path in the repository."""
    samples = [*well_formed(), *(sample for _, sample in broken())]
    files = {f"{FOLDER}/{sample.name}.json": _file(sample.event) for sample in samples}
    return files | {f"{FOLDER}/README.md": _readme()}


def _file(event: dict[str, Any]) -> str:
    # ASCII, because `sam local invoke -e` reads the file in the locale's encoding.
    return json.dumps(event, indent=2) + "\n"


def _events_of(bodies: list[str]) -> dict[str, Any]:
    return {"Records": [record(body, index) for index, body in enumerate(bodies)]}


def _records(*events: dict[str, Any]) -> dict[str, Any]:
    return _events_of([body_of(event) for event in events])


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
    kinds = {kind.name: kind.body for kind in BROKEN_BODIES}
    return [
        body_of(placed("ord-1001")),
        kinds["order_placed.truncated"],
        body_of(placed("ord-1002")),
        kinds["order_placed.bad_total"],
        body_of(placed("ord-1003")),
    ]


def _fifo() -> dict[str, Any]:
    events = [placed("ord-1001"), updated("ord-1001", version=2, quantity=3), placed("ord-1002")]
    return {
        "Records": [
            record(
                body_of(event),
                index,
                queue="spillway-orders.fifo",
                attributes={
                    "MessageGroupId": event["subject"],
                    "MessageDeduplicationId": event["id"],
                    "SequenceNumber": str(18_870_000_000_000_000_000 + 256 * index),
                },
            )
            for index, event in enumerate(events)
        ]
    }


def _with_attributes() -> dict[str, Any]:
    trace = "Root=1-6968b398-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
    return {
        "Records": [
            record(
                body_of(placed("ord-1001")),
                attributes={"AWSTraceHeader": trace, "MessageGroupId": "tenant-7"},
                message_attributes={
                    "channel": _attribute("String", stringValue="web"),
                    "attempt": _attribute("Number", stringValue="1"),
                    "checksum": _attribute("Binary", binaryValue=base64.b64encode(bytes(range(16))).decode()),
                },
            )
        ]
    }


def _attribute(data_type: str, **value: str) -> dict[str, Any]:
    return value | {"stringListValues": [], "binaryListValues": [], "dataType": data_type}


def _redelivered() -> dict[str, Any]:
    return {"Records": [record(body_of(placed("ord-1001")), attributes={"ApproximateReceiveCount": "4"})]}


def _readme() -> str:
    lines = [
        "# Sample events",
        "",
        "Complete SQS events as Lambda receives them; `sam local invoke OrdersConsumer -e events/samples/FILE` feeds",
        "one to the worker. Generated by `spillway generate`; a test holds them in step.",
        "",
        "## Events a worker can use",
        "",
        "| file | what it shows | expected outcome, on an empty database |",
        "|---|---|---|",
        *(f"| `{sample.name}.json` | {sample.shows} | {sample.outcome} |" for sample in well_formed()),
        "",
        "## Broken bodies",
        "",
        "One record each, dead-lettered at once. `reason` and `detail` are what the dead letter says. *Schema* tells",
        "whether the JSON Schema in `events/schemas/` refuses the body as well, so that a producer that checks against",
        "it would have noticed: *no* marks a rule that only the worker can check (the schema's description states it),",
        "and *-* a body that no JSON parser hands to a validator.",
        "",
        "| file | what it shows | reason | detail | schema |",
        "|---|---|---|---|---|",
        *(_broken_row(kind) for kind, _ in broken()),
    ]
    return "\n".join(lines) + "\n"


def _broken_row(kind: BrokenBody) -> str:
    schema = {True: "yes", False: "no", None: "-"}[kind.schema_refuses]
    # A pipe ends a table cell even inside backquotes.
    detail = kind.detail.replace("|", "\\|")
    return f"| `{kind.name}.json` | {kind.shows} | `{kind.reason}` | {detail} | {schema} |"
