"""Who runs this: the person, and the process."""

from __future__ import annotations

import getpass
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spillway.fleet.fleet import Fleet


def user() -> str:
    """Who runs this: user@host, as far as this machine knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def this_process() -> str:
    """This process, told apart from a later one with its number, and from another machine's."""
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def is_alive(process: str) -> bool:
    """Whether the process that `this_process` described still runs on this machine."""
    host, pid, started = process.rsplit(" ", 2)
    return host == socket.gethostname() and _started(int(pid)) == started


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)); '' if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        with suppress(OSError):  # no /proc: the number has to do
            os.kill(pid, 0)
            return "?"
        return ""
    return "" if fields[0] == "Z" else fields[19]


def caller(fleet: Fleet) -> str:
    """Who changes `fleet`: on AWS also the ARN that AWS knows the caller by, if it says so."""
    if fleet.local is not None:
        return user()
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (0.1 s)

    with suppress(BotoCoreError, ClientError):
        return f"{user()} as {fleet.client('sts').get_caller_identity()['Arn']}"
    return user()
