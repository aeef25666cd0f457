"""A seeded history of audit events as a queue would deliver it, and what must be on record once all of it is done."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from spillway.histories.audit_poison import POISON
from spillway.histories.base import VALID, History, Message, deliver, event_id, shares, stamp

#: A duplicate comes at most this many messages after the first one.
_DUPLICATE_GAP = 2_000
#: Zipf's exponent and shift for how much is going on in a stream: a few hot ones, a long tail.
_POPULARITY, _FLATTEN = 1.1, 10

_ACTIONS = ("invoice.approved", "user.invited", "role.granted", "export.started", "settings.changed", "login.failed")
_NOTES = ("", "requested by phone", 'said "now"\n', "délai trop long", "在庫切れ", "🙈 \\ /", "\x7f\u2028")
_START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_STEP = timedelta(milliseconds=50)
#: What PostgreSQL counts its binary timestamps from.
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_NOTHING = bytes(32)


class Row(NamedTuple):
    """One row of spillway.audit_log."""

    stream: str
    sequence: int
    event_id: UUID
    recorded_at: datetime
    event_time: datetime
    type: str
    source: str
    body: str
    previous_hash: bytes
    hash: bytes


def hash_of(row: Row, previous_hash: bytes) -> bytes:
    """The hash that `row` must have after an entry with `previous_hash`: workers/audit/apply.sql, in other words."""
    content = hashlib.sha256(
        b"".join(
            (
                _microseconds(row.event_time),
                row.event_id.bytes,
                b"\0".join(text.encode() for text in (row.stream, row.type, row.source, row.body)),
            )
        )
    ).digest()
    place = row.sequence.to_bytes(8, "big", signed=True) + _microseconds(row.recorded_at)
    return hashlib.sha256(previous_hash + place + content).digest()


def _microseconds(moment: datetime) -> bytes:
    return ((moment - _EPOCH) // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)


def broken_links(rows: Iterable[Row]) -> Iterator[str]:
    """What is wrong with the chain that `rows`, all of one stream in order of sequence, must be."""
    previous = _NOTHING
    for expected, row in enumerate(rows, start=1):
        place = f"stream {row.stream}, sequence {row.sequence}"
        if row.sequence != expected:
            yield f"{place}: expected sequence {expected}"
            return
        if row.previous_hash != previous:
            yield f"{place}: does not name the hash of the entry before it"
        if row.hash != hash_of(row, previous):
            yield f"{place}: has another hash than follows from its content"
        previous = row.hash


class AuditHistory(History):
    """A history of audit events. `prefix` starts all of its streams, and nobody else's."""

    worker = "audit"
    claims = "audit_events"
    poison = POISON

    def __init__(self, messages: list[Message], prefix: str) -> None:
        super().__init__(messages)
        self.prefix = prefix

    @cached_property
    def expected(self) -> dict[UUID, dict[str, Any]]:
        """The valid events as they were sent, by id."""
        events = (json.loads(message.body) for message in self.messages if message.kind == VALID)
        return {UUID(event["id"]): event for event in events}

    def violations(self, connection: Connection[Any]) -> list[str]:
        """What is wrong with the entries, the chains and the heads of this history."""
        chains: defaultdict[str, list[Row]] = defaultdict(list)
        with connection.cursor(row_factory=class_row(Row)) as cursor:
            cursor.execute(
                "SELECT stream, sequence, event_id, recorded_at, event_time, type, source, body, previous_hash, hash"
                " FROM spillway.audit_log WHERE starts_with(stream, %s) ORDER BY stream, sequence",
                (self.prefix,),
            )
            for row in cursor:
                chains[row.stream].append(row)
        found = [broken for chain in chains.values() for broken in broken_links(chain)]
        found += self._of_entries(row for chain in chains.values() for row in chain)
        found += self._of_heads(connection, chains)
        found += self._of_verification(connection, chains.keys())
        return sorted(found)

    def _of_entries(self, rows: Iterable[Row]) -> Iterator[str]:
        """Each event is on record once, as it was sent, and nothing else is."""
        seen: Counter[UUID] = Counter()
        for row in rows:
            seen[row.event_id] += 1
            event = self.expected.get(row.event_id)
            if event is None:
                yield f"event {row.event_id} is on record and was never sent"
            elif (row.stream, row.type, row.source, row.event_time, json.loads(row.body)) != (
                event["subject"],
                event["type"],
                event["source"],
                datetime.fromisoformat(event["time"]),
                event["data"],
            ):
                yield f"event {row.event_id} is on record as {row}, and was sent as {event}"
        yield from (f"event {one} is not on record" for one in self.expected.keys() - seen.keys())
        yield from (f"event {one} is on record {count} times" for one, count in seen.items() if count > 1)

    def _of_heads(self, connection: Connection[Any], chains: dict[str, list[Row]]) -> Iterator[str]:
        """Each head is its stream's last entry."""
        heads = {
            stream: tuple(head)
            for stream, *head in connection.execute(
                "SELECT stream, last_sequence, last_hash, recorded_at FROM spillway.audit_streams"
                " WHERE starts_with(stream, %s)",
                (self.prefix,),
            )
        }
        lasts = {stream: (rows[-1].sequence, rows[-1].hash, rows[-1].recorded_at) for stream, rows in chains.items()}
        for stream in sorted(heads.keys() | lasts.keys()):
            if heads.get(stream) != lasts.get(stream):
                yield f"stream {stream}: the head is {heads.get(stream)}, the last entry {lasts.get(stream)}"

    def _of_verification(self, connection: Connection[Any], streams: Iterable[str]) -> Iterator[str]:
        """The database's own verification finds nothing, and looked at every stream."""
        wanted = list(streams)
        answers = connection.execute(
            "SELECT wanted, answer.ok, answer.finding"
            " FROM unnest(%s::text[]) AS wanted CROSS JOIN LATERAL spillway.audit_verify(wanted) AS answer",
            (wanted,),
        ).fetchall()
        yield from (f"stream {stream}: audit_verify: {finding}" for stream, ok, finding in answers if not ok)
        yield from (f"stream {stream}: audit_verify is silent" for stream in set(wanted) - {row[0] for row in answers})


