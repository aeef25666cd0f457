"""The short cut knows nothing that the long way would see otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spillway.rdsproxy import wire
from spillway.rdsproxy.database_state import DatabaseState
from spillway.rdsproxy.pinning import Classifier
from spillway.rdsproxy.session import ProtocolViolation, Session
from spillway.rdsproxy.whole_requests import QUERY_ALONE, WholeRequests

TEXTS = [b"SELECT 1", b"SELECT $1", b"", b"SET a.b = 1", b"SELECT \xff", "SELECT 'é'".encode(), b"selec", b"x" * 20_000]
BIND = wire.message(wire.BIND, b"\0\0\0\0\0\1\0\0\0\x0212\0\0")
DESCRIBE = wire.message(wire.DESCRIBE, b"P\0")
EXECUTE = wire.message(wire.EXECUTE, b"\0\0\0\0\0")
TYPES = st.sampled_from([b"\0\0", b"\0\1\0\0\0\x17", b"\0\1", b"", b"\0\0x"])
PIECES = st.one_of(
    st.builds(lambda text: wire.message(wire.QUERY, text + b"\0"), st.sampled_from(TEXTS)),
    st.builds(
        lambda name, text, types: wire.parse(name, text + b"\0" + types),
        st.sampled_from([b"", b"", b"n"]),
        st.sampled_from(TEXTS),
        TYPES,
    ),
    st.sampled_from([BIND, DESCRIBE, EXECUTE, wire.SYNC_MESSAGE, wire.message(wire.FLUSH), wire.TERMINATE_MESSAGE]),
    st.just(wire.parse(b"", b"SELECT $1\0\0\0") + BIND + DESCRIBE + EXECUTE + wire.SYNC_MESSAGE),
    st.binary(max_size=8),
)


def attached(classifier: Classifier) -> Session:
    session = Session(classifier)
    session.attach(DatabaseState(1))
    return session


def state(session: Session) -> dict[str, object]:
    values = {name: getattr(session, name) for name in Session.__slots__ if name not in {"_classifier", "database"}}
    return values | {"_expected": list(session._expected), "left": session.database and session.database.unnamed}


@settings(max_examples=1_500, deadline=None)
@given(st.lists(PIECES, max_size=6).map(b"".join), st.integers(0, 8))
def test_what_is_recognised_is_what_the_long_way_makes_of_it(data: bytes, cut: int) -> None:
    data = data[: len(data) - cut] if cut < 3 else data
    classifier = Classifier()
    requests = WholeRequests(classifier)
    for _ in range(2):  # the second time from memory
        whole = requests.recognise(data)
        if whole is None:
            continue
        short, long = attached(classifier), attached(classifier)
        short.ask(whole)
        assert long.request(data) == data
        assert state(short) == state(long)
        assert long.pin is None
        assert not Session(classifier).first_needs_statement(data)


@pytest.mark.parametrize(
    "data",
    [
        wire.query("SELECT 1"),
        wire.parse(b"", b"SELECT $1\0\0\0") + BIND + DESCRIBE + EXECUTE + wire.SYNC_MESSAGE,
        wire.parse(b"", b"SELECT $1\0\0\1\0\0\0\x17") + BIND + EXECUTE + wire.SYNC_MESSAGE,
    ],
    ids=["query", "extended", "without describe"],
)
def test_what_most_clients_send_is_recognised(data: bytes) -> None:
    requests = WholeRequests(Classifier())
    first, again = requests.recognise(data), requests.recognise(bytes(data))
    assert first is again is not None
    assert (first is QUERY_ALONE) == (data[0] == wire.QUERY)


@pytest.mark.parametrize(
    "data",
    [
        wire.query("SET a.b = 1"),
        wire.query("SELECT 1") + wire.query("SELECT 2"),
        wire.query("SELECT 1")[:-1],
        wire.message(wire.QUERY, b"SELECT 1\0SELECT 2\0"),
        wire.parse(b"n", b"SELECT 1\0\0\0") + BIND + EXECUTE + wire.SYNC_MESSAGE,
        wire.parse(b"", b"SET a.b = 1\0\0\0") + BIND + EXECUTE + wire.SYNC_MESSAGE,
        wire.parse(b"", b"SELECT 1\0\0\5") + BIND + EXECUTE + wire.SYNC_MESSAGE,
        wire.parse(b"", b"SELECT 1\0\0\0") + BIND + EXECUTE,
        wire.parse(b"", b"SELECT 1\0\0\0") + wire.SYNC_MESSAGE,
        b"Q",
        b"",
    ],
)
def test_everything_else_takes_the_long_way(data: bytes) -> None:
    assert WholeRequests(Classifier()).recognise(data) is None


def test_a_session_at_rest_is_in_no_message_and_waits_for_no_answer() -> None:
    session = attached(Classifier())
    assert session.at_rest
    for begun in (wire.query("SELECT 1")[:7], wire.query("SELECT 1"), BIND, BIND[:9]):
        session = attached(Classifier())
        session.request(begun)
        assert not session.at_rest, begun
    with pytest.raises(ProtocolViolation):
        attached(Classifier()).request(b"\0")
