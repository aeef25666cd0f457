"""The memory of one execution environment: handles each line of standard input, an SQS event, and prints its peak.

Run by bench.write_path, as a process of its own; the worker's settings are in the environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import awslambdaric.bootstrap  # noqa: F401  (part of every environment's memory)

from workers.orders.handler import handler


class Context:
    """What the handler reads of Lambda's context object."""

    aws_request_id = "5f5e1c5a-0000-4000-8000-000000000000"

    def get_remaining_time_in_millis(self) -> int:
        """Time enough."""
        return 30_000


def status_mb(field: str) -> float:
    """A field of /proc/self/status. Not ru_maxrss, in which Linux lets a child start with its parent's peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6
    raise LookupError(field)


def main() -> None:
    """One line in at a time: the body of an invocation, which the runtime client holds while the handler runs."""
    imported = status_mb("VmHWM")
    context: Any = Context()
    for line in sys.stdin.buffer:
        answer = handler(json.loads(line), context)
        if answer != {"batchItemFailures": []}:
            raise SystemExit("expected every message to be written")
    print(json.dumps({"imported_mb": round(imported, 1), "peak_mb": round(status_mb("VmHWM"), 1)}))


if __name__ == "__main__":
    main()
