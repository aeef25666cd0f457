"""A new worker as texts: rendered, formatted and generated in a copy of the checkout, so that nothing is half done."""

from __future__ import annotations

import ast
import builtins
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from spillway.errors import SpillwayError
from spillway.scaffold.fleet import with_worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spillway.scaffold.names import Names

TEMPLATES = Path(__file__).parent
TEMPLATE = "template.yaml"
VERSIONS = "workers/migrate/versions"
#: What `spillway generate` reads and writes, and what tells the formatter how code is formatted and imports are sorted.
COPIED = ("workers", "spillway", "events", "tests", TEMPLATE, "pyproject.toml")
TIMEOUT_S = 120


def files_of(names: Names, pattern: str, root: Path) -> dict[str, str]:
    """The text of every file that is new or changed once the worker `names` is there, by its path below `root`.

    `root` is a checkout; nothing in it is touched. Raises SpillwayError where something is in the way.
    """
    if not (root / VERSIONS).is_dir() or not all((root / part).exists() for part in COPIED):
        raise SpillwayError(f"{root.absolute()} is not a checkout of Spillway.", "Run this in its top folder.")
    files = _rendered(names, pattern, root)
    _require_free(names, files, root)
    files[TEMPLATE] = with_worker((root / TEMPLATE).read_text(encoding="utf-8"), names)
    with tempfile.TemporaryDirectory(prefix="spillway-new-") as directory:
        copy = Path(directory)
        for part in COPIED:
            if (root / part).is_dir():
                shutil.copytree(root / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
            else:
                shutil.copy(root / part, copy / part)
        for path, text in files.items():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_text(text, encoding="utf-8")
        _format([path for path in files if path.endswith(".py")], copy)
        _run("the schemas and samples", [sys.executable, "-m", "spillway", "generate"], copy)
        written = [*files, *(path.relative_to(copy).as_posix() for path in (copy / "events").rglob("*"))]
        texts = {path: _text(copy / path) for path in written}
        return {path: text for path, text in texts.items() if text is not None and text != _text(root / path)}


def write(files: Mapping[str, str], root: Path) -> None:
    """Write all of `files`, or, where one cannot be written or on Ctrl-C, none.

    Each text is on the disk, beside its place, before the first one is put there: a full disk changes nothing.
    """
    before = {path: (root / path).read_bytes() if (root / path).exists() else None for path in files}
    staged = {path: (root / path).with_name(f".{Path(path).name}.new") for path in files}
    folders: list[Path] = []
    try:
        for path, text in files.items():
            for folder in reversed([folder for folder in (root / path).parents if not folder.exists()]):
                folder.mkdir()
                folders.append(folder)
            staged[path].write_text(text, encoding="utf-8")
            if before[path] is not None:
                shutil.copymode(root / path, staged[path])
        for path in files:
            staged[path].replace(root / path)
    except BaseException:
        for path, content in before.items():
            staged[path].unlink(missing_ok=True)
            if content is None:
                (root / path).unlink(missing_ok=True)
            elif (root / path).read_bytes() != content:
                (root / path).write_bytes(content)
        for folder in reversed(folders):
            folder.rmdir()
        raise


def _rendered(names: Names, pattern: str, root: Path) -> dict[str, str]:
    number = f"{_next_number(root):04}"
    paths = {
        f"workers/{names.name}/contract.py": "contract.py",
        f"workers/{names.name}/handler.py": "handler.py",
        f"workers/{names.name}/apply.sql": "apply.sql",
        f"workers/{names.name}/README.md": "README.md",
        f"{VERSIONS}/{number}_{names.name}.sql": "migration.sql",
        f"spillway/samples/{names.name}.py": "samples.py",
        f"spillway/histories/{names.name}.py": "history.py",
        f"tests/integration/test_apply_{names.name}.py": "test_apply.py",
    }
    files = {f"workers/{names.name}/__init__.py": ""}
    for path, template in paths.items():
        text = (TEMPLATES / pattern / f"{template}.in").read_text(encoding="utf-8")
        files[path] = names.fill(text, number=number)
    return files


def _next_number(root: Path) -> int:
    numbers = [int(path.name[:4]) for path in (root / VERSIONS).glob("[0-9][0-9][0-9][0-9]_*.sql")]
    return max(numbers, default=0) + 1


def _require_free(names: Names, files: Mapping[str, str], root: Path) -> None:
    """Raise SpillwayError where the names are in use: as files, in the database, in Python, in SQL."""
    name, singular = names.name, names.singular
    folder = root / "workers" / name
    if left := [path for path in folder.glob("*") if path.name != "__pycache__"]:
        raise SpillwayError(
            f"workers/{name} exists already: {', '.join(sorted(path.name for path in left))}.",
            "Choose another name, or remove it first.",
        )
    if there := [path for path in files if (root / path).exists()]:
        raise SpillwayError(f"{there[0]} exists already.", "Choose another name, or remove it first.")
    if used := {name, f"{singular}_events"} & _names_in_the_database(root):
        raise SpillwayError(
            f"The database has a spillway.{min(used)} already.", "Choose another name, or another --singular."
        )
    if used := {path.name for path in (root / "events/schemas").glob(f"{singular}.*.json")}:
        raise SpillwayError(f"events/schemas/{min(used)} exists already.", "Choose another one with --singular.")
    for path, text in files.items():
        if path.endswith(".py") and (twice := _bound_twice(text)):
            raise SpillwayError(
                f"{path} would have two meanings of {min(twice)}.", "Choose another --singular, or another name."
            )
    _require_identifier(name)


def _names_in_the_database(root: Path) -> set[str]:
    """Everything that the SQL of the checkout calls spillway.something, and the runner's own table."""
    texts = [path.read_text(encoding="utf-8") for path in (root / "workers").rglob("*.sql")]
    texts.append((root / "workers/migrate/runner.py").read_text(encoding="utf-8"))
    return {found for text in texts for found in re.findall(r"\bspillway\.(\w+)", text)}


def _bound_twice(source: str) -> set[str]:
    """Names that `source`, a Python file, gives a second meaning, be it one of Python's own."""
    seen: set[str] = set(vars(builtins))
    twice: set[str] = set()
    for bound in _bound(ast.parse(source).body):
        (twice if bound in seen else seen).add(bound)
    return twice


def _bound(body: Iterable[ast.stmt]) -> Iterable[str]:
    for statement in body:
        match statement:
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.If(body=inner):  # if TYPE_CHECKING
                yield from _bound(inner)


def _require_identifier(name: str) -> None:
    from spillway.rdsproxy.parser import SyntaxFault, postgast  # noqa: PLC0415  (PostgreSQL's parser, 0.1 s)

    try:
        postgast.parse(f"INSERT INTO {name} AS t SELECT FROM {name}")
    except SyntaxFault:
        raise SpillwayError(
            f"{name!r} cannot be the name of a table: SQL uses the word itself.", "Choose another name."
        ) from None


def _format(paths: list[str], folder: Path) -> None:
    """How lines break and imports are sorted depends on the names, so the formatter of `make lint` decides."""
    ruff = [sys.executable, "-m", "ruff"]
    if find_spec("ruff") is None:
        raise SpillwayError("ruff, which formats the new files, is not installed.", "Run `make test` once; it is then.")
    _run("imports", [*ruff, "check", "--quiet", "--no-cache", "--select", "I", "--fix", *paths], folder)
    _run("formatting", [*ruff, "format", "--quiet", "--no-cache", *paths], folder)


def _run(what: str, command: list[str], folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if result.returncode:
        said = (result.stderr or result.stdout).strip()
        raise SpillwayError(f"Nothing was written: {what} could not be made.", said)


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
