"""Function bodies and DO blocks: the proxy does not see what they do to the session, so the next client inherits it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spillway.pins.statements import examine
from spillway.rdsproxy.parser import SyntaxFault, TooDeep, pb, postgast
from spillway.rdsproxy.pinning import Match, Unparseable, statement_matches, token_matches
from spillway.rdsproxy.rules import RULES, Rule

#: The leak for a construct; what is missing here ends with the transaction or undoes something.
LEAKS: dict[tuple[str, str], str] = {
    ("set", "set"): "leak-set",
    ("set-config", "set_config"): "leak-set",
    ("temporary-object", "create"): "leak-temporary-object",
    ("session-lock", "pg_advisory_lock"): "leak-session-lock",
    ("session-lock", "pg_advisory_lock_shared"): "leak-session-lock",
    ("session-lock", "pg_try_advisory_lock"): "leak-session-lock",
    ("session-lock", "pg_try_advisory_lock_shared"): "leak-session-lock",
    ("listen", "listen"): "leak-listen",
    ("prepare", "prepare"): "leak-prepare",
    ("load", "load"): "leak-load",
}

_HAS_BODY = re.compile(r"\b(function|procedure|do)\b", re.IGNORECASE)
#: A PL/pgSQL statement begins after these too.
_BEGINNERS = frozenset({"begin", "then", "else", "loop"})
#: `name := expression`, `name = expression`.
_ASSIGNMENT = re.compile(r"[^'\"$]*?:?=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Leak:
    """A construct inside a body. `offset` counts bytes of the text around it; `block` is the DO or CREATE statement's.

    `anonymous` marks a DO block: its body is in the text that the proxy gets, so it may pin instead.
    """

    rule: Rule
    offset: int
    block: int
    anonymous: bool


def leaks(sql: str) -> Iterator[Leak]:
    """What the function bodies and DO blocks of the parseable `sql` leave behind, in order."""
    if not _HAS_BODY.search(sql):
        return
    try:
        tree = postgast.parse(sql)
    except (SyntaxFault, TooDeep):
        return
    text = sql.encode()
    for raw in tree.stmts:
        node = postgast.unwrap_node(raw.stmt)
        if isinstance(node, pb.CreateFunctionStmt):
            if node.HasField("sql_body"):
                yield from _leaking(statement_matches(raw, text), 0, raw.stmt_location)
            yield from _of_body(node.options, raw, text, "sql")
        elif isinstance(node, pb.DoStmt):
            yield from _of_body(node.args, raw, text, "plpgsql")


def _of_body(options: Any, raw: Any, text: bytes, language: str) -> Iterator[Leak]:
    body, near = "", 0
    for option in options:
        definition = option.def_elem
        if definition.defname == "language":
            language = definition.arg.string.sval.lower()
        elif definition.defname == "as":
            values = [definition.arg, *definition.arg.list.items]
            body, near = next((value.string.sval for value in values if value.string.sval), ""), definition.location
    if not body:
        return
    end = raw.stmt_location + raw.stmt_len if raw.stmt_len else len(text)
    base = text.find(body.encode(), near)
    # Absent when the body stands between single quotes with escapes; then its statement has to do for the place.
    exact = base >= 0
    anonymous = isinstance(postgast.unwrap_node(raw.stmt), pb.DoStmt)
    if language == "sql":
        found = list(_leaking(examine(body).matches, base, raw.stmt_location))
    elif language == "plpgsql":
        statement = text[raw.stmt_location : end].decode()
        found = list(_of_plpgsql(statement, body, base, raw.stmt_location))
    else:
        return
    for leak in found:
        yield Leak(leak.rule, leak.offset if exact else near, raw.stmt_location, anonymous)


def _leaking(found: Iterator[Match] | list[Match], base: int, block: int) -> Iterator[Leak]:
    for match in found:
        if rule := LEAKS.get((match.rule.id, match.word)):
            yield Leak(RULES[rule], base + match.offset, block, anonymous=False)


# ── PL/pgSQL ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_plpgsql(statement: str, body: str, base: int, block: int) -> Iterator[Leak]:
    try:
        functions = postgast.parse_plpgsql(statement)
    except (SyntaxFault, ValueError):
        # It knows no table and no type, so some valid functions are beyond it; their words are not.
        try:
            yield from _leaking(token_matches(body, after=_BEGINNERS), base, block)
        except Unparseable:
            return
        return
    starts = [0]
    for line in body.encode().split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    for query, dynamic, number in _expressions(functions):
        found = _dynamic(query) if dynamic else _query(query)
        for match in found:
            if rule := LEAKS.get((match.rule.id, match.word)):
                below = 0 if dynamic else query.encode()[: match.offset].count(b"\n")
                at = min(max(number - 1 + below, 0), len(starts) - 2)
                # The line is known, not the place in it: its first character that is not blank.
                rest = body.encode()[starts[at] : starts[at + 1]]
                yield Leak(RULES[rule], base + starts[at] + len(rest) - len(rest.lstrip()), block, anonymous=False)


#: Statements whose `query` is an expression for the text to run; elsewhere that is called `dynquery`.
_DYNAMIC = {"PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors"}


def _expressions(node: Any, inside: str = "", line: int = 1) -> Iterator[tuple[str, bool, int]]:
    """Every SQL text in PL/pgSQL's tree as (text, whether it is dynamic, line of the body)."""
    if isinstance(node, list):
        for item in node:
            yield from _expressions(item, inside, line)
    elif isinstance(node, dict):
        line = node.get("lineno", line)
        for name, value in node.items():
            if name == "PLpgSQL_expr":
                yield value.get("query", ""), inside == "dynquery", line
            else:
                yield from _expressions(value, "dynquery" if name == "query" and inside in _DYNAMIC else name, line)


def _query(query: str) -> list[Match]:
    assigned = _ASSIGNMENT.fullmatch(query)
    for text in (query, f"SELECT {query}", f"SELECT {assigned[1]}" if assigned else None):
        if text is None:
            continue
        examination = examine(text)
        if examination.parsed is not None:
            return examination.matches
    return []


def _dynamic(expression: str) -> list[Match]:
    """What the string literals of a dynamic statement say, its holes taken as names."""
    try:
        tree = postgast.parse(f"SELECT {expression}")
    except (SyntaxFault, TooDeep):
        return []
    literals = [
        part.sval.sval for _, part in postgast.walk(tree) if isinstance(part, pb.A_Const) and part.HasField("sval")
    ]
    return examine(re.sub(r"%\d*\$?-?\d*[IsL]", "xx", " x ".join(literals))).matches
