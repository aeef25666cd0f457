"""The connection: one per execution environment, opened when first needed, kept warm, reopened when it must be.

Nothing here can pin an RDS Proxy session: no SET, no named prepared statement, no start-up `options`, no text beyond
one constant statement. What would be SET lives on the login role (ALTER ROLE ... SET, see workers/migrate/roles.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg

from workers.runtime.iam_token import rds_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.runtime.settings import FunctionSettings

#: RDS Proxy closes a client that was idle for 1,800 s (IdleClientTimeout's default); go first.
MAX_IDLE_S = 25 * 60
#: RDS Proxy closes every client connection after 24 h, idle or not.
MAX_AGE_S = 23 * 3600

#: How long sent bytes may stay unacknowledged before the kernel gives the connection up (a vanished writer).
TCP_USER_TIMEOUT_MS = 10_000


class Database:
    """A lazy, self-renewing autocommit connection. Not thread-safe: a Lambda environment runs one batch at a time."""

    def __init__(self, settings: FunctionSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._opened_at = 0.0
        self._used_at = 0.0

    @property
    def connected(self) -> bool:
        """Whether the next call can go ahead without connecting first."""
        connection = self._connection
        if connection is None or connection.closed or connection.broken:
            return False
        now = self._clock()
        return now - self._used_at < MAX_IDLE_S and now - self._opened_at < MAX_AGE_S

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        """All rows of one autocommit statement with one JSON parameter (UTF-8 text). Raises psycopg.Error."""
        if not self.connected:
            self.discard()
            self._connection = self._connect()
            self._opened_at = self._clock()
        assert self._connection is not None  # noqa: S101  (just made)
        rows = self._connection.execute(statement, (JsonText(parameter),), binary=True).fetchall()
        self._used_at = self._clock()
        return rows

    def discard(self) -> None:
        """Close the connection, if any; the next fetch opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        settings = self._settings
        password = settings.password
        if settings.auth == "iam":
            # Signed at every connect because a token lives 15 minutes; an open connection outlives its token.
            password = rds_token(settings.host, settings.port, settings.user, settings.region)
        connection = psycopg.connect(
            host=settings.host,
            port=settings.port,
            dbname=settings.database,
            user=settings.user,
            password=password,
            connect_timeout=settings.connect_timeout,
            sslmode=settings.sslmode,
            sslrootcert=authorities(settings.sslrootcert) if settings.sslmode.startswith("verify") else None,
            application_name="spillway",
            keepalives=1,
            keepalives_idle=30,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=TCP_USER_TIMEOUT_MS,
            autocommit=True,
            prepare_threshold=None,
        )
        self._used_at = self._clock()
        connection.adapters.register_dumper(JsonText, JsonTextDumper)
        return connection


def authorities(sslrootcert: str) -> str:
    """What libpq's sslrootcert takes for DATABASE_SSLROOTCERT, which may be PEM text instead of a file's path."""
    if not sslrootcert.startswith("-----"):
        return sslrootcert
    from workers.runtime.certificates import file_with  # noqa: PLC0415  (cold start: hardly anybody needs it)

    return file_with(sslrootcert)


class JsonText:
    """JSON that is encoded already. As str it would be decoded and encoded again; as bytes psycopg would send bytea."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


class JsonTextDumper(psycopg.adapt.Dumper):
    """Sends JsonText as it is, as jsonb in text format."""

    oid = psycopg.postgres.types["jsonb"].oid

    def dump(self, obj: JsonText) -> bytes:
        return obj.text
