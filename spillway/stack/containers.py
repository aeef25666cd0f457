"""The local stack for containers: `sam local invoke` runs functions in Docker, where 127.0.0.1 is the container itself.

Containers reach this machine under one address, the gateway of Docker's default network. There a `Gateway` listens for
them, on the same port numbers as the stack's servers on 127.0.0.1, and for nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spillway.stack import ports
from spillway.stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

#: The access key that SAM gives to functions where it finds none (samcli/local/lambdafn/env_vars.py).
SAM_DEFAULT_KEY = ("defaultkey", "defaultsecret")

_CHUNK = 65_536
_ACCEPT_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class Bridge:
    """Docker's default network: this machine's address in it, and the addresses of the containers."""

    gateway: str
    subnet: ipaddress.IPv4Network | ipaddress.IPv6Network


def find_bridge() -> Bridge:
    """Ask Docker. Raises StackError if it does not answer, or has no such network."""
    # SAM's own dependency, slow to import, and only this needs it.
    import docker  # type: ignore[import-untyped]  # noqa: PLC0415

    hint = "Start Docker (SAM runs functions in it), or leave --docker out."
    try:
        client = docker.from_env(timeout=10)
        with contextlib.closing(client):
            return _bridge_of(client.networks.get("bridge").attrs)
    except docker.errors.DockerException as error:
        raise StackError(f"Docker does not answer: {error}.", hint) from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StackError("Docker has no network `bridge` with an address of this machine.", hint) from error


def _bridge_of(attributes: Mapping[str, Any]) -> Bridge:
    configuration = attributes["IPAM"]["Config"][0]
    subnet = ipaddress.ip_network(configuration["Subnet"])
    # Docker 20 does not say it of a bridge that it made itself (moby issue 26799); it takes the first address.
    return Bridge(configuration.get("Gateway") or str(next(subnet.hosts())), subnet)


class Gateway:
    """Forwards TCP connections from containers to servers on 127.0.0.1, in a thread of its own."""

    def __init__(self, bridge: Bridge, server_ports: set[int]) -> None:
        self._bridge = bridge
        self._ports = server_ports
        self._listening: list[socket.socket] = []
        self._forwarding: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="gateway", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. Raises StackError where a port is taken, or the address is not this machine's."""
        family = socket.AF_INET6 if self._bridge.subnet.version == 6 else socket.AF_INET
        for port in sorted(self._ports):
            try:
                listening = socket.create_server((self._bridge.gateway, port), family=family)
            except OSError as error:
                self._close()
                raise StackError(
                    f"Containers cannot be let in at {self._bridge.gateway}:{port}: {error.strerror or error}.",
                    "Docker must run on this machine itself, as root; if a port is taken, start again.",
                ) from error
            listening.setblocking(False)
            self._listening.append(listening)
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """Accept nobody any more and hang up. Safe to repeat."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()
        self._close()

    def _close(self) -> None:
        while self._listening:
            self._listening.pop().close()

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        for listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)
        self._started.set()
        await self._stopped.wait()
        for listening in self._listening:
            self._loop.remove_reader(listening)
        for task in self._forwarding:
            task.cancel()
        await asyncio.gather(*self._forwarding, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        # Not loop.sock_accept: whom that has accepted is lost where its task is cancelled at the same moment.
        try:
            client, address = listening.accept()
        except BlockingIOError:
            return
        except OSError:  # out of file descriptors: those who wait may still come in later
            self._loop.remove_reader(listening)
            self._loop.call_later(_ACCEPT_AGAIN_S, self._accept_again, listening)
            return
        # A router can send packets for this address from elsewhere, and the SQS server lets everybody in.
        if ipaddress.ip_address(address[0]) not in self._bridge.subnet:
            client.close()
            return
        client.setblocking(False)
        task = self._loop.create_task(_forward(self._loop, client, listening.getsockname()[1]))
        self._forwarding.add(task)
        # Here, and not in the task: one that is cancelled before it began never runs.
        task.add_done_callback(lambda _: client.close())
        task.add_done_callback(self._forwarding.discard)

    def _accept_again(self, listening: socket.socket) -> None:
        if not self._stopped.is_set():
            self._loop.add_reader(listening, self._accept, listening)


async def _forward(loop: asyncio.AbstractEventLoop, client: socket.socket, port: int) -> None:
    with socket.socket() as server:
        server.setblocking(False)
        try:
            await loop.sock_connect(server, (ports.HOST, port))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(loop, client, server))
                both.create_task(_copy(loop, server, client))
        except* OSError:  # one of the two is gone, and so the other
            pass


async def _copy(loop: asyncio.AbstractEventLoop, source: socket.socket, sink: socket.socket) -> None:
    while data := await loop.sock_recv(source, _CHUNK):
        await loop.sock_sendall(sink, data)
    sink.shutdown(socket.SHUT_WR)


def access_keys() -> dict[str, str]:
    """The keys that SAM may give to functions, secret by id: what boto3 finds, whom SAM asks, too, and SAM's default.

    Found now and in this environment: temporary keys change, and another terminal may have others.
    """
    import boto3  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    found = dict([SAM_DEFAULT_KEY])
    with contextlib.suppress(BotoCoreError):  # an unknown profile, half a key: then SAM finds none, either
        if (credentials := boto3.Session().get_credentials()) is not None:
            frozen = credentials.get_frozen_credentials()
            found[str(frozen.access_key)] = str(frozen.secret_key)
    return found


def container_url(url: str, gateway: str) -> str:
    """`url`, which names this machine, as containers must call it."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{gateway}:{parts.port}").geturl()


def write_variables(path: Path, functions: Mapping[str, Mapping[str, str]], directory: Path) -> None:
    """Write the file that `sam local invoke --env-vars` reads: each function's variables by its logical id.

    `path` becomes a link to it. The file itself is in `directory`, which belongs to this user alone and goes when the
    stack does, however that ends. Raises StackError where `path` cannot be written.
    """
    file = directory / path.name
    file.touch(mode=0o600)
    file.write_text(json.dumps(functions, indent=2), encoding="utf-8")
    link = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
        link.replace(path)
    except OSError as error:
        raise StackError(f"Cannot write {path}: {error.strerror}.", "Name another file with --env-vars.") from error
