"""How many events a second go from SQS record to committed row, and what do rivals reach with the same events?

    python -m bench.write_path [--quick] [--json FILE]

(a) Spillway: the orders handler as Lambda calls it, telemetry included, from the parsed event to the batch response.
(b) Record at a time: Powertools' BatchProcessor doing the same work, a transaction per record (record_at_a_time.py).
(c) The bare function: the statement of (a) alone, with parameters made beforehand and answers that nobody decodes.

Each rival has a database of its own on one server (fsync on) and gets the very same events. A round is as many
messages as one full 6 MB event holds, cut into batches of each size; (b) does only the first batches of a round, or it
would take all day. Tables start empty at each batch size, so every size meets the same growth. The first round warms
up; after the last one, rows and claims of each database must equal the sequential reference.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from aws_lambda_powertools.utilities.batch import process_partial_response

from bench import events
from bench.common import (
    BenchDatabase,
    databases,
    environment,
    number,
    paired_ratio,
    parse_arguments,
    postgres_version,
    print_environment,
    print_goal,
    print_table,
    write_json,
)
from bench.record_at_a_time import RecordAtATime, use_fast_json
from spillway.histories.orders import read_rows, reference_rows
from spillway.stack.template import REPOSITORY
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.database import Database, JsonText, JsonTextDumper
from workers.runtime.envelope import EventDecoder
from workers.runtime.worker import build_processor, statement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psycopg

FULL = 0  # the batch size that stands for "as many as a 6 MB event holds"
MEMORY_GOAL_MB = 256
NAMES = {"a": "(a) Spillway", "b": "(b) record at a time", "c": "(c) bare function"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `rival_messages` and `rival_rounds`: what (b) gets by batch size."""

    rounds: int
    sizes: tuple[int, ...]
    rival_messages: dict[int, int]
    rival_rounds: dict[int, int]
    round_messages: int | None = None


FULL_PLAN = Plan(15, (10, 100, 1_000, FULL), {10: 500, 100: 500, 1_000: 1_000, FULL: 10_000}, {FULL: 3})
QUICK_PLAN = Plan(1, (10, 100, FULL), {10: 50, 100: 100, FULL: 200}, {}, round_messages=200)


class Context:
    """What the handler reads of Lambda's context object."""

    aws_request_id = "5f5e1c5a-0000-4000-8000-000000000000"

    def get_remaining_time_in_millis(self) -> int:
        """Time enough for a write on a connection that has to be opened first."""
        return 60_000


class Rival(Protocol):
    """One way to write. `prepare` is not timed, `run` is, `check` says whether the batch was written."""

    database: BenchDatabase

    def prepare(self, event: bytes) -> Any: ...

    def run(self, batch: Any) -> Any: ...

    def check(self, batch: Any, answer: Any) -> None: ...


class Spillway:
    """The orders worker."""

    def __init__(self, database: BenchDatabase) -> None:
        self.database = database
        settings = database.settings()
        self._processor = build_processor("orders", OrderEvent, settings, Database(settings))
        self._context: Any = Context()

    def prepare(self, event: bytes) -> Any:
        return json.loads(event)  # as awslambdaric does before it calls the handler

    def run(self, batch: Any) -> Any:
        return process_partial_response(
            event=batch, record_handler=to_row, processor=self._processor, context=self._context
        )

    def check(self, _batch: Any, answer: Any) -> None:
        assert answer == {"batchItemFailures": []}, answer


class PowertoolsRecords:
    """The record handler."""

    def __init__(self, database: BenchDatabase) -> None:
        self.database = database
        with database.owner() as owner:  # its own database: the others' role stays without these rights
            owner.execute("GRANT SELECT, INSERT, UPDATE ON spillway.orders, spillway.order_events TO spillway_worker")
        self._connection = database.worker()
        use_fast_json(self._connection)
        self._handler = RecordAtATime(self._connection).handler
        self._context = Context()

    def prepare(self, event: bytes) -> Any:
        return json.loads(event)

    def run(self, batch: Any) -> Any:
        return self._handler(batch, self._context)

    def check(self, _batch: Any, answer: Any) -> None:
        assert answer == {"batchItemFailures": []}, answer


