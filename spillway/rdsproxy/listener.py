"""Accepting clients: what comes before PostgreSQL's start-up packet is settled on the bare socket.

The first bytes are looked at without taking them. An SSLRequest is answered; a TLS handshake without one is direct TLS
(PostgreSQL 17); then the socket becomes an asyncio transport, with TLS or without. Nothing read in the clear can end
up inside the encrypted stream (CVE-2021-23222 was that).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
from typing import TYPE_CHECKING

from spillway.rdsproxy import wire
from spillway.rdsproxy.client import ClientConnection

if TYPE_CHECKING:
    from spillway.rdsproxy.proxy import RdsProxy

log = logging.getLogger("spillway.rdsproxy")

#: First byte of a TLS record that carries a handshake (RFC 8446, 5.1).
_TLS_HANDSHAKE = b"\x16"
#: A client that sends less than 8 bytes at first is looked at again after this many seconds, then ever more rarely: a
#: look that leaves the bytes in place would be repeated at once for ever.
_LOOK_AGAIN_S = 0.02
_LOOK_RARELY_S = 1.0
_REQUEST_SIZE = 8
_BACKLOG = 4096
#: libpq asks for GSS encryption, then for TLS; nobody asks more often.
_MAX_REQUESTS = 4


class Listener:
    """A listening socket whose clients become `ClientConnection`s of `proxy`."""

    def __init__(self, proxy: RdsProxy, context: ssl.SSLContext | None) -> None:
        self._proxy = proxy
        self._context = context
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self.port = 0

    def start(self, host: str, port: int) -> None:
        """Bind and accept. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except (OSError, OverflowError):
            listening.close()
            raise
        self._socket = listening
        self.port = listening.getsockname()[1]
        self._spawn(self._accept(listening))

    async def close(self) -> None:
        """Accept nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    def _spawn(self, coroutine: object) -> None:
        task: asyncio.Task[None] = self._proxy.loop.create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                accepted, address = await self._proxy.loop.sock_accept(listening)
            except OSError as error:  # out of file descriptors: those who wait in the backlog may still come in later
                log.warning("Accepting a client failed: %s.", error)
                await asyncio.sleep(0.1)
                continue
            self._proxy.metrics.client_connections_received += 1
            self._spawn(self._welcome(accepted, f"{address[0]}:{address[1]}"))

    async def _welcome(self, accepted: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(self._proxy.settings.startup_timeout):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                secure, direct = await self._negotiate(accepted)
                client = ClientConnection(self._proxy, address, next(self._numbers), tls=secure, direct_tls=direct)
                await self._proxy.loop.connect_accepted_socket(
                    lambda: client, accepted, ssl=self._context if secure else None
                )
        except (OSError, TimeoutError, ssl.SSLError) as error:
            log.debug("A client from %s went away before it said who it is: %s", address, error)
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            raise

    async def _negotiate(self, accepted: socket.socket) -> tuple[bool, bool]:
        """Whether the client wants TLS, and whether it began without asking. Raises OSError."""
        for _ in range(_MAX_REQUESTS):
            first = await self._look(accepted)
            if first[:1] == _TLS_HANDSHAKE and self._context is not None:
                return True, True
            request = int.from_bytes(first[4:8], "big") if first[:4] == b"\0\0\0\x08" else 0
            if request not in {wire.SSL_REQUEST, wire.GSSENC_REQUEST}:
                return False, False
            accepted.recv(_REQUEST_SIZE)
            secure = request == wire.SSL_REQUEST and self._context is not None
            accepted.send(b"S" if secure else b"N")
            if secure:
                return True, False
        raise ConnectionError("too many requests for encryption")

    async def _look(self, accepted: socket.socket) -> bytes:
        """The first 8 bytes, or 1 if it is a TLS handshake's, left where they are."""
        loop = self._proxy.loop
        pause = _LOOK_AGAIN_S
        while True:
            readable = loop.create_future()
            loop.add_reader(accepted.fileno(), _wake, readable)
            try:
                await readable
            finally:
                loop.remove_reader(accepted.fileno())
            first = accepted.recv(_REQUEST_SIZE, socket.MSG_PEEK)
            if not first:
                raise ConnectionError("closed")
            # A packet's length is from 8 to 10,000; what is not is for the start-up's own checks to refuse.
            if len(first) == _REQUEST_SIZE or first[0] or (len(first) >= 4 and first[:4] < b"\0\0\0\x08"):
                return first
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LOOK_RARELY_S)


def _wake(readable: asyncio.Future[None]) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        readable.set_result(None)
