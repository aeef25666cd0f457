"""template.yaml with other numbers in a worker's section, as tests and benchmarks want it."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from spillway.stack.template import TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT = (r"(?<=\bTimeout: )!FindInMap.*", r"(?<=FUNCTION_TIMEOUT: )!FindInMap.*")
_VISIBILITY = (r"(?<=VisibilityTimeout: )!FindInMap.*", r"(?<=QUEUE_VISIBILITY_TIMEOUT: )!FindInMap.*")
_BATCH_SIZE = (r"(?<=BatchSize: )\d+",)


def changed_template(workers: Mapping[str, Mapping[str, int]]) -> str:
    """The template's text with `timeout`, `visibility` (both in seconds) and `batch_size` of some workers changed.

    Raises ValueError where a worker, or one of its numbers, is not found exactly once.
    """
    text = TEMPLATE.read_text(encoding="utf-8")
    for worker, numbers in workers.items():
        start, end = _section(text, worker)
        section = text[start:end]
        for name, value in numbers.items():
            for pattern in {"timeout": _TIMEOUT, "visibility": _VISIBILITY, "batch_size": _BATCH_SIZE}[name]:
                section, count = re.subn(pattern, str(value), section)
                if count != 1:
                    raise ValueError(f"{worker}: expected {pattern} once, found it {count} times")
        text = text[:start] + section + text[end:]
    return text


def _section(text: str, worker: str) -> tuple[int, int]:
    banners = [match.start() for match in re.finditer(r"^ *# ── ", text, re.MULTILINE)] + [len(text)]
    found = [(start, end) for start, end in itertools.pairwise(banners) if re.match(rf" *# ── {worker} ", text[start:])]
    if len(found) != 1:
        raise ValueError(f"expected one section named {worker} in template.yaml, found {len(found)}")
    return found[0]
