"""A redrive as it was asked for: which letters of which queue, where to, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spillway.dlq.destination import Destination
    from spillway.dlq.filters import Filter
    from spillway.dlq.orders import Orders
    from spillway.fleet.fleet import Fleet, Worker


@dataclass(frozen=True, slots=True)
class Job:
    """The dead letters of `worker` that `filter` selects, to `target`, by `orders`."""

    fleet: Fleet
    worker: Worker
    target: Destination
    orders: Orders
    filter: Filter
