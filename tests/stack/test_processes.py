"""Whatever ends the parent, and whenever: no process and no directory stays."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spillway.stack import reaper
from spillway.stack.errors import StackError
from spillway.stack.processes import Processes

ROOT = Path(__file__).parents[2]
MARKER = "SPILLWAY_TEST_RUN"

# Children as unpleasant as they come: one that ignores signals, one with a child in a session of its own (like
# PostgreSQL's backends) and one that ended but left its own child behind (like an emulator whose runtime stays).
PARENT = """
import sys, tempfile, time
from spillway.stack.processes import Processes

tempfile.gettempdir()  # writes a file to see whether it can; what is interrupted there is not ours
print("go", flush=True)
with Processes() as processes:
    for _ in range(3):
        (processes.temporary_directory("spillway-test-") / "file").write_text("x")
        processes.spawn(["sleep", "600"], name="sleep")
        processes.spawn(["sh", "-c", "trap '' TERM; sleep 600; sleep 600"], name="stubborn", grace_s=0.1)
        processes.spawn(["sh", "-c", "setsid sleep 600; true"], name="other session", grace_s=0.1)
        processes.spawn(["sh", "-c", "sleep 600 & exit"], name="orphan")
    print("up", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def marked(token: str) -> list[str]:
    """The command lines of all live processes that were started, however indirectly, with this token."""
    found = []
    for process in reaper.process_table().values():
        try:
            if f"{MARKER}={token}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(Path(f"/proc/{process.pid}/cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


class Run:
    """A parent process of its own, to be ended in some way."""

    def __init__(self, directory: Path, argument: object = 600, code: str = PARENT) -> None:
        self.directory = directory
        self.token = os.urandom(8).hex()
        env = {**os.environ, MARKER: self.token, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, str(argument)], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def wait_for(self, line: bytes) -> None:
        assert self.popen.stdout is not None
        while (read := self.popen.stdout.readline()) != line:
            assert read, f"it ended before it said {line!r}"

    def end(self) -> None:
        self.popen.communicate(timeout=30)

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not marked(self.token) and not any(self.directory.iterdir()))
        assert marked(self.token) == []
        assert list(self.directory.iterdir()) == []


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as owner:
        yield owner


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_the_parent_leaves_nothing(tmp_path: Path, signum: signal.Signals) -> None:
    run = Run(tmp_path)
    run.wait_for(b"up\n")
    assert len(marked(run.token)) > 12
    assert len(list(tmp_path.iterdir())) == 3
    run.popen.send_signal(signum)
    run.end()
    run.assert_nothing_left()


def test_a_normal_end_leaves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, 0)
    run.end()
    assert run.popen.returncode == 0
    # At once: nothing is left for the watchdog to do after the parent.
    assert marked(run.token) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("seed", range(8))
def test_a_signal_while_it_starts_leaves_nothing(tmp_path: Path, signum: signal.Signals, seed: int) -> None:
    run = Run(tmp_path)
    run.wait_for(b"go\n")
    time.sleep(random.Random(seed).uniform(0, 0.03))  # what is tested: any moment
    run.popen.send_signal(signum)
    run.end()
    run.assert_nothing_left()


@pytest.mark.parametrize("seed", range(4))
def test_a_second_ctrl_c_while_it_stops_leaves_nothing(tmp_path: Path, seed: int) -> None:
    run = Run(tmp_path)
    run.wait_for(b"up\n")
    run.popen.send_signal(signal.SIGINT)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    run.popen.send_signal(signal.SIGINT)
    run.end()
    run.assert_nothing_left()


# Interrupted where the head of the family is gone, and with it the way to a grandchild in a session of its own.
INTERRUPTED = """
import signal, sys, time
from spillway.stack import reaper
from spillway.stack.processes import Processes

def interrupted(*_):
    raise KeyboardInterrupt

with Processes() as processes:
    child = processes.spawn(["sh", "-c", "setsid sleep 600; true"], name="other session", grace_s=5)
    while len({process.session for process in reaper.family(child.pid, None)}) < 2:
        time.sleep(0.01)
    print("up", flush=True)
    reaper.kill = interrupted
    processes.stop(child, signal.Signals[sys.argv[1]])
"""


@pytest.mark.parametrize("signum", ["SIGTERM", "SIGKILL"])
def test_an_interrupt_between_asking_and_killing_leaves_nothing(tmp_path: Path, signum: str) -> None:
    run = Run(tmp_path, signum, code=INTERRUPTED)
    run.wait_for(b"up\n")
    run.end()
    assert run.popen.returncode != 0
    run.assert_nothing_left()


