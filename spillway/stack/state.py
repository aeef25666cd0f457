"""What other terminals need to know about the local stack that runs: one small file, gone when the stack is."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec

from spillway.errors import SpillwayError


class WorkerLogin(msgspec.Struct, kw_only=True, frozen=True):
    """How the workers reach the database. `password` is the role's own; through a proxy they sign tokens instead.

    `proxy` is whether host and port are the RDS Proxy's; `ca_file` verifies its certificate. `access_key` and
    `secret_key` are what the functions sign their IAM tokens with.
    """

    proxy: bool
    host: str
    port: int
    database: str
    user: str
    password: str
    ca_file: str | None = None
    access_key: str = ""
    secret_key: str = ""
    session_token: str | None = None


class StackState(msgspec.Struct, kw_only=True, frozen=True):
    """A running local stack. `queues` and `dead_letter_queues` map a worker's name to a queue URL.

    `started_at` is seconds since the epoch. `pid` is the process that owns the stack. `proxy_admin_url` is where the
    RDS Proxy's metrics are, None where the workers connect to the database directly. `functions` maps a worker's name,
    scheduled ones included, to its function's; the function's log is <log_dir>/<function>.log. `template` is the file
    that the stack was made of, `parameters` what its parameters are here, as text.
    """

    pid: int
    endpoint_url: str
    region: str
    queues: dict[str, str]
    dead_letter_queues: dict[str, str]
    dsn: str
    started_at: float
    log_dir: str
    proxy_admin_url: str | None = None
    functions: dict[str, str] = {}
    login: WorkerLogin | None = None
    template: str = ""
    parameters: dict[str, str] = {}


class _Stored(StackState, kw_only=True, frozen=True):
    #: When the process `pid` started, in clock ticks since boot: tells it from a later process with its number.
    pid_started: int | None = None


def state_path() -> Path:
    """Where the state is kept: the file `$SPILLWAY_STATE` names, else one in the user's own temporary directory."""
    if path := os.environ.get("SPILLWAY_STATE"):
        return Path(path)
    return _default_dir() / "stack.json"


def write_state(state: StackState) -> Path:
    """Publish `state` in one step, readable by this user only, since `dsn` holds a password; returns the file.

    Raises SpillwayError where the directory cannot be written or belongs to somebody else.
    """
    path = state_path()
    stored = _Stored(**msgspec.structs.asdict(state), pid_started=_started(state.pid))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(path)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".stack-")  # mkstemp makes it 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(stored), indent=2))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SpillwayError(
            f"Cannot write {path}: {error.strerror}.", "Set SPILLWAY_STATE to a file in a writable directory."
        ) from error
    return path


def read_state() -> StackState | None:
    """The stack that runs now; None when there is none or its process died.

    Raises SpillwayError for a file that another version wrote or another user owns.
    """
    stored = _read()
    return stored if stored is not None and _alive(stored) else None


def remove_state() -> None:
    """Forget the stack, if it is this process's or dead; another stack's state stays. Never raises OSError."""
    try:
        stored = _read()
    except SpillwayError:
        return
    if stored is None or (stored.pid != os.getpid() and _alive(stored)):
        return
    path = state_path()
    with contextlib.suppress(OSError):
        path.unlink()
        if path.parent == _default_dir():
            path.parent.rmdir()  # fails, as it should, while anything else is in it


def _read() -> _Stored | None:
    path = state_path()
    try:
        _require_private(path)
        return msgspec.json.decode(path.read_bytes(), type=_Stored)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SpillwayError(f"Cannot read {path}: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise SpillwayError(
            f"{path} is not a stack's state: {error}.", "If no `spillway up` is running, delete the file."
        ) from error


def _default_dir() -> Path:
    return Path(tempfile.gettempdir()) / f"spillway-{os.getuid()}"


def _require_private(path: Path) -> None:
    # The temporary directory is everybody's: whoever made ours first could point us to their own queue.
    for place in (path.parent, path) if path.parent == _default_dir() else (path,):
        with contextlib.suppress(FileNotFoundError):
            status = place.lstat()
            if status.st_uid != os.getuid() or (place != path and status.st_mode & 0o077):
                raise SpillwayError(
                    f"{place} is not private to this user.",
                    "Remove it, or set SPILLWAY_STATE to a file in a directory of your own.",
                )


def _alive(stored: _Stored) -> bool:
    try:
        os.kill(stored.pid, 0)
    except (ProcessLookupError, PermissionError):  # not permitted: the number went to another user's process
        return False
    return stored.pid_started == _started(stored.pid)


def _started(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None for a zombie, and where there is no /proc: then the pid has to do."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in brackets and may hold anything, so count from behind it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
