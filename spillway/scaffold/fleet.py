"""A new worker's part of template.yaml, made of what stands there for another one: both always have the same shape."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from spillway.errors import SpillwayError
from spillway.scaffold.names import camel

if TYPE_CHECKING:
    from collections.abc import Callable

    from spillway.scaffold.names import Names

#: The worker that is copied: a standard queue, and nothing in its section that other workers would not need.
MODEL, _MODELS, _MODEL_SINGULAR = "orders", "Orders", "order"
MAX_WIDTH = 120

_BANNER = re.compile(r"  # ── (\w+)\b.* ─+")
_TOP = re.compile(r"(\w+):")
_KEY = re.compile(r"  (\w+):")


def with_worker(template: str, names: Names) -> str:
    """`template`, the text of template.yaml, with a section, parameters and outputs for the worker `names`.

    Raises SpillwayError where there is nothing to copy, and where something of that name is there already.
    """
    lines = template.splitlines(keepends=True)
    taken = {match[1] for line in lines if (match := _KEY.match(line))}

    def renamed(line: str) -> str:
        line = re.sub(rf"\b{_MODEL_SINGULAR}(?= events?\b)", names.word, line)
        return line.replace(_MODELS, names.class_names).replace(MODEL, names.name)

    section = _section(lines)
    added = [renamed(line) for line in lines[section]]
    banner = f"  # ── {names.name} "
    added[0] = banner + "─" * (len(lines[section.start].rstrip("\n")) - len(banner)) + "\n"
    workers = _workers(lines)

    places: list[tuple[int, list[str]]] = [(workers[-1][1], added)]
    for part in ("Parameters", "Outputs"):
        blocks = _blocks(lines, part)
        models = [block for block in blocks if block[0].startswith(_MODELS)]
        if not models:
            raise _nothing_to_copy(f"{_MODELS}... under {part}")
        # Another worker may have more of its own elsewhere; what each of them has stands together.
        common = {worker + key.removeprefix(_MODELS) for key, *_ in models for worker, _ in workers}
        copied = [renamed(line) for _, start, end in models for line in lines[start:end]]
        places.append((max(end for key, _, end in blocks if key in common), copied))

    places += _listed(lines, section, renamed)

    new = {match[1] for _, block in places for line in block if (match := _KEY.match(line))}
    if clash := sorted(new & taken):
        raise SpillwayError(f"template.yaml has a {clash[0]} already.", "Choose another name.")
    for place, block in sorted(places, key=lambda one: one[0], reverse=True):
        lines[place:place] = block
    return _with_groups("".join(lines), renamed)


def _listed(lines: list[str], section: slice, renamed: Callable[[str], str]) -> list[tuple[int, list[str]]]:
    """Where other resources list the workers, the new one comes last: the list items that name the model, renamed."""
    resources = next(number for number, line in enumerate(lines) if line.startswith("Resources:"))
    places = []
    for number in range(resources, len(lines)):
        item = re.match(r"(?: *- )+", lines[number])
        if item is None or _MODELS not in lines[number] or section.start <= number < section.stop:
            continue
        # A list's first item may stand behind the dash of another list's.
        dash = " " * (item.end() - 2) + "- "
        end = number + 1
        while lines[end].startswith(dash):
            end += 1
        places.append((end, [dash + renamed(lines[number][item.end() :])]))
    return places


def _section(lines: list[str]) -> slice:
    """The lines of the model's section, its banner first."""
    found = [bounds for name, *bounds in _sections(lines) if name == MODEL]
    if len(found) != 1:
        raise _nothing_to_copy(f"section with the banner '# ── {MODEL} ──'")
    return slice(*found[0])


def _workers(lines: list[str]) -> list[tuple[str, int]]:
    """Of each section that has a queue: how its logical ids begin, and where it ends."""
    return [
        (camel(name), end)
        for name, start, end in _sections(lines)
        if any("Type: AWS::SQS::Queue" in line for line in lines[start:end])
    ]


def _sections(lines: list[str]) -> list[tuple[str, int, int]]:
    """Name and bounds of every section under a banner."""
    starts = [number for number, line in enumerate(lines) if _BANNER.match(line) or _TOP.match(line)]
    return [
        (match[1], start, end)
        for start, end in itertools.pairwise([*starts, len(lines)])
        if (match := _BANNER.match(lines[start]))
    ]


def _blocks(lines: list[str], part: str) -> list[tuple[str, int, int]]:
    """Key and bounds of everything under the top-level key `part`."""
    tops = [number for number, line in enumerate(lines) if _TOP.match(line)] + [len(lines)]
    for top, bottom in itertools.pairwise(tops):
        if lines[top].startswith(f"{part}:"):
            end = bottom
            while not lines[end - 1].strip():
                end -= 1
            starts = [number for number in range(top, end) if _KEY.match(lines[number])]
            return [
                (lines[start].strip().rstrip(":"), start, stop) for start, stop in itertools.pairwise([*starts, end])
            ]
    raise _nothing_to_copy(f"top-level {part}")


def _with_groups(template: str, renamed: Callable[[str], str]) -> str:
    """The model's parameters stand in a group of the console's form; the new worker's come after the last of a kind."""
    metadata = template.index("Metadata:")
    end = template.index("\nParameters:", metadata)
    groups = template[metadata:end]
    for parameter in re.findall(rf"\b{_MODELS}(\w+)\b", groups):
        last = re.findall(rf"\b\w+{parameter}\b", groups)[-1]
        groups = _after(groups, last, renamed(_MODELS) + parameter)
    return template[:metadata] + groups + template[end:]


def _after(groups: str, known: str, new: str) -> str:
    """The list that holds `known` with `new` behind it, in its own style unless the line gets too long."""
    start = groups.rindex("\n", 0, groups.rindex(known)) + 1
    end = groups.find("\n", start)
    line = groups[start:] if end < 0 else groups[start:end]
    if line.lstrip().startswith("- "):
        longer = f"{line}\n{line.replace(known, new)}"
    else:
        longer = line.replace(known, f"{known}, {new}")
        if len(longer) > MAX_WIDTH and (flow := re.fullmatch(r"( +)(\w+): \[(.*)\]", longer)):
            indent, key, entries = flow.groups()
            longer = "\n".join([f"{indent}{key}:", *(f"{indent}  - {entry}" for entry in entries.split(", "))])
    return groups[:start] + longer + groups[start + len(line) :]


def _nothing_to_copy(what: str) -> SpillwayError:
    return SpillwayError(
        f"template.yaml has no {what}.",
        f"A new worker's part of it is a copy of what {MODEL} has there: restore that first.",
    )
