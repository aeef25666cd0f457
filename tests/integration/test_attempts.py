"""What kills its environment is found and left out; an outage, however long, is nobody's fault."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.histories.orders import generate
from tests.conftest import BOTH_ROUTES
from tests.integration.test_database import settings
from tests.unit.fakes import LETTERS, QUEUE, FakeSqs, record
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.attempts import BEGIN, CRASH_LIMIT, END, SOLO_MAX
from workers.runtime.database import Database
from workers.runtime.sqs import Sqs
from workers.runtime.worker import build_processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import TestDatabase
    from workers.runtime.bulk import BulkBatchProcessor

BODIES = [message.body for message in generate(120, seed=44, duplicates=0, poison=0).messages]
KILLER = 17


class Killed(BaseException):
    """The environment is gone in the middle of a record: nothing after it runs."""


class Environment:
    """A worker in an environment of its own, with the real database and a queue that keeps what it is told.

    `visibility_s` is its queue's visibility timeout; without one nothing counts as having come back early.
    """

    def __init__(self, database: TestDatabase, sqs: FakeSqs, visibility_s: int = 30) -> None:
        self.connection = Database(settings(database))
        self.store: Any = self.connection
        changes = {"queue_url": QUEUE, "queue_visibility_timeout": visibility_s, "dead_letter_queue_url": LETTERS}
        self.processor: BulkBatchProcessor = build_processor(
            "orders", OrderEvent, settings(database, **changes), _Through(self), sqs=Sqs(lambda: sqs)
        )
        self.processor._writer._calls._sleep = lambda _: None

    def run(self, records: list[dict[str, Any]], handler: Callable[[Any], Any] = to_row) -> list[str]:
        """The ids of what was given back."""
        with self.processor(records, handler):
            self.processor.process()
        return [one["itemIdentifier"] for one in self.processor.response()["batchItemFailures"]]


class _Through:
    """The environment's store, whichever it has at the moment."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    @property
    def connected(self) -> bool:
        return bool(self._environment.store.connected)

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        return self._environment.store.fetch(statement, parameter)  # type: ignore[no-any-return]

    def discard(self) -> None:
        self._environment.store.discard()


class Outage:
    """A database that is lost after `calls` more calls: for `error`, until it is taken away again."""

    connected = True

    def __init__(self, connection: Database, calls: int, error: Exception) -> None:
        self.connection = connection
        self.calls = calls
        self.error = error

    def fetch(self, statement: str, parameter: bytes) -> list[tuple[Any, ...]]:
        if self.calls == 0:
            raise self.error
        self.calls -= 1
        return self.connection.fetch(statement, parameter)

    def discard(self) -> None:
        pass


@pytest.fixture
def sqs() -> FakeSqs:
    return FakeSqs()


@pytest.fixture
def new(database: TestDatabase, sqs: FakeSqs) -> Iterator[Callable[..., Environment]]:
    made: list[Environment] = []

    def environment(**more: Any) -> Environment:
        made.append(Environment(database, sqs, **more))
        return made[-1]

    yield environment
    for one in made:
        one.connection.discard()


def batch(count: int, receives: int = 1, group: str = "") -> list[dict[str, Any]]:
    return [record(number, body, receives, group) for number, body in enumerate(BODIES[:count])]


def killer(event: Any) -> Any:
    if str(event.id) == json.loads(BODIES[KILLER])["id"]:
        raise Killed
    return to_row(event)


def remembered(database: TestDatabase) -> dict[str, int]:
    with database.owner() as owner:
        return dict(owner.execute("SELECT message_id, attempts FROM spillway.attempts").fetchall())


def claimed(database: TestDatabase) -> int:
    with database.owner() as owner:
        row = owner.execute("SELECT count(*) FROM spillway.order_events").fetchone()
        assert row is not None
        return int(row[0])


@BOTH_ROUTES
@pytest.mark.parametrize("count", [SOLO_MAX, 100], ids=["few", "many"])
def test_a_killer_takes_nobody_along_for_long_and_is_dead_lettered_alone(
    database: TestDatabase, sqs: FakeSqs, new: Callable[..., Environment], count: int
) -> None:
    """Each receive in a new environment, because the one before is dead. What is done does not come again."""
    left = batch(count)
    deaths = 0
    for receives in range(1, 20):
        for one in left:
            one["attributes"]["ApproximateReceiveCount"] = str(receives)
        environment = new()
        try:
            environment.run(left, killer)
        except Killed:
            deaths += 1
        else:
            break
        done = claimed(database)
        if receives >= 3 + (count > SOLO_MAX):
            assert done >= KILLER, "those tried before it are safe from the first time that they are tried alone"
    # Twice with everybody, once more in company if there were too many to be tried alone, and three times alone.
    assert deaths == 2 + (count > SOLO_MAX) + CRASH_LIMIT
    assert {message_id: reason for message_id, (reason, _) in sqs.reasons.items()} == {f"m{KILLER}": "crashed"}
    assert claimed(database) == count - 1
    assert set(remembered(database)) <= {f"m{KILLER}"}


