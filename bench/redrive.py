"""How fast does a redrive move dead letters, against what the SQS server itself can do, and does its memory stay flat?

    python -m bench.redrive [--quick] [--json FILE]

(a) is `spillway dlq redrive`'s engine, journal on disk (synchronous=FULL) and without canaries, from one queue of the
local stack's SQS server to another. (b) is the server's own rate: the same number of threads, on the same messages,
receive ten, send ten, delete ten, and nothing else. They alternate, on a server and with queues of their own. Memory is
that of a process of its own, which redrives a small and a large queue.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.common import (
    environment,
    number,
    paired_ratio,
    parse_arguments,
    print_environment,
    print_goal,
    print_table,
    write_json,
)
from bench.peak_memory import status_mb
from spillway.aws import sqs_client
from spillway.dlq.filters import Filter
from spillway.dlq.holding import Holder
from spillway.dlq.journal import Journal
from spillway.dlq.pieces import Sender
from spillway.dlq.redrive import THREADS, Redrive
from spillway.dlq.verdicts import Trials
from spillway.stack.processes import Processes
from spillway.stack.sqs_server import MinistackServer
from spillway.stack.template import REGION
from workers.runtime.dead_letters import ATTRIBUTE, REASON

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

GOAL = 0.8
#: How much more memory a redrive of the large queue may take than one of the small, in MB.
GOAL_MB = 8.0
LARGE, SMALL, ROUNDS = 20_000, 2_000, 5
BODY_BYTES = 1_000


def fill(client: SQSClient, url: str, letters: int) -> None:
    """Dead letters of 1 KB, as a worker sends them."""
    for _ in range(0, letters, 10):
        client.send_message_batch(QueueUrl=url, Entries=[_entry(place) for place in range(10)])


def _entry(place: int) -> Any:
    event_id = str(uuid.uuid4())
    body = {"specversion": "1.0", "id": event_id, "type": "order.placed", "data": {"pad": "x" * (BODY_BYTES - 100)}}
    reasons = {
        "reason": "data",
        "detail": "constraint orders_total_not_negative",
        "sqlstate": "23514",
        "worker": "orders",
        "worker-version": "1.0.0+17",
        "source-queue": "arn:aws:sqs:us-east-1:000000000000:spillway-orders",
        "message-id": str(uuid.uuid4()),
        "event-id": event_id,
        "event-type": "order.placed",
        "first-seen": "2026-11-21T22:30:00.000Z",
        "last-seen": "2026-11-21T22:30:00.000Z",
        "receive-count": "1",
    }
    return {
        "Id": str(place),
        "MessageBody": json.dumps(body),
        "MessageAttributes": {
            ATTRIBUTE: {"DataType": "String", "StringValue": json.dumps(reasons)},
            REASON: {"DataType": "String", "StringValue": "data"},
        },
    }


def server_alone(client: SQSClient, source: str, destination: str, letters: int) -> float:
    """Letters per second of THREADS threads that receive, send and delete."""
    rounds = iter(range(letters // 10))
    lock = threading.Lock()

    def move() -> None:
        while True:
            with lock:
                if next(rounds, None) is None:
                    return
            messages = client.receive_message(
                QueueUrl=source,
                MaxNumberOfMessages=10,
                VisibilityTimeout=120,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )["Messages"]
            entries: Any = [{"Id": str(place), "MessageBody": one["Body"]} for place, one in enumerate(messages)]
            client.send_message_batch(QueueUrl=destination, Entries=entries)
            handles: Any = [
                {"Id": str(place), "ReceiptHandle": one["ReceiptHandle"]} for place, one in enumerate(messages)
            ]
            client.delete_message_batch(QueueUrl=source, Entries=handles)

    threads = [threading.Thread(target=move) for _ in range(THREADS)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return letters / (time.monotonic() - started)


def redrive(client: SQSClient, source: str, destination: str, letters: int) -> float:
    """Letters per second of a redrive."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-redrive-", dir="/var/tmp") as directory,
        Journal(Path(directory) / "journal.sqlite3") as journal,
        Holder(client, source) as holder,
    ):
        run = journal.begin(kind="redrive", fleet="bench", queue=source)
        work = Redrive(
            holder=holder,
            sender=Sender(client, destination, fifo=False),
            run=run,
            trials=Trials(None),
            selected=Filter(),
            arrived_by=datetime.now(UTC) + timedelta(minutes=1),
            fifo=False,
            to_fifo=False,
        )
        started = time.monotonic()
        tally = work.work()
        seconds = time.monotonic() - started
        run.finish(journal.counts(run.id))
        if tally.redriven != letters or not tally.complete:
            raise SystemExit(f"Expected {letters} letters to be redriven: {tally}")
    return letters / seconds


