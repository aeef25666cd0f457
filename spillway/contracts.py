"""Which contract each worker's queue carries: found, not listed."""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from operator import or_
from pathlib import Path
from typing import Any

import workers
from spillway.errors import SpillwayError
from workers.runtime.envelope import CloudEvent


def _contracts() -> dict[str, Any]:
    """Worker name -> the union of its event types, as `workers.runtime.envelope.EventDecoder` takes it.

    A folder of workers/ with a contract.py is a worker; its event types are the CloudEvents with a tag in there.
    """
    folders = sorted(path.parent for root in workers.__path__ for path in Path(root).glob("*/contract.py"))
    return {folder.name: _union(f"workers.{folder.name}.contract") for folder in folders}


def _union(module: str) -> Any:
    found = [
        value
        for value in vars(import_module(module)).values()
        if isinstance(value, type)
        and issubclass(value, CloudEvent)
        and value.__module__ == module
        # Without a tag= of its own a class has its name for one: a base of the events, none itself.
        and value.__struct_config__.tag != value.__qualname__
    ]
    if not found:
        raise SpillwayError(
            f"{module} has no event type.", "Give it a CloudEvent with tag=; see workers/orders/contract.py."
        )
    return reduce(or_, found)


CONTRACTS: dict[str, Any] = _contracts()


def contract_of(worker: str) -> Any:
    """The contract of `worker`; raises SpillwayError when there is no such worker."""
    try:
        return CONTRACTS[worker]
    except KeyError:
        known = ", ".join(sorted(CONTRACTS))
        raise SpillwayError(f"There is no worker named {worker!r}.", f"Expected one of: {known}.") from None