def test_a_fifo_group_waits_for_its_killer_and_then_goes_on(
    database: TestDatabase, sqs: FakeSqs, new: Callable[..., Environment]
) -> None:
    records = [record(number, BODIES[number], 5, "a") for number in range(10, 20)]
    records[2] = record(12, BODIES[12], 1, "b")
    for _ in range(CRASH_LIMIT):
        with pytest.raises(Killed):
            new().run(records, killer)
        # Those before it in its group, and the other group; nobody behind it. They are not deleted, and come again.
        assert claimed(database) == 7
        assert sqs.letters == []
    sqs.refuses = {f"m{KILLER}"}
    assert new().run(records, killer) == ["m17", "m18", "m19"]
    assert claimed(database) == 7, "it is still there, so nobody overtakes it"
    sqs.refuses = set()
    assert new().run(records, killer) == []
    assert sqs.reasons == {f"m{KILLER}": ("crashed", "")}
    assert claimed(database) == 9


@pytest.mark.parametrize("count", [SOLO_MAX, 100], ids=["few", "many"])
@pytest.mark.parametrize("calls", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("server closed the connection unexpectedly"),
        psycopg.errors.TooManyConnections("Timed-out waiting to acquire database connection."),
    ],
    ids=["unavailable", "saturated"],
)
def test_an_outage_at_any_moment_is_nobodys_fault(  # noqa: PLR0917
    database: TestDatabase,
    sqs: FakeSqs,
    new: Callable[..., Environment],
    count: int,
    calls: int,
    error: Exception,
) -> None:
    """Every receive meets another environment, and the database is lost after `calls` of each one's statements."""
    records = batch(count)
    for receives in range(3, 4 + CRASH_LIMIT):
        for one in records:
            one["attributes"]["ApproximateReceiveCount"] = str(receives)
        environment = new(visibility_s=211)
        environment.store = Outage(environment.connection, calls, error)
        environment.run(records)
    assert new(visibility_s=211).run(records) == []
    assert sqs.letters == []
    assert claimed(database) == count


def test_an_attempt_whose_end_could_not_be_said_is_crossed_out_with_the_next_batch(
    database: TestDatabase, new: Callable[..., Environment]
) -> None:
    """Without the help of time: here nothing counts as having come back early."""
    environment = new()
    environment.store = Outage(environment.connection, 1, psycopg.OperationalError("lost"))
    assert environment.run(batch(5, receives=3)) == [f"m{number}" for number in range(5)]
    assert remembered(database) == {"m0": 1}
    environment.store = environment.connection
    assert environment.run(batch(1)) == []
    assert remembered(database) == {}


def call(database: TestDatabase, statement: str, message: Any) -> list[Any]:
    connection = Database(settings(database))
    try:
        return connection.fetch(statement, json.dumps(message).encode())
    finally:
        connection.discard()


def begin(database: TestDatabase, *message_ids: str, **more: Any) -> dict[str, int | None]:
    message = {"worker": "orders", "message_ids": message_ids, "alone": True, "ended": [], "survived_s": 0} | more
    return dict(call(database, BEGIN, message))


@BOTH_ROUTES
def test_begin_and_end(database: TestDatabase) -> None:
    assert begin(database, "a", "b", "b", alone=False) == {"a": None, "b": None}
    assert begin(database, "a", "c", alone=False) == {"a": 0, "c": None}
    assert begin(database, "a") == {"a": 0}
    assert begin(database, "a") == {"a": 1}
    assert begin(database, "a", alone=False) == {"a": 2}
    assert begin(database, "a", ended=["b", "nobody"]) == {"a": 2}
    assert begin(database, "a", ended=["a"]) == {"a": None}
    assert remembered(database) == {"a": 1, "c": 0}
    assert call(database, END, ["a", "b", "c"]) == [(2,)]
    assert begin(database, "a", alone=False) == {"a": None}


def test_what_comes_back_before_it_can_have_been_killed_was_not(database: TestDatabase) -> None:
    """Ages are made by hand: 100 s ago is 'early' for a visibility timeout of 176 s, 200 s ago is not."""

    def ago(seconds: int) -> None:
        with database.owner() as owner:
            owner.execute("UPDATE spillway.attempts SET last_at = now() - make_interval(secs => %s)", (seconds,))

    begin(database, "a")
    ago(200)
    assert begin(database, "a", survived_s=176) == {"a": 1}
    ago(100)
    assert begin(database, "a", survived_s=176, alone=False) == {"a": None}
    assert remembered(database) == {"a": 0}
    ago(200)
    assert begin(database, "a", survived_s=176) == {"a": 0}
    ago(100)
    assert begin(database, "a", survived_s=176) == {"a": None}
    assert remembered(database) == {"a": 1}


def test_batches_that_share_messages_do_not_deadlock(database: TestDatabase) -> None:
    """As after SQS has handed messages out twice."""
    ids = [f"m{number}" for number in range(200)]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            connection = Database(settings(database))
            mine = ids[seed:] + ids[:seed]
            for turn in range(15):
                message = {
                    "worker": "orders",
                    "message_ids": mine if seed % 2 else mine[::-1],
                    "alone": turn % 3 == 0,
                    "ended": mine[::2] if turn % 2 else [],
                    "survived_s": 0,
                }
                connection.fetch(BEGIN, json.dumps(message).encode())
                connection.fetch(END, json.dumps(mine).encode())
            connection.discard()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed * 37,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_worker_touches_the_memory_through_its_functions_only(database: TestDatabase) -> None:
    with database.worker() as worker, pytest.raises(psycopg.errors.InsufficientPrivilege):
        worker.execute("SELECT FROM spillway.attempts")
