"""Redrives that are killed at random points, in short; `python -m tests.chaos.redrive_chaos` does it 100 times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from spillway.stack.sqs_server import MinistackServer
from tests.chaos.redrive_chaos import redrive_chaos

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spillway.stack.processes import Processes
    from tests.conftest import TestDatabase

KILLS = 4


@pytest.fixture(scope="module")
def endpoint(processes: Processes) -> Iterator[str]:
    with MinistackServer(processes) as server:
        yield server.endpoint_url


@pytest.mark.parametrize("worker", ["orders", "payments"])
def test_killed_redrives_lose_nothing_and_do_nothing_twice(
    worker: str, endpoint: str, database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPILLWAY_STATE", str(tmp_path / "stack.json"))
    monkeypatch.setenv("SPILLWAY_JOURNAL", str(tmp_path / "journal.sqlite3"))
    report = redrive_chaos(
        worker, 11, KILLS, endpoint=endpoint, postgres=database.server, database=database.name, directory=tmp_path
    )
    assert not report.violations, "\n".join(report.violations[:10])
    assert report.kills == KILLS
    assert report.sent >= report.letters
