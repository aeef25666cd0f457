"""What the chaos suite does inside a function's process. Python imports this by its name, because it is on PYTHONPATH.

Nothing of a worker is changed: the few calls that are wrapped here look for a file in CHAOS_DIR and, nearly always,
find none. Files are named POINT.WORKER; whoever renames one to POINT.WORKER.caught.PID first is the one it was for.

    decode         before a record is decoded, so before any time is looked at
    before-write   the batch is about to be written
    after-write    the database has answered, which nobody has heard yet
    mix-up         the next write is not made, and answered with the rows of the one before

A process that is caught stops itself (SIGSTOP); what becomes of it then, the suite decides. `clock` holds seconds by
which the wall clock is wrong.
"""

import os
import signal
import sys
import time
from contextlib import suppress

#: A message with this text in its body ends the process that decodes it.
KILLER = "/chaos/killer"

_directory = os.environ.get("CHAOS_DIR", "")
_worker = sys.orig_argv[-1].split(".")[1] if sys.orig_argv[-1].count(".") > 1 else ""
_clock = f"{_directory}/clock"
_real_time, _real_time_ns = time.time, time.time_ns


def _caught(point: str) -> bool:
    name = f"{_directory}/{point}.{_worker}"
    with suppress(FileNotFoundError):
        os.rename(name, f"{name}.caught.{os.getpid()}")  # noqa: PTH104
        return True
    return False


def _stop_if_caught(point: str, writing: bytes = b"[]") -> None:
    if _caught(point):
        with open(f"{_directory}/held.{_worker}.{os.getpid()}", "wb") as file:  # noqa: PTH123
            file.write(writing)
        os.kill(os.getpid(), signal.SIGSTOP)


def _append(name: str) -> None:
    with open(f"{_directory}/{name}.{_worker}.log", "a") as file:  # noqa: PTH123
        file.write(f"{os.getpid()}\n")


def _offset_s() -> float:
    try:
        with open(_clock) as file:  # noqa: PTH123
            return float(file.read() or 0)
    except (FileNotFoundError, ValueError):
        return 0.0


def _install_points() -> None:
    from workers.runtime.database import Database  # noqa: PLC0415 - only in a function's process
    from workers.runtime.envelope import EventDecoder  # noqa: PLC0415

    fetch, decode = Database.fetch, EventDecoder.decode
    before: list[tuple[object, ...]] = []

    def fetch_at_points(self, statement, parameter):  # type: ignore[no-untyped-def]
        if f"spillway.apply_{_worker}(" not in statement:
            return fetch(self, statement, parameter)
        _stop_if_caught("before-write", parameter)
        if before and _caught("mix-up"):
            return list(before)
        rows = fetch(self, statement, parameter)
        before[:] = rows
        _stop_if_caught("after-write", parameter)
        return rows

    def decode_at_points(self, body):  # type: ignore[no-untyped-def]
        _stop_if_caught("decode")
        if _offset_s():
            _append("clock-seen")
        if KILLER in body:
            _append("killed")
            os._exit(137)
        return decode(self, body)

    Database.fetch = fetch_at_points  # type: ignore[method-assign]
    EventDecoder.decode = decode_at_points  # type: ignore[method-assign]


def _install_clock() -> None:
    import datetime as real  # noqa: PLC0415

    from workers.runtime import iam_token  # noqa: PLC0415

    class Datetime(real.datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return real.datetime.now(tz) + real.timedelta(seconds=_offset_s())

    iam_token.datetime = Datetime  # type: ignore[misc]
    # What counts the remaining time of an invocation (awslambdaric), signs calls of SQS (botocore) and stamps logs.
    time.time = lambda: _real_time() + _offset_s()
    time.time_ns = lambda: _real_time_ns() + int(_offset_s() * 1e9)


if _directory and _worker:
    _install_points()
    _install_clock()
    _append("installed")
