"""Faults on purpose: what each does to clients and numbers, through the API and over the admin port."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.rdsproxy.admin import AdminClient
from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.faults import ARGUMENTS
from spillway.rdsproxy.settings import ProxySettings, RdsProxyError, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spillway.stack.postgres import PostgresServer

#: How long a condition may take to come true on a machine that has other things to do. Nothing asserts on it.
PATIENCE_S = 15.0
TIMEOUT = "Timed-out waiting to acquire database connection."


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until something is the case."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.01)


class Broken:
    """A proxy of three connections that a test breaks in the one way or the other, and its clients."""

    def __init__(self, server: PostgresServer, *, over_http: bool = False, **settings: Any) -> None:
        self.stack = ExitStack()
        self._threads = self.stack.enter_context(ThreadPoolExecutor(8))
        arguments: dict[str, Any] = {"listen_port": 0, "max_connections": 3, "tls": False} | settings
        target = Target.parse(server.dsn())
        self.proxy = self.stack.enter_context(BackgroundProxy(ProxySettings(target=target, **arguments)))
        assert self.proxy.admin_url is not None
        self._admin = AdminClient(self.proxy.admin_url) if over_http else None

    def fault(self, name: str, **arguments: Any) -> dict[str, Any]:
        if self._admin is not None:
            return self._admin.fault(name, arguments)
        return self.proxy.fault(name, **arguments)

    def client(self) -> Any:
        connection = psycopg.connect(self.proxy.dsn(), autocommit=True, prepare_threshold=None)
        self.stack.callback(connection.close)
        return connection

    def later(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._threads.submit(call, *arguments)

    def metric(self, name: str) -> float:
        return self.proxy.metrics[name]

    def becomes(self, name: str, value: float) -> None:
        """Wait for a metric's value."""
        eventually(lambda: self.metric(name) == value, f"{name} is {value}, last {self.metric(name)}")

    def waits(self, clients: int) -> None:
        """Wait until so many clients wait for a database connection."""
        eventually(lambda: self.proxy.snapshot().waiting == clients, f"{clients} clients wait")

    def three_connections(self) -> list[int]:
        """Open the whole pool; returns its backends, all idle, in the order of their opening."""
        clients = [self.client() for _ in range(3)]
        backends = [begin(client) for client in clients]
        for client in clients:
            client.execute("COMMIT")
            client.close()
        self.becomes("DatabaseConnectionsCurrentlyBorrowed", 0)
        self.becomes("ClientConnections", 0)
        return backends


