"""The generator of stock movements gives what it promises: exact counts, real disorder, scarcity, and every poison."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from spillway.histories.base import VALID
from spillway.histories.inventory import InventoryHistory, generate
from workers.inventory.contract import InventoryEvent, StockReceived, StockReleased, StockReserved
from workers.runtime.envelope import EventDecoder

decode = EventDecoder[InventoryEvent](InventoryEvent).decode
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def history() -> InventoryHistory:
    return generate(8_000, seed=1)


def test_what_the_worker_is_there_for_happens_often(history: InventoryHistory) -> None:
    events = [decode(message.body) for message in history.messages if message.kind == VALID]
    position = {event.id: place for place, event in enumerate(events)}
    receipts, reservations = history.receipts.values(), history.reservations.values()
    assert sum(len(document.opened_by) > 1 for document in receipts) > 20, "a receipt under two event ids"
    assert sum(len(document.opened_by) > 1 for document in reservations) > 20, "a reservation under two event ids"
    assert sum(len(document.released_by) > 1 for document in reservations) > 20, "a release under two event ids"
    assert sum(not document.opened_by for document in reservations) > 10, "a release of no reservation"
    overtaken = [
        document
        for document in reservations
        if document.opened_by
        and document.released_by
        and min(position[one] for one in document.released_by) < min(position[one] for one in document.opened_by)
    ]
    assert len(overtaken) > 50, "a release that arrives before its reservation"
    assert (
        sum(isinstance(event, StockReceived | StockReserved) and len(event.data.lines) > 100 for event in events) > 10
    )
    assert Counter(type(event) for event in events)[StockReleased] > 1_000


def test_demand_exceeds_what_comes_in_for_some_skus_and_not_for_others(history: InventoryHistory) -> None:
    received: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for document in history.receipts.values():
        received.update(next(iter(document.opened_by.values())))
    for document in history.reservations.values():
        if document.opened_by and not document.released_by:
            asked.update(next(iter(document.opened_by.values())))
    scarce = sum(asked[sku] > received[sku] for sku in received)
    assert 5 < scarce < len(received) / 2


def test_seeds_share_no_key(history: InventoryHistory) -> None:
    other = generate(8_000, seed=2)
    assert not history.event_ids & other.event_ids
    assert not history.receipts.keys() & other.receipts.keys()
    assert not history.reservations.keys() & other.reservations.keys()


def test_poison_uses_no_key_of_the_valid_events(history: InventoryHistory) -> None:
    bodies = " ".join(history.broken)
    used = set(re.findall(r"[0-9a-f]+-(?:broken-)?(?:rcp|rsv|SKU)-\d+", bodies))
    valid = " ".join(message.body for message in history.messages if message.kind == VALID)
    assert used
    assert not [key for key in used if f'"{key}"' in valid]
