"""A mutant is text in the code as it is today: whoever changes that text sees here that a mutant goes with it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from spillway.stack.template import REPOSITORY
from tests.chaos.faults import load
from tests.chaos.mutants import MUTANTS, Mutant

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_made(mutant: Mutant, tmp_path: Path) -> None:
    files = {file for file, _, _ in mutant.edits}
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / file)
    mutant.apply(tmp_path)
    for file in files:
        changed = (tmp_path / file).read_text()
        assert changed != (REPOSITORY / file).read_text()
        if file.endswith(".py"):
            compile(changed, file, "exec")
    assert mutant.fault in load()


def test_a_mutant_whose_text_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers/a.py").write_text("pass\n")
    with pytest.raises(ValueError, match=r"^it: expected its text once in workers/a\.py, found it 0 times$"):
        Mutant("it", "workers/a.py", "fail", "pass", "latency", "orders").apply(tmp_path)
