"""One connection to the database: the thin shell around its login, its private exchanges and its borrower's session."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from spillway.rdsproxy import wire
from spillway.rdsproxy.database_login import DatabaseRefused
from spillway.rdsproxy.database_state import DatabaseState, Preparation, prepare
from spillway.rdsproxy.session import Desynchronised

if TYPE_CHECKING:
    from collections.abc import Callable

    from spillway.rdsproxy.client import ClientConnection
    from spillway.rdsproxy.database_login import DatabaseLogin
    from spillway.rdsproxy.pool import Identity

log = logging.getLogger("spillway.rdsproxy")


class DatabaseConnection(asyncio.Protocol):
    """Opened by `connect`, then lent to one client after the other.

    `lost` is called once when an established connection is gone, with whether it was lent at that moment.
    """

    def __init__(self, identity: Identity, number: int, lost: Callable[[DatabaseConnection, bool], None]) -> None:
        self.identity = identity
        self.state = DatabaseState(number)
        self.idle_since = 0.0
        #: Whether it takes no more requests for now.
        self.full = False
        #: Whether it may be lent again.
        self.fit = True
        self.client: ClientConnection | None = None
        self.transport: asyncio.Transport
        self._lost: Callable[[DatabaseConnection, bool], None] | None = lost
        self._login: DatabaseLogin | None = None
        self._preparation: Preparation | None = None
        self._prepared: Callable[[Preparation], None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._established = False
        self._reading = True

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def log_in(self, login: DatabaseLogin) -> None:
        """Log in on the new transport. Raises DatabaseRefused, or ConnectionError when the connection ends."""
        self._login = login
        self._ready = asyncio.get_running_loop().create_future()
        self.transport.write(login.start())
        await self._ready
        self._login = None
        self.state.parameter_status.update(login.parameter_status)

    async def ask(self, sql: str) -> str:
        """Run the proxy's own SQL before the connection is lent; returns the first row's first column, or nothing.

        Raises DatabaseRefused with the database's error, or ConnectionError.
        """
        self._ready = asyncio.get_running_loop().create_future()
        preparation = Preparation([(wire.query(sql), None)])
        self._start_preparation(preparation, self._answered)
        await self._ready
        if preparation.error is not None:
            raise DatabaseRefused(preparation.error.get("C", "XX000"), preparation.error.get("M", ""))
        return preparation.value

    def establish(self) -> None:
        """From now on the end of this connection is reported."""
        self._established = True

    def _answered(self, _preparation: Preparation) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    # ── being lent ───────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, client: ClientConnection, first: bytes) -> bool:
        """Begin to serve `client`, whose first requests are `first`. True: at once. False: it will be told."""
        self.client = client
        preparation = prepare(client.session, client.tracked, self.state, first)
        if preparation is None:
            return True
        self._start_preparation(preparation, client.prepared)
        return False

    def detach(self) -> None:
        """The client is served; nothing of it is left here."""
        self.client = None
        self.resume_reading()

    def close(self, reason: str, *, goodbye: bool = True) -> None:
        """End the connection; nobody is told but the log. Without `goodbye` where it could end up inside a message."""
        self._lost = None
        self.client = None
        log.info("[dbConnection=%d] The database connection closed. Reason: %s.", self.state.number, reason)
        if not self.transport.is_closing():
            if goodbye:
                self.transport.write(wire.TERMINATE_MESSAGE)
            self.transport.close()

    def abort(self) -> None:
        """End the connection as if the network had."""
        self._gone(None)
        self.transport.abort()

    def _start_preparation(self, preparation: Preparation, prepared: Callable[[Preparation], None]) -> None:
        self._preparation = preparation
        self._prepared = prepared
        self.transport.write(preparation.messages)

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client is None or self._preparation is not None:
            self._received_by_proxy(data)
            return
        session = client.session
        try:
            answer = session.response(data)
        except Desynchronised:
            log.critical("[dbConnection=%d] The database answered what nobody asked.", self.state.number)
            self.abort()
            return
        try:  # noqa: SIM105  (faster than a context manager)
            client.transport.write(answer)
        except RuntimeError:
            pass  # uvloop's for a transport that has just ended; its protocol hears of it next
        if session.answered:
            if session.surplus:
                surplus, session.surplus = session.surplus, b""
                self.fit = self.state.harmless(surplus)
            client.answered(self)

    def eof_received(self) -> None:
        self._gone(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone(exc)

    def _gone(self, exc: Exception | None) -> None:
        client, self.client = self.client, None
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConnectionError(str(exc) if exc else "the database closed the connection"))
        lost, self._lost = self._lost, None
        if lost is not None and self._established:
            lost(self, client is not None)
        if client is not None:
            client.database_lost()

    def pause_writing(self) -> None:
        self.full = True
        if self.client is not None:
            self.client.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self.client is not None:
            self.client.resume_reading()

    def pause_reading(self) -> None:
        """The client does not read its answer fast enough."""
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The client reads again."""
        if not self._reading:
            self._reading = True
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _received_by_proxy(self, data: bytes) -> None:
        if self._preparation is not None:
            data = self._preparation.feed(data, self.state)
            if self._preparation.finished:
                if data and not self.state.harmless(data):
                    self.abort()  # before a client's answers could begin in the middle of what this is
                    return
                preparation, self._preparation = self._preparation, None
                prepared, self._prepared = self._prepared, None
                if prepared is not None:
                    prepared(preparation)
            return
        if self._login is not None and self._ready is not None:
            try:
                answer = self._login.feed(data)
            except Exception as error:  # (DatabaseRefused, or what a broken server made of the exchange)
                if not self._ready.done():
                    self._ready.set_exception(error)
                return
            if answer:
                self.transport.write(answer)
            if self._login.done and not self._ready.done():
                self._ready.set_result(None)
            return
        if not self.state.harmless(data):
            # The farewell of a server that shuts down, or worse: either way nobody may borrow this any more.
            self.abort()
