"""What a worker reads from its environment, checked once at cold start. The numbers live in template.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workers.runtime.dead_letters import SEND_BUDGET_S
from workers.runtime.failures import WorkerError
from workers.runtime.visibility import MAX_INVISIBLE_S, VISIBILITY_BUDGET_S

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What an attempt needs beyond the database's own limits: network, decoding the answer, reporting.
MARGIN_S = 1.0
#: What may pass before the first attempt: a cold start's imports and decoding the batch.
START_S = 1.0

SslMode = Literal["disable", "require", "verify-ca", "verify-full"]


class SettingsError(WorkerError):
    """An environment variable is missing or wrong; the message says which, what was expected and what was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSettings:
    """What every function of the fleet reads: the way to the database, and its own timeout. Times are in seconds.

    sslrootcert: the path of a file with the certificate authorities, or these themselves as PEM text.
    """

    host: str
    port: int
    database: str
    user: str
    auth: Literal["iam", "password"]
    password: str = field(default="", repr=False)
    sslmode: SslMode
    sslrootcert: str
    connect_timeout: int
    borrow_timeout: int
    statement_timeout: int
    function_timeout: int
    region: str

    @property
    def attempt(self) -> float:
        """The longest that one write may take on an open connection: borrow, then statement, then the way back."""
        return self.borrow_timeout + self.statement_timeout + MARGIN_S

    @staticmethod
    def values(env: Mapping[str, str]) -> dict[str, Any]:
        """The fields of this class, read from `env` one by one. Raises SettingsError for the first that is wrong."""
        read = Reader(env)
        return {
            "host": read.text("DATABASE_HOST"),
            "port": read.integer("DATABASE_PORT", 1, 65535),
            "database": read.text("DATABASE_NAME"),
            "user": read.text("DATABASE_USER"),
            "auth": "password" if read.choice("DATABASE_AUTH", "iam", "password") == "password" else "iam",
            "password": env.get("DATABASE_PASSWORD", ""),
            "sslmode": read.choice("DATABASE_SSLMODE", "disable", "require", "verify-ca", "verify-full"),
            "sslrootcert": env.get("DATABASE_SSLROOTCERT", ""),
            "connect_timeout": read.integer("DATABASE_CONNECT_TIMEOUT", 2, 60),
            "borrow_timeout": read.integer("DATABASE_BORROW_TIMEOUT", 0, 300),
            "statement_timeout": read.integer("DATABASE_STATEMENT_TIMEOUT", 1, 300),
            "function_timeout": read.integer("FUNCTION_TIMEOUT", 1, 900),
            "region": env.get("AWS_REGION", ""),
        }

    def check_connection(self) -> None:
        """Raise SettingsError where the fields do not go together."""
        if self.auth == "password" and not self.password:
            raise SettingsError(
                "DATABASE_PASSWORD: expected a password because DATABASE_AUTH is 'password', got nothing"
            )
        check_certificates(self.sslmode, self.sslrootcert)
        if self.auth == "iam" and not self.region:
            raise SettingsError("AWS_REGION: expected a region because DATABASE_AUTH is 'iam', got nothing")
        if self.auth == "iam" and self.sslmode == "disable":
            raise SettingsError("DATABASE_SSLMODE: expected TLS because DATABASE_AUTH is 'iam', got 'disable'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(FunctionSettings):
    """A worker's configuration. Without a queue URL what is given back has no back-off but the queue's own."""

    dead_letter_queue_url: str
    queue_url: str = ""
    queue_visibility_timeout: int = 0
    retry_max_delay: int = 900

    @property
    def survived(self) -> float:
        """A message that comes again sooner than this after an attempt began was given back by it.

        Had its environment died, it would have stayed invisible for the queue's visibility timeout, which counts from
        the receive. Between that and the attempt lie the function's timeout at most, and the batching window, for which
        a visibility timeout leaves room beside 6 function timeouts (template.yaml). 0 without a queue URL.
        """
        if not self.queue_url:
            return 0.0
        return float(min(self.queue_visibility_timeout - self.function_timeout, 5 * self.function_timeout))

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read and check all variables. Raises SettingsError for the first that is wrong."""
        read = Reader(env)
        queue: dict[str, Any] = {}
        if env.get("QUEUE_URL"):
            queue["queue_url"] = env["QUEUE_URL"]
            queue["queue_visibility_timeout"] = read.integer("QUEUE_VISIBILITY_TIMEOUT", 1, MAX_INVISIBLE_S)
        if "RETRY_MAX_DELAY" in env:
            queue["retry_max_delay"] = read.integer("RETRY_MAX_DELAY", 1, MAX_INVISIBLE_S)
        settings = cls(**cls.values(env), dead_letter_queue_url=env.get("DEAD_LETTER_QUEUE_URL", ""), **queue)
        settings.check_connection()
        settings._check_times()
        return settings

    def _check_times(self) -> None:
        if self.queue_url and self.queue_visibility_timeout < self.function_timeout:
            raise SettingsError(
                f"QUEUE_VISIBILITY_TIMEOUT: expected at least FUNCTION_TIMEOUT, {self.function_timeout} s, because a"
                f" message must not come again while it is being processed, got {self.queue_visibility_timeout}"
            )
        # The chain of times. A first attempt that has to connect must fit, and what SQS is told after it, or a function
        # that looks healthy would give every message back for want of time.
        needed = START_S + self.connect_timeout + self.attempt + SEND_BUDGET_S + VISIBILITY_BUDGET_S
        if needed > self.function_timeout:
            raise SettingsError(
                f"FUNCTION_TIMEOUT: expected at least {needed:g} s (start {START_S:g} + connect {self.connect_timeout}"
                f" + borrow {self.borrow_timeout} + statement {self.statement_timeout} + margin {MARGIN_S:g}"
                f" + dead letters {SEND_BUDGET_S:g} + visibility {VISIBILITY_BUDGET_S:g}), "
                f"got {self.function_timeout}"
            )


def check_certificates(sslmode: str, sslrootcert: str) -> None:
    """Raise SettingsError where they are missing, or PEM text that was cut off. libpq tells of a wrong path itself."""
    if sslmode.startswith("verify") and not sslrootcert:
        raise SettingsError(
            f"DATABASE_SSLROOTCERT: expected a file because DATABASE_SSLMODE is {sslmode!r}, got nothing"
        )
    if sslrootcert.startswith("-----"):
        from workers.runtime.certificates import tidied  # noqa: PLC0415  (cold start: hardly anybody needs it)

        if not tidied(sslrootcert):
            raise SettingsError(
                "DATABASE_SSLROOTCERT: expected a file, or whole certificates between BEGIN CERTIFICATE and END"
                f" CERTIFICATE, got {len(sslrootcert)} characters that begin with {sslrootcert[:27]!r}"
            )


class Reader:
    """Environment variables one by one; SettingsError says what was expected and what was there."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str:
        value = self._env.get(name, "")
        if not value:
            raise SettingsError(f"{name}: expected a value, got nothing")
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.text(name)
        # isascii and isdigit together, because int() also takes signs, spaces, underscores and other scripts' digits
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise SettingsError(f"{name}: expected an integer from {low} to {high}, got {value!r}")
        return int(value)

    def choice(self, name: str, *choices: str) -> str:
        value = self.text(name)
        if value not in choices:
            raise SettingsError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        return value
