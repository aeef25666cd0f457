"""Which dead letters are meant: the same filter for looking, redriving, exporting and discarding."""

from __future__ import annotations

import json
import re
import warnings
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from spillway.dlq.letters import FOREIGN, MOVED
from spillway.errors import SpillwayError
from workers.runtime.failures import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from spillway.dlq.letters import Letter

#: What --reason takes, and the reason it stands for.
REASONS = {reason.value: reason.value for reason in Reason} | {"moved": MOVED, FOREIGN: FOREIGN}

_AGE = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`(?P<text>(?:[^`\\]|\\.)*)`")
_KEY = re.compile(r"[0-9a-f]{8}")


class BadFilter(SpillwayError):
    """A filter that cannot be meant."""

    exit_code = 2


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Letters that meet every condition that is given; one of several values of the same condition is enough.

    `types` and `subjects` may have `*` for any text. `since` is the first moment that counts, `until` the first that
    does not; both look at `dead_since`. `groups` are keys of causes. `where` is a JMESPath expression (`root_of`).
    Raises BadFilter for an expression that is none.
    """

    reasons: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    event_ids: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        if self.where is not None:
            _compiled(self.where)

    @property
    def empty(self) -> bool:
        """Whether it lets every letter through."""
        return self == Filter()

    def matches(self, letter: Letter) -> bool:
        """Whether `letter` is meant. An expression that does not suit its event does not match."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.types or _any_like(self.types, letter.event_type))
            and (not self.event_ids or letter.event_id in self.event_ids)
            and (not self.groups or letter.cause.key in self.groups)
            and (self.since is None or letter.dead_since >= self.since)
            and (self.until is None or letter.dead_since < self.until)
            and (not self.subjects or _any_like(self.subjects, letter.subject))
            and (self.where is None or _holds(self.where, letter))
        )

    def described(self) -> list[str]:
        """Each condition in words."""
        several = {
            "reason": self.reasons,
            "type": self.types,
            "event id": self.event_ids,
            "subject": self.subjects,
            "group": self.groups,
        }
        said = [f"{name} {' or '.join(values)}" for name, values in several.items() if values]
        if self.since is not None:
            said.append(f"dead since {_local(self.since)} or later")
        if self.until is not None:
            said.append(f"dead before {_local(self.until)}")
        if self.where is not None:
            said.append(f"where {self.where}")
        return said

    def options(self) -> list[str]:
        """The command-line options that make this filter again, not quoted for a shell."""
        short = {meaning: word for word, meaning in REASONS.items()}
        several: dict[str, Iterable[str]] = {
            "--reason": (short.get(reason, reason) for reason in self.reasons),
            "--type": self.types,
            "--event-id": self.event_ids,
            "--subject": self.subjects,
            "--group": self.groups,
            "--since": [self.since.isoformat()] if self.since is not None else [],
            "--until": [self.until.isoformat()] if self.until is not None else [],
            "--where": [self.where] if self.where is not None else [],
        }
        return [word for option, values in several.items() for value in values for word in (option, value)]


def read_reason(text: str) -> str:
    """The reason that `text`, a key of REASONS or a reason itself, means. Raises BadFilter."""
    if text in REASONS.values():
        return text
    try:
        return REASONS[text]
    except KeyError:
        near = get_close_matches(text, REASONS, n=1)
        raise BadFilter(
            f"There is no reason {text!r}.",
            f"Did you mean {near[0]!r}? " * bool(near) + f"There are: {', '.join(REASONS)}.",
        ) from None


def read_group(text: str) -> str:
    """A group's key as `spillway dlq show` prints it. Raises BadFilter."""
    if not _KEY.fullmatch(text.lower()):
        raise BadFilter(
            f"{text!r} is no group.", "Expected eight hexadecimal digits, as `spillway dlq show` prints them."
        )
    return text.lower()


def read_moment(text: str, now: datetime) -> datetime:
    """An ISO 8601 date or time, local where it names no zone, or an age before `now` such as 90m, 12h or 3d.

    Raises BadFilter.
    """
    try:
        if age := _AGE.fullmatch(text.strip()):
            return (now - timedelta(**{_UNITS[age["unit"]]: float(age["number"])})).astimezone(UTC)
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadFilter(
            f"{text!r} is no moment.",
            "Expected an age like 90m, 12h or 3d, or ISO 8601 like 2026-11-21T22:30 or 2026-11-21T22:30:00Z.",
        ) from None


def root_of(letter: Letter) -> dict[str, Any]:
    """What --where looks at: the event's own fields, and beside them `dead_letter`, `attributes` and `sqs`."""
    return (letter.event or {}) | {
        "dead_letter": letter.reasons,
        "attributes": {name: _text_of(value) for name, value in letter.own_attributes.items()},
        "sqs": letter.system,
    }


def _text_of(value: Mapping[str, Any]) -> str:
    return str(value["BinaryValue"].hex() if "BinaryValue" in value else value.get("StringValue", ""))


def _any_like(patterns: tuple[str, ...], value: str | None) -> bool:
    return value is not None and any(pattern == value or _like(pattern)(value) for pattern in patterns)


@lru_cache(maxsize=256)
def _like(pattern: str) -> Callable[[str], object]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL).fullmatch


def _local(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def _holds(expression: str, letter: Letter) -> bool:
    from jmespath.exceptions import JMESPathError  # noqa: PLC0415

    try:
        found = _compiled(expression).search(root_of(letter))
    except (JMESPathError, TypeError, ValueError, ArithmeticError):
        return False  # this event has something else there
    # JMESPath specification, "Or Expressions": these are false, everything else, 0 included, is true.
    return not (found is None or found is False or found in ("", [], {}))


@lru_cache(maxsize=16)
def _compiled(expression: str) -> Any:
    """Raises BadFilter with a caret under the character."""
    import jmespath  # noqa: PLC0415  (botocore brings it along; a command that never filters does without)
    from jmespath import exceptions as of  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            # A literal that is no JSON, `abc` for one, would be taken for a text, with nothing but this warning.
            warnings.simplefilter("error", PendingDeprecationWarning)
            compiled = jmespath.compile(expression)
    except PendingDeprecationWarning:
        literals = (one for one in _LITERAL.finditer(expression) if one["text"] is not None)
        place = next((one.start() for one in literals if not _is_json(one["text"])), 0)
        raise _bad(expression, place, "between ` there must be JSON") from None
    except of.EmptyExpressionError:
        raise BadFilter("--where is empty.", "Expected a JMESPath expression such as data.total > `100`.") from None
    except of.LexerError as error:
        raise _bad(expression, error.lexer_position, error.message) from None
    except of.ParseError as error:
        end = error.token_value is None
        what = "the expression is not complete" if end else f"{error.token_value!r} is not expected here"
        raise _bad(expression, len(expression) if end else error.lex_position, what) from None
    except (of.JMESPathError, RecursionError) as error:
        raise _bad(expression, 0, str(error)) from None
    _check_functions(expression, compiled.parsed)
    return compiled


