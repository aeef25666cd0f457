"""A failover of the local stack: the emulated RDS Proxy loses its database for some seconds."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from spillway.drill.probes import CUSTOMER, run_name
from spillway.errors import SpillwayError
from spillway.rdsproxy.admin import AdminClient

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spillway.drill.failover import Note
    from spillway.stack.state import StackState, WorkerLogin

EVERY_S = 0.1
#: libpq's smallest. Through the proxy a login needs no database, so it takes milliseconds also while there is none.
CONNECT_TIMEOUT_S = 2
_ROWS = """
    SELECT order_id, count(*) FROM spillway.orders WHERE customer = %s AND starts_with(order_id, %s) GROUP BY order_id
"""


class LocalFailover:
    """The running local stack's; `outage_s` is for how long there is no database to connect to."""

    title = "the local stack's RDS Proxy"
    every = EVERY_S
    asks = "answers to SELECT 1 through the proxy, asked every 100 ms"

    def __init__(self, state: StackState, outage_s: float) -> None:
        if state.proxy_admin_url is None or state.login is None or not state.login.proxy:
            raise SpillwayError(
                "The local stack runs without an RDS Proxy, so there is nothing to fail over.",
                "Start it with `spillway up --route proxy`.",
            )
        self._state = state
        self._login: WorkerLogin = state.login
        self._admin = AdminClient(state.proxy_admin_url)
        self._outage_s = outage_s
        self._connection: Any = None
        self._signer: Any = None

    def check(self) -> None:
        available = self._admin.snapshot().cloudwatch["AvailabilityPercentage"]
        if not available:
            raise SpillwayError(
                "The local stack's RDS Proxy does not reach its database now.",
                "Wait until it does; `spillway rdsproxy watch` shows it.",
            )

    def ask(self) -> str:
        """Raises psycopg.Error. While the proxy waits for its database, so does this, up to the borrow timeout."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
        try:
            connection.execute("SELECT 1")
        except BaseException:
            self._connection = None
            connection.close()
            raise
        return ""

    def start(self) -> str:
        done = self._admin.fault("fail-over", {"outage": self._outage_s})
        ended = done.get("connections", 0)
        return f"no database for {self._outage_s:g} s; {ended} database connection{'s' * (ended != 1)} ended"

    def notes(self, since: float) -> Iterable[Note]:  # noqa: ARG002
        return ()

    def rows(self, run: str) -> Mapping[str, int] | None:
        """As the database's owner, past the proxy."""
        import psycopg  # noqa: PLC0415

        # pins: allow a direct connection
        with psycopg.connect(self._state.dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as owner:
            return {str(order): int(count) for order, count in owner.execute(_ROWS, (CUSTOMER, f"{run_name(run)}-"))}

    def close(self) -> None:
        # A query that waits for the database would keep its thread for as long as the borrow timeout: cut the line.
        if (connection := self._connection) is not None:
            with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> Any:
        """As a worker does it: a token signed for this login, TLS verified, no statement that could pin."""
        import psycopg  # noqa: PLC0415

        login = self._login
        return psycopg.connect(
            host=login.host,
            port=login.port,
            dbname=login.database,
            user=login.user,
            password=self._token(),
            sslmode="verify-full",
            sslrootcert=login.ca_file,
            application_name="spillway failover-drill",
            connect_timeout=CONNECT_TIMEOUT_S,
            autocommit=True,
            prepare_threshold=None,
        )

    def _token(self) -> str:
        if self._signer is None:
            import boto3  # noqa: PLC0415

            self._signer = boto3.client(
                "rds",
                region_name=self._state.region,
                aws_access_key_id=self._login.access_key,
                aws_secret_access_key=self._login.secret_key,
                aws_session_token=self._login.session_token,
            )
        login = self._login
        return str(self._signer.generate_db_auth_token(DBHostname=login.host, Port=login.port, DBUsername=login.user))
