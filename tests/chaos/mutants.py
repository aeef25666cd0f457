"""Does the suite notice? Takes one safeguard after the other out of a copy of this checkout, and demands a violation.

`make chaos-mutants` is `python -m tests.chaos.mutants`. Every run is made on the code as it is first: where that is
violated too, a mutant's violation would mean nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spillway.stack.template import REPOSITORY
from tests.chaos.__main__ import say

if TYPE_CHECKING:
    from collections.abc import Sequence

_COPIED = ("workers", "spillway", "tests", "template.yaml", "pyproject.toml")
_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Mutant:
    """A safeguard, where it is, the text without it, and the runs that must notice. `runs`: at most so many.

    `also`: other places of the same safeguard, as (file, text, text without it).
    """

    name: str
    file: str
    text: str
    instead: str
    fault: str
    worker: str
    runs: int = 4
    quick: bool = True
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.file, self.text, self.instead), *self.also)

    def apply(self, root: Path) -> None:
        """Take it out of the checkout at `root`. Raises ValueError unless its text is there exactly once.

        How the text is broken into lines does not matter.
        """
        for file, text, instead in self.edits:
            source = (root / file).read_text(encoding="utf-8")
            pattern = r"\s+".join(map(re.escape, text.split()))
            if (count := len(re.findall(pattern, source))) != 1:
                raise ValueError(f"{self.name}: expected its text once in {file}, found it {count} times")
            changed = re.sub(pattern, lambda _, instead=instead: instead, source)  # type: ignore[misc]
            (root / file).write_text(changed, encoding="utf-8")


MUTANTS = (
    Mutant(
        "the event-id claim (payments)",
        "workers/payments/apply.sql",
        "ELSIF EXISTS (SELECT FROM payment_events e WHERE e.event_id = r.id) THEN",
        "ELSIF false THEN",
        "killed after commit, before the answer",
        "payments",
    ),
    Mutant(
        "the event-id claim (audit)",
        "workers/audit/apply.sql",
        "ON CONFLICT DO NOTHING RETURNING event_id",
        "ON CONFLICT (event_id) DO UPDATE SET claimed_at = excluded.claimed_at RETURNING event_id",
        "SQS delivers every message twice",
        "audit",
    ),
    Mutant(
        "the returned-ids check",
        "workers/runtime/writer.py",
        "if len(answers) != len(rows) or {row.id.int for row in rows} != {answer[0].int for answer in answers}:",
        "if len(answers) < 0:",
        "another client's answer",
        "orders",
    ),
    Mutant(
        "the sorted locks",
        "workers/inventory/apply.sql",
        "PERFORM pg_advisory_xact_lock(lock_class, stripe) FROM unnest(stripes) AS stripe;",
        "PERFORM pg_advisory_xact_lock(lock_class, stripe)"
        " FROM (SELECT u FROM unnest(stripes) AS u ORDER BY random()) AS t(stripe);",
        "slow commits",
        "inventory",
        quick=False,
    ),
    Mutant(
        "the snapshot after the locks",
        "workers/inventory/apply.sql",
        "PERFORM pg_advisory_xact_lock(lock_class, stripe) FROM unnest(stripes) AS stripe;"
        " SELECT array_agg(coalesce(t.available, 0) ORDER BY k.s) INTO s_available FROM",
        "SELECT array_agg(coalesce(t.available, 0) ORDER BY k.s) INTO s_available"
        " FROM (SELECT count(pg_advisory_xact_lock(lock_class, u)) FROM unnest(stripes) AS u) AS locks,",
        "slow commits",
        "inventory",
        runs=40,
        quick=False,
    ),
    Mutant(
        "the time budget",
        "workers/runtime/calls.py",
        "return invocation.time_to_write() - after_s >= needed",
        "return invocation.time_to_write() - after_s >= needed - 1_000",
        "no time left to write",
        "orders",
    ),
    Mutant(
        "the DLQ-send check",
        "workers/runtime/dead_letters.py",
        'confirmed.update(ids[sent["Id"]] for sent in answer.get("Successful", ()))',
        "confirmed.update(ids.values())",
        "errors on sending dead letters",
        "orders",
    ),
    Mutant(
        "the FIFO hold-back",
        "workers/runtime/writer.py",
        "_settle(piece, answers, invocation, written) if groups: blocked |=",
        "_settle(piece, answers, invocation, written)\n            if groups is None:\n                blocked |=",
        "statements that run into their timeout",
        "payments",
        runs=6,
        quick=False,
        # Once where a cut batch goes on, and once where it is reported.
        also=(
            (
                "workers/runtime/trial.py",
                "if group_of(record) in blocked: self.ledger.give_back([record], Failure.HELD) elif outcome in DONE:",
                "if group_of(record) in ():\n                self.ledger.give_back([record], Failure.HELD)\n"
                "            elif outcome in DONE:",
            ),
        ),
    ),
    Mutant(
        "the report of what was given back",
        "workers/runtime/bulk.py",
        "self.fail_messages = [record for record, _ in ledger.given_back]",
        "self.fail_messages = []",
        "pool saturated",
        "orders",
    ),
    Mutant(
        "the suspects tried alone",
        "workers/runtime/suspects.py",
        "return receive_count(record) >= SUSPECT_RECEIVES",
        "return receive_count(record) >= SUSPECT_RECEIVES + 1_000",
        "a message that kills its environment",
        "orders",
        runs=1,
    ),
)


def _copy(directory: Path) -> Path:
    """The checkout without what is not needed to run it."""
    for name in _COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, directory / name)
    return directory


def _suite(root: Path, mutant: Mutant, seed: int, runs: Sequence[str]) -> tuple[int, str]:
    """Exit status and output of the suite in the checkout at `root`."""
    command = [
        *(sys.executable, "-m", "tests.chaos", "--seed", str(seed), "--parallel", "1", "--stop-at-first"),
        *("--fault", mutant.fault, "--workers", mutant.worker, *runs),
        *(["--quick"] if mutant.quick else []),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=_TIMEOUT_S)
        except BaseException:
            process.terminate()
            raise
    return process.returncode, output


def _try(mutant: Mutant, seed: int) -> tuple[bool, str]:
    """Whether the suite caught `mutant`, and how."""
    with tempfile.TemporaryDirectory(prefix="spillway-mutant-") as directory:
        root = _copy(Path(directory))
        mutant.apply(root)
        status, output = _suite(root, mutant, seed, ["--runs", str(mutant.runs)])
        found = re.search(r"^run +(\d+) VIOLATED.*\n +(.*)$", output, re.MULTILINE)
        if status == 0 or found is None:
            return False, f"NOT CAUGHT in {mutant.runs} runs\n{output[-3000:]}"
    run, how = found.groups()
    with tempfile.TemporaryDirectory(prefix="spillway-original-") as directory:
        status, output = _suite(_copy(Path(directory)), mutant, seed, ["--run", run])
        if status != 0:
            return False, f"the code as it is fails run {run} as well:\n{output[-3000:]}"
    return True, how


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--parallel", type=int, default=3)
    parser.add_argument("--only", help="mutants with this in their name")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if not options.only or options.only in mutant.name]
    missed = 0
    started = time.monotonic()
    with ThreadPoolExecutor(options.parallel) as pool:
        trials = [(mutant, pool.submit(_try, mutant, options.seed)) for mutant in chosen]
        for mutant, trial in trials:
            caught, how = trial.result()
            missed += not caught
            say(f"without {mutant.name}: {'caught, ' if caught else ''}{how}")
    say(f"{len(chosen) - missed} of {len(chosen)} caught in {(time.monotonic() - started) / 60:.1f} minutes")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
