"""The generator gives what it promises: exact counts, real disorder, every kind of poison, and the truth."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from spillway.histories.base import VALID
from spillway.histories.orders import OrdersHistory, generate, reference_rows
from spillway.histories.orders_poison import POISON
from workers.orders.contract import OrderEvent
from workers.runtime.envelope import EventDecoder

decode = EventDecoder[OrderEvent](OrderEvent).decode
ROOT = Path(__file__).parents[2]


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
