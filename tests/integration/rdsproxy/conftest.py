"""Emulated RDS Proxies in front of the session's PostgreSQL, each over a database of its own."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg
import psycopg
import pytest
from psycopg import sql

from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.settings import ProxySettings, Target
from tests.conftest import drop_database, new_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.stack.postgres import PostgresServer

ROLE, PASSWORD = "proxied_app", "proxied-password"
#: How long a condition may take to come true on a machine that has other things to do. Nothing asserts on it.
PATIENCE_S = 10.0


@dataclass(frozen=True)
class ProxiedDatabase:
    """A running proxy and the database behind it; the login role owns the database."""

    proxy: BackgroundProxy
    server: PostgresServer
    name: str

    @property
    def dsn(self) -> str:
        """Through the proxy. TLS is as each client has it by default."""
        return f"postgresql://{ROLE}:{PASSWORD}@{self.proxy.host}:{self.proxy.port}/{self.name}"

    @property
    def direct_dsn(self) -> str:
        """To the same database as the same role, past the proxy."""
        return self.server.dsn(self.name, ROLE, PASSWORD)

    def connect(self, dsn: str = "", **arguments: Any) -> psycopg.Connection[Any]:
        """psycopg as RDS Proxy wants it: no prepared statements."""
        return psycopg.connect(dsn or self.dsn, **({"autocommit": True, "prepare_threshold": None} | arguments))

    def ask(self, statement: str) -> Any:
        """The one value that PostgreSQL itself answers, past the proxy."""
        with psycopg.connect(self.direct_dsn) as connection:
            row = connection.execute(statement).fetchone()
            assert row is not None
            return row[0]

    def backend_states(self) -> list[str]:
        """What the role's database connections are doing, as the superuser sees it."""
        with psycopg.connect(self.server.dsn()) as admin:
            rows = admin.execute(
                "SELECT state FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
                (self.name,),
            )
            return [state for (state,) in rows]

    def metric(self, name: str) -> float:
        """One CloudWatch metric as it is now."""
        return self.proxy.snapshot().cloudwatch[name]

    def borrowed(self, expected: int) -> None:
        """Wait until exactly so many database connections are borrowed."""
        deadline = time.monotonic() + PATIENCE_S
        while (now := self.metric("DatabaseConnectionsCurrentlyBorrowed")) != expected:
            assert time.monotonic() < deadline, f"{now:g} database connections are borrowed, expected {expected}"
            time.sleep(0.01)

    def never_pinned(self) -> None:
        """No client has been pinned so far, and right now none holds a database connection."""
        assert [(pin.rule, pin.sql) for pin in self.proxy.pins] == []
        self.proxy.assert_no_pins()
        self.borrowed(0)

    def pinned_by(self, *rules: str) -> None:
        """Exactly these rules have pinned a client each, and each record says so in words."""
        assert sorted(pin.rule for pin in self.proxy.pins) == sorted(rules)
        assert all(pin.reason for pin in self.proxy.pins)
        assert self.proxy.snapshot().pins_by_rule == {rule: rules.count(rule) for rule in rules}
        with pytest.raises(AssertionError, match=rules[0]):
            self.proxy.assert_no_pins()

    def pins_sql(self) -> str:
        """The statements that pinned."""
        return "\n".join(str(pin.sql) for pin in self.proxy.pins)


def refusal(proxied: ProxiedDatabase, **arguments: Any) -> tuple[str | None, str]:
    """SQLSTATE and text with which a connection is refused; asyncpg, because libpq keeps no SQLSTATE of this."""

    async def connect() -> tuple[str | None, str]:
        try:
            connection = await asyncpg.connect(proxied.dsn, **arguments)
        except asyncpg.PostgresError as error:
            return error.sqlstate, str(error)
        await connection.close()
        pytest.fail("The connection was not refused.")

    with warnings.catch_warnings():
        # asyncpg leaves the transport of a refused TLS connection to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        found = asyncio.run(connect())
        gc.collect()
    return found


class StartProxy(Protocol):
    """Starts another proxy over the test's database."""

    def __call__(self, **settings: Any) -> ProxiedDatabase: ...


@pytest.fixture(scope="session")
def login_role(postgres: PostgresServer) -> str:
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(ROLE), sql.Literal(PASSWORD)))
    return ROLE


@pytest.fixture
def own_database(postgres: PostgresServer, login_role: str) -> Iterator[str]:
    name = new_database(postgres)
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(name), sql.Identifier(login_role)))
    yield name
    drop_database(postgres, name)


@pytest.fixture
def start_proxy(postgres: PostgresServer, own_database: str) -> Iterator[StartProxy]:
    """At the end, with all clients gone, no proxy may still have a database connection lent out."""
    with ExitStack() as stack:
        started = []

        def start(**settings: Any) -> ProxiedDatabase:
            target = Target.parse(postgres.dsn(own_database, ROLE, PASSWORD))
            arguments: dict[str, Any] = {"listen_port": 0, "max_connections": 10} | settings
            proxy = stack.enter_context(BackgroundProxy(ProxySettings(target=target, **arguments)))
            started.append(ProxiedDatabase(proxy, postgres, own_database))
            return started[-1]

        yield start
        for one in started:
            one.borrowed(0)


@pytest.fixture
def proxied(start_proxy: StartProxy) -> ProxiedDatabase:
    """A proxy with a pool of ten, all else as it is by default."""
    return start_proxy()


_numbers = itertools.count(1)


@pytest.fixture
def text() -> str:
    """A value that no other test and no other client uses."""
    return f"text {next(_numbers)} with 'quotes', ümlauts and 🦊"
