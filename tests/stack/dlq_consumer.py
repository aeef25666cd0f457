"""A worker that reads a real queue, and a fleet of one around it: what a redrive needs on the other side."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillway.aws import sqs_client
from spillway.contracts import contract_of
from spillway.stack.batch import received
from spillway.stack.state import StackState, write_state
from tests.stack.commands import until
from tests.unit.fakes import FakeStore
from workers.runtime.dead_letters import ATTRIBUTE, CANARY, REASON
from workers.runtime.settings import Settings
from workers.runtime.sqs import Sqs
from workers.runtime.worker import build_processor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REGION = "us-east-1"
SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 1,
    "database": "none",
    "user": "nobody",
    "auth": "password",
    "password": "none",
    "sslmode": "disable",
    "sslrootcert": "system",
    "connect_timeout": 2,
    "borrow_timeout": 0,
    "statement_timeout": 10,
    "function_timeout": 30,
    "region": REGION,
}
_IDLE_S = 0.01


@cache
def shared_client(endpoint: str) -> Any:
    """One client for all: making one takes a tenth of a second."""
    return sqs_client(endpoint, REGION, connections=20)


class DeadLetters:
    """The queues of one worker on a real SQS server, published as the running local stack's."""

    def __init__(self, endpoint: str, worker: str, directory: Path, *, fifo: bool = False) -> None:
        self.client = shared_client(endpoint)
        self.worker = worker
        self.fifo = fifo
        self.log = directory / f"{worker}.log"
        unique = uuid.uuid4().hex[:8]
        attributes: Any = {"FifoQueue": "true"} if fifo else {}
        self.queue, self.dead = (
            self.client.create_queue(QueueName=f"{name}{unique}{'.fifo' * fifo}", Attributes=attributes)["QueueUrl"]
            for name in (f"{worker}-", f"{worker}-dlq-")
        )
        write_state(
            StackState(
                pid=os.getpid(),
                endpoint_url=endpoint,
                region=REGION,
                queues={worker: self.queue},
                dead_letter_queues={worker: self.dead},
                dsn="",
                started_at=1.0,
                log_dir=str(directory),
            )
        )

    def put(
        self,
        bodies: Iterable[str],
        *,
        group: str = "",
        own: Mapping[str, Any] | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Dead letters as a worker sends them, with its reasons unless they are {}; returns their message ids."""
        ids = []
        for body in bodies:
            said = {"reason": "data", "sqlstate": "23514", "detail": "constraint c", "worker": self.worker}
            said |= {
                "event-type": "one.type",
                "worker-version": "1",
                "message-id": str(uuid.uuid4()),
                "source-queue": "arn",
            }
            said = dict(said if reasons is None else said | reasons if reasons else {})
            attributes: Any = dict(own or {})
            if said:
                attributes[ATTRIBUTE] = {"DataType": "String", "StringValue": json.dumps(said)}
                attributes[REASON] = {"DataType": "String", "StringValue": said["reason"]}
            ordered: Any = (
                {"MessageGroupId": group or "g", "MessageDeduplicationId": uuid.uuid4().hex} if self.fifo else {}
            )
            answer = self.client.send_message(
                QueueUrl=self.dead, MessageBody=body, MessageAttributes=attributes, **ordered
            )
            ids.append(answer["MessageId"])
        return ids

    def depth(self, url: str) -> tuple[int, int]:
        """Visible and invisible messages of a queue."""
        names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return int(found[names[0]]), int(found[names[1]])

    def take(self, url: str) -> list[Any]:
        """Every message of a queue, gone from it."""
        taken: list[Any] = []
        while messages := self.client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        ).get("Messages"):
            taken += messages
            for one in messages:
                self.client.delete_message(QueueUrl=url, ReceiptHandle=one["ReceiptHandle"])
        return taken


class Consumer:
    """Runs a worker's processor on its queue, in a thread, and writes the worker's log where a redrive looks for it.

    `store` is the database; without one every event is applied unless `outcomes` says something else of its id.
    `seen` are the message ids it received, with the message's own attributes' names and its body.
    """

    def __init__(
        self, letters: DeadLetters, *, store: Any = None, outcomes: dict[str, tuple[Any, ...]] | None = None
    ) -> None:
        self._letters = letters
        self.store = store or FakeStore(outcomes)
        self.seen: dict[str, tuple[frozenset[str], str]] = {}
        self.order: list[str] = []
        self._stop = threading.Event()
        self._log = letters.log.open("a", buffering=1, encoding="utf-8")
        settings = Settings(
            **SETTINGS, queue_url=letters.queue, dead_letter_queue_url=letters.dead, queue_visibility_timeout=30
        )
        self._client = client = letters.client
        self._to_row = importlib.import_module(f"workers.{letters.worker}.handler").to_row
        self._processor = build_processor(
            letters.worker, contract_of(letters.worker), settings, self.store, sqs=Sqs(lambda: client)
        )
        # Powertools' logger keeps the standard output that it saw first, for all loggers of this name.
        self._handler = self._processor._telemetry._logger.registered_handler
        self._handler.stream = self._log  # type: ignore[attr-defined]
        self._processor._telemetry.batch = lambda *_, **__: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> Consumer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._handler.stream = sys.__stdout__  # type: ignore[attr-defined]
        self._log.close()
        self.store.discard()
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        """Wait until its queue is empty."""
        until(lambda: self._letters.depth(self._letters.queue) == (0, 0), "an empty queue")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                messages = self._client.receive_message(
                    QueueUrl=self._letters.queue,
                    MaxNumberOfMessages=10,
                    VisibilityTimeout=30,
                    MessageAttributeNames=["All"],
                    MessageSystemAttributeNames=["All"],
                ).get("Messages", [])
                if messages:
                    self._process(messages)
                else:
                    self._stop.wait(_IDLE_S)
        except BaseException as error:
            self._error = error

    def _process(self, messages: list[Any]) -> None:
        for one in messages:
            self.seen[one["MessageId"]] = (frozenset(one.get("MessageAttributes", {})) - {CANARY}, one["Body"])
            self.order.append(one["Body"])
        name = self._letters.queue.rpartition("/")[2]
        records = [
            json.loads(received(one, queue_arn=f"arn:aws:sqs:{REGION}:000000000000:{name}", region=REGION).record)
            for one in messages
        ]
        with self._processor(records, self._to_row):
            self._processor.process()
        failed = {one["itemIdentifier"] for one in self._processor.response()["batchItemFailures"]}
        for one in messages:
            if one["MessageId"] not in failed:
                with suppress(self._client.exceptions.ReceiptHandleIsInvalid):
                    self._client.delete_message(QueueUrl=self._letters.queue, ReceiptHandle=one["ReceiptHandle"])
