"""What does importing the orders handler cost, against psycopg alone and against what else a handler might import?

    python -m bench.cold_start [--quick] [--json FILE]

The handler comes from the artifact as `make artifact` builds it, for the Python that runs here; rivals that it does not
hold come from the installed packages. Bytecode is compiled beforehand, as it is on Lambda when it ships with the
artifact. Each import happens in a new isolated interpreter (-I -S) that times nothing but the import, rivals in turn.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import (
    environment,
    number,
    paired_ratio,
    parse_arguments,
    print_environment,
    print_goal,
    print_table,
    write_json,
)
from spillway.stack.template import REPOSITORY

ROUNDS, QUICK_ROUNDS = 31, 1
FLOOR, HANDLER = "psycopg", "workers.orders.handler"
#: What is imported, by the statement that does it, and what of it has to be installed.
RIVALS = {
    "nothing but json": ("import json", "json"),
    FLOOR: ("import psycopg", "psycopg"),
    "psycopg + msgspec": ("import psycopg, msgspec", "msgspec"),
    "psycopg + Powertools batch": (
        "import psycopg, aws_lambda_powertools.utilities.batch",
        "aws_lambda_powertools",
    ),
    "psycopg + Powertools batch, logger, metrics": (
        "import psycopg, aws_lambda_powertools.utilities.batch, aws_lambda_powertools.logging,"
        " aws_lambda_powertools.metrics",
        "aws_lambda_powertools",
    ),
    HANDLER: (f"import {HANDLER}", "workers"),
    "psycopg + pydantic": ("import psycopg, pydantic; pydantic.create_model('Model', x=(int, ...))", "pydantic"),
    "psycopg + boto3, SQS client": (
        "import psycopg, boto3; boto3.client('sqs', region_name='us-east-1', aws_access_key_id='x',"
        " aws_secret_access_key='x')",
        "boto3",
    ),
}
_TIMER = """
import sys, time
sys.path[:0] = sys.argv[2:]
started = time.perf_counter()
exec(compile(sys.argv[1], "rival", "exec"))
print(time.perf_counter() - started)
"""


def build_artifact(directory: Path) -> None:
    """`make artifact` for the running interpreter and machine, with bytecode."""
    binaries = Path(sys.executable).parent
    machine = "aarch64" if os.uname().machine in {"aarch64", "arm64"} else os.uname().machine
    built = subprocess.run(
        [
            "make",
            "artifact",
            f"ARTIFACTS_DIR={directory}",
            f"BIN={binaries}",
            f"VENV={binaries.parent}",
            f"LAMBDA_PYTHON={sys.version_info.major}.{sys.version_info.minor}",
            f"LAMBDA_PLATFORM={machine}-manylinux_2_28",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if built.returncode:
        raise SystemExit(f"The artifact could not be built:\n{built.stdout}{built.stderr}")
    compileall.compile_dir(directory, quiet=2)


def import_seconds(statement: str, paths: list[str]) -> float:
    """Seconds for `statement` in an interpreter of its own that finds modules in `paths` and the standard library."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _TIMER, statement, *paths],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{statement}\n{done.stderr}")
    return float(done.stdout)


def measure(artifact: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds by rival and round. A round before the first one fills the disk's cache and is not counted."""
    outside = [path for path in sys.path if "site-packages" in path]
    rivals: dict[str, tuple[str, list[str]]] = {}
    for name, (statement, package) in RIVALS.items():
        paths = [str(artifact)]
        if not (artifact / package).exists() and package != "json":
            if importlib.util.find_spec(package) is None:
                continue
            paths += outside
        rivals[name] = statement, paths
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for index in range(rounds + 1):
        names = list(rivals)
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            spent = import_seconds(*rivals[name])
            if index:
                seconds[name].append(spent)
    return seconds


def main() -> None:
    """Build, measure, print."""
    arguments = parse_arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="spillway-artifact-") as directory:
        build_artifact(Path(directory))
        seconds = measure(Path(directory), QUICK_ROUNDS if arguments.quick else ROUNDS)
    described = environment("boto3", "pydantic")
    print("## Cold start: imports\n")
    print_environment(described)
    rows = [
        [
            name,
            number(statistics.median(spent) * 1e3),
            number(min(spent) * 1e3),
            f"{paired_ratio(spent, seconds[FLOOR]):.2f} x",
        ]
        for name, spent in seconds.items()
    ]
    print_table(["import", "median, ms", "best, ms", f"of {FLOOR}"], rows)
    ratio = paired_ratio(seconds[HANDLER], seconds[FLOOR])
    print_goal(f"{HANDLER} over {FLOOR} alone", "<= 1.5 x", f"{ratio:.2f} x", reached=ratio <= 1.5)
    write_json(arguments.json, described, seconds)


if __name__ == "__main__":
    main()
