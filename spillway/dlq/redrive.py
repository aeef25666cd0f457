"""The redrive itself: letters of a dead-letter queue go back to work, and nothing is lost or done twice on the way.

A piece of letters is received, selected, edited, written into the journal, sent, written into the journal, deleted,
and written into the journal: in this order, so that wherever it ends, every letter is in the dead-letter queue, or in
the queue that it was sent to, or in both; then the journal or the event's id keeps it from taking effect twice.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from spillway.dlq.desk import Desk, Lane, Receive
from spillway.dlq.edits import EditRefused
from spillway.dlq.intake import Intake
from spillway.dlq.pieces import BEHIND, MAX_BYTES, MAX_LETTERS, Outgoing, body_of, can_be_canary, outgoing
from spillway.dlq.records import DELETED, SENT, Entry
from spillway.dlq.tally import Tally
from spillway.dlq.verdicts import PASSED, UNPROVEN, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from spillway.dlq.edits import Editor
    from spillway.dlq.filters import Filter
    from spillway.dlq.holding import Holder
    from spillway.dlq.letters import Cause, Letter
    from spillway.dlq.pieces import Answers, Sender
    from spillway.dlq.run import Run
    from spillway.dlq.verdicts import Trials
    from spillway.pace import TokenBucket

#: Threads that carry pieces. On AWS a piece is 30 calls of 10 to 20 ms, so these redrive about 1,000 letters a second.
THREADS = 4
#: Lanes whose rests one thread keeps back until its piece is through.
MAX_RESTS = 10
_TICK_S = 0.1


@dataclass
class _Piece:
    """Messages to be sent, and the rests of their lanes, with the cause that they wait for if they do.

    A rest is handed out again when the piece is through: sooner, another thread could send it before what is in here.
    """

    messages: list[Outgoing] = field(default_factory=list)
    size: int = 0
    rests: list[tuple[Lane, Cause | None]] = field(default_factory=list)


class Redrive:
    """One run. `work` does it; `stop`, or `asked_to_stop`, lets it end after the pieces that are on their way.

    `arrived_by`: see Intake. `fifo` says whether the dead-letter queue is, `to_fifo` whether the destination is.
    """

    def __init__(
        self,
        *,
        holder: Holder,
        sender: Sender,
        run: Run,
        trials: Trials,
        selected: Filter,
        arrived_by: datetime,
        fifo: bool,
        to_fifo: bool,
        editor: Editor | None = None,
        limit: int | None = None,
        bucket: TokenBucket | None = None,
        piece_letters: int = MAX_LETTERS,
        threads: int = THREADS,
        asked_to_stop: threading.Event | None = None,
    ) -> None:
        self._holder = holder
        self._sender = sender
        self._run = run
        self._trials = trials
        self._fifo = fifo
        self._to_fifo = to_fifo
        self._editor = editor
        self._bucket = bucket
        self._piece_letters = piece_letters
        self._threads = threads
        self._lock = threading.Lock()
        self._pacing = threading.Lock()
        self._error: Exception | None = None
        self._asked_again: set[Cause] = set()
        #: FIFO: message groups of which a letter stays, and those with a canary on its way.
        self._blocked: set[str] = set()
        self._on_trial: dict[str, Cause] = {}
        self._stopped = False
        self._asked_to_stop = asked_to_stop or threading.Event()
        before = run.count(SENT) + run.count(DELETED)
        self.tally = Tally(redriven=before)
        self._desk = Desk(fifo=fifo, limit=None if limit is None else max(0, limit - before))
        self._intake = Intake(
            holder=holder,
            desk=self._desk,
            run=run,
            selected=selected,
            arrived_by=arrived_by,
            fifo=fifo,
            tally=self.tally,
            lock=self._lock,
        )

    @property
    def at_end(self) -> bool:
        """Whether everything that the dead-letter queue shows was looked at."""
        return self._desk.at_end

    def work(self, on_tick: Callable[[], object] = lambda: None) -> Tally:
        """Carry everything that is selected; `on_tick` is called about ten times a second.

        What stays is still held by the holder. Raises what SQS or the journal answers instead, when the other threads
        are done with their pieces.
        """
        threads = [
            threading.Thread(target=self._carry, name=f"redrive-{number}", daemon=True)
            for number in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        try:
            while (alive := [thread for thread in threads if thread.is_alive()]) or self._trials_go_on:
                alive[0].join(_TICK_S) if alive else time.sleep(_TICK_S)
                if self._asked_to_stop.is_set():
                    self.stop()
                self._guarded(self._tick)
                on_tick()
        finally:
            self.stop()
        if self._error is not None:
            raise self._error
        self._run.stayed(self.tally.stayed, self.tally.why)
        return self.tally

    def stop(self) -> None:
        """Let the pieces on their way be the last."""
        self._stopped = True
        self._desk.stop()

    @property
    def _stopping(self) -> bool:
        return self._stopped or self._asked_to_stop.is_set()

    @property
    def _trials_go_on(self) -> bool:
        """Whether there is still a verdict to wait for, though no letter may wait for it."""
        return self._trials.pending > 0 and not self._stopping

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:
            with self._lock:
                self._error = self._error or error
            self.stop()

    def _tick(self) -> None:
        self._holder.renew()
        for verdict in self._trials.poll():
            self._run.verdict(verdict.cause, verdict.verdict, verdict.why)
            if self._fifo and verdict.group_id is not None:
                with self._lock:
                    self._on_trial.pop(verdict.group_id, None)
                    if verdict.verdict != PASSED:
                        self._blocked.add(verdict.group_id)
            self._desk.decided(verdict.cause)
        for cause in self._desk.waiting_causes():
            match self._trials.state(cause):
                case "":
                    continue
                case None if cause in self._asked_again:
                    self._trials.give_up(cause)
                    self._run.verdict(cause, UNPROVEN, self._trials.why(cause))
                case None:
                    self._asked_again.add(cause)
            self._desk.decided(cause)

    def _carry(self) -> None:
        self._guarded(self._carry_pieces)

    def _carry_pieces(self) -> None:
        while not self._stopping and (work := self._desk.next(idle=True)) is not None:
            try:
                piece = self._gather(work)
                if piece.messages:
                    self._carry_out(piece.messages)
                for lane, cause in piece.rests:
                    self._desk.again(lane) if cause is None else self._desk.wait(lane, cause)
            finally:
                self._desk.done()

    def _gather(self, work: Lane | Receive | None) -> _Piece:
        """The next piece: what is ready, and what comes while it is not full."""
        piece = _Piece()
        try:
            while work is not None:
                if isinstance(work, Receive):
                    self._intake.receive()
                else:
                    self._take(work, piece)
                if (
                    len(piece.messages) >= self._piece_letters
                    or piece.size >= MAX_BYTES
                    or len(piece.rests) >= MAX_RESTS
                ):
                    break
                work = self._desk.next(idle=False)
        except BaseException:
            self._drop(piece.messages)
            raise
        return piece

    def _take(self, lane: Lane, piece: _Piece) -> None:
        """As many of `lane` as may go now into `piece`."""
        while lane and len(piece.messages) < self._piece_letters and not self._stopping:
            letter = lane[0]
            group = letter.group_id if self._fifo else None
            if group is not None:
                with self._lock:
                    blocked, on_trial = group in self._blocked, self._on_trial.get(group)
                if blocked:
                    self._stay(lane, BEHIND)
                    return
                if on_trial is not None:
                    piece.rests.append((lane, on_trial))
                    return
            if not self._desk.reserve():
                break
            turn = self._trials.ask(letter.cause, lambda one=letter: can_be_canary(one, self._run.id))  # type: ignore[misc]
            if turn is Turn.WAIT:
                self._desk.give_back()
                if self._fifo:
                    piece.rests.append((lane, letter.cause))
                else:
                    self._desk.wait(lane, letter.cause)
                return
            lane.popleft()
            if turn is Turn.STAY:
                self._desk.give_back()
                self._stay([letter], self._trials.why(letter.cause))
                self._block(group)
                continue
            message = self._prepared(letter, canary=turn is Turn.CANARY)
            if message is None:
                self._block(group)
                continue
            if turn is Turn.CANARY and group is not None:
                with self._lock:
                    self._on_trial[group] = letter.cause
            piece.messages.append(message)
            piece.size += message.size
        if lane:
            piece.rests.append((lane, None))

    def _prepared(self, letter: Letter, *, canary: bool) -> Outgoing | None:
        """The letter as it goes out; None if it is refused."""
        try:
            body = body_of(letter, self._editor, to_fifo=self._to_fifo)
        except EditRefused as refused:
            self._desk.give_back()
            self._refuse([self._entry(letter, reason=str(refused))])
            if canary:
                self._retry_canary(letter.cause)
            return None
        if self._bucket is not None:
            with self._pacing:
                self._bucket.take()
        return outgoing(letter, body, run=self._run.id, fifo=self._to_fifo, canary=canary)

    def _carry_out(self, piece: list[Outgoing]) -> None:
        try:
            self._run.sending([self._entry_of(one) for one in piece])
        except BaseException:
            self._drop(piece)
            raise
        answers = self._sender.send(piece)
        by_id = {one.letter.message_id: one for one in piece}
        for message_id, one in by_id.items():
            if one.canary:
                self._canary_sent(one, answers.sent.get(message_id))
        try:
            self._run.sent(answers.sent)
        finally:  # if the journal broke: SQS has them, so they leave the dead-letter queue all the same
            self._intake.remember(answers.sent.values())
            deleted = self._holder.delete(answers.sent)
            with self._lock:
                self.tally.redriven += len(answers.sent)
                self.tally.undeleted += len(answers.sent) - len(deleted)
            self._desk.deleted()
        self._run.deleted(deleted)
        self._not_sent(by_id, answers)
        if answers.error is not None:
            raise answers.error

    def _not_sent(self, piece: dict[str, Outgoing], answers: Answers) -> None:
        missing = piece.keys() - answers.sent.keys()
        if not missing:
            return
        self._desk.give_back(len(missing))
        if self._fifo:
            for message_id in missing:
                self._block(piece[message_id].letter.group_id)
        self._refuse([self._entry_of(piece[one], reason=why) for one, why in answers.refused.items()])
        with self._lock:
            self.tally.kept.update(answers.kept.values())
        for why in set(answers.kept.values()):
            self._run.kept([one for one, said in answers.kept.items() if said == why], why)

    def _canary_sent(self, one: Outgoing, new_id: str | None) -> None:
        if new_id is not None:
            self._trials.sent(one.letter.cause, new_id, one.letter.group_id)
            return
        if self._fifo and one.letter.group_id is not None:
            with self._lock:
                self._on_trial.pop(one.letter.group_id, None)
        self._retry_canary(one.letter.cause)

    def _retry_canary(self, cause: Cause) -> None:
        self._trials.unsent(cause)
        self._desk.decided(cause)

    def _drop(self, piece: list[Outgoing]) -> None:
        """None of these will be sent; the holder gives them back."""
        self._desk.give_back(len(piece))
        for one in piece:
            if one.canary:
                self._canary_sent(one, None)

    def _refuse(self, entries: list[Entry]) -> None:
        if entries:
            self._run.refused(entries)
            with self._lock:
                self.tally.refused.update(entry.reason for entry in entries)

    def _stay(self, letters: Lane | list[Letter], why: str) -> None:
        with self._lock:
            for letter in letters:
                self.tally.stayed[letter.cause] = self.tally.stayed.get(letter.cause, 0) + 1
                self.tally.why[letter.cause] = why

    def _block(self, group: str | None) -> None:
        if self._fifo and group is not None:
            with self._lock:
                self._blocked.add(group)

    def _entry(self, letter: Letter, *, reason: str) -> Entry:
        return Entry(message_id=letter.message_id, cause=letter.cause, event_id=letter.event_id or "", reason=reason)

    def _entry_of(self, one: Outgoing, reason: str = "") -> Entry:
        return Entry(
            message_id=one.letter.message_id,
            cause=one.letter.cause,
            event_id=one.letter.event_id or "",
            canary=one.canary,
            reason=reason,
            before=one.letter.body if one.edited else None,
            after=one.body if one.edited else None,
        )
