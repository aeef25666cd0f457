"""What an emulated RDS Proxy counts, under the names that CloudWatch gives it (namespace AWS/RDS).

The names are those of the user guide, "Monitoring RDS Proxy metrics with Amazon CloudWatch"; `CLOUDWATCH` lists them.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spillway.rdsproxy.settings import Target

#: How many of its latest pins a proxy remembers in full.
MAX_PINS = 1_000
#: How much of the statement that pinned a session is kept, in characters.
MAX_PIN_SQL = 200

QUANTILES = (50, 90, 99)


class Metric(msgspec.Struct, frozen=True):
    """A CloudWatch metric: its name, what it is to Prometheus, and its meaning in one sentence."""

    name: str
    kind: str
    help: str


CLOUDWATCH = (
    Metric("ClientConnections", "gauge", "Client connections that are open."),
    Metric("ClientConnectionsReceived", "counter", "Client connections that were asked for."),
    Metric("ClientConnectionsSetupSucceeded", "counter", "Client connections that logged in."),
    Metric("ClientConnectionsSetupFailedAuth", "counter", "Client connections that failed authentication or TLS."),
    Metric("ClientConnectionsClosed", "counter", "Client connections that were closed."),
    Metric("DatabaseConnections", "gauge", "Database connections that are open."),
    Metric("DatabaseConnectionsCurrentlyBorrowed", "gauge", "Database connections that a client has borrowed."),
    Metric("DatabaseConnectionsCurrentlyInTransaction", "gauge", "Database connections with an open transaction."),
    Metric("DatabaseConnectionsCurrentlySessionPinned", "gauge", "Database connections that a session is pinned to."),
    Metric("DatabaseConnectionsBorrowLatency", "summary", "How long clients waited for a database connection."),
    Metric("DatabaseConnectionRequests", "counter", "Requests to create a database connection."),
    Metric("DatabaseConnectionsSetupFailed", "counter", "Database connections that could not be made."),
    Metric("DatabaseConnectionsSetupSucceeded", "counter", "Database connections that were made."),
    Metric("MaxDatabaseConnectionsAllowed", "gauge", "The size of the pool."),
    Metric("QueryRequests", "counter", "Queries received."),
    Metric("QueryDatabaseResponseLatency", "summary", "How long the database took to answer queries."),
    Metric("QueryResponseLatency", "summary", "How long queries took from their arrival to the end of the answer."),
    Metric("AvailabilityPercentage", "gauge", "100 while the database can be reached, else 0."),
)


class LatencyHistogram:
    """Counts durations in logarithmic buckets of fixed number: 32 for each power of two, of nanoseconds.

    A percentile is the middle of the bucket that its exact value is in, so it is at most 1.6 % off (1/64), for
    anything from 32 ns up to 4.9 hours; longer durations count as that long. Sum and maximum are exact.
    """

    __slots__ = ("_buckets", "max", "sum")

    _SUB_BUCKET_BITS = 5
    _MAX_BITS = 44  # 2**44 ns are 4.9 hours
    _SIZE = (_MAX_BITS - _SUB_BUCKET_BITS + 1) << _SUB_BUCKET_BITS

    def __init__(self) -> None:
        self._buckets = [0] * self._SIZE
        self.sum = 0.0
        self.max = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration; a negative one counts as none. Takes about 0.2 us."""
        nanoseconds = int(seconds * 1e9)
        shift = nanoseconds.bit_length() - 6
        # The leading bit and the five after it say which bucket.
        index = (shift << 5) + (nanoseconds >> shift) if shift > 0 else nanoseconds
        if seconds < 0.0:
            seconds, index = 0.0, 0
        try:
            self._buckets[index] += 1
        except IndexError:
            self._buckets[-1] += 1
        self.sum += seconds
        if seconds > self.max:  # noqa: PLR1730  (half the time of a call)
            self.max = seconds

    def add_none(self) -> None:
        """Count one duration of nothing."""
        self._buckets[0] += 1

    @property
    def count(self) -> int:
        """How many durations were added."""
        return sum(self._buckets)

    def percentile(self, p: float) -> float | None:
        """The duration in seconds that `p` percent (0 to 100) of all do not exceed; None while there is none."""
        return self.summary((p,)).quantiles[0]

    def summary(self, percentiles: Sequence[float] = QUANTILES) -> Summary:
        """Several percentiles, count, sum and maximum, of one moment."""
        buckets = self._buckets[:]
        count = sum(buckets)
        return Summary(tuple(self._percentile(buckets, count, p) for p in percentiles), count, self.sum, self.max)

    def _percentile(self, buckets: list[int], count: int, p: float) -> float | None:
        if count == 0:
            return None
        rank = min(max(1, math.ceil(round(p * count / 100, 6))), count)
        if rank == count:
            return self.max
        seen = 0
        for index, number in enumerate(buckets):
            seen += number
            if seen >= rank:
                return min(self._middle(index), self.max)
        return self.max

    @staticmethod
    def _middle(index: int) -> float:
        shift = max((index >> 5) - 1, 0)
        low = (index - (shift << 5)) << shift
        return (low + ((1 << shift) - 1) / 2) / 1e9


