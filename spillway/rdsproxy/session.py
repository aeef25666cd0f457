"""One client's conversation with the database, as a state machine without I/O.

Bytes of requests go in and come out as bytes to forward; so do bytes of answers. On the way the session learns the
three things that a transaction-level proxy has to know: which SQL pins, when every request has been answered outside a
transaction (then the database connection may be lent to somebody else), and which prepared statements belong to whom.

Only message headers are looked at, and the text of Query and Parse; everything else is forwarded as it was read.
Message formats and the rules of COPY and of error recovery: PostgreSQL manual, "Frontend/Backend Protocol".

    quiet ──request──▶ busy ──ReadyForQuery(T, E)──▶ in transaction ──…──▶ busy ──ReadyForQuery(I)──▶ quiet (done)
"""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from spillway.rdsproxy import wire
from spillway.rdsproxy.encodings import decodable
from spillway.rdsproxy.pinning import MAX_TEXT, NAMED_STATEMENT, STATEMENT_SIZE, Pin
from spillway.rdsproxy.whole_requests import QUERY_ALONE
from spillway.rdsproxy.wire import (
    CLOSE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    COPY_IN,
    ERROR,
    FLUSH,
    FUNCTION_CALL,
    HEADER_SIZE,
    IDLE,
    PARAMETER_STATUS,
    PARSE,
    PARSE_COMPLETE,
    QUERY,
    READY,
    SYNC,
    TERMINATE,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from spillway.rdsproxy.database_state import DatabaseState
    from spillway.rdsproxy.pinning import Classifier

#: Not AWS's: the emulator keeps a connection whose end of answers it cannot predict, where another proxy might mix up.
IRREGULAR = Pin(
    "irregular-protocol", "The client's requests overlapped in an order whose answers can't be predicted.", "unsettled"
)

_unpack = wire.HEADER.unpack_from
#: Extended-protocol messages that a Sync will answer for.
_EXTENDED = frozenset((wire.BIND, wire.DESCRIBE, wire.EXECUTE, CLOSE))
_COPY = frozenset((COPY_DATA, COPY_DONE, COPY_FAIL))
#: Messages whose SQL text decides about pinning.
_JUDGED = frozenset((QUERY, PARSE))
_KNOWN = _EXTENDED | _COPY | {SYNC, PARSE, QUERY, FUNCTION_CALL, FLUSH, TERMINATE}
#: What means nothing to a database that has nothing to do: libpq sends Flush behind the last Sync of a pipeline.
_IDLE_TALK = _COPY | {FLUSH}
#: The database's messages that change what the session knows.
_TELLING = frozenset((READY, COPY_IN, ERROR, PARAMETER_STATUS))
_TELLING_LENIENT = _TELLING | {PARSE_COMPLETE}
#: An unnamed Parse among those that are not answered yet; and the end of a request.
_UNNAMED, _END = (b"", b""), (b"", b"Z")

#: A Query that extended messages without a Sync precede (asyncpg asks Parse, Describe, Flush first). Had one of them
#: failed, the database would skip the Query and answer only the next Sync.
_DOUBTFUL = 0

#: In an ErrorResponse about COPY's data: where it happened (COPY t, line 1), or who noticed.
_COPY_DATA_ERROR = re.compile(rb"\0W[^\0]*COPY [^\0\n]*, line \d|\0Fcopyfromparse\.c\0")

#: How much of a Parse must be there to judge it: header, a name (PostgreSQL truncates to 63 bytes, clients send more),
#: and a text as long as may be without pinning.
_JUDGEABLE = HEADER_SIZE + 1024 + MAX_TEXT
#: A first request of which this much has been read is under way and worth a database connection, whole or not.
_UNDER_WAY = 32 * 1024


class ProtocolViolation(Exception):
    """A client sent what PostgreSQL's protocol does not allow there; the message says what."""


class Desynchronised(Exception):
    """The database answered what nobody asked. Nothing more may reach this client from that connection."""


class Session:
    """What one client has asked and not yet been answered.

    `done`: every request is answered, no transaction is open and nothing is pinned. `pin`: why the session keeps its
    database connection, or None. `terminated`: the client said goodbye. `database`: the connection lent to it, or None.
    """

    __slots__ = (
        "_classifier", "_copying", "_doubt", "_dropping", "_expected", "_on_pin", "_parses", "_passing",
        "_rest", "_skip", "_swallowed", "_tail", "_unsynced", "answered", "closed", "database", "done", "encoding",
        "irregular", "named", "pin", "status", "surplus", "terminated", "unnamed",
    )  # fmt: skip

    def __init__(self, classifier: Classifier, on_pin: Callable[[Pin, bytes], None] | None = None) -> None:
        self._classifier = classifier
        #: How the client encodes its SQL, as Python names it; None: UTF-8.
        self.encoding: str | None = None
        self._on_pin = on_pin
        self.database: DatabaseState | None = None
        self.pin: Pin | None = None
        self.done = False
        self.terminated = False
        self.status = IDLE
        #: What the database sent behind the last answer: nobody asked for it.
        self.surplus = b""
        #: ReadyForQuery messages seen so far.
        self.answered = 0
        #: The order of requests left the ground that the protocol makes predictable: never lend this connection again.
        self.irregular = False
        #: The client's latest unnamed Parse message: what Bind and Describe of "" mean in a later transaction.
        self.unnamed: bytes | None = None
        #: Named Parse messages by name; always empty where a name pins.
        self.named: dict[bytes, bytes] = {}
        #: Names that were closed at some time; other connections may still have them.
        self.closed: set[bytes] = set()
        self._parses: deque[tuple[bytes, bytes]] = deque()  # of a lenient proxy: not answered yet
        self._expected: deque[int] = deque()  # Query, FunctionCall, Sync not yet answered; CopyDone sent ahead
        self._unsynced = False  # extended messages were sent that no Sync followed yet
        self._doubt = False  # an error came, of a doubtful request or of what preceded it
        self._copying = False  # the database reads COPY data and ignores Sync
        self._swallowed = 0  # Syncs that a database which reads COPY data ignores
        self._rest = b""  # of the client: an incomplete message that must be seen whole
        self._passing = 0  # of the client: bytes still to come of a message that is being forwarded
        self._dropping = 0  # of the client: bytes still to come of a message that nobody wants
        self._tail = b""  # of the database: an incomplete header
        self._skip = 0  # of the database: bytes still to come of a message that is being forwarded

    @property
    def quiet(self) -> bool:
        """Whether everything the client sent has been answered."""
        return not self._expected and not self._unsynced and not self._passing and not self._copying

    def opening(self, data: bytes) -> tuple[bool, bytes]:
        """Judge the first bytes of a client that holds no connection: (worth a connection now, bytes to keep).

        A partial message is kept until it is whole, or large: a client that trickles must not hold a connection. COPY
        data that comes after its COPY failed is dropped, as PostgreSQL does. Raises ProtocolViolation.
        """
        position = 0
        while True:
            dropped = min(self._dropping, len(data) - position)
            self._dropping -= dropped
            position += dropped
            if len(data) - position < HEADER_SIZE:
                if len(data) > position and data[position] not in _KNOWN:
                    raise _unknown(data[position])
                return False, data[position:]
            kind, length = _unpack(data, position)
            if kind in _IDLE_TALK and length >= 4:
                self._dropping = length + 1
                continue
            if kind == TERMINATE:
                self.terminated = True
                return False, b""
            _check(kind, length)
            if position:
                data = data[position:]
            return len(data) > length or len(data) >= _UNDER_WAY, data

    def first_needs_statement(self, data: bytes) -> bool:
        """Whether the first of these requests may reach the unnamed statement that an earlier transaction left.

        Not a Query or an unnamed Parse: they drop it before anything else. Unless they are refused even earlier, for
        bytes that are no message or no text.
        """
        kind, length = _unpack(data)
        if kind == QUERY:
            text_end = data.find(0, HEADER_SIZE)
            text = data[HEADER_SIZE:text_end] if text_end == length else None
        else:
            text = wire.unnamed_parse(data[: length + 1]) if kind == PARSE else None
        return text is None or not decodable(text, self.encoding)

    @property
    def at_rest(self) -> bool:
        """Whether the next byte of the client begins a message, and everything before it has been answered."""
        return not (self._expected or self._unsynced or self._passing or self._copying or self._rest or self._dropping)

    def ask(self, whole: bytes) -> None:
        """Note a request that `WholeRequests` recognised; it is forwarded as it is. Only `at_rest`, with a database."""
        self.done = False
        statement = None if whole is QUERY_ALONE else whole
        self._expected.append(QUERY if statement is None else SYNC)
        self.unnamed = statement
        if self.database is not None:
            self.database.unnamed = statement

    def request(self, data: bytes) -> bytes:  # noqa: PLR0912, PLR0915  (the hot loop: a call per message would halve it)
        """Take bytes of the client; return what to forward. Needs a database. Raises ProtocolViolation."""
        self.done = False
        position = 0
        if self._rest:
            data = self._rest + data
            self._rest = b""
        elif self._passing:
            if len(data) <= self._passing:
                self._passing -= len(data)
                self._settle()
                return data
            position, self._passing = self._passing, 0
        elif self._dropping:
            dropped = min(self._dropping, len(data))
            self._dropping -= dropped
            data = data[dropped:]
        started_at = position
        kept: list[bytes] | None = None  # set once something is left out
        start = 0
        size = len(data)
        while size - position >= HEADER_SIZE:
            kind, length = _unpack(data, position)
            end = position + 1 + length
            if kind not in _KNOWN or length < 4:
                _check(kind, length)
            if end > size and kind in _JUDGED and not _judgeable(kind, length, size - position):
                break
            if kind in _EXTENDED:
                self._unsynced = True
                if kind == CLOSE and self.named:
                    self._close(data, position, end)
            elif kind == SYNC:
                self._sync()
            elif kind == PARSE:
                self._parse(data, position, end)
            elif kind == QUERY:
                self._query(data, position, end)
            elif kind == FUNCTION_CALL:
                self._alone(FUNCTION_CALL)
            elif kind == TERMINATE:
                self.terminated = True
                data, size = data[:position], position
                break
            elif kind != FLUSH and not self._copy(kind):
                kept = kept or []
                kept.append(data[start:position])
                start = min(end, size)
                self._dropping = max(end - size, 0)
                position = start
                continue
            if end >= size:
                self._passing = end - size
                position = size
                break
            position = end
        if position < size:
            self._rest = data[position:]
            if data[position] not in _KNOWN:
                raise _unknown(data[position])
        if started_at and not (self._skip or self._tail):
            self._settle()
        if kept is not None:
            kept.append(data[start:position])
            return b"".join(kept)
        return data if position == size else data[:position]

    def response(self, data: bytes) -> bytes:  # noqa: PLR0912  (as above)
        """Take bytes of the database; return what to forward. Raises Desynchronised."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        position, size = self._skip, len(data)
        telling = _TELLING_LENIENT if self._parses else _TELLING
        while position < size:
            if size - position < HEADER_SIZE:
                break
            kind, length = _unpack(data, position)
            end = position + 1 + length
            if kind in telling:
                if kind == PARSE_COMPLETE:
                    self._parsed()
                elif kind == ERROR:
                    if end > size and self._swallowed:
                        break
                    self._error(data, position, end)
                elif kind == COPY_IN:
                    self._copy_in()
                elif end > size:
                    break
                elif kind == READY:
                    if self._ready(data[position + HEADER_SIZE]):
                        self._skip = 0
                        self.surplus = data[end:]
                        return data[:end] if end < size else data
                elif self.database is not None:
                    self.database.report(data[position + HEADER_SIZE : end])
            position = end
        if position >= size:
            self._skip = position - size
        else:
            self._skip = 0
            self._tail = data[position:]
            data = data[:position]
        return data

    def attach(self, database: DatabaseState) -> None:
        """Begin to talk to a database connection."""
        self.database = database
        self.done = False
        self.status = IDLE

    def detach(self) -> bytes:
        """Give the connection back; returns the beginning of a next request that was read already."""
        self.database = None
        self.done = False
        rest, self._rest = self._rest, b""
        return rest

    # ── what the client sends ────────────────────────────────────────────────────────────────────────────────────

    def _query(self, data: bytes, position: int, end: int) -> None:
        self._alone(QUERY)
        # A simple query destroys the unnamed statement (PostgreSQL manual, "Extended Query").
        self.unnamed = None
        if self.database is not None:
            self.database.unnamed = None
        if end > len(data):
            self._pin(STATEMENT_SIZE, data[position + HEADER_SIZE :])
        elif data[end - 1]:
            raise ProtocolViolation("invalid string in message")
        else:
            self._judge(data[position + HEADER_SIZE : end - 1])

    def _parse(self, data: bytes, position: int, end: int) -> None:
        self._unsynced = True
        limit = min(end, len(data))
        name_end = data.find(0, position + HEADER_SIZE, limit)
        text_end = data.find(0, name_end + 1, limit) if name_end >= 0 else -1
        if text_end < 0:
            if end <= len(data):
                raise ProtocolViolation("invalid string in message")
            self._pin(STATEMENT_SIZE, data[position + HEADER_SIZE : limit])
            return
        self._judge(data[name_end + 1 : text_end])
        if name_end > position + HEADER_SIZE:
            self._parse_named(data, position, name_end, text_end, end)
        elif end <= len(data):
            if not self._classifier.strict:
                self._parses.append(_UNNAMED)
            self.unnamed = data[position:end]
            if self.database is not None:
                self.database.unnamed = self.unnamed
        else:  # only its parameter types are large: too rare to remember the statement, so keep the connection
            self._lose_track()

    def _parse_named(self, data: bytes, position: int, name_end: int, text_end: int, end: int) -> None:
        if self._classifier.strict or end > len(data):
            self._pin(NAMED_STATEMENT, data[name_end + 1 : text_end])
            return
        self._parses.append((data[position + HEADER_SIZE : name_end], data[position:end]))

    def _close(self, data: bytes, position: int, end: int) -> None:
        if data[position + HEADER_SIZE : position + HEADER_SIZE + 1] == b"S":
            name = data[position + HEADER_SIZE + 1 : end - 1]
            if self.named.pop(name, None) is not None:
                self.closed.add(name)
            if self.database is not None:
                self.database.named.pop(name, None)

    def _parsed(self) -> None:
        """A Parse succeeded; remember the statement if it has a name."""
        if self._parses:
            name, statement = self._parses.popleft()
            if name and self.database is not None:
                self.named[name] = self.database.named[name] = statement

    def _judge(self, text: bytes) -> None:
        if self.encoding is not None:
            with suppress(UnicodeDecodeError):
                text = text.decode(self.encoding).encode()
        pin = self._classifier.verdict(text)
        if pin is not None:
            self._pin(pin, text)

    def _pin(self, pin: Pin, text: bytes) -> None:
        if self.pin is None:
            self.pin = pin
            if self._on_pin is not None:
                self._on_pin(pin, text)

    def _lose_track(self) -> None:
        self.irregular = True
        self._pin(IRREGULAR, b"")

    def _sync(self) -> None:
        if self._copying:
            self._swallowed += 1
            return
        if self._doubt:
            self._lose_track()
        self._unsynced = False
        self._expected.append(SYNC)
        if self._parses:
            self._parses.append(_END)

    def _alone(self, kind: int) -> None:
        """A request that is answered without a Sync, and settles what came before without one."""
        self._expected.append(_DOUBTFUL if self._unsynced else kind)
        self._unsynced = False
        if self._parses:
            self._parses.append(_END)

    def _copy(self, kind: int) -> bool:
        if self._copying:
            self._copying = kind == COPY_DATA
            return True
        if not self._expected and not self._unsynced:
            return False  # what is left of a COPY that failed; PostgreSQL ignores it too
        if kind != COPY_DATA:
            self._expected.append(kind)
        return True

    # ── what the database answers ────────────────────────────────────────────────────────────────────────────────

    def _ready(self, status: int) -> bool:
        """A request has been answered. True: it was the last, and the connection is free."""
        self.answered += 1
        self.status = status
        if self._parses or self.irregular:
            while self._parses and self._parses.popleft() is not _END:
                pass  # skipped after an error
            if self.irregular:
                return False
        self._doubt = False
        self._swallowed = 0
        expected = self._expected
        while expected:
            if expected.popleft() not in _COPY:
                break
        else:
            raise Desynchronised
        if expected and not self._unsynced and all(kind in _COPY for kind in expected):
            expected.clear()
        if status == IDLE and not expected:
            self._settle()
        return self.done

    def _error(self, data: bytes, position: int, end: int) -> None:
        self._copying = False
        if self._expected and self._expected[0] == _DOUBTFUL:
            self._doubt = True
        # A Sync ahead of COPY's data is ignored if the database has read it when the COPY fails, and answered if not: a
        # view or a trigger can end a COPY before it reads anything. What is wrong with the data comes after the Sync.
        unread = self._swallowed and not _COPY_DATA_ERROR.search(data, position, end)
        if unread or (self._doubt and len(self._expected) > 1):
            self._lose_track()

    def _copy_in(self) -> None:
        """The database asks for COPY data: until it has been told the end, it ignores every Sync."""
        ahead = list(self._expected)
        simple = ahead[:1] in ([QUERY], [_DOUBTFUL])
        current, ahead = (ahead[:1], ahead[1:]) if simple else ([], ahead)
        ends = [index for index, kind in enumerate(ahead) if kind in _COPY]
        before, after = (ahead[: ends[0]], ahead[ends[0] + 1 :]) if ends else (ahead, [])
        if any(kind != SYNC for kind in before) or (simple and before):
            self._lose_track()
        self._copying = not ends
        self._swallowed = len(before)
        if not simple and SYNC not in after:
            self._unsynced = True
        self._expected = deque(current + after)

    def _settle(self) -> None:
        if self.status == IDLE and self.pin is None and self.quiet:
            self.done = True


def _judgeable(kind: int, length: int, available: int) -> bool:
    """Whether a Query or Parse that is not whole yet can be forwarded: what is there pins by its size."""
    return length - HEADER_SIZE > MAX_TEXT if kind == QUERY else available >= _JUDGEABLE


def _check(kind: int, length: int) -> None:
    if kind not in _KNOWN:
        raise _unknown(kind)
    if length < 4:
        raise ProtocolViolation("invalid message length")


def _unknown(kind: int) -> ProtocolViolation:
    return ProtocolViolation(f"invalid frontend message type {kind}")
