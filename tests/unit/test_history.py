"""The generator gives what it promises: exact counts, real disorder, every kind of poison, and the truth."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spillway.histories.base import DUPLICATE, VALID
from spillway.histories.orders import OrdersHistory, generate, reference_rows
from spillway.histories.orders_poison import POISON
from spillway.packing import MAX_MESSAGE_BYTES
from workers.orders.contract import OrderEvent
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Poison

decode = EventDecoder[OrderEvent](OrderEvent).decode
ROOT = Path(__file__).parents[2]
#: "SendMessage", SQS API reference: characters a body may not hold.
REFUSED_BY_SQS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def digest(history: OrdersHistory) -> str:
    return hashlib.sha256("\n".join(message.body for message in history.messages).encode()).hexdigest()


@pytest.fixture(scope="module")
def history() -> OrdersHistory:
    return generate(20_000, seed=1)


def test_counts_are_exact(history: OrdersHistory) -> None:
    assert len(history.messages) == 20_000
    expected = history.expected
    assert expected.duplicates == 1_000
    assert sum(expected.poison.values()) == sum(expected.poison_by_reason.values()) == 200
    assert expected.distinct == 18_800
    assert set(expected.poison) == set(POISON)
    assert set(expected.poison_by_reason) == {"undecodable", "contract"}


@settings(max_examples=40, deadline=None)
@given(
    events=st.integers(0, 400),
    seed=st.integers(),
    duplicates=st.floats(0, 0.6),
    poison=st.floats(0, 0.3),
    orders=st.none() | st.integers(1, 500),
)
def test_any_arguments_give_exact_counts(
    events: int, seed: int, duplicates: float, poison: float, orders: int | None
) -> None:
    repeated = round(events * duplicates)
    assume(not repeated or repeated + round(events * poison) < events)  # something to repeat
    history = generate(events, seed, duplicates, poison, orders=orders)
    expected = history.expected
    assert len(history.messages) == events
    assert expected.duplicates == round(events * duplicates)
    assert sum(expected.poison.values()) == round(events * poison)
    assert expected.distinct == events - expected.duplicates - sum(expected.poison.values())


@pytest.mark.parametrize("arguments", [{"duplicates": 1.0}, {"duplicates": 0.6, "poison": 0.5}, {"poison": -0.1}])
def test_shares_that_do_not_fit_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        generate(100, **arguments)


def test_the_same_seed_gives_the_same_history_in_another_process() -> None:
    program = (
        "import hashlib; from spillway.histories.orders import generate;"
        "print(hashlib.sha256('\\n'.join(m.body for m in generate(2_000, 7).messages).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(generate(2_000, 7))
    assert digest(generate(2_000, 8)) != digest(generate(2_000, 7))


def test_every_message_is_what_its_kind_says(history: OrdersHistory) -> None:
    seen: set[str] = set()
    ids: set[str] = set()
    for message in history.messages:
        if message.kind in POISON:
            with pytest.raises(Poison) as caught:
                decode(message.body)
            kind = POISON[message.kind]
            assert (caught.value.reason, message.kind) == (kind.reason, message.kind)
            assert kind.detail in caught.value.detail, message.kind
        else:
            assert (message.body in seen) == (message.kind == DUPLICATE), "a duplicate follows what it repeats"
            seen.add(message.body)
            ids.add(str(decode(message.body).id))
    assert len(ids) == history.expected.distinct


def test_sqs_takes_every_message(history: OrdersHistory) -> None:
    for message in history.messages:
        assert message.body
        assert not REFUSED_BY_SQS.search(message.body), message.kind
        assert len(message.body.encode()) <= MAX_MESSAGE_BYTES


def test_versions_arrive_out_of_order_and_some_conflict(history: OrdersHistory) -> None:
    newest: Counter[str] = Counter()
    versions: Counter[tuple[str, int]] = Counter()
    late = 0
    for event in (decode(message.body) for message in history.messages if message.kind == VALID):
        late += event.data.version < newest[event.data.order_id]
        newest[event.data.order_id] = max(newest[event.data.order_id], event.data.version)
        versions[event.data.order_id, event.data.version] += 1
    assert late > 100
    assert sum(count > 1 for count in versions.values()) > 50
    assert len(newest) > 3_000, "many orders"
    assert max(newest.values()) > 10, "and some hot ones"


def test_the_reference_does_not_depend_on_the_order() -> None:
    events = [decode(message.body) for message in generate(1_500, 3, poison=0).messages]
    truth = reference_rows(events)
    for seed in range(3):
        random.Random(seed).shuffle(events)
        assert reference_rows(events + events[:100]) == truth


def test_the_reference_takes_the_highest_version_then_the_highest_id(history: OrdersHistory) -> None:
    events = [decode(message.body) for message in history.messages if message.kind == VALID]
    for order_id, row in list(history.expected.rows.items())[:300]:
        best = max((event.data.version, event.id) for event in events if event.data.order_id == order_id)
        assert (row.version, row.event_id) == best


def test_the_reference_keeps_the_whole_event() -> None:
    messages = generate(500, 5, 0, 0).messages
    rows = generate(500, 5, 0, 0).expected.rows
    by_id = {str(event.id): event for event in (decode(message.body) for message in messages)}
    statuses = Counter(row.status for row in rows.values())
    assert set(statuses) == {"placed", "updated", "cancelled"}
    for row in rows.values():
        data = by_id[str(row.event_id)].data
        assert (row.customer, row.currency, row.items, row.total) == (
            data.customer,
            data.currency,
            data.items,
            data.total,
        )
        assert (row.updated_at is not None, row.cancelled_at is not None) == (
            row.status == "updated",
            row.status == "cancelled",
        )


def test_twenty_thousand_take_less_than_two_seconds() -> None:
    started = time.process_time()
    generate(20_000, seed=2)
    assert time.process_time() - started < 2
