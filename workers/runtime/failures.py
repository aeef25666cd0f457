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
    """Why a message is dead-lettered."""

    UNDECODABLE = "undecodable"
    CONTRACT = "contract"
    DATA = "data"
    GAP = "gap"
    CRASHED = "crashed"


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
    """The classes of the failure table (docs/outcomes.md)."""

    POISON = "poison"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    SATURATED = "saturated"
    SLOW = "slow"
    MISCONFIGURED = "misconfigured"
    UNKNOWN = "unknown"
    HELD = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a worker does about one class of failure, within the time that the invocation has left. Times in seconds.

    attempts: tries of the same piece in place, the first included.
    pause_s, max_pause_s: bounds of the full-jitter exponential pause between them.
    reconnect: the connection is thrown away first.
    halvings: how often a piece may be cut in two to keep a failure from its neighbours.
    stop: nothing else is written in this invocation.
    delay_s, growth, max_delay_s: the full-jitter exponential delay after which a message that was given back may be
    received again: first bound, factor by receive, and last bound (visibility.py; RETRY_MAX_DELAY bounds it too).

    The last bound is 15 minutes because every receive counts: at 7.5 minutes on average a queue's maxReceiveCount of
    1000 lasts 5 days, which is longer than the queue keeps a message. A bound of a minute would have let SQS
    dead-letter good messages in an outage of 8 hours.
    """

    attempts: int = 1
    pause_s: float = 0.05
    max_pause_s: float = 1.0
    reconnect: bool = False
    halvings: int = 0
    stop: bool = False
    delay_s: float
    growth: float = 2.0
    max_delay_s: float = 900.0


POLICIES: dict[Failure, Policy] = {
    # Down to the single message at fault: 14 halvings take the largest batch (10,000) apart. Given back is only poison
    # that the dead-letter queue refused.
    Failure.POISON: Policy(halvings=14, delay_s=10),
    Failure.CONFLICT: Policy(attempts=4, delay_s=1),
    # A failover or restart takes seconds; the time left decides, the count only ends a hopeless hammering. The delay
    # grows slowly, because it is how long a message may still wait when the database is back.
    Failure.UNAVAILABLE: Policy(
        attempts=8, pause_s=0.1, max_pause_s=2.0, reconnect=True, stop=True, delay_s=5, growth=1.4
    ),
    # A retry would queue for the same connections again and make it worse. The delay grows slowly, because a backlog
    # drains no faster than its last messages come back.
    Failure.SATURATED: Policy(reconnect=True, stop=True, delay_s=15, growth=1.4),
    Failure.SLOW: Policy(halvings=2, delay_s=5),
    Failure.MISCONFIGURED: Policy(reconnect=True, stop=True, delay_s=60),
    Failure.UNKNOWN: Policy(reconnect=True, delay_s=10),
    # Behind a message of its FIFO group that was given back, and received again together with it. Alone this delay
    # counts only behind a dead letter, when there is nothing to wait for.
    Failure.HELD: Policy(delay_s=1, max_delay_s=10),
}

#: The database did its work and had a connection for it, so it is not saturated.
ANSWERED = frozenset({Failure.POISON, Failure.CONFLICT, Failure.SLOW})

# SQLSTATEs by code, then by class (PostgreSQL manual, appendix A). A class of its own beats its class's default.
_BY_CODE = {
    "08000": Failure.SATURATED,  # RDS Proxy: Timed-out waiting to acquire database connection
    "25006": Failure.UNAVAILABLE,  # read-only transaction: still connected to what was the writer before a failover
    "25P03": Failure.UNAVAILABLE,  # idle_in_transaction_session_timeout: the server has closed the connection
    "25P04": Failure.SLOW,  # transaction_timeout
    "40001": Failure.CONFLICT,
    "40P01": Failure.CONFLICT,
    # Disk full is no lack of connections. But writing less, later and not again at once is right for it too, and what
    # a person has to do about it is in the error's text.
    "53100": Failure.SATURATED,
    "55P03": Failure.CONFLICT,  # lock_timeout
    "57014": Failure.SLOW,  # statement_timeout
    "57P04": Failure.MISCONFIGURED,  # the database was dropped
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
    "53": Failure.SATURATED,  # too many connections; out of memory
    "57": Failure.UNAVAILABLE,  # shutting down, crashed, starting up, idle for too long (57P05)
}
# RDS Proxy's own code for whatever it was told itself ("Request returned an error: ..."), so its words decide.
_WRAPPED = "XX000"

# psycopg gives a failed connect no SQLSTATE (sqlstate is None), so only libpq's, the server's and the proxy's words are
# left. First match wins; texts are lower case. The first block is about room, the second about configuration, the third
# about the moment: for a connection that failed it is what is left anyway, for a wrapped error it is not.
_BY_TEXT: tuple[tuple[str, Failure], ...] = (
    ("timed-out waiting to acquire database connection", Failure.SATURATED),
    ("number of client connections to the proxy exceeded", Failure.SATURATED),
    ("rate of connection to proxy exceeded", Failure.SATURATED),
    ("too many competing requests", Failure.SATURATED),
    ("too many clients already", Failure.SATURATED),
    ("too many connections", Failure.SATURATED),
    ("remaining connection slots are reserved", Failure.SATURATED),
    ("could not fork new process", Failure.SATURATED),
    ("no space left on device", Failure.SATURATED),
    ("authentication failed", Failure.MISCONFIGURED),  # password, IAM, PAM (IAM without a proxy), SASL, GSSAPI
    ("no password supplied", Failure.MISCONFIGURED),
    ("password that was provided for the role", Failure.MISCONFIGURED),
    ("no credentials for the role", Failure.MISCONFIGURED),
    ("requires tls", Failure.MISCONFIGURED),
    ("only with ssl connections", Failure.MISCONFIGURED),
    ("no pg_hba.conf entry", Failure.MISCONFIGURED),
    ("server does not support ssl", Failure.MISCONFIGURED),
    ("certificate verify failed", Failure.MISCONFIGURED),
    ("unknown ca", Failure.MISCONFIGURED),
    ("root certificate", Failure.MISCONFIGURED),
    ("does not match host name", Failure.MISCONFIGURED),
    ("wrong version number", Failure.MISCONFIGURED),  # whatever answers there does not speak TLS
    ("channel binding", Failure.MISCONFIGURED),
    ("feature not supported", Failure.MISCONFIGURED),
    ("unsupported frontend protocol", Failure.MISCONFIGURED),
    ("is not permitted to log in", Failure.MISCONFIGURED),
    ("not currently accepting connections", Failure.MISCONFIGURED),  # ALTER DATABASE ... ALLOW_CONNECTIONS false
    ("permission denied", Failure.MISCONFIGURED),
    ("the database system is", Failure.UNAVAILABLE),  # starting up, shutting down, in recovery mode
    ("terminating connection", Failure.UNAVAILABLE),
    ("read-only transaction", Failure.UNAVAILABLE),
    ("could not connect", Failure.UNAVAILABLE),
    ("connection refused", Failure.UNAVAILABLE),
    ("connection reset", Failure.UNAVAILABLE),
    ("connection timed out", Failure.UNAVAILABLE),
    ("timeout expired", Failure.UNAVAILABLE),
    ("no route to host", Failure.UNAVAILABLE),
    ("network is unreachable", Failure.UNAVAILABLE),
    ("closed the connection unexpectedly", Failure.UNAVAILABLE),
    ("connection has been closed unexpectedly", Failure.UNAVAILABLE),
    ("ssl syscall error", Failure.UNAVAILABLE),
    ("ssl error: unexpected eof", Failure.UNAVAILABLE),
    ("could not receive data from server", Failure.UNAVAILABLE),
    ("could not send data to server", Failure.UNAVAILABLE),
    # A name that does not resolve may be a typing error; but it also is what a failover looks like for a moment.
    ("could not translate host name", Failure.UNAVAILABLE),
    ("failed to resolve host", Failure.UNAVAILABLE),
)


def classify(error: BaseException) -> Failure:
    """The class of `error`, from its SQLSTATE or, where that is missing or says nothing, its type and text."""
    if isinstance(error, Poison):
        return Failure.POISON
    sqlstate: str | None = getattr(error, "sqlstate", None)
    if sqlstate == _WRAPPED:
        return _by_text(error, Failure.UNKNOWN)
    if sqlstate:
        return _BY_CODE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2], Failure.UNKNOWN)
    return _by_text(error, Failure.UNAVAILABLE) if _is_connection_trouble(error) else Failure.UNKNOWN


def _by_text(error: BaseException, otherwise: Failure) -> Failure:
    text = str(error).lower()
    if " does not exist" in text and ('database "' in text or 'role "' in text):
        return Failure.MISCONFIGURED
    return next((failure for words, failure in _BY_TEXT if words in text), otherwise)


def _is_connection_trouble(error: BaseException) -> bool:
    # Imported here so that the table can be used, and tested, without the driver.
    import psycopg  # noqa: PLC0415

    # Exactly DatabaseError is what psycopg makes of a result that libpq made up itself, which has no SQLSTATE: "SSL
    # SYSCALL error: ...", "server closed the connection unexpectedly". Its subclasses are mistakes in using the driver.
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, OSError)) or (
        type(error) is psycopg.DatabaseError
    )
