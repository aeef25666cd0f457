"""Faults of the functions' environments: killed, frozen, out of time, with a wrong clock, or killed by a message."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from spillway.stack.local import INIT_S
from tests.chaos.database_faults import SlowWrites, lock_claims
from tests.chaos.faults import Fault, Strike, fault
from tests.chaos.fleet import FUNCTION_TIMEOUT_S, VISIBILITY_S
from tests.chaos.histories import killers
from tests.chaos.hooks import signal_if_alive

if TYPE_CHECKING:
    from tests.chaos.hooks import Point

#: What the emulator ends an invocation after.
TIMEOUT_S = FUNCTION_TIMEOUT_S + INIT_S


def _crashes(strike: Strike, before: int, at_least: int = 1) -> int:
    """How many batches crashed since, once the event source has noticed."""
    strike.wait(lambda: strike.fleet.batches(strike.worker, "crash") - before >= at_least, 5)
    return strike.fleet.batches(strike.worker, "crash") - before


class _KilledWhileItWrites(Fault):
    takes = "slow writes"
    at_commit = False

    def strike(self, strike: Strike) -> int:
        fleet, worker = strike.fleet, strike.worker
        crashes = fleet.batches(worker, "crash")
        with SlowWrites(fleet, worker, 0.6, at_commit=self.at_commit) as slow:
            if not strike.wait(slow.writing):
                return 0
            fleet.kill(worker)
            return _crashes(strike, crashes)

    def heal(self, strike: Strike) -> None:
        SlowWrites(strike.fleet, strike.worker, 0).remove()


@fault
class KilledMidStatement(_KilledWhileItWrites):
    """The database may still finish and commit what nobody waits for any more."""

    name = "killed mid-statement"


@fault
class KilledMidCommit(_KilledWhileItWrites):
    """A deferred constraint trigger holds the commit up."""

    name = "killed mid-commit"
    at_commit = True


@fault
class KilledAfterCommit(Fault):
    """Everything has taken effect, and nobody will ever say so."""

    name = "killed after commit, before the answer"

    def strike(self, strike: Strike) -> int:
        fleet, worker = strike.fleet, strike.worker
        crashes = fleet.batches(worker, "crash")
        pid = fleet.hooks.catch("after-write", worker, strike.PATIENCE_S)
        return 0 if pid is None or not fleet.kill(worker, pid) else _crashes(strike, crashes)


@fault
class FrozenPastVisibility(Fault):
    """Two owners of the same messages: the one that thaws believes that it is the only one."""

    name = "frozen past its visibility"
    #: Where it happens to thaw late because everything else is slow.
    may_time_out = True

    def strike(self, strike: Strike) -> int:
        fleet, worker = strike.fleet, strike.worker
        points: tuple[Point, ...] = ("before-write", "before-write", "after-write")
        point = strike.rng.choice(points)
        pid = fleet.hooks.catch(point, worker, strike.PATIENCE_S)
        if pid is None:
            return 0
        caught_at = time.monotonic()
        ids = fleet.hooks.held(worker, pid)
        try:
            strike.pause(VISIBILITY_S)
            with fleet.connect() as connection:
                # Somebody else has done it meanwhile. Lambda's own limit ends the wait.
                strike.wait(
                    lambda: fleet.claims(connection, worker, ids) == len(ids),
                    TIMEOUT_S - 2 - (time.monotonic() - caught_at),
                )
                others = fleet.claims(connection, worker, ids)
        finally:
            alive = signal_if_alive(pid, signal.SIGCONT)
        return int(alive and (point == "after-write" or others > 0))


@fault
class FunctionTimeout(Fault):
    """The way to the database is slower than the function may take, and Lambda kills it."""

    name = "function timeout"
    takes = "the proxy"
    may_time_out = True

    def strike(self, strike: Strike) -> int:
        fleet = strike.fleet
        before = {name: fleet.batches(name, "timeout") for name in fleet.names}

        def timeouts() -> int:
            return sum(fleet.batches(name, "timeout") - count for name, count in before.items())

        fleet.proxy.admin.fault("latency", {"per_request": TIMEOUT_S + 1.0})
        strike.wait(lambda: timeouts() > 0, TIMEOUT_S + strike.PATIENCE_S)
        return timeouts()

    def heal(self, strike: Strike) -> None:
        strike.fleet.proxy.admin.fault("latency", {"per_request": 0.0})


@fault
class OutOfTime(Fault):
    """An invocation that has no time left for a write must not begin one, or it is killed in the middle."""

    name = "no time left to write"

    def strike(self, strike: Strike) -> int:
        fleet, worker = strike.fleet, strike.worker
        pid = fleet.hooks.catch("decode", worker, strike.PATIENCE_S)
        if pid is None:
            return 0
        try:
            strike.pause(TIMEOUT_S - 2.2)
            with lock_claims(fleet, worker):
                alive = signal_if_alive(pid, signal.SIGCONT)
                strike.pause(2.5)
        finally:
            signal_if_alive(pid, signal.SIGCONT)
        return int(alive)


class _ClockJump(Fault):
    seconds: float
    takes = "the clock"
    may_time_out = True

    def strike(self, strike: Strike) -> int:
        fleet = strike.fleet
        before = {name: fleet.hooks.count("clock-seen", name) for name in fleet.names}
        fleet.hooks.set_clock(self.seconds)
        strike.pause(strike.seconds(3, 6))
        strike.wait(lambda: any(fleet.hooks.count("clock-seen", name) > before[name] for name in fleet.names))
        return int(any(fleet.hooks.count("clock-seen", name) > before[name] for name in fleet.names))

    def heal(self, strike: Strike) -> None:
        strike.fleet.hooks.set_clock(0)


@fault
class ClockAhead(_ClockJump):
    """Tokens are signed for the future, and no invocation has any time left."""

    name = "clock jumps ahead an hour"
    seconds = 3600


@fault
class ClockBack(_ClockJump):
    """Tokens have expired when they are signed, and every invocation has an hour."""

    name = "clock jumps back an hour"
    seconds = -3600


@fault
class KillerMessage(Fault):
    """A message whose decoding ends the process, whoever else is in its batch."""

    name = "a message that kills its environment"
    slow = True

    def strike(self, strike: Strike) -> int:
        fleet, worker = strike.fleet, strike.worker
        before = fleet.hooks.count("killed", worker)
        fleet.send(worker, killers(worker, strike.killer_seed), 0, f"killer-{strike.killer_seed}")
        strike.wait(lambda: fleet.hooks.count("killed", worker) > before)
        return fleet.hooks.count("killed", worker) - before


@fault
class MixedUpAnswers(Fault):
    """The proxy answers with rows that belong to somebody else, as was seen in public (docs in check_answers)."""

    name = "another client's answer"

    def strike(self, strike: Strike) -> int:
        pid = strike.fleet.hooks.catch("mix-up", strike.worker, strike.PATIENCE_S)
        return int(pid is not None)
