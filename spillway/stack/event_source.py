"""The event source emulator: what Lambda's pollers do for one SQS queue and one function.

A few receivers fill one batch at a time; a closed batch gets a thread, an execution environment and an invocation;
what succeeded is deleted, the rest is left to the queue's visibility timeout. `schedule.py` decides, this module does.

Receiving and invoking are separate so that batches grow under load: five pollers that each gathered a batch of 1,000
would send five small ones at the end of every window. Not emulated: event filters, provisioned mode, and the
undocumented way in which Lambda slows down while a function without ReportBatchItemFailures keeps failing.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from spillway.stack.acknowledgement import Acknowledger, backoff_s
from spillway.stack.batch import MAX_PAYLOAD_BYTES, Batch, Received, received
from spillway.stack.mapping import MappingConfig
from spillway.stack.mapping_stats import MappingStats, Oldest, Tally
from spillway.stack.partial_response import Reason, Verdict, unacknowledged
from spillway.stack.schedule import Schedule
from spillway.stack.warm_pool import ExecutionEnvironment, Invocation, PoolClosedError, WarmPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_sqs import SQSClient

__all__ = ["EventSourceMapping", "ExecutionEnvironment", "Invocation", "MappingConfig", "MappingStats"]

log = logging.getLogger(__name__)

RECEIVERS = 2
"""At most so many receives at once. Draining 10,000 messages from ministack on 2 cores with BatchSize 1000: 2,060
msg/s with two, 1,810 with three, 1,360 with four, whose receives run ahead of the deletes and keep the queue long."""
POLL_WAIT_S = 1
"""WaitTimeSeconds. Lambda waits 20; a shorter wait costs one cheap call a second and lets stop() return promptly,
without cutting off a receive whose messages would then be invisible and nobody's."""
RECEIVE_BACKOFF_CAP_S = 5.0
TICK_S = 0.2
"""How often the concurrency is raised while it may rise."""
REAP_S = 5.0
"""How often environments are looked through for spare ones."""


