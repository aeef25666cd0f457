"""The whole stack in this process: what was sent is what the tables and the dead-letter queue hold, whatever breaks."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest

from spillway.demo import examine, peek_all, read_rows
from spillway.history import generate
from spillway.packing import Prepared
from spillway.poison import POISON
from spillway.producer import Producer
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.processes import Processes
from spillway.stack.snapshot import depth
from spillway.stack.template import TEMPLATE
from workers.migrate.runner import load, migrate
from workers.orders.contract import OrderEvent
from workers.runtime.telemetry import OUTCOME_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spillway.history import History, Message
    from spillway.stack.environment import ExecutionEnvironment
    from spillway.stack.event_source import EventSourceMapping
    from spillway.stack.postgres import StopMode

DEADLINE_S = 60.0
#: Seconds for the function and for the queue's visibility timeout, so that what failed soon comes again: the shortest
#: that the chain of times allows with PARAMETERS.
QUICK = {"Timeout: 30": "Timeout: 8", '"30"': '"8"', "VisibilityTimeout: 181": "VisibilityTimeout: 8"}
#: Many batches instead of few large ones: more moments at which something can break.
SMALL_BATCHES = {"BatchSize: 1000": "BatchSize: 25"}
PARAMETERS = {"DatabaseStatementTimeout": 1, "DatabaseConnectTimeout": 2, "OrdersMaximumConcurrency": 4}


class Orders:
    """The orders worker of a running stack, as a test looks at it."""

    def __init__(self, stack: LocalStack, admin: psycopg.Connection[Any]) -> None:
        self.stack = stack
        self.admin = admin
        queue, dead_letters = stack.workers()["orders"]
        self.url, self.dead_letter_url = stack.queue_urls[queue], stack.queue_urls[dead_letters]
        (self.mapping,) = stack.mappings.values()

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

    def drain(self) -> None:
        """Wait until the queue is empty and nothing is in flight."""
        until(lambda: self.in_queue() == 0 and self.mapping.stats.in_flight_messages == 0, "the queue to be empty")

    def dead_letters(self) -> Counter[str]:
        return Counter(letter["Body"] for letter in peek_all(self.stack.client, self.dead_letter_url))

    def check(self, history: History) -> None:
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


def broken(history: History) -> Counter[str]:
    return Counter(message.body for message in history.messages if message.kind in POISON)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s for {what}"
        time.sleep(0.05)


@contextmanager
def orders_stack(directory: Path, *changes: dict[str, str], **parameters: Any) -> Iterator[Orders]:
    """A stack of template.yaml with `changes` of its text; the workers' and the servers' logs are shown on failure."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for before, after in (pair for change in changes for pair in change.items()):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    template = directory / "template.yaml"
    template.write_text(text, encoding="utf-8")
    with Processes() as owner:
        stack = LocalStack(owner, StackOptions(ramp=False, template=template, parameters=parameters))
        stack.start()
        try:
            with psycopg.connect(stack.dsn, autocommit=True) as admin:
                yield Orders(stack, admin)
        except BaseException:
            sys.stderr.write(f"{stack.stats()}\n{stack.log_tail(15)}\n{stack.postgres.log_tail()}\n")
            raise
        finally:
            stack.stop(drain_s=1)


def environments(mapping: EventSourceMapping) -> list[ExecutionEnvironment]:
    """Those that exist at the moment, in the order in which they were made."""
    return list(mapping._environments._all.values())  # type: ignore[arg-type]


def test_a_history_becomes_its_rows(tmp_path: Path) -> None:
    """template.yaml as it is."""
    history = generate(1_500, seed=11, poison=0.05, duplicates=0.1)
    with orders_stack(tmp_path) as orders:
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
        )
        assert [check.statement for check in result.checks if not check.holds] == []
        assert len(result.checks) == 5
        assert result.outcomes["dead-lettered"] == 75
        assert (result.given_back, result.redelivered) == ({}, 0)
        reasons = Counter[str]()
        for (reason, _), count in result.dead_letters.items():
            reasons[reason] += count
        assert reasons == history.expected.poison_by_reason
        assert set(orders.mapping.stats.batches_by_reason) == {"success"}


