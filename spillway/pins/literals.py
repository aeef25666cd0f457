"""Python string literals, read from the source: `ast` tells the text, but not which line a part of it is on."""

from __future__ import annotations

import ast
import io
import re
import token as tokens
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

#: What a hole of an f-string or an unknown operand of `+` stands for: a name, which most places of SQL take.
HOLE = "xx"

_PREFIX = re.compile(r"(?P<flags>[a-zA-Z]*)(?P<quote>'''|\"\"\"|'|\")")
_ESCAPE = re.compile(r"\\(?:N\{[^}]*\}|U[0-9a-fA-F]{8}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_FSTRING_START, _FSTRING_END = (getattr(tokens, name, -1) for name in ("FSTRING_START", "FSTRING_END"))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text from one source line."""

    text: str
    line: int


def pieces(node: ast.expr, lines: list[bytes]) -> Iterator[Piece]:
    """The text of a string, an f-string or a sum of them, by source line. `lines` are the source's, in UTF-8."""
    if isinstance(node, ast.BinOp):
        yield from pieces(node.left, lines)
        yield from pieces(node.right, lines)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
        read = list(_read(node, lines))
        value = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        # Inside an f-string, Python 3.11 gives places that may be off; ast's own text is right whatever the line.
        yield from read if "".join(piece.text for piece in read) == value else [Piece(value, node.lineno)]
    elif isinstance(node, ast.JoinedStr):
        yield from _read(node, lines)
    else:
        yield Piece(HOLE, node.lineno)


def _read(node: ast.expr, lines: list[bytes]) -> Iterator[Piece]:
    try:
        literals = list(_literals(_segment(node, lines)))
    except (tokenize.TokenError, SyntaxError, IndexError, UnicodeDecodeError):
        return
    for raw, line in literals:
        yield from _decoded(raw, node.lineno + line)


def _segment(node: ast.expr, lines: list[bytes]) -> str:
    """The source of `node`; ast's columns count bytes."""
    last = node.end_lineno or node.lineno
    part = lines[node.lineno - 1 : last]
    part[-1] = part[-1][: node.end_col_offset]
    part[0] = part[0][node.col_offset :]
    return b"\n".join(part).decode()


def _literals(segment: str) -> Iterator[tuple[str, int]]:
    """The literals that stand side by side in `segment`, each with its line, from 0."""
    # The parenthesis lets them stand on several lines, and moves the columns of the first line by one.
    source = f"({segment})"
    starts = [0]
    for text in source.split("\n"):
        starts.append(starts[-1] + len(text) + 1)
    depth, begin = 0, (1, 0)
    for item in tokenize.generate_tokens(io.StringIO(source).readline):
        if item.type == tokens.STRING and depth == 0:
            yield item.string, item.start[0] - 1
        elif item.type == _FSTRING_START:
            depth += 1
            begin = item.start if depth == 1 else begin
        elif item.type == _FSTRING_END:
            depth -= 1
            if depth == 0:
                end = starts[item.end[0] - 1] + item.end[1]
                yield source[starts[begin[0] - 1] + begin[1] : end], begin[0] - 1


def _decoded(raw: str, line: int) -> Iterator[Piece]:
    """The text of one literal as the program has it, cut where a source line ends."""
    prefix = _PREFIX.match(raw)
    if prefix is None:
        return
    flags, body = prefix["flags"].lower(), raw[prefix.end() : -len(prefix["quote"])]
    position, text = 0, ""
    while position < len(body):
        character, size, newlines = body[position], 1, 0
        if character == "\\" and "r" not in flags and (escape := _ESCAPE.match(body, position)):
            size, character = len(escape[0]), _unescaped(escape[0])
            newlines = escape[0].count("\n")
        elif "f" in flags and character in "{}":
            if body[position : position + 2] in {"{{", "}}"}:
                size = 2
            else:
                size, character = _hole(body, position), HOLE
                newlines = body.count("\n", position, position + size)
        elif character == "\n":
            newlines = 1
        text += character
        position += size
        if newlines:
            yield Piece(text, line)
            text, line = "", line + newlines
    if text:
        yield Piece(text, line)


def _unescaped(escape: str) -> str:
    if escape == "\\\n":
        return ""
    try:
        value = ast.literal_eval(f'"{escape}"') if escape != '\\"' else '"'
    except (SyntaxError, ValueError):
        return escape
    return str(value)


def _hole(body: str, start: int) -> int:
    """The length of `{...}` at `start`; braces may be nested, and stand in strings."""
    depth, quote, position = 0, "", start
    while position < len(body):
        character = body[position]
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and depth:
            quote = character
        elif character in "{[(":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return position + 1 - start
        position += 1
    return len(body) - start
