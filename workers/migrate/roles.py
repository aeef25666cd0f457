"""The roles: a group that may call the workers' functions, and the login the fleet connects as.

What a session would have to SET lives here, on the login role, because a SET would pin an RDS Proxy session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from workers.migrate.runner import LOCK_KEY

GROUP = "spillway_worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRole:
    """The role that workers log in as. Times in milliseconds; `password` None for IAM authentication."""

    name: str
    password: str | None
    statement_timeout_ms: int
    lock_timeout_ms: int
    idle_in_transaction_session_timeout_ms: int = 10_000

    @classmethod
    def with_timeouts(cls, name: str, password: str | None, statement_timeout_s: int) -> LoginRole:
        """The role with the timeouts that follow from template.yaml's DatabaseStatementTimeout."""
        timeout_ms = statement_timeout_s * 1000
        # Half: waiting for a lock must fail as that (55P03, retried in place) and not as too slow (57014, halved).
        return cls(name=name, password=password, statement_timeout_ms=timeout_ms, lock_timeout_ms=timeout_ms // 2)


def ensure_roles(connection: psycopg.Connection[Any], login: LoginRole) -> None:
    """Create or adjust both roles. `connection` is in autocommit mode and may create roles. Safe to repeat."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        name = sql.Identifier(login.name)
        if not _exists(connection, GROUP):
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(GROUP)))
        if not _exists(connection, login.name):
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(GROUP), name))
        if login.password is not None:
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(login.password)))
        elif _exists(connection, "rds_iam"):
            connection.execute(sql.SQL("GRANT rds_iam TO {}").format(name))
        settings = {
            "statement_timeout": f"{login.statement_timeout_ms}ms",
            "lock_timeout": f"{login.lock_timeout_ms}ms",
            "idle_in_transaction_session_timeout": f"{login.idle_in_transaction_session_timeout_ms}ms",
        }
        for setting, value in settings.items():
            connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.Identifier(setting), sql.Literal(value))
            )
        connection.execute(sql.SQL("ALTER ROLE {} SET search_path = spillway, pg_temp").format(name))


def _exists(connection: psycopg.Connection[Any], role: str) -> bool:
    return connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is not None
