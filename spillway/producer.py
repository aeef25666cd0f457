"""Sends typed events to a queue: validated, packed into full batches, retried entry by entry, answered one by one."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID

from spillway.ids import uuid7
from spillway.packing import MAX_BATCH_ENTRIES, Numbered, Prepared, pack
from spillway.preparing import EventRefused, GroupBy, Preparer
from spillway.send_result import SendError, SendResult, broken_call, refused_call
from workers.runtime.envelope import CloudEvent

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

#: Eight tries with full jitter below 0.1, 0.2, 0.4 ... 6.4 s give an endpoint six seconds on average to recover.
DEFAULT_ATTEMPTS = 8
BACKOFF_BASE_S = 0.1
BACKOFF_CAP_S = 10.0

#: An entry the answer does not mention.
_NO_ANSWER = "NoAnswer"
#: An event that its FIFO group's earlier failure holds back.
GROUP_BLOCKED = "GroupBlocked"

Event = Mapping[str, Any] | bytes | str | CloudEvent | Prepared


class Producer:
    """Sends events of one `contract` to the queue at `queue_url`.

    On a FIFO queue (`fifo`, by default told from the URL) the group is `group_by`, by default the event's `subject`;
    the deduplication id is the event id; a batch holds a group once and, after an event that could not be sent, the
    rest of its group is held back with GROUP_BLOCKED, so a group never has a gap. On a standard queue `group_by`
    makes a fair queue. `client` should not retry by itself (`sqs_client(attempts=1)`): only what failed is sent again,
    up to `max_attempts` tries in all. `concurrency` counts sender threads. `rng` and `sleep` are there for tests.
    """

    def __init__(
        self,
        client: SQSClient,
        queue_url: str,
        contract: Any,
        *,
        fifo: bool | None = None,
        group_by: GroupBy | None = None,
        max_attempts: int = DEFAULT_ATTEMPTS,
        max_entries: int = MAX_BATCH_ENTRIES,
        concurrency: int = 1,
        rng: random.Random | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.fifo = queue_url.endswith(".fifo") if fifo is None else fifo
        if not 1 <= max_entries <= MAX_BATCH_ENTRIES:
            raise ValueError(f"Expected max_entries from 1 to {MAX_BATCH_ENTRIES}, got {max_entries}")
        if max_attempts < 1 or concurrency < 1:
            raise ValueError("Expected max_attempts and concurrency of at least 1")
        if self.fifo and concurrency > 1:
            raise ValueError("Expected concurrency 1 for a FIFO queue: several senders would lose its order")
        self._client = client
        self._queue_url = queue_url
        self._preparer = Preparer(contract, fifo=self.fifo, group_by=group_by or ("subject" if self.fifo else None))
        self._max_attempts = max_attempts
        self._max_entries = max_entries
        self._concurrency = concurrency
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._sleep = sleep

    def prepare(
        self,
        event: Mapping[str, Any] | bytes | str | CloudEvent,
        *,
        new_id: Callable[[], UUID] = uuid7,
        trace_header: str | None = None,
        attributes: Mapping[str, str | bytes] | None = None,
    ) -> Prepared:
        """`event` checked, completed and measured: see Preparer.prepare. Raises EventRefused."""
        return self._preparer.prepare(event, new_id=new_id, trace_header=trace_header, attributes=attributes)

    def send(
        self,
        events: Iterable[Event],
        *,
        trace_header: str | None = None,
        progress: Callable[[SendResult], object] | None = None,
    ) -> list[SendResult]:
        """Send `events` now; one result for each. `progress` sees every result as it comes."""
        results = []
        for result in self.stream(events, trace_header=trace_header):
            results.append(result)
            if progress is not None:
                progress(result)
        return results

    def stream(self, events: Iterable[Event], *, trace_header: str | None = None) -> Iterator[SendResult]:
        """Send `events` while the results are read: nothing is sent that nobody asks for.

        Takes any number of events in bounded memory. Results come in the order of the events, except that a refused
        event's comes with the batch around it. Never raises for what SQS or the network does. When the caller stops
        reading, batches already handed to sender threads are still sent, and their results are lost.
        """
        refused: deque[SendResult] = deque()
        batches = pack(
            self._prepared(events, trace_header, refused), max_entries=self._max_entries, one_per_group=self.fifo
        )
        for results in self._delivered(batches):
            while refused:
                yield refused.popleft()
            yield from results
        yield from refused

    def batches(self, events: Iterable[Prepared]) -> Iterator[list[Prepared]]:
        """How `events` would be packed; nothing is sent."""
        for batch in pack(enumerate(events), max_entries=self._max_entries, one_per_group=self.fifo):
            yield [message for _, message in batch]

    def _prepared(
        self, events: Iterable[Event], trace_header: str | None, refused: deque[SendResult]
    ) -> Iterator[Numbered]:
        for index, event in enumerate(events):
            if isinstance(event, Prepared):
                yield index, event
                continue
            try:
                prepared = self.prepare(event, trace_header=trace_header)
            except EventRefused as error:
                refused.append(SendResult(index=index, error=SendError(code=error.reason, message=error.detail)))
            else:
                yield index, prepared

    def _delivered(self, batches: Iterator[list[Numbered]]) -> Iterator[list[SendResult]]:
        if self._concurrency == 1:
            blocked: set[str | None] = set()
            for batch in batches:
                yield self._deliver_in_order(batch, blocked) if self.fifo else self._deliver(batch)
            return
        executor = ThreadPoolExecutor(self._concurrency, thread_name_prefix="sender")
        try:
            pending: deque[Future[list[SendResult]]] = deque()
            for batch in batches:
                pending.append(executor.submit(self._deliver, batch))
                # Twice as many as there are senders: none idles while this thread waits for the oldest.
                if len(pending) >= 2 * self._concurrency:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _deliver_in_order(self, batch: list[Numbered], blocked: set[str | None]) -> list[SendResult]:
        held = [(index, message) for index, message in batch if message.group_id in blocked]
        free = [(index, message) for index, message in batch if message.group_id not in blocked]
        results = {result.index: result for result in self._deliver(free)}
        blocked.update(message.group_id for index, message in free if results[index].error is not None)
        error = SendError(code=GROUP_BLOCKED, message="An earlier event of this FIFO group could not be sent.")
        results.update({i: SendResult(index=i, event_id=message.event_id, error=error) for i, message in held})
        return [results[index] for index, _ in batch]

    def _deliver(self, batch: list[Numbered]) -> list[SendResult]:
        results: dict[int, SendResult] = {}
        waiting = batch
        for attempt in range(1, self._max_attempts + 1):
            if not waiting:
                break
            if attempt > 1:
                self._sleep(self._backoff(attempt - 1))
            results.update(self._attempt(waiting))
            waiting = [numbered for numbered in waiting if _worth_another_try(results[numbered[0]])]
        return [results[index] for index, _ in batch]

    def _backoff(self, failures: int) -> float:
        # Full jitter: "Exponential Backoff And Jitter", AWS Architecture Blog.
        return self._rng.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** (failures - 1)))

    def _attempt(self, batch: list[Numbered]) -> dict[int, SendResult]:
        """One SendMessageBatch call; a result for every entry, whatever happens."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - 0.1 s, see spillway.aws

        try:
            answer = self._client.send_message_batch(
                QueueUrl=self._queue_url, Entries=[message.entry(str(index)) for index, message in batch]
            )
        except ClientError as error:
            return _all_failed(batch, refused_call(error))
        except BotoCoreError as error:
            return _all_failed(batch, broken_call(error))
        no_answer = SendError(code=_NO_ANSWER, message="The answer does not mention this event.", final=False)
        results = _all_failed(batch, no_answer)
        ids = {str(index): (index, message.event_id) for index, message in batch}
        for success in answer.get("Successful", []):
            index, event_id = ids[success["Id"]]
            results[index] = SendResult(
                index=index,
                event_id=event_id,
                message_id=success["MessageId"],
                sequence_number=success.get("SequenceNumber"),
            )
        for failure in answer.get("Failed", []):
            index, event_id = ids[failure["Id"]]
            failed = SendError(
                code=failure["Code"], message=failure.get("Message", ""), final=failure.get("SenderFault", False)
            )
            results[index] = SendResult(index=index, event_id=event_id, error=failed)
        return results


def _worth_another_try(result: SendResult) -> bool:
    return result.error is not None and not result.error.final


def _all_failed(batch: list[Numbered], error: SendError) -> dict[int, SendResult]:
    return {index: SendResult(index=index, event_id=message.event_id, error=error) for index, message in batch}
