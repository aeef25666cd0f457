"""Tries records: decodes them, writes what is good in one call, and says what became of each."""

from __future__ import annotations

import time
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from workers.runtime.dead_letters import SEND_BUDGET_S
from workers.runtime.failures import Failure, Poison, Reason
from workers.runtime.sqs import group_of
from workers.runtime.writer import DONE, NOT_DONE

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from workers.runtime.dead_letters import DeadLetterQueue
    from workers.runtime.envelope import CloudEvent, EventDecoder
    from workers.runtime.invocation import Invocation, Ledger
    from workers.runtime.sqs import Record
    from workers.runtime.telemetry import Telemetry
    from workers.runtime.writer import BatchWriter, Row, Written

_outcome_of = itemgetter(1)

#: Why an SQL function did not do a message, where that is the message's own fault.
_BLAMED = {"invalid": Reason.DATA, "gap": Reason.GAP}


class Trial:
    """One invocation's tries. Poison of `together` is kept until `bury_all`; `in_order` cannot wait with it."""

    def __init__(
        self,
        *,
        decoder: EventDecoder[Any],
        to_row: Callable[[Any], Row],
        writer: BatchWriter,
        dead_letters: DeadLetterQueue,
        telemetry: Telemetry,
        invocation: Invocation,
        ledger: Ledger,
    ) -> None:
        self._decode = decoder.decode
        self._to_row = to_row
        self._writer = writer
        self._dead_letters = dead_letters
        self._telemetry = telemetry
        self._poisoned: list[tuple[Record, Poison]] = []
        self.invocation = invocation
        self.ledger = ledger
        #: Why a canary is poison, by message id.
        self.blamed: dict[str, Poison] = {}

    def together(self, records: list[Record]) -> None:
        """Try `records` of a standard queue as one batch."""
        decode, to_row = self._decode, self._to_row
        rows: list[Row] = []
        holders: dict[int, Record] = {}
        repeats: dict[int, list[Record]] = {}
        for record in records:
            try:
                event: CloudEvent = decode(record["body"])
                row = to_row(event)
            except Poison as poison:
                self.condemn(record, poison)
            except Exception as error:  # a mistake in a record handler costs its record a retry, no more
                self._mistake(record, error)
            else:
                # Keyed by integer: hashing a UUID object runs Python code.
                key = event.id.int
                if key in holders:
                    repeats.setdefault(key, []).append(record)
                else:
                    holders[key] = record
                    rows.append(row)
        written = self._write(rows)
        answered = Counter(map(_outcome_of, written.answers))
        if (
            len(written.answers) == len(holders)
            and answered.keys() <= DONE
            and not repeats
            and not self.ledger.canaries
        ):
            # Nearly every batch: each event is answered for once (the writer checked whose answers they are) and done.
            self.ledger.finish_all(answered, holders.values())
        else:
            self._sort_out(written, holders, repeats)

    def _sort_out(self, written: Written, holders: dict[int, Record], repeats: dict[int, list[Record]]) -> None:
        """Say record by record what became of a batch in which not everything went the usual way."""
        ledger = self.ledger
        for event_id, outcome, reason, detail in written.answers:
            key = event_id.int
            record, again = holders.pop(key), repeats.pop(key, [])
            if outcome in DONE:
                ledger.finish(outcome, record)
                for each in again:  # the same event more than once in this batch
                    ledger.finish("duplicate", each)
            elif outcome in _BLAMED:
                for each in (record, *again):
                    self.condemn(each, _blame(outcome, reason, detail))
            else:
                ledger.give_back([record, *again], _class_of(outcome))
        for event_id, failure in written.given_back.items():
            key = event_id.int
            ledger.give_back([holders.pop(key), *repeats.pop(key, [])], failure)
        for key, record in holders.items():  # nobody answered for it: the writer's promise was broken
            ledger.give_back([record, *repeats.get(key, [])], Failure.UNKNOWN)

    def in_order(self, records: list[Record]) -> None:
        """Try `records` of a FIFO queue as one batch, so that no group ever goes on behind a message that was not done.

        A message that is dead-lettered counts as done, and is before anything behind it is tried: so a group never goes
        on behind one that the dead-letter queue refused, which comes again.
        """
        fates = {record["messageId"]: self._judge(record) for record in records}
        poisoned = [(each, fate) for each in records if isinstance(fate := fates[each["messageId"]], Poison)]
        confirmed = self._send(poisoned) if poisoned else set()

        blocked: set[str] = set()
        sent: list[Record] = []
        rows: dict[UUID, Row] = {}
        groups: dict[UUID, str] = {}
        for record in records:
            group, fate = group_of(record), fates[record["messageId"]]
            if isinstance(fate, Poison):
                # Even behind a message that goes back: whoever is dead-lettered already must not go back too.
                self._settle_poison(record, confirmed, blocked)
            elif group in blocked:
                self.ledger.give_back([record], Failure.HELD)
            elif fate is None:
                self.ledger.give_back([record], Failure.UNKNOWN)
                blocked.add(group)
            elif groups.setdefault(fate.id, group) != group:
                # The same event in two groups: one write cannot keep the order of both.
                self.ledger.give_back([record], Failure.HELD)
                blocked.add(group)
            else:
                sent.append(record)
                rows.setdefault(fate.id, fate)
        written = self._write(list(rows.values()), groups)

        # In batch order: AWS asks for the failed message of a group and all behind it, and what of that took effect all
        # the same comes again as a duplicate.
        answers = {answer[0]: answer for answer in written.answers}
        seen: set[UUID] = set()
        blocked = set()
        for record in sent:
            row = fates[record["messageId"]]
            assert row is not None  # noqa: S101  (only rows were sent)
            event_id: UUID = row.id  # type: ignore[union-attr]
            _, outcome, reason, detail = answers.get(event_id, (event_id, "", None, None))
            if group_of(record) in blocked:
                self.ledger.give_back([record], Failure.HELD)
            elif outcome in DONE:
                self.ledger.finish("duplicate" if event_id in seen else outcome, record)
                seen.add(event_id)
            elif outcome in _BLAMED:
                confirmed = self._send([(record, _blame(outcome, reason, detail))])
                self._settle_poison(record, confirmed, blocked)
            else:
                failure = _class_of(outcome) if outcome else written.given_back.get(event_id, Failure.UNKNOWN)
                self.ledger.give_back([record], failure)
                blocked.add(group_of(record))

    def _judge(self, record: Record) -> Row | Poison | None:
        """The row of `record`, or why it has none; None for a mistake of a record handler."""
        try:
            return self._to_row(self._decode(record["body"]))
        except Poison as poison:
            return poison
        except Exception as error:
            self._telemetry.failed(Failure.UNKNOWN, error)
            return None

    def _mistake(self, record: Record, error: Exception) -> None:
        self._telemetry.failed(Failure.UNKNOWN, error)
        self.ledger.give_back([record], Failure.UNKNOWN)

    def _write(self, rows: list[Row], groups: dict[UUID, str] | None = None) -> Written:
        started = time.perf_counter()
        written = self._writer.write(rows, self.invocation, groups)
        self.invocation.write_s += time.perf_counter() - started
        return written

    def condemn(self, record: Record, poison: Poison) -> None:
        """`record` is to be dead-lettered, by `bury_all`."""
        if not self._poisoned:
            # Poison that is known must not stay behind because retries used its time up.
            self.invocation.reserved_s += SEND_BUDGET_S
        self._poisoned.append((record, poison))

    def bury_all(self) -> None:
        """Dead-letter what was condemned."""
        if poisoned := self._poisoned:
            self._poisoned = []
            self.invocation.reserved_s -= SEND_BUDGET_S
            confirmed = self._send(poisoned)
            for record, _ in poisoned:
                self._settle_poison(record, confirmed, set())

    def bury(self, record: Record, poison: Poison) -> None:
        """Dead-letter `record` now."""
        self._settle_poison(record, self._send([(record, poison)]), set())

    def _settle_poison(self, record: Record, confirmed: set[str], blocked: set[str]) -> None:
        """Done only where SQS confirmed it; otherwise it is given back and nothing is lost."""
        if record["messageId"] in confirmed:
            self.ledger.finish("dead-lettered", record)
        else:
            self.ledger.give_back([record], Failure.POISON)
            blocked.add(group_of(record))

    def _send(self, poisoned: list[tuple[Record, Poison]]) -> set[str]:
        by_cause: dict[tuple[str, str], list[str]] = {}
        for record, poison in poisoned:
            if record["messageId"] in self.ledger.canaries:
                self.blamed[record["messageId"]] = poison
            by_cause.setdefault((poison.reason.value, poison.detail), []).append(record["messageId"])
        for (reason, detail), message_ids in by_cause.items():
            self._telemetry.dead_letter(reason, detail, message_ids)
        confirmed, trouble = self._dead_letters.send(poisoned, self.invocation.remaining_s)
        if trouble:
            self._telemetry.dead_letters_refused(len(poisoned) - len(confirmed), trouble)
        return confirmed


def _blame(outcome: str, reason: str | None, detail: str | None) -> Poison:
    return Poison(_BLAMED[outcome], detail or "", (reason or "") if outcome == "invalid" else "")


def _class_of(outcome: str) -> Failure:
    """The class of an answer that neither did the message nor blamed it."""
    return Failure.HELD if outcome in NOT_DONE else Failure.UNKNOWN
