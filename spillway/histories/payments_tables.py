"""What a database holds of a history of payments."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import Connection
from psycopg.rows import class_row

from spillway.histories.payments_bank import AccountState, CaptureState, Entry


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What the database says about one event: spillway.payment_events."""

    event_id: UUID
    account: str
    sequence: int
    outcome: str
    reason: str | None
    ordinal: int


class Found(NamedTuple):
    """What a database holds of a history."""

    judged: list[Judged]  # in the order in which they were judged
    ledger: dict[int, list[Entry]]  # by ordinal, each sorted
    accounts: dict[str, AccountState]
    captures: dict[tuple[str, str], CaptureState]

    @classmethod
    def read(cls, connection: Connection[Any], prefix: str, event_ids: list[UUID]) -> Found:
        """What is about accounts whose names begin with `prefix`, or about one of the events."""
        with connection.cursor(row_factory=class_row(Judged)) as cursor:
            judged = cursor.execute(
                "SELECT event_id, account, sequence, outcome, reason, ordinal FROM spillway.payment_events"
                " WHERE starts_with(account, %s) OR event_id = ANY(%s) ORDER BY ordinal",
                (prefix, event_ids),
            ).fetchall()
        ledger: defaultdict[int, list[Entry]] = defaultdict(list)
        for ordinal, *entry in connection.execute(
            "SELECT ordinal, account, currency, amount, balance FROM spillway.ledger WHERE ordinal IN"
            " (SELECT ordinal FROM spillway.ledger WHERE starts_with(account, %s) OR event_id = ANY(%s))"
            " ORDER BY ordinal",
            (prefix, event_ids),
        ):
            ledger[ordinal].append(Entry(*entry))
        accounts = {
            account: AccountState(*state)
            for account, *state in connection.execute(
                "SELECT account, currency, overdraft_limit, balance, next_sequence FROM spillway.accounts"
                " WHERE starts_with(account, %s)",
                (prefix,),
            )
        }
        captures = {
            (account, payment_id): CaptureState(*state)
            for account, payment_id, *state in connection.execute(
                "SELECT account, payment_id, merchant, amount, refunded FROM spillway.captures"
                " WHERE starts_with(account, %s)",
                (prefix,),
            )
        }
        return cls(judged, {ordinal: sorted(entries) for ordinal, entries in ledger.items()}, accounts, captures)
