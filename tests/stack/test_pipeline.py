"""The whole stack in this process: what was sent is what the tables and the dead-letter queue hold, whatever breaks."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.demo import examine
from spillway.dlq.reading import read_all
from spillway.histories.orders import generate, read_rows
from spillway.histories.orders_poison import POISON
from spillway.packing import Prepared
from spillway.producer import Producer
from spillway.stack.errors import StackError
from spillway.stack.local import LocalStack, Route, StackOptions
from spillway.stack.processes import Processes
from spillway.stack.rds_proxy import Credentials
from spillway.stack.snapshot import depth
from spillway.stack.template_text import changed_template
from workers.migrate.runner import load, migrate
from workers.orders.contract import OrderEvent
from workers.runtime.telemetry import OUTCOME_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spillway.histories.base import Message
    from spillway.histories.orders import OrdersHistory
    from spillway.stack.environment import ExecutionEnvironment
    from spillway.stack.event_source import EventSourceMapping
    from spillway.stack.postgres import StopMode

DEADLINE_S = 60.0
#: Seconds for the function and for the queue's visibility timeout, so that what failed soon comes again: the shortest
#: that the chain of times allows with PARAMETERS, and a second more for a cold start beside other stacks.
QUICK = {"timeout": 13, "visibility": 13}
#: Why messages may come back after an outage: it was the moment's fault. A borrow timeout is one behind a proxy that
#: waits for the database; poison is among them where reconnecting left too little time for the dead-letter queue, and
#: slow where a cold start left too little for a first attempt.
MOMENTS_FAULT = {"unavailable", "saturated", "slow", "poison"}
#: Many batches instead of few large ones: more moments at which something can break.
SMALL_BATCHES = {"batch_size": 25}
PARAMETERS = {
    "DatabaseBorrowTimeout": 2,
    "DatabaseStatementTimeout": 1,
    "DatabaseConnectTimeout": 2,
    "OrdersMaximumConcurrency": 4,
    # What was given back soon comes again.
    "RetryMaxDelay": 2,
}


class Orders:
    """The orders worker of a running stack, as a test looks at it."""

    def __init__(self, stack: LocalStack, admin: psycopg.Connection[Any]) -> None:
        self.stack = stack
        self.admin = admin
        queue, dead_letters = stack.workers()["orders"]
        self.url, self.dead_letter_url = stack.queue_urls[queue], stack.queue_urls[dead_letters]
        self.mapping = stack.mapping_of("orders")

    def send(self, messages: list[Message]) -> None:
        producer = Producer(self.stack.client, self.url, OrderEvent, concurrency=2)
        results = producer.send(Prepared.raw(message.body) for message in messages)
        assert [result.error for result in results if result.error] == []

    def outcome(self, name: str) -> int:
        """How many messages the workers say ended so."""
        return int(self.stack.metrics.sum(OUTCOME_METRICS[name]))

    def given_back(self) -> dict[str, int]:
        counts = {name: self.outcome(name) for name, metric in OUTCOME_METRICS.items() if metric.endswith("GivenBack")}
        return {name: count for name, count in counts.items() if count}

    def in_queue(self) -> int:
        """Messages in the queue, visible or not."""
        found = depth(self.stack.client, self.url, None)
        return found.waiting + found.in_flight

    def claimed(self) -> int:
        """Distinct events that took effect. On a connection of its own: the server may have been restarted."""
        with psycopg.connect(self.stack.dsn, autocommit=True) as connection:
            row = connection.execute("SELECT count(*) FROM spillway.order_events").fetchone()
        assert row
        return int(row[0])

    def make_writes_last(self, seconds: float) -> None:
        """Every batch's statement takes so much longer."""
        self.admin.execute(
            "CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END$$;"
            "CREATE TRIGGER dawdle AFTER INSERT ON spillway.orders EXECUTE FUNCTION public.dawdle()"
        )

    @contextmanager
    def sqs_frozen(self) -> Iterator[None]:
        """Nothing that is sent to the SQS server gets an answer meanwhile."""
        server = self.stack._sqs_server
        assert server is not None
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(server.pid, signal.SIGCONT)

    def drain(self) -> None:
        """Wait until the queue is empty and nothing is in flight."""
        until(lambda: self.in_queue() == 0 and self.mapping.stats.in_flight_messages == 0, "the queue to be empty")

    def dead_letters(self) -> Counter[str]:
        return Counter(letter.body for letter in read_all(self.stack.client, self.dead_letter_url))

    def check(self, history: OrdersHistory) -> None:
        """Nothing lost, nothing applied twice, only poison dead-lettered: what must hold after any fault.

        A fault may cost the metrics of a batch, and a second copy of a dead letter (SQS has no exactly-once send), so
        neither is counted here.
        """
        expected = history.expected
        assert self.in_queue() == 0
        assert self.claimed() == expected.distinct
        with psycopg.connect(self.stack.dsn, autocommit=True) as connection:
            rows = read_rows(connection)
        assert rows.keys() == expected.rows.keys()
        assert {key for key, row in rows.items() if row != expected.rows[key]} == set()
        assert set(self.dead_letters()) == set(broken(history))


