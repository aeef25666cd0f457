"""How many messages a second does the whole local stack do on this machine, and where does the time go?

    python -m bench.stack [--quick] [--json FILE]

Each run starts the stack anew, sends the demo's history (5 % twice, 1 % broken), waits until every message is done,
and checks the result against the sequential reference. The clock runs from the first send to the last message done.
Runs alternate between a sender at full speed and one that stays at most DEPTH messages ahead of the workers. The rival
is the SQS server alone: a loop of boto3 calls that sends, receives and deletes the same messages, ten at a time, with
nothing behind it.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from bench.common import (
    environment,
    number,
    parse_arguments,
    print_environment,
    print_goal,
    print_table,
    write_json,
)
from bench.cpu import OTHER, CpuMeter
from spillway.aws import sqs_client
from spillway.demo import examine
from spillway.histories.orders import generate
from spillway.packing import MAX_BATCH_ENTRIES, Prepared
from spillway.producer import Producer
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.postgres_directory import MAJOR_VERSION
from spillway.stack.processes import Processes
from spillway.stack.sqs_server import MinistackServer
from spillway.stack.template import REGION
from workers.orders.contract import OrderEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spillway.histories.orders import OrdersHistory

GOAL = 700
#: How far the throttled sender may be ahead of the workers: two batches waiting for every one that is being written.
DEPTH = 2_000
STALLED_S = 90.0
TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """One run: messages a second, and CPU seconds by process."""

    rate: float
    seconds: float
    cpu: dict[str, float]


class Sender:
    """Sends a history from a thread, as the demo does, at most `depth` messages ahead of what is done."""

    def __init__(self, stack: LocalStack, history: OrdersHistory, depth: int | None) -> None:
        queue, _ = stack.workers()["orders"]
        self._stack = stack
        self._bodies = [Prepared.raw(message.body) for message in history.messages]
        self._depth = depth
        self._producer = Producer(stack.sqs_client(), stack.queue_urls[queue], OrderEvent, concurrency=2)
        self._thread = threading.Thread(target=self._send, name="sender", daemon=True)
        self._given_up = threading.Event()
        self.sent = 0
        self.failure: str | None = None

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send while the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._given_up.set()
            self._thread.join()

    def _send(self) -> None:
        try:
            for result in self._producer.stream(self._paced()):
                if result.error is not None:
                    self.failure = f"{result.error.code}: {result.error.message}"
                    return
                self.sent += 1
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    def _paced(self) -> Iterator[Prepared]:
        for index, body in enumerate(self._bodies):
            while self._depth is not None and index - done(self._stack) >= self._depth:
                if self._given_up.wait(TICK_S):
                    return
            if self._given_up.is_set():
                return
            yield body


def done(stack: LocalStack) -> int:
    """Messages that the workers are finished with."""
    return sum(mapping.succeeded for mapping in stack.stats())


def run_stack(history: OrdersHistory, depth: int | None) -> Run:
    """The whole stack, once. Raises when a message gets lost, or nothing moves any more."""
    with Processes() as processes:
        stack = LocalStack(processes, StackOptions(workers=("orders",)))
        stack.start()
        try:
            sender = Sender(stack, history, depth)
            meter = CpuMeter()
            started = time.monotonic()
            with sender.sending():
                _wait(stack, sender, len(history.messages), meter)
                seconds = time.monotonic() - started
                cpu = meter.stop()
            _verify(stack, history, sender.sent)
        finally:
            stack.stop()
    return Run(len(history.messages) / seconds, seconds, cpu)


def _wait(stack: LocalStack, sender: Sender, total: int, meter: CpuMeter) -> None:
    moved_at, moved = time.monotonic(), -1
    while (now_done := done(stack)) < total:
        if sender.failure is not None:
            raise SystemExit(f"Sending failed: {sender.failure}")
        stack.check_alive()
        if now_done + sender.sent != moved:
            moved_at, moved = time.monotonic(), now_done + sender.sent
        if time.monotonic() - moved_at > STALLED_S:
            raise SystemExit(f"Nothing moved for {STALLED_S:.0f} s; the workers' log ends:\n{stack.log_tail()}")
        meter.sample()
        time.sleep(TICK_S)


def _verify(stack: LocalStack, history: OrdersHistory, sent: int) -> None:
    """A stack that loses messages may be as fast as it likes."""
    _, dead_letters = stack.workers()["orders"]
    with psycopg.connect(stack.dsn, autocommit=True) as admin:
        result = examine(
            history,
            sent=sent,
            metrics=stack.metrics,
            admin=admin,
            client=stack.client,
            dead_letter_url=stack.queue_urls[dead_letters],
        )
    broken = [check.statement for check in result.checks if not check.holds]
    if broken:
        raise SystemExit("The result is wrong:\n" + "\n".join(broken))


def run_queue_alone(history: OrdersHistory) -> Run:
    """The SQS server with nothing behind it: ten messages sent, received, deleted, and again."""
    with Processes() as processes, MinistackServer(processes) as server:
        client = sqs_client(server.endpoint_url, REGION)
        url = client.create_queue(QueueName="alone")["QueueUrl"]
        bodies = [message.body for message in history.messages]
        meter = CpuMeter()
        started = time.monotonic()
        for start in range(0, len(bodies), MAX_BATCH_ENTRIES):
            batch = bodies[start : start + MAX_BATCH_ENTRIES]
            client.send_message_batch(
                QueueUrl=url,
                Entries=[{"Id": str(index), "MessageBody": body} for index, body in enumerate(batch)],
            )
            received = client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=MAX_BATCH_ENTRIES, AttributeNames=["All"]
            )["Messages"]
            assert len(received) == len(batch)
            client.delete_message_batch(
                QueueUrl=url,
                Entries=[
                    {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]}
                    for index, message in enumerate(received)
                ],
            )
            meter.sample()
        seconds = time.monotonic() - started
        return Run(len(bodies) / seconds, seconds, meter.stop())


def main() -> None:
    """Measure, print, and leave nothing running."""
    arguments = parse_arguments(__doc__)
    messages, repeats = (400, 1) if arguments.quick else (20_000, 3)
    throttled = f"stack, sender at most {DEPTH:,} ahead"
    runs: dict[str, list[Run]] = {"stack, sender at full speed": [], throttled: [], "SQS server alone": []}
    for index in range(repeats):
        history = generate(messages, seed=index + 1)
        rivals = {
            "stack, sender at full speed": lambda: run_stack(history, None),  # noqa: B023  (called in this round)
            throttled: lambda: run_stack(history, DEPTH),  # noqa: B023
            "SQS server alone": lambda: run_queue_alone(history),  # noqa: B023
        }
        names = list(rivals)
        for name in names[index:] + names[:index]:
            if arguments.quick and name == throttled:
                continue  # too few messages for it to make a difference
            runs[name].append(rivals[name]())
    runs = {name: found for name, found in runs.items() if found}
    described = environment("boto3", "ministack", "awslambdaric", postgres=f"{MAJOR_VERSION} (fsync on)")
    report(runs, messages, described)
    numbers = {
        name: [{"rate": run.rate, "seconds": run.seconds, "cpu": run.cpu} for run in found]
        for name, found in runs.items()
    }
    write_json(arguments.json, described, numbers)


def report(runs: dict[str, list[Run]], messages: int, described: dict[str, str]) -> None:
    """Print the tables and the goal."""
    print("## The local stack\n")
    print_environment(described)
    rates = {name: [run.rate for run in found] for name, found in runs.items()}
    alone = rates["SQS server alone"]
    print_table(
        [f"{messages:,} messages", "messages/s, median", "lowest", "highest", "of the SQS server alone"],
        [
            [
                name,
                number(statistics.median(found)),
                number(min(found)),
                number(max(found)),
                f"{statistics.median(one / other for one, other in zip(found, alone, strict=True)):.2f} x",
            ]
            for name, found in rates.items()
        ],
    )
    cores = len(os.sched_getaffinity(0))
    print(f"Where the time goes: CPU seconds, and their share of {cores} cores for the whole run (medians).\n")
    total: Counter[str] = Counter()
    for run in (run for found in runs.values() for run in found):
        total.update(run.cpu)
    processes = [process for process, seconds in total.most_common() if seconds >= 0.1 or process != OTHER]
    print_table(
        ["", *processes, "all", "wall time, s"],
        [
            [
                name,
                *(_share(found, [process], cores) for process in processes),
                _share(found, processes, cores),
                number(statistics.median(run.seconds for run in found)),
            ]
            for name, found in runs.items()
        ],
    )
    best = statistics.median(rates["stack, sender at full speed"])
    print_goal("the whole stack", f">= {GOAL} messages/s", f"{number(best)} messages/s", reached=best >= GOAL)


def _share(found: Sequence[Run], processes: Sequence[str], cores: int) -> str:
    spent = [sum(run.cpu.get(process, 0.0) for process in processes) for run in found]
    share = statistics.median(one / (run.seconds * cores) for one, run in zip(spent, found, strict=True))
    return f"{statistics.median(spent):.1f} s ({share:.0%})"


if __name__ == "__main__":
    main()
