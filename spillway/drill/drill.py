"""One drill: probes flow, the database fails over, and what everybody saw of it becomes a report."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spillway.drill.failover import Note
from spillway.drill.measure import Fates, fates_of
from spillway.drill.probes import Sent, Trickle
from spillway.drill.sampler import Sampler, described
from spillway.drill.verdict import Facts, compose
from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from spillway.drill.failover import Failover
    from spillway.drill.report import DrillReport
    from spillway.fleet.canaries import Fate, Watch
    from spillway.producer import Producer

#: Probes that must be done before anything is broken, and seconds of the trickle that they are at least.
BASELINE_PROBES = 5
BASELINE_S = 2.0
#: After how many seconds without an answer the database counts as one that does not answer.
SILENT_S = 2.0
#: How long a thread that is told to stop may take when nobody waits for the drill any more.
STOP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`rate` is probes per second; they flow for `seconds` after the failover began. `goal_s` is the longest
    interruption that is accepted. `baseline_s` is how long the first probes may take, `grace_s` the last ones, which
    begins when the trickle ends. `poll_s` is how often the workers' log is read."""

    rate: float
    seconds: float
    goal_s: float
    grace_s: float
    baseline_s: float = 60.0
    poll_s: float = 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """What a drill is doing."""

    phase: str
    sent: int
    done: int
    trouble: str


class Drill:
    """A drill that is run once. `say` gets a line for each phase, `show` what goes on several times a second.

    `interrupted` ends it at the next moment: nothing is waited for.
    """

    def __init__(
        self,
        failover: Failover,
        producer: Producer,
        watch: Watch,
        run: str,
        options: Options,
        *,
        interrupted: threading.Event,
        say: Callable[[str], object],
        show: Callable[[Progress], object],
    ) -> None:
        self._failover = failover
        self._watch = watch
        self._run = run
        self._options = options
        self._interrupted = interrupted
        self._say = say
        self._show = show
        self._trickle = Trickle(producer, run, options.rate)
        self._sampler = Sampler(failover.ask, failover.every)
        self._fates: list[Fate] = []
        self._unread = ""
        self._phase = ""
        self.began = 0.0
        self.failover_at = 0.0
        self.started = ""

    def run(self, fleet: str, worker: str) -> DrillReport | None:
        """The report, None if interrupted. Raises SpillwayError where the failover was not started."""
        self.began = time.time()
        try:
            self._trickle.start()
            self._sampler.start()
            self._await_baseline()
            if self._interrupted.is_set():
                return None
            self.failover_at = time.time()
            self.started = self._failover.start()
            self._enter(f"failover started: {self.started}")
            self._wait(self._options.seconds, lambda: False)
            if self._interrupted.is_set():
                return None
            self._trickle.stop()
            self._enter("no more probes are sent; waiting for those that are not done")
            self._wait(self._options.grace_s, self._all_settled)
            if self._interrupted.is_set():
                return None
            ended = time.time()
            self._sampler.stop(STOP_S)
            return self._reported(fleet, worker, ended)
        finally:
            self._trickle.stop(STOP_S)
            self._failover.close()  # ends a question that is under way
            self._sampler.stop(STOP_S)

    @property
    def sent(self) -> list[Sent]:
        """The probes so far."""
        return self._trickle.sent

    def _await_baseline(self) -> None:
        options = self._options
        wanted = max(BASELINE_PROBES, math.ceil(options.rate * BASELINE_S))
        limit = options.baseline_s + wanted / options.rate
        self._enter(f"baseline: {wanted} probes must be done before anything is broken")
        self._wait(limit, lambda: len(self._settled().done) >= wanted and self._answers())
        done, sent = len(self._settled().done), self.sent
        if self._interrupted.is_set() or (done >= wanted and self._answers()):
            return
        refused = next((f" SQS says: {one.error}." for one in sent if one.error), "")
        database = "" if self._answers() else f" The database: {self._sampler.trouble or 'no answer'}."
        raise SpillwayError(
            f"Nothing was failed over: {done} of {len(sent)} probes were done within {limit:.0f} s, expected {wanted}."
            f"{refused}{database}",
            "A fleet in trouble gets no drill; `spillway status` and `spillway doctor` say what is wrong.",
        )

    def _wait(self, seconds: float, over: Callable[[], bool]) -> None:
        """Read and show until `over`, for `seconds` at most, or until interrupted."""
        deadline = time.monotonic() + seconds
        while not self._interrupted.is_set():
            self._read()
            self._show(self._progress())
            left = deadline - time.monotonic()
            if over() or left <= 0:
                return
            self._interrupted.wait(min(self._options.poll_s, left))

    def _read(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (with boto3, 0.2 s)

        try:
            self._fates += self._watch.poll()
            self._unread = ""
        except (BotoCoreError, ClientError) as error:
            if not self.failover_at:
                raise
            # The failover is under way: what can be seen of it is worth more than a clean end.
            self._unread = str(error).partition("\n")[0]

    def _enter(self, phase: str) -> None:
        self._phase = phase.partition(":")[0]
        self._say(phase)

    def _progress(self) -> Progress:
        trouble = self._sampler.trouble
        if not trouble and not self._answers():
            trouble = f"no answer for {self._sampler.silent_s:.0f} s"
        return Progress(self._phase, len(self.sent), len(self._settled().done), trouble)

    def _answers(self) -> bool:
        """Whether the database answers now: not only the last time, but also not long ago."""
        sampler = self._sampler
        return bool(sampler.answered) and not sampler.trouble and sampler.silent_s < SILENT_S + sampler.every

    def _settled(self) -> Fates:
        return fates_of(self.sent, self._fates)

    def _all_settled(self) -> bool:
        return not self._settled().lost

    def _reported(self, fleet: str, worker: str, ended: float) -> DrillReport:
        # The failover has happened: what cannot be asked any more must not cost what was measured.
        notes: list[Note] = []
        rows: Mapping[str, int] | None = None
        try:
            notes += self._failover.notes(self.began)
            rows = self._failover.rows(self._run)
        except Exception as error:
            notes.append(Note(time.time(), f"what came of it could not be asked: {described(error)}"))
        return compose(
            Facts(
                run=self._run,
                fleet=fleet,
                worker=worker,
                failover=self.started,
                began=self.began,
                failover_at=self.failover_at,
                ended=ended,
                goal_s=self._options.goal_s,
                rate=self._options.rate,
                sent=self.sent,
                fates=self._fates,
                answered=self._sampler.answered,
                every=self._sampler.every,
                asks=self._failover.asks,
                troubles=self._sampler.troubles,
                unread=self._unread,
                notes=notes,
                rows=rows,
            )
        )
