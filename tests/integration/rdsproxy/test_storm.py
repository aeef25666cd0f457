"""Three hundred clients at once: ten database connections are enough for them all, and PostgreSQL alone is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from tests.integration.rdsproxy.conftest import ProxiedDatabase, StartProxy

CLIENTS, POOL = 300, 10


class Storm:
    """All clients connect, run one transaction each, and stay until the last of them has run or failed."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._waiting = CLIENTS
        self._all_ran = asyncio.Event()

    async def run(self) -> list[BaseException]:
        """What failed."""
        answers = await asyncio.gather(*(self._client(number) for number in range(CLIENTS)), return_exceptions=True)
        return [one for one in answers if one is not None]

    async def _client(self, number: int) -> None:
        try:
            connection = await psycopg.AsyncConnection.connect(self._dsn, prepare_threshold=None)
        except psycopg.Error:
            self._ran()
            raise
        async with connection:
            try:
                await self._transaction(connection, number)
            finally:
                self._ran()
            await self._all_ran.wait()

    async def _transaction(self, connection: psycopg.AsyncConnection, number: int) -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO ledger VALUES (%s)", (number,))
            await connection.execute("UPDATE counters SET n = n + %s WHERE id = %s", (number, number % 5))
            cursor = await connection.execute("SELECT client FROM ledger WHERE client = %s", (number,))
            assert await cursor.fetchall() == [(number,)]

    def _ran(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._all_ran.set()


def storm(dsn: str) -> list[BaseException]:
    async def run() -> list[BaseException]:
        return await Storm(dsn).run()

    return asyncio.run(run())


@pytest.fixture
def stormy(start_proxy: StartProxy) -> ProxiedDatabase:
    proxied = start_proxy(max_connections=POOL, connection_borrow_timeout=120)
    with psycopg.connect(proxied.direct_dsn) as connection:
        connection.execute("CREATE TABLE ledger (client int PRIMARY KEY)")
        connection.execute("CREATE TABLE counters AS SELECT id, 0 AS n FROM generate_series(0, 4) AS id")
    return proxied


def test_all_of_them_succeed_through_the_proxy(stormy: ProxiedDatabase) -> None:
    assert storm(stormy.dsn) == []
    assert stormy.ask("SELECT count(*) FROM ledger") == CLIENTS
    assert stormy.ask("SELECT sum(n) FROM counters") == sum(range(CLIENTS))
    assert stormy.metric("DatabaseConnections") <= POOL
    assert stormy.metric("ClientConnectionsSetupSucceeded") == CLIENTS
    stormy.never_pinned()


def test_some_of_them_fail_without_it(stormy: ProxiedDatabase) -> None:
    failures = storm(stormy.direct_dsn)
    assert failures
    assert all(
        "too many clients" in str(failure) or "remaining connection slots" in str(failure) for failure in failures
    )
    assert any("too many clients" in str(failure) for failure in failures)
    assert stormy.ask("SELECT count(*) FROM ledger") == CLIENTS - len(failures)
