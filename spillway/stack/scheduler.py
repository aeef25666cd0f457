"""What EventBridge does by the clock: it invokes a function at a fixed rate.

The first invocation comes one period after the start. Where EventBridge differs: it also knows cron expressions, it
invokes again while an earlier invocation still runs, and Lambda repeats one that failed as often as the function's
EventInvokeConfig says. Here a schedule with a cron expression is left alone, what becomes due during a run is left out,
and the run after a failed one is the next that is due.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from spillway.stack.errors import StackError
from spillway.stack.warm_pool import IDLE_S, ExecutionEnvironment, Invocation

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_RATE = re.compile(r"rate\(([1-9][0-9]*) (minute|hour|day)s?\)")
_UNIT_S = {"minute": 60, "hour": 3_600, "day": 86_400}
#: How long a stopped invocation may take to end as a crash once its environment is closed, in seconds.
_CLOSE_S = 5.0
#: How much of a failed invocation's answer is shown.
_MAX_ERROR_TEXT = 300


def rate_s(expression: str) -> int | None:
    """The period of a rate expression, in seconds; None for any other."""
    match = _RATE.fullmatch(expression)
    return int(match[1]) * _UNIT_S[match[2]] if match else None


@dataclass(slots=True)
class ScheduleStats:
    """What one schedule counts while it runs. `next_at` is seconds since the epoch, None while it is stopped."""

    runs: int = 0
    failed: int = 0
    next_at: float | None = None
    last_error: str | None = None
    """Why the last run failed, in one sentence; None if it went well."""


class ScheduledFunction:
    """Invokes one function every `period_s` seconds, until stopped. Starts once.

    `environment_factory` makes its execution environment. One that would sit idle for longer than Lambda keeps it is
    not kept until the next run.
    """

    def __init__(
        self,
        name: str,
        period_s: float,
        environment_factory: Callable[[], ExecutionEnvironment],
        payload: Callable[[], bytes],
    ) -> None:
        self.name = name
        self._period_s = period_s
        self._factory = environment_factory
        self._payload = payload
        self._turn = threading.Lock()  # one run at a time
        self._lock = threading.Lock()  # the fields below
        self._environment: ExecutionEnvironment | None = None
        self._stats = ScheduleStats()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"schedule of {name}", daemon=True)

    @property
    def stats(self) -> ScheduleStats:
        """A snapshot."""
        with self._lock:
            return replace(self._stats)

    def start(self) -> None:
        """Begin to count the first period."""
        self._expect_next(self._period_s)
        self._thread.start()

    def run(self) -> Invocation:
        """Invoke the function now, beside its schedule, and wait for the outcome; a run in progress is waited for.

        Raises StackError when it is stopped, and whatever the environment raises when it cannot be started.
        """
        with self._turn:
            try:
                invocation = self._ready_environment().invoke(self._payload())
            except Exception as error:
                self._note(f"{self.name} could not be run: {error}")
                raise
            finally:
                if self._period_s > IDLE_S or self._stopping.is_set():
                    self._close()
            answer = invocation.body.decode(errors="replace")[:_MAX_ERROR_TEXT]
            self._note(None if invocation.kind == "response" else f"{self.name} ended as {invocation.kind}: {answer}")
            return invocation

    def stop(self, timeout_s: float = 10.0) -> None:
        """Run no more; a run that does not end within `timeout_s` seconds is ended as a crash."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._close()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        with self._lock:
            self._stats.next_at = None

    def _loop(self) -> None:
        due = time.monotonic() + self._period_s
        while not self._stopping.wait(due - time.monotonic()):
            try:
                self.run()
            except Exception as error:
                log.warning("scheduled_run_failed function=%s error=%r", self.name, error)
            now = time.monotonic()
            due += self._period_s * max(1, -((due - now) // self._period_s))
            self._expect_next(due - now)

    def _ready_environment(self) -> ExecutionEnvironment:
        with self._lock:
            if self._stopping.is_set():
                raise StackError(f"The schedule of {self.name} is stopped.")
            if self._environment is None:
                self._environment = self._factory()
            return self._environment

    def _close(self) -> None:
        with self._lock:
            environment, self._environment = self._environment, None
        if environment is not None:
            environment.close()

    def _note(self, error: str | None) -> None:
        with self._lock:
            self._stats.runs += 1
            self._stats.failed += error is not None
            self._stats.last_error = error

    def _expect_next(self, in_s: float) -> None:
        with self._lock:
            self._stats.next_at = time.time() + in_s


def scheduled_event(rule: str, region: str, account: str) -> bytes:
    """The event that a rule sends to its target (EventBridge User Guide, "Creating a rule that runs on a schedule")."""
    return json.dumps(
        {
            "version": "0",
            "id": str(uuid4()),
            "detail-type": "Scheduled Event",
            "source": "aws.events",
            "account": account,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": region,
            "resources": [f"arn:aws:events:{region}:{account}:rule/{rule}"],
            "detail": {},
        }
    ).encode()
