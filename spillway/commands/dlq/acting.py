"""`spillway dlq redrive --yes`: does it, and says what it came to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import typer

from spillway.dlq import owner, reports, screens
from spillway.dlq.holding import MOST_HELD, Holder, shows_no_more
from spillway.dlq.pieces import Sender
from spillway.dlq.progress import progress
from spillway.dlq.reading import depth_of
from spillway.dlq.records import DONE, FAILED, REFUSED, UNFINISHED, CauseRecord
from spillway.dlq.records import INTERRUPTED as STOPPED
from spillway.dlq.redrive import THREADS, Redrive
from spillway.dlq.verdicts import POLL_S, Trials
from spillway.errors import SpillwayError
from spillway.fleet.canaries import watch
from spillway.interrupts import INTERRUPTED, interrupts
from spillway.pace import TokenBucket
from spillway.screens import console

if TYPE_CHECKING:
    from spillway.dlq.job import Job
    from spillway.dlq.journal import Journal
    from spillway.dlq.reading import Depth
    from spillway.dlq.records import RunRecord
    from spillway.dlq.run import Run
    from spillway.dlq.tally import Tally

#: "Done, but some of what was selected stays."
SOME_STAYED = 3
#: Seconds between two looks at a function's log file.
_LOCAL_POLL_S = 0.2


class RedriveDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `redrive --yes --json` prints.

    `state` is done, unfinished or interrupted; `counts` are as in `history --json`, `refused` by reason. `resume` is
    the command that goes on with it, '' if it is done.
    """

    run: str
    state: str
    fleet: str
    queue: str
    destination: str
    seconds: float
    counts: dict[str, int]
    refused: dict[str, int]
    groups: list[CauseRecord]
    arrived_meanwhile: int
    resume: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """Letters that a run could not see: in flight `elsewhere`, `behind` others of their message groups, or `beyond`
    what SQS lets anyone hold."""

    elsewhere: int = 0
    behind: int = 0
    beyond: int = 0

    def __bool__(self) -> bool:
        return bool(self.elsewhere or self.behind or self.beyond)