@dataclass(frozen=True, slots=True)
class Summary:
    """A histogram's answer: `quantiles` in the order asked for, sum and maximum, all in seconds."""

    quantiles: tuple[float | None, ...]
    count: int
    sum: float
    max: float


@dataclass(frozen=True, slots=True)
class PinRecord:
    """Why a session was pinned. `client` is its address, `at` seconds since the epoch; `sql` is cut to 200 characters.

    rule: a stable key. reason: what AWS's log line says. certainty: whether AWS documents that this pins.
    """

    rule: str
    reason: str
    certainty: str
    sql: str
    user: str
    database: str
    application_name: str
    client: str
    database_connection: int
    at: float

    def __post_init__(self) -> None:
        if len(self.sql) > MAX_PIN_SQL:
            object.__setattr__(self, "sql", self.sql[: MAX_PIN_SQL - 1] + "…")
        for name in ("reason", "sql", "user", "database", "application_name"):
            # What came over the wire may hold half characters, which JSON cannot.
            object.__setattr__(self, name, getattr(self, name).encode(errors="replace").decode())


class Gauges(Protocol):
    """What is the case now, from the proxy's core."""

    @property
    def client_connections(self) -> int: ...
    @property
    def database_connections(self) -> int: ...
    @property
    def borrowed(self) -> int:
        """Pinned connections are among them."""

    @property
    def in_transaction(self) -> int: ...
    @property
    def session_pinned(self) -> int: ...
    @property
    def waiting(self) -> int:
        """Clients that wait for a database connection."""

    @property
    def max_database_connections(self) -> int: ...
    @property
    def available(self) -> bool:
        """Whether the database can be reached."""


class Latency(msgspec.Struct, kw_only=True, frozen=True):
    """Durations in seconds; the percentiles are None while there is none."""

    p50: float | None
    p90: float | None
    p99: float | None
    max: float
    sum: float
    count: int

    @classmethod
    def of(cls, histogram: LatencyHistogram) -> Latency:
        """A histogram's state now."""
        summary = histogram.summary()
        p50, p90, p99 = summary.quantiles
        return cls(p50=p50, p90=p90, p99=p99, max=summary.max, sum=summary.sum, count=summary.count)

    @property
    def average_us(self) -> float:
        """The mean in microseconds, 0 while there is none."""
        return self.sum / self.count * 1e6 if self.count else 0.0


class Peaks(msgspec.Struct, kw_only=True, frozen=True):
    """The most there ever were at once."""

    client_connections: int
    database_connections: int
    borrowed: int
    waiting: int


class Snapshot(msgspec.Struct, kw_only=True, frozen=True):
    """A proxy at one moment, as JSON shows it.

    cloudwatch: by CloudWatch's names. Counters are since the start, where CloudWatch gives them for each minute, and
    latencies are averages in microseconds since the start (0 while there is none). AvailabilityPercentage is 100 or 0.
    Everything else is in seconds; `taken_at` since the epoch. `pins` are the latest, oldest first, and
    `pins_left_out` says how many came before them. target: a URL without the password.
    """

    proxy: str
    endpoint: str
    target: str
    taken_at: float
    uptime_s: float
    cloudwatch: dict[str, float]
    waiting: int
    borrow_timeouts: int
    pinned_sessions_total: int
    peaks: Peaks
    borrow_latency: Latency
    query_database_response_latency: Latency
    query_response_latency: Latency
    pins_by_rule: dict[str, int]
    pins: list[PinRecord]
    pins_left_out: int


