"""One run of the migrate function: the roles, then everything pending, on a direct connection as the master user.

Safe to repeat, to run twice at once, and to end at any moment: the roles are one transaction, the migrations another.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from workers.migrate import roles, runner
from workers.migrate.roles import LoginRole, ensure_roles
from workers.migrate.runner import MigrationError
from workers.runtime.database import authorities
from workers.runtime.failures import Failure, WorkerError, classify

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.migrate.secrets_manager import Credentials, SecretsManager
    from workers.migrate.settings import MigrateSettings

CONNECT_TIMEOUT_S = 5
#: How long a database that cannot be reached is waited for: a new one's name takes its time to be known, and an Aurora
#: that has paused wakes up when it is called. And how long a refused password is: RDS rotates it, too.
PATIENCE_S = 90.0
REFUSED_PATIENCE_S = 6.0
PAUSE_S = 2.0
#: A table that somebody uses for long is tried so often, each time for runner.LOCK_TIMEOUT; writers go on in between.
LOCK_ATTEMPTS = 5
LOCK_PAUSE_S = 5.0
#: The server ends a transaction that we have left lying: a frozen or killed function cannot give up its locks.
IDLE_IN_TRANSACTION_MS = 60_000
_CANCEL_TIMEOUT_S = 2.0
_SETTING_A_PASSWORD_ATTEMPTS = 3


class DeploymentError(WorkerError):
    """The database was not brought up to date; the message says what was in the way."""


class OutOfTimeError(DeploymentError):
    """The run was ended because the function's time was up."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did. version: the newest migration of the database. newer: those that this code does not know.

    warnings: what an operator should know although nothing failed.
    """

    applied: list[str]
    version: int
    newer: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Deployment:
    """Brings one database to what this code needs. `doing` says where it is, for whoever asks from another thread."""

    def __init__(
        self,
        settings: MigrateSettings,
        secrets: Callable[[], SecretsManager],
        remaining_s: Callable[[], float],
        migrations: list[runner.Migration] | None = None,
    ) -> None:
        self._settings = settings
        self._secrets = secrets
        self._remaining_s = remaining_s
        self._migrations = migrations
        self._connection: psycopg.Connection[Any] | None = None
        self._ended = threading.Event()
        self._passwords: set[str] = set()
        self.doing = "reading the migrations"

    def run(self) -> Report:
        """Do it all. Raises WorkerError, psycopg.Error and botocore's errors, with the migrations applied or not."""
        migrations = runner.load() if self._migrations is None else self._migrations
        self.doing = "reading the secrets"
        secrets = self._secrets()
        with self._connect(secrets) as connection:
            self._connection = connection
            warnings = self._ensure_roles(connection, secrets)
            applied = self._migrate(connection, migrations)
            self.doing = "reading what was applied"
            database = runner.applied(connection)
        newer = runner.newer(migrations, database)
        if newer:
            warnings.append(f"the database is ahead of this code, which must run with it: {', '.join(newer)}")
        versions = [version for version, _ in database.values() if version is not None]
        return Report(applied, max(versions, default=0), newer, warnings)

    def end(self) -> None:
        """End the run from another thread: what it does now is rolled back. Safe to call again."""
        self._ended.set()
        connection = self._connection
        if connection is not None and not connection.closed:
            try:
                connection.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
            except psycopg.Error:
                return  # the server is away, and rolls back what has no client

    @property
    def ended(self) -> bool:
        """Whether the run was told to end."""
        return self._ended.is_set()

    def redacted(self, text: str) -> str:
        """`text` without any password that was read."""
        for password in self._passwords:
            text = text.replace(password, "***")
        return text

    def _pause(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise OutOfTimeError("ended")

    def _login(self, credentials: Credentials) -> psycopg.Connection[Any]:
        self._passwords.add(credentials.password)
        settings = self._settings
        remaining_ms = max(int(self._remaining_s() * 1000), 1)
        return psycopg.connect(  # pins: allow migrations need a direct connection
            host=settings.host,
            port=settings.port,
            dbname=settings.database,
            user=credentials.user,
            password=credentials.password,
            sslmode=settings.sslmode,
            sslrootcert=authorities(settings.sslrootcert) if settings.sslmode.startswith("verify") else None,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="spillway migrate",
            # Whatever becomes of this function, the server does not work for it longer than it can live.
            options=f"-c statement_timeout={remaining_ms}"
            f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}",
            autocommit=True,
        )

    def _connect(self, secrets: SecretsManager) -> psycopg.Connection[Any]:
        """As the master user, as soon as the database can be reached and knows the password that the secret has now."""
        waited = 0.0
        while True:
            self.doing = "reading the secret of the master user"
            master = secrets.current(self._settings.master_secret)
            self.doing = f"connecting to {self._settings.host} as {master.user}"
            try:
                return self._login(master)
            except psycopg.OperationalError as error:
                patience_s = PATIENCE_S
                if classify(error) is Failure.MISCONFIGURED:
                    patience_s = REFUSED_PATIENCE_S if roles.refused(error) else 0.0
                if waited >= patience_s:
                    raise
            self._pause(PAUSE_S)
            waited += PAUSE_S

    def _ensure_roles(self, connection: psycopg.Connection[Any], secrets: SecretsManager) -> list[str]:
        """What an operator should know."""
        settings = self._settings
        self.doing = "making the roles"
        by_iam = not settings.application_secret
        has_iam = roles.exists(connection, roles.RDS_IAM)
        if by_iam and not has_iam:
            raise DeploymentError(
                "the database has no role rds_iam, and there is no application secret: turn IAM authentication on"
            )
        login = LoginRole.with_timeouts(settings.user, None, settings.statement_timeout, iam=by_iam)
        granted = ensure_roles(connection, login)
        warnings = [] if has_iam else [f"no direct route: the database has no role {roles.RDS_IAM}"]
        self.doing = "logging in as the master user again"
        if roles.undo_if_locked_out(connection, granted, lambda: self._login(secrets.current(settings.master_secret))):
            if by_iam:
                raise DeploymentError(f"{roles.LOCKED_OUT}; let the proxy log in with a secret")
            warnings.append(f"no direct route: {roles.LOCKED_OUT}")
        if not by_iam:
            self._ensure_password(connection, secrets)
        return warnings

    def _ensure_password(self, connection: psycopg.Connection[Any], secrets: SecretsManager) -> None:
        """See to it that the application secret's password works; touch nothing if it does.

        A rotation may be under way: between its second step, which sets the new password, and its fourth, which makes
        that the secret's current one, the current password is refused although all is well.
        """
        secret, user = self._settings.application_secret, self._settings.user
        for _ in range(_SETTING_A_PASSWORD_ATTEMPTS):
            self.doing = f"reading the secret of {user}"
            current = secrets.current(secret)
            if current.user != user:
                raise DeploymentError(f"{secret}: expected the secret of {user}, got that of {current.user}")
            self.doing = f"logging in as {user}"
            if roles.accepts(partial(self._login, current)):
                return
            pending = secrets.pending(secret)
            if pending is not None and roles.accepts(partial(self._login, pending)):
                return
            self.doing = f"setting the password of {user}"
            roles.set_password(connection, user, current.password)
        raise DeploymentError(f"the password of {user} was set, and the server still refuses it")

    def _migrate(self, connection: psycopg.Connection[Any], migrations: list[runner.Migration]) -> list[str]:
        for attempt in range(1, LOCK_ATTEMPTS + 1):
            self.doing = "waiting for another run of the migrations"
            try:
                return runner.migrate(connection, migrations, accept_newer=True, applying=self._applying)
            except MigrationError as error:
                cause = error.__cause__
                busy = cause is not None and classify(cause) is Failure.CONFLICT
                if not busy or self.ended or attempt == LOCK_ATTEMPTS:
                    raise
            self._pause(LOCK_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    def _applying(self, name: str) -> None:
        if self.ended:
            raise OutOfTimeError("ended")
        self.doing = f"applying {name}"