def _is_json(text: str) -> bool:
    try:
        json.loads(text.replace("\\`", "`"))
    except ValueError:
        return False
    return True


def _check_functions(expression: str, parsed: Mapping[str, Any]) -> None:
    """Functions that there are not would else be found out by the first letter that gets as far as calling one."""
    from jmespath.functions import Functions  # noqa: PLC0415

    table = Functions.FUNCTION_TABLE
    for name, given in _calls(parsed):
        place = max(expression.find(f"{name}("), 0)
        if name not in table:
            near = get_close_matches(name, table, n=1)
            raise _bad(
                expression, place, f"there is no function {name}()" + f", did you mean {near[0]}()?" * bool(near)
            )
        signature = table[name]["signature"]
        variadic = bool(signature) and signature[-1].get("variadic", False)
        if given < len(signature) or (given > len(signature) and not variadic):
            raise _bad(expression, place, f"{name}() takes {len(signature)} arguments, got {given}")


def _calls(node: Any) -> Iterator[tuple[str, int]]:
    if not isinstance(node, dict):
        return
    if node.get("type") == "function_expression":
        yield node["value"], len(node["children"])
    for child in node.get("children", ()):
        yield from _calls(child)


def _bad(expression: str, place: int, what: str) -> BadFilter:
    return BadFilter(
        f"--where cannot be read: {what}\n  {expression}\n  {' ' * place}^",
        "Text is quoted with ', numbers with `: --where \"data.customer == 'c-17' && data.total > `100`\".",
    )
