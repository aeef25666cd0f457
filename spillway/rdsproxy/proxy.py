"""An RDS Proxy for PostgreSQL that runs on this machine.

    async with RdsProxy(ProxySettings(target=Target.parse("postgresql://..."))) as proxy:
        ...  # clients connect to proxy.host, proxy.port

Who is who: `Listener` accepts, `ClientConnection` and `DatabaseConnection` are the two kinds of sockets, `Session` is
the protocol between them, `Pool` decides who is lent what. This module puts them together and knows the time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
import time
from collections import deque
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Self

from spillway.rdsproxy import errors
from spillway.rdsproxy.admin import AdminServer
from spillway.rdsproxy.certificates import ensure_certificates, server_context
from spillway.rdsproxy.client_login import ClientLogin
from spillway.rdsproxy.database import DatabaseConnection
from spillway.rdsproxy.database_login import DatabaseLogin, DatabaseRefused
from spillway.rdsproxy.database_state import DEFAULTS_SQL, UNTRACKED, DatabaseState, Tracked
from spillway.rdsproxy.faults import FAULTS, Faults
from spillway.rdsproxy.iam import TokenVerifier
from spillway.rdsproxy.listener import Listener
from spillway.rdsproxy.metrics import Metrics, PinRecord, Snapshot
from spillway.rdsproxy.pinning import Classifier, Pin
from spillway.rdsproxy.pool import Identity, Pool
from spillway.rdsproxy.settings import ProxySettings, RdsProxyError
from spillway.rdsproxy.startup import TRACKED, Startup
from spillway.rdsproxy.whole_requests import WholeRequests

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from spillway.rdsproxy.client import ClientConnection
    from spillway.rdsproxy.errors import ProxyError

log = logging.getLogger("spillway.rdsproxy")

NAME = "default"
#: How long one attempt to connect and log in to the database may take, in seconds.
CONNECT_TIMEOUT_S = 10.0
#: How often idle and aged clients are looked for, in seconds; oftener where the limits are short.
SWEEP_S = 5.0
#: How many distinct combinations of start-up parameters are remembered with what the database made of them.
_MAX_GREETINGS = 1_000
#: SQLSTATE classes with which a database refuses for good: credentials, unknown database, privileges, unsupported.
_PERMANENT = ("28", "3D", "42", "0A")
_APPLICATION_NAME = TRACKED.index("application_name")


class RdsProxy:
    """One emulated proxy on the running event loop. `admin_port`: of its metrics and faults; 0: any; None: nowhere.

    Starting raises RdsProxyError when the target cannot be reached, refuses the login, or the port is taken.
    """

    def __init__(self, settings: ProxySettings, *, admin_port: int | None = None) -> None:
        settings.check()
        self.settings = settings
        self.classifier = Classifier(strict=settings.strict)
        self.whole_requests = WholeRequests(self.classifier)
        self.metrics = Metrics()
        self.clients: set[ClientConnection] = set()
        self.logged_in = 0
        #: Clients that are logged in or on their way.
        self.admitted = 0
        self.session_pinned = 0
        self.host = settings.listen_host
        self.port = 0
        self.ca_file: Path | None = None
        #: Seconds that a fault adds to every request.
        self.latency = 0.0
        self.loop: asyncio.AbstractEventLoop
        self.pool: Pool
        self.faults: Faults
        self._admin_port = admin_port
        self._admin: AdminServer | None = None
        self._listener: Listener
        self._verifier: TokenVerifier | None = None
        self._temporary: str | None = None
        self._random = Random(settings.seed)  # noqa: S311  (faults that can be repeated, and keys that cancel nothing)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._connection_number = 0
        self._arrivals: deque[float] = deque()
        self._interned: dict[Tracked, Tracked] = {UNTRACKED: UNTRACKED}
        self._greetings: dict[tuple[Identity, Tracked], dict[str, str]] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        settings = self.settings
        self.loop = asyncio.get_running_loop()
        context = None
        names = [settings.listen_host, "localhost", *settings.endpoints]
        if settings.tls:
            directory = settings.certificate_dir
            if directory is None:
                self._temporary = tempfile.mkdtemp(prefix="spillway-rdsproxy-")
                directory = Path(self._temporary)
            certificates = ensure_certificates(directory, names)
            self.ca_file = certificates.ca_file
            context = server_context(certificates)
        identity = Identity(settings.target.user, settings.target.database)
        first, max_connections = await self._probe(identity)
        size = settings.max_connections or max(1, max_connections * settings.max_connections_percent // 100)
        idle_size = max(1, size * settings.max_idle_connections_percent // settings.max_connections_percent)
        self.pool = Pool(
            self.loop,
            self._open,
            self.metrics,
            size=size,
            idle_size=idle_size,
            borrow_timeout=settings.connection_borrow_timeout,
            idle_trim_after=settings.idle_trim_after,
        )
        self.pool.adopt(first)
        self.learn(identity, UNTRACKED, first.state)
        self.faults = Faults(self, self._random)
        self._listener = Listener(self, context)
        try:
            self._listener.start(settings.listen_host, settings.listen_port)
        except (OSError, OverflowError) as error:
            raise RdsProxyError(
                f"Cannot listen on {settings.listen_host}:{settings.listen_port}: {error}.",
                "Stop what uses that port, or choose another one.",
            ) from error
        self.port = self._listener.port
        if settings.iam_auth == "required":
            self._verifier = TokenVerifier(settings.credentials, settings.region, names, self.port)
        if self._admin_port is not None:
            self._admin = AdminServer(self.snapshot, self._fault_from_thread, FAULTS, self._admin_port)
            self._admin.start()
        self._sweep()

    async def stop(self) -> None:
        """Accept nobody, close every connection, and forget everything."""
        if self._admin is not None:
            await asyncio.to_thread(self._admin.close)
            self._admin = None
        if hasattr(self, "_listener"):
            await self._listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "pool"):
            self.pool.close()
            for client in list(self.clients):
                client.close("the proxy stops")
                client.transport.abort()
            for connection in list(self.pool.connections):
                connection.close("The proxy stops")
            await asyncio.sleep(0)  # let the transports send their farewells and close
            await asyncio.sleep(0)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    # ── what is the case (Gauges) ────────────────────────────────────────────────────────────────────────────────

    @property
    def client_connections(self) -> int:
        """Clients that are logged in."""
        return self.logged_in

    @property
    def database_connections(self) -> int:
        """Open database connections."""
        return len(self.pool.connections)

    @property
    def borrowed(self) -> int:
        """Database connections that are lent, pinned ones included."""
        return self.pool.borrowed

    @property
    def in_transaction(self) -> int:
        """Clients in a transaction."""
        return sum(client.database is not None and client.session.status != ord("I") for client in list(self.clients))

    @property
    def waiting(self) -> int:
        """Clients that wait for a database connection."""
        return self.pool.waiting

    @property
    def max_database_connections(self) -> int:
        """The pool's size."""
        return self.pool.size

    @property
    def available(self) -> bool:
        """Whether the database could be reached when that was last tried."""
        return self.pool.available

    @property
    def admin_url(self) -> str | None:
        """Where metrics are read and faults are injected."""
        return self._admin.url if self._admin is not None else None

    def snapshot(self) -> Snapshot:
        """Everything that is counted, now. May be called from any thread."""
        return self.metrics.snapshot(self, proxy=NAME, endpoint=f"{self.host}:{self.port}", target=self.settings.target)

    def fault(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Inject a fault by name, on the event loop's thread; see `faults`. Raises RdsProxyError."""
        return self.faults.inject(name, arguments)

    def _fault_from_thread(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        async def inject() -> dict[str, Any]:
            return self.fault(name, arguments)

        return asyncio.run_coroutine_threadsafe(inject(), self.loop).result(timeout=10)

    # ── for clients ──────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self) -> ProxyError | None:
        """Whether one more client may log in now, by the limits on clients and on their rate."""
        settings = self.settings
        if self.faults.refusing:
            return errors.too_many_clients(settings.max_client_connections or self.logged_in)
        if settings.max_client_connections is not None and self.admitted >= settings.max_client_connections:
            return errors.too_many_clients(settings.max_client_connections)
        if settings.max_connection_rate is not None:
            now = self.loop.time()
            while self._arrivals and self._arrivals[0] <= now - 1.0:
                self._arrivals.popleft()
            if len(self._arrivals) >= settings.max_connection_rate:
                return errors.connection_rate(settings.max_connection_rate)
            self._arrivals.append(now)
        return None

    def new_login(self, startup: Startup, *, tls: bool) -> ClientLogin:
        """The authentication of a client."""
        return ClientLogin(
            startup,
            secret=self.settings.secret_of(startup.user),
            settings=self.settings,
            tls=tls,
            token_verifier=self._verifier,
        )

    def new_key(self) -> int:
        """A cancel key; it cancels nothing."""
        return self._random.getrandbits(31)

    def intern(self, tracked: Tracked) -> Tracked:
        """The one tuple for these values, so that equal ones are the same object."""
        if len(self._interned) > _MAX_GREETINGS:
            self._interned.clear()
        return self._interned.setdefault(tracked, tracked)

    def greeting(self, identity: Identity, tracked: Tracked) -> dict[str, str] | None:
        """What the database reports to a client with these start-up parameters, if that is known."""
        return self._greetings.get((identity, _without_name(tracked)))

    def learn(self, identity: Identity, tracked: Tracked, state: DatabaseState) -> dict[str, str]:
        """Remember what the database reported when these parameters were applied."""
        if len(self._greetings) >= _MAX_GREETINGS:
            self._greetings.clear()
        parameters = self._greetings[identity, _without_name(tracked)] = dict(state.parameter_status)
        return parameters

    def pinned(self, client: ClientConnection, pin: Pin, sql: str, connection: int) -> None:
        """A session is pinned from now on."""
        self.session_pinned += 1
        self.metrics.pinned_sessions_total += 1
        self.metrics.record_pin(
            PinRecord(
                rule=pin.rule,
                reason=pin.reason,
                certainty=pin.certainty,
                sql=sql,
                user=client.identity.user,
                database=client.identity.database,
                application_name=client.application_name,
                client=client.address,
                database_connection=connection,
                at=time.time(),
            )
        )
        log.warning(
            "[clientConnection=%d] The client session was pinned to the database connection [dbConnection=%d] for the "
            "remainder of the session. The proxy can't reuse this connection until the session ends. Reason: %s",
            client.number,
            connection,
            pin.reason,
        )

    def forget_statements(self, names: Iterable[bytes]) -> None:
        """A client left; its named statements stay on connections until they are closed on the way to the next one."""
        for connection in self.pool.connections:
            known = connection.state.named
            connection.state.stale.extend(name for name in names if known.pop(name, None) is not None)

    def discard(self, connection: DatabaseConnection, reason: str) -> None:
        """A client left its connection in a state that is nobody else's business."""
        connection.close(reason, goodbye=False)
        self.pool.lost(connection, borrowed=True)

    # ── towards the database ─────────────────────────────────────────────────────────────────────────────────────

    async def _probe(self, identity: Identity) -> tuple[DatabaseConnection, int]:
        """Connect as the target's own user, and ask how many connections the database allows."""
        target = self.settings.target
        where = f"{target.host}:{target.port}"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._connect(identity)
                answer = await connection.ask("SHOW max_connections")
        except DatabaseRefused as refused:
            raise RdsProxyError(
                f"The target {where} refuses {target.user}: {refused.message} ({refused.sqlstate})",
                "Check the target URL's user, password and database, and the initialization query.",
            ) from refused
        except (OSError, TimeoutError) as error:
            raise RdsProxyError(
                f"The target {where} cannot be reached: {error or 'no answer'}.", "Is PostgreSQL running there?"
            ) from error
        connection.establish()
        return connection, int(answer)

    def _open(self, identity: Identity) -> None:
        task = self.loop.create_task(self._open_connection(identity))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_connection(self, identity: Identity) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await self._connect(identity)
        except DatabaseRefused as refused:
            log.warning("The database refused a connection: %s (%s)", refused.message, refused.sqlstate)
            permanent = refused.sqlstate.startswith(_PERMANENT)
            self.pool.failed(identity, errors.database_error(refused.message) if permanent else None)
        except (OSError, TimeoutError) as error:
            log.debug("The database could not be reached: %s", error)
            self.pool.failed(identity, None)
        else:
            connection.establish()
            self.pool.opened(connection)

    async def _connect(self, identity: Identity) -> DatabaseConnection:
        """Open a connection, log in, run the initialization query. Raises DatabaseRefused or OSError."""
        secret = self.settings.secret_of(identity.user)
        if secret is None:
            raise DatabaseRefused("28000", errors.no_credentials(identity.user).message)
        user, password = secret.database_login
        self._connection_number += 1
        connection = DatabaseConnection(identity, self._connection_number, self._lost)
        target = self.settings.target
        await self.loop.create_connection(lambda: connection, target.host, target.port)
        try:
            await connection.log_in(DatabaseLogin(user, password, identity.database, {}))
            if self.settings.init_query:
                try:
                    await connection.ask(self.settings.init_query)
                except DatabaseRefused as refused:
                    message = f"The initialization query failed: {refused.message}"
                    raise DatabaseRefused(refused.sqlstate, message) from None
                connection.state.defaults = json.loads(await connection.ask(DEFAULTS_SQL))
        except BaseException:
            connection.abort()
            raise
        return connection

    def _lost(self, connection: DatabaseConnection, borrowed: bool) -> None:
        log.info(
            "[dbConnection=%d] The database connection closed. Reason: the database ended it.", connection.state.number
        )
        self.pool.lost(connection, borrowed=borrowed)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sweep(self) -> None:
        """Close clients that were idle for too long, or are too old."""
        settings = self.settings
        now = self.loop.time()
        for client in list(self.clients):
            since = client.idle_since()
            if since is None:
                continue
            if now - since >= settings.idle_client_timeout:
                client.close(f"it was idle for {settings.idle_client_timeout:g} seconds")
            elif now - client.born_at >= settings.client_lifetime:
                client.close(f"it is {settings.client_lifetime:g} seconds old")
        interval = min(SWEEP_S, settings.idle_client_timeout / 4, settings.client_lifetime / 4)
        self._sweeper = self.loop.call_later(interval, self._sweep)


def _without_name(tracked: Tracked) -> Tracked:
    """What decides about the reported parameters: any application_name is reported as it is."""
    return (*tracked[:_APPLICATION_NAME], None, *tracked[_APPLICATION_NAME + 1 :])
