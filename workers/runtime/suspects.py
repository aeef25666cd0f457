"""Messages received again and again are tried after the rest and, as far as that is affordable, alone.

What kills its environment takes everything with it that is tried at the same time, and it comes again. So nobody is
tried together with a message that is remembered for it (attempts.py), and one that did it alone `CRASH_LIMIT` times is
dead-lettered untried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.runtime.attempts import CRASH_LIMIT, SOLO_MAX, SUSPECT_RECEIVES, Attempts
from workers.runtime.failures import Failure, Poison, Reason
from workers.runtime.sqs import group_of, receive_count

if TYPE_CHECKING:
    from workers.runtime.sqs import Record
    from workers.runtime.trial import Trial


def is_suspect(record: Record) -> bool:
    """Whether `record` has come so often that it may be what went wrong."""
    return receive_count(record) >= SUSPECT_RECEIVES


def try_standard(trial: Trial, attempts: Attempts, records: list[Record]) -> None:
    """Try a standard queue's batch that has suspects in it."""
    suspects = [record for record in records if is_suspect(record)]
    trial.together([record for record in records if not is_suspect(record)])
    if len(suspects) > SOLO_MAX:
        suspects = _try_company(trial, attempts, suspects)
    for record in suspects:
        if _may_be_tried(trial, attempts, record):
            trial.together([record])
            attempts.ended([record["messageId"]])


def try_fifo(trial: Trial, attempts: Attempts, records: list[Record]) -> None:
    """Try a FIFO queue's batch that has suspects in it: their groups after the others, one message at a time."""
    groups = dict.fromkeys(group_of(record) for record in records if is_suspect(record))
    if others := [record for record in records if group_of(record) not in groups]:
        trial.in_order(others)
    for group in groups:
        behind = [record for record in records if group_of(record) == group]
        while behind:
            record = behind.pop(0)
            given_back = len(trial.ledger.given_back)
            if not is_suspect(record):
                trial.in_order([record])
            elif _may_be_tried(trial, attempts, record, in_order=True):
                trial.in_order([record])
                attempts.ended([record["messageId"]])
            if len(trial.ledger.given_back) > given_back:
                trial.ledger.give_back(behind, Failure.HELD)
                break


def _try_company(trial: Trial, attempts: Attempts, suspects: list[Record]) -> list[Record]:
    """Try those suspects together of which no unfinished attempt is remembered; returns the others."""
    message_ids = [record["messageId"] for record in suspects]
    remembered = attempts.begin(message_ids, trial.invocation, alone=False)
    if isinstance(remembered, Failure):
        trial.ledger.give_back(suspects, remembered)
        return []
    company = [record for record in suspects if remembered[record["messageId"]] is None]
    if company:
        trial.together(company)
        attempts.ended(record["messageId"] for record in company)
    return [record for record in suspects if remembered[record["messageId"]] is not None]


def _may_be_tried(trial: Trial, attempts: Attempts, record: Record, *, in_order: bool = False) -> bool:
    """Begin an attempt of `record` alone; False if it was given back or dead-lettered instead."""
    message_id = record["messageId"]
    remembered = attempts.begin([message_id], trial.invocation, alone=True)
    if isinstance(remembered, Failure):
        # Where the database cannot be reached nothing is tried, so nothing is held against anybody.
        trial.ledger.give_back([record], remembered)
        return False
    crashes = remembered[message_id] or 0
    if crashes < CRASH_LIMIT:
        return True
    poison = Poison(Reason.CRASHED, f"{crashes} attempts to process it alone ended with their environment")
    if in_order:
        trial.bury(record, poison)
    else:
        trial.condemn(record, poison)
    return False
