"""Hides parts of a message before it is shown."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from spillway.dlq.filters import BadFilter

HIDDEN = "***"

_STEP = re.compile(
    r"""(?P<dot>\.)?(?P<name>[^\s.\[\]"*]+|"(?:[^"\\]|\\.)*")   # a field, in quotes if its name is unusual
      | (?P<every>\[\*\]|\.?\*)                                  # every element, every field
      | \[(?P<index>-?\d+)\]""",
    re.VERBOSE,
)


class Path(msgspec.Struct, frozen=True):
    """A place in JSON such as `data.customer` or `data.items[*].sku`. A step is a field, an index, or None for all."""

    text: str
    steps: tuple[str | int | None, ...]

    @classmethod
    def parse(cls, text: str) -> Path:
        """Raises BadFilter with a caret under the character."""
        begins = 2 if text.startswith("$.") else 1 if text.startswith("$[") else 0
        steps: list[str | int | None] = []
        at = begins
        while at < len(text):
            step = _STEP.match(text, at)
            if step is None or (step["name"] and bool(step["dot"]) != bool(steps)):
                raise _bad(text, at)
            if name := step["name"]:
                try:
                    steps.append(msgspec.json.decode(name, type=str) if name.startswith('"') else name)
                except msgspec.DecodeError:
                    raise _bad(text, at) from None
            else:
                steps.append(None if step["every"] else int(step["index"]))
            at = step.end()
        if not steps:
            raise BadFilter("--redact is empty.", "Expected a path like data.customer.")
        return cls(text, tuple(steps))

    def hide(self, value: Any) -> int:
        """Put HIDDEN in this place of `value`, decoded JSON, wherever there is something; returns how often."""
        return _hide(value, self.steps)


def _bad(text: str, at: int) -> BadFilter:
    return BadFilter(
        f"--redact is no path:\n  {text}\n  {' ' * at}^",
        'Expected one like data.customer, data.items[*].sku, data.items[0] or data."odd name".',
    )


def _hide(value: Any, steps: tuple[str | int | None, ...]) -> int:
    step, *rest = steps
    keys: list[Any]
    if isinstance(value, dict):
        keys = list(value) if step is None else [step] if step in value else []
    elif isinstance(value, list):
        within = isinstance(step, int) and -len(value) <= step < len(value)
        keys = list(range(len(value))) if step is None else [step] if within else []
    else:
        return 0
    if rest:
        return sum(_hide(value[key], tuple(rest)) for key in keys)
    for key in keys:
        value[key] = HIDDEN
    return len(keys)
