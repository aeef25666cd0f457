from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.rdsproxy import errors, wire
from spillway.rdsproxy.errors import ProxyError
from spillway.rdsproxy.startup import (
    TRACKED,
    CancelRequest,
    GssRequest,
    MessageBuffer,
    MessageTooLong,
    SslRequest,
    Startup,
    StartupBuffer,
    StartupRejected,
    parse_startup,
)

SSL = struct.pack("!II", 8, wire.SSL_REQUEST)
GSS = struct.pack("!II", 8, wire.GSSENC_REQUEST)
USER = {"user": "spillway_app"}
WORDS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=20)


def packet(code: int, body: bytes) -> bytes:
    return struct.pack("!II", len(body) + 8, code) + body


def rejection(data: bytes) -> ProxyError:
    with pytest.raises(StartupRejected) as caught:
        parse_startup(data)
    return caught.value.error


def test_requests() -> None:
    assert parse_startup(SSL) == SslRequest()
    assert parse_startup(GSS) == GssRequest()
    assert parse_startup(packet(wire.CANCEL_REQUEST, struct.pack("!II", 4711, 7))) == CancelRequest(4711, b"\0\0\0\7")
    assert parse_startup(packet(wire.CANCEL_REQUEST, struct.pack("!I", 1) + b"k" * 32)) == CancelRequest(1, b"k" * 32)


def test_startup() -> None:
    assert parse_startup(wire.startup_message(USER)) == Startup("spillway_app", "spillway_app", {})
    assert parse_startup(wire.startup_message(USER | {"database": ""})) == Startup("spillway_app", "spillway_app", {})
    full = parse_startup(wire.startup_message(USER | {"database": "shop", "application_name": "worker"}))
    assert full == Startup("spillway_app", "shop", {"application_name": "worker"})
    assert isinstance(full, Startup)
    assert full.application_name == "worker"


@pytest.mark.parametrize("name", TRACKED)
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
def test_tracked_parameters_are_found_in_any_case(name: str, case: type[str]) -> None:
    request = parse_startup(wire.startup_message(USER | {case(name): "Value"}))
    assert isinstance(request, Startup)
    assert request.tracked == {name: "Value"}


@given(user=WORDS, database=WORDS, tracked=st.dictionaries(st.sampled_from(TRACKED), st.text("aé ,=", max_size=9)))
def test_reads_what_the_writer_writes(user: str, database: str, tracked: dict[str, str]) -> None:
    message = wire.startup_message({"user": user, "database": database} | tracked)
    assert parse_startup(message) == Startup(user, database, tracked)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"replication": "database"}, errors.REPLICATION),
        ({"replication": "true"}, errors.REPLICATION),
        ({"options": "-c statement_timeout=5s"}, errors.COMMAND_LINE_OPTIONS),
        ({"statement_timeout": "5s"}, errors.unsupported_option("statement_timeout")),
        ({"_pq_.command_batching": "1"}, errors.unsupported_option("_pq_.command_batching")),
        ({"IntervalStyle": "iso_8601"}, errors.unsupported_option("IntervalStyle")),
        ({"USER": "x"}, errors.unsupported_option("USER")),
    ],
)
def test_what_rds_proxy_refuses(parameters: dict[str, str], error: ProxyError) -> None:
    assert rejection(wire.startup_message(USER | parameters)) == error
    assert error.sqlstate == "0A000"


def test_a_user_is_needed() -> None:
    for parameters in ({}, {"user": ""}, {"database": "shop"}):
        assert rejection(wire.startup_message(parameters)) == errors.USER_MISSING


@pytest.mark.parametrize("version", [2 << 16, (3 << 16) + 2, 4 << 16, 0, 0xFFFFFFFF, 80877105])
def test_only_protocol_3_0(version: int) -> None:
    assert rejection(packet(version, b"user\0me\0\0")) == errors.UNSUPPORTED_PROTOCOL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\x08",
        SSL + b"x",
        packet(wire.SSL_REQUEST, b"x"),
        packet(wire.CANCEL_REQUEST, b"\0\0\0\1"),
        packet(wire.CANCEL_REQUEST, bytes(261)),
        packet(wire.PROTOCOL_3_0, b""),
        packet(wire.PROTOCOL_3_0, b"user\0me\0"),
        packet(wire.PROTOCOL_3_0, b"user\0me"),
        packet(wire.PROTOCOL_3_0, b"user\0\0"),
        packet(wire.PROTOCOL_3_0, b"user\0me\0\0x"),
        packet(wire.PROTOCOL_3_0, b"user\0me\0\0\0database\0x\0\0"),
        packet(wire.PROTOCOL_3_0, b"user\0\xff\0\0"),
    ],
)
def test_what_is_no_startup_packet(data: bytes) -> None:
    assert rejection(data).sqlstate == "08P01"


@given(code=st.sampled_from([wire.PROTOCOL_3_0, wire.CANCEL_REQUEST, wire.SSL_REQUEST, 0]), body=st.binary())
def test_noise_is_rejected_or_read(code: int, body: bytes) -> None:
    with contextlib.suppress(StartupRejected):
        parse_startup(packet(code, body))