def test_the_watchdog_ignores_the_signals_that_end_its_parent(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.wait_for(b"up\n")
    assert wait_until(lambda: watchdogs(run.popen.pid))
    (watchdog,) = watchdogs(run.popen.pid)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(watchdog, signum)
    assert watchdogs(run.popen.pid) == [watchdog]
    run.popen.kill()
    run.end()
    run.assert_nothing_left()


def watchdogs(parent: int) -> list[int]:
    children = [process.pid for process in reaper.process_table().values() if process.parent == parent]
    return [pid for pid in children if b"reaper.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_stop_gives_the_exit_status_and_kills_only_what_does_not_end(processes: Processes, tmp_path: Path) -> None:
    polite = processes.spawn(["sh", "-c", "trap 'exit 7' TERM; echo up; sleep 600 & wait"], name="polite", stdout=-1)
    assert polite.stdout is not None
    with polite.stdout:
        assert polite.stdout.readline() == b"up\n"
        assert processes.stop(polite) == 7
        assert polite.stdout.read() == b""  # its own child is gone too: nobody holds the pipe
    stubborn = processes.spawn(["sh", "-c", "trap '' TERM; echo up; sleep 600"], name="stubborn", stdout=-1)
    assert stubborn.stdout is not None
    with stubborn.stdout:
        assert stubborn.stdout.readline() == b"up\n"
        assert processes.stop(stubborn, signal.SIGTERM, grace_s=0.05) == -signal.SIGKILL
    assert processes.stop(stubborn) == -signal.SIGKILL  # again: no harm


def test_a_child_reads_nothing_and_passes_its_words_and_variables_on(processes: Processes) -> None:
    script = 'read line; echo "$? $FOO"; for word; do echo "<$word>"; done'
    words = ["a b", "", "$HOME", "'\"\\", "*"]
    child = processes.spawn(
        ["/bin/sh", "-c", script, "sh", *words], name="child", env={"FOO": "b a r"}, stdout=subprocess.PIPE
    )
    output, _ = child.communicate(timeout=10)
    assert output.decode().splitlines() == ["1 b a r", *(f"<{word}>" for word in words)]
    processes.stop(child)


def test_a_reused_pid_is_left_alone(processes: Processes) -> None:
    child = processes.spawn(["sleep", "600"], name="sleep")
    current = reaper.read_process(child.pid)
    assert current is not None
    reaper.Reaper(sessions={child.pid: reaper.Session(signal.SIGKILL, 0, current.started - 1)}).clean_up()
    assert child.poll() is None
    reaper.Reaper(sessions={child.pid: reaper.Session(signal.SIGTERM, 5, current.started)}).clean_up()
    assert child.wait(timeout=5) == -signal.SIGTERM


def test_directories_are_private_and_can_go_early(processes: Processes) -> None:
    first, second = (processes.temporary_directory("spillway-test-") for _ in range(2))
    assert first != second
    assert first.stat().st_mode & 0o777 == 0o700
    processes.remove_directory(first)
    assert not first.exists()
    processes.close()
    assert not second.exists()


def test_a_missing_program_is_one_clear_sentence(processes: Processes) -> None:
    with pytest.raises(StackError, match=r"^The server could not start: /nowhere/server is missing"):
        processes.spawn(["/nowhere/server"], name="The server")


def test_nothing_starts_after_close(processes: Processes) -> None:
    processes.close()
    processes.close()
    with pytest.raises(StackError, match="shutting down"):
        processes.spawn(["true"], name="true")
    with pytest.raises(StackError, match="shutting down"):
        processes.temporary_directory("x")


def test_nothing_starts_without_the_watchdog(processes: Processes) -> None:
    watchdog = processes._reaper.pid
    assert wait_until(lambda: watchdog in watchdogs(os.getpid()))  # it may still be the shell
    os.kill(watchdog, signal.SIGKILL)
    assert wait_until(lambda: reaper.read_process(watchdog) is None)
    with pytest.raises(StackError, match="watchdog"):
        processes.spawn(["true"], name="true")


def test_threads_may_spawn_and_stop_while_another_closes() -> None:
    owner = Processes()
    started: list[subprocess.Popen[bytes]] = []

    def work() -> None:
        try:
            while True:
                child = owner.spawn(["sleep", "600"], name="sleep")
                started.append(child)
                if len(started) % 3 == 0:
                    owner.stop(child)
        except StackError:
            pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(started) > 40)
    owner.close()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert all(child.poll() is not None for child in started)
