"""Files that commands read: by name, or standard input for `-`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """The file, to be read more than once; standard input is first copied to a temporary file.

    Raises SpillwayError where it cannot be opened.
    """
    if file == "-":
        with tempfile.TemporaryFile() as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool)
            spool.seek(0)
            yield spool
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115 - closed below; only opening it may fail with this message
    except OSError as error:
        raise SpillwayError(f"Cannot read {file}: {error.strerror}.", "Name a JSONL file, or - for stdin.") from error
    with source:
        yield source
