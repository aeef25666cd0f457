"""What a database connection remembers between two borrowers, and how it is made ready for the next one.

RDS Proxy documents that it tracks six start-up parameters and applies them without pinning. Making ready is a private
exchange before the client's first byte: its answers reach nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.rdsproxy import wire
from spillway.rdsproxy.startup import TRACKED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spillway.rdsproxy.session import Session

#: What a database may send by itself.
_UNASKED = frozenset((wire.NOTICE, wire.PARAMETER_STATUS, wire.NOTIFICATION))

#: Values of the tracked parameters in the order of TRACKED; None where the client named none.
Tracked = tuple[str | None, ...]
UNTRACKED: Tracked = (None,) * len(TRACKED)


#: The tracked parameters' values as a JSON array, in the order of TRACKED.
DEFAULTS_SQL = (
    f"SELECT pg_catalog.json_build_array({', '.join(f'pg_catalog.current_setting({name!r})' for name in TRACKED)})"
)


class DatabaseState:
    """One database connection as the protocol sees it.

    `tracked`: the start-up parameters in force. `unnamed`: the Parse message behind its unnamed statement. `named`:
    the Parse messages of its named statements, of all clients; only a lenient proxy has any. `parameter_status`: what
    the database reported, latest values. `number`: its name in logs.
    """

    __slots__ = ("defaults", "named", "number", "parameter_status", "stale", "tracked", "unnamed")

    def __init__(self, number: int) -> None:
        self.number = number
        self.tracked = UNTRACKED
        self.unnamed: bytes | None = None
        self.named: dict[bytes, bytes] = {}
        #: Names of statements whose clients are gone.
        self.stale: list[bytes] = []
        self.parameter_status: dict[str, str] = {}
        #: Values of the tracked parameters where the initialization query may have set some; None: RESET is right.
        self.defaults: Tracked | None = None

    def harmless(self, data: bytes) -> bool:
        """Take what came unasked: whole notices, changed parameters and notifications are no reason to worry."""
        position = 0
        while len(data) - position >= wire.HEADER_SIZE:
            kind, length = wire.HEADER.unpack_from(data, position)
            end = position + 1 + length
            if kind not in _UNASKED or end > len(data):
                return False
            if kind == wire.PARAMETER_STATUS:
                self.report(data[position + wire.HEADER_SIZE : end])
            position = end
        return position == len(data)

    def report(self, body: bytes) -> None:
        """Take a ParameterStatus message's body."""
        name, _, value = body.rstrip(b"\0").partition(b"\0")
        self.parameter_status[name.decode(errors="replace")] = value.decode(errors="replace")


class Preparation:
    """A private exchange: `messages` to send, then `feed` with the answers until `finished`.

    `error`: the fields of the first error whose exchange must succeed; the client cannot be served then.
    """

    __slots__ = ("_buffer", "_pending", "error", "messages", "value")

    def __init__(self, exchanges: list[tuple[bytes, bytes | None]]) -> None:
        """`exchanges`: requests that end in one ReadyForQuery each, with the statement name it is about, or None."""
        self.messages = b"".join(request for request, _ in exchanges)
        self._pending = [name for _, name in exchanges]
        self._buffer = b""
        self.error: dict[str, str] | None = None
        #: The first column of the first row that came back.
        self.value = ""

    @property
    def finished(self) -> bool:
        """Whether every exchange has been answered."""
        return not self._pending

    def feed(self, data: bytes, database: DatabaseState) -> bytes:
        """Take the database's answers; returns what came after the last one."""
        data = self._buffer + data
        position = 0
        while self._pending and len(data) - position >= wire.HEADER_SIZE:
            kind, length = wire.HEADER.unpack_from(data, position)
            end = position + 1 + length
            if end > len(data):
                break
            body = data[position + wire.HEADER_SIZE : end]
            if kind == wire.READY:
                self._pending.pop(0)
            elif kind == wire.PARAMETER_STATUS:
                database.report(body)
            elif kind == wire.DATA_ROW and not self.value:
                self.value = wire.first_column(body)
            elif kind == wire.ERROR:
                name = self._pending[0]
                if name is not None:
                    database.named.pop(name, None)
                elif self.error is None:
                    self.error = wire.error_fields(body)
            position = end
        if self._pending:
            self._buffer = data[position:]
            return b""
        self._buffer = b""
        return data[position:]


def prepare(session: Session, tracked: Tracked, database: DatabaseState, first: bytes) -> Preparation | None:
    """What must happen on `database` before `session`'s requests, beginning with `first`, may be sent; None: nothing.

    Afterwards the state is as if it had happened: on an error the connection must not be used.
    """
    exchanges: list[tuple[bytes, bytes | None]] = []
    if database.tracked is not tracked and database.tracked != tracked:
        exchanges.append((wire.query(settings_sql(database.tracked, tracked, database.defaults)), None))
        database.unnamed = None  # destroyed by every simple query
    database.tracked = tracked
    if database.unnamed is not session.unnamed and first and session.first_needs_statement(first):
        # The unnamed statement that the client made in an earlier transaction, on whichever connection that was; or
        # none, so that nobody executes what another client left behind.
        restore = session.unnamed or wire.close_statement(b"")
        exchanges.append((restore + wire.SYNC_MESSAGE, b""))
        database.unnamed = session.unnamed
    if database.stale:
        closes = b"".join(wire.close_statement(name) for name in database.stale)
        exchanges.append((closes + wire.SYNC_MESSAGE, None))
        database.stale.clear()
    for name in session.closed.intersection(database.named):
        if name not in session.named:
            exchanges.append((wire.close_statement(name) + wire.SYNC_MESSAGE, name))
            del database.named[name]
    for name, statement in session.named.items():
        if database.named.get(name) is not statement:
            exchanges.append((wire.close_statement(name) + statement + wire.SYNC_MESSAGE, name))
            database.named[name] = statement
    return Preparation(exchanges) if exchanges else None


def settings_sql(before: Tracked, after: Tracked, defaults: Tracked | None = None) -> str:
    """SQL, in ASCII, that changes the tracked parameters from one client's values to another's.

    `defaults`: what is in force where a client names nothing; None: what RESET says.
    """
    statements, values = [], []
    for index, name in enumerate(TRACKED):
        if before[index] == after[index]:
            continue
        value = after[index] if after[index] is not None or defaults is None else defaults[index]
        if value is None:
            statements.append(f'RESET "{name}"')  # pins: allow this is the proxy itself, talking to the database
        else:
            values.append(f"pg_catalog.set_config('{name}', {literal(value)}, false)")
    if values:
        statements.append("SELECT " + ", ".join(values))
    return "; ".join(statements)


def tracked_values(parameters: Mapping[str, str]) -> Tracked:
    """A client's start-up parameters in the order of TRACKED."""
    return tuple(parameters.get(name) for name in TRACKED)


def literal(text: str) -> str:
    """An SQL string that means `text` whatever the client encoding and standard_conforming_strings are."""
    return " E'" + "".join(map(_escape, text)) + "'"


def _escape(character: str) -> str:
    code = ord(character)
    if code > 0x7F:
        return f"\\U{code:08X}"
    return character * 2 if character in "\\'" else character
