"""Every benchmark runs, checks what it wrote, and prints its table; none is judged by its speed here."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from spillway.stack.template import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

BENCHMARKS = {
    "write_path": ("## Write path", "| batch | (a) Spillway", "peak memory"),
    "cold_start": ("## Cold start", "| workers.orders.handler |", "<= 1.5 x"),
    "redrive": ("## Redrive", "| server alone |", ">= 0.8 x the server alone"),
    "stack": ("## The local stack", "| SQS server alone |", ">= 700 messages/s"),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_quick_run_prints_its_table(name: str, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--quick", "--json", str(numbers)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in BENCHMARKS[name]:
        assert words in done.stdout
    assert "aws-lambda-powertools 3" in done.stdout, "machine and versions"
    assert json.loads(numbers.read_text())["numbers"]
