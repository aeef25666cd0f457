"""Dead letters into a file, and out of their queue for good."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import msgspec

from spillway.dlq import owner, reading
from spillway.dlq.files import BadLine, End, Header, Numbered, entry_of, line_of, read_lines
from spillway.dlq.groups import Groups
from spillway.dlq.reading import Coverage, Depth
from spillway.dlq.records import DONE, FAILED, INTERRUPTED
from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from spillway.dlq.filters import Filter
    from spillway.dlq.groups import Group
    from spillway.dlq.holding import Holder
    from spillway.dlq.journal import Journal
    from spillway.dlq.letters import Letter
    from spillway.fleet.fleet import Fleet, Worker

#: Letters that are deleted between two looks at whether to stop.
PIECE = 100
#: Seconds between two looks at whether what is held must be renewed.
RENEW_S = 15.0


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export came to. `complete` is whether the file has every letter of the queue that was asked for, as far
    as SQS's own, approximate count tells; `sha256` is the file's."""

    queue: str
    file: str
    letters: int
    bytes: int
    sha256: str
    complete: bool
    interrupted: bool
    coverage: Coverage
    groups: list[Group]


class Discarded(msgspec.Struct, frozen=True, kw_only=True):
    """What a discard came to: of the `selected` letters, all of which `file` has, `deleted` are gone and `kept` stay.
    `run` is the journal's."""

    queue: str
    file: str
    sha256: str
    selected: int
    deleted: int
    kept: int
    interrupted: bool
    run: str


class LetterFile:
    """A file that is there whole or not at all, and for its owner's eyes: it holds bodies.

    Used as a context manager; without `publish` nothing is left of it. Raises SpillwayError for a file that is there,
    unless `replace`, with `hint`, and OSError.
    """

    def __init__(self, path: Path, *, replace: bool = False, hint: str = "Name another file, or remove it.") -> None:
        self.path = path
        self._replace = replace
        self._hint = hint
        self._refuse_what_is_there()
        try:
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
        except OSError as error:
            raise SpillwayError(
                f"Cannot write {path}: {error.strerror}.", "Name a file in a directory of yours."
            ) from error
        self._temporary = Path(temporary)
        self.file: BinaryIO = os.fdopen(descriptor, "wb")

    def publish(self) -> None:
        """Close it, all of it on the disk, and give it its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._refuse_what_is_there()
        self._temporary.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the name, too
        finally:
            os.close(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self._temporary.unlink(missing_ok=True)

    def _refuse_what_is_there(self) -> None:
        if not self._replace and self.path.exists():
            raise SpillwayError(f"{self.path} is there already.", self._hint)


def export(
    fleet: Fleet,
    worker: Worker,
    chosen: Filter,
    holder: Holder,
    file: BinaryIO,
    *,
    name: str,
    depth: Depth,
    limit: int | None = None,
    stop: threading.Event,
    on_letter: Callable[[Letter], object] = lambda _: None,
) -> Exported:
    """Write the letters that `chosen` lets through to `file`, whose name is `name`, as they come; all stay held.

    `depth` is the queue's, asked for just before. On a FIFO queue letters come in the order of their groups.
    `on_letter` sees each that was read. With `limit` letters written, or `stop` set, it ends early.
    """
    writer = _Writer(file)
    groups = Groups()
    header = Header(
        queue=worker.dead_letter_queue,
        worker=worker.name,
        fleet=fleet.identity,
        exported_at=datetime.now(UTC),
        filter=chosen.described(),
    )
    writer.write(line_of(header))
    read = 0

    def keep(letter: Letter) -> bool:
        nonlocal read
        read += 1
        on_letter(letter)
        if chosen.matches(letter):
            writer.write(line_of(entry_of(letter)))
            groups.add(letter)
        return groups.count == limit

    at_end = reading.read(holder, keep, threads=1 if worker.fifo else reading.THREADS, stop=stop)
    coverage = Coverage(read=read, depth=depth, to_the_end=at_end, fifo=worker.fifo)
    complete = at_end and coverage.complete and not stop.is_set()
    writer.write(line_of(End(letters=groups.count, complete=complete)))
    return Exported(
        queue=worker.dead_letter_queue,
        file=name,
        letters=groups.count,
        bytes=writer.size,
        sha256=writer.digest.hexdigest(),
        complete=complete,
        interrupted=stop.is_set(),
        coverage=coverage,
        groups=list(groups),
    )


def read_back(path: Path, exported: Exported) -> list[str]:
    """The message ids of a file that `export` wrote, read from the disk again.

    Raises SpillwayError unless it is byte for byte what was written.
    """
    ids: list[str] = []
    with path.open("rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == exported.sha256
        file.seek(0)
        for line in read_lines(file):
            if isinstance(line, Numbered):
                ids.append(line.entry.message_id)
            same = same and not isinstance(line, BadLine)
    if not same or len(set(ids)) != exported.letters:
        raise SpillwayError(f"{path} is not what was written into it. Nothing was deleted.", "Is the disk sound?")
    return ids


def discard(
    fleet: Fleet,
    worker: Worker,
    chosen: Filter,
    holder: Holder,
    *,
    journal: Journal,
    exported: Exported,
    ids: list[str],
    stop: threading.Event,
    on_deleted: Callable[[int], object] = lambda _: None,
) -> Discarded:
    """Delete the letters `ids`, which `holder` holds and the file of `exported` has, and no others.

    `on_deleted` is told how many at a time. What SQS does not confirm stays. The journal has the run before the first
    is deleted: if it cannot be written, nothing is.
    """
    run = journal.begin(
        kind="discard",
        fleet=fleet.identity,
        queue=worker.dead_letter_queue,
        filter=chosen,
        details={"file": str(Path(exported.file).resolve()), "sha256": exported.sha256},
        who=owner.caller(fleet),
    )
    deleted = 0

    def counts() -> dict[str, int]:
        return {"selected": len(ids), "deleted": deleted, "kept": len(ids) - deleted}

    try:
        for start in range(0, len(ids), PIECE):
            if stop.is_set():
                break
            gone = len(holder.delete(ids[start : start + PIECE]))
            deleted += gone
            on_deleted(gone)
    except BaseException as error:
        run.finish(counts(), INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
        raise
    interrupted = stop.is_set() and deleted < len(ids)
    run.finish(counts(), INTERRUPTED if interrupted else DONE)
    return Discarded(
        queue=exported.queue,
        file=exported.file,
        sha256=exported.sha256,
        selected=len(ids),
        deleted=deleted,
        kept=len(ids) - deleted,
        interrupted=interrupted,
        run=run.id,
    )


@contextmanager
def kept_held(holder: Holder) -> Iterator[None]:
    """Within, what is held stays held, however long a person thinks."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_S):
            with suppress(Exception):  # what is no longer held is not deleted, and said to stay
                holder.renew()

    thread = threading.Thread(target=renew, name="dlq-renew", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Writer:
    """Counts and digests what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self.size += len(line)
        self.digest.update(line)
