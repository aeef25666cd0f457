"""The bulk batch processor: decode every record, write all good ones in one call, report message by message."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any, NoReturn, Self

from aws_lambda_powertools.utilities.batch import BasePartialBatchProcessor, EventType

from workers.runtime import suspects
from workers.runtime.dead_letters import CANARY
from workers.runtime.invocation import Invocation, Ledger
from workers.runtime.sqs import is_fifo
from workers.runtime.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.runtime.attempts import Attempts
    from workers.runtime.breaker import Breaker
    from workers.runtime.dead_letters import DeadLetterQueue
    from workers.runtime.envelope import EventDecoder
    from workers.runtime.sqs import Record
    from workers.runtime.telemetry import Telemetry
    from workers.runtime.visibility import Visibility
    from workers.runtime.writer import BatchWriter


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
        *,
        decoder: EventDecoder[Any],
        writer: BatchWriter,
        dead_letters: DeadLetterQueue,
        telemetry: Telemetry,
        visibility: Visibility,
        attempts: Attempts,
        breaker: Breaker,
        function_timeout_s: float,
    ) -> None:
        # All failed is an answer like any other here: an exception would only hide which class of failure it was.
        super().__init__(event_type=EventType.SQS, raise_on_entire_batch_failure=False)
        self._decoder = decoder
        self._writer = writer
        self._dead_letters = dead_letters
        self._telemetry = telemetry
        self._visibility = visibility
        self._attempts = attempts
        self._breaker = breaker
        self._function_timeout_s = function_timeout_s
        # Powertools types these as its data classes; wrapping thousands of records nobody reads would cost time.
        self.success_messages: list[Any] = []
        self.fail_messages: list[Any] = []

    def __call__(self, records: list[Record], handler: Callable[..., Any], lambda_context: Any = None) -> Self:
        """Take a batch. Powertools' own inspects the handler's signature each time: a tenth of a small batch's cost."""
        self.records = records
        self.handler = handler
        self.lambda_context = lambda_context
        return self

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
        started = time.monotonic()
        invocation = Invocation(self._clock(), reserved_s=self._visibility.budget_s)
        canaries = _canaries(self.records)
        ledger = Ledger(canaries=dict.fromkeys(canaries, ""))
        was_closed = self._breaker.closed
        trial = Trial(
            decoder=self._decoder,
            to_row=self.handler,
            writer=self._writer,
            dead_letters=self._dead_letters,
            telemetry=self._telemetry,
            invocation=invocation,
            ledger=ledger,
        )
        redelivered = self._try(trial)
        self._attempts.flush(invocation)
        trial.bury_all()
        self.success_messages = ledger.done
        self.fail_messages = [record for record, _ in ledger.given_back]

        for failure, error in invocation.errors:
            self._telemetry.failed(failure, error)
        if self._breaker.closed is not was_closed:
            self._telemetry.breaker(closed=self._breaker.closed)
        if ledger.given_back:
            elapsed_s = time.monotonic() - started
            delayed = self._visibility.delay(ledger.given_back, invocation.remaining_s, elapsed_s)
            if delayed.refused:
                self._telemetry.delays_refused(delayed.refused, delayed.trouble)
        for message_id, whose in canaries.items():
            self._telemetry.canary(whose, message_id, ledger.canaries[message_id], trial.blamed.get(message_id))
        self._telemetry.batch(
            ledger.outcomes,
            invocation,
            size=len(self.records),
            redelivered=redelivered,
            request_id=getattr(self.lambda_context, "aws_request_id", ""),
        )

    def _try(self, trial: Trial) -> int:
        """Try all records, each once; returns how many had been received before."""
        records = self.records
        again = _received_again(records)
        fifo = bool(records) and is_fifo(records[0])
        if again and any(map(suspects.is_suspect, again)):
            (suspects.try_fifo if fifo else suspects.try_standard)(trial, self._attempts, records)
        elif fifo:
            trial.in_order(records)
        else:
            trial.together(records)
        return len(again)

    def _clock(self) -> Callable[[], float]:
        """Seconds left of this invocation: Lambda's own count, or the function's timeout where there is no context."""
        context: Any = self.lambda_context
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


def _canaries(records: list[Record]) -> dict[str, str]:
    """Whose canary a message is, by message id, of those that are one; nearly always none is."""
    return {
        record["messageId"]: str(attributes[CANARY].get("stringValue", ""))
        for record in records
        if (attributes := record.get("messageAttributes")) and CANARY in attributes
    }


def _received_again(records: list[Record]) -> list[Record]:
    nothing: dict[str, str] = {}
    return [
        record for record in records if record.get("attributes", nothing).get("ApproximateReceiveCount", "1") != "1"
    ]