def broken(history: OrdersHistory) -> Counter[str]:
    return Counter(message.body for message in history.messages if message.kind in POISON)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s for {what}"
        time.sleep(0.05)


@contextmanager
def orders_stack(
    directory: Path, *changes: dict[str, int], route: Route = "proxy", **parameters: Any
) -> Iterator[Orders]:
    """The orders worker of a template.yaml with `changes`; the workers' and the servers' logs are shown on failure.

    Through the proxy, nothing may ever pin a session.
    """
    template = directory / "template.yaml"
    numbers = {name: value for change in changes for name, value in change.items()}
    template.write_text(changed_template({"orders": numbers}), encoding="utf-8")
    options = StackOptions(route=route, workers=("orders",), ramp=False, template=template, parameters=parameters)
    with Processes() as owner:
        stack = LocalStack(owner, options)
        stack.start()
        assert (stack.proxy is None) == (route == "direct")
        try:
            with psycopg.connect(stack.dsn, autocommit=True) as admin:
                yield Orders(stack, admin)
            if stack.proxy is not None and stack.proxy.running:
                assert stack.proxy.snapshot().pins == []
        except BaseException:
            sys.stderr.write(f"{stack.stats()}\n{stack.log_tail(15)}\n{stack.postgres.log_tail()}\n")
            raise
        finally:
            stack.stop(drain_s=1)


def environments(mapping: EventSourceMapping) -> list[ExecutionEnvironment]:
    """Those that exist at the moment, in the order in which they were made."""
    return list(mapping._environments._all.values())  # type: ignore[arg-type]


@pytest.mark.parametrize("route", ["proxy", "direct"])
def test_a_history_becomes_its_rows(tmp_path: Path, route: Route) -> None:
    """template.yaml as it is."""
    history = generate(1_500, seed=11, poison=0.05, duplicates=0.1)
    with orders_stack(tmp_path, route=route) as orders:
        orders.send(history.messages)
        until(lambda: orders.mapping.stats.succeeded >= 1_500, "1,500 messages to be done")
        orders.drain()
        result = examine(
            history,
            sent=1_500,
            metrics=orders.stack.metrics,
            admin=orders.admin,
            client=orders.stack.client,
            dead_letter_url=orders.dead_letter_url,
            proxy=orders.stack.proxy.snapshot() if orders.stack.proxy is not None else None,
        )
        assert [check.statement for check in result.checks if not check.holds] == []
        assert len(result.checks) == (6 if route == "proxy" else 5)
        assert result.outcomes["dead-lettered"] == 75
        assert (result.given_back, result.redelivered) == ({}, 0)
        reasons = Counter[str]()
        for (reason, _), count in result.dead_letters.items():
            reasons[reason] += count
        assert reasons == history.expected.poison_by_reason
        assert set(orders.mapping.stats.batches_by_reason) == {"success"}
        check_route(orders, route)


