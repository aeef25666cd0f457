"""What an interrupted send leaves behind: the ids of the events that SQS confirmed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TextIO

import msgspec

from spillway.errors import SpillwayError


class _Header(msgspec.Struct, frozen=True):
    journal_for: str


class Journal:
    """A text file of event ids behind a line that names where they were sent.

    Ids and not line numbers, since the file may be corrected between two tries. It is a convenience, not a promise:
    losing its end costs sending a few events twice, which has no effect. So it is flushed by line and never synced.
    """

    def __init__(self, path: Path, target: str, *, resume: bool) -> None:
        """Open the journal at `path`; `resume` keeps what an earlier send to the same `target` confirmed.

        Raises SpillwayError when the journal to resume is another target's, OSError when it cannot be written.
        """
        self.path = path
        self.confirmed = _read(path, target) if resume else frozenset[str]()
        # Written anew, so that a line torn by a crash does not swallow the first id that follows it.
        self._file: TextIO = path.open("w", encoding="ascii", buffering=1)
        self._file.write(msgspec.json.encode(_Header(target)).decode("ascii", "replace") + "\n")
        self._file.writelines(f"{event_id}\n" for event_id in self.confirmed)

    def confirm(self, event_id: str) -> None:
        """SQS has this event."""
        self._file.write(f"{event_id}\n")

    def finish(self) -> None:
        """Everything was sent: nothing is left to resume."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _read(path: Path, target: str) -> frozenset[str]:
    try:
        header, *ids = path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)
        found = msgspec.json.decode(header, type=_Header).journal_for
    except FileNotFoundError:
        return frozenset()
    except (ValueError, msgspec.DecodeError):
        raise SpillwayError(f"{path} is not a journal.", "Remove it, or send without --resume.") from None
    if found != target:
        raise SpillwayError(
            f"{path} is from sending to another queue, or to a local stack that is gone.",
            "Send without --resume: what arrived before has no second effect.",
        )
    return frozenset(line.rstrip("\n") for line in ids if line.endswith("\n"))
