"""Canaries: one letter of each group goes ahead, and what becomes of it decides about the others."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spillway.dlq.letters import Cause
    from spillway.fleet.canaries import Fate, Watch

#: Seconds until a canary without an outcome counts as failed.
TIMEOUT_S = 120.0
#: Seconds between two looks at the worker's log. The calls of FilterLogEvents that an account may make in a region are
#: a few a second ("CloudWatch Logs quotas"), and others want some, too.
POLL_S = 2.0
#: Verdicts, as the journal has them: the worker was done with it; it is a dead letter again; nobody knows, or nobody
#: could try.
PASSED, DIED, UNPROVEN = "passed", "died again", "unproven"
NO_CANARY = "none of its letters has room for the canary's attribute"


class Turn(Enum):
    """What a letter's group lets it do."""

    GO = "go"
    CANARY = "go ahead as the canary"
    WAIT = "wait for the canary"
    STAY = "stay, the canary failed"


@dataclass
class _Trial:
    verdict: str = ""
    why: str = ""
    message_id: str = ""
    group_id: str | None = None
    deadline: float = float("inf")
    last: str = ""
    told: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A group's verdict, and why. `group_id` is the canary's message group."""

    cause: Cause
    verdict: str
    why: str
    group_id: str | None


class Trials:
    """The trial of every group. Several threads may ask; one polls.

    Without a `watch` there are no canaries and every group goes. `known` are verdicts of the run that this one resumes.
    """

    def __init__(
        self,
        watch: Watch | None,
        *,
        timeout_s: float = TIMEOUT_S,
        poll_s: float = POLL_S,
        known: Mapping[Cause, tuple[str, str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watch = watch
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._next_poll = 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._trials = {cause: _Trial(verdict, why, told=True) for cause, (verdict, why) in (known or {}).items()}
        # A worker may be quicker than SQS's answer to us.
        self._early: dict[str, list[Fate]] = {}

    def ask(self, cause: Cause, can_be_canary: Callable[[], bool]) -> Turn:
        """Whether a letter of `cause` may go. Whoever is told CANARY calls `sent` or `unsent` next."""
        with self._lock:
            trial = self._trials.get(cause)
            if trial is not None and trial.verdict in (DIED, UNPROVEN):
                return Turn.STAY
            if self._watch is None or (trial is not None and trial.verdict == PASSED):
                return Turn.GO
            if trial is not None or not can_be_canary():
                return Turn.WAIT
            self._trials[cause] = _Trial()
            return Turn.CANARY

    def sent(self, cause: Cause, message_id: str, group_id: str | None) -> None:
        """The canary of `cause` is on its way with this message id."""
        with self._lock:
            trial = self._trials[cause]
            trial.message_id, trial.group_id = message_id, group_id
            trial.deadline = self._clock() + self._timeout_s
            for fate in self._early.pop(message_id, ()):
                _note(trial, fate)

    def unsent(self, cause: Cause) -> None:
        """The letter that was to be the canary was refused: let another be it."""
        with self._lock:
            self._trials.pop(cause, None)

    def give_up(self, cause: Cause) -> None:
        """No letter of `cause` can be a canary."""
        with self._lock:
            self._trials.setdefault(cause, _Trial(UNPROVEN, NO_CANARY, told=True))

    def why(self, cause: Cause) -> str:
        """Why the canary of `cause` failed."""
        with self._lock:
            return self._trials[cause].why if cause in self._trials else ""

    def state(self, cause: Cause) -> str | None:
        """The verdict on `cause`; '' while its canary is on its way or about to be, None if there is none."""
        with self._lock:
            trial = self._trials.get(cause)
            return trial.verdict if trial is not None else None

    @property
    def pending(self) -> int:
        """How many verdicts `poll` has still to tell."""
        with self._lock:
            return sum(not trial.told for trial in self._trials.values())

    def poll(self) -> list[Verdict]:
        """The verdicts that were reached since the last call. May be called as often as one likes."""
        if self._watch is None or self._clock() < self._next_poll or not self.pending:
            return []
        self._next_poll = self._clock() + self._poll_s
        fates = self._watch.poll()
        with self._lock:
            known = {trial.message_id: trial for trial in self._trials.values() if trial.message_id}
            for fate in fates:
                if (trial := known.get(fate.message_id)) is not None:
                    _note(trial, fate)
                else:
                    self._early.setdefault(fate.message_id, []).append(fate)
            decided = []
            for cause, trial in self._trials.items():
                if not trial.message_id or trial.told:
                    continue
                if not trial.verdict and self._clock() >= trial.deadline:
                    trial.verdict = UNPROVEN
                    trial.why = f"no outcome of the canary within {self._timeout_s:.0f} s{trial.last}"
                if trial.verdict:
                    trial.told = True
                    decided.append(Verdict(cause, trial.verdict, trial.why, trial.group_id))
            return decided


def _note(trial: _Trial, fate: Fate) -> None:
    if trial.verdict:
        return
    if fate.done:
        trial.verdict, trial.why = PASSED, fate.outcome
    elif fate.dead:
        said = " ".join(filter(None, (fate.reason, fate.sqlstate)))
        trial.verdict = DIED
        trial.why = f"the canary was dead-lettered again: {said}" + f" ({fate.detail})" * bool(fate.detail)
    else:
        trial.last = f"; last given back as {fate.outcome}"
