"""The generator of audit events gives what it promises, and its own recomputation of a chain finds every change."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from spillway.histories.audit import AuditHistory, Row, broken_links, generate, hash_of
from workers.audit.contract import AuditEvent
from workers.audit.handler import to_row
from workers.runtime.envelope import EventDecoder

decode = EventDecoder[AuditEvent](AuditEvent).decode
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def history() -> AuditHistory:
    return generate(8_000, seed=1)


def test_a_few_streams_are_hot_and_most_are_not(history: AuditHistory) -> None:
    sizes = Counter(event["subject"] for event in history.expected.values()).most_common()
    assert len(sizes) > 350
    assert sizes[0][1] > 10 * sizes[len(sizes) // 2][1]


def test_seeds_share_no_key_and_poison_uses_none(history: AuditHistory) -> None:
    other = generate(2_000, seed=2)
    assert not history.event_ids & other.event_ids
    assert not any(event["subject"].startswith(history.prefix) for event in other.expected.values())
    broken = " ".join(history.broken)
    assert history.prefix in broken
    assert not any(event["subject"] + '"' in broken for event in history.expected.values())
    assert not any(str(one) in broken for one in history.event_ids)


def test_the_body_is_canonical_whatever_the_order_and_spacing_of_the_message() -> None:
    envelope = (
        '{"specversion":"1.0","id":"019bc0fd-89c0-7000-8000-000000000001","source":"/x","type":"audit.recorded",'
        '"subject":"t","time":"2026-01-05T08:00:00Z","data":%s}'
    )
    bodies = {
        to_row(decode(envelope % data)).body
        for data in (
            '{"stream":"t","actor":"a","action":"b","resource":"r","details":{"z":1,"é":[1.50,{"b":2,"a":"\\u00e9/"}]}}',
            '{ "details": {"é": [15e-1, {"a": "\\u00e9\\/", "b": 2}], "z": 1},\n "resource":"r", "action":"b",'
            ' "actor":"a", "stream":"t" }',
        )
    }
    expected = '{"action":"b","actor":"a","details":{"z":1,"é":[1.5,{"a":"é/","b":2}]},"resource":"r","stream":"t"}'
    assert bodies == {expected}


def chain(count: int) -> list[Row]:
    rows: list[Row] = []
    moment = datetime(2026, 1, 5, tzinfo=UTC)
    for number in range(1, count + 1):
        previous = rows[-1].hash if rows else bytes(32)
        row = Row("s", number, UUID(int=number), moment, moment, "t", "/x", "{}", previous, b"")
        rows.append(row._replace(hash=hash_of(row, previous)))
    return rows


def test_every_column_is_in_the_hash() -> None:
    assert list(broken_links(chain(3))) == []
    later = datetime(2026, 1, 5, tzinfo=UTC) + timedelta(microseconds=1)
    for change in (
        {"stream": "S"},
        {"event_id": UUID(int=9)},
        {"recorded_at": later},
        {"event_time": later},
        {"type": "T"},
        {"source": "/y"},
        {"body": "{} "},
        {"previous_hash": b"x" * 32},
        {"hash": b"x" * 32},
        {"sequence": 7},
        {"stream": "st", "type": ""},
    ):
        rows = chain(3)
        rows[1] = rows[1]._replace(**change)
        assert list(broken_links(rows)), change


def test_a_gap_a_swap_and_a_repetition_break_a_chain() -> None:
    one, two, three, four = chain(4)
    for rows in ([one, two, four], [two, three], [one, three, two, four], [one, two, two, three]):
        assert list(broken_links(rows))
