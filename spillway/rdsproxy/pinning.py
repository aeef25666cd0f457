"""The pinning classifier: whether a SQL text pins an RDS Proxy session, and by which rule of rules.py.

What counts is what PostgreSQL's parser sees in the text, whether it runs now or is stored for later: nextval in a
column default or in a BEGIN ATOMIC body is in the text, and AWS's wording is about the text. What stands inside a
string is not seen: a function body between dollar quotes, a DO block, an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from spillway.rdsproxy.parser import SyntaxFault, TooDeep, pb, postgast
from spillway.rdsproxy.rules import RULES, Certainty, Rule
from spillway.rdsproxy.shapes import shape

#: A longer statement text pins: 16 KB in the user guide, "16384 byte limit" in the proxy's log.
MAX_TEXT = 16 * 1024
#: What `Classifier.known` may hold in bytes of text. With texts of up to 16 KB a count alone would bound little.
MAX_KNOWN_BYTES = 16 * 1024 * 1024
#: How many texts with values are remembered by themselves, so that a constant one need not be shaped again.
MAX_RECENT = 1_000
#: A digest in a reason is cut here: it is for a log line.
MAX_DIGEST = 1_000


@dataclass(frozen=True, slots=True)
class Pin:
    """Why a session is pinned: the rule's id, the sentence for the log line, and how sure it is."""

    rule: str
    reason: str
    certainty: Certainty


def _pin(rule: Rule, text: str = "") -> Pin:
    shape = digest(text) if text else ""
    return Pin(rule.id, f'{rule.log} Digest: "{shape}".' if shape else rule.log, rule.certainty)


STATEMENT_SIZE: Final = _pin(RULES["statement-size"])
#: For the caller to use: a name is in the protocol, not in the text. Unsettled, so a lenient proxy leaves it out.
NAMED_STATEMENT: Final = _pin(RULES["named-statement"])
UNPARSEABLE: Final = _pin(RULES["unparseable"])

#: None is an answer.
MISSING: Final = object()


class Classifier:
    """Answers whether a text pins, and remembers up to `capacity` answers.

    `strict` takes what AWS leaves unsettled for a pin; without it only documented rules pin, and what cannot be parsed.
    """

    def __init__(self, *, strict: bool = True, capacity: int = 10_000) -> None:
        self.strict = strict
        self.capacity = capacity
        #: Answers by shape, or by text where a text has none.
        self.known: dict[bytes, Pin | None] = {}
        #: Answers by text where it has a shape.
        self._recent: dict[bytes, Pin | None] = {}
        self._known_bytes = 0

    def verdict(self, text: bytes) -> Pin | None:
        """The first pin in `text`, or None. Parsed once for all texts that differ only in their values."""
        pin = self.known.get(text, MISSING)
        if pin is MISSING:
            pin = self._recent.get(text, MISSING)
            if pin is MISSING:
                pin = self._judge(text)
        return cast("Pin | None", pin)

    def _judge(self, text: bytes) -> Pin | None:
        if len(text) > MAX_TEXT:
            return STATEMENT_SIZE
        shaped = shape(text)
        if shaped is None or shaped == text:
            return self._remember(text)
        found = self.known.get(shaped, MISSING)
        pin = self._remember(shaped) if found is MISSING else cast("Pin | None", found)
        if pin is not None and pin.rule == "set-config":
            pin = self._classify(text)  # its third argument is a value that decides
        # Apart and few: there is no end of values, and they would drive out the texts that have none.
        if len(self._recent) >= MAX_RECENT:
            self._recent.clear()
        self._recent[text] = pin
        return pin

    def _remember(self, text: bytes) -> Pin | None:
        pin = self._classify(text)
        if len(self.known) >= self.capacity or self._known_bytes + len(text) > MAX_KNOWN_BYTES:
            # Dropping everything costs one parse per live text; keeping an order would cost on every hit.
            self.known.clear()
            self._known_bytes = 0
        self.known[text] = pin
        self._known_bytes += len(text)
        return pin

    def _classify(self, text: bytes) -> Pin | None:
        try:
            sql = text.decode()
            for match in matches(sql):
                if match.rule.kind == "pin" and match.rule.counts(strict=self.strict):
                    return _pin(match.rule, sql)
        except (UnicodeDecodeError, Unparseable):
            return UNPARSEABLE
        return None


