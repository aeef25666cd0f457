"""Tiny functions, one per way an invocation can go."""

import os
import sys
import time
from pathlib import Path
from typing import Any


def echo(event: Any, _context: Any) -> Any:
    return event


def nothing(_event: Any, _context: Any) -> None:
    pass


def fail(_event: Any, _context: Any) -> None:
    raise LookupError("no such order")


def sleep(event: Any, _context: Any) -> str:
    if "flag" in event:
        Path(event["flag"]).touch()
    time.sleep(event["seconds"])
    return "awake"


def exit_hard(_event: Any, _context: Any) -> None:
    os._exit(3)


def big(event: Any, _context: Any) -> str:
    return "x" * event["bytes"]


def looks_like_a_timeout(_event: Any, _context: Any) -> str:
    return "Task timed out after 1.00 seconds"


def looks_like_an_error(_event: Any, _context: Any) -> dict[str, str]:
    return {"errorMessage": "not really", "errorType": "Joke"}


def environment(_event: Any, context: Any) -> dict[str, Any]:
    return {"env": dict(os.environ), "cwd": str(Path.cwd()), "pid": os.getpid(), "name": context.function_name}


def deadline(_event: Any, context: Any) -> list[int]:
    first = context.get_remaining_time_in_millis()
    time.sleep(0.1)
    return [first, context.get_remaining_time_in_millis()]


def talk(_event: Any, _context: Any) -> None:
    sys.stdout.write("to stdout\n")
    sys.stderr.write("to stderr\n")
    sys.stdout.write("é " + "x" * 100_000 + "\n")