def check_route(orders: Orders, route: Route) -> None:
    """The functions went the way that they were told, and PostgreSQL saw who came."""
    stack = orders.stack
    function = stack.fleet.functions["OrdersConsumer"]
    variables = stack.fleet.environment(function, stack._queues)
    told = {name: variables[f"DATABASE_{name}"] for name in ("HOST", "PORT", "AUTH", "SSLMODE", "BORROW_TIMEOUT")}
    backends = orders.admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'spillway_app'").fetchone()
    assert backends is not None
    if stack.proxy is None:
        port = str(stack.postgres.port)
        assert told == {
            "HOST": "127.0.0.1",
            "PORT": port,
            "AUTH": "password",
            "SSLMODE": "disable",
            "BORROW_TIMEOUT": "0",
        }
        assert backends[0] == stack.stats()[0].environments
        return
    port = str(stack.proxy.port)
    assert told == {"HOST": "127.0.0.1", "PORT": port, "AUTH": "iam", "SSLMODE": "verify-full", "BORROW_TIMEOUT": "20"}
    assert variables["DATABASE_PASSWORD"] == ""
    assert variables["DATABASE_SSLROOTCERT"] == str(stack.proxy.ca_file)
    seen = stack.proxy.snapshot()
    assert seen.cloudwatch["ClientConnectionsSetupSucceeded"] == stack.stats()[0].environments
    assert seen.cloudwatch["ClientConnectionsSetupFailedAuth"] == 0
    assert seen.cloudwatch["MaxDatabaseConnectionsAllowed"] == 20
    assert seen.cloudwatch["DatabaseConnections"] == backends[0]
    assert "A new client connected" in stack.proxy.log_tail(1_000)


def environments_killed_at_random_moments(directory: Path) -> None:
    rng = random.Random(1)
    history = generate(600, seed=1, poison=0, duplicates=0.1)
    with orders_stack(directory, QUICK, SMALL_BATCHES, **PARAMETERS) as orders:
        # So that a kill mostly meets a write.
        orders.make_writes_last(0.05)
        orders.send(history.messages)
        while (crashes := orders.mapping.stats.batches_by_reason["crash"]) < 6 and orders.in_queue():
            if alive := environments(orders.mapping):
                rng.choice(alive).kill()
            time.sleep(rng.uniform(0, 0.2))
        assert crashes >= 3, orders.mapping.stats
        orders.drain()
        orders.check(history)
        assert orders.dead_letters() == {}


def a_batch_killed_between_its_commit_and_its_report_changes_nothing_again(directory: Path) -> None:
    history = generate(100, seed=4, poison=0.1, duplicates=0)
    with orders_stack(directory, QUICK, **PARAMETERS) as orders:
        # Time to freeze the SQS server before the commit: after it, the batch waits there to send its dead letters.
        orders.make_writes_last(0.5)
        orders.send(history.messages)
        until(lambda: orders.mapping.stats.received == 100, "the messages to be with the worker")
        with orders.sqs_frozen():
            until(lambda: orders.claimed() == 90, "the commit")
            for environment in environments(orders.mapping):
                environment.kill()
            until(lambda: orders.mapping.stats.batches_by_reason["crash"] == 1, "the batch to crash")
        assert orders.mapping.stats.succeeded == 0
        orders.drain()
        orders.check(history)
        assert {name: orders.outcome(name) for name in ("applied", "stale", "duplicate")} == {
            "applied": 0,
            "stale": 0,
            "duplicate": 90,
        }


def a_batch_killed_while_it_writes_changed_nothing_and_comes_again(directory: Path) -> None:
    history = generate(200, seed=3, poison=0, duplicates=0)
    with orders_stack(directory, QUICK, SMALL_BATCHES, **PARAMETERS) as orders:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'spillway_app' AND wait_event_type = 'Lock'"
        # A second connection, because within a transaction pg_stat_activity stands still.
        with psycopg.connect(orders.stack.dsn) as other, other.transaction():
            other.execute("LOCK TABLE spillway.orders IN ACCESS EXCLUSIVE MODE")
            orders.send(history.messages)
            until(lambda: orders.admin.execute(waiting).fetchone() != (0,), "a worker to be writing")
            for environment in environments(orders.mapping):
                environment.kill()
            until(lambda: orders.mapping.stats.batches_by_reason["crash"] > 0, "the batches to crash")
            assert orders.claimed() == 0
            assert orders.in_queue() == 200
        orders.drain()
        orders.check(history)


