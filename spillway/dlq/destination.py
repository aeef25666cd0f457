"""Where a redrive sends to: the worker's own queue, another worker's, or any queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from spillway.errors import SpillwayError
from spillway.fleet.fleet import queue_name

if TYPE_CHECKING:
    from spillway.fleet.fleet import Fleet, Worker


class BadDestination(SpillwayError):
    """A destination that cannot be meant."""

    exit_code = 2


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """A queue. `worker` reads it, '' if none of the fleet does; `contract` is whose contract its events follow."""

    url: str
    worker: str
    contract: str

    @property
    def name(self) -> str:
        return queue_name(self.url)

    @property
    def fifo(self) -> bool:
        return self.url.endswith(".fifo")


def destination_of(fleet: Fleet, worker: Worker, to: str | None) -> Destination:
    """Where the dead letters of `worker` go: what `to` names, a worker, its queue, or any queue's URL.

    Raises SpillwayError for what is no queue of the fleet, or a dead-letter queue.
    """
    if to is None:
        return _of(worker)
    if any(to.rstrip("/") == one.dead_letter_url for one in fleet.workers.values()):
        raise _is_dead_letter_queue(to)
    if to.startswith(("http://", "https://")):
        known = [one for one in fleet.workers.values() if one.queue_url == to.rstrip("/")]
        return _of(known[0]) if known else Destination(url=to.rstrip("/"), worker="", contract=worker.name)
    found = fleet.find_worker(to)
    said = queue_name(to.rpartition(":")[2]).removesuffix(".fifo")
    dead = found.dead_letter_queue.removesuffix(".fifo")
    if said in (dead, dead.removeprefix(f"{fleet.name}-")):
        raise _is_dead_letter_queue(to)
    return _of(found)


def _of(worker: Worker) -> Destination:
    return Destination(url=worker.queue_url, worker=worker.name, contract=worker.name)


def _is_dead_letter_queue(to: str) -> BadDestination:
    return BadDestination(f"{to} is a dead-letter queue.", "Name a queue that a worker reads, or the worker.")
