"""`spillway migrate`: bring a database to what this version of the workers needs."""

from __future__ import annotations

import os
import re
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict

from spillway.errors import SpillwayError
from spillway.stack.state import read_state
from workers.migrate import runner
from workers.migrate.roles import LOCKED_OUT, LoginRole, ensure_roles, undo_if_locked_out

PASSWORD_VARIABLE = "SPILLWAY_APP_PASSWORD"  # noqa: S105  (a name)

_EXAMPLE = "postgresql://user:password@host:5432/database"


def migrate(
    *,
    dsn: Annotated[
        str | None, typer.Option(help="The database, directly and not through a proxy (default: the local stack's).")
    ] = None,
    user: Annotated[str, typer.Option(help="The workers' login role.")] = "spillway_app",
    statement_timeout: Annotated[
        int, typer.Option(min=1, max=300, help="Seconds; template.yaml's DatabaseStatementTimeout.")
    ] = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be applied.")] = False,
) -> None:
    """Create the roles, then apply what is pending, all in one transaction. Safe to repeat and to run twice at once.

    The login role's password is taken from SPILLWAY_APP_PASSWORD. Without it the role is for IAM authentication where
    the database has that (on RDS), and elsewhere keeps the password it has. On RDS there is a second role, for workers
    that pass the proxy by: <user>_direct, by IAM in either case.

    Exit status: 0 the database is up to date; 1 nothing was changed, and why.
    """
    if dsn is None:
        state = read_state()
        if state is None:
            raise SpillwayError("No database is named and no local stack is running.", "Pass --dsn postgresql://...")
        dsn = state.dsn
    migrations = runner.load()
    try:
        # pins: allow migrations need a direct connection
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            if dry_run:
                pending = [migration.name for migration in runner.pending(connection, migrations)]
            else:
                password = os.environ.get(PASSWORD_VARIABLE)
                granted = ensure_roles(connection, LoginRole.with_timeouts(user, password, statement_timeout))
                # pins: allow asks whether the DSN's password is still taken
                if undo_if_locked_out(connection, granted, lambda: psycopg.connect(dsn, connect_timeout=10)):
                    if password is None:
                        raise SpillwayError(
                            f"Nothing was applied: {LOCKED_OUT}.",
                            f"Give the workers a password in {PASSWORD_VARIABLE}.",
                        )
                    typer.echo(f"There is no role for workers that pass the proxy by: {LOCKED_OUT}.", err=True)
                pending = runner.migrate(connection, migrations)
    except psycopg.Error as error:
        raise _explained(error, dsn) from error
    verb = "would apply" if dry_run else "applied"
    typer.echo("\n".join(f"{verb} {name}" for name in pending) or "Nothing to do: the database is up to date.")


def _explained(error: psycopg.Error, dsn: str) -> SpillwayError:
    """What went wrong, where, and what to do; never with the password that `dsn` may hold."""
    # The first line says it, after the driver's and libpq's words for "failed"; the rest is advice and other addresses.
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rpartition(" failed: ")[2]
    said = re.sub(r"^[A-Z]+: +", "", said).rstrip(".")
    if error.sqlstate is not None:
        return SpillwayError(
            f"The database refused: {said}.", "Check that the DSN's role may create roles and schemas."
        )
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return SpillwayError(f"--dsn is not a connection string: {said}.", f"Expected {_EXAMPLE}.")
    where = f"{parts.get('host') or 'the local socket'}, port {parts.get('port') or 5432}"
    if "password" in said or "authentication" in said or "pg_hba" in said:
        return SpillwayError(f"PostgreSQL at {where} refused the login: {said}.", "Check user and password of --dsn.")
    if said.endswith("does not exist"):
        return SpillwayError(f"PostgreSQL at {where} says: {said}.", "Create it, or name another one in --dsn.")
    return SpillwayError(
        f"PostgreSQL at {where} cannot be reached: {said}.", f"Check that it runs and that --dsn is right: {_EXAMPLE}."
    )
