"""The main job as a check: what went in, what became of it, and whether the two agree."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from spillway.dlq.reading import read_all
from spillway.histories.orders import read_rows
from workers.runtime.telemetry import BATCH_SIZE, OUTCOME_METRICS

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

    from spillway.dlq.letters import Letter
    from spillway.histories.orders import OrdersHistory
    from spillway.rdsproxy.metrics import Snapshot
    from spillway.stack.metrics import MetricStore

_BYTE = re.compile(r" \(byte \d+\)$")

#: How long to wait for metrics that were printed but have not been read yet.
OUTPUT_S = 5.0

#: Outcomes after which a message is done, in the order the summary lists them.
DONE = ("applied", "stale", "duplicate", "rejected", "dead-lettered")


@dataclass(frozen=True, slots=True)
class Check:
    """One statement about the run and whether it holds."""

    holds: bool
    statement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to. `outcomes` are the workers' own counts, `dead_letters` counts by (reason, detail).

    `proxy` is what the RDS Proxy counted; None where there was none.
    """

    sent: int
    outcomes: dict[str, int]
    given_back: dict[str, int]
    redelivered: int
    dead_letters: dict[tuple[str, str], int]
    rows: int
    proxy: Snapshot | None
    checks: list[Check]

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


def examine(
    history: OrdersHistory,
    *,
    sent: int,
    metrics: MetricStore,
    admin: psycopg.Connection[Any],
    client: SQSClient,
    dead_letter_url: str,
    proxy: Snapshot | None = None,
) -> Result:
    """Compare what the workers counted, what the database holds and what the dead-letter queue holds with the truth."""
    # The functions' last lines may still be on their way through a pipe.
    deadline = time.monotonic() + OUTPUT_S
    while metrics.sum(BATCH_SIZE) < sent and time.monotonic() < deadline:
        time.sleep(0.02)
    counts = {outcome: int(metrics.sum(name)) for outcome, name in OUTCOME_METRICS.items()}
    done = {outcome: counts[outcome] for outcome in DONE if counts[outcome] or outcome != "rejected"}
    expected = history.expected
    claimed = admin.execute("SELECT count(*) FROM spillway.order_events").fetchone()
    rows = read_rows(admin)
    differing = sum(rows.get(key) != row for key, row in expected.rows.items()) + len(
        rows.keys() - expected.rows.keys()
    )
    letters = read_all(client, dead_letter_url)
    broken = Counter(message.body for message in history.messages if message.kind in expected.poison)
    total = sum(done.values())
    unexplained = sum(not letter.reasons.get("reason") for letter in letters)
    checks = [
        Check(
            total == sent == len(history.messages),
            f"sent = {' + '.join(done)}: {sent:,} = {' + '.join(f'{count:,}' for count in done.values())}",
        ),
        Check(
            counts["duplicate"] == expected.duplicates,
            f"every repeated event changed nothing: {counts['duplicate']:,} of {expected.duplicates:,}",
        ),
        Check(
            claimed == (expected.distinct,) and counts["applied"] + counts["stale"] == expected.distinct,
            f"every distinct event took effect once: {counts['applied'] + counts['stale']:,} of {expected.distinct:,}",
        ),
        Check(
            differing == 0,
            f"rows equal the sequential reference: {len(expected.rows) - differing:,} of {len(expected.rows):,}",
        ),
        Check(
            Counter(letter.body for letter in letters) == broken and not unexplained,
            f"the dead letters are the broken messages, each with its reason: {len(letters):,} of {broken.total():,}",
        ),
    ]
    if proxy is not None:
        clients = int(proxy.cloudwatch["ClientConnectionsSetupSucceeded"])
        pinned = proxy.pinned_sessions_total
        checks.append(
            Check(pinned == 0, f"no session was pinned to its connection: {pinned:,} of {clients:,} client connections")
        )
    return Result(
        sent=sent,
        outcomes=done,
        given_back={name: count for name, count in counts.items() if count and name not in DONE},
        redelivered=int(metrics.sum("Redelivered")),
        dead_letters=dict(Counter(map(_cause, letters)).most_common()),
        rows=len(rows),
        proxy=proxy,
        checks=checks,
    )


def _cause(letter: Letter) -> tuple[str, str]:
    # Where in the text a parser gave up differs from message to message and is no cause of its own.
    return letter.reasons.get("reason", ""), _BYTE.sub("", letter.reasons.get("detail", ""))
