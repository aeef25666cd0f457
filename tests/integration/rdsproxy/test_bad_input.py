"""Clients that send noise, too much, too little or nothing at all: the proxy and its other clients must not notice."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from spillway.rdsproxy import wire
from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.settings import ProxySettings, Target
from tests.conftest import drop_database, new_database
from tests.integration.rdsproxy.wire_client import (
    COPY_DONE,
    SYNC,
    Closed,
    Complaints,
    WireClient,
    bind,
    complaints,
    connected,
    copy_data,
    execute,
    extended,
    kinds,
    parse,
    texts,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.stack.postgres import PostgresServer

SEED = int(os.environ.get("SPILLWAY_SEED", "0")) or time.time_ns() % 1_000_000
SSL_REQUEST = wire.INT32.pack(8) + wire.INT32.pack(wire.SSL_REQUEST)
GIGABYTE = 1 << 30
#: How long the proxy may take to notice something.
PATIENCE_S = 15.0


@pytest.fixture(autouse=True)
def silence() -> Iterator[Complaints]:
    """No traceback in the log, no exception in the event loop."""
    for handler in complaints():
        yield handler
        gc.collect()  # tasks whose exceptions nobody asked for say so when they are collected


@pytest.fixture
def target(postgres: PostgresServer) -> Iterator[Target]:
    name = new_database(postgres)
    yield Target.parse(postgres.dsn(name))
    drop_database(postgres, name)


class Attacked:
    """A proxy with a pool of two, and a client that has been there from the start."""

    def __init__(self, proxy: BackgroundProxy, target: Target) -> None:
        self.proxy = proxy
        self.target = target
        self._asked = 0

    async def open(self, data: bytes = b"") -> WireClient:
        client = await WireClient.open(self.proxy.host, self.proxy.port)
        client.send(data)
        return client

    def logged_in(self, **parameters: str) -> Any:
        return connected(self.proxy.host, self.proxy.port, self.target, **parameters)

    async def healthy(self) -> None:
        """Both connections of the pool are right, for clients that come now."""
        async with self.logged_in() as one, self.logged_in() as two:
            for client in (one, two):
                assert kinds(await client.ask(wire.query("BEGIN"))) == "CZ"
            for client in (one, two):
                self._asked += 1
                asked = f"question {self._asked}"
                assert values(await client.ask(extended("SELECT $1::text", asked), SYNC)) == [asked]
                assert await client.value(f"SELECT '{asked}'") == asked
            await one.close()
            await two.close()
        await self.released()

    async def released(self) -> None:
        """Nobody holds a connection, and nobody is logged in."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            metrics = self.proxy.snapshot().cloudwatch
            left = metrics["ClientConnections"], metrics["DatabaseConnectionsCurrentlyBorrowed"]
            if left == (0, 0):
                return
            assert time.monotonic() < deadline, f"{left[0]} clients and {left[1]} borrowed connections are left"
            await asyncio.sleep(0.02)


@pytest.fixture
def attacked(target: Target) -> Iterator[Attacked]:
    with BackgroundProxy(settings(target)) as proxy:
        yield Attacked(proxy, target)


def settings(target: Target, **changes: Any) -> ProxySettings:
    defaults = {"listen_port": 0, "max_connections": 2, "tls": False, "startup_timeout": 20.0}
    return ProxySettings(target=target, **(defaults | changes))


# ── before the login ─────────────────────────────────────────────────────────────────────────────────────────────────

STARTUPS = {
    "one byte": b"\x80",
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "http with a body": b"POST /" + b"x" * 100_000,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "length 0": wire.INT32.pack(0) + bytes(8),
    "length 4": wire.INT32.pack(4) + bytes(8),
    "length 7": wire.INT32.pack(7) + bytes(8),
    "length of a gigabyte": wire.INT32.pack(GIGABYTE) + bytes(100),
    "negative length": b"\xff\xff\xff\xff" + bytes(100),
    "protocol 2": wire.INT32.pack(296) + wire.INT32.pack(2 << 16) + bytes(288),
    "no terminator": wire.INT32.pack(20) + wire.INT32.pack(wire.PROTOCOL_3_0) + b"user\0nobody\0",
    "not utf-8": wire.INT32.pack(16) + wire.INT32.pack(wire.PROTOCOL_3_0) + b"user\0\xff\0\0",
    "cancel": wire.INT32.pack(16) + wire.INT32.pack(wire.CANCEL_REQUEST) + bytes(8),
    "cancel with no key": wire.INT32.pack(8) + wire.INT32.pack(wire.CANCEL_REQUEST),
    "encryption for ever": SSL_REQUEST * 10,
}