def postgresql_restarted_while_messages_flow(directory: Path, route: Route = "proxy") -> None:
    modes: tuple[StopMode, ...] = ("fast", "immediate", "fast")
    history = generate(900, seed=5, poison=0.02, duplicates=0.05)
    thirds = [history.messages[start : start + 300] for start in range(0, 900, 300)]
    with orders_stack(directory, QUICK, SMALL_BATCHES, route=route, **PARAMETERS) as orders:
        # So that a restart meets some.
        orders.make_writes_last(0.05)
        for third, mode in zip(thirds, modes, strict=True):
            before = orders.claimed()
            orders.send(third)
            until(lambda: orders.claimed() > before, "messages to flow")  # noqa: B023
            assert orders.in_queue() > 0
            orders.stack.postgres.restart(mode)
        orders.drain()
        orders.check(history)
        assert set(orders.given_back()) <= MOMENTS_FAULT


def postgresql_restarted_while_messages_flow_directly(directory: Path) -> None:
    postgresql_restarted_while_messages_flow(directory, "direct")


def postgresql_restarted_while_the_workers_are_idle(directory: Path) -> None:
    """The proxy keeps them: none has to connect again, nothing is given back."""
    history = generate(600, seed=12, poison=0, duplicates=0.05)
    thirds = [history.messages[start : start + 200] for start in range(0, 600, 200)]
    with orders_stack(directory, QUICK, SMALL_BATCHES, **PARAMETERS) as orders:
        proxy = orders.stack.proxy
        assert proxy is not None
        lost = 0.0
        for third, mode in zip(thirds, ("fast", "immediate", None), strict=True):
            orders.send(third)
            orders.drain()
            seen = proxy.snapshot().cloudwatch
            lost += seen["ClientConnectionsClosed"]
            assert seen["ClientConnections"] > 0
            if mode is not None:
                clients = seen["ClientConnections"]
                orders.stack.postgres.restart(mode)
                seen = proxy.snapshot().cloudwatch
                assert seen["ClientConnections"] == clients
        orders.check(history)
        assert lost == 0
        assert orders.given_back() == {}
        assert set(orders.mapping.stats.batches_by_reason) == {"success"}


def a_fail_over_in_the_middle_of_a_flood(directory: Path) -> None:
    history = generate(2_000, seed=13, poison=0.02, duplicates=0.05)
    longer = {"timeout": 15, "visibility": 15}
    # Outages shorter than the borrow timeout: who waits for a connection gets one.
    with orders_stack(directory, longer, SMALL_BATCHES, **PARAMETERS | {"DatabaseBorrowTimeout": 4}) as orders:
        proxy = orders.stack.proxy
        assert proxy is not None
        sender = threading.Thread(target=orders.send, args=(history.messages,))
        sender.start()
        for at in (200, 800):
            until(lambda: orders.claimed() > at, "messages to flow")  # noqa: B023
            assert orders.in_queue() > 0
            assert proxy.admin.fault("fail-over", {"outage": 2.0})["connections"] > 0
        sender.join()
        orders.drain()
        orders.check(history)
        seen = proxy.snapshot()
        assert seen.peaks.waiting > 0
        assert seen.cloudwatch["AvailabilityPercentage"] == 100
        assert set(orders.given_back()) <= MOMENTS_FAULT


def a_proxy_without_a_free_connection_sends_the_messages_back(directory: Path) -> None:
    """08000 reaches the worker, which stops at once; what it gave back is applied later."""
    history = generate(400, seed=14, poison=0.05, duplicates=0.05)
    good = sum(message.kind not in POISON for message in history.messages)
    with orders_stack(directory, QUICK, SMALL_BATCHES, **PARAMETERS) as orders:
        proxy = orders.stack.proxy
        assert proxy is not None
        proxy.admin.fault("saturate", {})
        orders.send(history.messages)
        until(lambda: orders.outcome("saturated") >= good, "everything to be given back")
        assert set(orders.given_back()) == {"saturated"}
        assert orders.claimed() == 0
        assert proxy.snapshot().borrow_timeouts > 0
        assert "Timed-out waiting to acquire database connection" in orders.stack.log_tail(1_000)
        proxy.admin.fault("clear", {})
        orders.drain()
        orders.check(history)


