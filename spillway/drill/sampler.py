"""Asks the database the same question again and again, and keeps when it answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable


class Sampler:
    """Calls `ask` every `every` seconds in a thread of its own; '' is a good answer, else it says what is wrong.

    A call that takes longer delays the next one: a database that lets its clients wait is one that does not answer.
    """

    def __init__(self, ask: Callable[[], str], every: float, *, clock: Callable[[], float] = time.time) -> None:
        self.every = every
        self._ask = ask
        self._clock = clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="drill-sampler", daemon=True)
        self._answered: list[float] = []
        self._troubles: Counter[str] = Counter()
        self._first_asked = 0.0
        self._trouble = ""

    @property
    def answered(self) -> list[float]:
        """When good answers came, in seconds since the epoch."""
        return list(self._answered)

    @property
    def troubles(self) -> Counter[str]:
        """How often what was wrong."""
        return Counter(dict(self._troubles))

    @property
    def trouble(self) -> str:
        """What is wrong now, as far as the last answer told; ''."""
        return self._trouble

    @property
    def silent_s(self) -> float:
        """For how long there has been no good answer, in seconds."""
        last = self._answered[-1] if self._answered else self._first_asked
        return max(self._clock() - last, 0.0) if last else 0.0

    def start(self) -> None:
        self._first_asked = self._clock()
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Ask no more; a question that is under way is waited for, for `timeout_s` at most."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _sample(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                trouble = self._ask()
            except Exception as error:
                trouble = described(error)
            if self._stopped.is_set():
                return  # the question may have been cut off
            self._trouble = trouble
            if trouble:
                self._troubles[trouble] += 1
            else:
                self._answered.append(self._clock())
            self._stopped.wait(max(self.every - (time.monotonic() - began), 0))


def described(error: Exception) -> str:
    """The first line of an error and its kind."""
    said = str(error).partition("\n")[0].strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
