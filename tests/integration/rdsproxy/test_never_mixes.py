"""Every byte of every answer belongs to its own question: hundreds of clients, a handful of database connections.

Each request carries a token that nobody else uses, and its answer must hold that token and no other. Clients come, go
at any point, lose their connection, and kill each other's. By hand for longer, or again as it failed:

    SPILLWAY_SOAK_S=600 SPILLWAY_SEED=4711 pytest tests/integration/rdsproxy/test_never_mixes.py
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import psycopg
import pytest

from spillway.rdsproxy import wire
from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.database_login import DatabaseRefused
from spillway.rdsproxy.settings import ProxySettings, Target
from tests.conftest import drop_database, new_database
from tests.integration.rdsproxy.wire_client import (
    COPY_DONE,
    FLUSH,
    SYNC,
    Closed,
    Complaints,
    Message,
    WireClient,
    bind,
    complaints,
    copy_data,
    copy_fail,
    describe,
    execute,
    extended,
    kinds,
    parse,
    status,
    texts,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from spillway.stack.postgres import PostgresServer

CLIENTS, POOL = 160, 8
SOAK_S = float(os.environ.get("SPILLWAY_SOAK_S", "5"))
SEED = int(os.environ.get("SPILLWAY_SEED", "0")) or time.time_ns() % 1_000_000
#: How long the proxy may take to notice that clients are gone.
SETTLE_S = 15.0

_TOKEN = re.compile(rb"t\d+x\d+x\d+")
SCHEMA = """
    CREATE TABLE copied (token text CHECK (token NOT LIKE 'bad%'));
    CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no %', TG_ARGV[0]; END $$;
    CREATE VIEW viewed AS SELECT 1 AS one
