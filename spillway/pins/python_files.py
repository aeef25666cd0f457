"""Python sources: which strings are SQL, where in them a construct stands, and what psycopg is asked to do.

A string is SQL where it is the first argument of a call that runs SQL and begins with an SQL word, and anywhere else
where it begins with one and PostgreSQL's parser takes it. Holes of f-strings and of `+` stand for a name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from spillway.pins.bodies import leaks
from spillway.pins.findings import Spot
from spillway.pins.literals import Piece, pieces
from spillway.pins.statements import Examination, examine
from spillway.rdsproxy.rules import RULES

#: Methods and functions whose first argument is SQL: DB-API, psycopg, asyncpg, SQLAlchemy, Django.
RUNNERS = {
    "execute",
    "executemany",
    "executescript",
    "exec_driver_sql",
    "execute_batch",
    "execute_values",
    "fetch",
    "fetchrow",
    "fetchval",
    "fetch_all",
    "fetch_one",
    "fetch_val",
    "iterate",
    "stream",
    "copy",
    "copy_expert",
    "copy_from_query",
    "prepare",
    "mogrify",
    "text",
    "SQL",
    "RunSQL",
    "raw",
}
#: Arguments by name that are SQL for those.
_SQL_KEYWORDS = {"query", "sql", "statement", "operation"}
SERVER_CURSORS = {"ServerCursor", "AsyncServerCursor", "RawServerCursor", "AsyncRawServerCursor"}
_CONNECTS = {"psycopg.connect", "psycopg.Connection.connect", "psycopg.AsyncConnection.connect"}

_BEGINS = re.compile(
    r"""(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*
    (?P<word>alter|analyze|begin|call|close|commit|copy|create|deallocate|declare|delete|discard|do|drop|end|execute
        |explain|fetch|grant|insert|listen|load|lock|merge|move|notify|prepare|refresh|reindex|release|reset|revoke
        |rollback|savepoint|select|set|show|start|table|truncate|unlisten|update|vacuum|values|with)(?!\w)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
#: English sentences of two words parse as these ("reset all", "execute it"), so outside a call only capitals count.
_ALSO_ENGLISH = {
    "close",
    "deallocate",
    "discard",
    "execute",
    "fetch",
    "listen",
    "load",
    "move",
    "reset",
    "set",
    "table",
    "unlisten",
}


@dataclass(frozen=True, slots=True)
class _Text:
    """One SQL string: its pieces, and the first line of the Python statement around it."""

    pieces: list[Piece]
    first: int
    sent: bool

    @property
    def sql(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def line(self, offset: int) -> int:
        """The source line of a byte offset in `sql`."""
        for piece in self.pieces:
            size = len(piece.text.encode())
            if offset < size:
                return piece.line
            offset -= size
        return self.pieces[-1].line if self.pieces else self.first


def spots(source: str) -> list[Spot]:
    """What is in one Python file. Raises SyntaxError, and ValueError for a NUL byte, as `ast.parse` does."""
    tree = ast.parse(source)
    reader = _Reader(source)
    reader.visit(tree)
    found = list(reader.calls)
    for text in reader.texts():
        found += _in_text(text)
    return found


def _in_text(text: _Text) -> Iterator[Spot]:
    sql = text.sql
    begins = _BEGINS.match(sql)
    if not begins:
        return
    examination = examine(sql)
    if not text.sent and not _is_surely_sql(begins["word"], examination):
        return
    for match in examination.matches:
        yield Spot(match.rule, text.line(match.offset), text.first, sql)
    for leak in leaks(examination.parsed or ""):
        certainty = "unsettled" if leak.anonymous else leak.rule.certainty
        yield Spot(leak.rule, text.line(leak.offset), text.first, sql, certainty=certainty)


def _is_surely_sql(word: str, examination: Examination) -> bool:
    if examination.parsed is None:
        return False
    return word.isupper() or word.lower() not in _ALSO_ENGLISH


class _Reader(ast.NodeVisitor):
    """Collects the strings of one source, and the calls that ask for named statements and server-side cursors."""

    def __init__(self, source: str) -> None:
        self.calls: list[Spot] = []
        self._lines = source.encode().split(b"\n")
        self._strings: list[tuple[ast.expr, int]] = []
        self._sent: set[int] = set()
        # Names that a call runs, and the strings that each name was given.
        self._run_names: set[str] = set()
        self._given: list[tuple[str, ast.expr]] = []
        self._first = 1

    def texts(self) -> Iterator[_Text]:
        sent = self._sent | {id(value) for name, value in self._given if name in self._run_names}
        for node, first in self._strings:
            parts = list(pieces(node, self._lines))
            if parts:
                yield _Text(parts, first, id(node) in sent)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            outer, self._first = self._first, node.lineno
            super().visit(node)
            self._first = outer
        else:
            super().visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        # A string that is a statement by itself is a docstring.
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._given += [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name) and node.value:
            self._given.append((node.target.id, node.value))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, (str, bytes)):
            self._strings.append((node, self._first))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._strings.append((node, self._first))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Add) and _has_string(node):
            self._strings.append((node, self._first))
            self._visit_holes(node)
        else:
            self.generic_visit(node)

    def _visit_holes(self, node: ast.expr) -> None:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            self._visit_holes(node.left)
            self._visit_holes(node.right)
        elif not _is_string(node):
            self.visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _dotted(node.func)
        if name.rpartition(".")[2] in RUNNERS:
            arguments = node.args[:1] + [word.value for word in node.keywords if word.arg in _SQL_KEYWORDS]
            for argument in arguments:
                inner = _formatted(argument)
                self._sent.add(id(inner))
                if isinstance(inner, ast.Name):
                    self._run_names.add(inner.id)
        self._judge_call(node, name)
        self.generic_visit(node)

    def _judge_call(self, node: ast.Call, name: str) -> None:
        words = {word.arg: word.value for word in node.keywords}
        last = name.rpartition(".")[2]
        if last in SERVER_CURSORS or (last == "cursor" and "." in name and _names_a_cursor(node, words)):
            self._call("cursor", node)
        prepare = words.get("prepare")
        if last in RUNNERS and isinstance(prepare, ast.Constant) and prepare.value is True:
            self._call("named-statement", node)
        if name in _CONNECTS and not {"prepare_threshold", None} & words.keys():
            self._call("prepare-threshold", node)

    def _call(self, rule: str, node: ast.Call) -> None:
        source = b"\n".join(self._lines[node.lineno - 1 : node.end_lineno]).decode()
        self.calls.append(Spot(RULES[rule], node.lineno, self._first, source.strip()))


def _names_a_cursor(node: ast.Call, words: dict[str | None, ast.expr]) -> bool:
    """Whether `connection.cursor(...)` has a name: psycopg then declares a cursor on the server."""
    name = words.get("name", node.args[0] if node.args else None)
    if name is None or (isinstance(name, ast.Constant) and name.value is None):
        return False
    # By position only a plain word: asyncpg's cursor() takes SQL there, other drivers other things.
    return "name" in words or (
        isinstance(name, ast.Constant) and isinstance(name.value, str) and re.fullmatch(r"\w+", name.value) is not None
    )


def _formatted(node: ast.expr) -> ast.expr:
    """The string behind `"...".format(...)`, `"..." % ...` and `sql.SQL("...")`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"format", "strip"}:
        return _formatted(node.func.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return _formatted(node.left)
    return node


def _dotted(node: ast.expr) -> str:
    """`a.b.c`; what is not a name, such as a call, is left out: `().execute`."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "()"


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _has_string(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _has_string(node.left) or _has_string(node.right)
    return _is_string(node)
