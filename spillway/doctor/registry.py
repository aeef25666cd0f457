"""Every check by name, and the one place that runs them.

A check is a function of `Facts` that yields findings. It does no I/O of its own: what it looks at, a loader fetched
(facts.py). So a check is tested by giving it facts, and a loader that may not look skips the checks that need it.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import msgspec

from spillway import doctor
from spillway.aws_errors import explained, is_denied, missing_action
from spillway.doctor.finding import Finding, fail, skip
from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spillway.doctor.facts import Facts

    Look = Callable[[Facts], Iterator[Finding]]
    Need = Callable[[Facts], str]

#: What there is to look at, in the order in which it is shown.
AREAS = (
    "stack",
    "queues",
    "functions",
    "mappings",
    "times",
    "database",
    "login",
    "proxy",
    "network",
    "instance",
    "secrets",
    "alarms",
)
DOCUMENT = "docs/doctor.md"

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Check:
    """A check. `needs` says why it cannot look at this fleet, '' where it can."""

    name: str
    area: str
    about: str
    look: Look
    needs: Need | None

    @property
    def docs(self) -> str:
        return f"{DOCUMENT}#{self.name}"


_checks: dict[str, Check] = {}


def check(name: str, *, area: str, needs: Need | None = None) -> Callable[[Look], Look]:
    """Registers the decorated function as the check `name`; the first line of its docstring says what it checks."""

    def register(look: Look) -> Look:
        about = (look.__doc__ or "").strip().partition("\n")[0]
        if not _NAME.fullmatch(name) or name in _checks or area not in AREAS or not about:
            raise ValueError(
                f"expected a new kebab-case name, an area and a docstring, got {name!r}, {area!r}, {about!r}"
            )
        _checks[name] = Check(name, area, about, look, needs)
        return look

    return register


def deployed(facts: Facts) -> str:
    """Need: a stack on AWS."""
    return "" if facts.fleet.local is None else "only a stack on AWS has this"


def local(facts: Facts) -> str:
    """Need: the local stack."""
    return "" if facts.fleet.local is not None else "only the local stack has this"


def checks() -> tuple[Check, ...]:
    """All of them, in order: every module of this package that is named checks_* registers its own."""
    for module in sorted(one.name for one in iter_modules(doctor.__path__) if one.name.startswith("checks_")):
        import_module(f"{doctor.__name__}.{module}")
    return tuple(sorted(_checks.values(), key=lambda one: AREAS.index(one.area)))


def select(only: Sequence[str] = (), areas: Sequence[str] = ()) -> tuple[Check, ...]:
    """The checks of these names and of these areas; all without either.

    Raises SpillwayError for a name or area that does not exist, with the nearest one.
    """
    every = checks()
    for what, said, known in (
        ("check", only, [one.name for one in every]),
        ("area", areas, list(dict.fromkeys(one.area for one in every))),
    ):
        for name in said:
            if name not in known:
                raise _unknown(what, name, known)
    if not only and not areas:
        return every
    return tuple(one for one in every if one.name in only or one.area in areas)


def run(facts: Facts, selected: Sequence[Check]) -> list[Finding]:
    """What the checks find, in their order. Areas are looked at side by side.

    A check that may not look becomes a skip, one that cannot look a fail: neither ends the others.
    """
    areas: dict[str, list[Check]] = {}
    for one in selected:
        areas.setdefault(one.area, []).append(one)
    found: dict[str, list[Finding]] = {}

    def look(area: str) -> None:
        found[area] = [finding for one in areas[area] for finding in examine(facts, one)]

    # Daemons and not a pool, which Ctrl-C would have to wait for: a service may be silent for half a minute.
    threads = [threading.Thread(target=look, args=(area,), name=f"doctor-{area}", daemon=True) for area in areas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [finding for area in areas for finding in found[area]]


def examine(facts: Facts, one: Check) -> Iterator[Finding]:
    """What one check finds."""
    found = list(_looked(facts, one))
    if not found:
        said = "this check said nothing, which is a fault of its own"
        found = [fail(facts.fleet.name, said, "Please report it.")]
    for finding in found:
        yield msgspec.structs.replace(finding, check=one.name, area=one.area, docs=one.docs)


def _looked(facts: Facts, one: Check) -> Iterator[Finding]:
    where = facts.fleet.name
    try:
        if one.needs is not None and (why := one.needs(facts)):
            yield skip(where, why)
        else:
            yield from one.look(facts)
    except Exception as error:  # one that is broken must not hide what the others found
        yield _could_not_look(where, error)


def _could_not_look(where: str, error: Exception) -> Finding:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (with boto3, 0.2 s)
    from psycopg import Error as DatabaseError  # noqa: PLC0415

    if isinstance(error, ClientError) and is_denied(error):
        action = missing_action(error)
        return skip(where, f"these credentials lack {action}", f"Allow {action}: infra/operators.yaml has the policy.")
    if isinstance(error, (BotoCoreError, ClientError)):
        error = explained(error)
    if isinstance(error, SpillwayError):
        return fail(where, f"could not look: {error.message}", error.hint or "Try again.")
    if isinstance(error, DatabaseError):
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return fail(where, f"could not look: {said}", "Check that the database answers, and --dsn.")
    said = f"could not look: {type(error).__name__}: {error}"
    return fail(where, said, "This was not expected: please report it.")


def _unknown(what: str, name: str, known: Sequence[str]) -> SpillwayError:
    from difflib import get_close_matches  # noqa: PLC0415

    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return SpillwayError(f"There is no {what} {name!r}.", f"{hint}`spillway doctor --list` shows them all.")