@pytest.mark.parametrize("name", STARTUPS)
def test_what_is_no_startup(attacked: Attacked, name: str) -> None:
    async def scenario() -> None:
        client = await attacked.open(STARTUPS[name])
        if name == "one byte":
            client.writer.write_eof()
        answer = await client.reader.read(-1) if name != "encryption for ever" else await client.reader.readexactly(4)
        # An error in PostgreSQL's words, a refusal of encryption, or silence: never an invitation to log in.
        assert answer[:1] in {b"", b"E", b"N"}
        client.abort()
        await attacked.healthy()

    asyncio.run(scenario())


PASSWORDS = {
    "of a gigabyte": wire.HEADER.pack(wire.PASSWORD, GIGABYTE) + bytes(100),
    "of no length": wire.HEADER.pack(wire.PASSWORD, 0) + bytes(100),
    "of negative length": wire.HEADER.pack(wire.PASSWORD, 0xFFFFFFFF) + bytes(100),
    "that is a query": wire.query("SELECT 1"),
    "in the clear": wire.message(wire.PASSWORD, b"password\0"),
    "that is noise": wire.message(wire.PASSWORD, b"SCRAM-SHA-256\0\0\0\0\x04\xff\xff\xff\xff"),
    "that lies about its length": wire.message(wire.PASSWORD, b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=x"),
    "cut": b"p\0\0",
}


@pytest.mark.parametrize("name", PASSWORDS)
def test_what_is_no_password(attacked: Attacked, name: str) -> None:
    async def scenario() -> None:
        startup = wire.startup_message({"user": attacked.target.user, "database": attacked.target.database})
        client = await attacked.open(startup)
        assert (await client.message())[0] == wire.AUTHENTICATION
        client.send(PASSWORDS[name])
        if name == "cut":
            client.writer.write_eof()
        assert kinds(await client.ended()) == ("" if name == "cut" else "E")
        client.abort()
        await attacked.healthy()

    asyncio.run(scenario())


def test_noise_instead_of_a_startup(attacked: Attacked) -> None:
    random = Random(SEED)

    async def scenario() -> None:
        for _ in range(100):
            client = await attacked.open(random.randbytes(random.choice([1, 4, 7, 8, 100, 20_000])))
            if random.random() < 0.5:
                with suppress(OSError):  # the proxy was faster
                    client.writer.write_eof()
            await asyncio.sleep(0)
            client.abort()
        await attacked.healthy()

    print(f"SPILLWAY_SEED={SEED}")  # noqa: T201  (pytest shows it when the test fails)
    asyncio.run(scenario())


def test_hundreds_of_slow_startups(target: Target) -> None:
    """A byte now and then; they are let go when their time is over, and nobody waits for them."""
    startup = wire.startup_message({"user": target.user})

    async def scenario(attacked: Attacked) -> None:
        slow = [await attacked.open(startup[: 1 + number % 12]) for number in range(300)]
        half = [await attacked.open() for _ in range(50)]
        for client in half:
            client.writer.write_eof()
        await attacked.healthy()
        for _ in range(3):
            await asyncio.sleep(0.2)
            for client in slow:
                client.send(b"\0")
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(client.ended() for client in [*slow, *half]))
        for client in [*slow, *half]:
            client.abort()
        await attacked.healthy()

    with BackgroundProxy(settings(target, startup_timeout=1.5)) as proxy:
        asyncio.run(scenario(Attacked(proxy, target)))


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def over_tls(target: Target) -> Iterator[Attacked]:
    with BackgroundProxy(settings(target, tls=True)) as proxy:
        yield Attacked(proxy, target)