@pytest.fixture(params=["api", "http"])
def broken(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[Broken]:
    one = Broken(postgres, over_http=request.param == "http")
    with one.stack:
        yield one


@pytest.fixture
def start(postgres: PostgresServer) -> Iterator[Callable[..., Broken]]:
    with ExitStack() as stack:

        def start(**settings: Any) -> Broken:
            one = Broken(postgres, **settings)
            stack.enter_context(one.stack)
            return one

        yield start


def pid(client: Any) -> int:
    return int(client.execute("SELECT pg_backend_pid()").fetchone()[0])


def begin(client: Any) -> int:
    """Open a transaction; returns its backend."""
    client.execute("BEGIN")
    return pid(client)


def is_cut(client: Any) -> bool:
    try:
        client.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


# ── fail-over ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fail_over_cuts_busy_clients_and_lets_idle_ones_wait(broken: Broken) -> None:
    in_transaction, in_statement, idle = broken.client(), broken.client(), broken.client()
    begin(in_transaction)
    running = broken.later(in_statement.execute, "SELECT pg_sleep(60)")
    broken.becomes("DatabaseConnectionsCurrentlyBorrowed", 2)
    connections = broken.metric("DatabaseConnections")
    answer = broken.fault("fail-over", outage=3600)
    assert answer == {"fault": "fail-over", "outage": 3600, "connections": connections}
    with pytest.raises(psycopg.OperationalError) as cut:
        running.result()
    assert cut.value.sqlstate is None, "the connection ends without an error of the database"
    assert is_cut(in_transaction)
    waiting = broken.later(pid, idle)
    broken.waits(1)
    assert broken.metric("AvailabilityPercentage") == 0
    assert broken.metric("DatabaseConnections") == 0
    assert broken.metric("DatabaseConnectionsCurrentlyBorrowed") == 0
    broken.fault("clear")
    assert waiting.result()
    assert broken.metric("AvailabilityPercentage") == 100
    assert broken.metric("ClientConnectionsClosed") == 2
    assert broken.metric("ClientConnections") == 1


def test_an_outage_ends_by_itself(broken: Broken) -> None:
    client = broken.client()
    before = pid(client)
    began = time.monotonic()
    broken.fault("fail-over", outage=0.7)
    assert pid(client) != before
    assert time.monotonic() - began >= 0.7
    assert broken.metric("AvailabilityPercentage") == 100
    assert broken.metric("DatabaseConnectionsSetupFailed") == 0


def test_after_an_outage_that_nobody_noticed_the_database_counts_as_available(broken: Broken) -> None:
    broken.fault("fail-over", outage=0.3)
    assert broken.metric("AvailabilityPercentage") == 0
    broken.becomes("AvailabilityPercentage", 100)
    broken.fault("fail-over", outage=0)
    assert broken.metric("AvailabilityPercentage") == 100


def test_a_later_fail_over_decides_when_the_outage_ends(broken: Broken) -> None:
    client = broken.client()
    broken.fault("fail-over", outage=0.2)
    broken.fault("fail-over", outage=3600)
    waiting = broken.later(pid, client)
    time.sleep(0.6)
    assert not waiting.done()
    broken.fault("fail-over", outage=0.1)
    assert waiting.result()


def test_an_outage_longer_than_the_borrow_timeout(start: Callable[..., Broken]) -> None:
    broken = start(connection_borrow_timeout=0.5)
    client = broken.client()
    broken.proxy.fail_over(outage=3600)
    with pytest.raises(psycopg.OperationalError) as failure:
        client.execute("SELECT 1")
    assert (failure.value.sqlstate, failure.value.diag.message_primary) == ("08000", TIMEOUT)


# ── saturate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_saturate_lends_no_more_than_it_leaves(broken: Broken) -> None:
    clients = [broken.client() for _ in range(3)]
    assert broken.fault("saturate", leave=1) == {"fault": "saturate", "seconds": 0, "leave": 1}
    begin(clients[0])
    waiting = broken.later(begin, clients[1])
    broken.waits(1)
    assert broken.metric("DatabaseConnectionsCurrentlyBorrowed") == 1
    clients[0].execute("COMMIT")
    assert waiting.result()
    assert broken.metric("DatabaseConnectionsCurrentlyBorrowed") == 1
    blocked = broken.later(begin, clients[2])
    broken.waits(1)
    broken.fault("clear")
    assert blocked.result()
    assert broken.metric("DatabaseConnectionsCurrentlyBorrowed") == 2


def test_saturation_ends_after_its_seconds(broken: Broken) -> None:
    client = broken.client()
    began = time.monotonic()
    broken.fault("saturate", seconds=0.7)
    assert pid(client)
    assert time.monotonic() - began >= 0.7


def test_saturated_clients_run_into_the_borrow_timeout(start: Callable[..., Broken]) -> None:
    broken = start(connection_borrow_timeout=0.5)
    client = broken.client()
    broken.fault("saturate")
    with pytest.raises(psycopg.OperationalError, match=TIMEOUT):
        client.execute("SELECT 1")
    assert broken.proxy.snapshot().borrow_timeouts == 1


def test_an_older_timer_does_not_end_a_younger_fault(broken: Broken) -> None:
    client = broken.client()
    broken.fault("saturate", seconds=0.2)
    broken.fault("saturate")
    waiting = broken.later(pid, client)
    time.sleep(0.6)
    assert not waiting.done()
    broken.fault("clear")
    assert waiting.result()


# ── latency ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_latency_holds_every_request_back(broken: Broken) -> None:
    client = broken.client()
    assert broken.fault("latency", per_request=0.2) == {"fault": "latency", "per_request": 0.2, "seconds": 0}
    began = time.monotonic()
    for number in range(3):
        assert client.execute("SELECT %s::int", (number,)).fetchone() == (number,)
    assert time.monotonic() - began >= 0.6
    broken.fault("latency", per_request=3600, seconds=0.3)
    time.sleep(0.5)
    assert pid(client), "the fault has ended"
    broken.fault("latency", per_request=3600)
    broken.fault("clear")
    assert pid(client)


def test_a_request_that_is_held_back_is_not_idle(broken: Broken) -> None:
    client = broken.client()
    broken.fault("latency", per_request=1)
    answer = broken.later(pid, client)
    broken.becomes("DatabaseConnectionsCurrentlyBorrowed", 1)
    assert broken.fault("close-idle-clients")["clients"] == 0
    assert answer.result()


# ── drop-connections ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_drop_connections_by_count(broken: Broken) -> None:
    broken.three_connections()
    dropped = broken.fault("drop-connections", count=2)["connections"]
    assert len(dropped) == 2
    assert broken.metric("DatabaseConnections") == 1
    assert broken.fault("drop-connections", count=0)["connections"] == []
    assert broken.metric("DatabaseConnections") == 1
    assert len(broken.fault("drop-connections", count=99)["connections"]) == 1
    assert broken.metric("DatabaseConnections") == 0
    assert broken.metric("AvailabilityPercentage") == 100
    assert pid(broken.client())


def test_drop_connections_by_share(broken: Broken) -> None:
    broken.three_connections()
    assert broken.fault("drop-connections", share=0)["connections"] == []
    assert len(broken.fault("drop-connections", share=0.34)["connections"]) == 1
    assert len(broken.fault("drop-connections")["connections"]) == 2


def test_drop_connections_cuts_who_uses_them(broken: Broken) -> None:
    busy, idle = broken.client(), broken.client()
    begin(busy)
    broken.fault("drop-connections")
    assert is_cut(busy)
    assert not is_cut(idle)
    assert broken.metric("ClientConnectionsClosed") == 1
    broken.becomes("DatabaseConnectionsCurrentlyBorrowed", 0)


def test_the_seed_chooses_the_victims(start: Callable[..., Broken]) -> None:
    def victims(seed: int) -> tuple[int, ...]:
        broken = start(seed=seed)
        chosen = []
        for _ in range(4):
            broken.three_connections()
            chosen += broken.fault("drop-connections", count=1)["connections"]
        return tuple(chosen)

    assert victims(7) == victims(7)
    assert len({victims(seed) for seed in range(4)}) > 1


# ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_refuse_clients_lets_nobody_log_in(broken: Broken) -> None:
    inside = broken.client()
    broken.fault("refuse-clients")
    with pytest.raises(
        psycopg.OperationalError, match="The maximum number of client connections to the proxy exceeded"
    ):
        broken.client()
    assert pid(inside)
    assert broken.metric("ClientConnectionsReceived") == 2
    assert broken.metric("ClientConnectionsSetupSucceeded") == 1
    broken.fault("clear")
    assert pid(broken.client())
    broken.fault("refuse-clients", seconds=0.3)
    time.sleep(0.5)
    assert pid(broken.client())


def test_close_idle_clients_spares_those_at_work(broken: Broken) -> None:
    idle, busy, in_transaction = broken.client(), broken.client(), broken.client()
    begin(in_transaction)
    running = broken.later(busy.execute, "SELECT pg_sleep(1)")
    broken.becomes("DatabaseConnectionsCurrentlyBorrowed", 2)
    assert broken.fault("close-idle-clients") == {"fault": "close-idle-clients", "clients": 2}
    assert is_cut(idle)
    assert is_cut(in_transaction), "idle in a transaction is idle"
    running.result()
    assert not is_cut(busy)
    assert broken.metric("ClientConnectionsClosed") == 2
    broken.becomes("DatabaseConnectionsCurrentlyBorrowed", 0)


def test_clear_ends_everything_at_once(broken: Broken) -> None:
    client = broken.client()
    broken.fault("fail-over", outage=3600)
    broken.fault("saturate")
    broken.fault("latency", per_request=3600)
    broken.fault("refuse-clients")
    assert broken.fault("clear") == {"fault": "clear"}
    assert pid(client)
    assert pid(broken.client())
    assert broken.metric("AvailabilityPercentage") == 100


# ── wrong names and arguments ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("explode", {}, "There is no fault 'explode'"),
        ("fail-over", {"seconds": 1}, "fail-over has no argument 'seconds'. Arguments: outage."),
        ("clear", {"all": 1}, "clear has no argument 'all'. Arguments: none."),
        ("latency", {"per_request": -1}, "latency: expected per_request to be a number from 0, got -1."),
        ("latency", {"per_request": "1"}, "latency: expected per_request to be a number from 0, got '1'."),
        ("saturate", {"leave": True}, "saturate: expected leave to be a number from 0, got True."),
        ("saturate", {"seconds": 1e300}, "saturate: expected seconds to be a number from 0, got 1e+300."),
        ("drop-connections", {"count": 1, "share": 0.5}, "drop-connections: give count or share, not both."),
        ("drop-connections", {"share": 50}, "drop-connections: expected share to be from 0 to 1, got 50."),
    ],
)
def test_what_is_wrong_is_said(broken: Broken, name: str, arguments: dict[str, Any], message: str) -> None:
    broken.three_connections()
    with pytest.raises(RdsProxyError) as refused:
        broken.fault(name, **arguments)
    assert message in str(refused.value)
    assert broken.metric("DatabaseConnections") == 3, "nothing happened"
    assert pid(broken.client())


def test_an_unknown_fault_lists_all(broken: Broken) -> None:
    with pytest.raises(RdsProxyError) as refused:
        broken.fault("nothing")
    assert all(name in str(refused.value) for name in ARGUMENTS)