class TestStartupBuffer:
    def test_byte_by_byte(self) -> None:
        whole = wire.startup_message(USER)
        buffer = StartupBuffer()
        for byte in (SSL + whole)[: len(SSL) - 1]:
            assert buffer.feed(bytes((byte,))) is None
        assert buffer.feed(SSL[-1:]) == SSL
        assert buffer.rest == b""
        answers = [buffer.feed(bytes((byte,))) for byte in whole]
        assert answers == [None] * (len(whole) - 1) + [whole]

    @given(st.data())
    def test_any_chunks(self, data: st.DataObject) -> None:
        packets = [GSS, SSL, wire.startup_message(USER)]
        stream = b"".join(packets) + b"after"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=9)))
        buffer, seen = StartupBuffer(), []
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            chunk = stream[begin:end]
            while len(seen) < len(packets) and (found := buffer.feed(chunk)) is not None:
                seen.append(found)
                chunk = b""
            if len(seen) == len(packets):
                assert seen == packets
                assert buffer.rest + stream[end:] == b"after"
                return
        raise AssertionError(f"only {len(seen)} packets")

    def test_what_follows_an_encryption_request_is_seen(self) -> None:
        buffer = StartupBuffer()
        assert buffer.feed(SSL + wire.startup_message(USER)) == SSL
        assert buffer.rest == wire.startup_message(USER)

    @pytest.mark.parametrize(
        "first",
        [
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"SSH-2.0-OpenSSH",
            b"\0\0\0\0",
            b"\0\0\0\7",
            struct.pack("!I", wire.MAX_STARTUP_PACKET + 1),
            b"\xff\xff\xff\xff",
        ],
    )
    def test_four_bytes_are_enough_to_refuse(self, first: bytes) -> None:
        buffer = StartupBuffer()
        assert buffer.feed(first[:3]) is None
        with pytest.raises(StartupRejected) as caught:
            buffer.feed(first[3:4])
        assert caught.value.error.sqlstate == "08P01"

    def test_the_longest_packet(self) -> None:
        longest = struct.pack("!I", wire.MAX_STARTUP_PACKET) + bytes(wire.MAX_STARTUP_PACKET - 4)
        buffer = StartupBuffer()
        assert buffer.feed(longest[:-1]) is None
        assert buffer.feed(longest[-1:]) == longest


class TestMessageBuffer:
    def test_byte_by_byte(self) -> None:
        buffer = MessageBuffer(100)
        found = []
        for byte in wire.query("SELECT 1") + wire.SYNC_MESSAGE + b"re":
            buffer.feed(bytes((byte,)))
            if message := buffer.next():
                found.append(message)
        assert found == [(wire.QUERY, b"SELECT 1\0"), (wire.SYNC, b"")]
        assert buffer.rest == b"re"

    @pytest.mark.parametrize("length", [0, 3, 101, 0xFFFFFFFF])
    def test_impossible_lengths(self, length: int) -> None:
        buffer = MessageBuffer(100)
        buffer.feed(struct.pack("!BI", wire.PASSWORD, length))
        with pytest.raises(MessageTooLong, match=f"'p' claims a length of {length} bytes"):
            buffer.next()


ERRORS = [
    (errors.BORROW_TIMEOUT, "08000", "Timed-out waiting to acquire database connection."),
    (errors.IAM_BUSY, "53300", "The IAM authentication failed because of too many competing requests."),
    (errors.too_many_clients(9), "53300", "The maximum number of client connections to the proxy exceeded 9."),
    (errors.connection_rate(5), "53300", "Rate of connection to proxy exceeded 5."),
    (
        errors.iam_failed("u"),
        "28P01",
        "IAM authentication failed for user u. Check the IAM token for this user and try again.",
    ),
    (errors.wrong_password("r"), "28P01", "The password that was provided for the role r is wrong."),
    (errors.TLS_REQUIRED, "28000", "This RDS Proxy requires TLS connections."),
    (errors.IAM_NEEDS_TLS, "28000", "IAM authentication is allowed only with SSL connections."),
    (
        errors.no_credentials("r"),
        "28000",
        "This RDS proxy has no credentials for the role r. Check the credentials for this role and try again.",
    ),
    (
        errors.unsupported_option("o"),
        "0A000",
        "Feature not supported: RDS Proxy currently doesn't support the option o.",
    ),
    (errors.UNKNOWN, "XX000", "Unknown error."),
    (
        errors.database_error('database "d" does not exist'),
        "XX000",
        'Request returned an error: database "d" does not exist.',
    ),
]


@pytest.mark.parametrize(("error", "sqlstate", "text"), ERRORS)
def test_documented_errors(error: ProxyError, sqlstate: str, text: str) -> None:
    assert error == ProxyError(sqlstate, text)
    buffer = MessageBuffer(1000)
    buffer.feed(error.encode())
    message = buffer.next()
    assert message is not None
    assert message[0] == wire.ERROR
    assert wire.error_fields(message[1]) == {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": text}
