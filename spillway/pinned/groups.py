"""Pins by what they have in common, and the rule of docs/pinning.md that each is a case of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from spillway.pinned.lines import PinLine
from spillway.rdsproxy.rules import RULES, Rule

if TYPE_CHECKING:
    from spillway.rdsproxy.pinning import Match

DOCUMENT = "docs/pinning.md"
#: Where the rule is not known.
ALL_RULES = f"{DOCUMENT}#what-pins"
#: A reason that names the rule by itself, by words that it has in the log; the proxy's longer sentence varies.
_BY_REASON = {
    "prepared statement": "named-statement",
    "parse message": "named-statement",
    "byte limit": "statement-size",
    "couldn't parse": "unparseable",
}
_DIGEST_VALUE = re.compile(r"\$\d+")


class Group(msgspec.Struct, kw_only=True):
    """Pins of one reason and statement. `connections` counts database connections; `rule` is '' where none fits, `link`
    leads to it, `fix` is the way out. `statement` has no values; `example` is a statement with its own, where known."""

    reason: str
    statement: str
    rule: str
    link: str
    fix: str
    times: int = 0
    connections: int = 0
    clients: int = 0
    first: datetime | None = None
    last: datetime | None = None
    example: str = ""


def group(lines: Iterable[PinLine]) -> list[Group]:
    """The groups, the most frequent first."""
    groups: dict[tuple[str, str], Group] = {}
    members: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for line in lines:
        key = line.reason, line.statement
        if key not in groups:
            groups[key] = _new(line)
            members[key] = set(), set()
        its, (connections, clients) = groups[key], members[key]
        its.times += 1
        connections.update({line.connection} - {""})
        clients.update({line.client} - {""})
        its.connections, its.clients = len(connections), len(clients)
        if line.at is not None:
            its.first = line.at if its.first is None else min(its.first, line.at)
            its.last = line.at if its.last is None else max(its.last, line.at)
    return sorted(groups.values(), key=lambda each: (-each.times, each.reason, each.statement))


def rule_of(reason: str, statement: str) -> Rule | None:
    """The rule that a pin is a case of: by its statement, else by what the proxy says; None where neither tells."""
    for words, rule in _BY_REASON.items():
        if words in reason:
            return RULES[rule]
    return _rule_of_statement(statement) if statement else None


def link(rule: Rule) -> str:
    """Where docs/pinning.md describes it."""
    return f"{DOCUMENT}#{anchor(f'`{rule.id}`: {rule.title}')}"


def anchor(heading: str) -> str:
    """GitHub's name for a heading: in lower case, without punctuation, with hyphens for blanks."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _new(line: PinLine) -> Group:
    rule = rule_of(line.reason, line.statement)
    return Group(
        reason=line.reason,
        statement=line.statement,
        rule=rule.id if rule else "",
        link=link(rule) if rule else ALL_RULES,
        fix=rule.fix if rule else "",
    )


@lru_cache(maxsize=1_000)
def _rule_of_statement(statement: str) -> Rule | None:
    from spillway.rdsproxy.pinning import matches, token_matches  # noqa: PLC0415  (with PostgreSQL's parser, 0.2 s)

    # SET takes no $1, which stands for its value in a digest.
    texts = (statement, _DIGEST_VALUE.sub("1", statement), _DIGEST_VALUE.sub("'a'", statement))
    return next((rule for text in texts for rule in _pins(text, matches)), None) or next(
        iter(_pins(statement, token_matches)), None
    )


def _pins(text: str, find: Callable[[str], Iterator[Match]]) -> Iterator[Rule]:
    from spillway.rdsproxy.pinning import Unparseable  # noqa: PLC0415

    try:
        yield from (match.rule for match in find(text) if match.rule.kind == "pin")
    except Unparseable:
        return
