"""From paths to findings: which files are read, and by which reader."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from spillway.errors import SpillwayError
from spillway.pins import logs, python_files, sql_files
from spillway.pins.findings import Finding, judge

#: What a folder is searched for; logs and tables are read when named.
SUFFIXES = {".sql", ".py"}
#: Folders that hold other people's code, or what was built.
SKIPPED = {
    ".git",
    ".hg",
    ".svn",
    ".venv",
    "venv",
    "node_modules",
    "__pycache__",
    ".aws-sam",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".tox",
    ".nox",
    ".eggs",
    "build",
    "dist",
    "site-packages",
}


class PathFault(SpillwayError):
    """A path that cannot be linted; a bad call rather than a finding."""

    exit_code = 2


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that `paths` stand for, each once. Raises PathFault for one that does not exist."""
    seen = set()
    for path in paths:
        if not path.exists():
            raise PathFault(f"{path} does not exist.", "Name files or folders.")
        for file in _walk(path) if path.is_dir() else [path]:
            if file not in seen:
                seen.add(file)
                yield file


def _walk(folder: Path) -> Iterator[Path]:
    # os.walk: Path.walk came with Python 3.12.
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES:
                yield Path(place) / name


def lint(file: Path, *, strict: bool = True) -> list[Finding]:
    """The findings in one file. Raises PathFault for a file that cannot be read."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PathFault(f"{file} cannot be read: {error.strerror}.") from error
    return lint_text(file.as_posix(), _text(data), strict=strict)


def lint_text(name: str, text: str, *, strict: bool = True) -> list[Finding]:
    """The findings in `text`, read as its file name's suffix says; every other suffix is a log."""
    suffix = Path(name).suffix.lower()
    if suffix == ".sql":
        return judge(name, text, sql_files.spots(text.encode()), strict=strict)
    if suffix == ".py":
        try:
            spots = python_files.spots(text)
        except (SyntaxError, ValueError, RecursionError) as error:
            line = getattr(error, "lineno", None) or 1
            raise PathFault(f"{name}:{line}: not a Python source: {getattr(error, 'msg', error)}.") from error
        return judge(name, text, spots, strict=strict)
    return judge(name, text, logs.spots(text, table=suffix == ".csv"), strict=strict, seen_by_people=False)


def _text(data: bytes) -> str:
    # Offsets and lines are counted in this text, so line ends become LF for every reader alike.
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # An old dump or a log of several encodings. Every byte is a character here, and no keyword is lost.
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n")
