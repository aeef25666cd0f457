"""Ids are valid UUIDs, in order, and the same for the same text."""

from __future__ import annotations

import threading
import time
from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from spillway.ids import UUID7, id_of_text, uuid7


def test_version_7_has_version_variant_and_the_clock() -> None:
    before = time.time_ns() // 1_000_000
    minted = uuid7()
    after = time.time_ns() // 1_000_000
    assert minted.version == 7
    assert minted.variant == RFC_4122
    # Other tests may have pushed the counter into the next millisecond, never further than that.
    assert before <= minted.int >> 80 <= after + 1


def test_layout_follows_rfc_9562() -> None:
    # The RFC's own example, A.6: time 0x017F22E279B0, rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F.
    rand_a, rand_b = 0xCC3, 0x18C4DC0C0C07398F
    counter, tail = rand_a << 30 | rand_b >> 32, rand_b & 0xFFFFFFFF
    mint = UUID7(clock=lambda: 0x017F22E279B0 * 1_000_000, random=lambda bits: tail if bits == 32 else counter)
    assert mint() == UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")


@given(st.lists(st.integers(0, 5), min_size=2, max_size=300), st.integers(0, 2**32))
def test_ids_ascend_whatever_the_clock_does(clock: list[int], seed: int) -> None:
    times = iter(clock)
    mint = UUID7(clock=lambda: next(times) * 1_000_000, random=lambda bits: seed % 2**bits)
    minted = [mint() for _ in clock]
    assert minted == sorted(set(minted))


def test_a_full_counter_moves_to_the_next_millisecond() -> None:
    mint = UUID7(clock=lambda: 7_000_000, random=lambda bits: 2**bits - 1)
    first = mint()
    mint._counter = 2**42 - 1
    second, third = mint(), mint()
    assert [minted.int >> 80 for minted in (first, second, third)] == [7, 8, 8]
    assert first < second < third


def test_threads_never_mint_the_same() -> None:
    minted: list[list[UUID]] = [[] for _ in range(4)]

    def work(own: list[UUID]) -> None:
        own.extend(uuid7() for _ in range(2_000))

    threads = [threading.Thread(target=work, args=(own,)) for own in minted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for own in minted for one in own}) == 8_000
    assert all(own == sorted(own) for own in minted)


def test_id_of_text_is_stable_and_tells_occurrences_apart() -> None:
    # A literal: another value would give every file's events new ids, and sending one again a second effect.
    assert id_of_text(b'{"a":1}', 0) == UUID("41d03f40-f17a-8cc7-8370-c433d7a2efeb")
    assert id_of_text(b'{"a":1}', 1) != id_of_text(b'{"a":1}', 0)
    assert id_of_text(b'{"a":2}', 0) != id_of_text(b'{"a":1}', 0)


@given(st.binary(), st.integers(0, 2**40))
def test_id_of_text_is_a_version_8_uuid(text: bytes, occurrence: int) -> None:
    derived = id_of_text(text, occurrence)
    assert (derived.version, derived.variant) == (8, RFC_4122)