class Acting:
    """A redrive that is done, from the first letter to what is printed in the end."""

    def __init__(self, job: Job, journal: Journal, *, json: bool) -> None:
        self._fleet = job.fleet
        self._worker = job.worker
        self._target = job.target
        self._orders = job.orders
        self._filter = job.filter
        self._journal = journal
        self._json = json
        self._editor = job.orders.editor
        self._client = job.fleet.sqs(connections=2 * THREADS + 2)
        self._started = time.monotonic()

    def begin(self) -> None:
        """A new run."""
        run = self._journal.begin(
            kind="redrive",
            fleet=self._fleet.identity,
            queue=self._worker.dead_letter_queue,
            filter=self._filter,
            details=msgspec.to_builtins(self._orders),
            who=owner.caller(self._fleet),
        )
        self._do(run)

    def go_on(self, record: RunRecord) -> None:
        """A run of before."""
        self._do(self._journal.resume(record))

    def _do(self, run: Run) -> None:
        with self._accounted(run) as stop, ExitStack() as resources:
            trials = self._trials(run)
            holder = resources.enter_context(Holder(self._client, self._worker.dead_letter_url))
            work = self._redrive(run, holder, trials, stop)
            before = depth_of(self._client, self._worker.dead_letter_url)
            total = before.visible + work.tally.redriven
            if self._orders.limit is not None:
                total = min(total, self._orders.limit)
            update = resources.enter_context(progress("redriving", total, done=work.tally.redriven))

            def on_tick() -> None:
                update(work.tally.redriven, _note(work.tally, trials.pending))

            tally = work.work(on_tick)
            unseen = self._unseen(before, holder) if work.at_end else Unseen()
            if work.at_end and not unseen:
                run.found_gone()
        state = STOPPED if stop.is_set() else UNFINISHED if unseen.elsewhere or unseen.beyond else DONE
        counts = self._journal.counts(run.id) | ({"cleared": tally.cleared} if tally.cleared else {})
        run.finish(counts, state)
        self._say(run, state, counts, tally, unseen)
        if stop.is_set():
            raise typer.Exit(INTERRUPTED)
        if (
            state == UNFINISHED
            or not tally.complete
            or any(counts.get(name) for name in ("refused", "stayed", "unknown", "died_again"))
        ):
            raise typer.Exit(SOME_STAYED)

    @contextmanager
    def _accounted(self, run: Run) -> Iterator[threading.Event]:
        """Whatever ends the run, the journal says so, and the person how to go on."""
        with interrupts() as stop:
            try:
                yield stop
            except BaseException as error:
                with suppress(SpillwayError):  # what went wrong may be the journal
                    run.finish(
                        self._journal.counts(run.id), STOPPED if isinstance(error, KeyboardInterrupt) else FAILED
                    )
                typer.echo(f"The run {run.id} did not end. Go on with it: {self._resume(run)}", err=True)
                raise

    def _redrive(self, run: Run, holder: Holder, trials: Trials, stop: threading.Event) -> Redrive:
        orders = self._orders
        bucket = None if orders.rate is None else TokenBucket(orders.rate, orders.burst, sleep=stop.wait)
        return Redrive(
            holder=holder,
            sender=Sender(self._client, self._target.url, fifo=self._target.fifo),
            run=run,
            trials=trials,
            selected=self._filter,
            arrived_by=orders.arrived_by,
            fifo=self._worker.fifo,
            to_fifo=self._target.fifo,
            editor=self._editor,
            limit=orders.limit,
            bucket=bucket,
            piece_letters=orders.piece_letters,
            asked_to_stop=stop,
            threads=orders.threads,
        )

    def _trials(self, run: Run) -> Trials:
        if self._orders.canary_s is None:
            return Trials(None)
        reader = self._fleet.workers[self._target.worker]
        # The worker's clock may be behind ours.
        watching = watch(self._fleet, reader, run.id, datetime.now(UTC) - timedelta(minutes=1))
        watching.poll()  # if these credentials may not read the log, before anything was sent
        return Trials(
            watching,
            timeout_s=self._orders.canary_s,
            poll_s=POLL_S if self._fleet.local is None else _LOCAL_POLL_S,
            known=run.verdicts(),
        )

    def _unseen(self, before: Depth, holder: Holder) -> Unseen:
        """What there is beyond the letters that this process holds. SQS's counts lag, so they are read with care."""
        after = depth_of(self._client, self._worker.dead_letter_url)
        held = len(holder.held)
        # Those that somebody held from the start, and that may be visible by now.
        elsewhere = min(before.in_flight, after.total - held)
        if self._fleet.local is not None:
            # Exact, while SQS on AWS counts ours for a while after they are deleted.
            elsewhere = max(elsewhere, after.in_flight - held)
        return Unseen(
            elsewhere=max(0, elsewhere),
            behind=max(0, after.total - held) if self._worker.fifo and held and not before.in_flight else 0,
            beyond=after.visible if shows_no_more(held + before.in_flight) else 0,
        )

    def _say(self, run: Run, state: str, counts: dict[str, int], tally: Tally, unseen: Unseen) -> None:
        groups = self._journal.causes(run.id)
        refusals = self._journal.reasons(run.id, REFUSED)
        unfinished = self._resume(run) if state != DONE else ""
        if self._json:
            document = RedriveDocument(
                run=run.id,
                state=state,
                fleet=self._fleet.identity,
                queue=self._worker.dead_letter_queue,
                destination=self._target.url,
                seconds=round(time.monotonic() - self._started, 3),
                counts=counts,
                refused=refusals,
                groups=groups,
                arrived_meanwhile=tally.later,
                resume=unfinished,
            )
            typer.echo(screens.json_text(document))
            return
        seconds = time.monotonic() - self._started
        died = counts.get("died_again", 0)
        done = counts.get("redriven", 0) - died
        title = (
            f"Redriven: {reports.several(done, 'letter')} from {self._worker.dead_letter_queue} to {self._target.name}"
        )
        title += f" in {seconds:,.1f} s (run {run.id})"
        words: tuple[str, ...] = ("dlq", "show", self._worker.name)
        if refusals:
            words = ("dlq", "history", run.id)
        elif not (counts.get("stayed") or died or tally.later):
            words = ("dlq", "list")
        todo = unfinished or screens.command(self._fleet, *words)
        if state == STOPPED:
            title = f"Interrupted. {title}"
        console().print(
            reports.outcome(groups, title=title, notes=_notes(counts, tally, unseen), refusals=refusals, todo=todo)
        )

    def _resume(self, run: Run) -> str:
        return screens.command(self._fleet, "dlq", "redrive", self._worker.name, "--resume", run.id)


def _note(tally: Tally, pending: int) -> str:
    said = {
        "canaries on their way": pending,
        "refused": tally.refused.total(),
        "stay": tally.staying,
    }
    return ", ".join(f"{count:,} {what}" for what, count in said.items() if count)


def _notes(counts: dict[str, int], tally: Tally, unseen: Unseen) -> list[str]:
    said: dict[str, int] = {
        "had been sent by a run before, and were only deleted now.": tally.cleared,
        "were sent, and SQS did not delete them: the next redrive does only that.": tally.undeleted,
        "were perhaps sent, and stay: SQS did not answer. Sent again, they have no second effect.": counts.get(
            "unknown", 0
        ),
        "arrived meanwhile, and were not looked at.": tally.later,
        "were held by somebody else, or by a redrive that was killed. They show again within two minutes, and are not "
        "done.": unseen.elsewhere,
        f"or so are beyond the {MOST_HELD:,} that SQS lets be held at a time: it shows none of them while these stay. "
        "Redrive or discard some first.": unseen.beyond,
        "or so are behind letters that stay, in their message groups, where SQS does not show them.": unseen.behind,
    }
    notes = [f"{reports.several(count, 'letter')} {what}" for what, count in said.items() if count]
    return notes + [f"{count:,} stay: {why}." for why, count in tally.kept.items()]
