"""PostgreSQL's frontend/backend protocol, version 3: message types, and the few messages that the proxy writes itself.

Layout of every message after start-up: one byte type, four bytes length (big-endian, counting itself), then the body
(PostgreSQL manual, "Frontend/Backend Protocol", section "Message Formats").
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

#: Type and length of a message.
HEADER = struct.Struct("!BI")
INT32 = struct.Struct("!I")
HEADER_SIZE = HEADER.size

PROTOCOL_3_0 = 3 << 16
SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102

#: PostgreSQL's own limit on a start-up packet (MAX_STARTUP_PACKET_LENGTH in its source, src/include/libpq/pqcomm.h).
MAX_STARTUP_PACKET = 10_000

# What a client sends.
BIND, CLOSE, DESCRIBE, EXECUTE, FLUSH, PARSE, SYNC = b"BCDEHPS"
QUERY, FUNCTION_CALL, PASSWORD, TERMINATE = b"QFpX"
# What both send.
COPY_DATA, COPY_DONE, COPY_FAIL = b"dcf"
# What a database sends.
AUTHENTICATION, BACKEND_KEY_DATA, COPY_IN, ERROR, NOTICE, PARAMETER_STATUS, READY = b"RKGENSZ"
DATA_ROW, NOTIFICATION, PARSE_COMPLETE = b"DA1"
NEGOTIATE_PROTOCOL_VERSION = ord("v")

#: Transaction status in ReadyForQuery.
IDLE, IN_TRANSACTION, FAILED_TRANSACTION = b"ITE"

SYNC_MESSAGE = b"S\x00\x00\x00\x04"
TERMINATE_MESSAGE = b"X\x00\x00\x00\x04"


def message(kind: int, body: bytes = b"") -> bytes:
    """One message, whole."""
    return HEADER.pack(kind, len(body) + 4) + body


def cstring(text: str | bytes) -> bytes:
    """A zero-terminated string."""
    return (text.encode() if isinstance(text, str) else text) + b"\0"


def query(text: str) -> bytes:
    """A simple query."""
    return message(QUERY, cstring(text))


def parse(name: bytes, rest: bytes) -> bytes:
    """A Parse message: `rest` is all after the name, that is the text and the parameter types."""
    return message(PARSE, name + b"\0" + rest)


def unnamed_parse(message: bytes) -> bytes | None:
    """The text of a whole, well-formed Parse message for the unnamed statement; None for anything else."""
    text_end = message.find(0, HEADER_SIZE + 1)
    if message[HEADER_SIZE : HEADER_SIZE + 1] != b"\0" or text_end < 0:
        return None
    types = int.from_bytes(message[text_end + 1 : text_end + 3], "big")
    return message[HEADER_SIZE + 1 : text_end] if text_end + 3 + 4 * types == len(message) else None


def close_statement(name: bytes) -> bytes:
    """A Close message for a prepared statement; closing one that does not exist is no error."""
    return message(CLOSE, b"S" + name + b"\0")


def ready(status: int = IDLE) -> bytes:
    """ReadyForQuery."""
    return HEADER.pack(READY, 5) + bytes((status,))


def parameter_status(name: str, value: str) -> bytes:
    """ParameterStatus."""
    return message(PARAMETER_STATUS, cstring(name) + cstring(value))


def error_response(severity: str, sqlstate: str, text: str) -> bytes:
    """ErrorResponse with the fields every client expects: severity (twice), SQLSTATE and text."""
    fields = b"".join(
        code + cstring(value) for code, value in ((b"S", severity), (b"V", severity), (b"C", sqlstate), (b"M", text))
    )
    return message(ERROR, fields + b"\0")


def error_fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse by their one-letter codes; undecodable bytes are replaced."""
    fields = {}
    for field in body.split(b"\0"):
        if field:
            fields[chr(field[0])] = field[1:].decode(errors="replace")
    return fields


def first_column(body: bytes) -> str:
    """The first column of a DataRow in text format; NULL and no column give nothing."""
    length = int.from_bytes(body[2:6], "big", signed=True)
    return body[6 : 6 + length].decode(errors="replace") if length > 0 else ""


def startup_message(parameters: Mapping[str, str]) -> bytes:
    """The start-up packet of protocol 3.0."""
    body = INT32.pack(PROTOCOL_3_0) + cstring_pairs(parameters.items()) + b"\0"
    return INT32.pack(len(body) + 4) + body


def cstring_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Names and values, each zero-terminated."""
    return b"".join(cstring(name) + cstring(value) for name, value in pairs)
