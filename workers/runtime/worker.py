"""Puts a worker together from its contract and SQL function; the one place that knows the warm environment."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from workers.runtime.attempts import Attempts
from workers.runtime.breaker import Breaker
from workers.runtime.bulk import BulkBatchProcessor
from workers.runtime.calls import Calls
from workers.runtime.database import Database
from workers.runtime.dead_letters import DeadLetterQueue
from workers.runtime.envelope import EventDecoder
from workers.runtime.settings import Settings
from workers.runtime.sqs import Sqs
from workers.runtime.telemetry import Telemetry
from workers.runtime.visibility import Visibility
from workers.runtime.writer import BatchWriter

if TYPE_CHECKING:
    from workers.runtime.calls import Store


def build_processor(
    name: str,
    contract: Any,
    settings: Settings,
    store: Store,
    *,
    sqs: Sqs | None = None,
    breaker: Breaker | None = None,
) -> BulkBatchProcessor:
    """The processor of worker `name`, which writes through the SQL function spillway.apply_<name>."""
    sqs = sqs or Sqs(url=settings.queue_url or settings.dead_letter_queue_url)
    calls = Calls(
        store, attempt_s=settings.attempt, connect_timeout_s=settings.connect_timeout, breaker=breaker or Breaker()
    )
    return BulkBatchProcessor(
        decoder=EventDecoder(contract),
        writer=BatchWriter(calls, statement(name)),
        dead_letters=DeadLetterQueue(settings.dead_letter_queue_url, name, sqs),
        telemetry=Telemetry(name),
        visibility=Visibility(settings.queue_url, sqs, max_delay_s=settings.retry_max_delay),
        attempts=Attempts(calls, name, survived_s=settings.survived),
        breaker=calls.breaker,
        function_timeout_s=settings.function_timeout,
    )


@cache
def warm_processor(name: str, contract: Any) -> BulkBatchProcessor:
    """This environment's processor, made once at cold start. Raises SettingsError when the environment is wrong."""
    settings = Settings.from_env(os.environ)
    return build_processor(name, contract, settings, Database(settings))


def statement(name: str) -> str:
    """The one statement of worker `name`: constant and tiny, so nothing on the wire can pin a proxy session."""
    return f"SELECT event_id, outcome, reason, detail FROM spillway.apply_{name}(%s)"  # noqa: S608  (name is code's)