class Unparseable(Exception):
    """PostgreSQL's parser does not take the text."""


@dataclass(frozen=True, slots=True)
class Match:
    """A construct that a rule is about. Offsets count bytes of the UTF-8 text.

    `word` says which of the rule's several constructs it is, in lower case: "reset" of set, "execute" of prepare.
    """

    rule: Rule
    word: str
    offset: int
    statement: int


def matches(sql: str) -> Iterator[Match]:
    """Every construct in `sql` that a pin rule or advice about SQL is about, in order. Raises Unparseable."""
    if "\0" in sql:
        # The parser is C and would stop here; PostgreSQL's protocol cannot carry it either.
        raise Unparseable("a NUL byte")
    try:
        tree = postgast.parse(sql)
    except TooDeep:
        yield from token_matches(sql)
        return
    except (SyntaxFault, UnicodeEncodeError) as error:
        raise Unparseable(str(error)) from error
    text = sql.encode()
    for raw in tree.stmts:
        yield from statement_matches(raw, text)


# ── by parse tree ────────────────────────────────────────────────────────────────────────────────────────────────────

#: Functions by the rule that they fall under; only where unqualified or in pg_catalog.
FUNCTIONS: dict[str, str] = {
    "set_config": "set-config",
    "nextval": "sequence",
    "setval": "sequence",
    "currval": "sequence-read",
    "lastval": "sequence-read",
    **dict.fromkeys(
        (
            "pg_advisory_lock",
            "pg_advisory_lock_shared",
            "pg_try_advisory_lock",
            "pg_try_advisory_lock_shared",
            "pg_advisory_unlock",
            "pg_advisory_unlock_shared",
            "pg_advisory_unlock_all",
        ),
        "session-lock",
    ),
}

#: Statements that pin whatever they say. Nested ones count too: EXPLAIN EXECUTE, CREATE TABLE ... AS EXECUTE.
_STATEMENTS: dict[type, tuple[str, str]] = {
    pb.PrepareStmt: ("prepare", "prepare"),
    pb.ExecuteStmt: ("prepare", "execute"),
    pb.DeallocateStmt: ("prepare", "deallocate"),
    pb.DiscardStmt: ("discard", "discard"),
    pb.DeclareCursorStmt: ("cursor", "declare"),
    pb.ListenStmt: ("listen", "listen"),
    pb.UnlistenStmt: ("unlisten", "unlisten"),
    pb.LoadStmt: ("load", "load"),
    pb.ConstraintsSetStmt: ("set-local", "set constraints"),
}

#: Words of which one must be in a statement for anything inside it to pin ("U&" spells any name in escapes). Walking a
#: tree costs ten times its parse, and statements with their values in the text never come twice.
_WORTH_A_WALK = re.compile(
    rb"set_config|nextval|setval|currval|lastval|advisory|temp|execute|declare|u&", re.IGNORECASE
)

_BLANK = re.compile(rb"(?:\s+|--[^\n]*|/\*.*?\*/|;)*", re.DOTALL)
_TEMPORARY_SCHEMA = re.compile(r"pg_temp(_\d+)?")
_TRUE = {"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"}


def statement_matches(raw: Any, text: bytes) -> Iterator[Match]:
    """The constructs in one statement of the parsed `text`."""
    end = raw.stmt_location + raw.stmt_len if raw.stmt_len else len(text)
    blank = _BLANK.match(text, raw.stmt_location, end)
    start = blank.end() if blank else raw.stmt_location
    node = postgast.unwrap_node(raw.stmt)
    if isinstance(node, pb.VariableSetStmt):
        # Only here: deeper down it is a function's own SET clause, or ALTER ROLE, DATABASE or SYSTEM.
        yield Match(RULES[_set_rule(node)], _set_word(node), start, start)
        return
    if type(node) in _STATEMENTS or _WORTH_A_WALK.search(text, raw.stmt_location, end):
        for _, part in postgast.walk(node):
            if found := _part_rule(part):
                offset = part.location if isinstance(part, pb.FuncCall) and part.location >= 0 else start
                yield Match(RULES[found[0]], found[1], offset, start)


