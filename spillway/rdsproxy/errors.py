"""The errors a client of the proxy sees.

SQLSTATEs and texts are those of the RDS user guide, page "Troubleshooting for RDS Proxy", section "Troubleshooting RDS
Proxy issues with RDS for PostgreSQL". Field reports show some of them without their last full stop; we keep the page's
form, so clients should look for parts of a text and not compare the whole. What no page of AWS describes is
PostgreSQL's own and stands at the end.

Refused                       a client is turned away: ``error`` is for the client, ``reason`` for the log
├── StartupRejected           its start-up packet: ``spillway.rdsproxy.startup``
└── LoginRefused              its credentials: ``spillway.rdsproxy.client_login``
"""

from __future__ import annotations

from dataclasses import dataclass

from spillway.rdsproxy import wire


@dataclass(frozen=True, slots=True)
class ProxyError:
    """What an ErrorResponse says."""

    sqlstate: str
    message: str

    def encode(self, severity: str = "FATAL") -> bytes:
        """The ErrorResponse; FATAL tells the client that the connection ends here."""
        return wire.error_response(severity, self.sqlstate, self.message)


class Refused(Exception):
    """A client is turned away with `error`. `reason` may say more than the client should know."""

    def __init__(self, error: ProxyError, reason: str = "") -> None:
        super().__init__(reason or error.message)
        self.error = error
        self.reason = reason or error.message


# 08000: the pool had no connection to lend within ConnectionBorrowTimeout.
BORROW_TIMEOUT = ProxyError("08000", "Timed-out waiting to acquire database connection.")

# 53300: the proxy's own throttles.
IAM_BUSY = ProxyError("53300", "The IAM authentication failed because of too many competing requests.")


def too_many_clients(limit: int) -> ProxyError:
    """More clients at once than the proxy takes."""
    return ProxyError("53300", f"The maximum number of client connections to the proxy exceeded {limit}.")


def connection_rate(limit: int) -> ProxyError:
    """More new clients in a second than the proxy takes."""
    return ProxyError("53300", f"Rate of connection to proxy exceeded {limit}.")


# 28P01: the credentials are wrong.
def iam_failed(user: str) -> ProxyError:
    """The token does not verify; why stays in the proxy's log."""
    return ProxyError(
        "28P01", f"IAM authentication failed for user {user}. Check the IAM token for this user and try again."
    )


def wrong_password(role: str) -> ProxyError:
    """The password is not the secret's."""
    return ProxyError("28P01", f"The password that was provided for the role {role} is wrong.")


# 28000: the client or the proxy is not configured for this login.
TLS_REQUIRED = ProxyError("28000", "This RDS Proxy requires TLS connections.")
IAM_NEEDS_TLS = ProxyError("28000", "IAM authentication is allowed only with SSL connections.")
USER_MISSING = ProxyError(
    "28000", "A user name is missing from the connection startup packet. Provide a user name for this connection."
)
# Older copies of the page say "only IAM or MD5"; they are from before the proxy knew SCRAM.
UNSUPPORTED_AUTHENTICATION = ProxyError("28000", "RDS supports only IAM, MD5, or SCRAM authentication.")


def no_credentials(role: str) -> ProxyError:
    """No secret names this role."""
    return ProxyError(
        "28000",
        f"This RDS proxy has no credentials for the role {role}. Check the credentials for this role and try again.",
    )


# 0A000: the start-up packet asks for something the proxy does not do. The text about command-line options is not on
# AWS's page but in many field reports, always the same.
UNSUPPORTED_PROTOCOL = ProxyError(
    "0A000", "Feature not supported: RDS Proxy supports only version 3.0 of the PostgreSQL messaging protocol."
)
REPLICATION = ProxyError(
    "0A000", "Feature not supported: RDS Proxy currently doesn't support streaming replication mode."
)
COMMAND_LINE_OPTIONS = ProxyError(
    "0A000", "Feature not supported: RDS Proxy currently doesn't support command-line options."
)


def unsupported_option(name: str) -> ProxyError:
    """A start-up parameter that the proxy does not take."""
    return ProxyError("0A000", f"Feature not supported: RDS Proxy currently doesn't support the option {name}.")


# XX000: the proxy itself, or the database it logs in to.
UNKNOWN = ProxyError("XX000", "Unknown error.")


def database_error(text: str) -> ProxyError:
    """The database refused the connection that the proxy opened for this client."""
    return ProxyError("XX000", f"Request returned an error: {text.rstrip('.')}.")


# PostgreSQL's, not AWS's: what RDS Proxy answers to a broken client is not documented.
def protocol_violation(text: str) -> ProxyError:
    """The client broke the protocol."""
    return ProxyError("08P01", text)