class Metrics:
    """What a proxy has counted since it started. The core increments the attributes; times are in seconds.

    One thread counts; `snapshot` may be called from another, and is then as exact as one moment between two
    increments.
    """

    __slots__ = (
        "_pins",
        "_started",
        "borrow_latency",
        "borrow_timeouts",
        "client_connections_closed",
        "client_connections_received",
        "client_connections_setup_failed_auth",
        "client_connections_setup_succeeded",
        "database_connection_requests",
        "database_connections_setup_failed",
        "database_connections_setup_succeeded",
        "peak_borrowed",
        "peak_client_connections",
        "peak_database_connections",
        "peak_waiting",
        "pinned_sessions_total",
        "pins_by_rule",
        "query_database_response_latency",
        "query_requests",
        "query_response_latency",
    )

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.client_connections_received = 0
        self.client_connections_setup_succeeded = 0
        self.client_connections_setup_failed_auth = 0
        self.client_connections_closed = 0
        self.database_connection_requests = 0
        self.database_connections_setup_succeeded = 0
        self.database_connections_setup_failed = 0
        self.query_requests = 0
        self.borrow_timeouts = 0
        self.pinned_sessions_total = 0
        self.peak_client_connections = 0
        self.peak_database_connections = 0
        self.peak_borrowed = 0
        self.peak_waiting = 0
        self.borrow_latency = LatencyHistogram()
        self.query_database_response_latency = LatencyHistogram()
        self.query_response_latency = LatencyHistogram()
        self.pins_by_rule: dict[str, int] = {}
        self._pins: deque[PinRecord] = deque(maxlen=MAX_PINS)

    def add_response(self, database_s: float, whole_s: float) -> None:
        """Count the time a query took in the database, and from its arrival to the end of its answer."""
        self.query_database_response_latency.add(database_s)
        self.query_response_latency.add(whole_s)

    def record_pin(self, pin: PinRecord) -> None:
        """Remember why a session was pinned. `pinned_sessions_total` is the caller's to count."""
        self.pins_by_rule[pin.rule] = self.pins_by_rule.get(pin.rule, 0) + 1
        self._pins.append(pin)

    def snapshot(self, gauges: Gauges, *, proxy: str, endpoint: str, target: Target) -> Snapshot:
        """Everything, now. `proxy` is the proxy's name, `endpoint` where it listens."""
        borrow = Latency.of(self.borrow_latency)
        database_response = Latency.of(self.query_database_response_latency)
        response = Latency.of(self.query_response_latency)
        by_rule, pins = dict(self.pins_by_rule), list(self._pins)
        return Snapshot(
            proxy=proxy,
            endpoint=endpoint,
            target=target_url(target),
            taken_at=time.time(),
            uptime_s=time.monotonic() - self._started,
            cloudwatch={
                "ClientConnections": gauges.client_connections,
                "ClientConnectionsReceived": self.client_connections_received,
                "ClientConnectionsSetupSucceeded": self.client_connections_setup_succeeded,
                "ClientConnectionsSetupFailedAuth": self.client_connections_setup_failed_auth,
                "ClientConnectionsClosed": self.client_connections_closed,
                "DatabaseConnections": gauges.database_connections,
                "DatabaseConnectionsCurrentlyBorrowed": gauges.borrowed,
                "DatabaseConnectionsCurrentlyInTransaction": gauges.in_transaction,
                "DatabaseConnectionsCurrentlySessionPinned": gauges.session_pinned,
                "DatabaseConnectionsBorrowLatency": borrow.average_us,
                "DatabaseConnectionRequests": self.database_connection_requests,
                "DatabaseConnectionsSetupFailed": self.database_connections_setup_failed,
                "DatabaseConnectionsSetupSucceeded": self.database_connections_setup_succeeded,
                "MaxDatabaseConnectionsAllowed": gauges.max_database_connections,
                "QueryRequests": self.query_requests,
                "QueryDatabaseResponseLatency": database_response.average_us,
                "QueryResponseLatency": response.average_us,
                "AvailabilityPercentage": 100 if gauges.available else 0,
            },
            waiting=gauges.waiting,
            borrow_timeouts=self.borrow_timeouts,
            pinned_sessions_total=self.pinned_sessions_total,
            peaks=Peaks(
                client_connections=self.peak_client_connections,
                database_connections=self.peak_database_connections,
                borrowed=self.peak_borrowed,
                waiting=self.peak_waiting,
            ),
            borrow_latency=borrow,
            query_database_response_latency=database_response,
            query_response_latency=response,
            pins_by_rule=by_rule,
            pins=pins,
            pins_left_out=max(sum(by_rule.values()) - len(pins), 0),
        )


