"""An RDS Proxy on this machine: `spillway rdsproxy` in a process of its own.

Of its own because the pollers' threads and the proxy's event loop would otherwise take turns at one interpreter.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from spillway.rdsproxy.admin import AdminClient
from spillway.stack import ports
from spillway.stack.errors import StackError
from spillway.stack.template import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from spillway.rdsproxy.metrics import Snapshot
    from spillway.stack.processes import Processes

START_TIMEOUT_S = 30.0
#: The design's promise: a flood of events becomes rows through a pool of 20.
MAX_CONNECTIONS = 20
_POLL_S = 0.01
_GRACE_S = 3.0
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Credentials:
    """AWS credentials: those that clients sign their IAM tokens with, and the proxy verifies them against."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


class _Ready(msgspec.Struct, frozen=True):
    """What the proxy writes into its --ready-file."""

    host: str
    port: int
    admin_url: str
    ca_file: Path
    pid: int


class RdsProxyServer:
    """An emulated RDS Proxy that lives as long as `processes`, on any free port or the given one.

    It lets in who has TLS and an IAM token signed with `credentials` for `region`, as the user of `target`: a URL with
    the password, which travels in the environment because every user of the machine can read command lines.
    `borrow_timeout_s` is ConnectionBorrowTimeout. Its log is `log_file`. `endpoints` are further names that clients
    call it, `access_keys` further ones that they sign with: the secret by the key's id.
    """

    def __init__(
        self,
        processes: Processes,
        *,
        target: str,
        credentials: Credentials,
        region: str,
        borrow_timeout_s: float,
        log_file: Path,
        port: int | None = None,
        max_connections: int = MAX_CONNECTIONS,
        endpoints: Sequence[str] = (),
        access_keys: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or 0
        self.host = ports.HOST
        self.max_connections = max_connections
        self.admin_url = ""
        self.ca_file = Path()
        self._processes = processes
        self._wanted_port = port
        self._target = target
        self._credentials = credentials
        self._region = region
        self._borrow_timeout_s = borrow_timeout_s
        self._log_file = log_file
        self._endpoints = endpoints
        self._access_keys = access_keys or {}
        self._directory: Path | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the proxy's process is alive."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process, once started."""
        return None if self._popen is None else self._popen.pid

    @property
    def admin(self) -> AdminClient:
        """Its metrics and faults."""
        return AdminClient(self.admin_url)

    def start(self) -> None:
        """Start and wait until clients may come. Raises `StackError` if the port is taken or it does not come up."""
        if self.running:
            return
        if self._wanted_port:
            ports.check_port(self._wanted_port, "The RDS Proxy")
        self._directory = self._directory or self._processes.temporary_directory("spillway-rdsproxy-")
        # The proxy itself binds port 0 and says what it got, so that there is no port to be lost to somebody else.
        ready_file = self._directory / "ready.json"
        ready_file.unlink(missing_ok=True)
        self._popen = self._launch(self._directory, ready_file)
        ready = self._wait_until_ready(self._popen, ready_file)
        if ready is None:
            self.stop()
            raise StackError("The RDS Proxy did not start.", f"The end of its log says:\n{self.log_tail()}")
        self.host, self.port, self.admin_url, self.ca_file = ready.host, ready.port, ready.admin_url, ready.ca_file

    def stop(self) -> None:
        """End the proxy; its clients' connections are gone."""
        if self._popen is not None:
            self._processes.stop(self._popen)
            self._popen = None

    def snapshot(self) -> Snapshot:
        """Everything it has counted. Raises RdsProxyError if it does not answer."""
        return self.admin.snapshot()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines the proxy wrote."""
        with contextlib.suppress(OSError):
            return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _launch(self, directory: Path, ready_file: Path) -> subprocess.Popen[bytes]:
        env = {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {
            "PYTHONPATH": str(REPOSITORY),
            "SPILLWAY_RDSPROXY_TARGET": self._target,
            "AWS_ACCESS_KEY_ID": self._credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self._credentials.secret_key,
            "SPILLWAY_RDSPROXY_ACCESS_KEYS": msgspec.json.encode(self._access_keys).decode(),
        }
        with self._log_file.open("ab") as log:
            return self._processes.spawn(
                [
                    *(sys.executable, "-m", "spillway", "rdsproxy", "--require-tls", "--iam-auth", "required"),
                    *("--listen", f"{ports.HOST}:{self._wanted_port or 0}"),
                    *("--region", self._region),
                    *(word for name in self._endpoints for word in ("--endpoint", name)),
                    *("--max-connections", str(self.max_connections)),
                    *("--connection-borrow-timeout", f"{self._borrow_timeout_s:g}"),
                    *("--certificate-dir", directory / "certificates"),
                    *("--ready-file", ready_file),
                ],
                name="The RDS Proxy",
                env=env,
                cwd=directory,
                stdout=log,
                grace_s=_GRACE_S,
            )

    def _wait_until_ready(self, popen: subprocess.Popen[bytes], ready_file: Path) -> _Ready | None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while popen.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                return msgspec.json.decode(ready_file.read_bytes(), type=_Ready, dec_hook=_path)
            time.sleep(_POLL_S)
        return None


def _path(kind: type, value: object) -> object:
    return kind(value)
