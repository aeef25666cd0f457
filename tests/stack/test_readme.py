"""The README's commands, run as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spillway.stack.template import REPOSITORY

BIN = Path(sys.executable).parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which `.venv/bin/spillway` is this checkout's."""
    command = tmp_path / ".venv/bin/spillway"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spillway "$@"\n')
    command.chmod(0o755)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "SPILLWAY_STATE": str(folder / "state.json")}


def test_the_blocks_are_the_ones_run_here() -> None:
    demo, up, send, test, *_ = BLOCKS  # those that need Docker: tests/docker
    assert (demo, up, test) == ("make demo\n", ".venv/bin/spillway up\n", "make test\n")
    assert send.startswith(".venv/bin/spillway send orders")


def test_make_demo(tmp_path: Path) -> None:
    result = subprocess.run(
        ["make", *BLOCKS[0].split()[1:], f"VENV={BIN.parent}", "DEMO=--events 500"],
        cwd=REPOSITORY,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("\nok ") == 6
    assert "WRONG" not in result.stdout


def test_up_send_status(checkout: Path) -> None:
    with subprocess.Popen(
        ["bash", "-c", f"exec {BLOCKS[1]}"],
        cwd=checkout,
        env=environment(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as up:
        try:
            state = checkout / "state.json"
            deadline = time.monotonic() + 60
            while not state.exists() and up.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert state.exists(), up.communicate()[0]
            sent = run(BLOCKS[2], checkout)
            assert "Sent 1 of 1 events." in sent
            assert "orders" in sent
            while "1 applied" not in (status := run(".venv/bin/spillway status", checkout)):
                assert time.monotonic() < deadline, status
                time.sleep(0.2)
        finally:
            up.send_signal(signal.SIGINT)
            output = up.communicate(timeout=60)[0]
    assert up.returncode == 0, output
    assert "postgresql://" in output


def run(script: str, folder: Path) -> str:
    result = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