def target_url(target: Target) -> str:
    """Where the target is, without its password."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"postgresql://{quote(target.user, safe='')}@{host}:{target.port}/{quote(target.database, safe='')}"


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render_prometheus` gives."""


def render_prometheus(snapshot: Snapshot) -> str:
    """A snapshot in Prometheus's text exposition format 0.0.4.

    The format: prometheus.io/docs/instrumenting/exposition_formats. Names are CloudWatch's in snake case, latencies
    summaries in seconds; a quantile is NaN while there is nothing to tell it from.
    """
    return "".join(f"{line}\n" for line in _lines(snapshot))


def _lines(snapshot: Snapshot) -> Iterator[str]:
    proxy = {"proxy": snapshot.proxy}
    latencies = {
        "DatabaseConnectionsBorrowLatency": snapshot.borrow_latency,
        "QueryDatabaseResponseLatency": snapshot.query_database_response_latency,
        "QueryResponseLatency": snapshot.query_response_latency,
    }
    for metric in CLOUDWATCH:
        if metric.kind == "summary":
            yield from _summary(f"{_snake(metric.name)}_seconds", metric.help, latencies[metric.name], proxy)
        else:
            yield from _family(metric.kind, _snake(metric.name), metric.help, proxy, snapshot.cloudwatch[metric.name])
    yield from _family("gauge", "clients_waiting", "Clients that wait for a connection.", proxy, snapshot.waiting)
    yield from _family("counter", "borrow_timeouts", "Clients that waited too long.", proxy, snapshot.borrow_timeouts)
    yield from _family(
        "counter", "pinned_sessions", "Sessions that were pinned.", proxy, snapshot.pinned_sessions_total
    )
    yield from _family("gauge", "uptime_seconds", "Seconds since the proxy started.", proxy, snapshot.uptime_s)
    for name, value in msgspec.structs.asdict(snapshot.peaks).items():
        what = name.replace("_", " ")
        yield from _family("gauge", f"peak_{name}", f"The most {what} at once since the start.", proxy, value)
    if snapshot.pins_by_rule:
        yield from _head("counter", "rds_proxy_pins_total", "Pins by the rule that caused them.")
        for rule, count in sorted(snapshot.pins_by_rule.items()):
            yield _sample("rds_proxy_pins_total", proxy | {"rule": rule}, count)


def _family(kind: str, name: str, text: str, labels: Mapping[str, str], value: float) -> Iterator[str]:
    full = f"rds_proxy_{name}_total" if kind == "counter" else f"rds_proxy_{name}"
    yield from _head(kind, full, text)
    yield _sample(full, labels, value)


def _summary(name: str, text: str, latency: Latency, labels: Mapping[str, str]) -> Iterator[str]:
    full = f"rds_proxy_{name}"
    yield from _head("summary", full, text)
    for quantile, value in (("0.5", latency.p50), ("0.9", latency.p90), ("0.99", latency.p99)):
        yield _sample(full, {**labels, "quantile": quantile}, math.nan if value is None else value)
    yield _sample(f"{full}_sum", labels, latency.sum)
    yield _sample(f"{full}_count", labels, latency.count)


def _head(kind: str, full: str, text: str) -> Iterator[str]:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {full} {escaped}"
    yield f"# TYPE {full} {kind}"


def _sample(full: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{name}="{_escape(text)}"' for name, text in labels.items())
    return f"{full}{{{pairs}}} {_number(value)}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) else repr(value)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