def _set_rule(node: Any) -> str:
    return "set-local" if node.is_local or node.name in {"TRANSACTION", "TRANSACTION SNAPSHOT"} else "set"


def _set_word(node: Any) -> str:
    return "reset" if node.kind in {pb.VAR_RESET, pb.VAR_RESET_ALL} else "set"


def _part_rule(part: object) -> tuple[str, str] | None:
    """The rule's id and the word for one node of a tree."""
    if isinstance(part, pb.FuncCall):
        return _call_rule(part)
    if isinstance(part, (pb.CreateStmt, pb.CreateSeqStmt, pb.ViewStmt, pb.IntoClause)):
        return _creation_rule(part)
    if isinstance(part, (pb.CreateFunctionStmt, pb.CreateDomainStmt, pb.CreateEnumStmt, pb.CreateRangeStmt)):
        names = part.funcname if isinstance(part, pb.CreateFunctionStmt) else _type_name(part)
        return ("pg-temp", "create") if len(names) > 1 and _is_temporary_schema(_name(names[-2])) else None
    if isinstance(part, pb.CompositeTypeStmt):
        return ("pg-temp", "create") if _is_temporary_schema(part.typevar.schemaname) else None
    return _STATEMENTS.get(type(part))


def _call_rule(call: Any) -> tuple[str, str] | None:
    names = [_name(node) for node in call.funcname]
    rule = FUNCTIONS.get(names[-1]) if names else None
    if rule is None or (len(names) > 1 and names[-2] != "pg_catalog"):
        return None
    if rule == "set-config" and len(call.args) == 3 and _is_true(call.args[2]):
        return "set-config-local", names[-1]
    return rule, names[-1]


def _creation_rule(part: Any) -> tuple[str, str] | None:
    if isinstance(part, pb.IntoClause):
        relation = part.rel
    elif isinstance(part, pb.CreateSeqStmt):
        relation = part.sequence
    elif isinstance(part, pb.ViewStmt):
        relation = part.view
    else:
        relation = part.relation
    if relation.relpersistence != "t" and not _is_temporary_schema(relation.schemaname):
        return None
    dropped = isinstance(part, (pb.CreateStmt, pb.IntoClause)) and (
        (part.oncommit if isinstance(part, pb.CreateStmt) else part.on_commit) == pb.ONCOMMIT_DROP
    )
    return "temporary-object", "on commit drop" if dropped else "create"


def _type_name(part: Any) -> list[Any]:
    return list(part.domainname if isinstance(part, pb.CreateDomainStmt) else part.type_name)


def _name(node: Any) -> str:
    return str(node.string.sval)


def _is_temporary_schema(name: str) -> bool:
    return _TEMPORARY_SCHEMA.fullmatch(name) is not None


def _is_true(node: Any) -> bool:
    """Whether an argument is literally true: true, 'true', 'on'::boolean."""
    if node.HasField("named_arg_expr"):
        return _is_true(node.named_arg_expr.arg)
    if node.HasField("type_cast"):
        return _is_true(node.type_cast.arg)
    constant = node.a_const
    return bool(constant.boolval.boolval) or constant.sval.sval.strip().lower() in _TRUE


# ── by token ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_FIRST_WORDS: dict[str, tuple[str, str]] = {
    "set": ("set", "set"),
    "reset": ("set", "reset"),
    "prepare": ("prepare", "prepare"),
    "execute": ("prepare", "execute"),
    "deallocate": ("prepare", "deallocate"),
    "discard": ("discard", "discard"),
    "declare": ("cursor", "declare"),
    "listen": ("listen", "listen"),
    "unlisten": ("unlisten", "unlisten"),
    "load": ("load", "load"),
}
_TEMPORARY = {"temp", "temporary"}
#: What may stand between CREATE and TEMP.
_BEFORE_TEMPORARY = {"or", "replace", "local", "global"}


@dataclass(frozen=True, slots=True)
class _Token:
    word: str
    start: int


