"""The generator of audit events gives what it promises, and its own recomputation of a chain finds every change."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spillway.histories.audit import AuditHistory, Row, broken_links, generate, hash_of
from spillway.histories.audit_poison import POISON
from spillway.histories.base import DUPLICATE, VALID
from spillway.packing import MAX_MESSAGE_BYTES
from workers.audit.contract import AuditEvent
from workers.audit.handler import to_row
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Poison

decode = EventDecoder[AuditEvent](AuditEvent).decode
ROOT = Path(__file__).parents[2]
#: "SendMessage", SQS API reference: characters a body may not hold.
REFUSED_BY_SQS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def digest(history: AuditHistory) -> str:
    return hashlib.sha256("\n".join(message.body for message in history.messages).encode()).hexdigest()


@pytest.fixture(scope="module")
def history() -> AuditHistory:
    return generate(8_000, seed=1)


@settings(max_examples=30, deadline=None)
@given(
    events=st.integers(0, 300),
    seed=st.integers(),
    duplicates=st.floats(0, 0.6),
    poison=st.floats(0, 0.3),
    streams=st.none() | st.integers(1, 300),
)
def test_any_arguments_give_exact_counts(
    events: int, seed: int, duplicates: float, poison: float, streams: int | None
) -> None:
    repeated = round(events * duplicates)
    assume(not repeated or repeated + round(events * poison) < events)  # something to repeat
    history = generate(events, seed, duplicates, poison, streams=streams)
    kinds = Counter(message.kind for message in history.messages)
    assert kinds.total() == events
    assert kinds[DUPLICATE] == round(events * duplicates)
    assert history.broken.total() == round(events * poison)
    assert len(history.event_ids) == len(history.expected) == kinds[VALID]


@pytest.mark.parametrize("arguments", [{"duplicates": 1.0}, {"duplicates": 0.6, "poison": 0.5}, {"poison": -0.1}])
def test_shares_that_do_not_fit_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        generate(100, **arguments)


def test_the_same_seed_gives_the_same_history_in_another_process() -> None:
    program = (
        "import hashlib; from spillway.histories.audit import generate;"
        "print(hashlib.sha256('\\n'.join(m.body for m in generate(2_000, 7).messages).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(generate(2_000, 7))
    assert digest(generate(2_000, 8)) != digest(generate(2_000, 7))


def test_every_message_is_what_its_kind_says(history: AuditHistory) -> None:
    seen: set[str] = set()
    kinds: set[str] = set()
    for message in history.messages:
        kinds.add(message.kind)
        if message.kind in POISON:
            with pytest.raises(Poison) as caught:
                decode(message.body)
            kind = POISON[message.kind]
            assert caught.value.reason == kind.reason, message.kind
            assert kind.detail in caught.value.detail, message.kind
        else:
            assert (message.body in seen) == (message.kind == DUPLICATE), "a duplicate follows what it repeats"
            seen.add(message.body)
    assert kinds == {VALID, DUPLICATE, *POISON}


def test_sqs_takes_every_message(history: AuditHistory) -> None:
    for message in history.messages:
        assert message.body
        assert not REFUSED_BY_SQS.search(message.body), message.kind
        assert len(message.body.encode()) <= MAX_MESSAGE_BYTES


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
