"""The one owner of every child process and temporary directory of the local stack.

The promise: however this process ends (normally, Ctrl-C, SIGTERM, SIGKILL), no child and no directory stays.
A watchdog (`spillway.stack.reaper`) holds the list of both and acts when its standard input ends.

There is no moment at which a child lives and the watchdog cannot know it. Each child starts as a one-line shell
whose standard input *is* the watchdog's pipe; it writes its own pid there and only then becomes the real
program, with /dev/null as input. Should the parent die in between, the child still holds the pipe open, so the
watchdog sees the pid before it sees the end. (PR_SET_PDEATHSIG would be simpler, but it fires when the *thread*
that started the child ends, and needs code between fork and exec.)
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from spillway.stack import reaper
from spillway.stack.errors import StackError

_SHIM = 'echo "pgid $$ $0" >&0 && exec "$@" </dev/null'
_DEAF = 'trap "" INT TERM HUP; exec "$0" "$@"'  # an ignored signal stays ignored in the program
_REAPER_EXIT_S = 10.0
#: A pid has 7 digits at most and a start 20, so that a line stays far below PIPE_BUF, 4,096 bytes.
_WORDS_A_LINE = 100


@dataclass(frozen=True)
class _Child:
    popen: subprocess.Popen[bytes]
    name: str
    stop_signal: signal.Signals
    grace_s: float
    started: int | None


class Processes:
    """Starts children and makes directories that cannot outlive this object or its process.

    Thread-safe. Use as a context manager, or call `close`; both may happen more than once.
    """

    def __init__(self) -> None:
        # Re-entrant: a signal handler may call `close` while the main thread is inside `spawn`.
        self._lock = threading.RLock()
        self._children: dict[int, _Child] = {}
        self._directories: dict[Path, None] = {}
        self._closed = False
        # By path, isolated and without site-packages: nothing of the caller's set-up can keep it from starting.
        read_end, write_end = os.pipe()
        self._pipe = os.fdopen(write_end, "wb", buffering=0)
        try:
            self._reaper = subprocess.Popen(
                ["/bin/sh", "-c", _DEAF, sys.executable, "-I", "-S", reaper.__file__],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def spawn(
        self,
        args: Sequence[str | Path],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: int | None = None,
        group: int | None = None,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.STDOUT,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_s: float = 5.0,
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, reading from /dev/null.

        `name` appears in messages. `stop_signal` and `grace_s` (seconds) are how `close` and the watchdog end it.
        With `user` (a uid; only root may) it runs as that user and `group`, without supplementary groups.
        Raises `StackError` if the program is not there, or this object is closed.
        """
        words = [os.fspath(arg) for arg in args]
        if shutil.which(words[0]) is None:
            raise StackError(f"{name} could not start: {words[0]} is missing or not executable.", "Run make again.")
        with self._lock:
            self._check_open(name)
            try:
                popen = subprocess.Popen(
                    ["/bin/sh", "-c", _SHIM, f"{int(stop_signal)} {grace_s}", *words],
                    stdin=self._pipe,
                    stdout=stdout,
                    stderr=stderr,
                    env=env,
                    cwd=cwd,
                    user=user,
                    group=group,
                    extra_groups=None if user is None else [],
                    start_new_session=True,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise StackError(f"{name} could not start: {error}.") from error
            process = reaper.read_process(popen.pid)
            self._children[popen.pid] = _Child(
                popen, name, stop_signal, grace_s, started=process.started if process else None
            )
        return popen

    def stop(
        self, popen: subprocess.Popen[bytes], signum: signal.Signals | None = None, grace_s: float | None = None
    ) -> int:
        """End a child and all its descendants and return its exit status.

        Signals its process group, waits up to `grace_s` seconds, then kills whatever is left of the family.
        """
        with self._lock:
            child = self._children.get(popen.pid)
        if child is None or child.popen is not popen:
            return popen.wait()
        signum, grace_s = signum or child.stop_signal, child.grace_s if grace_s is None else grace_s
        if signum is signal.SIGKILL:  # to the whole family at once, so that nobody sees the others die
            members = reaper.family(popen.pid, child.started)
            self._tell_known(popen.pid, members)
        else:
            members = reaper.ask(popen.pid, child.started, signum, partial(self._tell_known, popen.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(grace_s)
        reaper.kill(popen.pid, child.started, members)
        if popen.poll() is None:  # no /proc here: the group is all we can name
            reaper.send(popen.pid, signal.SIGKILL)
        status = popen.wait()
        with self._lock:
            self._children.pop(popen.pid, None)
            self._tell(f"forget {popen.pid}")
        return status

    def temporary_directory(self, prefix: str) -> Path:
        """Make a directory, readable by this user only, that is removed on `close` or when this process is gone."""
        with self._lock:
            self._check_open(prefix)
            # Announced before it exists; 64 random bits make sure that it is nobody else's.
            path = Path(tempfile.gettempdir(), f"{prefix}{secrets.token_hex(8)}").absolute()
            self._tell(f"dir {reaper.encode(str(path))}")
            self._directories[path] = None
            path.mkdir(mode=0o700)
        return path

    def remove_directory(self, path: Path) -> None:
        """Remove a directory made by `temporary_directory` before its time."""
        shutil.rmtree(path, ignore_errors=True)
        with self._lock:
            self._directories.pop(path, None)
            self._tell(f"forget-dir {reaper.encode(str(path))}")

    def close(self) -> None:
        """Stop all children, the youngest first, remove all directories and end the watchdog."""
        with self._lock:
            if self._pipe.closed:
                return
            self._closed = True
            try:
                for child in reversed(list(self._children.values())):
                    self.stop(child.popen)
                for path in reversed(list(self._directories)):
                    self.remove_directory(path)
            finally:
                # Also when interrupted: what is still on its list is now the watchdog's to end.
                self._pipe.close()
                patience_s = max([0.0, *(child.grace_s for child in self._children.values())])
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._reaper.wait(patience_s + _REAPER_EXIT_S)

    def _check_open(self, name: str) -> None:
        if self._closed:
            raise StackError(f"{name} cannot start: the local stack is shutting down.")
        if self._reaper.poll() is not None:
            raise StackError(
                f"{name} cannot start: the watchdog that cleans up after the local stack is gone.",
                "Something killed it; check the memory that is left and start again.",
            )

    def _tell_known(self, leader: int, members: set[reaper.Process]) -> None:
        """Tell the watchdog of a family that is about to lose its head: this process may be interrupted meanwhile."""
        words = [f"{process.pid}:{process.started}" for process in members]
        for start in range(0, len(words), _WORDS_A_LINE):
            self._tell(f"known {leader} {' '.join(words[start : start + _WORDS_A_LINE])}")

    def _tell(self, instruction: str) -> None:
        # One unbuffered write of less than PIPE_BUF bytes: lines of several writers never mix.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._pipe.write(instruction.encode() + b"\n")
