"""The short cut for what most clients send: one read that is one whole request whose statement is known not to pin.

`Session.request` understands everything, message by message. Nearly all traffic of a multiplexed proxy is a Query, or
an unnamed Parse with Bind, Describe, Execute and Sync, in one read; to recognise those takes two look-ups. Measured on
pgbench's select-only transaction, this halves the proxy's own time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.rdsproxy import wire
from spillway.rdsproxy.wire import BIND, HEADER_SIZE, PARSE, QUERY, SYNC_MESSAGE

if TYPE_CHECKING:
    from spillway.rdsproxy.pinning import Classifier

_unpack = wire.HEADER.unpack_from
_EXECUTE = wire.message(wire.EXECUTE, b"\0\0\0\0\0") + SYNC_MESSAGE  # the unnamed portal, all rows
_TAILS = frozenset((_EXECUTE, wire.message(wire.DESCRIBE, b"P\0") + _EXECUTE))
#: What is remembered at most: Parse messages, and their longest size in bytes.
_MAX_PARSES, _MAX_PARSE = 2_000, 4_096

#: What `recognise` answers for a Query; for the extended protocol it answers the Parse message.
QUERY_ALONE = b""


class WholeRequests:
    """Recognises whole requests. One for all clients of a proxy, so that equal Parse messages are the same object."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._parses: dict[bytes, bytes] = {}

    def recognise(self, data: bytes) -> bytes | None:  # noqa: PLR0911
        """QUERY_ALONE, or the unnamed Parse message that `data` begins with; None where the short cut is not safe.

        What is recognised is well-formed, valid UTF-8, and pins nothing.
        """
        size = len(data)
        if size < HEADER_SIZE:
            return None
        kind, length = _unpack(data)
        if kind == QUERY:
            if size != length + 1 or data.find(0, HEADER_SIZE) != length:
                return None
            return QUERY_ALONE if self._classifier.verdict(data[HEADER_SIZE:-1]) is None else None
        if kind != PARSE:
            return None
        position = length + 1
        if size - position < HEADER_SIZE:
            return None
        message = data[:position]
        parse = self._parses.get(message) or self._learn(message)
        kind, length = _unpack(data, position)
        if parse is None or kind != BIND or length < 4:
            return None
        return parse if data[position + 1 + length :] in _TAILS else None

    def _learn(self, message: bytes) -> bytes | None:
        text = wire.unnamed_parse(message)
        if len(message) > _MAX_PARSE or text is None or self._classifier.verdict(text) is not None:
            return None
        if len(self._parses) >= _MAX_PARSES:
            self._parses.clear()
        self._parses[message] = message
        return message
