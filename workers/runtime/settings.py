"""What a worker reads from its environment, checked once at cold start. The numbers live in template.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from workers.runtime.dead_letters import SEND_BUDGET_S
from workers.runtime.failures import WorkerError

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
class Settings:
    """A worker's configuration. Times are in seconds."""

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
    dead_letter_queue_url: str
    region: str

    @property
    def attempt(self) -> float:
        """The longest that one write may take on an open connection: borrow, then statement, then the way back."""
        return self.borrow_timeout + self.statement_timeout + MARGIN_S

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read and check all variables. Raises SettingsError for the first that is wrong."""
        read = _Reader(env)
        settings = cls(
            host=read.text("DATABASE_HOST"),
            port=read.integer("DATABASE_PORT", 1, 65535),
            database=read.text("DATABASE_NAME"),
            user=read.text("DATABASE_USER"),
            auth="password" if read.choice("DATABASE_AUTH", "iam", "password") == "password" else "iam",
            password=env.get("DATABASE_PASSWORD", ""),
            sslmode=read.choice("DATABASE_SSLMODE", "disable", "require", "verify-ca", "verify-full"),  # type: ignore[arg-type]
            sslrootcert=env.get("DATABASE_SSLROOTCERT", ""),
            connect_timeout=read.integer("DATABASE_CONNECT_TIMEOUT", 2, 60),
            borrow_timeout=read.integer("DATABASE_BORROW_TIMEOUT", 0, 300),
            statement_timeout=read.integer("DATABASE_STATEMENT_TIMEOUT", 1, 300),
            function_timeout=read.integer("FUNCTION_TIMEOUT", 1, 900),
            dead_letter_queue_url=env.get("DEAD_LETTER_QUEUE_URL", ""),
            region=env.get("AWS_REGION", ""),
        )
        settings._check()
        return settings

    def _check(self) -> None:
        if self.auth == "password" and not self.password:
            raise SettingsError(
                "DATABASE_PASSWORD: expected a password because DATABASE_AUTH is 'password', got nothing"
            )
        if self.sslmode.startswith("verify") and not self.sslrootcert:
            raise SettingsError(
                f"DATABASE_SSLROOTCERT: expected a file because DATABASE_SSLMODE is {self.sslmode!r}, got nothing"
            )
        if self.auth == "iam" and not self.region:
            raise SettingsError("AWS_REGION: expected a region because DATABASE_AUTH is 'iam', got nothing")
        if self.auth == "iam" and self.sslmode == "disable":
            raise SettingsError("DATABASE_SSLMODE: expected TLS because DATABASE_AUTH is 'iam', got 'disable'")
        # The chain of times. A first attempt that has to connect must fit, and sending dead letters after it, or a
        # function that looks healthy would give every message back for want of time.
        needed = START_S + self.connect_timeout + self.attempt + SEND_BUDGET_S
        if needed > self.function_timeout:
            raise SettingsError(
                f"FUNCTION_TIMEOUT: expected at least {needed:g} s (start {START_S:g} + connect {self.connect_timeout}"
                f" + borrow {self.borrow_timeout} + statement {self.statement_timeout} + margin {MARGIN_S:g}"
                f" + dead letters {SEND_BUDGET_S:g}), "
                f"got {self.function_timeout}"
            )


class _Reader:
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
