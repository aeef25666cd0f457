"""README.md's two terminals, as they stand there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import msgspec
import psycopg

from spillway.stack.state import StackState
from tests.docker.conftest import INVOKE, OVERRIDES, PATH_LINE, UP

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docker.conftest import Checkout

START_TIMEOUT_S = 60


def test_two_terminals(built: Checkout, tmp_path: Path) -> None:
    """The first one's `spillway` is the checkout's own, so it writes its file there."""
    state, variables = tmp_path / "state.json", built.folder / ".aws-sam/local-env.json"
    env = {**built.shell, "PYTHONPATH": str(built.folder), "SPILLWAY_STATE": str(state)}
    with subprocess.Popen(
        ["bash", "-c", f"exec {UP}"],
        cwd=built.folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as up:
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not variables.exists() and up.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert variables.exists(), up.communicate()[0]
            answer = built.run("bash", "-euc", " ".join((f"{PATH_LINE}\n{INVOKE}", *OVERRIDES)))
            assert answer.response == {"batchItemFailures": []}, answer.stderr
            with psycopg.connect(msgspec.json.decode(state.read_bytes(), type=StackState).dsn) as owner:
                assert owner.execute("SELECT count(*) FROM spillway.orders").fetchone() == (5,)
        finally:
            up.send_signal(signal.SIGINT)
            output = up.communicate(timeout=START_TIMEOUT_S)[0]
    assert up.returncode == 0, output
    assert not os.path.lexists(variables)
