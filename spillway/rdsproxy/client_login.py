"""A client's login at the proxy, without I/O: bytes in, bytes out.

RDS Proxy asks for an IAM token in clear text, or for a password by SCRAM-SHA-256 (ClientPasswordAuthType
POSTGRES_SCRAM_SHA_256, its default for PostgreSQL). Channel binding (SCRAM-SHA-256-PLUS) is not offered. The exchange
is RFC 5802's, with PostgreSQL's messages around it (manual, "SASL Authentication").

The server's side of SCRAM is written out here because libpq sends an empty user name in it, as PostgreSQL ignores the
name, and scramp's server refuses that.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from scramp import ScramException  # type: ignore[import-untyped]
from scramp.utils import saslprep  # type: ignore[import-untyped]

from spillway.rdsproxy import errors, wire
from spillway.rdsproxy.errors import Refused, protocol_violation
from spillway.rdsproxy.iam import TokenRefused
from spillway.rdsproxy.startup import MessageBuffer, MessageTooLong

if TYPE_CHECKING:
    from spillway.rdsproxy.iam import TokenVerifier
    from spillway.rdsproxy.settings import ProxySettings, Secret
    from spillway.rdsproxy.startup import Startup

#: Longest password message, in bytes: PostgreSQL's own limit (PG_MAX_AUTH_TOKEN_LENGTH in its source,
#: src/include/libpq/auth.h). An IAM token with a session token has about 1,500 bytes.
MAX_PASSWORD_MESSAGE = 65_535
#: PBKDF2 rounds: PostgreSQL's default (`scram_iterations`) and the least that RFC 7677 allows.
SCRAM_ITERATIONS = 4096

MECHANISM = "SCRAM-SHA-256"
_OK = wire.message(wire.AUTHENTICATION, wire.INT32.pack(0))
_CLEARTEXT_PASSWORD = wire.message(wire.AUTHENTICATION, wire.INT32.pack(3))
_SASL = wire.message(wire.AUTHENTICATION, wire.INT32.pack(10) + wire.cstring(MECHANISM) + b"\0")
_PASSWORD_TYPE = bytes((wire.PASSWORD,))
_SASL_CONTINUE, _SASL_FINAL = wire.INT32.pack(11), wire.INT32.pack(12)

#: Takes the bodies of the client's password messages, yields what is sent for each; returns the last, AuthenticationOk
#: included, only if the client may come in.
_Exchange = Generator[bytes, bytes, bytes]


class LoginRefused(Refused):
    """The client may not come in, or does not answer as the protocol wants."""


class ClientLogin:
    """One login. Send what `start` returns, then what `feed` returns for all that arrives, until `done`.

    `secret`: the one of the start-up packet's user, None if there is none. `tls`: whether this connection is inside
    TLS. `token_verifier`: needed where IAM authentication is required. After LoginRefused: send its `error`, log its
    `reason`, close. After `done`, `rest` is what the client sent on.
    """

    def __init__(
        self,
        startup: Startup,
        *,
        secret: Secret | None,
        settings: ProxySettings,
        tls: bool,
        token_verifier: TokenVerifier | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._user = startup.user
        self._secret = secret
        self._settings = settings
        self._tls = tls
        self._token_verifier = token_verifier
        self._now = now
        self._messages = MessageBuffer(MAX_PASSWORD_MESSAGE)
        self._exchange: _Exchange | None = None
        self._refusal: LoginRefused | None = None
        self.done = False

    @property
    def rest(self) -> bytes:
        """Bytes received after the login was done."""
        return self._messages.rest

    def start(self) -> bytes:
        """The first question to the client, or AuthenticationOk where none is asked. Raises LoginRefused."""
        self._exchange = self._choose()
        if self._exchange is None:
            self.done = True
            return _OK
        return next(self._exchange)

    def feed(self, data: bytes) -> bytes:
        """What to send in answer to `data`, perhaps nothing. Raises LoginRefused, from then on whatever is fed."""
        self._messages.feed(data)
        answer = b""
        if self._refusal is None:
            try:
                while not self.done and (password := self._next_password()) is not None:
                    answer += self._step(password)
            except LoginRefused as refusal:
                self._refusal = refusal
        if self._refusal is not None:
            raise self._refusal
        return answer

    def _choose(self) -> _Exchange | None:
        """The exchange this client must pass, None if it is let in without one."""
        if self._settings.require_tls and not self._tls:
            raise LoginRefused(errors.TLS_REQUIRED)
        if self._secret is None:
            raise LoginRefused(errors.no_credentials(self._user))
        if self._settings.iam_auth == "required":
            if not self._tls:
                raise LoginRefused(errors.IAM_NEEDS_TLS)
            if self._token_verifier is None:
                raise LoginRefused(errors.UNKNOWN, "IAM authentication is required, but nothing verifies tokens")
            return _iam(self._token_verifier, self._user, self._now)
        if self._secret.password is None:
            return None
        return _scram(_scram_keys(self._secret.username, self._secret.password), self._user)

    def _step(self, password: bytes) -> bytes:
        # Taken out and put back: an exchange that ended in an exception has ended, and not in success.
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            raise RuntimeError("no login is under way")
        try:
            answer = exchange.send(password)
        except StopIteration as end:
            self.done = True
            last: bytes = end.value
            return last
        self._exchange = exchange
        return answer

    def _next_password(self) -> bytes | None:
        if self._messages.rest[:1] not in {b"", _PASSWORD_TYPE}:
            # By its type alone: what is no password may have any length, and never come.
            kind = self._messages.rest[0]
            raise LoginRefused(protocol_violation(f"expected password response, got message type {kind}"))
        try:
            message = self._messages.next()
        except MessageTooLong as error:
            raise LoginRefused(protocol_violation("invalid message length"), str(error)) from None
        return None if message is None else message[1]


def _iam(verifier: TokenVerifier, user: str, now: Callable[[], datetime]) -> _Exchange:
    body = yield _CLEARTEXT_PASSWORD
    token, terminator, after = body.partition(b"\0")
    if not terminator or after:
        raise LoginRefused(protocol_violation("invalid password packet size"))
    try:
        verifier.verify(token.decode(), user, now())
    except TokenRefused as refused:
        raise LoginRefused(errors.iam_failed(user), f"IAM token refused: {refused.reason}") from None
    except UnicodeDecodeError:
        raise LoginRefused(errors.iam_failed(user), "IAM token refused: it is not UTF-8") from None
    return _OK


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a server keeps of a password (RFC 5802, section 3)."""

    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@lru_cache(maxsize=1024)
