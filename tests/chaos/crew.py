"""Processes that make runs side by side, each with a fleet of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from spillway.stack.template import REPOSITORY
from tests.chaos.worker import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.runner import Report

_GOODBYE_S = 20


class Crew:
    """Worker processes that take runs from one queue; `reports` gets what they answer, or why one cannot.

    `order` is what all runs have in common (tests/chaos/worker.py). No run begins after `ends_at` (time.monotonic()).
    """

    def __init__(self, size: int, order: dict[str, object], runs: Sequence[int], ends_at: float = float("inf")) -> None:
        self.reports: SimpleQueue[Report | str] = SimpleQueue()
        self._order, self._ends_at = order, ends_at
        self._runs = iter(runs)
        self._lock = threading.Lock()
        self._processes = [self._start() for _ in range(size)]
        self._threads = [threading.Thread(target=self._feed, args=(one,), daemon=True) for one in self._processes]
        for thread in self._threads:
            thread.start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # This checkout's code, wherever the package is installed from.
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
        )

    def _next(self) -> int | None:
        with self._lock:
            return next(self._runs, None) if time.monotonic() < self._ends_at else None

    def _feed(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        while (run := self._next()) is not None:
            try:
                process.stdin.write(json.dumps(self._order | {"run": run}) + "\n")
                process.stdin.flush()
            except OSError:
                self.reports.put(f"run {run}: the worker process is gone")
                return
            line = process.stdout.readline()
            if not line:
                self.reports.put(f"run {run}: the worker process ended with status {process.wait()}")
                return
            self.reports.put(decode(line))

    @property
    def busy(self) -> bool:
        """Whether there is still a report to come."""
        return any(thread.is_alive() for thread in self._threads) or not self.reports.empty()

    def stop(self) -> None:
        """End the processes; each watchdog then ends what its process had started."""
        with self._lock:
            self._runs = iter(())
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(_GOODBYE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for thread, process in zip(self._threads, self._processes, strict=True):
            thread.join()  # its pipe has ended
            assert process.stdout is not None
            process.stdout.close()
