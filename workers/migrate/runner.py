"""The migration runner: brings a database to what this version of the workers needs, or changes nothing at all.

Two kinds of files:
* `workers/migrate/versions/NNNN_name.sql`: applied once, in order, and never edited afterwards.
* `workers/<worker>/apply.sql`: the worker's function (CREATE OR REPLACE), applied again whenever its text changed.

Everything pending is applied in one transaction under one advisory lock, so a failure leaves nothing half done and two
runners that start together apply everything once. Needs a direct connection: DDL pins an RDS Proxy session.

Forward only: there is no way back but a further migration. Old and new code both run while a deployment is under way,
and after one that was rolled back: README.md says what that asks of a migration.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from workers.runtime.failures import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS = Path(__file__).resolve().parent.parent
VERSIONS = WORKERS / "migrate" / "versions"

#: Any constant will do, as long as every runner uses the same: "spillway" in ASCII.
LOCK_KEY = int.from_bytes(b"spillway", "big", signed=True)
#: A migration that cannot get its table lock gives up, because every writer queues up behind it. Shorter than the
#: writers' own lock_timeout, 5 s by default (roles.py), so that they wait and do not fail.
LOCK_TIMEOUT = "3s"

_VERSION_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


#: What to do about an error, where PostgreSQL does not say it.
_ADVICE = {
    "55P03": "somebody uses it for longer than a migration waits; try again when they are done",
    # CREATE OR REPLACE would change a function's result, or the name of a parameter.
    "42P13": "code that is deployed calls the function as it is; give the new one another name",
}
#: How much of where in a function an error came from its message repeats.
MAX_CONTEXT = 160


class MigrationError(WorkerError):
    """A migration file cannot be applied; the message names the file, the place and what to do.

    `sqlstate` is PostgreSQL's, where it was a statement that failed.
    """

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `version` is None for a worker's function, which is applied by content instead of once."""

    name: str
    text: str
    version: int | None

    @property
    def checksum(self) -> str:
        """SHA-256 of the text with line ends as LF, hex."""
        return hashlib.sha256(self.text.replace("\r\n", "\n").encode()).hexdigest()


def load(workers: Path = WORKERS) -> list[Migration]:
    """All migrations in the order they apply: the versions by number, then the functions by name.

    Raises MigrationError for a file name that is not NNNN_name.sql and for a number used twice.
    """
    versions: dict[int, Migration] = {}
    for path in sorted((workers / "migrate" / "versions").glob("*.sql")):
        match = _VERSION_NAME.fullmatch(path.name)
        if not match:
            raise MigrationError(f"{path.name}: expected a name like 0003_add_refunds.sql")
        number = int(match[1])
        if number in versions:
            raise MigrationError(
                f"{path.name}: number {match[1]} is taken by {versions[number].name}; use the next free one"
            )
        versions[number] = Migration(path.name, path.read_text(encoding="utf-8"), number)
    functions = [
        Migration(f"{path.parent.name}/apply.sql", path.read_text(encoding="utf-8"), None)
        for path in sorted(workers.glob("*/apply.sql"))
    ]
    return [*versions.values(), *functions]


def migrate(
    connection: psycopg.Connection[Any],
    migrations: list[Migration],
    *,
    accept_newer: bool = False,
    applying: Callable[[str], object] = str,
) -> list[str]:
    """Apply what is pending and return the names of what was applied, in order.

    `connection` must be in autocommit mode and the roles must exist (roles.py). `applying` is told each name before its
    turn. Raises MigrationError, with nothing changed, when an applied file was edited or, unless `accept_newer`, is
    missing, when a number comes before one already applied, or when a statement fails.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")  # pins: allow runs on a direct connection
        connection.execute("CREATE SCHEMA IF NOT EXISTS spillway")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS spillway.migrations ("
            " name text PRIMARY KEY, version integer UNIQUE, checksum text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        todo = pending(connection, migrations, accept_newer=accept_newer)
        for migration in todo:
            applying(migration.name)
            _apply(connection, migration)
        return [migration.name for migration in todo]


def pending(
    connection: psycopg.Connection[Any], migrations: list[Migration], *, accept_newer: bool = False
) -> list[Migration]:
    """What `migrate` would apply to this database, in order. Raises MigrationError as it does."""
    return plan(migrations, applied(connection), accept_newer=accept_newer)


def applied(connection: psycopg.Connection[Any]) -> dict[str, tuple[int | None, str]]:
    """What was applied to this database: name -> version, checksum."""
    found = connection.execute("SELECT to_regclass('spillway.migrations')").fetchone()
    if found == (None,):
        return {}
    rows = connection.execute("SELECT name, version, checksum FROM spillway.migrations ORDER BY version, name")
    return {name: (version, checksum) for name, version, checksum in rows}


def newer(migrations: list[Migration], applied: dict[str, tuple[int | None, str]]) -> list[str]:
    """The versions that were applied to the database and are missing here: it was migrated by newer code."""
    known = {migration.name for migration in migrations}
    return [name for name, (version, _) in applied.items() if version is not None and name not in known]


def plan(
    migrations: list[Migration], applied: dict[str, tuple[int | None, str]], *, accept_newer: bool = False
) -> list[Migration]:
    """What is to be applied, given `applied` (name -> version, checksum). Raises MigrationError as `migrate` says."""
    if not accept_newer:
        for name in newer(migrations, applied):
            raise MigrationError(f"{name} was applied to this database but is missing here; use a newer checkout")
    newest = max((version for version, _ in applied.values() if version is not None), default=0)
    todo = []
    for migration in migrations:
        before = applied.get(migration.name)
        if before is None:
            if migration.version is not None and migration.version < newest:
                raise MigrationError(
                    f"{migration.name} would run after {newest:04d}, which is applied already; give it the next number"
                )
            todo.append(migration)
        elif before[1] != migration.checksum:
            if migration.version is not None:
                raise MigrationError(
                    f"{migration.name} was edited after it was applied; restore it and put the change into a new file"
                )
            todo.append(migration)
    return todo


def _apply(connection: psycopg.Connection[Any], migration: Migration) -> None:
    try:
        # No parameters: the simple protocol, which takes a whole file of statements.
        connection.execute(migration.text)
    except psycopg.Error as error:
        raise MigrationError(_explained(migration, error), error.sqlstate) from error
    connection.execute(
        "INSERT INTO spillway.migrations (name, version, checksum) VALUES (%s, %s, %s)"
        " ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, applied_at = now()",
        (migration.name, migration.version, migration.checksum),
    )


def _explained(migration: Migration, error: psycopg.Error) -> str:
    """Which file, which line if PostgreSQL says where, what it says, and where in a function that was."""
    position = int(error.diag.statement_position or 0)
    place = f"{migration.name}:{migration.text.count(chr(10), 0, position) + 1}" if position else migration.name
    said = f"{place}: {error.diag.message_primary or error} (SQLSTATE {error.sqlstate})"
    if context := (error.diag.context or "").partition("\n")[0]:
        said += f" in {context[:MAX_CONTEXT]}"
    advice = _ADVICE.get(error.sqlstate or "")
    return f"{said}; {advice}" if advice else said