def generate(
    events: int = 20_000,
    seed: int = 1,
    duplicates: float = 0.05,
    poison: float = 0.01,
    *,
    streams: int | None = None,
    prefix: str | None = None,
) -> AuditHistory:
    """Exactly `events` messages, the same for the same arguments.

    `duplicates` and `poison` are shares of all messages: repeats of an earlier event, and broken ones, all kinds
    equally often. `streams` is how many there are, by default a twentieth of the messages. Histories that share a
    database need a `seed` or a `prefix` of their streams each.
    Raises ValueError for shares that do not fit.
    """
    valid, repeated, broken = shares(events, duplicates, poison)
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    prefix = f"tenant-{seed & 0xFFFFFFFF:x}-" if prefix is None else prefix
    streams = streams or max(1, events // 20)
    done = _Firm(rng, streams, prefix).events(valid)
    spoilt = _Firm(rng, streams, f"{prefix}broken-").events(broken)
    return AuditHistory(deliver(rng, done, repeated, spoilt, POISON, duplicate_gap=_DUPLICATE_GAP), prefix)


class _Firm:
    """Tenants in which things are done."""

    def __init__(self, rng: random.Random, streams: int, prefix: str) -> None:
        self._rng = rng
        self._prefix = prefix
        self._weights = list(accumulate(1 / (rank + _FLATTEN) ** _POPULARITY for rank in range(streams)))
        self._count = 0

    def events(self, count: int) -> Iterator[dict[str, Any]]:
        """The next `count` events, in the order in which they happened."""
        slots = self._rng.choices(range(len(self._weights)), cum_weights=self._weights, k=count)
        return map(self._event, slots)

    def _event(self, slot: int) -> dict[str, Any]:
        rng, moment = self._rng, _START + self._count * _STEP
        self._count += 1
        stream = f"{self._prefix}{slot:05}"
        return {
            "specversion": "1.0",
            "id": event_id(rng, moment),
            "source": "/back-office",
            "type": "audit.recorded",
            "subject": stream,
            "time": stamp(moment),
            "data": {
                "stream": stream,
                "actor": f"user/{int(rng.paretovariate(0.7)) % 5_000}",
                "action": _ACTIONS[int(rng.random() * len(_ACTIONS))],
                "resource": f"invoice/{int(rng.random() * 100_000)}",
                "details": self._details(),
            },
        }

    def _details(self) -> dict[str, Any]:
        rng = self._rng
        details: dict[str, Any] = {"note": _NOTES[int(rng.random() * len(_NOTES))]}
        if rng.random() < 0.5:
            details |= {"ip": f"203.0.113.{int(rng.random() * 256)}", "amount": round(rng.random() * 1e4, 2)}
        if rng.random() < 0.1:
            details["changes"] = [{"field": "limit", "was": None, "is": int(rng.random() * 2**60)}, {}, [], True]
        return details
