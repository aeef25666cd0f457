"""What a check says about one resource."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """How much it matters. Only FAIL makes the doctor's exit status 1."""

    PASS = "pass"  # noqa: S105  (a word)
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence about one resource, and what to do about it.

    `said` is what is, `fix` a sentence or a command, '' where there is nothing to do; neither ever holds a secret.
    `check`, `area` and `docs` are the check's; `registry.run` fills them in.
    """

    level: Level
    resource: str
    said: str
    fix: str = ""
    check: str = ""
    area: str = ""
    docs: str = ""


def passed(resource: str, said: str) -> Finding:
    return Finding(level=Level.PASS, resource=resource, said=said)


def warn(resource: str, said: str, fix: str) -> Finding:
    return Finding(level=Level.WARN, resource=resource, said=said, fix=fix)


def fail(resource: str, said: str, fix: str) -> Finding:
    return Finding(level=Level.FAIL, resource=resource, said=said, fix=fix)


def skip(resource: str, said: str, fix: str = "") -> Finding:
    """`said` is why nobody looked."""
    return Finding(level=Level.SKIP, resource=resource, said=said, fix=fix)