def _scram_keys(username: str, password: str) -> ScramKeys:  # noqa: ARG001 - users with one password share no salt
    """The keys of a secret, computed once for the life of the process: 4,096 rounds take milliseconds."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", _prepared(password), salt, SCRAM_ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    return ScramKeys(salt, stored_key, hmac.digest(salted, b"Server Key", "sha256"))


def _prepared(password: str) -> bytes:
    """SASLprep as PostgreSQL applies it: not to plain ASCII, and a password it forbids is taken as it is."""
    if not password.isascii():
        with suppress(ScramException):
            password = saslprep(password)
    return password.encode()


def _scram(keys: ScramKeys, role: str) -> _Exchange:
    """SCRAM-SHA-256, the server's side."""
    gs2_header, client_first_bare, client_nonce = _client_first(_initial_response((yield _SASL)))
    nonce = client_nonce + secrets.token_urlsafe(18)
    server_first = f"r={nonce},s={b64encode(keys.salt).decode()},i={SCRAM_ITERATIONS}"
    client_final = _text((yield wire.message(wire.AUTHENTICATION, _SASL_CONTINUE + server_first.encode())))

    without_proof, separator, proof_text = client_final.rpartition(",p=")
    binding = f"c={b64encode(gs2_header.encode()).decode()},r={nonce}"
    # Extensions may follow the nonce (RFC 5802, section 7); none is known, all are signed.
    if not separator or not (without_proof == binding or without_proof.startswith(f"{binding},")):
        raise LoginRefused(_MALFORMED, "SCRAM: the client's last message does not continue its first")
    auth_message = f"{client_first_bare},{server_first},{without_proof}".encode()
    signature = hmac.digest(keys.stored_key, auth_message, "sha256")
    proof = _base64(proof_text)
    if len(proof) != len(signature):
        raise LoginRefused(_MALFORMED, "SCRAM: the client's proof has a wrong length")
    client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    if not hmac.compare_digest(hashlib.sha256(client_key).digest(), keys.stored_key):
        raise LoginRefused(errors.wrong_password(role))
    server_final = b"v=" + b64encode(hmac.digest(keys.server_key, auth_message, "sha256"))
    return wire.message(wire.AUTHENTICATION, _SASL_FINAL + server_final) + _OK


_MALFORMED = protocol_violation("malformed SCRAM message")


def _initial_response(body: bytes) -> str:
    """The client's first SCRAM message out of a SASLInitialResponse."""
    mechanism, terminator, after = body.partition(b"\0")
    if not terminator or len(after) < 4:
        # Most likely a PasswordMessage: the client cannot SCRAM and sent a clear or an MD5 password.
        raise LoginRefused(errors.UNSUPPORTED_AUTHENTICATION, "the client answered SCRAM with a plain password")
    if mechanism != MECHANISM.encode():
        raise LoginRefused(errors.UNSUPPORTED_AUTHENTICATION, f"the client chose SASL mechanism {mechanism[:50]!r}")
    if wire.INT32.unpack_from(after)[0] != len(after) - 4:
        raise LoginRefused(_MALFORMED, "SCRAM: the client's first message has a wrong length")
    return _text(after[4:])


def _client_first(message: str) -> tuple[str, str, str]:
    """The GS2 header, the rest of the message, and the client's nonce. Its user name is ignored, as PostgreSQL does."""
    flag, _, after_flag = message.partition(",")
    authorization, _, bare = after_flag.partition(",")
    attributes = bare.split(",")
    # n: no channel binding; y: the client could, but saw that we do not offer it. p would want it.
    if flag not in {"n", "y"} or authorization:
        raise LoginRefused(_MALFORMED, f"SCRAM: expected no channel binding and no authzid, got {message[:50]!r}")
    if len(attributes) < 2 or not attributes[0].startswith("n=") or not attributes[1].startswith("r="):
        raise LoginRefused(_MALFORMED, "SCRAM: the client's first message has no name or no nonce")
    nonce = attributes[1][2:]
    if not nonce or not all("!" <= character <= "~" for character in nonce):
        raise LoginRefused(_MALFORMED, "SCRAM: the client's nonce is not printable")
    return f"{flag},,", bare, nonce


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise LoginRefused(_MALFORMED, "SCRAM: a message is not UTF-8") from None


def _base64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise LoginRefused(_MALFORMED, "SCRAM: the client's proof is not base64") from None