def test_plain_text_behind_a_request_for_tls_is_not_taken_as_protected(over_tls: Attacked) -> None:
    """CVE-2021-23222: what an eavesdropper put in front of the handshake must not become the start of the session."""
    startup = wire.startup_message({"user": over_tls.target.user, "database": over_tls.target.database})

    async def scenario() -> None:
        client = await over_tls.open(SSL_REQUEST + startup)
        answer = await client.reader.read(-1)
        # The startup is read as a handshake, and is none.
        assert answer[:1] == b"S"
        assert b"SCRAM" not in answer
        client.abort()
        await over_tls.healthy()

    asyncio.run(scenario())


def test_a_handshake_behind_stuffed_bytes_fails(over_tls: Attacked) -> None:
    startup = wire.startup_message({"user": over_tls.target.user})
    context = ssl.create_default_context(cafile=str(over_tls.proxy.ca_file))
    with socket.create_connection((over_tls.proxy.host, over_tls.proxy.port), timeout=PATIENCE_S) as plain:
        plain.sendall(SSL_REQUEST + startup)
        assert plain.recv(1) == b"S"
        with pytest.raises(OSError):  # noqa: PT011  (a reset or an alert, by who is faster)
            context.wrap_socket(plain, server_hostname="localhost")
    asyncio.run(over_tls.healthy())


HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)


@pytest.mark.parametrize("hello", [b"", HELLO[:1], HELLO[:5], HELLO, b"not TLS at all"], ids=range(5))
def test_a_handshake_that_is_cut(target: Target, hello: bytes) -> None:
    handler = Complaints()

    async def scenario(attacked: Attacked) -> None:
        clients = [await attacked.open(SSL_REQUEST + hello), await attacked.open(hello or SSL_REQUEST)]
        await asyncio.sleep(0.1)
        clients[0].abort()
        async with asyncio.timeout(PATIENCE_S):
            await clients[1].reader.read(-1)
        clients[1].abort()
        await attacked.healthy()
        await asyncio.sleep(1.5)  # more than the time for a start-up

    import logging  # noqa: PLC0415  (this test expects complaints, so it listens alone)

    others = list(logging.getLogger().handlers)
    logging.getLogger().handlers[:] = [handler]
    try:
        with BackgroundProxy(settings(target, tls=True, startup_timeout=1.0)) as proxy:
            asyncio.run(scenario(Attacked(proxy, target)))
    finally:
        logging.getLogger().handlers[:] = others
    assert not handler.seen, handler.seen[0]


# ── after the login ──────────────────────────────────────────────────────────────────────────────────────────────────

