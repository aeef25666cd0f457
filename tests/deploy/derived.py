"""A copy of the fleet that ministack deploys: its templates, its code, and the list of what the copy has otherwise.

ministack is no AWS. What it refuses is taken out, what it takes but does not run is led to this machine, and both are
entries of a list (tests/deploy/fleet.py) with their reason. `change_all` refuses an entry that finds nothing to change,
so that the list says no more than what is true; `unknown_types` says which types ministack refuses, so that it says no
less.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samcli.yamlhelper import yaml_dump, yaml_parse

from spillway.stack.template import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Template = dict[str, Any]
Properties = dict[str, Any]

ROOT = "template.yaml"
FUNCTION = "AWS::Serverless::Function"
#: What `sam build` reads besides the templates.
SOURCES = ("Makefile", "pyproject.toml", "requirements.txt", "requirements-local.txt", "requirements-dev.txt")
_PRINT_TYPES = (
    "from ministack.services.cloudformation.provisioners import _RESOURCE_HANDLERS as known; print(*known, sep='\\n')"
)


@dataclass(frozen=True)
class Change:
    """One thing that the copy has otherwise.

    `change` is given each template with its path, changes it and yields the logical ids it touched.
    """

    what: str
    why: str
    change: Callable[[str, Template], Iterator[str]]


@dataclass(frozen=True)
class Applied:
    """A change with the places it was made in, as `template.yaml:OrdersConsumer`."""

    change: Change
    places: tuple[str, ...]


class NothingToChange(AssertionError):
    """An entry of the list that the templates give no cause for any more."""


def read(source: Path = REPOSITORY) -> dict[str, Template]:
    """The templates by their path below `source`, with intrinsics in their long form."""
    paths = [source / ROOT, *sorted((source / "infra").glob("*.yaml"))]
    return {str(path.relative_to(source)): yaml_parse(path.read_text()) for path in paths}


def change_all(templates: dict[str, Template], changes: tuple[Change, ...]) -> list[Applied]:
    """Make the changes in `templates`. Raises NothingToChange if one finds no place."""
    applied = [
        Applied(
            change,
            tuple(f"{name}:{place}" for name, template in templates.items() for place in change.change(name, template)),
        )
        for change in changes
    ]
    if idle := [each.change.what for each in applied if not each.places]:
        raise NothingToChange(f"the templates give no cause for these any more: {'; '.join(idle)}")
    return applied


def write(templates: dict[str, Template], directory: Path, source: Path = REPOSITORY) -> None:
    """Write the copy to `directory`, ready for `sam build`: `templates` with the code of `source`."""
    for name in SOURCES:
        shutil.copy2(source / name, directory / name)  # with its age: make looks at that
    shutil.copytree(source / "workers", directory / "workers", ignore=shutil.ignore_patterns("__pycache__"))
    for name, template in templates.items():
        target = directory / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml_dump(template))


def report(applied: list[Applied]) -> str:
    """The list as people read it."""
    lines = ["The copy for ministack differs from the templates in this:"]
    for each in applied:
        counted = f"{len(each.places)} places" if len(each.places) > 4 else ", ".join(each.places)
        lines += [f"- {each.change.what}: {each.change.why}", f"    {counted}"]
    return "\n".join(lines)


def unknown_types(templates: dict[str, Template]) -> set[str]:
    """The resource types, SAM's aside, that ministack does not know."""
    types = {resource["Type"] for template in templates.values() for resource in template["Resources"].values()}
    return {kind for kind in types - _known_types() if not kind.startswith(("AWS::Serverless::", "Custom::"))}


@cache
def _known_types() -> frozenset[str]:
    # What it creates is a table of its own; asking its API would take one stack for each type. In a process of its own,
    # because importing it makes a directory.
    with tempfile.TemporaryDirectory() as directory:
        asked = subprocess.run(
            [sys.executable, "-c", _PRINT_TYPES],
            env=os.environ | {"STATE_DIR": directory},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    return frozenset(asked.stdout.split())


# ── what a change can do ─────────────────────────────────────────────────────────────────────────────────────────────
def without(kind: str, why: str, *, having: str = "") -> Change:
    """Take out every resource of a type (`having`: only with that property). What refers to it gets a stand-in."""

    def change(name: str, template: Template) -> Iterator[str]:
        for logical_id, properties in list(of_type(template, kind)):
            if not having or having in properties:
                remove(template, logical_id)
                yield logical_id

    return Change(f"without {kind}{f' with {having}' if having else ''}", why, change)


def without_property(kind: str, name: str, why: str) -> Change:
    """Take a property out of every resource of a type."""

    def change(_: str, template: Template) -> Iterator[str]:
        for logical_id, properties in of_type(template, kind):
            if properties.pop(name, None) is not None:
                yield logical_id

    return Change(f"{kind} without {name}", why, change)


def with_variables(logical_id: str, variables: dict[str, Any], why: str) -> Change:
    """Give one function's variables another value."""

    def change(_: str, template: Template) -> Iterator[str]:
        for found, properties in of_type(template, FUNCTION):
            if found == logical_id:
                properties["Environment"]["Variables"].update(variables)
                yield found

    return Change(f"{logical_id}: other {', '.join(variables)}", why, change)


def of_type(template: Template, kind: str) -> Iterator[tuple[str, Properties]]:
    """The resources of a type: logical id and properties."""
    for logical_id, resource in template["Resources"].items():
        if resource["Type"] == kind:
            yield logical_id, resource.setdefault("Properties", {})


def remove(template: Template, logical_id: str) -> None:
    """Take a resource out; references to it become text in the form of the attribute's value."""
    del template["Resources"][logical_id]
    for resource in template["Resources"].values():
        needs = resource.get("DependsOn")
        if needs == logical_id:
            del resource["DependsOn"]
        elif isinstance(needs, list) and logical_id in needs:
            needs.remove(logical_id)
    for section in ("Resources", "Outputs", "Conditions"):
        if section in template:
            template[section] = replace(template[section], lambda target: stand_in(target, logical_id))


def stand_in(target: str, logical_id: str) -> str | None:
    """What `logical_id` or `logical_id.Attribute` is replaced by once that resource is gone; None for any other."""
    name, _, attribute = target.partition(".")
    if name != logical_id:
        return None
    if attribute.endswith("Arn"):
        # The last part is what templates cut out of the ARN of a proxy.
        return f"arn:aws:none:us-east-1:000000000000:none:prx-{logical_id.lower()}"
    return "localhost" if attribute.endswith(("Endpoint", "Address")) else logical_id.lower()


def replace(node: Any, stand_in_of: Callable[[str], str | Template | None]) -> Any:
    """`node` with each reference that `stand_in_of` answers for (`Id` or `Id.Attribute`) replaced by its answer.

    Inside of a text (Fn::Sub) only an answer that is text takes a reference's place.
    """
    if isinstance(node, list):
        return [replace(each, stand_in_of) for each in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        [(function, value)] = node.items()
        target = value if function == "Ref" else None
        if function == "Fn::GetAtt":
            target = value if isinstance(value, str) else ".".join(map(str, value))
        if isinstance(target, str) and (answer := stand_in_of(target)) is not None:
            return answer
        if function == "Fn::Sub":
            text, given = (value, {}) if isinstance(value, str) else value

            def in_text(found: re.Match[str]) -> str:
                answer = None if found[1] in given else stand_in_of(found[1])
                return answer if isinstance(answer, str) else found[0]

            text = re.sub(r"\$\{([\w.]+)\}", in_text, text)
            return {function: [text, replace(given, stand_in_of)] if given else text}
    return {key: replace(each, stand_in_of) for key, each in node.items()}
