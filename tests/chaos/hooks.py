"""The suite's side of environment/sitecustomize.py: arms the points at which a function's process stops itself."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT = Path(__file__).parent / "environment"

Point = Literal["decode", "before-write", "after-write", "mix-up"]
#: Several fleets share two cores with everything that they run: nobody may look too often.
_POLL_S, _CATCH_POLL_S = 0.1, 0.02


def wait_until(condition: Callable[[], bool], timeout_s: float, *, poll_s: float = _POLL_S) -> bool:
    """Whether `condition` came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


class Hooks:
    """The control directory that every function of a fleet looks into."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def catch(self, point: Point, worker: str, timeout_s: float) -> int | None:
        """Wait for the next process of `worker` that reaches `point`; its pid, None if none did in time.

        It has stopped itself, unless the point is mix-up.
        """
        armed = self.directory / f"{point}.{worker}"
        self._forget(point, worker)
        armed.touch()
        pids: list[int] = []

        def reached() -> bool:
            pids[:] = [int(path.name.rpartition(".")[2]) for path in self.directory.glob(f"{point}.{worker}.caught.*")]
            return bool(pids) and (point == "mix-up" or _stopped(pids[0]))

        if not wait_until(reached, timeout_s, poll_s=_CATCH_POLL_S):
            armed.unlink(missing_ok=True)
        self._forget(point, worker)
        return pids[0] if pids else None

    def held(self, worker: str, pid: int) -> list[str]:
        """The ids of the events that a caught process was about to write, or had written."""
        return [row["id"] for row in json.loads((self.directory / f"held.{worker}.{pid}").read_bytes())]

    def set_clock(self, offset_s: float) -> None:
        """From now on the functions' wall clocks are wrong by so much."""
        # Renamed, so that nobody reads half of it.
        (self.directory / "clock.new").write_text(str(offset_s))
        (self.directory / "clock.new").rename(self.directory / "clock")

    def count(self, what: Literal["installed", "killed", "clock-seen"], worker: str) -> int:
        """How often that happened in processes of `worker`."""
        try:
            return len((self.directory / f"{what}.{worker}.log").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def clear(self) -> None:
        """Nothing is armed, and clocks are right."""
        for path in self.directory.iterdir():
            if path.suffix != ".log":
                path.unlink(missing_ok=True)

    def _forget(self, point: Point, worker: str) -> None:
        for path in self.directory.glob(f"{point}.{worker}.caught.*"):
            path.unlink(missing_ok=True)


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except FileNotFoundError:
        return True


def signal_if_alive(pid: int, signum: int) -> bool:
    """Send a signal; whether there was somebody to get it."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True
