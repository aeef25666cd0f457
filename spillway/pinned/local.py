"""The local stack's pins: the emulated RDS Proxy's log, and what its admin server remembers."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from spillway.errors import SpillwayError
from spillway.pinned.groups import Group, group, link
from spillway.pinned.lines import MARK, PinLine, read_line
from spillway.rdsproxy.admin import AdminClient
from spillway.rdsproxy.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from spillway.rdsproxy.metrics import PinRecord
    from spillway.stack.state import StackState

LOG = "rdsproxy.log"
SESSIONS_PINNED = "DatabaseConnectionsCurrentlySessionPinned"


def local_pins(state: StackState, since: datetime) -> tuple[list[Group], int]:
    """The groups since then, and how many connections are pinned now. Raises SpillwayError without a proxy."""
    if state.proxy_admin_url is None:
        raise SpillwayError(
            "The local stack runs without an RDS Proxy: nothing can be pinned.",
            "Start it with `spillway up --route proxy`.",
        )
    snapshot = AdminClient(state.proxy_admin_url).snapshot()
    groups = group(_lines(Path(state.log_dir) / LOG, since))
    with_statements(groups, snapshot.pins)
    return groups, int(snapshot.cloudwatch[SESSIONS_PINNED])


def with_statements(groups: Iterable[Group], pins: Iterable[PinRecord]) -> None:
    """Add what the emulator remembers and AWS's log does not have: the rule itself, and the latest statement."""
    known = {}
    for pin in pins:
        if (line := read_line(f"{MARK} Reason: {pin.reason}")) is not None:
            known[line.reason, line.statement] = pin
    for one in groups:
        if (found := known.get((one.reason, one.statement))) is not None:
            one.example = found.sql
            if (rule := RULES.get(found.rule)) is not None:
                one.rule, one.link, one.fix = rule.id, link(rule), rule.fix


def _lines(path: Path, since: datetime) -> Iterator[PinLine]:
    try:
        with path.open(encoding="utf-8", errors="replace") as log:
            for text in log:
                line = read_line(text.rstrip("\n"))
                if line is not None and (line.at is None or line.at >= since):
                    yield line
    except FileNotFoundError as error:
        raise SpillwayError(
            f"The proxy's log {path} is not there.", "`spillway status` says where the logs are."
        ) from error
