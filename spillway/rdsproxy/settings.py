"""How an emulated RDS Proxy is configured. The names are RDS Proxy's, times are in seconds.

AWS's defaults come from the RDS user guide ("RDS Proxy connection considerations"): ConnectionBorrowTimeout 120,
IdleClientTimeout 1,800, MaxConnectionsPercent 100, client connections live at most 24 hours. Ours differ where a
development machine is better served: a shorter borrow timeout and the head room that AWS recommends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

IamAuth = Literal["required", "disabled"]


class RdsProxyError(SpillwayError):
    """The emulator cannot start, or a command about it cannot be carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """Credentials as RDS Proxy keeps them in Secrets Manager: who may come in, and who they are to the database.

    `password` None: the client is let in without one (for targets that trust their clients). The database is logged
    in to with the same name and password unless `database_username` says otherwise.
    """

    username: str
    password: str | None = field(default=None, repr=False)
    database_username: str | None = None
    database_password: str | None = field(default=None, repr=False)

    @property
    def database_login(self) -> tuple[str, str | None]:
        """User and password towards the database."""
        if self.database_username is None:
            return self.username, self.password
        return self.database_username, self.database_password


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The database behind the proxy."""

    host: str
    port: int
    database: str
    user: str
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read postgresql://user:password@host:port/database. Raises RdsProxyError that says what is wrong."""
        hint = "Expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE."
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
        except ValueError as error:
            raise RdsProxyError(f"The target is not a database URL: {error}.", hint) from None
        if parts.scheme not in {"postgresql", "postgres"}:
            raise RdsProxyError(f"The target begins with {parts.scheme or 'no scheme'!r}.", hint)
        if unknown := sorted(parse_qs(parts.query)):
            raise RdsProxyError(f"The target's option {unknown[0]!r} is not supported.", hint)
        if not parts.username:
            raise RdsProxyError("The target names no user.", hint)
        user = unquote(parts.username)
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=port,
            database=unquote(parts.path[1:]) or user,
            user=user,
            password=None if parts.password is None else unquote(parts.password),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Everything about one emulated proxy. Raises RdsProxyError, from `check`, for values that RDS Proxy would refuse.

    secrets: besides the target URL's own user. endpoints: further host names of the proxy, for its certificate and
    for IAM tokens. credentials: secret access keys by access key id, against which IAM tokens are verified.
    listen_port 0: any free port. tls: serve TLS at all. max_connections: the pool's size; None: the percentage of
    what the database allows.
    """

    target: Target
    listen_host: str = "127.0.0.1"
    listen_port: int = 5432
    endpoints: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()

    max_connections_percent: int = 75
    max_idle_connections_percent: int = 50
    max_connections: int | None = None
    connection_borrow_timeout: float = 30.0
    idle_client_timeout: float = 1800.0
    client_lifetime: float = 24 * 3600.0
    init_query: str = ""
    strict: bool = True

    tls: bool = True
    require_tls: bool = False
    certificate_dir: Path | None = None
    iam_auth: IamAuth = "disabled"
    region: str = ""
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)

    max_client_connections: int | None = None
    max_connection_rate: int | None = None
    #: How long a client may take to log in, and how long one may leave its answer unread before it is cut off.
    #: Neither is documented for RDS Proxy; PostgreSQL's authentication_timeout is 60 s.
    startup_timeout: float = 60.0
    unread_timeout: float = 60.0
    #: How long a database connection beyond MaxIdleConnectionsPercent stays idle before it is closed; AWS's
    #: documents give no time.
    idle_trim_after: float = 60.0
    seed: int = 0

    def check(self) -> None:
        """Raise RdsProxyError for the first value outside RDS Proxy's ranges, or for two that contradict."""
        ranges = (
            ("max-connections-percent", self.max_connections_percent, 1, 100),
            ("max-idle-connections-percent", self.max_idle_connections_percent, 0, self.max_connections_percent),
            ("connection-borrow-timeout", self.connection_borrow_timeout, 0, 300),
            ("idle-client-timeout", self.idle_client_timeout, 0.01, 8 * 3600),
            ("listen port", self.listen_port, 0, 65535),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise RdsProxyError(f"{name}: expected {low:g} to {high:g}, got {value:g}.")
        if self.require_tls and not self.tls:
            raise RdsProxyError("TLS cannot be required and switched off at once.")
        if self.iam_auth == "required":
            if not self.tls:
                raise RdsProxyError("IAM authentication needs TLS.", "Leave TLS on.")
            if not self.credentials:
                raise RdsProxyError(
                    "IAM authentication needs credentials to verify tokens against.",
                    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to test credentials.",
                )

    def secret_of(self, username: str) -> Secret | None:
        """The secret of a database user, if the proxy has one."""
        for secret in self.secrets:
            if secret.username == username:
                return secret
        if username == self.target.user:
            return Secret(username=username, password=self.target.password)
        return None
