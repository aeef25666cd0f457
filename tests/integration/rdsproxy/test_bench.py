"""The emulator's benchmark runs, with PgBouncer and without, and prints its tables; its speed is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bench import pgbouncer
from spillway.stack.template import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

WORDS = (
    "## RDS Proxy emulator",
    "| batch | direct, events/s |",
    "| extended, 4 clients |",
    "| RDS Proxy emulator, TLS |",
    "| wait | mean, s |",
    "- waits of 60 clients, max / mean: goal <= 3:",
    "uvloop",
)


@pytest.mark.parametrize("installed", [True, False], ids=["PgBouncer", "no PgBouncer"])
def test_a_quick_run_prints_its_tables(installed: bool, tmp_path: Path) -> None:
    if installed and pgbouncer.find() is None:
        pytest.skip(f"PgBouncer is not installed; {pgbouncer.HOW_TO_INSTALL}")
    numbers = tmp_path / "numbers.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.rdsproxy", "--quick", "--json", str(numbers)],
        cwd=REPOSITORY,
        env=os.environ | ({} if installed else {"PGBOUNCER": str(tmp_path / "missing")}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in WORDS:
        assert words in done.stdout
    assert ("emulator / PgBouncer" in done.stdout) == installed
    assert ("apt-get install pgbouncer" in done.stdout) == (not installed)
    measured = json.loads(numbers.read_text())["numbers"]
    assert all(rounds for by_way in measured["batches"].values() for rounds in by_way.values())
    assert len(measured["queue"]) == (2 if installed else 1)
