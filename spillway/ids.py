"""Event ids: minted in time order for new events, derived from the text for events read from a file."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from uuid import UUID

_VERSION_7 = 0x7 << 76
_VERSION_8 = 0x8 << 76
_VARIANT = 0b10 << 62

#: RFC 9562, 6.2 method 1: a counter of 42 bits behind the millisecond, as CPython 3.14's uuid.uuid7() has it.
_COUNTER_BITS = 42
#: A fresh counter starts with its top bit clear, which leaves 2**41 ids in a millisecond before it can overflow.
_COUNTER_SEED_BITS = _COUNTER_BITS - 1
_TAIL_BITS = 32

#: Keeps ids derived here apart from any other SHA-256 of the same text.
_TEXT_NAMESPACE = b"spillway event by text\0"


class UUID7:
    """Mints UUIDs of version 7 (RFC 9562, 5.7); each is greater than all that this object minted before.

    `clock` gives nanoseconds since the epoch, `random` that many random bits. When the clock stands still or steps
    back, the last millisecond stays and the counter grows. Safe to call from any thread.
    """

    def __init__(
        self, *, clock: Callable[[], int] = time.time_ns, random: Callable[[int], int] = secrets.randbits
    ) -> None:
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._millisecond = -1
        self._counter = 0

    def __call__(self) -> UUID:
        """The next id."""
        with self._lock:
            now = self._clock() // 1_000_000
            if now > self._millisecond:
                self._restart(now)
            else:
                self._counter += 1
                if self._counter >> _COUNTER_BITS:
                    self._restart(self._millisecond + 1)
            millisecond, counter = self._millisecond, self._counter
        return _version_7(millisecond, counter, self._random(_TAIL_BITS))

    def _restart(self, millisecond: int) -> None:
        self._millisecond = millisecond
        self._counter = self._random(_COUNTER_SEED_BITS)


def _version_7(millisecond: int, counter: int, tail: int) -> UUID:
    high, low = counter >> 30, counter & (2**30 - 1)
    return UUID(int=millisecond << 80 | _VERSION_7 | high << 64 | _VARIANT | low << _TAIL_BITS | tail)


#: One per process, so that ids of one process never run backwards.
uuid7 = UUID7()


def id_of_text(text: bytes, occurrence: int) -> UUID:
    """The id of an event that carries none: a UUID of version 8 from its text and how often that text came before.

    The same file gives the same ids however often it is read, and an edit changes only the ids of the edited lines.
    `occurrence` counts from 0 and makes identical lines distinct events.
    """
    digest = hashlib.sha256(_TEXT_NAMESPACE + occurrence.to_bytes(8, "big") + text).digest()
    bits = int.from_bytes(digest[:16], "big")
    bits &= ~(0xF << 76 | 0b11 << 62)
    return UUID(int=bits | _VERSION_8 | _VARIANT)
