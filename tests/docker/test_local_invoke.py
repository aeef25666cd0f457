"""Every worker with every sample event in AWS's runtime container, through the RDS Proxy with IAM and TLS.

The same event through the same handler in this process, straight on PostgreSQL, says what must come of it
(tests/integration/test_samples.py holds that to the samples' README).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from spillway.samples import all_samples
from spillway.stack.metrics import MetricStore
from spillway.stack.template import REPOSITORY
from tests.conftest import drop_database, new_database
from tests.docker.conftest import SHELL, take_dead_letters
from tests.integration.test_samples import handled
from workers.migrate.runner import load, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.stack.local import LocalStack
    from tests.conftest import TestDatabase
    from tests.docker.conftest import Answer, Checkout, Variables

#: Those that a worker's README section shows; the broken bodies are in test_start_lambda.py.
SAMPLES = [
    (worker, sample.name)
    for worker, samples in all_samples().items()
    for sample in samples
    if sample.name.startswith(f"{worker}.")
]
OUTCOMES = ("Applied", "Stale", "Duplicate", "Rejected", "Redelivered")
#: By the clock, and what is computed with it (the audit log's hashes).
BY_THE_CLOCK = {"claimed_at", "recorded_at", "first_at", "last_at", "dropped_at", "hash", "previous_hash", "last_hash"}

Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="session")
def pristine(stack: LocalStack) -> str:
    """An empty database with the workers' schema; nobody connects to it, so it can be copied."""
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE pristine")
    with psycopg.connect(stack.postgres.dsn("pristine"), autocommit=True) as admin:
        migrate(admin, load())
    return "pristine"


@pytest.fixture
def target(stack: LocalStack, pristine: str) -> Iterator[str]:
    """An empty database for one sample."""
    name = new_database(stack.postgres, pristine)
    yield name
    drop_database(stack.postgres, name)


@pytest.mark.parametrize(("worker", "sample"), SAMPLES, ids=[sample for _, sample in SAMPLES])
def test_sample(
    *,
    worker: str,
    sample: str,
    target: str,
    built: Checkout,
    stack: LocalStack,
    functions: dict[str, str],
    variables: Variables,
    database: TestDatabase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Poison goes to the dead-letter queue, so nothing is given back; the rest becomes rows."""
    failed, counted = in_this_process(worker, sample, database, capsys)

    answer = built.invoke(functions[worker], sample, variables.write(DATABASE_NAME=target))

    assert answer.response == {"batchItemFailures": []}, answer.stderr
    assert outcomes_of(answer) == counted
    assert sorted(take_dead_letters(stack, worker)) == failed
    assert rows_of(stack.postgres.dsn(target)) == rows_of(database.dsn) != {}


@pytest.mark.parametrize(
    ("worker", "sample"),
    [(worker, sample) for worker, sample in SAMPLES if sample.endswith(("poison", "gap"))],
    ids=[sample for _, sample in SAMPLES if sample.endswith(("poison", "gap"))],
)
def test_without_a_dead_letter_queue_poison_is_returned(
    *,
    worker: str,
    sample: str,
    target: str,
    built: Checkout,
    functions: dict[str, str],
    variables: Variables,
    database: TestDatabase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed, _ = in_this_process(worker, sample, database, capsys)
    file = variables.write(DATABASE_NAME=target, DEAD_LETTER_QUEUE_URL="")
    answer = built.invoke(functions[worker], sample, file)
    returned = [failure["itemIdentifier"] for failure in answer.response["batchItemFailures"]]
    assert sorted(returned) == failed != [], answer.stderr


def test_with_the_credentials_of_the_shell(
    target: str, built: Checkout, functions: dict[str, str], variables: Variables
) -> None:
    """Which is what functions get from SAM where there are any."""
    answer = built.invoke(functions["orders"], "orders.single", variables.write(DATABASE_NAME=target), **SHELL)
    assert answer.response == {"batchItemFailures": []}, answer.stderr
    assert outcomes_of(answer)["Applied"] == 1


def test_credentials_that_the_proxy_does_not_know_are_refused(
    target: str, built: Checkout, stack: LocalStack, functions: dict[str, str], variables: Variables
) -> None:
    """So the others really were checked; and a whole batch is returned."""
    file = variables.write(DATABASE_NAME=target)
    answer = built.invoke(functions["orders"], "orders.batch", file, **SHELL | {"AWS_SECRET_ACCESS_KEY": "another"})
    event = json.loads((REPOSITORY / "events/samples/orders.batch.json").read_text())
    everything = {record["messageId"] for record in event["Records"]}
    assert {failure["itemIdentifier"] for failure in answer.response["batchItemFailures"]} == everything, answer.stderr
    assert rows_of(stack.postgres.dsn(target)) == {}


def test_no_session_was_pinned(stack: LocalStack) -> None:
    """After everything above."""
    assert stack.proxy is not None
    snapshot = stack.proxy.snapshot()
    assert snapshot.cloudwatch["ClientConnectionsSetupSucceeded"] >= 1
    assert not snapshot.pinned_sessions_total, snapshot.pins


def in_this_process(
    worker: str, sample: str, database: TestDatabase, capsys: pytest.CaptureFixture[str]
) -> tuple[list[str], dict[str, float]]:
    """Ids of the messages that are poison, sorted, and how many records had which outcome."""
    event = json.loads((REPOSITORY / f"events/samples/{sample}.json").read_text())
    response, counted = handled(worker, event, database, capsys)
    failed = sorted(failure["itemIdentifier"] for failure in response["batchItemFailures"])
    return failed, {name: counted.sum(name) for name in OUTCOMES}


def outcomes_of(answer: Answer) -> dict[str, float]:
    counted = MetricStore()
    for line in answer.stderr.splitlines():
        counted.feed(line)
    return {name: counted.sum(name) for name in OUTCOMES}


def rows_of(dsn: str) -> Rows:
    """What the tables with any rows hold, apart from what follows the clock."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        columns = owner.execute(
            "SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position) "
            "FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name) "
            "WHERE table_schema = 'spillway' AND table_type = 'BASE TABLE' "
            "GROUP BY table_name ORDER BY table_name"
        ).fetchall()
        found: Rows = {}
        for table, names in columns:
            kept = [name for name in names if name not in BY_THE_CLOCK]
            query = sql.SQL("SELECT {} FROM spillway.{}").format(
                sql.SQL(", ").join(map(sql.Identifier, kept)), sql.Identifier(table)
            )
            rows = owner.execute(query).fetchall()
            if rows and "migration" not in table:
                found[table] = sorted(rows, key=repr)
        return found
