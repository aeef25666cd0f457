"""Deleting messages and giving them back, in tens, against a server that may fail some entries or every call."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from mypy_boto3_sqs import SQSClient

    from spillway.stack.batch import Received

log = logging.getLogger(__name__)

BATCH_ENTRIES = 10
"""Entries in one DeleteMessageBatch or ChangeMessageVisibilityBatch (SQS API Reference)."""
ENTRY_ATTEMPTS = 4
"""How often an entry that the server answered with a failure is sent."""
CALL_ATTEMPTS = 8
"""How often a call that failed as a whole (HTTP 500, connection refused) is sent: about 10 s of patience."""
_BASE_S, _CAP_S = 0.1, 4.0


def backoff_s(attempt: int, *, base_s: float = _BASE_S, cap_s: float = _CAP_S) -> float:
    """Full-jitter exponential back-off in seconds after failed attempt number `attempt`, from 1."""
    return random.uniform(0, min(cap_s, base_s * 2.0 ** min(attempt, 32)))  # noqa: S311 - jitter, not a secret


class Acknowledger:
    """Deletes or returns messages of one queue; what it cannot do it reports, for the message comes again anyway.

    `give_up`, once set, ends every wait: what is pending then is tried once and left. `on_error` hears of each failed
    attempt, in one sentence.
    """

    def __init__(
        self, client: SQSClient, queue_url: str, *, give_up: threading.Event, on_error: Callable[[str], None]
    ) -> None:
        self._client = client
        self._queue_url = queue_url
        self._give_up = give_up
        self._on_error = on_error

    def delete(self, messages: Sequence[Received]) -> list[Received]:
        """Delete `messages`; return those that could not be."""

        def call(entries: list[dict[str, Any]]) -> Any:
            return self._client.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)  # type: ignore[arg-type]

        return self._in_tens(call, messages, {})

    def give_back(self, messages: Sequence[Received]) -> list[Received]:
        """Make `messages` visible again at once; return those that stay invisible for their visibility timeout."""

        def call(entries: list[dict[str, Any]]) -> Any:
            return self._client.change_message_visibility_batch(QueueUrl=self._queue_url, Entries=entries)  # type: ignore[arg-type]

        return self._in_tens(call, messages, {"VisibilityTimeout": 0})

    def _in_tens(
        self, call: Callable[[list[dict[str, Any]]], Any], messages: Sequence[Received], extra: dict[str, Any]
    ) -> list[Received]:
        left: list[Received] = []
        for start in range(0, len(messages), BATCH_ENTRIES):
            left += self._ten(call, messages[start : start + BATCH_ENTRIES], extra)
        return left

    def _ten(
        self, call: Callable[[list[dict[str, Any]]], Any], messages: Sequence[Received], extra: dict[str, Any]
    ) -> list[Received]:
        pending = {str(index): message for index, message in enumerate(messages)}
        hopeless: list[Received] = []
        failed_calls = failed_entries = 0
        while pending:
            entries = [{"Id": key, "ReceiptHandle": one.receipt_handle, **extra} for key, one in pending.items()]
            try:
                failed = call(entries).get("Failed", [])
            except Exception as error:  # whatever it is, the next attempt may do
                self._on_error(f"{type(error).__name__}: {error}")
                failed_calls += 1
                if failed_calls >= CALL_ATTEMPTS:
                    break
                if self._give_up.wait(backoff_s(failed_calls)):
                    break
                continue
            # A sender fault (a receipt handle that has expired) fails the same way every time.
            hopeless += [pending[entry["Id"]] for entry in failed if entry.get("SenderFault")]
            pending = {entry["Id"]: pending[entry["Id"]] for entry in failed if not entry.get("SenderFault")}
            for entry in failed:
                self._on_error(f"{entry.get('Code')}: {entry.get('Message')}")
            if pending:
                failed_entries += 1
                if failed_entries >= ENTRY_ATTEMPTS or self._give_up.wait(backoff_s(failed_entries)):
                    break
        return hopeless + list(pending.values())
