"""Whether a persistent directory may be handed to PostgreSQL: empty or ours, of this version, and not in use."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from spillway.stack import reaper
from spillway.stack.errors import StackError

MAJOR_VERSION = "18"
_OURS = {"data", "data.unfinished", "password", "postgres.log"}


def check_directory(directory: Path) -> None:
    """Refuse whatever is not empty and not ours, of another version, or in use."""
    data = directory / "data"
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not {entry.name for entry in directory.iterdir()} <= _OURS:
        raise StackError(f"{directory} holds files that are not Spillway's.", "Choose an empty or a new directory.")
    if not data.exists():
        return
    version = (data / "PG_VERSION").read_text().strip()
    if version != MAJOR_VERSION:
        raise StackError(
            f"{directory} was made by PostgreSQL {version}; this is {MAJOR_VERSION}.",
            "Choose another directory, or move the data with pg_dump of the old version.",
        )
    check_not_in_use(data)


def check_not_in_use(data: Path) -> None:
    """Raise `StackError` if a live server works on this data; remove the lock file of one that was killed.

    PostgreSQL removes it itself unless its old pid is taken by another process, which in a container is likely.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    holder = reaper.read_process(pid)
    if holder is None:
        return
    if Path(f"/proc/{pid}/comm").read_text().strip() == "postgres":
        raise StackError(
            f"{data.parent} is in use by a running PostgreSQL (pid {pid}).", "Stop it, or choose another directory."
        )
    lock.unlink()


@contextlib.contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses below `path` into a `StackError`."""
    try:
        yield
    except OSError as error:
        raise StackError(
            f"PostgreSQL cannot use {error.filename or path}: {error.strerror}.", "Choose another directory."
        ) from error
