"""A watchdog process that outlives its parent just long enough to clean up after it.

It reads one instruction per line on standard input::

    pgid 4711 15 5.0    remember session 4711, to be asked to stop with signal 15 and killed 5 seconds later
    known 4711 4713:881 session 4711 has been asked to stop, and this process (pid and start), of its family, with it
    forget 4711         it has been stopped
    dir %2Ftmp%2Fx      remember a directory (percent-encoded)
    forget-dir %2F...   it has been removed

End of input means that nobody holds the other end any more: the parent closed it, crashed or was killed by
SIGKILL. Then everything still remembered is stopped and removed. `spillway.stack.processes` explains why a
child cannot slip through between its birth and its first line here.

Standard library only, and run as a plain file: it starts in about 15 ms and imports nothing of the project.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TextIO
from urllib.parse import quote, unquote_to_bytes

KILL_WAIT_S = 2.0
HAS_PROC = os.path.isdir("/proc/self")  # noqa: PTH112 - pathlib is a third of this process's start-up time
"""Without it (macOS) a child's process group is all that can be found of its family."""
_POLL_S = 0.01


@dataclass(frozen=True)
class Process:
    """One row of the process table; ``started`` (clock ticks since boot) tells a reused pid from the original."""

    pid: int
    parent: int
    session: int
    started: int


def process_table() -> dict[int, Process]:
    """Every live process by pid, zombies left out; empty where there is no /proc."""
    table: dict[int, Process] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208
            if name.isdigit() and (process := read_process(int(name))):
                table[process.pid] = process
    return table


def read_process(pid: int) -> Process | None:
    """The process with this pid, or None if there is none, or only its corpse."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            stat = file.read()
    except OSError:
        return None
    # The second field is the command's name in parentheses, which may itself hold spaces and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return Process(pid, parent=int(fields[1]), session=int(fields[3]), started=int(fields[19]))


def family(leader: int, started: int | None, known: Iterable[Process] = ()) -> set[Process]:
    """Everyone alive in the leader's session or among those already known, and all their descendants.

    The process group alone is not enough: the Lambda emulator gives the runtime a group of its own, and every
    PostgreSQL backend opens a session of its own. A pid that now belongs to somebody else is not the leader.
    """
    table = process_table()
    members = {now for process in known if (now := table.get(process.pid)) and now.started == process.started}
    current = table.get(leader)
    if current is None or started is None or current.started == started:
        members |= {process for process in table.values() if leader in (process.pid, process.session)}
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    queue = list(members)
    while queue:
        born = [child for child in children.get(queue.pop().pid, ()) if child not in members]
        members.update(born)
        queue.extend(born)
    return members


def send(pid: int, signum: int) -> None:
    """Signal the process group that `pid` leads; a group that is gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def ask(
    leader: int, started: int | None, signum: int, report: Callable[[set[Process]], None] = lambda _: None
) -> set[Process]:
    """Signal a leader's process group and return everyone who should be gone by the end of the grace period.

    `report` is told of them before: once the leader is gone, nothing leads to those in a session of their own.
    """
    if not family(leader, started):
        if not HAS_PROC:
            send(leader, signum)
        return set()
    # Nobody may leave the family unseen: a child that is born between the look and the signal, with a session of
    # its own, would have no living parent to be found by.
    send(leader, signal.SIGSTOP)
    members = family(leader, started)
    report(members)
    send(leader, signum)
    send(leader, signal.SIGCONT)
    return members


def kill(leader: int, started: int | None, known: Iterable[Process]) -> None:
    """SIGKILL everyone known who is still alive, and the rest of the family, and wait until they are gone."""
    deadline = time.monotonic() + KILL_WAIT_S
    members = set(known)
    while (members := family(leader, started, members)) and time.monotonic() < deadline:
        # Stopped first, so that nobody sees the others die: a shell would start its next command, and the Lambda
        # runtime print that it lost its emulator.
        for signum in (signal.SIGSTOP, signal.SIGKILL):
            for process in members:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signum)
        time.sleep(_POLL_S)


def _alive(process: Process) -> bool:
    current = read_process(process.pid)
    return current is not None and current.started == process.started


@dataclass(frozen=True)
class Session:
    """How to end the session that a process leads."""

    stop_signal: int
    grace_s: float
    started: int | None


@dataclass
class Reaper:
    """What must not survive the parent."""

    sessions: dict[int, Session] = field(default_factory=dict)
    known: dict[int, set[Process]] = field(default_factory=dict)
    directories: dict[str, None] = field(default_factory=dict)

    def obey(self, line: str) -> None:
        """Follow one instruction."""
        match line.split():
            case ["pgid", pid, signum, grace_s]:
                leader = read_process(int(pid))
                self.sessions[int(pid)] = Session(int(signum), float(grace_s), leader.started if leader else None)
            case ["known", leader, *members]:
                pairs = [member.split(":") for member in members]
                known = {Process(int(pid), parent=0, session=0, started=int(started)) for pid, started in pairs}
                self.known.setdefault(int(leader), set()).update(known)
            case ["forget", pid]:
                self.sessions.pop(int(pid), None)
                self.known.pop(int(pid), None)
            case ["dir", path]:
                self.directories[decode(path)] = None
            case ["forget-dir", path]:
                self.directories.pop(decode(path), None)

    def clean_up(self) -> None:
        """Ask every session to stop, kill each one that has not after its grace period, remove the directories."""
        asked = {
            leader: ask(leader, session.started, session.stop_signal) | self.known.get(leader, set())
            for leader, session in self.sessions.items()
        }
        began = time.monotonic()
        # The impatient ones first, so that each gets its own time and the sum is that of the most patient one.
        for leader, session in sorted(self.sessions.items(), key=lambda item: item[1].grace_s):
            while any(map(_alive, asked[leader])) and time.monotonic() < began + session.grace_s:
                time.sleep(_POLL_S)
            kill(leader, session.started, asked[leader])
        for directory in reversed(self.directories):
            shutil.rmtree(directory, ignore_errors=True)


def encode(path: str) -> str:
    """A path as one word without spaces, whatever bytes it is made of."""
    return quote(os.fsencode(path), safe="")


def decode(word: str) -> str:
    """The inverse of `encode`."""
    return os.fsdecode(unquote_to_bytes(word))


def main(instructions: TextIO) -> None:
    """Obey until nobody can give instructions any more, then clean up. Runs with SIGINT, SIGTERM, SIGHUP ignored."""
    reaper = Reaper()
    for line in instructions:
        reaper.obey(line)
    reaper.clean_up()


if __name__ == "__main__":
    main(sys.stdin)