class BareFunction:
    """The statement alone: what PostgreSQL, libpq and the way between them cost."""

    def __init__(self, database: BenchDatabase) -> None:
        self.database = database
        self._connection: psycopg.Connection[Any] = database.worker()
        self._connection.prepare_threshold = None
        self._connection.adapters.register_dumper(JsonText, JsonTextDumper)
        self._statement = statement("orders")
        self._decode = EventDecoder[Any](OrderEvent).decode

    def prepare(self, event: bytes) -> JsonText:
        decoded = [self._decode(record["body"]) for record in json.loads(event)["Records"]]
        rows = {one.id: to_row(one) for one in decoded}  # a repeated event is in the parameter once, as in (a)
        return JsonText(msgspec.json.encode(list(rows.values())))

    def run(self, batch: JsonText) -> Any:
        return self._connection.execute(self._statement, (batch,), binary=True)

    def check(self, batch: JsonText, answer: Any) -> None:
        assert answer.rowcount == len(msgspec.json.decode(batch.text, type=list[msgspec.Raw]))
        answer.close()


@dataclass(slots=True)
class Series:
    """Seconds per event of one rival at one batch size, by round, and how many messages it was given."""

    seconds: list[float]
    messages: list[str]

    @property
    def rate(self) -> float:
        """Events a second, the median of the rounds."""
        return 1 / statistics.median(self.seconds)


class Rounds:
    """The messages of all rounds, and their records as Lambda would deliver them."""

    def __init__(self, plan: Plan, seed: int = 1) -> None:
        count = (plan.rounds + 1) * 6_000  # more than fit: a record is never as small as a 6,000th of 6 MB
        if plan.round_messages is not None:
            count = (plan.rounds + 1) * plan.round_messages
        texts = events.bodies(count, seed)
        encoded = list(events.records(texts, seed))
        self.texts: list[list[str]] = []
        self.records: list[list[bytes]] = []
        # The smallest of all rounds, so that each round is exactly one full event long.
        size = plan.round_messages or min(
            events.full_count(encoded[start:]) for start in range(0, plan.rounds * 6_000, 500)
        )
        self.size = size
        for start in range(0, (plan.rounds + 1) * size, size):
            self.texts.append(texts[start : start + size])
            self.records.append(encoded[start : start + size])


def measure(plan: Plan, rounds: Rounds, rivals: dict[str, Rival]) -> dict[int, dict[str, Series]]:
    """All rivals at all sizes; verified. Standard output goes nowhere meanwhile."""
    measured: dict[int, dict[str, Series]] = {}
    for size in plan.sizes:
        for rival in rivals.values():
            rival.database.empty()
        measured[size] = {name: Series([], []) for name in rivals}
        for index in range(plan.rounds + 1):
            names = list(rivals)
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                count = rounds.size
                if name == "b":
                    if index > plan.rival_rounds.get(size, plan.rounds):
                        continue
                    count = min(count, plan.rival_messages[size])
                    # A warm-up round is to warm up, not to wait for.
                    count = count if index else min(count, 200)
                series = measured[size][name]
                seconds = _round(rivals[name], rounds.records[index][:count], size or rounds.size)
                series.messages += rounds.texts[index][:count]
                if index:
                    series.seconds.append(seconds / count)
        for name, rival in rivals.items():
            verify(rival.database, measured[size][name].messages)
    return measured


def _round(rival: Rival, records: Sequence[bytes], size: int) -> float:
    """Seconds that `rival` spends on these records in batches of `size`."""
    spent = 0.0
    for start in range(0, len(records), size):
        batch = rival.prepare(events.event(records[start : start + size]))
        gc.collect()  # what the benchmark itself left behind is not this batch's to clean up
        started = time.perf_counter()
        answer = rival.run(batch)
        spent += time.perf_counter() - started
        rival.check(batch, answer)
    return spent


def verify(database: BenchDatabase, messages: Sequence[str]) -> None:
    """A benchmark that writes wrong rows is worthless."""
    decode = EventDecoder[Any](OrderEvent).decode
    decoded = [decode(text) for text in messages]
    with database.owner() as owner:
        rows = read_rows(owner)
        claims = owner.execute("SELECT count(*) FROM spillway.order_events").fetchone()
    assert rows == reference_rows(decoded), f"{database.name}: the rows differ from the reference"
    assert claims == (len({one.id for one in decoded}),), f"{database.name}: wrong number of claimed events"


