"""IAM tokens as RDS checks them: a presigned URL whose signature is computed again from the secret access key.

The token is "HOST:PORT/?QUERY", signed with AWS Signature Version 4 for service rds-db (RDS user guide, "Connecting
using IAM authentication"; IAM user guide, "AWS Signature Version 4 for API requests"). AWS then asks IAM whether the
signer may rds-db:connect as this user; here, whoever holds a known key may.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: How long RDS accepts a token, in seconds (RDS user guide, "IAM database authentication").
MAX_LIFETIME_S = 900
#: How far in the future a token's date may lie: what AWS grants clocks in general (IAM user guide, "Troubleshoot
#: Signature Version 4": requests are good within five minutes of their time stamp).
MAX_CLOCK_SKEW = timedelta(minutes=5)

_ALGORITHM = "AWS4-HMAC-SHA256"
_SERVICE = "rds-db"
_TERMINATOR = "aws4_request"
_EMPTY_HASH = hashlib.sha256(b"").hexdigest()
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)
_EXPIRES = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_PARAMETERS = (
    *("Action", "DBUser", "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires"),
    *("X-Amz-SignedHeaders", "X-Amz-Signature"),
)


class TokenRefused(Exception):
    """A token does not verify. `reason` is for the proxy's log; it holds neither the secret key nor a signature."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TokenVerifier:
    """Verifies tokens for one proxy.

    `credentials`: secret access keys by access key id. `hostnames` and `port`: the names and the port that a token
    may be made for, which need not be those the client connected to.
    """

    def __init__(self, credentials: Mapping[str, str], region: str, hostnames: Collection[str], port: int) -> None:
        self._credentials = credentials
        self._region = region
        self._hostnames = frozenset(name.lower() for name in hostnames)
        self._port = port

    def verify(self, token: str, user: str, now: datetime) -> None:
        """Return if `token` lets `user` in at `now` (an aware time). Raises TokenRefused."""
        endpoint, separator, query_string = token.partition("/?")
        if not separator:
            raise TokenRefused("the password is no IAM token: expected HOST:PORT/?Action=connect&...")
        query = _parse(query_string)
        _expect("X-Amz-Algorithm", query["X-Amz-Algorithm"], _ALGORITHM)
        _expect("X-Amz-SignedHeaders", query["X-Amz-SignedHeaders"], "host")
        _expect("Action", query["Action"], "connect")
        _expect("DBUser", query["DBUser"], user)
        self._check_endpoint(endpoint)
        stamp = _check_time(query, now)
        secret_key, scope = self._check_credential(query["X-Amz-Credential"], stamp)
        signature = query.pop("X-Amz-Signature")
        # botocore signs the host in lower case, others as it is written.
        if not any(
            hmac.compare_digest(_signature(secret_key, stamp, scope, host, query).encode(), signature.encode())
            for host in dict.fromkeys((endpoint, endpoint.lower()))
        ):
            raise TokenRefused("the signature does not match: another secret access key, or the token was altered")

    def _check_endpoint(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        if host.lower() not in self._hostnames or port != str(self._port):
            allowed = ", ".join(f"{name}:{self._port}" for name in sorted(self._hostnames))
            raise TokenRefused(f"it is for {_shown(endpoint)}; expected one of {allowed}")

    def _check_credential(self, credential: str, stamp: str) -> tuple[str, str]:
        """The secret access key and the credential scope."""
        key_id, _, scope = credential.partition("/")
        if key_id not in self._credentials:
            raise TokenRefused(f"the access key {_shown(key_id)} is unknown")
        _expect("the credential scope", scope, f"{stamp[:8]}/{self._region}/{_SERVICE}/{_TERMINATOR}")
        return self._credentials[key_id], scope


def _parse(query_string: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for pair in query_string.split("&"):
        name, _, value = pair.partition("=")
        try:
            name, value = unquote(name, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise TokenRefused("it is not UTF-8") from None
        if name in query:
            raise TokenRefused(f"it has two parameters {_shown(name)}")
        query[name] = value
    if missing := [name for name in _PARAMETERS if name not in query]:
        raise TokenRefused(f"it has no parameter {missing[0]}")
    return query


def _check_time(query: Mapping[str, str], now: datetime) -> str:
    stamp, expires = query["X-Amz-Date"], query["X-Amz-Expires"]
    signed_at = _moment(stamp)
    if not _EXPIRES.fullmatch(expires) or int(expires) > MAX_LIFETIME_S:
        raise TokenRefused(f"X-Amz-Expires: expected 1 to {MAX_LIFETIME_S} seconds, got {_shown(expires)}")
    if signed_at - now > MAX_CLOCK_SKEW:
        raise TokenRefused(f"it is from the future: signed at {stamp}")
    if now - signed_at > timedelta(seconds=int(expires)):
        raise TokenRefused(f"it has expired: signed at {stamp} for {expires} s")
    return stamp


def _moment(stamp: str) -> datetime:
    if _STAMP.fullmatch(stamp):  # strptime also takes shorter numbers
        with suppress(ValueError):
            return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    raise TokenRefused(f"X-Amz-Date: expected YYYYMMDDThhmmssZ, got {_shown(stamp)}")


def _signature(secret_key: str, stamp: str, scope: str, host: str, query: Mapping[str, str]) -> str:
    """Signature Version 4 of the presigned request, in hexadecimal. `query` is without the signature."""
    encoded = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    query_string = "&".join(f"{name}={value}" for name, value in encoded)
    request = "\n".join(("GET", "/", query_string, f"host:{host}", "", "host", _EMPTY_HASH))
    to_sign = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def _expect(name: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise TokenRefused(f"{name}: expected {expected!r}, got {_shown(actual)}")


def _shown(text: str) -> str:
    """What a client sent, safe to be logged: one line, not long."""
    return repr(text[:100])
