"""The local stack's state file: private, whole, and gone with the stack."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from spillway.errors import SpillwayError
from spillway.stack.state import StackState, read_state, remove_state, state_path, write_state


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPILLWAY_STATE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def state(pid: int | None = None) -> StackState:
    return StackState(
        pid=os.getpid() if pid is None else pid,
        endpoint_url="http://127.0.0.1:4566",
        region="us-east-1",
        queues={"orders": "http://127.0.0.1:4566/000000000000/orders"},
        dead_letter_queues={"orders": "http://127.0.0.1:4566/000000000000/orders-dlq"},
        dsn="postgresql://app:secret@127.0.0.1:5432/spillway",
        started_at=1_780_000_000.25,
        log_dir="logs",
    )


def test_what_is_written_is_read() -> None:
    write_state(state())
    found = read_state()
    assert found is not None
    assert {name: getattr(found, name) for name in StackState.__struct_fields__} == msgspec.structs.asdict(state())


def test_nothing_runs() -> None:
    assert read_state() is None


def test_only_this_user_can_read_it() -> None:
    path = write_state(state())
    assert path == state_path()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.name == f"spillway-{os.getuid()}"


def test_removing_it_removes_the_directory() -> None:
    path = write_state(state())
    remove_state()
    assert not path.parent.exists()
    remove_state()


def test_a_directory_in_use_stays() -> None:
    path = write_state(state())
    (path.parent / "orders.log").touch()
    remove_state()
    assert [left.name for left in path.parent.iterdir()] == ["orders.log"]


def test_writing_again_replaces_it_and_leaves_nothing_behind() -> None:
    write_state(state())
    path = write_state(state())
    assert [left.name for left in path.parent.iterdir()] == ["stack.json"]


def test_a_dead_stack_does_not_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    write_state(state(process.pid))
    assert read_state() is None
    remove_state()
    assert not state_path().exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_zombie_does_not_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_state(state(process.pid))
    assert read_state() is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie until somebody asks properly
    assert read_state() is None
    process.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_another_process_with_the_same_number_is_not_the_stack() -> None:
    path = write_state(state())
    stored = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(stored | {"pid_started": stored["pid_started"] - 1}))
    assert read_state() is None


def test_another_running_stack_is_not_removed() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        write_state(state(process.pid))
        remove_state()
        assert read_state() is not None
        process.kill()


def test_a_place_of_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tmp_path / "mine" / "state.json"
    monkeypatch.setenv("SPILLWAY_STATE", str(chosen))
    assert write_state(state()) == chosen
    assert read_state() is not None
    remove_state()
    assert not chosen.exists()
    assert chosen.parent.exists(), "a directory the user named is the user's"


def test_a_directory_open_to_others_is_refused() -> None:
    directory = state_path().parent
    directory.mkdir()
    directory.chmod(0o777)
    for use in (read_state, lambda: write_state(state())):
        with pytest.raises(SpillwayError, match="not private"):
            use()
    remove_state()
    assert directory.exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    state_path().parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpillwayError, match="not private"):
        write_state(state())


def test_a_file_of_another_version_is_named() -> None:
    write_state(state()).write_text('{"pid": 1}')
    with pytest.raises(SpillwayError, match="not a stack's state"):
        read_state()


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "file" / "state.json"))
    with pytest.raises(SpillwayError, match="Cannot write"):
        write_state(state())
