"""A client's first packets: what it asks for before it logs in, and how messages are cut from a stream of bytes.

A start-up packet has no type byte: four bytes length (counting itself), four bytes code, then the body (PostgreSQL
manual, "Message Formats"). What RDS Proxy takes and refuses in it is described in the RDS user guide ("Considerations
for connecting to PostgreSQL" and "Troubleshooting for RDS Proxy").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spillway.rdsproxy import errors, wire
from spillway.rdsproxy.errors import Refused, protocol_violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: The session parameters that RDS Proxy takes at start-up and carries from one database connection to the next.
TRACKED = ("application_name", "client_encoding", "DateStyle", "TimeZone", "extra_float_digits", "search_path")
#: PostgreSQL finds its settings by name without regard to case, but `user`, `database`, `options` and `replication`
#: with (ProcessStartupPacket in its source, src/backend/tcop/backend_startup.c).
_CANONICAL = {name.lower(): name for name in TRACKED}

#: The shortest packet there is: its length and a code.
MIN_STARTUP_PACKET = 8


class StartupRejected(Refused):
    """The start-up packet is not one, or asks for something the proxy does not do."""


@dataclass(frozen=True, slots=True)
class SslRequest:
    """The client would like TLS; the answer is one byte, S or N."""


@dataclass(frozen=True, slots=True)
class GssRequest:
    """The client would like GSSAPI encryption; the answer is one byte, N."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """The client would like another connection's statement cancelled. RDS Proxy does nothing about it."""

    pid: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Startup:
    """A client wants to log in. `tracked`: start-up parameters by their canonical names (see TRACKED)."""

    user: str
    database: str
    tracked: Mapping[str, str] = field(default_factory=dict)

    @property
    def application_name(self) -> str:
        """What the client calls itself, perhaps nothing."""
        return self.tracked.get("application_name", "")


Request = SslRequest | GssRequest | CancelRequest | Startup


def parse_startup(packet: bytes) -> Request:
    """What one whole start-up packet, its length included, asks for.

    Raises StartupRejected: with 0A000 for what RDS Proxy documents as unsupported, with 28000 where no user is named,
    with 08P01 for what is not a start-up packet.
    """
    if len(packet) < MIN_STARTUP_PACKET or len(packet) != wire.INT32.unpack_from(packet)[0]:
        raise StartupRejected(protocol_violation("invalid length of startup packet"))
    (code,) = wire.INT32.unpack_from(packet, 4)
    body = packet[8:]
    match code:
        case wire.SSL_REQUEST | wire.GSSENC_REQUEST:
            if body:
                raise StartupRejected(protocol_violation("invalid length of encryption request packet"))
            return SslRequest() if code == wire.SSL_REQUEST else GssRequest()
        case wire.CANCEL_REQUEST:
            # A pid, then a key of four bytes; protocol 3.2 allows keys of up to 256.
            if not 8 <= len(body) <= 260:
                raise StartupRejected(protocol_violation("invalid length of query cancel packet"))
            return CancelRequest(wire.INT32.unpack_from(body)[0], body[4:])
        case wire.PROTOCOL_3_0:
            return _startup(body)
    raise StartupRejected(errors.UNSUPPORTED_PROTOCOL, f"protocol version {code >> 16}.{code & 0xFFFF}")


def _startup(body: bytes) -> Startup:
    user = database = ""
    tracked: dict[str, str] = {}
    for name, value in _parameters(body):
        match name:
            case "user":
                user = value
            case "database":
                database = value
            case "replication":
                raise StartupRejected(errors.REPLICATION)
            case "options":
                raise StartupRejected(errors.COMMAND_LINE_OPTIONS, f"start-up parameter options={value[:200]!r}")
            case _ if canonical := _CANONICAL.get(name.lower()):
                tracked[canonical] = value
            case _:
                raise StartupRejected(errors.unsupported_option(name))
    if not user:
        raise StartupRejected(errors.USER_MISSING)
    return Startup(user, database or user, tracked)


def _parameters(body: bytes) -> Iterator[tuple[str, str]]:
    """Names and values; an empty name ends the list, and must be the packet's last byte."""
    try:
        strings = body.decode().split("\0")
    except UnicodeDecodeError:
        raise StartupRejected(protocol_violation("invalid startup packet: not UTF-8")) from None
    # n pairs, each string terminated, and the terminator of the list: 2 n + 2 pieces, of which the last two are empty.
    if len(strings) < 2 or len(strings) % 2 or strings[-2:] != ["", ""]:
        raise StartupRejected(protocol_violation("invalid startup packet layout: expected terminator as last byte"))
    names = strings[:-2:2]
    if "" in names:
        raise StartupRejected(protocol_violation("invalid startup packet layout: expected terminator as last byte"))
    yield from zip(names, strings[1:-2:2], strict=True)


class StartupBuffer:
    """Collects bytes until a start-up packet is whole.

    A client may send several, one after the other: SSLRequest, then the rest inside TLS. Bytes that follow a
    SSLRequest without waiting for its answer are in `rest`, and must not be taken as if TLS had protected them.
    """

    def __init__(self) -> None:
        self._bytes = b""

    @property
    def rest(self) -> bytes:
        """Bytes that belong to no packet returned so far."""
        return self._bytes

    def feed(self, data: bytes) -> bytes | None:
        """The next whole packet, or None while there is none; feed(b"") asks for one already received.

        Raises StartupRejected as soon as four bytes cannot be a packet's length: an HTTP request, a TLS hello that
        nobody asked for, noise.
        """
        self._bytes += data
        if len(self._bytes) < 4:
            return None
        (length,) = wire.INT32.unpack_from(self._bytes)
        if not MIN_STARTUP_PACKET <= length <= wire.MAX_STARTUP_PACKET:
            raise StartupRejected(
                protocol_violation("invalid length of startup packet"), f"first bytes {self._bytes[:16]!r}"
            )
        if len(self._bytes) < length:
            return None
        packet, self._bytes = self._bytes[:length], self._bytes[length:]
        return packet


class MessageTooLong(Exception):
    """A message claims a length that none may have: less than four bytes, or more than the limit."""

    def __init__(self, kind: int, length: int) -> None:
        super().__init__(f"message of type {chr(kind)!r} claims a length of {length} bytes")


class MessageBuffer:
    """Collects bytes until a typed message is whole. `limit`: bytes that a message may have, without its type."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = b""

    @property
    def rest(self) -> bytes:
        """Bytes that belong to no message returned so far."""
        return self._bytes

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._bytes += data

    def next(self) -> tuple[int, bytes] | None:
        """Type and body of the next whole message, or None. Raises MessageTooLong once its header is here."""
        if len(self._bytes) < wire.HEADER_SIZE:
            return None
        kind, length = wire.HEADER.unpack_from(self._bytes)
        if not 4 <= length <= self._limit:
            raise MessageTooLong(kind, length)
        if len(self._bytes) <= length:
            return None
        body, self._bytes = self._bytes[wire.HEADER_SIZE : length + 1], self._bytes[length + 1 :]
        return kind, body