MESSAGES = {
    "unknown type": b"z\0\0\0\4",
    "unknown type, one byte": b"\0",
    "a server's type": wire.ready(),
    "a password": wire.message(wire.PASSWORD, b"again\0"),
    "length 0": b"Q\0\0\0\0",
    "length 1": b"S\0\0\0\1",
    "length 2": b"P\0\0\0\2",
    "length 3": b"B\0\0\0\3",
    "a query without a terminator": wire.message(wire.QUERY, b"SELECT 1"),
    "a query without a text": wire.message(wire.QUERY, b""),
    "a name without a terminator": wire.message(wire.PARSE, b"name"),
    "a text without a terminator": wire.message(wire.PARSE, b"\0SELECT 1"),
    "a startup": wire.startup_message({"user": "again"}),
    "a request for tls": SSL_REQUEST,
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("state", ["quiet", "in transaction", "piped"])
def test_what_is_no_message(attacked: Attacked, name: str, state: str) -> None:
    async def scenario() -> None:
        async with attacked.logged_in() as client:
            if state == "in transaction":
                await client.ask(wire.query("BEGIN"))
            client.send((wire.query("SELECT 1") if state == "piped" else b"") + MESSAGES[name])
            answer = await client.ended()
            assert kinds(answer)[-1:] == "E"
            assert texts(answer)[-1].startswith("invalid")
        await attacked.healthy()

    asyncio.run(scenario())


TRUNCATED = {
    "sync with a body": wire.message(wire.SYNC, b"body"),
    "describe of nothing": wire.message(wire.DESCRIBE, b""),
    "describe of what does not exist": wire.message(wire.DESCRIBE, b"Xname\0"),
    "describe without a terminator": wire.message(wire.DESCRIBE, b"Sname"),
    "close without a terminator": wire.message(wire.CLOSE, b"Sname"),
    "bind of nothing": wire.message(wire.BIND, b""),
    "bind without a terminator": wire.message(wire.BIND, b"portal"),
    "bind that lies about its parameters": wire.message(wire.BIND, b"\0\0\0\0\x7f\xff\0\0"),
    "bind with a negative value": wire.message(wire.BIND, b"\0\0\0\0\0\1\xff\xff\xff\xf0\0\0"),
    "execute of nothing": wire.message(wire.EXECUTE, b""),
    "execute without a number": wire.message(wire.EXECUTE, b"\0"),
    "parse that lies about its types": wire.parse(b"", b"SELECT 1\0\x7f\xff"),
    "parse without types": wire.message(wire.PARSE, b"\0SELECT 1\0"),
    "query with two texts": wire.message(wire.QUERY, b"SELECT 1\0SELECT 2\0"),
    "query that is not utf-8": wire.message(wire.QUERY, b"SELECT '\xff'\0"),
    "function call of nothing": wire.message(wire.FUNCTION_CALL, b""),
    "copy fail without a text": wire.message(wire.COPY_FAIL, b""),
    "copy data of nothing": copy_data(b"") * 1000,
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_what_postgresql_refuses_is_answered_by_postgresql(
    attacked: Attacked, postgres: PostgresServer, name: str
) -> None:
    """The same errors and the same readiness as without a proxy."""

    async def told(host: str, port: int) -> list[tuple[str, list[str]]]:
        async with connected(host, port, attacked.target) as client:
            answers = []
            for request in (TRUNCATED[name] + SYNC, wire.query("SELECT 'after'")):
                client.send(request)
                # What is answered twice, by an error and by Sync, has its second part in the next answer's place.
                answer = await client.answer()
                answers.append((kinds(answer), texts(answer)))
            return answers

    async def scenario() -> None:
        direct = await told(postgres.host, postgres.port)
        assert await told(attacked.proxy.host, attacked.proxy.port) == direct
        await attacked.healthy()

    asyncio.run(scenario())


ANNOUNCED = {
    "a query of a gigabyte": wire.HEADER.pack(wire.QUERY, GIGABYTE - 100) + b"SELECT 1",
    "a query of more than PostgreSQL takes": wire.HEADER.pack(wire.QUERY, GIGABYTE + 100) + b"SELECT 1",
    "a query of negative length": wire.HEADER.pack(wire.QUERY, 0xFFFFFFFF) + b"SELECT 1",
    "a bind of a gigabyte": wire.HEADER.pack(wire.BIND, GIGABYTE - 100) + b"\0\0",
    "a bind of a gigabyte, begun": wire.HEADER.pack(wire.BIND, GIGABYTE - 100) + bytes(100_000),
    "a parse of a gigabyte, begun": wire.HEADER.pack(wire.PARSE, GIGABYTE - 100) + b"\0" + b"x" * 100_000,
    "copy data of a gigabyte": wire.HEADER.pack(wire.COPY_DATA, GIGABYTE - 100) + b"row\n",
}


@pytest.mark.parametrize("name", ANNOUNCED)
def test_what_is_announced_and_never_comes(attacked: Attacked, name: str) -> None:
    async def scenario() -> None:
        async with attacked.logged_in() as client, attacked.logged_in() as other:
            client.send(ANNOUNCED[name])
            for number in range(3):
                await asyncio.sleep(0.02)
                assert await other.value(f"SELECT '{number}'") == str(number)
            client.abort()
            await other.close()
        await attacked.healthy()

    asyncio.run(scenario())


def test_noise_after_the_login(target: Target) -> None:
    random = Random(SEED)
    good = [wire.query("SELECT 1"), extended("SELECT 1") + SYNC, wire.query("BEGIN"), copy_data("x"), COPY_DONE, SYNC]

    def noise() -> bytes:
        data = bytearray(b"".join(random.choices(good, k=random.randint(1, 5))))
        for _ in range(random.randint(0, 4)):
            at = random.randrange(len(data))
            match random.randrange(4):
                case 0:
                    data[at] = random.randrange(256)
                case 1:
                    del data[at]
                case 2:
                    data[at:at] = random.randbytes(random.randint(1, 6))
                case _:
                    data[at:at] = bytes((random.choice(b"PBDESQCHdcfF"),)) + wire.INT32.pack(random.randint(4, 30))
        return bytes(data)

    async def one(attacked: Attacked) -> None:
        async with attacked.logged_in() as client:
            for _ in range(random.randint(1, 4)):
                client.send(noise())
                await asyncio.sleep(random.choice([0, 0, 0.002]))
            if random.random() < 0.5:
                with suppress(OSError):  # the proxy was faster
                    client.writer.write_eof()

    async def scenario(attacked: Attacked) -> None:
        async with attacked.logged_in() as healthy:
            for number in range(15):
                await asyncio.gather(*(one(attacked) for _ in range(20)))
                assert await healthy.value(f"SELECT 'round {number}'") == f"round {number}"
            await healthy.close()
        await attacked.healthy()

    print(f"SPILLWAY_SEED={SEED}")  # noqa: T201  (pytest shows it when the test fails)
    for strict in (True, False):
        with BackgroundProxy(settings(target, strict=strict, max_connections=6)) as proxy:
            asyncio.run(scenario(Attacked(proxy, target)))


def test_a_client_that_copies_and_never_stops(attacked: Attacked) -> None:
    async def scenario() -> None:
        async with attacked.logged_in() as client, attacked.logged_in() as other:
            await client.ask(wire.query("CREATE TABLE endless (line text)"))
            client.send(wire.query("COPY endless FROM STDIN"))
            await client.until(wire.COPY_IN)
            block = copy_data("x" * 999 + "\n") * 100

            async def copy() -> None:
                while True:
                    client.send(block)
                    await client.writer.drain()

            copying = asyncio.create_task(copy())
            for number in range(20):
                await asyncio.sleep(0.02)
                assert await other.value(f"SELECT '{number}'") == str(number)
            copying.cancel()
            client.abort()
            await other.close()
        await attacked.healthy()
        async with attacked.logged_in() as client:
            assert await client.value("SELECT count(*) FROM endless") == "0"
            await client.close()

    asyncio.run(scenario())


def test_much_data_of_a_copy_that_failed(attacked: Attacked) -> None:
    """The error comes while the client is still sending; it must be able to send the rest, and its next question."""

    async def scenario() -> None:
        async with attacked.logged_in() as client:
            for statement in (
                "CREATE TABLE refusing (line text)",
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(0.5); RAISE 'refused'; END $$",
                "CREATE TRIGGER refuse BEFORE INSERT ON refusing EXECUTE FUNCTION refuse()",
            ):
                await client.ask(wire.query(statement))
            client.send(wire.query("COPY refusing FROM STDIN"))
            await client.until(wire.COPY_IN)
            block = copy_data(b"x") * 10_000

            async def copy() -> None:
                for _ in range(400):
                    client.send(block)
                    await client.writer.drain()

            async with asyncio.timeout(PATIENCE_S):
                copying = asyncio.create_task(copy())
                assert kinds(await client.answer()) == "EZ"
                await copying
                client.send(COPY_DONE)
                assert await client.value("SELECT 'alive'") == "alive"
            await client.close()
        await attacked.healthy()

    asyncio.run(scenario())


# ── reading too little ───────────────────────────────────────────────────────────────────────────────────────────────

_PROXY = """
    import json, logging, sys, time
    from spillway.rdsproxy.background import BackgroundProxy
    from spillway.rdsproxy.settings import ProxySettings, Target
    logging.basicConfig(level=logging.ERROR)
    target = Target.parse(sys.argv[1])
    settings = ProxySettings(target=target, listen_port=0, max_connections=2, tls=False, unread_timeout=1.5)
    with BackgroundProxy(settings, admin_port=None) as proxy:
        print(proxy.port, flush=True)
        for line in sys.stdin:
            metrics = proxy.snapshot().cloudwatch
            print(int(metrics["ClientConnections"]), int(metrics["DatabaseConnectionsCurrentlyBorrowed"]), flush=True)
"""


def test_a_client_that_does_not_read(target: Target) -> None:
    """200 MB for somebody who never reads: not in the proxy's memory, not in the others' way, and not for ever."""
    url = f"postgresql://{target.user}:{target.password}@{target.host}:{target.port}/{target.database}"
    command = [sys.executable, "-c", textwrap.dedent(_PROXY), url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        try:
            assert it.stdin is not None
            assert it.stdout is not None
            assert it.stderr is not None
            asyncio.run(starve(int(it.stdout.readline()), target, it.pid))
            deadline = time.monotonic() + PATIENCE_S
            while True:
                it.stdin.write("?\n")
                it.stdin.flush()
                if (left := it.stdout.readline()) == "0 0\n":
                    break
                assert time.monotonic() < deadline, left
                time.sleep(0.05)
            it.stdin.close()
            assert it.wait(PATIENCE_S) == 0
            assert it.stderr.read() == ""
        finally:
            it.kill()


async def starve(port: int, target: Target, pid: int) -> None:
    async with connected("127.0.0.1", port, target) as other:
        await other.ask(wire.query("SELECT 1"))
        before = resident(pid)
        hungry = await WireClient.connect("127.0.0.1", port, target)
        hungry.writer.transport.pause_reading()  # type: ignore[attr-defined]
        hungry.send(wire.query("SELECT repeat('x', 10000) FROM generate_series(1, 20000)"))
        most, slowest, begin = before, 0.0, time.monotonic()
        while time.monotonic() < begin + 3.0:
            asked = time.monotonic()
            assert await other.value(f"SELECT '{asked}'") == str(asked)
            slowest = max(slowest, time.monotonic() - asked)
            most = max(most, resident(pid))
            await asyncio.sleep(0.01)
        assert most - before < 32 << 20, f"the proxy grew by {(most - before) >> 20} MB"
        assert slowest < 5.0
        hungry.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((Closed, ConnectionError)):
            await hungry.answer()
        hungry.abort()
        # The connection it held is gone, so both of the pool can be had again.
        async with connected("127.0.0.1", port, target) as third:
            await other.ask(wire.query("BEGIN"))
            assert await third.value("SELECT 'served'") == "served"
            await third.close()
        await other.close()


def resident(pid: int) -> int:
    """A process's memory in bytes."""
    if not Path("/proc").exists():
        pytest.skip("memory is read from /proc")
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# ── what must stay somebody's own ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def alone(target: Target) -> Iterator[Attacked]:
    """With a single connection, the next client gets what the last one left."""
    with BackgroundProxy(settings(target, max_connections=1)) as proxy:
        yield Attacked(proxy, target)


@pytest.mark.parametrize("broken", [wire.parse(b"", b"SELECT 1\0\0\5"), parse(b"SELECT '\xff'")], ids=["types", "text"])
def test_a_broken_parse_does_not_reach_what_another_left(alone: Attacked, broken: bytes) -> None:
    async def scenario() -> None:
        async with alone.logged_in() as one, alone.logged_in() as two:
            assert values(await one.ask(extended("SELECT 'secret'"), SYNC)) == ["secret"]
            assert kinds(await two.ask(broken, SYNC)) == "EZ"
            assert values(await two.ask(bind(), execute(), SYNC)) == []

    asyncio.run(scenario())


def test_an_answer_behind_a_copy_that_failed_late(alone: Attacked) -> None:
    async def scenario() -> None:
        async with alone.logged_in() as one, alone.logged_in() as two:
            await one.ask(wire.query("CREATE VIEW viewed AS SELECT 1 AS one"))
            copy = parse("COPY viewed FROM STDIN") + bind() + execute() + SYNC + copy_data("1\n") + COPY_DONE
            one.send(copy + extended("SELECT 'secret', pg_sleep(0.5)") + SYNC)
            assert kinds(await one.answer()) == "12GEZ"
            asking = asyncio.create_task(two.ask(wire.query("SELECT 'own'")))
            assert values(await one.answer()) == ["secret"]
            await one.close()
            assert values(await asking) == ["own"]

    asyncio.run(scenario())


def test_a_cut_statement_is_never_run(alone: Attacked) -> None:
    """Two bytes are missing; the first two of the proxy's goodbye to the database would be taken for them."""

    async def scenario() -> None:
        statement = wire.query("INSERT INTO cut VALUES (1) -- " + "x" * 40_000 + ".")
        async with alone.logged_in() as one:
            await one.ask(wire.query("CREATE TABLE cut (n int)"))
            await one.close()
        async with alone.logged_in() as one:
            one.send(statement[:-2])
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.3)
        async with alone.logged_in() as two:
            assert await two.value("SELECT count(*) FROM cut") == "0"

    asyncio.run(scenario())


def test_a_parameter_after_a_client_with_another_encoding(alone: Attacked) -> None:
    async def scenario() -> None:
        async with alone.logged_in(client_encoding="LATIN1") as one, alone.logged_in(application_name="ü") as two:
            assert await one.value("SELECT 1") == "1"
            # PostgreSQL shows what is not ASCII as bytes; with one encoding too many there are four of them.
            assert await two.value("SHOW application_name") == r"\xc3\xbc"

    asyncio.run(scenario())


def test_a_limit_on_clients_holds_however_often_it_refuses(target: Target) -> None:
    async def scenario(attacked: Attacked) -> None:
        async with attacked.logged_in():
            for _ in range(3):
                with pytest.raises(Exception, match="maximum number of client connections"):
                    await WireClient.connect(attacked.proxy.host, attacked.proxy.port, attacked.target)
            assert attacked.proxy.snapshot().cloudwatch["ClientConnections"] == 1

    with BackgroundProxy(settings(target, max_client_connections=1)) as proxy:
        asyncio.run(scenario(Attacked(proxy, target)))


def test_a_name_that_was_closed_can_be_used_again(target: Target) -> None:
    async def scenario(attacked: Attacked) -> None:
        async with attacked.logged_in() as one, attacked.logged_in() as two:
            assert kinds(await one.ask(parse("SELECT 'old'", b"s"), SYNC)) == "1Z"
            await two.ask(wire.query("BEGIN"))  # takes the connection that has the statement
            assert values(await one.ask(bind(statement=b"s"), execute(), SYNC)) == ["old"]
            assert kinds(await one.ask(wire.close_statement(b"s"), SYNC)) == "3Z"
            await two.ask(wire.query("COMMIT"))  # and gives it back: it is the next to be lent
            answer = await one.ask(parse("SELECT 'new'", b"s"), bind(statement=b"s"), execute(), SYNC)
            assert (texts(answer), values(answer)) == ([], ["new"])

    with BackgroundProxy(settings(target, strict=False)) as proxy:
        asyncio.run(scenario(Attacked(proxy, target)))


def test_a_name_whose_first_text_failed(target: Target) -> None:
    async def scenario(attacked: Attacked) -> None:
        async with attacked.logged_in() as one, attacked.logged_in() as two:
            assert kinds(await one.ask(parse("SELECT * FROM missing", b"s"), SYNC)) == "EZ"
            assert kinds(await one.ask(parse("SELECT 'good'", b"s"), SYNC)) == "1Z"
            await two.ask(wire.query("BEGIN"))  # takes the connection that has the statement
            assert values(await one.ask(bind(statement=b"s"), execute(), SYNC)) == ["good"]

    with BackgroundProxy(settings(target, strict=False)) as proxy:
        asyncio.run(scenario(Attacked(proxy, target)))
