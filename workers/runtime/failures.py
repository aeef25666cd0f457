"""Whose fault is it? One pure function answers, one table says what happens; nothing else decides about retries.

WorkerError
├── Poison             the message can never be processed: undecodable, or it breaks its contract
├── ResultMismatch     the database answered for other events than it was asked about
└── SettingsError      the environment variables do not make a configuration (settings.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class WorkerError(Exception):
    """Everything a worker raises itself."""


class Reason(StrEnum):
    """Why a message is poison."""

    UNDECODABLE = "undecodable"
    CONTRACT = "contract"
    DATA = "data"


class Poison(WorkerError):
    """A message that no retry can heal. `detail` names the place and what was expected, and holds no payload."""

    def __init__(self, reason: Reason, detail: str, sqlstate: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.sqlstate = sqlstate


class ResultMismatch(WorkerError):
    """The rows that came back are not about the events that were sent, so nothing is known about any of them."""


class Failure(StrEnum):
    """The classes of the failure table (docs/reliability.md)."""

    POISON = "poison"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    SATURATED = "saturated"
    SLOW = "slow"
    MISCONFIGURED = "misconfigured"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a worker does about one class of failure, within the time that the invocation has left.

    attempts: tries of the same piece in place, the first included.
    base_delay_s, max_delay_s: bounds of the full-jitter exponential delay between them.
    reconnect: the connection is thrown away first.
    halvings: how often a piece may be cut in two to keep a failure from its neighbours.
    stop: nothing else is written in this invocation.
    """

    attempts: int = 1
    base_delay_s: float = 0.05
    max_delay_s: float = 1.0
    reconnect: bool = False
    halvings: int = 0
    stop: bool = False


POLICIES: dict[Failure, Policy] = {
    # Down to the single message at fault: 14 halvings take the largest batch (10,000) apart.
    Failure.POISON: Policy(halvings=14),
    Failure.CONFLICT: Policy(attempts=4),
    # A failover or restart takes seconds; the time left decides, the count only ends a hopeless hammering.
    Failure.UNAVAILABLE: Policy(attempts=8, base_delay_s=0.1, max_delay_s=2.0, reconnect=True, stop=True),
    # A retry would queue for the same connections again and make it worse.
    Failure.SATURATED: Policy(reconnect=True, stop=True),
    Failure.SLOW: Policy(halvings=2),
    Failure.MISCONFIGURED: Policy(reconnect=True, stop=True),
    Failure.UNKNOWN: Policy(reconnect=True),
}

# SQLSTATEs by code, then by class (PostgreSQL manual, appendix A). A class of its own beats its class's default.
_BY_CODE = {
    "08000": Failure.SATURATED,  # RDS Proxy: Timed-out waiting to acquire database connection
    "25006": Failure.UNAVAILABLE,  # read-only transaction: still connected to what was the writer before a failover
    "40001": Failure.CONFLICT,
    "40P01": Failure.CONFLICT,
    "55P03": Failure.CONFLICT,  # lock_timeout
    "57014": Failure.SLOW,  # statement_timeout
}
_BY_CLASS = {
    "08": Failure.UNAVAILABLE,
    "0A": Failure.MISCONFIGURED,
    "22": Failure.POISON,
    "23": Failure.POISON,
    "28": Failure.MISCONFIGURED,
    "3D": Failure.MISCONFIGURED,
    "3F": Failure.MISCONFIGURED,
    "40": Failure.CONFLICT,
    "42": Failure.MISCONFIGURED,
    "53": Failure.SATURATED,  # too many connections; also disk full and out of memory: writing less is right for all
    "57": Failure.UNAVAILABLE,  # shutting down, crashed, starting up
}

# psycopg gives a failed connect no SQLSTATE (sqlstate is None), so only libpq's and the server's words are left.
# First match wins; texts are lower case.
_BY_TEXT: tuple[tuple[str, Failure], ...] = (
    ("timed-out waiting to acquire database connection", Failure.SATURATED),
    ("number of client connections to the proxy exceeded", Failure.SATURATED),
    ("rate of connection to proxy exceeded", Failure.SATURATED),
    ("too many competing requests", Failure.SATURATED),
    ("too many clients already", Failure.SATURATED),
    ("remaining connection slots are reserved", Failure.SATURATED),
    ("too many connections for", Failure.SATURATED),
    ("password authentication failed", Failure.MISCONFIGURED),
    ("authentication failed", Failure.MISCONFIGURED),
    ("no password supplied", Failure.MISCONFIGURED),
    ("password that was provided for the role", Failure.MISCONFIGURED),
    ("no credentials for the role", Failure.MISCONFIGURED),
    ("requires tls", Failure.MISCONFIGURED),
    ("only with ssl connections", Failure.MISCONFIGURED),
    ("no pg_hba.conf entry", Failure.MISCONFIGURED),
    ("server does not support ssl", Failure.MISCONFIGURED),
    ("certificate verify failed", Failure.MISCONFIGURED),
    ("root certificate file", Failure.MISCONFIGURED),
    ("does not match host name", Failure.MISCONFIGURED),
    ("feature not supported", Failure.MISCONFIGURED),
    ("is not permitted to log in", Failure.MISCONFIGURED),
)


def classify(error: BaseException) -> Failure:
    """The class of `error`, from its SQLSTATE or, where the driver has none, its type and text."""
    if isinstance(error, Poison):
        return Failure.POISON
    sqlstate: str | None = getattr(error, "sqlstate", None)
    if sqlstate:
        return _BY_CODE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2], Failure.UNKNOWN)
    if not _is_connection_trouble(error):
        return Failure.UNKNOWN
    text = str(error).lower()
    if " does not exist" in text and ('database "' in text or 'role "' in text):
        return Failure.MISCONFIGURED
    return next((failure for words, failure in _BY_TEXT if words in text), Failure.UNAVAILABLE)


def _is_connection_trouble(error: BaseException) -> bool:
    # Imported here so that the table can be used, and tested, without the driver.
    import psycopg  # noqa: PLC0415

    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, OSError))
