"""One SQL text under the microscope, as it stands in a source file: with placeholders, templates and holes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from spillway.rdsproxy.pinning import MAX_TEXT, Match, Unparseable, matches, token_matches
from spillway.rdsproxy.rules import RULES

#: Psycopg's, named, JDBC's and psql's placeholders, `{}` of str.format, and templates.
_PLACEHOLDER = re.compile(
    rb"""%\([^)\n]*\)[a-z] | %[sbt](?!\w) | \{\{[^{}\n]*\}\} | \$?\{[^{}'\n]*\} | \$\d+ | \?
    | (?<![:\w]):'\w+' | (?<![:\w]):"\w+" | (?<![:\w]):[A-Za-z_]\w* """,
    re.VERBOSE,
)
_TEMPLATE_TAG = re.compile(rb"\{%.*?%\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Examination:
    """What is in a text. `parsed` is the text as the parser took it, or None: then `matches` are from its words alone.

    Both have the same length in bytes, so offsets are the same.
    """

    matches: list[Match]
    parsed: str | None


def examine(sql: str) -> Examination:
    """Find what `sql` contains, trying what its placeholders may stand for."""
    size = [Match(RULES["statement-size"], "size", 0, 0)] if len(sql.encode()) > MAX_TEXT else []
    for variant in variants(sql):
        try:
            return Examination(size + list(matches(variant)), variant)
        except Unparseable:
            continue
    try:
        return Examination(size + list(token_matches(sql)), None)
    except Unparseable:
        return Examination(size, None)


def variants(sql: str) -> Iterator[str]:
    """`sql`, then with its placeholders as names, as strings, and left out; each of the same length in bytes."""
    yield sql
    text = _TEMPLATE_TAG.sub(lambda match: _spaces(match[0]), sql.encode())
    if text == sql.encode() and not _PLACEHOLDER.search(text):
        return
    for fill in (_name, _string, lambda hole: b" " * len(hole)):
        yield _PLACEHOLDER.sub(lambda match, fill=fill: fill(match[0]), text).decode()  # type: ignore[misc]


def _name(hole: bytes) -> bytes:
    return b"x" * len(hole)


def _string(hole: bytes) -> bytes:
    return b"''".ljust(len(hole)) if len(hole) > 1 else b"1"


def _spaces(text: bytes) -> bytes:
    return re.sub(rb"[^\n]", b" ", text)
