"""The roles: a group that may call the workers' functions, and the logins that the fleet connects as.

What a session would have to SET lives here, on the login roles, because a SET would pin an RDS Proxy session.

There are two logins on RDS, because there a member of rds_iam cannot log in with a password any more ("IAM database
authentication", limitations), and a proxy that takes a secret logs in with the secret's password:

    <user>          whom RDS Proxy logs in as: by password, or by IAM where the proxy has no secret
    <user>_direct   whom workers log in as when they pass the proxy by: always by IAM

A database that has no rds_iam, like a local one, has <user> alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from workers.migrate.runner import LOCK_KEY
from workers.runtime.failures import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "spillway_worker"
RDS_IAM = "rds_iam"
LOCKED_OUT = (
    f"with a role in {RDS_IAM} that the master user made, the server refuses the master user's password; the grant was"
    " taken back"
)
DIRECT_SUFFIX = "_direct"
#: Both names fit what PostgreSQL allows, 63 bytes; it cuts longer ones off without an error.
MAX_NAME = 63 - len(DIRECT_SUFFIX)


# What PostgreSQL and RDS say to a wrong password, to a password where IAM is asked for, and to a role that may not.
_REFUSED = re.compile(r"authentication failed|no password supplied|pg_hba\.conf|not permitted to log in")


class RoleError(WorkerError):
    """A role cannot be made what it should be; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRole:
    """The role that workers log in as. Times in milliseconds.

    iam: by IAM authentication, where the database has it; otherwise by password. password None leaves that as it is.
    """

    name: str
    password: str | None
    iam: bool
    statement_timeout_ms: int
    lock_timeout_ms: int
    idle_in_transaction_session_timeout_ms: int = 10_000

    @classmethod
    def with_timeouts(
        cls, name: str, password: str | None, statement_timeout_s: int, *, iam: bool | None = None
    ) -> LoginRole:
        """The role with the timeouts that follow from template.yaml's DatabaseStatementTimeout.

        iam None: by IAM if there is no password.
        """
        timeout_ms = statement_timeout_s * 1000
        return cls(
            name=name,
            password=password,
            iam=password is None if iam is None else iam,
            statement_timeout_ms=timeout_ms,
            # Half: waiting for a lock must fail as that (55P03, retried in place) and not as too slow (57014, halved).
            lock_timeout_ms=timeout_ms // 2,
        )

    @property
    def direct(self) -> LoginRole:
        """The role for workers that pass the proxy by."""
        return replace(self, name=self.name + DIRECT_SUFFIX, password=None, iam=True)


def ensure_roles(connection: psycopg.Connection[Any], login: LoginRole) -> list[str]:
    """Create or adjust the roles, all or none; the names of those that are new members of rds_iam. Safe to repeat.

    `connection` is in autocommit mode and may create roles; it need not be a superuser's. Raises RoleError and
    psycopg.Error.
    """
    if len(login.name.encode()) > MAX_NAME:
        raise RoleError(f"user: expected at most {MAX_NAME} bytes, got {login.name!r}")
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        if not exists(connection, GROUP):
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(GROUP)))
        logins = [login, login.direct] if exists(connection, RDS_IAM) else [login]
        return [one.name for one in logins if _ensure_login(connection, one)]


def set_password(connection: psycopg.Connection[Any], role: str, password: str) -> None:
    """Set it without telling it: what travels, and what a server that logs statements logs, is a SCRAM verifier."""
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    with connection.transaction():
        # PostgreSQL has no better word for two at once than "tuple concurrently updated".
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))


def leave_iam(connection: psycopg.Connection[Any], role: str) -> None:
    """Take `role` out of rds_iam, so that it can log in with its password. Raises RoleError where that fails."""
    connection.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(RDS_IAM), sql.Identifier(role)))
    # PostgreSQL only warns about a grant that somebody else made, and about one through another role.
    if _is_member(connection, role, RDS_IAM):
        raise RoleError(
            f"{role} must log in with a password but stays a member of {RDS_IAM}: another role granted it, or granted"
            f" a role that is one; revoke that"
        )


def accepts(login: Callable[[], psycopg.Connection[Any]]) -> bool:
    """Whether the server lets this login in. Raises psycopg.Error where it is not about that."""
    try:
        login().close()
    except psycopg.OperationalError as error:
        if not refused(error):
            raise
        return False
    return True


def refused(error: psycopg.OperationalError) -> bool:
    """Whether a failed connect says that the server does not let this user in with this password."""
    return _REFUSED.search(str(error)) is not None


def undo_if_locked_out(
    connection: psycopg.Connection[Any], granted: list[str], own_login: Callable[[], psycopg.Connection[Any]]
) -> bool:
    """Take the roles that ensure_roles has `granted` rds_iam out of it again if they lock out who made them.

    PostgreSQL 16 and later makes who creates a role a member of it (ADMIN, not INHERIT). PostgreSQL's own rule for
    "+rds_iam" in pg_hba.conf counts that membership, too. RDS is said to count inherited ones only; if it did not, the
    master user's password would not be taken again. So this is asked while there still is a `connection`.
    """
    if not granted or accepts(own_login):
        return False
    for role in granted:
        leave_iam(connection, role)
    return True


def exists(connection: psycopg.Connection[Any], role: str) -> bool:
    """Whether the server has a role of this name."""
    return connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is not None


def _ensure_login(connection: psycopg.Connection[Any], login: LoginRole) -> bool:
    """True if the role became a member of rds_iam by this."""
    name = sql.Identifier(login.name)
    if not exists(connection, login.name):
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    if not _is_member(connection, login.name, GROUP):
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(GROUP), name))
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
    if login.password is not None:
        set_password(connection, login.name, login.password)
    if not exists(connection, RDS_IAM):
        return False
    member = _is_member(connection, login.name, RDS_IAM)
    if not login.iam:
        if member:
            leave_iam(connection, login.name)
        return False
    # What nobody can log in with is no use to have.
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD NULL").format(name))
    if not member:
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(RDS_IAM), name))
    return not member


def _is_member(connection: psycopg.Connection[Any], role: str, of: str) -> bool:
    found = connection.execute("SELECT pg_has_role(%s, %s, 'MEMBER')", (role, of)).fetchone()
    return found == (True,)
