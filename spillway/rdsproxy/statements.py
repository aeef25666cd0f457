"""Named prepared statements for a lenient proxy: made unique per client, so that connections can be shared.

A strict proxy pins a session that names a statement and never comes here. A lenient one lets it move: every name gets
the client's own prefix on the way in, and `database_state.prepare` makes the statements again on a connection that does
not know them. AWS does not say how, or since when exactly, RDS Proxy does this.
"""

from __future__ import annotations

import hashlib

from spillway.rdsproxy import wire
from spillway.rdsproxy.session import ProtocolViolation
from spillway.rdsproxy.wire import BIND, CLOSE, DESCRIBE, HEADER_SIZE, PARSE

_unpack = wire.HEADER.unpack_from
_NAMING = frozenset((PARSE, BIND, DESCRIBE, CLOSE))
#: What the names of portal and statement may have together, in bytes; PostgreSQL tells 63 of each apart.
_MAX_NAMES = 16 * 1024
#: Longer names are the same to PostgreSQL if they begin alike (NAMEDATALEN in its source).
_MAX_NAME = 63


class StatementNames:
    """Puts a prefix before every statement name in one client's requests; the unnamed statement stays unnamed."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._rest = b""
        self._passing = 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the client, whole messages or not; return them renamed. What is no message passes as it is."""
        data = self._rest + data
        self._rest = b""
        position = min(self._passing, len(data))
        self._passing -= position
        pieces: list[bytes] = []
        start = 0
        while len(data) - position >= HEADER_SIZE:
            kind, length = _unpack(data, position)
            end = position + 1 + length
            if length < 4:
                return b"".join(pieces) + data[start:]  # the session will refuse it
            if kind in _NAMING:
                name_start = self._name_at(kind, data, position + HEADER_SIZE, min(end, len(data)))
                name_end = data.find(0, name_start, end) if name_start is not None else position
                if name_end < 0 and end > len(data):
                    if len(data) - position > _MAX_NAMES:
                        raise ProtocolViolation("name too long")
                    break  # the rest of the name is still to come
                if name_start is not None and 0 < name_start < name_end:
                    name = self._own(data[name_start:name_end])
                    pieces += (
                        data[start:position],
                        wire.HEADER.pack(kind, length + len(name) - (name_end - name_start)),
                        data[position + HEADER_SIZE : name_start],
                        name,
                    )
                    start = name_end
            if end > len(data):
                self._passing = end - len(data)
                position = len(data)
                break
            position = end
        self._rest = data[position:]
        return b"".join([*pieces, data[start:position]])

    def _own(self, name: bytes) -> bytes:
        own = self._prefix + name
        return (
            own if len(own) <= _MAX_NAME else self._prefix + hashlib.sha256(name[:_MAX_NAME]).hexdigest()[:32].encode()
        )

    @staticmethod
    def _name_at(kind: int, data: bytes, position: int, end: int) -> int | None:
        """Where the statement's name begins, len(data) where that is still to come; None if the message names none."""
        if kind == BIND:  # the portal's name comes first
            return data.find(0, position, end) + 1 or len(data)
        if kind == PARSE:
            return position
        if position == len(data):
            return position
        return position + 1 if data[position] == ord("S") else None
