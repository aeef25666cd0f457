"""The bulk batch processor: decode every record, write all good ones in one call, report message by message."""

from __future__ import annotations

import gc
import time
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NoReturn

from aws_lambda_powertools.utilities.batch import BasePartialBatchProcessor, EventType

from workers.runtime.dead_letters import SEND_BUDGET_S
from workers.runtime.failures import Failure, Poison, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.runtime.dead_letters import DeadLetterQueue, Record
    from workers.runtime.envelope import CloudEvent, EventDecoder
    from workers.runtime.telemetry import Telemetry
    from workers.runtime.writer import BatchWriter, Row, Written


_outcome_of = itemgetter(1)


class BulkBatchProcessor(BasePartialBatchProcessor):
    """A Powertools batch processor, for `process_partial_response`, that writes a batch as a whole.

    The record handler it is given does not do the work of a record; it says what is to be written for one decoded
    event: ``record_handler(event: CloudEvent) -> Row``.

    Every record ends in exactly one of: success (applied, duplicate, stale, rejected, or dead-lettered and confirmed by
    SQS) or failure (back to the queue). `success_messages` and `fail_messages` hold the raw records until the
    processor's context ends.
    """

    def __init__(
        self,
        decoder: EventDecoder[Any],
        writer: BatchWriter,
        dead_letters: DeadLetterQueue,
        telemetry: Telemetry,
        *,
        function_timeout_s: float,
    ) -> None:
        # All failed is an answer like any other here: an exception would only hide which class of failure it was.
        super().__init__(event_type=EventType.SQS, raise_on_entire_batch_failure=False)
        self._decoder = decoder
        self._writer = writer
        self._dead_letters = dead_letters
        self._telemetry = telemetry
        self._function_timeout_s = function_timeout_s
        # Powertools types these as its data classes; wrapping thousands of records nobody reads would cost time.
        self.success_messages: list[Any] = []
        self.fail_messages: list[Any] = []

    def process(self) -> list[tuple[Any, ...]]:
        """Process all records. The return value (Powertools' per-record tuples) is not used and stays empty."""
        # A batch is thousands of objects and no cycle: the collector would look at them all and find nothing.
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._process()
        finally:
            if collecting:
                gc.enable()
        return []

    def _process(self) -> None:
        remaining_s = self._clock()
        outcomes: Counter[str] = Counter()
        poisoned: list[tuple[Record, Poison]] = []
        rows: list[Row] = []
        holders: dict[int, Record] = {}
        repeats: dict[int, list[Record]] = {}

        self._decode(rows, holders, repeats, poisoned, outcomes)
        started = time.perf_counter()
        # Poison that is known already must not stay behind because retries used its time up.
        reserved_s = SEND_BUDGET_S if poisoned else 0.0
        written = self._writer.write(rows, lambda: remaining_s() - reserved_s)
        write_ms = (time.perf_counter() - started) * 1000

        answered = Counter(map(_outcome_of, written.answers))
        if len(written.answers) == len(holders) and not answered["invalid"] and not repeats:
            # Nearly every batch: each event is answered for once (the writer checked whose answers they are) and done.
            outcomes.update(answered)
            self.success_messages += holders.values()
        else:
            self._sort_out(written, holders, repeats, poisoned, outcomes)
        for failure, error in written.errors:
            self._telemetry.failed(failure, error)
        if poisoned:
            self._bury(poisoned, remaining_s, outcomes)

        self._telemetry.batch(
            outcomes,
            size=len(self.records),
            write_ms=write_ms,
            halvings=written.halvings,
            redelivered=_redelivered(self.records),
            request_id=getattr(getattr(self, "lambda_context", None), "aws_request_id", ""),
        )

    def _decode(
        self,
        rows: list[Row],
        holders: dict[int, Record],
        repeats: dict[int, list[Record]],
        poisoned: list[tuple[Record, Poison]],
        outcomes: Counter[str],
    ) -> None:
        """Fill `rows` with what is to be written, and `holders` and `repeats` with the records that wait for it."""
        decode, to_row = self._decoder.decode, self.handler
        for record in self.records:
            try:
                event: CloudEvent = decode(record["body"])
                row = to_row(event)
            except Poison as poison:
                poisoned.append((record, poison))
            except Exception as error:  # a mistake in a record handler costs its record a retry, no more
                self._telemetry.failed(Failure.UNKNOWN, error)
                self._give_back([record], Failure.UNKNOWN, outcomes)
            else:
                # Keyed by integer: hashing a UUID object runs Python code.
                key = event.id.int
                if key in holders:
                    repeats.setdefault(key, []).append(record)
                else:
                    holders[key] = record
                    rows.append(row)

    def _sort_out(
        self,
        written: Written,
        holders: dict[int, Record],
        repeats: dict[int, list[Record]],
        poisoned: list[tuple[Record, Poison]],
        outcomes: Counter[str],
    ) -> None:
        """Say record by record what became of a batch in which not everything went the usual way."""
        for event_id, outcome, reason, detail in written.answers:
            key = event_id.int
            record, again = holders.pop(key), repeats.pop(key, [])
            if outcome == "invalid":
                poison = Poison(Reason.DATA, detail or "", reason or "")
                poisoned += [(each, poison) for each in (record, *again)]
                continue
            outcomes[outcome] += 1
            if again:  # the same event more than once in this batch
                outcomes["duplicate"] += len(again)
            self.success_messages += [record, *again]
        for event_id, failure in written.given_back.items():
            key = event_id.int
            self._give_back([holders.pop(key), *repeats.pop(key, [])], failure, outcomes)
        for key, record in holders.items():  # nobody answered for it: the writer's promise was broken
            self._give_back([record, *repeats.get(key, [])], Failure.UNKNOWN, outcomes)

    def _bury(
        self, poisoned: list[tuple[Record, Poison]], remaining_s: Callable[[], float], outcomes: Counter[str]
    ) -> None:
        """Dead-letter `poisoned`. Done only where SQS confirmed it; otherwise it is given back and nothing is lost."""
        by_cause: dict[tuple[str, str], list[str]] = {}
        for record, poison in poisoned:
            by_cause.setdefault((poison.reason.value, poison.detail), []).append(record["messageId"])
        for (reason, detail), message_ids in by_cause.items():
            self._telemetry.dead_letter(reason, detail, message_ids)
        confirmed, trouble = self._dead_letters.send(poisoned, remaining_s)
        for record, _ in poisoned:
            if record["messageId"] in confirmed:
                self.success_messages.append(record)
                outcomes["dead-lettered"] += 1
            else:
                self._give_back([record], Failure.POISON, outcomes)
        if trouble:
            self._telemetry.dead_letters_refused(len(poisoned) - len(confirmed), trouble)

    def _give_back(self, records: list[Record], failure: Failure, outcomes: Counter[str]) -> None:
        self.fail_messages += records
        outcomes[failure.value] += len(records)

    def _clock(self) -> Callable[[], float]:
        """Seconds left of this invocation: Lambda's own count, or the function's timeout where there is no context."""
        context = getattr(self, "lambda_context", None)
        if context is not None:
            return lambda: context.get_remaining_time_in_millis() / 1000
        end = time.monotonic() + self._function_timeout_s
        return lambda: end - time.monotonic()

    def _clean(self) -> None:
        self.batch_response = {"batchItemFailures": self._get_messages_to_report()}
        # Let the batch go: a warm environment would hold these megabytes until, and through, its next invocation.
        self.records = []
        self.success_messages = []
        self.fail_messages = []

    def _get_messages_to_report(self) -> list[Any]:
        return [{"itemIdentifier": record["messageId"]} for record in self.fail_messages]

    def _process_record(self, record: Any) -> NoReturn:  # noqa: ARG002
        raise TypeError("BulkBatchProcessor writes whole batches: use process_partial_response")

    async def _async_process_record(self, record: Any) -> NoReturn:  # noqa: ARG002
        raise TypeError("BulkBatchProcessor writes whole batches: use process_partial_response")


def _redelivered(records: list[Record]) -> int:
    nothing: dict[str, str] = {}
    return sum([record.get("attributes", nothing).get("ApproximateReceiveCount", "1") != "1" for record in records])