"""


@pytest.fixture(autouse=True)
def silence() -> Iterator[Complaints]:
    for handler in complaints():
        yield handler
        gc.collect()  # tasks whose exceptions nobody asked for say so when they are collected


@pytest.fixture
def target(postgres: PostgresServer) -> Iterator[Target]:
    name = new_database(postgres)
    with psycopg.connect(postgres.dsn(name), autocommit=True) as owner:
        owner.execute(SCHEMA)
    yield Target.parse(postgres.dsn(name))
    drop_database(postgres, name)


def settings(target: Target, *, strict: bool, pool: int = POOL) -> ProxySettings:
    return ProxySettings(target=target, listen_port=0, max_connections=pool, strict=strict, tls=False, seed=SEED)


class Mixed(AssertionError):
    """An answer, or a part of one, that belongs to another question."""


@dataclass
class Tally:
    """What all clients of one run have done."""

    done: Counter[str] = field(default_factory=Counter)
    mixed: list[str] = field(default_factory=list)
    ended: int = 0


class Asker:
    """One client after the other, each asking in every way there is, until the time is over."""

    def __init__(self, number: int, proxy: BackgroundProxy, target: Target, tally: Tally, *, strict: bool) -> None:
        self.number = number
        self.random = Random(f"{SEED} {number}")
        self._proxy = proxy
        self._target = target
        self._tally = tally
        self._strict = strict
        self._client: WireClient
        self._generation = 0
        self._count = 0
        self._tokens: list[str] = []
        self._named: dict[bytes, str] = {}
        self._closed: set[bytes] = set()
        self._bad_rows = 0.4  # share of the COPYs that fail
        self._prepared = ""  # the token in the unnamed statement

    async def run(self, until: float) -> None:
        while time.monotonic() < until and not self._tally.mixed:
            self._generation += 1
            self._named, self._closed, self._prepared = {}, set(), ""
            try:
                self._client = await WireClient.connect(self._proxy.host, self._proxy.port, self._target)
            except (Closed, DatabaseRefused, ConnectionError):
                continue
            try:
                await self._session(until)
            except (Closed, ConnectionError) as end:
                # Somebody dropped the connection: by a fault, or by pg_terminate_backend.
                self._tally.ended += 1
                self._own(getattr(end, "partial", b""))
            except Mixed as mixed:
                self._tally.mixed.append(f"client {self.number}: {mixed}")
            finally:
                self._client.abort()

    def ways(self) -> list[Callable[[], Awaitable[None]]]:
        """Those after which nothing is left behind; the commonest come twice."""
        return [
            self._simple, self._simple, self._several_statements, self._unnamed, self._unnamed, self._prepared_before,
            self._prepared_before, self._pipeline, self._pipeline, self._transaction, self._transaction,
            self._failed_transaction, self._copy_out, self._copy_in, self._copy_in_extended, self._copy_blind,
            self._copy_refused, self._notice, self._error, self._portal, self._large,
        ]  # fmt: skip

    async def one_by_one(self, client: WireClient, given_back: Callable[[], Awaitable[None]]) -> None:
        """Every way a few times; after each, `given_back` waits for the connection."""
        self._client = client
        self._bad_rows = 0.0  # with a Sync ahead they keep the connection: whether that was answered nobody can know
        for way in self.ways() * 4:
            self._tokens = []
            await way()
            self._nothing_behind()
            await given_back()

    async def _session(self, until: float) -> None:
        ways = [*self.ways(), self._query_unsynced, self._setting]
        if not self._strict:
            ways += [self._by_name] * 4
        while time.monotonic() < until and not self._tally.mixed:
            self._tokens = []
            chance = self.random.random()
            if chance < 0.02:
                await self._vanish()
                return
            if chance < 0.025:
                await self._kill()
            elif chance < 0.03:
                await self._cancel()
            elif chance < 0.04:
                await asyncio.sleep(self.random.random() * 0.05)
            else:
                way = self.random.choice(ways)
                await way()
                self._tally.done[way.__name__] += 1
            self._nothing_behind()
            if self.random.random() < 0.01:
                await self._client.close()
                return

    def _not_killed(self, answer: list[Message]) -> None:
        """Raises Closed when pg_terminate_backend ended this connection."""
        for kind, body in answer:
            if kind == wire.ERROR and wire.error_fields(body)["S"] == "FATAL":
                if wire.error_fields(body)["C"] != "57P01":
                    raise Mixed(f"refused: {body!r}")
                raise Closed(body)

    def _nothing_behind(self) -> None:
        """No byte follows the answer; only the farewell of a connection that was killed may, right behind it."""
        behind = bytes(self._client.reader._buffer)  # type: ignore[attr-defined]  # (StreamReader tells it nowhere else)
        if behind[wire.HEADER_SIZE :].startswith(b"SFATAL"):
            raise Closed
        if behind:
            raise Mixed(f"bytes behind the answer: {behind[:300]!r}")

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _token(self) -> str:
        self._count += 1
        token = f"t{self.number}x{self._generation}x{self._count}"
        self._tokens.append(token)
        return token

    def _own(self, data: bytes) -> None:
        """Every token in `data` is one of this client, asked for just now."""
        for token in _TOKEN.findall(data):
            mine = token.decode()
            # In half a message, or in a message cut by PostgreSQL, there may be half a token.
            if not any(one.startswith(mine) for one in [*self._tokens, *self._named.values(), self._prepared]):
                raise Mixed(f"{mine} in {data[:300]!r}, expected {self._tokens}")

    async def _read(self, *last: int) -> list[Message]:
        """The messages up to one of these kinds, all of them this client's own."""
        messages = await self._client.until(*last)
        for _, body in messages:
            self._own(body)
        self._not_killed(messages)
        return messages

    async def _answer(self, shape: str, expected: list[str], state: str = "I") -> list[Message]:
        """One answer: the types of its messages, the values of its rows, and the transaction status."""
        answer = await self._read(wire.READY)
        got = (kinds(answer), values(answer), status(answer))
        if got != (shape, expected, state):
            raise Mixed(f"expected {(shape, expected, state)}, got {got}, errors {texts(answer)}")
        return answer

    def _send(self, *messages: bytes) -> None:
        """In one piece, or cut somewhere."""
        data = b"".join(messages)
        self._client.send(data)

    async def _send_in_pieces(self, *messages: bytes) -> None:
        data = b"".join(messages)
        for _ in range(self.random.randint(0, 3)):
            cut = self.random.randint(0, len(data))
            self._client.send(data[:cut])
            data = data[cut:]
            await asyncio.sleep(0)
        self._client.send(data)

    # ── ways to ask ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _simple(self) -> None:
        token = self._token()
        self._prepared = ""
        await self._send_in_pieces(wire.query(f"SELECT '{token}'"))
        await self._answer("TDCZ", [token])

    async def _several_statements(self) -> None:
        one, two = self._token(), self._token()
        self._prepared = ""
        self._send(wire.query(f"SELECT '{one}'; SELECT '{two}'; SELECT 1/0 AS {self._token()}; SELECT 'never'"))
        await self._answer("TDCTDCEZ", [one, two])

    async def _unnamed(self) -> None:
        token = self._token()
        self._prepared = ""
        await self._send_in_pieces(extended("SELECT $1::text", token), SYNC)
        await self._answer("12TDCZ", [token])

    async def _prepared_before(self) -> None:
        """As asyncpg and pgx do: the statement is made in one transaction and run in others."""
        if not self._prepared or self.random.random() < 0.3:
            token = self._token()
            self._send(parse(f"SELECT '{token}' || $1"), describe(), SYNC)
            await self._answer("1tTZ", [])
            self._prepared = token
        await asyncio.sleep(self.random.choice([0, 0, 0.005]))
        suffix = self._token()
        await self._send_in_pieces(bind(suffix), execute(), SYNC)
        await self._answer("2DCZ", [self._prepared + suffix])

    async def _by_name(self) -> None:
        """All clients use the same few names for texts of their own."""
        name = self.random.choice([one for one in (b"s1", b"s2", b"s3", b"statement") if one not in self._closed])
        if name in self._named and len(self._closed) < 3 and self.random.random() < 0.1:
            self._send(wire.close_statement(name), SYNC)
            await self._answer("3Z", [])
            del self._named[name]
            self._closed.add(name)  # using it again has a test of its own, in test_bad_input.py
            return
        if name not in self._named:
            token = self._token()
            await self._send_in_pieces(parse(f"SELECT '{token}' || $1", name), describe(name), SYNC)
            await self._answer("1tTZ", [])
            self._named[name] = token
        suffix = self._token()
        await self._send_in_pieces(bind(suffix, statement=name), execute(), SYNC)
        await self._answer("2DCZ", [self._named[name] + suffix])

    async def _pipeline(self) -> None:
        """Several at once; one of them fails and takes what follows up to its Sync with it."""
        tokens = [self._token() for _ in range(self.random.randint(2, 6))]
        fails = self.random.choice([None, *tokens])
        self._prepared = ""
        requests, answers = b"", []
        for token in tokens:
            if token == fails:
                requests += extended(f"SELECT '{token}'::int") + extended("SELECT 'skipped'") + SYNC
                answers.append(("EZ", []))
            elif self.random.random() < 0.3:
                requests += wire.query(f"SELECT '{token}'")
                answers.append(("TDCZ", [token]))
            else:
                requests += extended("SELECT $1::text", token) + extended("SELECT 'and'") + SYNC
                answers.append(("12TDC12TDCZ", [token, "and"]))
        await self._send_in_pieces(requests)
        for shape, expected in answers:
            await self._answer(shape, expected)

    async def _transaction(self) -> None:
        self._prepared = ""
        self._send(wire.query("BEGIN"))
        await self._answer("CZ", [], "T")
        for _ in range(self.random.randint(1, 3)):
            token = self._token()
            await self._send_in_pieces(extended("SELECT $1::text", token), SYNC)
            await self._answer("12TDCZ", [token], "T")
            if self.random.random() < 0.3:
                await asyncio.sleep(self.random.random() * 0.01)
        self._send(wire.query(self.random.choice(["COMMIT", "ROLLBACK"])))
        await self._answer("CZ", [])

    async def _failed_transaction(self) -> None:
        self._prepared = ""
        token = self._token()
        self._send(wire.query("BEGIN") + extended(f"SELECT '{token}'::int") + SYNC + wire.query("SELECT 1"))
        await self._answer("CZ", [], "T")
        await self._answer("EZ", [], "E")
        await self._answer("EZ", [], "E")
        if self.random.random() < 0.5:
            await asyncio.sleep(0.005)
        self._send(wire.query("COMMIT"))
        await self._answer("CZ", [])

    async def _portal(self) -> None:
        """Rows in portions, with Flush; the Sync comes when all are there."""
        self._prepared = ""
        token = self._token()
        self._send(parse("SELECT $1 FROM generate_series(1, 3)", types=0), bind(token), execute(rows=2), FLUSH)
        answer = await self._read(ord("s"), wire.ERROR)
        if kinds(answer) != "12DDs" or values(answer) != [token] * 2:
            raise Mixed(f"a portal gave {answer}")
        self._send(execute(), SYNC)
        await self._answer("DCZ", [token])

    async def _large(self) -> None:
        """More than fits into one read, and enough parameters that nothing is in one piece."""
        self._prepared = ""
        token = self._token()
        filling = "x" * self.random.choice([300, 9_000, 70_000, 200_000])
        await self._send_in_pieces(extended("SELECT $1::text || $2", token, filling), SYNC)
        await self._answer("12TDCZ", [token + filling])

    async def _query_unsynced(self) -> None:
        """A simple query among extended messages. It keeps the connection, so it is rare and its client leaves."""
        if self.random.random() > 0.05:
            return
        one, two = self._token(), self._token()
        self._send(extended(f"SELECT '{one}'::int") + wire.query(f"SELECT '{two}'") + SYNC)
        await self._answer("EZ", [])
        raise Closed

    async def _setting(self) -> None:
        """What pins is there until the client leaves, which it soon does."""
        if self.random.random() > 0.05:
            return
        self._prepared = ""
        token = self._token()
        self._send(wire.query(f"SET spillway.token = '{token}'"))
        await self._answer("CZ", [])
        for _ in range(3):
            await asyncio.sleep(0.005)
            self._send(wire.query("SHOW spillway.token"))
            await self._answer("TDCZ", [token])
        raise Closed

    async def _copy_out(self) -> None:
        self._prepared = ""
        token = self._token()
        rows = self.random.choice([1, 3, 1_000])
        sql = f"COPY (SELECT '{token}' FROM generate_series(1, {rows})) TO STDOUT"  # noqa: S608
        self._send(*self.random.choice([(wire.query(sql),), (parse(sql), bind(), execute(), SYNC)]))
        answer = await self._read(wire.READY)
        for kind, body in answer:
            if kind == wire.COPY_DATA and body.rstrip(b"\n") != token.encode():
                raise Mixed(f"COPY of {token} gave {body!r}")
        if kinds(answer).replace("d", "") not in {"HcCZ", "12HcCZ"}:
            raise Mixed(f"COPY TO answered {kinds(answer)[:30]}")

    def _rows(self, token: str) -> tuple[bytes, bool]:
        """CopyData messages, and whether the table will take them."""
        rows = [token] * self.random.choice([1, 3, 400])
        good = self.random.random() >= self._bad_rows
        if not good:
            rows[self.random.randrange(len(rows))] = f"bad {token}"
        return b"".join(copy_data(row + "\n") for row in rows), good

    async def _copy_in(self) -> None:
        self._prepared = ""
        token = self._token()
        self._send(wire.query("COPY copied FROM STDIN"))
        await self._copying("G")
        rows, good = self._rows(token)
        if self.random.random() < 0.2:
            await self._send_in_pieces(rows, copy_fail(f"no {token}"))
            good = False
        else:
            await self._send_in_pieces(rows, COPY_DONE)
        await self._answer("CZ" if good else "EZ", [])
        await self._read_back(token, good)

    async def _copy_in_extended(self) -> None:
        """As libpq does, with a Sync ahead that COPY ignores; or with Flush."""
        self._prepared = ""
        token = self._token()
        self._send(parse("COPY copied FROM STDIN"), bind(), execute(), self.random.choice([SYNC, FLUSH]))
        await self._copying("12G")
        rows, good = self._rows(token)
        await self._send_in_pieces(rows, COPY_DONE, SYNC)
        await self._answer("CZ" if good else "EZ", [])
        await self._read_back(token, good)

    async def _copy_blind(self) -> None:
        """Data and the next question without waiting to be asked."""
        self._prepared = ""
        token, after = self._token(), self._token()
        rows, good = self._rows(token)
        more = wire.query(f"SELECT '{after}'")
        if self.random.random() < 0.5:
            self._send(wire.query("COPY copied FROM STDIN"), rows, COPY_DONE, more)
            await self._answer("GCZ" if good else "GEZ", [])
        else:
            early = self.random.choice([b"", SYNC])
            self._send(parse("COPY copied FROM STDIN"), bind(), execute(), early, rows, COPY_DONE, SYNC, more)
            await self._answer("12GCZ" if good else "12GEZ", [])
        await self._answer("TDCZ", [after])
        await self._read_back(token, good)

    async def _copy_refused(self) -> None:
        """The data of a COPY that never began, and what follows it."""
        self._prepared = ""
        table, after = self._token(), self._token()
        rows = copy_data("row\n") * self.random.choice([0, 1, 400])
        await self._send_in_pieces(wire.query(f"COPY {table} FROM STDIN"), rows, COPY_DONE)
        if self.random.random() < 0.5:
            await self._send_in_pieces(wire.query(f"SELECT '{after}'"))
            await self._answer("EZ", [])
            await self._answer("TDCZ", [after])
        else:
            await self._answer("EZ", [])
            await self._send_in_pieces(copy_data("late\n"), copy_fail("late"), wire.query(f"SELECT '{after}'"))
            await self._answer("TDCZ", [after])

    async def _copying(self, shape: str) -> None:
        answer = await self._read(wire.COPY_IN, wire.ERROR)
        if kinds(answer) != shape:
            raise Mixed(f"expected {shape}, got {answer}")

    async def _read_back(self, token: str, good: bool) -> None:
        self._send(extended("DELETE FROM copied WHERE token = $1 RETURNING token", token), SYNC)
        answer = await self._read(wire.READY)
        if bool(values(answer)) != good or set(values(answer)) - {token}:
            raise Mixed(f"reading {token} back gave {answer[:5]}")

    async def _notice(self) -> None:
        self._prepared = ""
        one, two = self._token(), self._token()
        await self._send_in_pieces(
            wire.query(f"DO $$ BEGIN RAISE NOTICE '{one}'; RAISE WARNING '{two}'; END $$"),
        )
        answer = await self._answer("NNCZ", [])
        if texts(answer, wire.NOTICE) != [one, two]:
            raise Mixed(f"notices {texts(answer, wire.NOTICE)}, expected {[one, two]}")

    async def _error(self) -> None:
        self._prepared = ""
        token = self._token()
        sql = f"DO $$ BEGIN RAISE EXCEPTION '{token}'; END $$"
        self._send(*self.random.choice([(wire.query(sql),), (extended(sql), SYNC)]))
        answer = await self._read(wire.READY)
        if texts(answer) != [token] or status(answer) != "I":
            raise Mixed(f"errors {texts(answer)}, expected {token}")

    # ── troublemakers ────────────────────────────────────────────────────────────────────────────────────────────

    async def _vanish(self) -> None:
        """In the middle of a request, of an answer, or of a transaction."""
        token = self._token()
        slow = f"SELECT '{token}', pg_sleep(0.02), pg_sleep(0.02), pg_sleep(0.02)"
        requests = self.random.choice(
            [
                wire.query(f"SELECT '{token}'"),
                wire.query(slow),
                wire.query(f"BEGIN; SELECT '{token}'"),
                extended("SELECT $1::text FROM generate_series(1, 50000)", token) + SYNC,
                parse(f"SELECT '{token}'") + bind(),
                extended(slow) + FLUSH,
                wire.query("COPY copied FROM STDIN") + copy_data(token),
                extended("SELECT $1::text", "x" * 100_000) + SYNC,
            ]
        )
        self._send(requests[: self.random.choice([len(requests), self.random.randint(1, len(requests))])])
        await asyncio.sleep(self.random.choice([0, 0.002, 0.02]))
        if self.random.random() < 0.3:
            self._client.writer.write_eof()
            await asyncio.sleep(0)
        self._tally.done["_vanish"] += 1

    async def _kill(self) -> None:
        """End a database connection, perhaps another client's, perhaps this one's."""
        self._prepared = ""
        self._send(
            wire.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' ORDER BY random() LIMIT 1"
            )
        )
        answer = await self._read(wire.READY)
        if kinds(answer) != "TDCZ":
            raise Closed
        self._tally.done["_kill"] += 1

    async def _cancel(self) -> None:
        """RDS Proxy ignores it; whoever's key it is, nobody's answer may change."""
        other = await WireClient.open(self._proxy.host, self._proxy.port)
        other.send(wire.INT32.pack(16) + wire.INT32.pack(wire.CANCEL_REQUEST) + wire.INT32.pack(self.number) + bytes(4))
        await other.ended()
        other.abort()
        self._tally.done["_cancel"] += 1


