"""Which contract each worker's queue carries."""

from __future__ import annotations

from typing import Any

from spillway.errors import SpillwayError
from workers.orders.contract import OrderEvent

#: Worker name -> the union of its event types, as `workers.runtime.envelope.EventDecoder` takes it.
CONTRACTS: dict[str, Any] = {"orders": OrderEvent}


def contract_of(worker: str) -> Any:
    """The contract of `worker`; raises SpillwayError when there is no such worker."""
    try:
        return CONTRACTS[worker]
    except KeyError:
        known = ", ".join(sorted(CONTRACTS))
        raise SpillwayError(f"There is no worker named {worker!r}.", f"Expected one of: {known}.") from None
