"""What became of a canary: one message whose worker was asked to tell (workers/runtime/telemetry.py, `canary`).

Locally the line is in the function's log file, on AWS in its log group, some seconds later.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from workers.runtime.dead_letters import CANARY
from workers.runtime.writer import DONE

if TYPE_CHECKING:
    from spillway.fleet.fleet import Fleet, Worker

__all__ = ["CANARY", "Fate", "Watch", "watch"]

#: What a worker's log line names it.
MESSAGE = "canary"
_TIMESTAMP = "%Y-%m-%d %H:%M:%S,%f%z"  # Powertools' logger


class Fate(msgspec.Struct, kw_only=True, frozen=True):
    """What one try of a canary came to: an outcome of docs/outcomes.md, and for a dead letter why.

    One that was given back comes again, and has another fate then. `at` is the worker's clock.
    """

    message_id: str
    outcome: str
    at: datetime
    reason: str = ""
    detail: str = ""
    sqlstate: str = ""

    @property
    def done(self) -> bool:
        """It took effect, or changed nothing because it had before, or a business rule refused it."""
        return self.outcome in DONE

    @property
    def dead(self) -> bool:
        return self.outcome == "dead-lettered"


class Watch(Protocol):
    """Waits for the canaries of one name."""

    def poll(self) -> list[Fate]:
        """The fates that became known since the last call, in the order they were told."""
        ...


def watch(fleet: Fleet, worker: Worker, name: str, since: datetime) -> Watch:
    """A watch for canaries whose attribute says `name`, sent to the queue of `worker` at `since` or later."""
    if fleet.local is not None:
        return LogFile(Path(worker.logs), name)
    return LogGroup(fleet.client("logs"), worker.logs, name, since)


class LogFile:
    """Follows a function's log file from where it ends now; it may not exist yet."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._read = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def poll(self) -> list[Fate]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = self._rest + file.read()
            self._read = file.tell()
        *lines, self._rest = text.split(b"\n")  # a line that is still being written is read the next time
        return [fate for line in lines if (fate := _fate(line.decode(errors="replace"), self._name)) is not None]


class LogGroup:
    """Asks CloudWatch Logs. A line may show up late and out of order, so each call reads everything since `since`."""

    def __init__(self, client: Any, log_group: str, name: str, since: datetime) -> None:
        self._client = client
        self._log_group = log_group
        self._name = name
        self._since_ms = int(since.timestamp() * 1000)
        self._told: set[str] = set()

    def poll(self) -> list[Fate]:
        pages = self._client.get_paginator("filter_log_events").paginate(
            logGroupName=self._log_group,
            startTime=self._since_ms,
            filterPattern=f'{{ $.message = "{MESSAGE}" && $.canary = "{self._name}" }}',
        )
        fates = []
        for page in pages:
            for event in page["events"]:
                if event["eventId"] not in self._told:
                    self._told.add(event["eventId"])
                    if (fate := _fate(event["message"], self._name)) is not None:
                        fates.append(fate)
        return fates


def _fate(line: str, name: str) -> Fate | None:
    if f'"{MESSAGE}"' not in line:
        return None
    try:
        said = json.loads(line)
        if said["message"] != MESSAGE or said["canary"] != name:
            return None
        return Fate(
            message_id=said["message_id"],
            outcome=said["outcome"],
            at=datetime.strptime(said["timestamp"], _TIMESTAMP).astimezone(UTC),
            reason=said.get("reason", ""),
            detail=said.get("detail", ""),
            sqlstate=said.get("sqlstate", ""),
        )
    except (ValueError, LookupError, TypeError):
        return None  # somebody else's line
