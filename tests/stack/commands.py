"""Runs `python -m spillway` in a process, in surroundings of its own, and finds what it left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spillway.stack.template import REPOSITORY

TIMEOUT_S = 60.0
#: After the command itself is gone, its watchdog may still be at work: it lets PostgreSQL end for a moment.
CLEAN_UP_S = 15.0


def until(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for `condition`, and fail if it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)


@dataclass
class CommandLine:
    """A user's shell: a working directory, a temporary directory and a state file that nobody else has.

    Everything that a command starts is told the temporary directory, in its arguments, its environment or as its
    working directory, and so can be found by it.
    """

    directory: Path
    python: str = sys.executable
    env: dict[str, str] = field(default_factory=dict)
    user: int | None = None
    _outputs: dict[int, Path] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def tmp(self) -> Path:
        return self.directory / "tmp"

    @property
    def state(self) -> Path:
        return self.directory / "stack.json"

    @property
    def cwd(self) -> Path:
        return self.directory / "cwd"

    def start(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command; standard output and error go to one file."""
        output = self.directory / f"output-{len(self._running)}"
        with output.open("wb") as file:
            popen = subprocess.Popen(
                [self.python, "-m", "spillway", *args],
                env=self.environment() | self.env | dict(env or {}),
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
                **options,
            )
        self._outputs[popen.pid] = output
        self._running.append(popen)
        return popen

    def run(
        self, *args: str, env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; stdout is all it printed."""
        popen = self.start(*args, env=env, **options)
        try:
            status = popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{args} did not end in {timeout_s} s, and printed {self.output(popen)}") from None
        return subprocess.CompletedProcess(args, status, self.output(popen))

    def output(self, popen: subprocess.Popen[bytes]) -> str:
        """What it has printed so far, without the blanks that tables have at their right."""
        lines = self._outputs[popen.pid].read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        return "".join(line.rstrip() + "\n" if line.endswith("\n") else line for line in lines)

    def await_output(self, popen: subprocess.Popen[bytes], text: str) -> str:
        """Everything it has printed, once `text` is in it."""

        def printed() -> bool:
            assert text in self.output(popen) or popen.poll() is None, self.output(popen)
            return text in self.output(popen)

        until(printed, text)
        return self.output(popen)

    def await_process(self, text: str) -> None:
        """Wait until something that a command started has `text` in its command line."""
        until(lambda: any(text in process for process in self.processes()), f"a process like {text}")

    def environment(self) -> dict[str, str]:
        passed_on = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME")
        return {name: os.environ[name] for name in passed_on if name in os.environ} | {
            "PYTHONPATH": str(REPOSITORY),
            "TMPDIR": str(self.tmp),
            "SPILLWAY_STATE": str(self.state),
        }

    def processes(self) -> list[str]:
        """Pid and command line of every process that has to do with the temporary directory."""
        mark = os.fsencode(self.tmp)
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                if not command:  # a zombie
                    continue
                where = os.fsencode((folder / "cwd").readlink())
                if mark in command or mark in where or mark in (folder / "environ").read_bytes():
                    found.append(f"{folder.name}: {command.replace(bytes(1), b' ').decode(errors='replace')}")
        return found

    def leftovers(self, but: Sequence[Path] = ()) -> list[str]:
        """Processes and temporary files that are still there when the watchdog has had its time."""
        deadline = time.monotonic() + CLEAN_UP_S
        while (left := [*self.processes(), *map(str, self.tmp.iterdir())]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left + [str(path) for path in self.cwd.iterdir() if path not in but]

    def close(self) -> None:
        for popen in self._running:
            if popen.poll() is None:
                popen.kill()
                popen.wait()
        self.leftovers()
        for process in self.processes():  # a test has failed; the next must not suffer
            with suppress(ProcessLookupError):
                os.kill(int(process.partition(":")[0]), signal.SIGKILL)


@contextmanager
def command_line() -> Iterator[CommandLine]:
    # Not below pytest's own directory: when root runs the tests, PostgreSQL runs as nobody and must get in.
    directory = Path(tempfile.mkdtemp(prefix="spillway-test-"))
    directory.chmod(0o755)
    one = CommandLine(directory)
    for path in (one.tmp, one.cwd):
        path.mkdir(mode=0o755)
    try:
        yield one
    finally:
        one.close()
        shutil.rmtree(directory)
