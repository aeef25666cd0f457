"""A process that makes runs: `python -m tests.chaos.worker`. One of several, each with a fleet of its own.

It reads one JSON object per line (plan's arguments) and answers each with a report in one line. When its standard input
ends, for whatever reason, it goes at once, and the watchdog of spillway.stack.processes ends all that it started.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

from spillway.stack.errors import StackError
from tests.chaos.checker import Kind, Violation
from tests.chaos.fleet import Fleet
from tests.chaos.plan import MAX_ATTEMPTS, plan
from tests.chaos.runner import Report, Run

#: A fleet is made anew after so many runs: its log files and tables grow.
RUNS_PER_FLEET = 25


class Worker:
    """Makes runs one after the other on one fleet, which is made anew when a run left it in doubt."""

    def __init__(self, workers: tuple[str, ...] | None = None) -> None:
        self._workers = workers
        self._fleet: Fleet | None = None
        self._runs = 0

    def run(self, seed: int, number: int, *, faults: list[str] | None, quick: bool) -> Report:
        """Make one run; again, with other histories, if a fault of it did not happen."""
        report: Report
        for attempt in range(MAX_ATTEMPTS):
            try:
                fleet = self._ready_fleet(seed)
                # A repeated run needs other keys and other luck, and is found again by the same arguments.
                planned = plan(seed, number, fleet.names, faults=faults, quick=quick, attempt=attempt)
                report = Run(fleet, planned).make()
            except (StackError, OSError) as error:
                self.close()
                report = Report(number, ())
                report.violations.append(Violation(Kind.OTHER, f"no fleet: {type(error).__name__}: {error}"))
            else:
                self._runs += 1
            report.attempts = attempt + 1
            if report.violations:
                self.close()
                break
            if report.happened:
                break
        return report

    def close(self) -> None:
        """End the fleet, if there is one."""
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None

    def _ready_fleet(self, seed: int) -> Fleet:
        if self._runs >= RUNS_PER_FLEET:
            self.close()
        if self._fleet is None:
            self._runs = 0
            fleet = Fleet(str(seed), self._workers)
            fleet.__enter__()
            self._fleet = fleet
        return self._fleet


def encode(report: Report) -> str:
    return json.dumps(asdict(report))


def decode(line: str) -> Report:
    values: dict[str, Any] = json.loads(line)
    values["faults"] = tuple(values["faults"])
    values["violations"] = [Violation(Kind(kind), what) for kind, what in values["violations"]]
    return Report(**values)


def main() -> None:
    faulthandler.enable()
    # Ctrl-C is the parent's affair; it then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(line)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    answers, sys.stdout = sys.stdout, sys.stderr
    worker: Worker | None = None
    while True:
        order = json.loads(orders.get())
        worker = worker or Worker(tuple(order["workers"]) if order["workers"] else None)
        report = worker.run(order["seed"], order["run"], faults=order["faults"], quick=order["quick"])
        answers.write(encode(report) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
