"""The emulator in a thread of its own, for programs that are not asyncio: the command line, tests, fixtures."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

import uvloop

from spillway.rdsproxy.proxy import RdsProxy
from spillway.rdsproxy.settings import ProxySettings, RdsProxyError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from spillway.rdsproxy.metrics import PinRecord, Snapshot

_STOP_TIMEOUT_S = 15.0


class BackgroundProxy:
    """A running RdsProxy; everything here may be called from any thread.

    Entering raises RdsProxyError when the target cannot be reached or the port is taken.
    """

    def __init__(self, settings: ProxySettings, admin_port: int | None = 0) -> None:
        self._settings = settings
        self._admin_port = admin_port
        self._thread = threading.Thread(target=self._run, name="rdsproxy", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._proxy: RdsProxy
        self._last: Snapshot | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the proxy and wait for it; its last numbers stay. Safe to repeat."""
        if self._thread.is_alive():
            self._last = self.snapshot()
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_STOP_TIMEOUT_S)

    @property
    def failure(self) -> BaseException | None:
        """What ended the proxy, if it ended by itself."""
        return self._failure

    @property
    def host(self) -> str:
        """Where the proxy listens."""
        return self._proxy.host

    @property
    def port(self) -> int:
        """Where the proxy listens."""
        return self._proxy.port

    @property
    def ca_file(self) -> Path | None:
        """What clients verify the proxy's certificate with; None without TLS."""
        return self._proxy.ca_file

    @property
    def admin_url(self) -> str | None:
        """Where metrics are read and faults are injected over HTTP."""
        return self._proxy.admin_url

    @property
    def pins(self) -> list[PinRecord]:
        """The latest pinned sessions, oldest first."""
        return self.snapshot().pins

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers under their CloudWatch names, now or at the end."""
        return self.snapshot().cloudwatch

    def snapshot(self) -> Snapshot:
        """Everything that is counted, now or at the end."""
        return self._last or self._proxy.snapshot()

    def dsn(self, user: str | None = None, password: str | None = None, database: str | None = None) -> str:
        """A libpq connection string; by default the target's user and database, without TLS."""
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415  (the emulator itself has no use for psycopg)

        target = self._settings.target
        return make_conninfo(
            host=self.host,
            port=self.port,
            user=user or target.user,
            password=password if user else target.password,
            dbname=database or target.database,
            sslmode="disable",
        )

    def assert_no_pins(self) -> None:
        """Raise AssertionError that lists every pinned session with its reason and SQL."""
        snapshot = self.snapshot()
        if snapshot.pinned_sessions_total:
            listed = "\n".join(f"  {pin.rule}: {pin.reason}\n    {pin.sql}" for pin in snapshot.pins)
            raise AssertionError(f"{snapshot.pinned_sessions_total} sessions were pinned:\n{listed}")

    def fault(self, name: str, **arguments: float) -> dict[str, Any]:
        """Inject a fault; see `spillway.rdsproxy.faults`. Raises RdsProxyError."""

        async def inject() -> dict[str, Any]:
            return self._proxy.fault(name, arguments)

        return asyncio.run_coroutine_threadsafe(inject(), self._loop).result(_STOP_TIMEOUT_S)

    def fail_over(self, outage: float = 1.0) -> None:
        """End every database connection; for `outage` seconds none can be opened."""
        self.fault("fail-over", outage=outage)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # (handed to the thread that waits for the start)
            self._failure = error if isinstance(error, RdsProxyError) else RdsProxyError(f"The proxy failed: {error!r}")
            self._failure.__cause__ = error.__cause__
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with RdsProxy(self._settings, admin_port=self._admin_port) as self._proxy:
            self._started.set()
            await self._stop.wait()
