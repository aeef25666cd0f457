"""One line of an RDS Proxy's log that tells of a pin, read loosely: AWS has changed the format before.

What is sure is that a session was pinned; everything else may be missing. Seen in public reports of 2020 to 2026:
    2020-08-04T11:47:24.251Z [WARN] [clientConnection=3888679423] The client session was pinned to the database
    connection [dbConnection=529039385] for the remainder of the session. The proxy can't reuse this connection until
    the session ends. Reason: SQL changed session settings that the proxy doesn't track. Consider moving session
    configuration to the proxy's initialization query. Digest: "set search_path = $1".
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

#: What makes a line one of a pin, for the search in CloudWatch as well. "was pinned" alone is also in the line that
#: tells of its end ("The client session it was pinned to ended").
MARK = "session was pinned"
NO_REASON = "no reason given"

_CLIENT = re.compile(r"\bclientConnection=(\S+?)\]")
_DATABASE = re.compile(r"\bdbConnection=(\S+?)\]")
_REASON = re.compile(r"\bReason:\s*(?P<reason>.*?)\s*(?:\bDigest:\s*(?P<digest>.*?)\s*)?$", re.DOTALL)
_MOMENT = re.compile(r"\s*(?P<moment>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?)(?P<zone>Z|[+-]\d\d:?\d\d)?")


class PinLine(msgspec.Struct, kw_only=True, frozen=True):
    """A pin. `client` and `connection` are the proxy's names for the two sides; what the line does not say is ''.

    `statement` is the digest: the statement's shape without its values.
    """

    at: datetime | None
    client: str
    connection: str
    reason: str
    statement: str


def read_line(line: str, at: datetime | None = None) -> PinLine | None:
    """The pin that `line` tells of, or None; `at` is when, where it is known better than from the line."""
    if MARK not in line:
        return None
    client, connection, said = _CLIENT.search(line), _DATABASE.search(line), _REASON.search(line)
    return PinLine(
        at=at or read_moment(line),
        client=client[1] if client else "",
        connection=connection[1] if connection else "",
        reason=said["reason"].strip() if said and said["reason"].strip() else NO_REASON,
        statement=_unquoted(said["digest"] or "") if said else "",
    )


def read_moment(text: str) -> datetime | None:
    """The moment that `text` begins with, in UTC where it names no zone; None where there is none."""
    found = _MOMENT.match(text)
    if found is None:
        return None
    try:
        moment = datetime.fromisoformat(found["moment"] + (found["zone"] or ""))
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _unquoted(digest: str) -> str:
    digest = digest.strip().removesuffix(".")
    return digest[1:-1] if len(digest) > 1 and digest[0] == digest[-1] == '"' else digest
