"""The proxy's login to the database, without I/O: bytes in, bytes out.

Start-up and authentication are those of the PostgreSQL manual, "Message Flow", section "Start-up". TLS towards the
database is not spoken: the emulator's target is on the same machine.
"""

from __future__ import annotations

import hashlib
import re
from enum import IntEnum
from typing import TYPE_CHECKING

from scramp import ScramClient, ScramException  # type: ignore[import-untyped]

from spillway.rdsproxy import wire
from spillway.rdsproxy.settings import RdsProxyError
from spillway.rdsproxy.startup import MessageBuffer, MessageTooLong

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Longest message taken from a database before it is ready, in bytes; error texts have no limit of their own.
MAX_MESSAGE = 1024 * 1024


class _Method(IntEnum):
    """Codes of Authentication messages."""

    OK = 0
    CLEARTEXT = 3
    MD5 = 5
    SASL = 10
    SASL_CONTINUE = 11
    SASL_FINAL = 12


_MECHANISM = "SCRAM-SHA-256"
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")


class DatabaseRefused(RdsProxyError):
    """The database does not let the proxy in: its own SQLSTATE and message, or ours where the protocol fails."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseLogin:
    """One login. Send what `start` returns, then what `feed` returns for all that arrives, until `done`.

    `parameters`: start-up parameters besides user and database. After `done`: `parameter_status` is what the database
    reported about its settings, `backend_pid` the process id of this connection there, and `rest` what arrived after
    ReadyForQuery.
    """

    def __init__(self, user: str, password: str | None, database: str, parameters: Mapping[str, str]) -> None:
        self._user = user
        self._password = password
        self._startup = {"user": user, "database": database} | dict(parameters)
        self._messages = MessageBuffer(MAX_MESSAGE)
        self._scram: ScramClient | None = None
        self._scram_finished = False
        self._authenticated = False
        self.done = False
        self.parameter_status: dict[str, str] = {}
        self.backend_pid = 0

    @property
    def rest(self) -> bytes:
        """Bytes received after the login was done."""
        return self._messages.rest

    def start(self) -> bytes:
        """The start-up packet."""
        return wire.startup_message(self._startup)

    def feed(self, data: bytes) -> bytes:
        """What to send in answer to `data`, perhaps nothing. Raises DatabaseRefused."""
        self._messages.feed(data)
        answer = b""
        try:
            while not self.done and (message := self._messages.next()) is not None:
                answer += self._receive(*message)
        except MessageTooLong as error:
            raise DatabaseRefused("08P01", f"The database does not speak PostgreSQL's protocol: {error}.") from None
        return answer

    def _receive(self, kind: int, body: bytes) -> bytes:
        match kind:
            case wire.ERROR:
                fields = wire.error_fields(body)
                raise DatabaseRefused(_sqlstate(fields), fields.get("M", "The database gave no reason."))
            case wire.NOTICE | wire.NEGOTIATE_PROTOCOL_VERSION:
                # The proxy asks for 3.0 and no protocol extension, so there is nothing to step back from.
                return b""
            case wire.AUTHENTICATION if not self._authenticated and len(body) >= 4:
                return self._authenticate(wire.INT32.unpack_from(body)[0], body[4:])
            case wire.PARAMETER_STATUS if self._authenticated and body.count(b"\0") == 2:
                name, value, _ = body.decode(errors="replace").split("\0")
                self.parameter_status[name] = value
                return b""
            case wire.BACKEND_KEY_DATA if self._authenticated and len(body) >= 8:
                (self.backend_pid,) = wire.INT32.unpack_from(body)
                return b""
            case wire.READY if self._authenticated:
                self.done = True
                return b""
        raise DatabaseRefused(
            "08P01", f"The database sent an unexpected message of type {chr(kind)!r} during the login."
        )

    def _authenticate(self, method: int, data: bytes) -> bytes:
        try:
            match method:
                case _Method.OK if self._scram is None or self._scram_finished:
                    self._authenticated = True
                    return b""
                case _Method.CLEARTEXT:
                    return _password_message(self._needed_password().encode())
                case _Method.MD5 if len(data) == 4:
                    return _password_message(_md5(self._user, self._needed_password(), data))
                case _Method.SASL if self._scram is None:
                    return self._scram_begin(data)
                case _Method.SASL_CONTINUE if self._scram is not None:
                    self._scram.set_server_first(data.decode())
                    return wire.message(wire.PASSWORD, self._scram.get_client_final().encode())
                case _Method.SASL_FINAL if self._scram is not None:
                    self._scram.set_server_final(data.decode())
                    self._scram_finished = True
                    return b""
        except (ScramException, UnicodeDecodeError) as error:
            raise DatabaseRefused("08P01", f"The SCRAM exchange with the database failed: {error}.") from error
        if method in set(_Method):
            raise DatabaseRefused("08P01", "The database broke the authentication exchange off.")
        raise DatabaseRefused("0A000", f"The database asks for authentication method {method}; not supported.")

    def _scram_begin(self, data: bytes) -> bytes:
        if _MECHANISM.encode() not in data.split(b"\0"):
            raise DatabaseRefused("0A000", f"The database offers no {_MECHANISM} without channel binding.")
        self._scram = ScramClient([_MECHANISM], self._user, self._needed_password())
        first: bytes = self._scram.get_client_first().encode()
        return wire.message(wire.PASSWORD, wire.cstring(_MECHANISM) + wire.INT32.pack(len(first)) + first)

    def _needed_password(self) -> str:
        if self._password is None:
            raise DatabaseRefused(
                "28P01", f"The database asks for a password, and the proxy has none for user {self._user}."
            )
        return self._password


def _password_message(password: bytes) -> bytes:
    return wire.message(wire.PASSWORD, wire.cstring(password))


def _md5(user: str, password: str, salt: bytes) -> bytes:
    """PostgreSQL's answer to AuthenticationMD5Password (manual, "Start-up")."""
    inner = hashlib.md5((password + user).encode(), usedforsecurity=False).hexdigest()
    return b"md5" + hashlib.md5(inner.encode() + salt, usedforsecurity=False).hexdigest().encode()


def _sqlstate(fields: Mapping[str, str]) -> str:
    code = fields.get("C", "")
    return code if _SQLSTATE.fullmatch(code) else "XX000"