def a_missing_function_is_never_the_messages_fault(directory: Path) -> None:
    history = generate(300, seed=6, poison=0, duplicates=0.05)
    with orders_stack(directory, QUICK, **PARAMETERS) as orders:
        (signature,) = orders.admin.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'apply_orders'"
        ).fetchone() or ("",)
        orders.admin.execute(f"DROP FUNCTION {signature}")
        orders.send(history.messages)
        until(lambda: orders.outcome("misconfigured") >= 300, "everything to be given back")
        assert set(orders.given_back()) == {"misconfigured"}
        assert (orders.in_queue(), orders.claimed(), orders.mapping.stats.succeeded) == (300, 0, 0)
        orders.admin.execute("DELETE FROM spillway.migrations WHERE name = 'orders/apply.sql'")
        assert migrate(orders.admin, load()) == ["orders/apply.sql"]
        orders.drain()
        orders.check(history)
        assert orders.outcome("dead-lettered") == 0


def a_changed_password_is_never_the_messages_fault(directory: Path) -> None:
    """On the direct route: the workers' own password."""
    lock_out(directory, "direct", "misconfigured", change_password)


def a_proxy_with_an_outdated_secret_is_never_the_messages_fault(directory: Path) -> None:
    """The workers get in with their tokens, and the proxy does not: its password is no longer the database's."""
    lock_out(directory, "proxy", "misconfigured", change_password)


def credentials_without_permission_are_never_the_messages_fault(directory: Path) -> None:
    """The workers sign with a key that the proxy does not accept, as if rds-db:connect had been taken away."""
    lock_out(directory, "proxy", "misconfigured", change_credentials)


@contextmanager
def change_password(orders: Orders) -> Iterator[None]:
    """The database's. A connection that is open outlives it."""
    orders.admin.execute("ALTER ROLE spillway_app PASSWORD 'changed behind everybody''s back'")
    orders.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'spillway_app'")
    yield
    orders.admin.execute(f"ALTER ROLE spillway_app PASSWORD '{orders.stack._password}'")


@contextmanager
def change_credentials(orders: Orders) -> Iterator[None]:
    """The functions'. They are told at their start."""
    pool = orders.mapping._environments

    def all_gone() -> bool:
        pool.reap(time.monotonic() + 3_600)
        return len(pool) == 0

    before = orders.stack._credentials
    orders.stack._credentials = Credentials("revoked", "secret")
    until(all_gone, "the environments to be idle, and closed")
    yield
    orders.stack._credentials = before
    until(all_gone, "the environments to be idle, and closed")


def lock_out(
    directory: Path, route: Route, failure: str, change: Callable[[Orders], AbstractContextManager[None]]
) -> None:
    first, second = generate(100, seed=7, poison=0, duplicates=0), generate(400, seed=7, poison=0, duplicates=0)
    assert first.messages != second.messages[:100]
    with orders_stack(directory, QUICK, route=route, **PARAMETERS) as orders:
        orders.send(first.messages)
        orders.drain()
        orders.check(first)
        with change(orders):
            orders.admin.execute("TRUNCATE spillway.orders, spillway.order_events")
            orders.send(second.messages)
            until(lambda: orders.outcome(failure) >= 400, "everything to be given back")
            assert set(orders.given_back()) == {failure}
            assert (orders.in_queue(), orders.claimed(), orders.mapping.stats.succeeded) == (400, 0, 100)
        orders.drain()
        orders.check(second)
        assert orders.dead_letters() == {}


def poison_stays_in_its_queue_while_the_dead_letter_queue_refuses_it(directory: Path) -> None:
    history = generate(300, seed=8, poison=0.1, duplicates=0)
    poison = broken(history)
    with orders_stack(directory, QUICK, **PARAMETERS) as orders:
        name = orders.dead_letter_url.rpartition("/")[2]
        orders.stack.client.delete_queue(QueueUrl=orders.dead_letter_url)
        orders.send(history.messages)
        until(lambda: orders.outcome("poison") >= 30, "the poison to be given back")
        until(lambda: orders.claimed() == 270, "the good messages to be written")
        until(lambda: orders.in_queue() == 30, "the good messages to be deleted")
        assert orders.outcome("dead-lettered") == 0
        url = orders.stack.client.create_queue(QueueName=name)["QueueUrl"]
        assert url == orders.dead_letter_url
        orders.drain()
        orders.check(history)
        assert orders.dead_letters() == poison


