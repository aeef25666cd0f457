"""Renaming the statements of a client: the same for any pieces, and nothing but names is touched."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from spillway.rdsproxy import wire
from spillway.rdsproxy.statements import StatementNames

PREFIX = b"c7_"

NAMES = st.one_of(st.just(b""), st.binary(min_size=1, max_size=70).map(lambda name: name.replace(b"\0", b"n")))
BODIES = st.one_of(
    st.binary(max_size=40), st.integers(0, 9_000).map(bytes), st.integers(0, 9_000).map(lambda n: b"P" * n)
)


def renamed(name: bytes) -> bytes:
    return PREFIX + name if name else name


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A message, and the same one as it must come out."""
    name, body, kind = draw(NAMES), draw(BODIES), draw(st.sampled_from(b"PBDCSQEHdcfX"))
    portal = draw(NAMES)

    def both(head: bytes, tail: bytes) -> tuple[bytes, bytes]:
        return wire.message(kind, head + name + tail), wire.message(kind, head + renamed(name) + tail)

    match kind:
        case wire.PARSE:
            return both(b"", b"\0" + body + b"\0\0\0")
        case wire.BIND:
            return both(portal + b"\0", b"\0" + struct.pack("!HHI", 0, 1, len(body)) + body + b"\0\0")
        case wire.DESCRIBE | wire.CLOSE if draw(st.booleans()):
            return both(b"S", b"\0")
        case wire.DESCRIBE | wire.CLOSE:
            untouched = wire.message(kind, b"P" + name + b"\0")
        case _:
            untouched = wire.message(kind, body)
    return untouched, untouched


STREAMS = st.lists(messages(), max_size=6).map(
    lambda pairs: (b"".join(before for before, _ in pairs), b"".join(after for _, after in pairs))
)


@given(STREAMS)
def test_only_names_change(stream: tuple[bytes, bytes]) -> None:
    before, after = stream
    assert StatementNames(PREFIX).feed(before) == after


@given(STREAMS, st.data())
def test_any_pieces(stream: tuple[bytes, bytes], choose: st.DataObject) -> None:
    before, after = stream
    cuts = sorted(choose.draw(st.sets(st.integers(0, len(before)), max_size=12)))
    names = StatementNames(PREFIX)
    pieces = [names.feed(before[a:b]) for a, b in zip([0, *cuts], [*cuts, len(before)], strict=True)]
    assert b"".join(pieces) == after


@given(STREAMS)
def test_byte_by_byte(stream: tuple[bytes, bytes]) -> None:
    before, after = stream
    names = StatementNames(PREFIX)
    assert b"".join(names.feed(before[at : at + 1]) for at in range(len(before))) == after


@example(b"Q\0\0\0\3rest", b"P\0\0\0\0")
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_noise_does_no_harm(first: bytes, second: bytes) -> None:
    names = StatementNames(PREFIX)
    names.feed(first)
    names.feed(second)


def test_what_is_no_message_passes_for_the_session_to_refuse() -> None:
    good = wire.parse(b"s", b"SELECT 1\0\0\0")
    assert (
        StatementNames(PREFIX).feed(good + b"B\0\0\0\2xyz") == wire.parse(b"c7_s", b"SELECT 1\0\0\0") + b"B\0\0\0\2xyz"
    )


def test_a_large_message_is_renamed_before_it_is_whole() -> None:
    whole = wire.parse(b"s", b"x" * 50_000 + b"\0\0\0")
    names = StatementNames(PREFIX)
    first = names.feed(whole[:10_000])
    assert first == wire.parse(b"c7_s", b"x" * 50_000 + b"\0\0\0")[: len(first)]
    assert len(first) == 10_000 + len(PREFIX)


def test_a_portal_name_longer_than_what_is_looked_at() -> None:
    """Else a client can name another's statement by the prefix that the proxy gave it."""
    whole = wire.message(wire.BIND, b"p" * 3000 + b"\0c1_secret\0" + bytes(6))
    names = StatementNames(PREFIX)
    assert b"c7_c1_secret" in names.feed(whole[:2600]) + names.feed(whole[2600:])
