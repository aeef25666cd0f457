"""How soon is the throughput back after PostgreSQL crashed?

    python -m bench.recovery [--quick] [--json FILE]

The whole local stack, through the RDS Proxy, under a steady load of RATE events a second. After a while PostgreSQL is
restarted in immediate mode, which is a crash: it has to recover from its log. Events are counted by the moment at which
the database says they were claimed. Recovery is how long after the database accepts connections again the rate of a
window of WINDOW_S begins to be 90 % of the median before the crash. Every event must be applied at the end.
"""

from __future__ import annotations

import statistics
import threading
import time
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
from spillway.histories.orders import generate
from spillway.packing import Prepared
from spillway.producer import Producer
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.postgres_directory import MAJOR_VERSION
from spillway.stack.processes import Processes
from workers.orders.contract import OrderEvent

if TYPE_CHECKING:
    from spillway.histories.base import Message

RATE = 600
WINDOW_S = 2.0
STEP_S = 0.25
SHARE = 0.9
GOAL_S = 10.0
STALLED_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One crash: events a second before it, seconds without the database, seconds until the rate was back."""

    before: float
    down_s: float
    recovery_s: float


def run(seed: int, steady_s: float, after_s: float) -> Run:
    """One stack, one crash."""
    messages = generate(round(RATE * (steady_s + after_s)), seed=seed, poison=0, duplicates=0).messages
    with Processes() as processes:
        stack = LocalStack(processes, StackOptions(workers=("orders",), ramp=False))
        stack.start()
        try:
            sender = threading.Thread(target=_send, args=(stack, messages))
            sender.start()
            time.sleep(steady_s)
            crashed_at = time.time()
            stack.postgres.restart("immediate")
            up_at = time.time()
            sender.join()
            _drain(stack, len(messages))
            with psycopg.connect(stack.dsn, autocommit=True) as admin:
                found = admin.execute("SELECT extract(epoch FROM claimed_at)::float8 FROM spillway.order_events")
                claimed = sorted(row[0] for row in found)
        finally:
            stack.stop()
    # The first seconds start environments.
    begin = crashed_at - steady_s / 2
    before = statistics.median(_rates(claimed, begin, crashed_at))
    starts = [up_at + index * STEP_S for index in range(round(after_s * 4 / STEP_S))]
    back = next((at for at in starts if _rate(claimed, at) >= SHARE * before), None)
    if back is None:
        raise SystemExit(f"The rate never came back to {SHARE:.0%} of {before:,.0f} events/s.")
    return Run(before=before, down_s=up_at - crashed_at, recovery_s=back - up_at)


def _rates(claimed: list[float], begin: float, end: float) -> list[float]:
    return [_rate(claimed, begin + index * STEP_S) for index in range(int((end - begin - WINDOW_S) / STEP_S))]


def _rate(claimed: list[float], at: float) -> float:
    return sum(at <= moment < at + WINDOW_S for moment in claimed) / WINDOW_S


def _send(stack: LocalStack, messages: list[Message]) -> None:
    queue, _ = stack.workers()["orders"]
    producer = Producer(stack.sqs_client(), stack.queue_urls[queue], OrderEvent)
    started, step = time.monotonic(), RATE // 10
    for start in range(0, len(messages), step):
        time.sleep(max(0.0, started + start / RATE - time.monotonic()))
        for result in producer.send(Prepared.raw(message.body) for message in messages[start : start + step]):
            assert result.error is None, result.error


def _drain(stack: LocalStack, total: int) -> None:
    deadline = time.monotonic() + STALLED_S
    with psycopg.connect(stack.dsn, autocommit=True) as admin:
        while (row := admin.execute("SELECT count(*) FROM spillway.order_events").fetchone()) != (total,):
            stack.check_alive()
            if time.monotonic() > deadline:
                raise SystemExit(f"Not drained after {STALLED_S:.0f} s: {row} of {total:,}\n{stack.log_tail(3)}")
            time.sleep(0.2)


def main() -> None:
    """Measure, print, and leave nothing running."""
    arguments = parse_arguments(__doc__)
    repeats, steady_s, after_s = (1, 6.0, 6.0) if arguments.quick else (3, 20.0, 20.0)
    runs = [run(seed + 1, steady_s, after_s) for seed in range(repeats)]
    described = environment("boto3", postgres=MAJOR_VERSION)
    print("# After a crash of PostgreSQL\n")
    print_environment(described)
    print_table(
        ["run", "before, events/s", "database away, s", f"{SHARE:.0%} of it again after, s"],
        [
            [str(index), number(one.before), number(one.down_s), number(one.recovery_s)]
            for index, one in enumerate(runs, start=1)
        ],
    )
    worst = max(one.recovery_s for one in runs)
    print_goal(f"{SHARE:.0%} of the rate", f"within {GOAL_S:g} s", f"{number(worst)} s", reached=worst <= GOAL_S)
    write_json(arguments.json, described, {"recovery_s": [one.recovery_s for one in runs]})


if __name__ == "__main__":
    main()