def token_matches(sql: str, *, after: frozenset[str] = frozenset()) -> Iterator[Match]:
    """What `matches` finds, from the tokens alone, for text that cannot be had as a tree.

    It errs towards finding. A statement begins at the start, after a semicolon outside parentheses, and after the words
    in `after`. Raises Unparseable where not even tokens can be told.
    """
    depth = 0
    start = None
    tokens = _tokens(sql)
    for index, token in enumerate(tokens):
        depth += (token.word == "(") - (token.word == ")")
        if token.word == ";" and depth <= 0:
            start, depth = None, 0
            continue
        if start is None:
            start = token.start
            if first := _first_word_rule(tokens, index):
                yield Match(RULES[first[0]], first[1], start, start)
        elif token.word == "into" and _word(tokens, index + 1 + (_word(tokens, index + 1) == "local")) in _TEMPORARY:
            yield Match(RULES["temporary-object"], "create", start, start)
        if rule := _call_token_rule(tokens, index):
            yield Match(RULES[rule], token.word.strip('"'), token.start, start)
        if token.word in after:
            start = None


def _first_word_rule(tokens: list[_Token], index: int) -> tuple[str, str] | None:
    word, second = tokens[index].word, _word(tokens, index + 1)
    if word == "set" and second in {"local", "transaction", "constraints"}:
        return "set-local", "set"
    if word == "prepare" and second == "transaction":
        return None
    if word == "explain":
        rest = {token.word for token in tokens[index + 1 : index + 12]}
        return ("prepare", "execute") if "execute" in rest else None
    if word == "create":
        while _word(tokens, index + 1) in _BEFORE_TEMPORARY:
            index += 1
        return ("temporary-object", "create") if _word(tokens, index + 1) in _TEMPORARY else None
    return _FIRST_WORDS.get(word)


def _call_token_rule(tokens: list[_Token], index: int) -> str | None:
    rule = FUNCTIONS.get(tokens[index].word.strip('"'))
    if rule is None or _word(tokens, index + 1) != "(":
        return None
    if _word(tokens, index - 1) == "." and _word(tokens, index - 2).strip('"') != "pg_catalog":
        return None
    if rule == "set-config":
        depth = 0
        for position in range(index + 1, len(tokens)):
            depth += (tokens[position].word == "(") - (tokens[position].word == ")")
            if depth == 0:
                last = [_word(tokens, position - 2), _word(tokens, position - 1)]
                return "set-config-local" if last == [",", "true"] else rule
    return rule


def _word(tokens: list[_Token], index: int) -> str:
    return tokens[index].word if 0 <= index < len(tokens) else ""


def _tokens(sql: str) -> list[_Token]:
    text = sql.encode()
    return [_Token(_folded(text[token.start : token.end]), token.start) for token in _scan(sql)]


def _scan(sql: str) -> list[Any]:
    """The tokens of `sql` without its comments."""
    try:
        tokens = postgast.scan(sql).tokens
    except (SyntaxFault, TooDeep, UnicodeEncodeError) as error:
        raise Unparseable(str(error)) from error
    return [token for token in tokens if token.token not in {pb.SQL_COMMENT, pb.C_COMMENT}]


def _folded(token: bytes) -> str:
    word = token.decode(errors="replace")
    return word if word.startswith('"') else word.lower()


# ── for the log ──────────────────────────────────────────────────────────────────────────────────────────────────────


_LITERALS = {pb.SCONST, pb.USCONST, pb.BCONST, pb.XCONST, pb.ICONST, pb.FCONST}


def digest(sql: str) -> str:
    """The statement's shape as the proxy logs it: in lower case, literals as $n, no comments; never a value.

    Empty where the text cannot be normalised.
    """
    try:
        text = postgast.normalize(sql)
        tokens = _scan(text)
    except (SyntaxFault, Unparseable):
        return ""
    source = text.encode()
    words = [_folded(source[token.start : token.end]) for token in tokens]
    # normalize leaves the literals of DDL; theirs are the next numbers.
    number = max((int(word[1:]) for word in words if re.fullmatch(r"\$\d+", word)), default=0)
    shape, end = "", 0
    for token, word in zip(tokens, words, strict=True):
        if token.token in _LITERALS:
            number += 1
            word = f"${number}"  # noqa: PLW2901
        shape += (" " if shape and token.start > end else "") + word
        end = token.end
    return shape if len(shape) <= MAX_DIGEST else shape[:MAX_DIGEST] + "…"
