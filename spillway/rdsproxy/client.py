"""One client connection: the thin shell around its login and its session.

login ──▶ quiet ──first request──▶ waiting ──lent──▶ (preparing) ──▶ talking ──done──▶ quiet
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from spillway.rdsproxy import errors, wire
from spillway.rdsproxy.certificates import ALPN
from spillway.rdsproxy.client_login import LoginRefused
from spillway.rdsproxy.database_state import UNTRACKED, Tracked, tracked_values
from spillway.rdsproxy.encodings import python_codec
from spillway.rdsproxy.errors import Refused
from spillway.rdsproxy.pool import Identity
from spillway.rdsproxy.session import ProtocolViolation, Session
from spillway.rdsproxy.startup import Request, Startup, StartupBuffer, parse_startup
from spillway.rdsproxy.statements import StatementNames
from spillway.rdsproxy.wire import IDLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spillway.rdsproxy.client_login import ClientLogin
    from spillway.rdsproxy.database import DatabaseConnection
    from spillway.rdsproxy.database_state import Preparation
    from spillway.rdsproxy.errors import ProxyError
    from spillway.rdsproxy.pinning import Pin
    from spillway.rdsproxy.proxy import RdsProxy

log = logging.getLogger("spillway.rdsproxy")
_clock = time.perf_counter

#: Bytes waiting for a client before its database connection stops being read, and when it starts again.
_HIGH_WATER = 256 * 1024
#: Bytes a client may send ahead while it waits for a database connection.
_MAX_HELD = 64 * 1024
#: AWS's words for a client that vanished.
_CUT = (
    "The client connection that borrowed this database connection from the connection pool was closed in the middle of "
    "a request"
)
#: How long a client may take to read why it was refused, in seconds.
_FAREWELL_S = 5.0
_KEY = struct.Struct("!II")
_NOBODY = Identity("", "")

# Why the client's socket is not read.
_WAITING, _DATABASE_FULL, _DELAYED = 1, 2, 4


class ClientConnection(asyncio.Protocol):
    """A client from its start-up packet on; whatever TLS needed has happened before."""

    __slots__ = (
        "_admitted", "_arrived_at", "_asked_at", "_delayed", "_direct_tls", "_held", "_login", "_names", "_paused",
        "_plain", "_proxy", "_startup", "_timer", "_unread", "_writable", "active_at", "address", "application_name",
        "born_at", "database", "deadline", "identity", "logged_in", "number", "session", "tls", "tracked", "transport",
        "waiting_since", "wants_database",
    )  # fmt: skip

    def __init__(self, proxy: RdsProxy, address: str, number: int, *, tls: bool, direct_tls: bool = False) -> None:
        self._proxy = proxy
        self.address = address
        self.number = number
        self.tls = tls
        self._direct_tls = direct_tls
        self.session = Session(proxy.classifier, self._pinned)
        self.identity = _NOBODY
        self.tracked: Tracked = UNTRACKED
        self.application_name = ""
        self.database: DatabaseConnection | None = None
        self.wants_database = False
        self.deadline = self.waiting_since = 0.0
        self.transport: asyncio.Transport
        self.born_at = self.active_at = proxy.loop.time()
        self._names = None if proxy.settings.strict else StatementNames(b"c%d_" % number)
        self._startup: StartupBuffer | None = StartupBuffer()
        self._login: ClientLogin | None = None
        self._held = b""  # requests that no database connection has been lent for yet
        self._delayed: deque[bytes] = deque()
        self._paused = 0
        #: Whether its requests may take the short cut: they need no decoding and no renaming.
        self._plain = False
        self._writable = True
        self._arrived_at = self._asked_at = 0.0
        self._unread: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._admitted = False
        #: Whether the client may send requests.
        self.logged_in = False

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._proxy.clients.add(self)
        self._timer = self._proxy.loop.call_later(self._proxy.settings.startup_timeout, self._startup_expired)
        if self._direct_tls:
            # Without it, a handshake meant for another protocol could be replayed here (PostgreSQL manual, "SSL
            # Session Encryption"); PostgreSQL insists on it too.
            secure = self.transport.get_extra_info("ssl_object")
            if secure is None or secure.selected_alpn_protocol() != ALPN:
                self.refuse(errors.protocol_violation("direct TLS without the ALPN protocol postgresql"))

    def data_received(self, data: bytes) -> None:
        session = self.session
        if self._plain and session.at_rest and not self._held and not self._proxy.latency:
            whole = self._proxy.whole_requests.recognise(data)
            if whole is not None and self._forward_whole(whole, data):
                return
        if self._names is not None and self.logged_in:
            try:
                data = self._names.feed(data)
            except ProtocolViolation as violation:
                self.refuse(errors.protocol_violation(str(violation)))
                return
        if session.database is None:  # also while a connection is being prepared
            self._received_without_database(data)
            return
        if session.quiet:
            self._arrived_at = _clock()
        if self._proxy.latency:
            self._delay(data)
            return
        self._forward(data)

    def _forward_whole(self, whole: bytes, data: bytes) -> bool:
        """Forward one whole request that needs nothing but a connection. False: it needs more than that."""
        session, database = self.session, self.database
        if database is None:
            if self.wants_database:
                return False
            database = self._proxy.pool.take(self.identity)
            if database is None:
                return False
            if database.state.tracked is not self.tracked or not self._writable or database.full:
                self._arrived_at = _clock()
                self._held = data
                self.lend(database)
                return True
            self.database = database
            database.client = self
            session.attach(database.state)
        elif session.database is None:  # it is being prepared
            return False
        session.ask(whole)
        self._arrived_at = self._asked_at = _clock()
        try:  # noqa: SIM105  (a context manager takes longer than all of session.ask)
            database.transport.write(data)
        except RuntimeError:
            pass  # uvloop's for a transport that has just ended; its protocol hears of it next
        return True

    def _forward(self, data: bytes) -> None:
        session, database = self.session, self.database
        if database is None or session.database is None:
            return
        if session.quiet:
            self._asked_at = _clock()
        try:
            request = session.request(data)
        except ProtocolViolation as violation:
            self.refuse(errors.protocol_violation(str(violation)))
            return
        if request:
            with suppress(RuntimeError):  # as above
                database.transport.write(request)
        if session.terminated:
            self._end()
        elif session.done:
            self.answered(database)

    def eof_received(self) -> None:
        self._leave()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._leave()
        if self._unread is not None:
            self._unread.cancel()

    def _leave(self) -> None:
        """This client asks for nothing more: let go of what it holds. Its transport may still have to say goodbye."""
        proxy, session = self._proxy, self.session
        if self not in proxy.clients:
            return
        proxy.clients.discard(self)
        proxy.pool.cancel(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._admitted:
            proxy.admitted -= 1
        if self.logged_in:
            proxy.logged_in -= 1
            proxy.metrics.client_connections_closed += 1
            log.info("[clientConnection=%d] The client connection closed.", self.number)
        if session.pin is not None:
            proxy.session_pinned -= 1
        if session.named:
            proxy.forget_statements(session.named)
        database, self.database = self.database, None
        if database is not None:
            # It may be in a transaction, in the middle of an answer, or pinned: never anybody else's again.
            clean = session.pin is not None and session.quiet and session.status == IDLE
            session.detach()
            proxy.discard(database, "The client session it was pinned to ended" if clean else _CUT)

    def pause_writing(self) -> None:
        self._writable = False
        if self.database is not None:
            self.database.pause_reading()
        self._unread = self._proxy.loop.call_later(self._proxy.settings.unread_timeout, self._unread_expired)

    def resume_writing(self) -> None:
        self._writable = True
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        if self.database is not None:
            self.database.resume_reading()

    def pause_reading(self, why: int = _DATABASE_FULL) -> None:
        """Stop reading requests until the same reason is gone."""
        if not self._paused and not self.transport.is_closing():
            self.transport.pause_reading()
        self._paused |= why

    def resume_reading(self, why: int = _DATABASE_FULL) -> None:
        """Read requests again if no other reason is left."""
        if self._paused & why:
            self._paused &= ~why
            if not self._paused and not self.transport.is_closing():
                self.transport.resume_reading()

    # ── a database connection comes and goes ─────────────────────────────────────────────────────────────────────

    def lend(self, connection: DatabaseConnection) -> None:
        """The pool lends a connection."""
        self.database = connection
        if not self._writable:
            connection.pause_reading()
        if connection.full:
            self.pause_reading()
        if connection.attach(self, self._held):
            self._begin()

    def prepared(self, preparation: Preparation) -> None:
        """The connection has been made ready for this client, or could not be."""
        if self.database is None:
            return
        if preparation.error is not None:
            self.refuse(errors.database_error(preparation.error.get("M", "")))
        else:
            self._begin()

    def _begin(self) -> None:
        connection = self.database
        if connection is None:
            return
        if self._login is not None:
            self._learn(connection)
            return
        self.session.attach(connection.state)
        held, self._held = self._held, b""
        if self._paused:
            self.resume_reading(_WAITING)
        if self._proxy.latency:
            self._delay(held)
        else:
            self._forward(held)

    def answered(self, database: DatabaseConnection) -> None:
        """Some requests have been answered; when all are and no transaction is open, the connection goes back."""
        session, proxy = self.session, self._proxy
        if session.answered:
            now = _clock()
            metrics = proxy.metrics
            metrics.query_requests += session.answered
            session.answered = 0
            metrics.add_response(now - self._asked_at, now - self._arrived_at)
            self._arrived_at = self._asked_at = now  # for what is pipelined behind it
        self.active_at = proxy.loop.time()
        if not session.done:
            return
        rest = session.detach()
        self.database = None
        database.detach()
        if self._paused:
            self.resume_reading()
        if rest:
            self._held = rest
        if database.fit:
            proxy.pool.give_back(database)
        else:
            proxy.discard(database, "It sent what nobody asked for")
        if rest:
            self._received_without_database(b"")

    def database_lost(self) -> None:
        """The connection lent to this client is gone, and with it whatever it was doing."""
        self.database = None
        self.session.detach()
        log.info("[clientConnection=%d] The database connection it had borrowed was lost.", self.number)
        self._end()

    def _end(self) -> None:
        """Close, after what has been written is sent."""
        self._leave()
        if not self.transport.is_closing():
            self.transport.close()
            # Who does not read the farewell is not waited for.
            self._proxy.loop.call_later(_FAREWELL_S, self.transport.abort)

    def refuse(self, error: ProxyError) -> None:
        """Tell the client why, and end its connection."""
        log.info("[clientConnection=%d] %s", self.number, error.message)
        if not self.transport.is_closing():
            self.transport.write(error.encode())
        self._end()

    # ── requests without a connection, and the login ─────────────────────────────────────────────────────────────

    def _received_without_database(self, data: bytes) -> None:
        if self._startup is not None or self._login is not None:
            self._received_login(data)
            return
        if self.wants_database or self.database is not None:
            self._hold(data)
            return
        self._held += data
        self._arrived_at = _clock()
        try:
            worth, self._held = self.session.opening(self._held)
        except ProtocolViolation as violation:
            self.refuse(errors.protocol_violation(str(violation)))
            return
        if self.session.terminated:
            self._end()
        elif worth:
            self._proxy.pool.borrow(self)
            self._hold(b"")

    def _hold(self, data: bytes) -> None:
        """Keep requests for later, and go on reading while they are few: else nobody sees that the client is gone."""
        self._held += data
        if len(self._held) > _MAX_HELD:
            self.pause_reading(_WAITING)

    def _received_login(self, data: bytes) -> None:
        """Bytes before ReadyForQuery: the start-up packet, then what the authentication asks for."""
        try:
            if self._startup is not None:
                packet = self._startup.feed(data)
                if packet is None:
                    return
                rest = self._startup.rest
                self._startup_complete(parse_startup(packet))
                if rest:
                    self._received_early(rest)
            elif self._login is not None and not self._login.done:
                self._login_goes_on(self._login, self._login.feed(data))
            else:
                self._received_early(data)
        except Refused as refused:
            if isinstance(refused, LoginRefused):
                self._proxy.metrics.client_connections_setup_failed_auth += 1
            log.warning("[clientConnection=%d] Login refused: %s", self.number, refused.reason)
            self.refuse(refused.error)

    def _received_early(self, data: bytes) -> None:
        """Bytes of a client that does not wait to be asked, or to be let in."""
        if self.logged_in:
            self._received_without_database(data)
        elif self._login is not None and self._login.done:
            self._hold(data)
        elif self._login is not None:
            self._received_login(data)

    def _startup_complete(self, startup: Request) -> None:
        if not isinstance(startup, Startup):
            # CancelRequest: RDS Proxy does not support it. The others were answered before TLS, so are out of place.
            self._end()
            return
        self._startup = None
        self.identity = Identity(startup.user, startup.database)
        self.application_name = startup.application_name
        self.tracked = self._proxy.intern(tracked_values(startup.tracked))
        if error := self._proxy.admit():
            raise Refused(error)
        self._admitted = True
        self._proxy.admitted += 1
        login = self._login = self._proxy.new_login(startup, tls=self.tls)
        self._login_goes_on(login, login.start())

    def _login_goes_on(self, login: ClientLogin, answer: bytes) -> None:
        if answer:
            self.transport.write(answer)
        if login.done:
            self._held += login.rest
            parameters = self._proxy.greeting(self.identity, self.tracked)
            if parameters is not None:
                self._greet(parameters)
            else:
                # Nobody came in with these parameters yet: ask the database what it makes of them.
                self._proxy.pool.borrow(self)

    def _greet(self, parameters: Mapping[str, str]) -> None:
        """Let the client in: report the parameters, a key (that cancels nothing), and readiness."""
        own = {**parameters, "application_name": self.application_name}
        messages = [wire.parameter_status(name, value) for name, value in own.items()]
        key = wire.HEADER.pack(wire.BACKEND_KEY_DATA, 12) + _KEY.pack(self.number & 0x7FFFFFFF, self._proxy.new_key())
        self.transport.write(b"".join([*messages, key, wire.ready()]))
        self._login = None
        self.logged_in = True
        self.session.encoding = python_codec(parameters.get("client_encoding", ""))
        self._plain = self._names is None and self.session.encoding is None
        self.resume_reading(_WAITING)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        metrics = self._proxy.metrics
        metrics.client_connections_setup_succeeded += 1
        metrics.peak_client_connections = max(metrics.peak_client_connections, self._proxy.logged_in + 1)
        self._proxy.logged_in += 1
        log.info("[clientConnection=%d] A new client connected from %s.", self.number, self.address)
        if self._held:
            held, self._held = self._held, b""
            self.data_received(held)

    def _learn(self, connection: DatabaseConnection) -> None:
        """The connection was borrowed only to see how the database reports this client's parameters."""
        parameters = self._proxy.learn(self.identity, self.tracked, connection.state)
        self.database = None
        connection.detach()
        self._proxy.pool.give_back(connection)
        self._greet(parameters)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def idle_since(self) -> float | None:
        """Loop time of the last request or answer; None while a request is under way."""
        if (
            not self.logged_in
            or self.wants_database
            or self._delayed
            or (self.database is not None and not self.session.quiet)
        ):
            return None
        return self.active_at

    def close(self, reason: str) -> None:
        """End the connection without a word, as RDS Proxy does for idle and aged clients."""
        log.info("[clientConnection=%d] The client connection is closed by the proxy: %s.", self.number, reason)
        self._end()

    def _startup_expired(self) -> None:
        self.transport.abort()

    def _unread_expired(self) -> None:
        self._unread = None
        log.warning("[clientConnection=%d] The client does not read its answer and was cut off.", self.number)
        self.transport.abort()

    def _delay(self, data: bytes) -> None:
        """Hold requests back for the time that the latency fault says, in their order."""
        self.pause_reading(_DELAYED)
        self._delayed.append(data)
        self._proxy.loop.call_later(self._proxy.latency, self._delay_over)

    def _delay_over(self) -> None:
        if not self._delayed or self.transport.is_closing():
            return
        data = self._delayed.popleft()
        if not self._delayed:
            self.resume_reading(_DELAYED)
        if self.session.database is not None:
            self._forward(data)
        else:
            self._received_without_database(data)

    def _pinned(self, pin: Pin, text: bytes) -> None:
        sql = text.decode(errors="replace")
        database = self.session.database
        number = database.number if database is not None else 0
        self._proxy.pinned(self, pin, sql, number)
