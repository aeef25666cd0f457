"""Samples x schemas x decoder: what one says about a body, the others say too, or a documented rule says why not."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from spillway import samples, schemas
from spillway.contracts import CONTRACTS
from spillway.samples.broken import BrokenBody
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Poison, Reason

ROOT = Path(__file__).parents[2]
DECODERS: dict[str, EventDecoder[Any]] = {worker: EventDecoder(contract) for worker, contract in CONTRACTS.items()}
DECODER = DECODERS["orders"]
# facts.md, "Record fields"; the optional attributes are those of FIFO and fair queues.
RECORD_FIELDS = {
    "messageId", "receiptHandle", "body", "attributes", "messageAttributes",
    "md5OfBody", "eventSource", "eventSourceARN", "awsRegion",
}  # fmt: skip
SYSTEM_ATTRIBUTES = {
    "ApproximateReceiveCount", "SentTimestamp", "ApproximateFirstReceiveTimestamp", "SenderId", "AWSTraceHeader",
}  # fmt: skip
GROUP_ATTRIBUTES = {"MessageGroupId", "MessageDeduplicationId", "SequenceNumber"}

FILES = sorted((ROOT / samples.FOLDER).glob("*.json"))
#: By name of the sample: its worker.
WELL_FORMED = {sample.name: worker for worker in CONTRACTS for sample in samples.of_worker(worker).samples()}
GOOD = sorted(name for name in WELL_FORMED if not name.endswith("_with_poison"))
BROKEN = [(worker, kind) for worker in CONTRACTS for kind in samples.of_worker(worker).broken()]
every_broken = pytest.mark.parametrize(("worker", "kind"), BROKEN, ids=[kind.name for _, kind in BROKEN])

RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"
)

# jsonschema checks date-time only if another package is there; these few lines are RFC 3339's section 5.6.
formats = FormatChecker(formats=["uuid"])


@formats.checks("date-time", raises=ValueError)
def _is_rfc3339(value: object) -> bool:
    match = RFC3339.fullmatch(value) if isinstance(value, str) else None
    return not isinstance(value, str) or (match is not None and bool(datetime.fromisoformat(match[1])))


def _validators() -> dict[str, Draft202012Validator]:
    files = (ROOT / schemas.FOLDER).glob("*.json")
    return {
        file.name.removesuffix(".json"): Draft202012Validator(json.loads(file.read_text()), format_checker=formats)
        for file in files
    }


VALIDATORS = _validators()


def _records(name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((ROOT / samples.FOLDER / f"{name}.json").read_text())["Records"]
    return records


def _unwrapped(value: dict[str, Any]) -> dict[str, Any]:
    """The event within the envelopes of AWS services, found in another way than the decoder's."""
    if "Message" in value:
        return _unwrapped(json.loads(value["Message"]))
    return _unwrapped(value["detail"]) if "detail" in value else value


def test_every_worker_shows_what_it_takes_and_what_it_refuses() -> None:
    for worker in CONTRACTS:
        assert {worker} == {name.partition(".")[0] for name, owner in WELL_FORMED.items() if owner == worker}
        assert {f"{worker}.single", f"{worker}.batch", f"{worker}.batch_with_poison"} <= WELL_FORMED.keys()
        assert any(owner == worker for owner, _ in BROKEN)


@pytest.mark.parametrize("name", GOOD)
def test_good_bodies_satisfy_their_schema_and_the_decoder(name: str) -> None:
    for record in _records(name):
        event = _unwrapped(json.loads(record["body"]))
        assert list(VALIDATORS[event["type"]].iter_errors(event)) == []
        decoded = DECODERS[WELL_FORMED[name]].decode(record["body"])
        assert (str(decoded.id), decoded.subject) == (event["id"], event["subject"])


@every_broken
def test_broken_bodies_are_poison_for_the_expected_reason(worker: str, kind: BrokenBody) -> None:
    (record,) = _records(kind.name)
    with pytest.raises(Poison) as raised:
        DECODERS[worker].decode(record["body"])
    assert (raised.value.reason, raised.value.detail) == (kind.reason, kind.detail)


@every_broken
def test_the_schema_refuses_broken_bodies_where_it_can(worker: str, kind: BrokenBody) -> None:
    (record,) = _records(kind.name)
    if kind.schema_refuses is None:
        assert kind.reason is Reason.UNDECODABLE
        return
    event = json.loads(record["body"])
    accepted_by = [
        event_type for event_type in schemas.event_types(CONTRACTS[worker]) if VALIDATORS[event_type].is_valid(event)
    ]
    assert bool(accepted_by) is not kind.schema_refuses


def test_a_rule_beyond_the_schema_is_one_its_descriptions_state() -> None:
    stated = {
        "order_placed.utc_offset_too_large": "UTC offsets of 16:00 or more",
        "order_placed.leap_second": "second 60",
        "order_placed.quantity_with_fraction_part": "a fraction part",
        "order_placed.subject_mismatch": "equals the event's `subject`",
        "order_placed.bad_total": "`total` must equal the sum of its items",
    }
    assert stated.keys() == {
        kind.name for worker, kind in BROKEN if worker == "orders" and kind.schema_refuses is False
    }
    schema = (ROOT / schemas.FOLDER / "order.placed.json").read_text()
    assert [words for words in stated.values() if words not in schema] == []


@pytest.mark.parametrize("worker", CONTRACTS)
def test_the_batch_with_poison_mixes_both(worker: str) -> None:
    found = set()
    for record in _records(f"{worker}.batch_with_poison"):
        try:
            DECODERS[worker].decode(record["body"])
            found.add("good")
        except Poison:
            found.add("poison")
    assert found == {"good", "poison"}


def test_the_batch_has_versions_out_of_order_and_a_duplicate() -> None:
    events = [DECODER.decode(record["body"]) for record in _records("orders.batch")]
    assert len(events) == 10
    assert len({event.id for event in events}) == 9
    versions = [event.data.version for event in events if event.subject == "ord-1003"]
    assert versions == [2, 1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_records_have_every_field_that_lambda_sends(file: Path) -> None:
    event = json.loads(file.read_text(encoding="ascii"))
    assert event.keys() == {"Records"}
    assert len({record["messageId"] for record in event["Records"]}) == len(event["Records"])
    for record in event["Records"]:
        assert record.keys() == RECORD_FIELDS
        assert record["md5OfBody"] == hashlib.md5(record["body"].encode(), usedforsecurity=False).hexdigest()
        assert SYSTEM_ATTRIBUTES <= record["attributes"].keys() <= SYSTEM_ATTRIBUTES | GROUP_ATTRIBUTES
        assert all(isinstance(value, str) for value in record["attributes"].values())
        assert record["eventSourceARN"].endswith(".fifo") is ("SequenceNumber" in record["attributes"])


def test_message_attributes_come_in_all_types() -> None:
    (record,) = _records("orders.attributes")
    types = {attribute["dataType"] for attribute in record["messageAttributes"].values()}
    assert types == {"String", "Number", "Binary"}


def test_the_readme_names_every_file() -> None:
    readme = (ROOT / samples.FOLDER / "README.md").read_text()
    named = re.findall(r"^\| `([^`]+)`", readme, re.MULTILINE)
    assert sorted(named) == [file.name for file in FILES]
