"""One run: a fleet at work, faults on it, and what it comes to."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from spillway.rdsproxy.settings import RdsProxyError
from spillway.stack.errors import StackError
from tests.chaos.checker import Found, Kind, Violation, check, check_fleet, letters_of
from tests.chaos.environment_faults import KillerMessage
from tests.chaos.faults import Strike, load
from tests.chaos.histories import CLAIMS, generate, killer_ids, killers
from tests.chaos.hooks import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spillway.histories.base import History
    from tests.chaos.fleet import Fleet
    from tests.chaos.plan import Plan, Planned

#: Shares of each history that are sent before the faults, and while they last.
BEFORE, DURING = 0.3, 0.8
#: While faults last there is a burst, and the rest in so many parts with a pause between them, in seconds.
FEW, PAUSE_S = 20, 0.5
START_S, DRAIN_S = 30.0, 100.0
_SAMPLE_S, _DRAIN_POLL_S = 0.2, 0.3


@dataclass
class Report:
    """What a run came to. `injected` says how often each fault happened; times are in seconds.

    first_commit_s, ninety_s: from the end of the faults to the first event that was decided upon, and to 90 % of those
    that were still to be; None if none was left. drained_s: to the last message's end. attempts: how often the run was
    made until its faults happened.
    """

    run: int
    faults: tuple[str, ...]
    injected: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    first_commit_s: float | None = None
    ninety_s: float | None = None
    drained_s: float = 0.0
    took_s: float = 0.0
    attempts: int = 1
    log: str = ""

    @property
    def happened(self) -> bool:
        """Whether every fault of the plan did."""
        return all(self.injected.get(name) for name in self.faults)


class Run:
    """One plan on one fleet; the fleet can be used again if nothing was violated."""

    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self.fleet, self.plan = fleet, plan
        self.histories: Mapping[str, History] = {
            name: generate(name, plan.history_seed, plan.events) for name in fleet.names
        }
        self.killers = {
            one.worker: killers(one.worker, plan.killer_seed) for one in plan.faults if one.fault == KillerMessage.name
        }
        self._batches = {name: Counter(fleet.mapping(name).stats.batches_by_reason) for name in fleet.names}
        self._deadlocks, self._pins = fleet.server_log_count("deadlock detected"), fleet.pins
        self._sent = dict.fromkeys(fleet.names, 0)
        self._faults_over = threading.Event()
        self.report = Report(plan.run, tuple(one.fault for one in plan.faults))

    def make(self) -> Report:
        """Send, break, mend, wait, check."""
        started = time.monotonic()
        report = self.report
        try:
            self._make()
            report.violations += self._check()
        except (StackError, psycopg.Error, RdsProxyError, AssertionError) as error:
            report.violations.append(Violation(Kind.OTHER, f"the run broke: {type(error).__name__}: {error}"))
        if report.violations:
            report.log = f"{self.fleet.stack.stats()}\n{self.fleet.stack.log_tail(40)}"
        report.took_s = time.monotonic() - started
        return report

    def _make(self) -> None:
        for name in self.fleet.names:
            self._send(name, BEFORE)
        if not wait_until(lambda: self._claimed() > 0, START_S):
            raise AssertionError(f"expected a first commit within {START_S:.0f} s")
        with ThreadPoolExecutor(len(self.fleet.names) + len(self.plan.faults) + 1) as pool:
            senders = [pool.submit(self._trickle, name) for name in self.fleet.names]
            strikes = [pool.submit(self._strike, one) for one in self.plan.faults]
            try:
                for strike in strikes:
                    strike.result()
            finally:
                self.fleet.hooks.clear()
                self._faults_over.set()
            base, healed_at = self._claimed(), time.monotonic()
            watcher = pool.submit(self._watch, base, healed_at)
            for sender in senders:
                sender.result()
            watcher.result()
        wait_until(lambda: self._left() == 0, DRAIN_S - (time.monotonic() - healed_at), poll_s=_DRAIN_POLL_S)
        self.report.drained_s = time.monotonic() - healed_at

    def _send(self, worker: str, share: float, most: int | None = None) -> int:
        """Send on, up to a share of the history; returns how many."""
        messages = self.histories[worker].messages
        first = self._sent[worker]
        end = min(int(len(messages) * share), first + most if most else len(messages))
        if first < end:
            self.fleet.send(worker, messages[first:end], first, f"{self.plan.history_seed}")
            self._sent[worker] = end
        return max(0, end - first)

    def _trickle(self, worker: str) -> None:
        """A burst, and then a few at a time: a fault that comes late must still meet messages on their way."""
        during = int(len(self.histories[worker].messages) * DURING) - self._sent[worker]
        burst = self._send(worker, DURING, min(self.plan.burst, during // 2))
        few = max(1, (during - burst) // FEW)
        while not self._faults_over.wait(PAUSE_S) and self._send(worker, DURING, few):
            pass
        self._faults_over.wait()
        self._send(worker, 1)

    def _strike(self, planned: Planned) -> None:
        fault = load()[planned.fault]()
        strike = Strike(
            self.fleet, planned.worker, self.plan.rng(planned.fault), self.plan.quick, self.plan.killer_seed
        )
        strike.pause(planned.after_s)
        try:
            self.report.injected[planned.fault] = fault.strike(strike)
        finally:
            _heal(fault.heal, strike)

    def _claimed(self) -> int:
        """Events of this run that were decided upon; none, while the database is away."""
        with suppress(psycopg.OperationalError), self.fleet.connect() as connection:
            return sum(
                self.fleet.claims(connection, name, list(history.event_ids)) for name, history in self.histories.items()
            )
        return 0

    def _left(self) -> int:
        """0 if every message is done; what SQS's faults hold back counts as being in its queue."""
        # The first worker that has something left is answer enough.
        return next(filter(None, map(self.fleet.waiting, self.fleet.names)), 0)

    def _watch(self, base: int, healed_at: float) -> None:
        """Measure the recovery: how soon what was not decided upon when the faults ended is."""
        total = sum(len(history.event_ids) for history in self.histories.values())
        if base == total:
            return
        report, ninety = self.report, base + 0.9 * (total - base)
        while (after_s := time.monotonic() - healed_at) < DRAIN_S:
            claimed = self._claimed()
            if claimed > base and report.first_commit_s is None:
                report.first_commit_s = after_s
            if claimed >= ninety:
                report.ninety_s = after_s
                return
            time.sleep(_SAMPLE_S)

    def _check(self) -> list[Violation]:
        fleet = self.fleet
        fleet.stack.check_alive()
        with fleet.connect() as connection:
            result = [violation for name in fleet.names for violation in check(self._found(name, connection))]
        deadlocks = fleet.server_log_count("deadlock detected") - self._deadlocks
        return result + check_fleet(pins=fleet.pins - self._pins, deadlocks=deadlocks)

    def _found(self, worker: str, connection: psycopg.Connection[object]) -> Found:
        history, dangerous = self.histories[worker], self.killers.get(worker, ())
        ids = dict(zip((message.body for message in dangerous), killer_ids(dangerous), strict=True))

        def claimed(wanted: list[str]) -> list[str]:
            rows = connection.execute(
                f"SELECT event_id::text FROM spillway.{CLAIMS[worker]} WHERE event_id = ANY(%s::uuid[])",  # noqa: S608
                [wanted],
            )
            return [str(row[0]) for row in rows]  # type: ignore[index]

        event_ids = frozenset(map(str, history.event_ids))
        return Found(
            worker=worker,
            event_ids=event_ids,
            broken=history.broken,
            reasons=history.reasons,
            claimed=claimed(list(event_ids)),
            letters=letters_of(self.fleet.dead_letters(worker)),
            invariants=history.violations(connection),
            killers=ids,
            killers_claimed=claimed(list(ids.values())),
            left=self.fleet.waiting(worker),
            batches=Counter(self.fleet.mapping(worker).stats.batches_by_reason) - self._batches[worker],
            may_time_out=any(load()[one.fault].may_time_out for one in self.plan.faults),
        )


def _heal(heal: object, strike: Strike) -> None:
    """Another fault may have the proxy or the database down at this moment."""

    def healed() -> bool:
        try:
            heal(strike)  # type: ignore[operator]
        except (RdsProxyError, StackError, psycopg.OperationalError):
            return False
        return True

    if not wait_until(healed, 20):
        raise AssertionError("expected the fault to be mended within 20 s")