#: Each has a stack of its own and mostly waits for a visibility timeout to end, so they run several at a time.
FAULTS = [
    a_fail_over_in_the_middle_of_a_flood,
    postgresql_restarted_while_messages_flow,
    postgresql_restarted_while_messages_flow_directly,
    a_proxy_without_a_free_connection_sends_the_messages_back,
    postgresql_restarted_while_the_workers_are_idle,
    poison_stays_in_its_queue_while_the_dead_letter_queue_refuses_it,
    a_batch_killed_between_its_commit_and_its_report_changes_nothing_again,
    a_missing_function_is_never_the_messages_fault,
    a_changed_password_is_never_the_messages_fault,
    a_proxy_with_an_outdated_secret_is_never_the_messages_fault,
    credentials_without_permission_are_never_the_messages_fault,
    environments_killed_at_random_moments,
    a_batch_killed_while_it_writes_changed_nothing_and_comes_again,
]


class Ahead:
    """Runs those that were asked for, some ahead of the one that is waited for: not all, or each process of a test run
    that is spread over several would run them all."""

    AT_ONCE = 3

    def __init__(
        self, pool: ThreadPoolExecutor, wanted: list[Callable[[Path], None]], make: Callable[[], Path]
    ) -> None:
        self._pool, self._wanted, self._make = pool, wanted, make
        self._running: dict[Callable[[Path], None], Future[None]] = {}

    def result(self, fault: Callable[[Path], None]) -> None:
        first = self._wanted.index(fault)
        for one in self._wanted[first : first + self.AT_ONCE]:
            if one not in self._running:
                self._running[one] = self._pool.submit(one, self._make())
        self._running[fault].result()


@pytest.fixture(scope="module")
def ahead(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ahead]:
    asked = {item.callspec.params.get("fault") for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(Ahead.AT_ONCE) as pool:
        yield Ahead(pool, [fault for fault in FAULTS if fault in asked], lambda: tmp_path_factory.mktemp("fault"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_is_lost_or_applied_twice(fault: Callable[[Path], None], ahead: Ahead) -> None:
    ahead.result(fault)


def test_a_proxy_that_dies_is_named(tmp_path: Path) -> None:
    with orders_stack(tmp_path) as orders:
        proxy = orders.stack.proxy
        assert proxy is not None
        assert proxy.pid is not None
        orders.stack.check_alive()
        os.kill(proxy.pid, signal.SIGKILL)
        until(lambda: not proxy.running, "its end")
        with pytest.raises(StackError, match=r"^The RDS Proxy has died; the stack is stopped\."):
            orders.stack.check_alive()


def test_a_dead_letter_is_the_message_itself_with_the_reason(tmp_path: Path) -> None:
    rng = random.Random(9)
    template = json.loads(generate(1, poison=0, duplicates=0).messages[0].body)
    own = {
        "tenant": {"DataType": "String", "StringValue": "é 在庫 🙈 \t\r\n\ufffd"},
        "weight.grams": {"DataType": "Number", "StringValue": "1250.50"},
        "digest": {"DataType": "Binary.sha", "BinaryValue": bytes(range(256))},
    }
    many = {f"a{index}": {"DataType": "String", "StringValue": str(index)} for index in range(10)}
    with orders_stack(tmp_path) as orders:
        client = orders.stack.client
        sent: dict[str, tuple[str, str, dict[str, Any]]] = {}
        for kind, poison in POISON.items():
            body = poison.breaks(json.loads(json.dumps(template)), rng)
            attributes: dict[str, Any] = many if kind == "not_json" else own
            answer = client.send_message(QueueUrl=orders.url, MessageBody=body, MessageAttributes=attributes)
            sent[answer["MessageId"]] = (kind, body, attributes)
        orders.drain()
        letters = read_all(client, orders.dead_letter_url)
        queue_arn = orders.mapping.config.queue_arn
    assert len(letters) == len(sent) == len(POISON)
    seen = set()
    for letter in letters:
        reasons = letter.reasons
        kind, body, own_attributes = sent[reasons["message-id"]]
        seen.add(kind)
        assert letter.body.encode() == body.encode(), kind
        assert letter.own_attributes == own_attributes, kind
        assert reasons["reason"] == POISON[kind].reason, kind
        assert POISON[kind].detail in reasons["detail"], kind
        assert reasons["source-queue"] == queue_arn
        assert (reasons["worker"], reasons["receive-count"]) == ("orders", "1")
    assert seen == set(POISON)