class EventSourceMapping:
    """Polls one queue and invokes one function with what it finds, until stopped. Starts once.

    `sqs_client_factory` is called once, in start(); every thread shares its client, so give it a connection pool of
    `RECEIVERS` + the concurrency. `environment_factory` makes one execution environment, when a batch finds no warm
    one; what it or `invoke` raises counts as a crash of the batch, shows in `stats.last_error`, and slows receiving.
    """

    def __init__(
        self,
        config: MappingConfig,
        sqs_client_factory: Callable[[], SQSClient],
        environment_factory: Callable[[], ExecutionEnvironment],
        *,
        receivers: int = RECEIVERS,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        self.config = config
        self._client_factory = sqs_client_factory
        # One receiver on FIFO: two could bring a group's messages home in the wrong order.
        self._receivers = 1 if config.fifo else receivers
        self._changed = threading.Condition()
        self._schedule = Schedule(config, max_payload_bytes=max_payload_bytes)
        self._environments = WarmPool(environment_factory)
        self._awake = 1  # receivers allowed to poll: one while the queue is empty, more while receives come back full
        self._backlog = False
        self._broken_until = 0.0
        self._broken = 0
        self._stopping = threading.Event()
        self._give_up = threading.Event()
        self._threads: list[threading.Thread] = []
        self._tally = Tally()
        self._oldest = Oldest()

    def start(self) -> None:
        """Start polling and return at once.

        Raises ValueError if the queue answers and its visibility timeout is below the function's timeout, which
        CreateEventSourceMapping refuses too. A queue that does not answer is retried for ever: see `stats.last_error`.
        """
        if self._threads or self._stopping.is_set():
            raise RuntimeError("expected a mapping that was never started, got a second start()")
        self._client = self._client_factory()
        self._acknowledger = Acknowledger(
            self._client, self.config.queue_url, give_up=self._give_up, on_error=self._note_error
        )
        self._check_visibility()
        self._spawn("clock", self._run_clock)
        for index in range(self._receivers):
            self._spawn(f"receive-{index}", partial(self._run_receiver, index))

    def stop_receiving(self) -> None:
        """Begin to stop, and return at once: nothing more is asked of the queue. `stop` is to follow."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()

    def stop(self, *, drain: bool = True, timeout_s: float = 30.0) -> bool:
        """Stop receiving, wait for what runs, close the environments; return whether everything ended in time.

        With `drain`, messages already gathered are still invoked; without, they are given back at once. A message that
        arrives while stopping is given back, which takes a last poll of up to `POLL_WAIT_S`. After `timeout_s` seconds
        running invocations are killed; their messages return after the visibility timeout. Can be called again, and
        before start().
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._stopping.set()
            if drain:
                self._schedule.flush()
                self._start_batches()
            withdrawn = [] if drain else self._schedule.withdraw()
            self._changed.notify_all()
        self._withdraw(withdrawn)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._schedule.idle, max(0.0, deadline - time.monotonic()))
            withdrawn = self._schedule.withdraw()
        self._give_up.set()
        self._withdraw(withdrawn)
        self._environments.close()
        with self._changed:
            self._changed.wait_for(lambda: self._schedule.idle, 5.0)  # killed: each thread only has to notice
        return in_time and not any(thread.is_alive() for thread in self._threads)

    @property
    def stats(self) -> MappingStats:
        """A consistent snapshot; cheap enough for a live display."""
        with self._changed:
            return self._tally.stats(self._schedule, environments=len(self._environments), oldest=self._oldest)

    # Receiving

    def _run_receiver(self, index: int) -> None:
        failures = 0
        while (count := self._wait_for_room(index)) > 0:
            messages: list[Received] | None = None
            try:
                messages = self._receive(count)
                failures = 0
            except Exception as error:  # the endpoint's moods must not end the polling
                failures += 1
                self._note_error(f"ReceiveMessage: {type(error).__name__}: {error}")
            late = self._accept(count, messages)
            self._give_back(late)
            if failures:
                self._stopping.wait(backoff_s(failures, cap_s=RECEIVE_BACKOFF_CAP_S))

    def _wait_for_room(self, index: int) -> int:
        """Return how many messages to ask for, set aside; 0 when stopping."""
        with self._changed:
            while not self._stopping.is_set():
                pause = self._broken_until - time.monotonic()
                room = self._schedule.room() if index < self._awake and pause <= 0 else 0
                if room > 0:
                    self._schedule.reserve(room)
                    return room
                self._changed.wait(pause if pause > 0 else None)
            return 0

    def _receive(self, count: int) -> list[Received]:
        response = self._client.receive_message(
            QueueUrl=self.config.queue_url,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=POLL_WAIT_S,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [
            received(message, queue_arn=self.config.queue_arn, region=self.config.region)
            for message in response.get("Messages", [])
        ]

    def _accept(self, asked: int, messages: list[Received] | None) -> list[Received]:
        """Take in what a receive brought (None: an error), adapt the polling; return what came too late."""
        with self._changed:
            self._schedule.release(asked)
            self._tally.healthy = messages is not None
            if messages is None:
                return []
            self._tally.receives += 1
            self._tally.received += len(messages)
            if self._stopping.is_set():
                return messages
            self._backlog = bool(messages)
            if not messages:
                self._tally.empty_receives += 1
                self._awake = 1
                return []
            before = self._awake, self._schedule.due_at
            if len(messages) >= asked:
                self._awake = min(self._awake + 1, self._receivers)
            self._schedule.offer(messages, time.monotonic())
            self._start_batches()
            if before != (self._awake, self._schedule.due_at):  # waking threads at every receive cost 10 % of the CPU
                self._changed.notify_all()  # another receiver may start, the clock has another window to watch
            return []

    # Invoking

    def _start_batches(self) -> None:
        """Give every batch that may run a thread of its own. The caller holds the lock."""
        while (batch := self._schedule.start()) is not None:
            self._tally.peak_invoking = max(self._tally.peak_invoking, self._schedule.invoking)
            self._oldest.started(batch)
            threading.Thread(
                target=self._run_batch, args=(batch,), name=f"{self.config.queue_name}-batch", daemon=True
            ).start()

    def _run_batch(self, batch: Batch) -> None:
        verdict = self._invoke(batch)
        failed = set(verdict.failed)
        done = [message for message in batch.messages if message.message_id not in failed]
        with self._changed:
            self._schedule.invoked()
            self._oldest.ended(batch, failed)
            self._tally.invocations += 1
            self._tally.succeeded += len(done)
            self._tally.batches_by_reason[verdict.reason] += 1
            if failed:
                self._tally.failed_by_reason[verdict.reason] += len(batch) - len(done)
            self._start_batches()
            self._changed.notify_all()
        if failed:
            log.info(
                "batch_failed queue=%s reason=%s failed=%d of=%d",
                self.config.queue_name, verdict.reason, len(batch) - len(done), len(batch),
            )  # fmt: skip
        undeleted = self._acknowledger.delete(done)
        with self._changed:
            self._tally.undeleted += len(undeleted)
            parked = self._schedule.finished(batch)
            self._changed.notify_all()
        self._withdraw(parked)

    def _invoke(self, batch: Batch) -> Verdict:
        """Run one batch in an environment of its own; whatever goes wrong is a verdict."""
        ids = [message.message_id for message in batch.messages]
        environment: ExecutionEnvironment | None = None
        try:
            environment = self._environments.acquire()
            invocation = environment.invoke(batch.payload())
            verdict = unacknowledged(
                invocation.kind,
                invocation.body,
                ids,
                report_batch_item_failures=self.config.report_batch_item_failures,
            )
        except PoolClosedError:
            return Verdict(tuple(ids), Reason.CRASH)
        except Exception as error:  # the environment's fault, not the function's: do not rush through the whole queue
            if environment is not None:
                self._environments.discard(environment)
            if not self._give_up.is_set():  # else it is stop() that ended it
                self._note_error(f"execution environment: {type(error).__name__}: {error}")
            with self._changed:
                self._broken += 1
                self._broken_until = time.monotonic() + backoff_s(self._broken, cap_s=RECEIVE_BACKOFF_CAP_S)
            return Verdict(tuple(ids), Reason.CRASH)
        self._environments.release(environment)
        with self._changed:
            self._broken = 0
            self._tally.cold_starts += invocation.cold
            self._tally.function_s += invocation.duration_s
        return verdict

    # Everything else

    def _withdraw(self, messages: list[Received]) -> None:
        """Give back messages that the schedule handed out."""
        self._give_back(messages)
        with self._changed:
            self._schedule.returned(len(messages))
            self._changed.notify_all()

    def _give_back(self, messages: list[Received]) -> None:
        if messages:
            invisible = self._acknowledger.give_back(messages)
            with self._changed:
                self._tally.given_back += len(messages) - len(invisible)

    def _run_clock(self) -> None:
        """Close batches whose window ended, raise the concurrency, close environments nobody uses."""
        reap_at = 0.0
        while True:
            with self._changed:
                if self._stopping.is_set():  # under the lock: stop() sets it there, then wakes who waits
                    return
                now = time.monotonic()
                limit = self._schedule.ramp.limit
                self._schedule.tick(now, backlog=self._backlog)
                self._start_batches()
                if self._schedule.ramp.limit > limit:
                    self._changed.notify_all()
                rising = self._backlog and self._schedule.ramp.rising
                wake_at = min(self._schedule.due_at or now + REAP_S, now + (TICK_S if rising else REAP_S))
                self._changed.wait(max(0.0, wake_at - now))
            if now >= reap_at:
                self._environments.reap(now)
                reap_at = now + REAP_S

    def _check_visibility(self) -> None:
        try:
            response = self._client.get_queue_attributes(
                QueueUrl=self.config.queue_url, AttributeNames=["VisibilityTimeout"]
            )
            visibility_s = int(response["Attributes"]["VisibilityTimeout"])
        except Exception as error:  # not there yet: the receivers will see
            self._note_error(f"GetQueueAttributes: {type(error).__name__}: {error}")
            return
        if visibility_s < self.config.function_timeout_s:
            raise ValueError(
                f"expected a visibility timeout of at least the function timeout of {self.config.function_timeout_s} s "
                f"on queue {self.config.queue_name}, got {visibility_s} s"
            )

    def _note_error(self, sentence: str) -> None:
        with self._changed:
            self._tally.note_error(sentence, time.time())
        log.warning("event_source_error queue=%s error=%s", self.config.queue_name, sentence)

    def _spawn(self, name: str, target: Callable[[], None]) -> None:
        # Daemon threads: an interpreter that exits without stop() must not wait for the queue's next message.
        thread = threading.Thread(target=target, name=f"{self.config.queue_name}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()