def environments_killed_at_random_moments(directory: Path) -> None:
    rng = random.Random(1)
    history = generate(600, seed=1, poison=0, duplicates=0.1)
    with orders_stack(directory, QUICK, SMALL_BATCHES, **PARAMETERS) as orders:
        # Longer writes, so that a kill mostly meets one.
        orders.admin.execute(
            "CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END$$;"
            "CREATE TRIGGER dawdle AFTER INSERT ON spillway.orders EXECUTE FUNCTION public.dawdle()"
        )
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
        orders.send(history.messages)
        # After the commit, a cold worker that has poison imports an SDK: a third of a second.
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


def postgresql_restarted_while_messages_flow(directory: Path) -> None:
    modes: tuple[StopMode, ...] = ("fast", "immediate", "fast")
    history = generate(900, seed=5, poison=0.02, duplicates=0.05)
    thirds = [history.messages[start : start + 300] for start in range(0, 900, 300)]
    with orders_stack(directory, QUICK, SMALL_BATCHES, **PARAMETERS) as orders:
        for third, mode in zip(thirds, modes, strict=True):
            before = orders.claimed()
            orders.send(third)
            until(lambda: orders.claimed() > before, "messages to flow")  # noqa: B023
            assert orders.in_queue() > 0
            orders.stack.postgres.restart(mode)
        orders.drain()
        orders.check(history)
        # Poison, where reconnecting left too little time for the dead-letter queue.
        assert set(orders.given_back()) <= {"unavailable", "poison"}


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
    first, second = generate(100, seed=7, poison=0, duplicates=0), generate(400, seed=7, poison=0, duplicates=0)
    assert first.messages != second.messages[:100]
    with orders_stack(directory, QUICK, **PARAMETERS) as orders:
        orders.send(first.messages)
        orders.drain()
        orders.check(first)
        password = urlsplit(orders.stack.worker_dsn).password
        orders.admin.execute("ALTER ROLE spillway_app PASSWORD 'changed behind the workers'' backs'")
        # A connection that is open outlives its password.
        orders.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'spillway_app'")
        orders.admin.execute("TRUNCATE spillway.orders, spillway.order_events")
        orders.send(second.messages)
        until(lambda: orders.outcome("misconfigured") >= 400, "everything to be given back")
        assert (orders.in_queue(), orders.claimed(), orders.mapping.stats.succeeded) == (400, 0, 100)
        orders.admin.execute(f"ALTER ROLE spillway_app PASSWORD '{password}'")
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
    postgresql_restarted_while_messages_flow,
    poison_stays_in_its_queue_while_the_dead_letter_queue_refuses_it,
    a_batch_killed_between_its_commit_and_its_report_changes_nothing_again,
    a_missing_function_is_never_the_messages_fault,
    a_changed_password_is_never_the_messages_fault,
    environments_killed_at_random_moments,
    a_batch_killed_while_it_writes_changed_nothing_and_comes_again,
]


@pytest.fixture(scope="module")
def faults(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """Those that were asked for, running."""
    wanted = {item.callspec.params.get("fault") for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(3) as pool:
        yield {
            fault.__name__: pool.submit(fault, tmp_path_factory.mktemp("fault")) for fault in FAULTS if fault in wanted
        }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_is_lost_or_applied_twice(fault: Callable[[Path], None], faults: dict[str, Future[None]]) -> None:
    faults[fault.__name__].result()


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
        letters = peek_all(client, orders.dead_letter_url)
        queue_arn = orders.mapping.config.queue_arn
    assert len(letters) == len(sent) == len(POISON)
    seen = set()
    for letter in letters:
        attributes = dict(letter["MessageAttributes"])
        if "spillway.dead-letter" in attributes:  # ten of its own: ours only fit as one ... which makes eleven
            reasons = json.loads(attributes.pop("spillway.dead-letter")["StringValue"])
        else:
            ours = [name for name in attributes if name.startswith("spillway.")]
            reasons = {name.removeprefix("spillway."): attributes.pop(name)["StringValue"] for name in ours}
        kind, body, own_attributes = sent[reasons["message-id"]]
        seen.add(kind)
        assert letter["Body"].encode() == body.encode(), kind
        assert attributes == own_attributes, kind
        assert reasons["reason"] == POISON[kind].reason, kind
        assert POISON[kind].detail in reasons["detail"], kind
        assert reasons["source-queue"] == queue_arn
        assert (reasons["worker"], reasons["receive-count"]) == ("orders", "1")
    assert seen == set(POISON)
