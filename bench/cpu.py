"""CPU seconds by kind of process, for this process and everything it started (Linux: read from /proc)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

SENDER, OWN, OTHER = "this process: sender", "this process: rest", "other"
#: A process is of the first kind whose word is in its command line.
KINDS = {
    "awslambdaric": "runtime environments",
    "aws-lambda-rie": "runtime environments",
    "ministack": "SQS server",
    "rdsproxy": "RDS Proxy",
    "postgres": "PostgreSQL",
}
SAMPLE_S = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """Counts from its creation to `stop`; call `sample` in between, often: what ends unseen is missed."""

    def __init__(self) -> None:
        self._kinds: dict[int, str] = {}
        self._seconds: dict[tuple[str, int], float] = {}
        self._sampled_at = 0.0
        self.sample()
        self._before = dict(self._seconds)
        self._own = time.process_time()

    def sample(self) -> None:
        """Look at all processes, unless that was done a moment ago."""
        if time.monotonic() - self._sampled_at < SAMPLE_S:
            return
        self._read()

    def stop(self) -> dict[str, float]:
        """Seconds by kind."""
        own = time.process_time() - self._own
        self._read()
        spent: dict[str, float] = {}
        for key, seconds in self._seconds.items():
            spent[key[0]] = spent.get(key[0], 0.0) + seconds - self._before.get(key, 0.0)
        if SENDER in spent:
            own -= spent[SENDER]
        return dict(sorted(spent.items())) | {OWN: own}

    def _read(self) -> None:
        self._sampled_at = time.monotonic()
        parents: dict[int, int] = {}
        spent: dict[int, float] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(entry / "stat")):
                parents[int(entry.name)] = int(fields[1])
                # utime, stime: of the process itself. Its ended children were sampled while they lived.
                spent[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
        for pid, seconds in spent.items():
            if pid != os.getpid() and _descends(pid, parents):
                kind = self._kinds.get(pid) or self._classify(pid)
                self._seconds[kind, pid] = seconds
        for thread in threading.enumerate():
            if thread.name.startswith("sender") and thread.native_id is not None:
                fields = _stat(Path(f"/proc/self/task/{thread.native_id}/stat"))
                if fields:
                    self._seconds[SENDER, thread.native_id] = (int(fields[11]) + int(fields[12])) / _TICKS

    def _classify(self, pid: int) -> str:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return OTHER
        kind = next((kind for word, kind in KINDS.items() if word in command), None)
        # Not remembered: between fork and exec a process still has its parent's name.
        if kind is not None:
            self._kinds[pid] = kind
        return kind or OTHER


def _stat(path: Path) -> list[str]:
    """The fields after the name, which may hold spaces; [0] is the state. Empty where the process is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False