async def storm(proxy: BackgroundProxy, target: Target, tally: Tally, *, strict: bool) -> None:
    until = time.monotonic() + SOAK_S
    askers = [Asker(number, proxy, target, tally, strict=strict) for number in range(CLIENTS)]
    faults = asyncio.create_task(drop_connections(proxy))
    try:
        await asyncio.gather(*(asker.run(until) for asker in askers))
    finally:
        faults.cancel()


async def drop_connections(proxy: BackgroundProxy) -> None:
    while True:
        await asyncio.sleep(SOAK_S / 8)
        await asyncio.to_thread(proxy.fault, "drop-connections", count=2)


def settled(proxy: BackgroundProxy) -> dict[str, float]:
    """The proxy's numbers, once it has let go of everything or had its time."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        metrics = proxy.snapshot().cloudwatch
        left = {
            name: metrics[name]
            for name in (
                "ClientConnections",
                "DatabaseConnectionsCurrentlyBorrowed",
                "DatabaseConnectionsCurrentlyInTransaction",
                "DatabaseConnectionsCurrentlySessionPinned",
            )
        }
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def nobody_in_transaction(postgres: PostgresServer, target: Target) -> list[tuple[str, str]]:
    """Backends of this database that are in a transaction though all clients are gone; the last ones get their time."""
    deadline = time.monotonic() + SETTLE_S
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        while True:
            rows = admin.execute(
                "SELECT state, query FROM pg_stat_activity WHERE datname = %s AND state <> 'idle'", (target.database,)
            ).fetchall()
            if not rows or time.monotonic() > deadline:
                return rows
            time.sleep(0.05)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
def test_every_answer_belongs_to_its_question(postgres: PostgresServer, target: Target, strict: bool) -> None:
    print(f"SPILLWAY_SEED={SEED}")  # noqa: T201  (pytest shows it when the test fails)
    tally = Tally()
    with BackgroundProxy(settings(target, strict=strict)) as proxy:
        asyncio.run(storm(proxy, target, tally, strict=strict))
        assert not tally.mixed, f"SPILLWAY_SEED={SEED}\n" + "\n".join(tally.mixed[:5])
        assert not any(settled(proxy).values()), settled(proxy)
        assert nobody_in_transaction(postgres, target) == []
        asyncio.run(everything_works(proxy, target))
        rules = Counter(pin.rule for pin in proxy.pins)
        assert set(rules) <= {"irregular-protocol", "set"}, rules  # on purpose: _query_unsynced and _setting
    assert sum(tally.done.values()) > CLIENTS
    print(dict(tally.done), "ended", tally.ended)  # noqa: T201


def test_every_way_to_ask_gives_its_connection_back(target: Target) -> None:
    """Nothing but a transaction keeps a connection: a proxy that is only careful would starve everybody."""
    with BackgroundProxy(settings(target, strict=True, pool=1)) as proxy:

        async def given_back() -> None:
            deadline = time.monotonic() + SETTLE_S
            while proxy.snapshot().cloudwatch["DatabaseConnectionsCurrentlyBorrowed"]:
                assert time.monotonic() < deadline, "the connection is kept"
                await asyncio.sleep(0.001)

        async def scenario() -> None:
            client = await WireClient.connect(proxy.host, proxy.port, target)
            await Asker(1, proxy, target, Tally(), strict=True).one_by_one(client, given_back)
            await client.close()

        asyncio.run(scenario())
        assert not proxy.pins


async def everything_works(proxy: BackgroundProxy, target: Target) -> None:
    """As many at once as the pool has connections."""
    clients = [await WireClient.connect(proxy.host, proxy.port, target) for _ in range(POOL)]
    for client in clients:
        assert kinds(await client.ask(wire.query("BEGIN"))) == "CZ"
    for number, client in enumerate(clients):
        assert await client.value(f"SELECT 'works {number}'") == f"works {number}"
    for client in clients:
        await client.close()
