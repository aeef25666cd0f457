"""Puts a worker together from its contract and SQL function; the one place that knows the warm environment."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from workers.runtime.bulk import BulkBatchProcessor
from workers.runtime.database import Database
from workers.runtime.dead_letters import DeadLetterQueue
from workers.runtime.envelope import EventDecoder
from workers.runtime.settings import Settings
from workers.runtime.telemetry import Telemetry
from workers.runtime.writer import BatchWriter

if TYPE_CHECKING:
    from workers.runtime.writer import Store


def build_processor(name: str, contract: Any, settings: Settings, store: Store) -> BulkBatchProcessor:
    """The processor of worker `name`, which writes through the SQL function spillway.apply_<name>."""
    writer = BatchWriter(
        store,
        statement(name),
        attempt_s=settings.attempt,
        connect_timeout_s=settings.connect_timeout,
    )
    return BulkBatchProcessor(
        EventDecoder(contract),
        writer,
        DeadLetterQueue(settings.dead_letter_queue_url, name),
        Telemetry(name),
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
