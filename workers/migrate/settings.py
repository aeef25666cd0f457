"""What the migrate function reads from its environment. The numbers live in template.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.migrate.roles import MAX_NAME
from workers.runtime.settings import Reader, SettingsError, SslMode, check_certificates

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateSettings:
    """The way to the database itself (never to a proxy), the login role that it makes, and where the passwords are.

    application_secret: the secret that a proxy logs in with; "" where the proxy logs in by IAM. sslrootcert: a file, or
    the certificates as PEM text. statement_timeout: the workers', in seconds.
    """

    host: str
    port: int
    database: str
    user: str
    sslmode: SslMode
    sslrootcert: str
    statement_timeout: int
    master_secret: str
    application_secret: str

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> MigrateSettings:
        """Read and check all variables. Raises SettingsError for the first that is wrong."""
        read = Reader(env)
        settings = cls(
            host=read.text("DATABASE_HOST"),
            port=read.integer("DATABASE_PORT", 1, 65535),
            database=read.text("DATABASE_NAME"),
            user=read.text("DATABASE_USER"),
            sslmode=read.choice("DATABASE_SSLMODE", "disable", "require", "verify-ca", "verify-full"),  # type: ignore[arg-type]
            sslrootcert=env.get("DATABASE_SSLROOTCERT", ""),
            statement_timeout=read.integer("DATABASE_STATEMENT_TIMEOUT", 1, 300),
            master_secret=read.text("MASTER_SECRET_ARN"),
            application_secret=env.get("APPLICATION_SECRET_ARN", ""),
        )
        if len(settings.user.encode()) > MAX_NAME:
            raise SettingsError(f"DATABASE_USER: expected at most {MAX_NAME} bytes, got {settings.user!r}")
        check_certificates(settings.sslmode, settings.sslrootcert)
        return settings
