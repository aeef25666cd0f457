"""What every history promises: exact counts, the same for the same seed, and messages that are what they say."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spillway.contracts import CONTRACTS
from spillway.histories.base import DUPLICATE, VALID
from spillway.packing import MAX_MESSAGE_BYTES
from spillway.stack.template import REPOSITORY
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Poison, Reason

if TYPE_CHECKING:
    from spillway.histories.base import History

#: "SendMessage", SQS API reference: characters a body may not hold.
REFUSED_BY_SQS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: What the events of a history are spread over, where the generator can be told how many of that.
KEYS = {"orders": "orders", "inventory": "skus", "payments": "accounts", "audit": "streams"}
DIGEST = (
    "import hashlib, sys; from importlib import import_module;"
    "messages = import_module(f'spillway.histories.{sys.argv[1]}').generate(2_000, int(sys.argv[2])).messages;"
    "print(hashlib.sha256('\\n'.join(f'{m.group} {m.body}' for m in messages).encode()).hexdigest())"
)

every_worker = pytest.mark.parametrize("worker", CONTRACTS)


def generate(worker: str, *arguments: Any, **own: Any) -> History:
    history: History = import_module(f"spillway.histories.{worker}").generate(*arguments, **own)
    return history


@cache
def large(worker: str) -> History:
    return generate(worker, 10_000, 1)


@every_worker
@settings(max_examples=40)
@given(
    events=st.integers(0, 400),
    seed=st.integers(),
    duplicates=st.floats(0, 0.6),
    poison=st.floats(0, 0.3),
    keys=st.none() | st.integers(1, 500),
)
def test_any_arguments_give_exact_counts(
    worker: str, *, events: int, seed: int, duplicates: float, poison: float, keys: int | None
) -> None:
    repeated, broken = round(events * duplicates), round(events * poison)
    assume(not repeated or repeated + broken < events)  # something to repeat
    own = {} if keys is None or worker not in KEYS else {KEYS[worker]: keys}
    history = generate(worker, events, seed, duplicates, poison, **own)
    kinds = Counter(message.kind for message in history.messages)
    assert kinds.total() == events
    assert kinds[DUPLICATE] == repeated
    assert history.broken.total() == broken
    assert kinds[VALID] == len(history.event_ids) == events - repeated - broken


@every_worker
@pytest.mark.parametrize(
    "arguments", [{"duplicates": 1.0}, {"duplicates": 0.6, "poison": 0.5}, {"poison": -0.1}, {"events": -1}]
)
def test_shares_that_do_not_fit_are_refused(worker: str, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        generate(worker, **{"events": 100} | arguments)


@every_worker
def test_the_same_seed_gives_the_same_history_in_another_process(worker: str) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(REPOSITORY)}
    seven, eight = (
        subprocess.run(
            [sys.executable, "-c", DIGEST, worker, seed], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("7", "8")
    )
    here = "\n".join(f"{message.group} {message.body}" for message in generate(worker, 2_000, 7).messages)
    assert hashlib.sha256(here.encode()).hexdigest() == seven
    assert seven != eight


@every_worker
def test_every_message_is_what_its_kind_says(worker: str) -> None:
    history = large(worker)
    decode = EventDecoder[Any](CONTRACTS[worker]).decode
    seen: set[str] = set()
    ids: set[Any] = set()
    for message in history.messages:
        if message.kind in (VALID, DUPLICATE):
            assert (message.body in seen) == (message.kind == DUPLICATE), "a duplicate follows what it repeats"
            seen.add(message.body)
            ids.add(decode(message.body).id)
            continue
        kind = history.poison[message.kind]
        if kind.reason is Reason.GAP:
            decode(message.body)  # good in itself; only the database knows that it is ahead of its turn
            continue
        with pytest.raises(Poison) as caught:
            decode(message.body)
        assert (caught.value.reason, message.kind) == (kind.reason, message.kind)
        assert kind.detail in caught.value.detail, message.kind
    assert {message.kind for message in history.messages} == {VALID, DUPLICATE, *history.poison}
    assert ids == history.event_ids


@every_worker
def test_sqs_takes_every_message(worker: str) -> None:
    for message in large(worker).messages:
        assert message.body
        assert not REFUSED_BY_SQS.search(message.body), message.kind
        assert len(message.body.encode()) <= MAX_MESSAGE_BYTES
