"""A PostgreSQL client made of bytes: the test writes every message itself, and nothing is repaired on the way."""

from __future__ import annotations

import asyncio
import logging
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self

from spillway.rdsproxy import wire
from spillway.rdsproxy.database_login import DatabaseLogin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from spillway.rdsproxy.settings import Target

SYNC, FLUSH, COPY_DONE = wire.SYNC_MESSAGE, wire.message(wire.FLUSH), wire.message(wire.COPY_DONE)
#: How long an answer may take on a machine that has other things to do.
PATIENCE_S = 30.0

Message = tuple[int, bytes]


class Closed(Exception):
    """The connection ended where an answer was expected; `partial` is what had come of the message."""

    def __init__(self, partial: bytes = b"") -> None:
        super().__init__(partial)
        self.partial = partial


class WireClient:
    """One connection; `login` says who it is. Use `connected`, or `open` and `log_in`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """A socket and nothing more."""
        return cls(*await asyncio.open_connection(host, port))

    @classmethod
    async def connect(cls, host: str, port: int, target: Target, **parameters: str) -> Self:
        """A client that is logged in as the target's user."""
        client = await cls.open(host, port)
        try:
            await client.log_in(target, **parameters)
        except BaseException:
            client.abort()
            raise
        return client

    async def log_in(self, target: Target, **parameters: str) -> None:
        """Start-up and authentication until ReadyForQuery. Raises DatabaseRefused or Closed."""
        login = DatabaseLogin(target.user, target.password, target.database, parameters)
        self.send(login.start())
        async with asyncio.timeout(PATIENCE_S):
            while not login.done:
                kind, body = await self.message()
                self.send(login.feed(wire.message(kind, body)))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def message(self) -> Message:
        """The next message. Raises Closed."""
        try:
            kind, length = wire.HEADER.unpack(await self.reader.readexactly(wire.HEADER_SIZE))
            return kind, await self.reader.readexactly(length - 4)
        except asyncio.IncompleteReadError as end:
            raise Closed(end.partial) from None
        except ConnectionError:
            raise Closed from None

    async def until(self, *kinds: int) -> list[Message]:
        """The messages up to the first of one of these kinds. Raises Closed, or TimeoutError with what has come."""
        messages: list[Message] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not messages or messages[-1][0] not in kinds:
                    messages.append(await self.message())
        except TimeoutError:
            raise TimeoutError(f"still waiting behind {messages!r:.500}") from None
        return messages

    async def answer(self) -> list[Message]:
        """The messages up to ReadyForQuery."""
        return await self.until(wire.READY)

    async def ask(self, *messages: bytes) -> list[Message]:
        """Send, and read one answer up to ReadyForQuery."""
        self.send(b"".join(messages))
        return await self.answer()

    async def value(self, sql: str) -> str:
        """The first value that a simple query returns."""
        return values(await self.ask(wire.query(sql)))[0]

    async def ended(self) -> list[Message]:
        """What comes until the connection ends; a partial message is left out."""
        messages = []
        with suppress(Closed):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    messages.append(await self.message())
        return messages

    def abort(self) -> None:
        """End the connection without a goodbye."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Say goodbye."""
        with suppress(ConnectionError):
            self.send(wire.TERMINATE_MESSAGE)
            self.writer.close()
            await self.writer.wait_closed()


@asynccontextmanager
async def connected(host: str, port: int, target: Target, **parameters: str) -> AsyncIterator[WireClient]:
    client = await WireClient.connect(host, port, target, **parameters)
    try:
        yield client
    finally:
        client.abort()


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse(text: str | bytes, name: bytes = b"", types: int = 0) -> bytes:
    return wire.parse(name, wire.cstring(text) + struct.pack("!H", types) + bytes(4 * types))


def bind(*values: str | bytes, portal: bytes = b"", statement: bytes = b"") -> bytes:
    """Values in text format, results too."""
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    body = b"".join(struct.pack("!I", len(value)) + value for value in encoded)
    head = portal + b"\0" + statement + b"\0\0\0" + struct.pack("!H", len(encoded))
    return wire.message(wire.BIND, head + body + b"\0\0")


def describe(statement: bytes = b"") -> bytes:
    return wire.message(wire.DESCRIBE, b"S" + statement + b"\0")


def execute(portal: bytes = b"", rows: int = 0) -> bytes:
    return wire.message(wire.EXECUTE, portal + b"\0" + struct.pack("!I", rows))


def copy_data(data: str | bytes) -> bytes:
    return wire.message(wire.COPY_DATA, data.encode() if isinstance(data, str) else data)


def copy_fail(why: str) -> bytes:
    return wire.message(wire.COPY_FAIL, wire.cstring(why))


def extended(text: str, *arguments: str) -> bytes:
    """Parse, Bind, Describe and Execute of the unnamed statement, without Sync."""
    return parse(text) + bind(*arguments) + wire.message(wire.DESCRIBE, b"P\0") + execute()


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def kinds(messages: list[Message]) -> str:
    """The types of messages as one word, such as "TDCZ"; parameters that changed are left out."""
    return "".join(chr(kind) for kind, _ in messages if kind != wire.PARAMETER_STATUS)


def values(messages: list[Message]) -> list[str]:
    """The first column of every row."""
    return [wire.first_column(body) for kind, body in messages if kind == wire.DATA_ROW]


def texts(messages: list[Message], kind: int = wire.ERROR) -> list[str]:
    """The texts of errors, or of notices."""
    return [wire.error_fields(body).get("M", "") for one, body in messages if one == kind]


def status(messages: list[Message]) -> str:
    """The transaction status of the last ReadyForQuery."""
    return next(chr(body[0]) for kind, body in reversed(messages) if kind == wire.READY)


# ── what must not be logged ──────────────────────────────────────────────────────────────────────────────────────────


class Complaints(logging.Handler):
    """Collects every traceback, error and critical message: an event loop reports what nobody caught as one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._formatter = logging.Formatter("%(name)s: %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.seen.append(self._formatter.format(record))


def complaints() -> Iterator[Complaints]:
    """For a fixture: fails when anything was complained about."""
    handler = Complaints()
    logging.getLogger().addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger().removeHandler(handler)
    assert not handler.seen, "\n\n".join(handler.seen)
