"""`spillway new worker` in a copy of this checkout: what `make test` would say there, and events in, rows out."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from spillway.scaffold.names import MAX_LENGTH
from spillway.stack.template import REPOSITORY
from tests.stack.commands import CommandLine, command_line, until

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent
#: Workers that nobody has: this must pass in a checkout that has got more workers, too. The second has the longest of
#: names, and both its imports and its lines fall otherwise.
NAME, SINGULAR = "toy_boats", "toy_boat"
LONG, LONG_SINGULAR = "extraordinarily_named_vehicles", "extraordinarily_named_vehicle1"
#: Neither is part of a checkout, nor what takes long to copy.
LEFT_OUT = (
    *(".git", ".venv", ".venv-checkov", ".aws-sam", ".hypothesis", ".pytest_cache", ".ruff_cache"),
    *("__pycache__", "node_modules"),
)
NEW = {
    "events/samples/toy_boat_created.subject_mismatch.json",
    "events/samples/toy_boats.single.json",
    "events/schemas/toy_boat.created.json",
    "events/schemas/toy_boat.updated.json",
    "spillway/histories/toy_boats.py",
    "spillway/samples/toy_boats.py",
    "tests/integration/test_apply_toy_boats.py",
    "workers/toy_boats/README.md",
    "workers/toy_boats/__init__.py",
    "workers/toy_boats/apply.sql",
    "workers/toy_boats/contract.py",
    "workers/toy_boats/handler.py",
}
CHANGED = ["events/asyncapi.yaml", "events/samples/README.md", "template.yaml"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A user's shell whose `spillway` is that of a copy of this checkout."""
    root = tmp_path_factory.mktemp("checkout") / "spillway"
    shutil.copytree(REPOSITORY, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
    with command_line() as one:
        one.env["PYTHONPATH"] = str(root)
        yield one


@pytest.fixture(scope="module")
def root(cli: CommandLine) -> Path:
    return Path(cli.env["PYTHONPATH"])


@pytest.fixture(scope="module")
def made(cli: CommandLine, root: Path) -> dict[str, str]:
    """What the command said about each file, `new` or `changed`, by path, once both workers are there."""
    before = contents(root)
    options = ("--root", str(root))
    dry = cli.run("new", "worker", NAME, "--dry-run", *options)
    assert dry.returncode == 0, dry.stdout
    assert contents(root) == before
    result = cli.run("new", "worker", NAME, *options)
    assert result.returncode == 0, result.stdout
    listed, _, steps = result.stdout.partition("\n\n")
    assert dry.stdout == f"{listed}\nNothing was written.\n"
    said = {path: what for what, path in (line.split() for line in listed.splitlines())}
    after = contents(root)
    assert {path for path in after if after[path] != before.get(path)} == said.keys()
    assert {path for path, what in said.items() if what == "new"} == after.keys() - before.keys()
    for path in re.findall(r"\b(?:workers|spillway)/[\w/.]+\w", steps):
        assert (root / path).is_file(), path

    longest = cli.run("new", "worker", LONG, "--singular", LONG_SINGULAR, *options)
    assert longest.returncode == 0, longest.stdout
    assert cli.leftovers() == []
    return said


def contents(root: Path) -> dict[str, bytes]:
    """Every file but what Python and the tools keep for themselves."""
    files = (path for path in root.rglob("*") if path.is_file() and not {*LEFT_OUT, ".mypy_cache"} & {*path.parts})
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def check(root: Path, *command: str) -> str:
    """What a command of the development tools, run in the copy, printed; it must succeed."""
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_says_what_it_wrote(made: dict[str, str]) -> None:
    assert {path for path, what in made.items() if what == "new"} >= NEW
    assert [path for path, what in made.items() if what == "changed"] == CHANGED
    assert [path for path in made if re.fullmatch(r"workers/migrate/versions/\d{4}_toy_boats\.sql", path)]


def test_there_is_no_second_one_of_the_name(cli: CommandLine, root: Path, made: dict[str, str]) -> None:
    before = contents(root)
    result = cli.run("new", "worker", NAME, "--root", str(root))
    assert (result.returncode, result.stdout.splitlines()[1]) == (1, "Choose another name, or remove it first.")
    assert contents(root) == before


def test_it_passes_make_lint(root: Path, made: dict[str, str]) -> None:
    """The same checks, on everything that is new; the rest is what `make lint` looks at here."""
    assert len(LONG) == len(LONG_SINGULAR) == MAX_LENGTH
    found = contents(root)
    python = [path for path in found if path.endswith(".py") and re.search(f"{NAME}|{LONG}", path)]
    assert len(python) == 12
    check(root, "ruff", "format", "--no-cache", "--check", *python)
    check(root, "ruff", "check", "--no-cache", *python)
    check(root, "mypy", *(path for path in python if not path.startswith("tests/")))
    check(root, "spillway", "generate", "--check")
    check(root, "spillway", "pins", "workers", "spillway")


def test_it_passes_its_own_tests_and_those_of_every_worker(root: Path, made: dict[str, str]) -> None:
    """What `make test` runs that looks at it, but for its samples through the proxy and AWS's linters."""
    pytest_in_there = ("pytest", "-q", "-p", "no:cacheprovider")
    everyones = ("tests/unit/test_samples.py", "tests/unit/test_schemas.py", "tests/template/test_fleet.py")
    check(root, *pytest_in_there, *everyones)
    said = check(root, *pytest_in_there, "tests/integration", "-k", f"{SINGULAR} and (direct or test_apply)")
    passed = re.search(r"^(\d+) passed, \d+ deselected in", said, re.MULTILINE)
    assert passed, said
    assert int(passed[1]) > 30


SEND = """
from spillway.histories.toy_boats import generate
print(*(message.body for message in generate(400, seed=5, duplicates=0.1, poison=0).messages), sep="\\n")
"""
VERIFY = """
import sys
import psycopg
from spillway.histories.toy_boats import generate, read_rows
history = generate(400, seed=5, duplicates=0.1, poison=0)
with psycopg.connect(sys.argv[1], autocommit=True) as owner:
    assert history.violations(owner) == [], history.violations(owner)
    assert read_rows(owner) == history.rows
    print(len(history.rows))
"""


def test_events_in_rows_out(cli: CommandLine, root: Path, made: dict[str, str]) -> None:
    """The last of the next steps that it prints: the local stack runs it."""
    up = cli.start("up")
    text = cli.await_output(up, "Ctrl-C stops.")
    endpoint = re.search(r"^SQS endpoint +(\S+)$", text, re.MULTILINE)
    queue = re.search(rf"^{NAME} queue +(\S+/spillway-{NAME})$", text, re.MULTILINE)
    dead = re.search(rf"^ +dead letters +(\S+/spillway-{NAME}-dlq)$", text, re.MULTILINE)
    dsn = re.search(r"^PostgreSQL +(\S+)$", text, re.MULTILINE)
    assert endpoint
    assert queue
    assert dead
    assert dsn

    events = cli.directory / "toy_boats.jsonl"
    program = [sys.executable, "-c"]
    environment = cli.environment() | cli.env
    bodies = subprocess.run([*program, SEND], env=environment, cwd=cli.cwd, stdout=subprocess.PIPE, check=True).stdout
    events.write_bytes(bodies)
    sent = cli.run("send", NAME, str(events))
    assert (sent.returncode, sent.stdout) == (0, "Sent 400 of 400 events.\n")
    client = boto3.client(
        "sqs", endpoint_url=endpoint[1], region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
    )
    client.send_message(QueueUrl=queue[1], MessageBody="not a toy boat")

    def status() -> dict[str, dict[str, dict[str, int]]]:
        result = cli.run("status", "--json")
        document: dict[str, dict[str, dict[str, int]]] = json.loads(result.stdout) if result.returncode == 0 else {}
        return document

    until(
        lambda: status().get("queues", {}).get(NAME) == {"waiting": 0, "in_flight": 0, "dead": 1},
        "the queue to be empty, and a dead letter",
    )
    letters = client.receive_message(QueueUrl=dead[1], WaitTimeSeconds=1)["Messages"]
    assert [letter["Body"] for letter in letters] == ["not a toy boat"]
    client.close()
    verified = subprocess.run(
        [*program, VERIFY, dsn[1]],
        env=environment,
        cwd=cli.cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
    assert int(verified.stdout) > 50
    up.send_signal(signal.SIGINT)
    assert up.wait(30) == 0, cli.output(up)
    assert cli.leftovers() == []
