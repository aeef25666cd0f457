"""The generator of stock movements gives what it promises: exact counts, real disorder, scarcity, and every poison."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spillway.histories.base import DUPLICATE, VALID
from spillway.histories.inventory import InventoryHistory, generate
from spillway.histories.inventory_poison import POISON
from spillway.packing import MAX_MESSAGE_BYTES
from workers.inventory.contract import InventoryEvent, StockReceived, StockReleased, StockReserved
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Poison

decode = EventDecoder[InventoryEvent](InventoryEvent).decode
ROOT = Path(__file__).parents[2]
#: "SendMessage", SQS API reference: characters a body may not hold.
REFUSED_BY_SQS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def digest(history: InventoryHistory) -> str:
    return hashlib.sha256("\n".join(message.body for message in history.messages).encode()).hexdigest()


@pytest.fixture(scope="module")
def history() -> InventoryHistory:
    return generate(8_000, seed=1)


@settings(max_examples=30, deadline=None)
@given(
    events=st.integers(0, 300),
    seed=st.integers(),
    duplicates=st.floats(0, 0.6),
    poison=st.floats(0, 0.3),
    skus=st.integers(1, 300),
)
def test_any_arguments_give_exact_counts(events: int, seed: int, duplicates: float, poison: float, skus: int) -> None:
    repeated = round(events * duplicates)
    assume(not repeated or repeated + round(events * poison) < events)  # something to repeat
    history = generate(events, seed, duplicates, poison, skus=skus)
    kinds = Counter(message.kind for message in history.messages)
    assert kinds.total() == events
    assert kinds[DUPLICATE] == round(events * duplicates)
    assert history.broken.total() == round(events * poison)
    assert len(history.event_ids) == kinds[VALID]


@pytest.mark.parametrize(("duplicates", "poison"), [(1.0, 0.01), (0.6, 0.5), (0.05, -0.1)])
def test_shares_that_do_not_fit_are_refused(duplicates: float, poison: float) -> None:
    with pytest.raises(ValueError, match="Expected"):
        generate(100, 1, duplicates, poison)


def test_the_same_seed_gives_the_same_history_in_another_process() -> None:
    program = (
        "import hashlib; from spillway.histories.inventory import generate;"
        "print(hashlib.sha256('\\n'.join(m.body for m in generate(2_000, 7).messages).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(generate(2_000, 7))
    assert digest(generate(2_000, 8)) != digest(generate(2_000, 7))


def test_every_message_is_what_its_kind_says(history: InventoryHistory) -> None:
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


def test_sqs_takes_every_message(history: InventoryHistory) -> None:
    for message in history.messages:
        assert message.body
        assert not REFUSED_BY_SQS.search(message.body), message.kind
        assert len(message.body.encode()) <= MAX_MESSAGE_BYTES


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