@contextmanager
def silenced() -> Iterator[None]:
    """Standard output to nowhere, at the descriptor: logs and metrics cost what writing to Lambda's pipe costs."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def peak_memory(database: BenchDatabase, rounds: Rounds) -> dict[str, float]:
    """MB of a process of its own that handles the first rounds as single events (peak_memory.py)."""
    database.empty()
    settings = database.settings()
    variables = {
        "DATABASE_HOST": settings.host,
        "DATABASE_PORT": settings.port,
        "DATABASE_NAME": settings.database,
        "DATABASE_USER": settings.user,
        "DATABASE_PASSWORD": settings.password,
        "DATABASE_AUTH": settings.auth,
        "DATABASE_SSLMODE": settings.sslmode,
        "DATABASE_CONNECT_TIMEOUT": 5,
        "DATABASE_BORROW_TIMEOUT": 0,
        "DATABASE_STATEMENT_TIMEOUT": 20,
        "FUNCTION_TIMEOUT": 35,
        "AWS_REGION": "us-east-1",
    }
    payload = b"\n".join(events.event(batch) for batch in (rounds.records * 3)[:3])
    done = subprocess.run(
        [sys.executable, "-m", "bench.peak_memory"],
        input=payload,
        env=os.environ | {name: str(value) for name, value in variables.items()},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    """Measure, print, and leave nothing running."""
    arguments = parse_arguments(__doc__)
    plan = QUICK_PLAN if arguments.quick else FULL_PLAN
    rounds = Rounds(plan)
    # What was made here lives to the end; no collection during a measurement is to look through it.
    gc.freeze()
    with databases("spillway", "records", "bare") as (one, two, three):
        rivals: dict[str, Rival] = {"a": Spillway(one), "b": PowertoolsRecords(two), "c": BareFunction(three)}
        with silenced():
            measured = measure(plan, rounds, rivals)
        memory = peak_memory(one, rounds)
        described = environment(postgres=postgres_version(one))
    report(measured, memory, rounds, described)
    write_json(arguments.json, described, {"memory": memory, "sizes": numbers(measured, rounds)})


def numbers(measured: dict[int, dict[str, Series]], rounds: Rounds) -> dict[str, Any]:
    """All rounds in microseconds an event, by batch size and rival."""
    return {
        str(size or rounds.size): {
            NAMES[name]: [seconds * 1e6 for seconds in series.seconds] for name, series in by_name.items()
        }
        for size, by_name in measured.items()
    }


def report(
    measured: dict[int, dict[str, Series]], memory: dict[str, float], rounds: Rounds, described: dict[str, str]
) -> None:
    """Print the tables and the goals."""
    print("## Write path\n")
    print_environment(described)
    head = ["batch", *(f"{name}, events/s" for name in NAMES.values()), "(a)/(b)", "(a)/(c)", "(a), us/event"]
    rows = []
    ratios: dict[int, tuple[float, float]] = {}
    for size, series in measured.items():
        a, b, c = (series[name] for name in "abc")
        ratios[size] = paired_ratio(b.seconds, a.seconds), paired_ratio(c.seconds, a.seconds)
        label = f"{size or rounds.size:,}" + ("" if size else " (6 MB)")
        rates = [number(one.rate) for one in (a, b, c)]
        rows.append(
            [label, *rates, f"{number(ratios[size][0])} x", f"{ratios[size][1]:.2f} x", number(1e6 / a.rate)],
        )
    print_table(head, rows)
    print("Rates are medians of the rounds, ratios are medians of each round's ratio.\n")
    goal_size = 1_000 if 1_000 in measured else max(measured)
    faster, share = ratios[goal_size]
    print_goal(
        f"(a) over (b) at batch {goal_size or rounds.size:,}", ">= 20 x", f"{number(faster)} x", reached=faster >= 20
    )
    print_goal(
        f"(a) over (c) at batch {goal_size or rounds.size:,}", ">= 0.75 x", f"{share:.2f} x", reached=share >= 0.75
    )
    base = measured[100]["a"].rate
    changes = [(base / measured[size]["a"].rate - 1) * 100 for size in measured if size == FULL or size > 100]
    worst = max(changes, key=abs)
    print_goal(
        "(a), cost per event from batch 100 to a full event",
        "within +-30 %",
        f"{worst:+.0f} % at most" + (" (larger batches are cheaper)" if worst < 0 else ""),
        reached=abs(worst) <= 30,
    )
    peak = memory["peak_mb"]
    print_goal(
        f"peak memory, {rounds.size:,} messages, 3 times ({number(memory['imported_mb'])} MB after import)",
        f"< {MEMORY_GOAL_MB} MB",
        f"{number(peak)} MB",
        reached=peak < MEMORY_GOAL_MB,
    )


if __name__ == "__main__":
    main()
