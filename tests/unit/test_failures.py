"""Whose fault is it? The whole table."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from workers.runtime.failures import POLICIES, Failure, Poison, Reason, ResultMismatch, classify


def _with_sqlstate(code: str) -> psycopg.Error:
    error = errors.lookup(code)("text that must not matter") if code in errors._sqlcodes else psycopg.Error("text")
    if error.sqlstate != code:
        error.sqlstate = code
    return error


SQLSTATES = {
    Failure.POISON: ["22001", "22003", "22007", "22023", "22P02", "22P05", "23502", "23503", "23505", "23514"],
    Failure.CONFLICT: ["40001", "40P01", "55P03", "40002"],
    Failure.UNAVAILABLE: ["57P01", "57P02", "57P03", "57P05", "25006", "08001", "08003", "08006", "08P01"],
    Failure.SATURATED: ["08000", "53300", "53100", "53200"],
    Failure.SLOW: ["57014"],
    Failure.MISCONFIGURED: ["28000", "28P01", "42501", "42883", "42P01", "42601", "0A000", "3D000", "3F000"],
    Failure.UNKNOWN: ["XX000", "P0001", "54000", "58030", "25P02", "99999"],
}


@pytest.mark.parametrize(
    ("code", "failure"), [(code, failure) for failure, codes in SQLSTATES.items() for code in codes]
)
def test_sqlstate(code: str, failure: Failure) -> None:
    assert classify(_with_sqlstate(code)) is failure


TEXTS = [
    ('connection failed: FATAL:  password authentication failed for user "spillway_app"', Failure.MISCONFIGURED),
    ('FATAL:  database "spilway" does not exist', Failure.MISCONFIGURED),
    ('FATAL:  role "spillway_app" does not exist', Failure.MISCONFIGURED),
    ("FATAL:  no pg_hba.conf entry for host", Failure.MISCONFIGURED),
    ("This RDS Proxy requires TLS connections.", Failure.MISCONFIGURED),
    ("IAM authentication failed for user spillway_app. Check the IAM token.", Failure.MISCONFIGURED),
    ("This RDS proxy has no credentials for the role x. Check", Failure.MISCONFIGURED),
    ("SSL error: certificate verify failed", Failure.MISCONFIGURED),
    ("server does not support SSL, but SSL was required", Failure.MISCONFIGURED),
    ("Feature not supported: RDS Proxy currently doesn't support the option options.", Failure.MISCONFIGURED),
    ("Timed-out waiting to acquire database connection.", Failure.SATURATED),
    ("FATAL:  sorry, too many clients already", Failure.SATURATED),
    ("The maximum number of client connections to the proxy exceeded 200.", Failure.SATURATED),
    ("Rate of connection to proxy exceeded 5.", Failure.SATURATED),
    ("The IAM authentication failed because of too many competing requests.", Failure.SATURATED),
    ("FATAL:  remaining connection slots are reserved for roles with", Failure.SATURATED),
    ('connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused', Failure.UNAVAILABLE),
    ("connection timeout expired", Failure.UNAVAILABLE),
    ("server closed the connection unexpectedly", Failure.UNAVAILABLE),
    ("FATAL:  the database system is starting up", Failure.UNAVAILABLE),
    ("FATAL:  the database system is shutting down", Failure.UNAVAILABLE),
    ("failed to resolve host 'db': [Errno -2] Name or service not known", Failure.UNAVAILABLE),
    ("something nobody has seen", Failure.UNAVAILABLE),
]


@pytest.mark.parametrize(("text", "failure"), TEXTS)
def test_connect_failure_by_text(text: str, failure: Failure) -> None:
    error = psycopg.OperationalError(text)
    assert error.sqlstate is None
    assert classify(error) is failure


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (Poison(Reason.CONTRACT, "Expected `int`"), Failure.POISON),
        (ResultMismatch("other rows"), Failure.UNKNOWN),
        (psycopg.InterfaceError("the connection is closed"), Failure.UNAVAILABLE),
        (ConnectionResetError("reset"), Failure.UNAVAILABLE),
        (ValueError("a bug of ours"), Failure.UNKNOWN),
        (psycopg.ProgrammingError("a bug of ours"), Failure.UNKNOWN),
    ],
)
def test_other_errors(error: Exception, failure: Failure) -> None:
    assert classify(error) is failure


def test_every_class_has_a_policy_and_saturation_never_retries_or_halves() -> None:
    assert set(POLICIES) == set(Failure)
    saturated = POLICIES[Failure.SATURATED]
    assert (saturated.attempts, saturated.halvings, saturated.stop) == (1, 0, True)
    assert POLICIES[Failure.POISON].halvings >= 14, "must take the largest batch (10,000) apart"