def queues(client: SQSClient, name: str) -> tuple[str, str]:
    """A source and a destination that nobody used before."""
    made = [
        client.create_queue(QueueName=f"{name}-{end}-{uuid.uuid4().hex[:8]}")["QueueUrl"] for end in ("dlq", "main")
    ]
    return made[0], made[1]


def measure(letters: int, rounds: int) -> dict[str, list[float]]:
    """Rates of both, in alternation, each on a server that starts empty."""
    rates: dict[str, list[float]] = {"redrive": [], "server alone": []}
    rivals = {"redrive": redrive, "server alone": server_alone}
    for index in range(rounds):
        names = list(rivals)
        for name in names[:: -1 if index % 2 else 1]:
            with Processes() as processes, MinistackServer(processes) as server:
                client = sqs_client(server.endpoint_url, REGION, connections=2 * THREADS)
                source, destination = queues(client, "bench")
                fill(client, source, letters)
                rates[name].append(rivals[name](client, source, destination, letters))
    return rates


def _memory(endpoint: str, letters: int, answer: Any) -> None:
    client = sqs_client(endpoint, REGION, connections=2 * THREADS)
    warm, goal = queues(client, "warm"), queues(client, "bench")
    fill(client, warm[0], 100)
    redrive(client, *warm, 100)
    fill(client, goal[0], letters)
    before = status_mb("VmRSS")
    redrive(client, *goal, letters)
    answer.put((before, status_mb("VmHWM")))


def memory(letters: int) -> tuple[float, float]:
    """A redriving process's memory before and at its peak, in MB."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with Processes() as processes, MinistackServer(processes) as server:
        process = context.Process(target=_memory, args=(server.endpoint_url, letters, answer))
        process.start()
        before, peak = answer.get()
        process.join()
    return before, peak


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(__doc__)
    large, small, rounds = (400, 200, 1) if arguments.quick else (LARGE, SMALL, ROUNDS)
    rates = measure(large, rounds)
    peaks = {letters: memory(letters) for letters in (small, large)}
    described = environment("boto3", "ministack")
    print("## Redrive\n")
    print_environment(described)
    ratio = paired_ratio(rates["redrive"], rates["server alone"])
    print_table(
        [f"{large:,} letters, {THREADS} threads", "letters/s, median", "lowest", "highest", "of the server alone"],
        [
            [
                name,
                number(statistics.median(found)),
                number(min(found)),
                number(max(found)),
                f"{paired_ratio(found, rates['server alone']):.2f} x",
            ]
            for name, found in rates.items()
        ],
    )
    print_table(
        ["process memory, MB", "before", "peak", "growth"],
        [
            [f"{letters:,} letters", number(before), number(peak), number(peak - before)]
            for letters, (before, peak) in peaks.items()
        ],
    )
    growth = peaks[large][1] - peaks[small][1]
    print_goal("redrive", f">= {GOAL} x the server alone", f"{ratio:.2f} x", reached=ratio >= GOAL)
    print_goal("memory", f"<= {GOAL_MB:.0f} MB more for {large:,}", f"{growth:.1f} MB", reached=growth <= GOAL_MB)
    write_json(
        arguments.json, described, {"rates": rates, "memory_mb": {str(key): value for key, value in peaks.items()}}
    )


if __name__ == "__main__":
    main()
