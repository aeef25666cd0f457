"""Whose fault is it? The whole table."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from spillway.stack.template import load_fleet
from workers.runtime.failures import POLICIES, Failure, Poison, Reason, ResultMismatch, classify


def _with_sqlstate(code: str) -> psycopg.Error:
    error = errors.lookup(code)("text that must not matter") if code in errors._sqlcodes else psycopg.Error("text")
    if error.sqlstate != code:
        error.sqlstate = code
    return error


SQLSTATES = {
    Failure.POISON: "22000 22001 22003 22007 22008 22021 22023 22P02 22P05 23000 23502 23503 23505 23514 23P01",
    Failure.CONFLICT: "40001 40P01 55P03 40002 40003",
    Failure.UNAVAILABLE: "57P01 57P02 57P03 57P05 25006 25P03 08001 08003 08004 08006 08007 08P01",
    Failure.SATURATED: "08000 53300 53100 53200 53400",
    Failure.SLOW: "57014 25P04",
    Failure.MISCONFIGURED: "28000 28P01 42501 42883 42P01 42601 42703 42804 0A000 3D000 3F000 57P04",
    # A damaged database or disk (58xxx, XX001, XX002), a function of ours that raises (P0001), what nobody knows.
    Failure.UNKNOWN: "XX000 XX001 XX002 P0001 54000 54001 55000 58000 58030 58P01 25P02 F0000 2D000 99999",
}


@pytest.mark.parametrize(
    ("code", "failure"), [(code, failure) for failure, codes in SQLSTATES.items() for code in codes.split()]
)
def test_sqlstate(code: str, failure: Failure) -> None:
    assert classify(_with_sqlstate(code)) is failure


#: What psycopg, libpq, PostgreSQL and RDS Proxy say when a connection cannot be made or is lost.
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
    ("FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode", Failure.UNAVAILABLE),
    ("FATAL:  terminating connection due to administrator command", Failure.UNAVAILABLE),
    ('could not translate host name "db" to address: Name or service not known', Failure.UNAVAILABLE),
    ("SSL SYSCALL error: EOF detected", Failure.UNAVAILABLE),
    ("SSL SYSCALL error: Connection timed out", Failure.UNAVAILABLE),
    ("SSL error: unexpected eof while reading", Failure.UNAVAILABLE),
    ("consuming input failed: SSL connection has been closed unexpectedly", Failure.UNAVAILABLE),
    ("consuming input failed: could not receive data from server: Connection reset by peer", Failure.UNAVAILABLE),
    ("sending query and params failed: no connection to the server", Failure.UNAVAILABLE),
    ("the connection is lost", Failure.UNAVAILABLE),
    ("the connection is closed", Failure.UNAVAILABLE),
    ('connection to server at "10.0.0.7", port 5432 failed: No route to host', Failure.UNAVAILABLE),
    ("something nobody has seen", Failure.UNAVAILABLE),
    ('FATAL:  too many connections for role "spillway_app"', Failure.SATURATED),
    ('FATAL:  too many connections for database "spillway"', Failure.SATURATED),
    ("could not fork new process for connection: Cannot allocate memory", Failure.SATURATED),
    ("FATAL:  could not write init file: No space left on device", Failure.SATURATED),
    ('FATAL:  PAM authentication failed for user "spillway_app"', Failure.MISCONFIGURED),
    ("The password that was provided for the role spillway_app is wrong.", Failure.MISCONFIGURED),
    ("IAM authentication is allowed only with SSL connections.", Failure.MISCONFIGURED),
    ("connection failed: fe_sendauth: no password supplied", Failure.MISCONFIGURED),
    ('root certificate file "/nowhere" does not exist', Failure.MISCONFIGURED),
    ('could not read root certificate file "/x": no certificate or crl found', Failure.MISCONFIGURED),
    ('server certificate for "a" does not match host name "b"', Failure.MISCONFIGURED),
    ("SSL error: tlsv1 alert unknown ca", Failure.MISCONFIGURED),
    ("SSL error: wrong version number", Failure.MISCONFIGURED),
    ('FATAL:  role "spillway_app" is not permitted to log in', Failure.MISCONFIGURED),
    ('FATAL:  database "spillway" is not currently accepting connections', Failure.MISCONFIGURED),
    ('FATAL:  permission denied for database "spillway"', Failure.MISCONFIGURED),
    # Several hosts, several failures: room and configuration are said by who was reached, so they go first.
    (
        "Multiple connection attempts failed. All failures were:\n- host: 'a': Connection refused\n"
        "- host: 'b': FATAL:  sorry, too many clients already",
        Failure.SATURATED,
    ),
]


@pytest.mark.parametrize(("text", "failure"), TEXTS)
def test_connect_failure_by_text(text: str, failure: Failure) -> None:
    error = psycopg.OperationalError(text)
    assert error.sqlstate is None
    assert classify(error) is failure


#: RDS Proxy gives whatever it was told by the database this code, and "Unknown error." to what it cannot name.
WRAPPED = [
    ("Unknown error.", Failure.UNKNOWN),
    ('Request returned an error: password authentication failed for user "x".', Failure.MISCONFIGURED),
    ('Request returned an error: database "x" does not exist.', Failure.MISCONFIGURED),
    ('Request returned an error: FATAL: too many connections for role "x".', Failure.SATURATED),
    ("Request returned an error: the database system is starting up.", Failure.UNAVAILABLE),
    ("Request returned an error: terminating connection due to administrator command.", Failure.UNAVAILABLE),
    ("Request returned an error: could not open relation with OID 4711.", Failure.UNKNOWN),
    ("tuple concurrently updated", Failure.UNKNOWN),
]


@pytest.mark.parametrize(("text", "failure"), WRAPPED)
def test_an_internal_error_by_text(text: str, failure: Failure) -> None:
    error = errors.InternalError_(text)
    assert error.sqlstate == "XX000"
    assert classify(error) is failure


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (errors.ConnectionTimeout("connection timeout expired"), Failure.UNAVAILABLE),
        (errors.PipelineAborted("pipeline aborted"), Failure.UNAVAILABLE),
        (errors.IdleInTransactionSessionTimeout("x"), Failure.UNAVAILABLE),
        (errors.ReadOnlySqlTransaction("x"), Failure.UNAVAILABLE),  # an InternalError to the driver
        (errors.FeatureNotSupported("x"), Failure.MISCONFIGURED),  # a NotSupportedError
        (errors.DiskFull("x"), Failure.SATURATED),
        (psycopg.DatabaseError("SSL SYSCALL error: Connection timed out"), Failure.UNAVAILABLE),  # made up by libpq
        (psycopg.DatabaseError("server closed the connection unexpectedly"), Failure.UNAVAILABLE),
        (psycopg.DatabaseError("something nobody has seen"), Failure.UNAVAILABLE),
        (psycopg.DataError("cannot dump"), Failure.UNKNOWN),  # without SQLSTATE it is the driver's: a mistake of ours
        (psycopg.NotSupportedError("needs a newer libpq"), Failure.UNKNOWN),
        (psycopg.InternalError("?"), Failure.UNKNOWN),
        (TimeoutError("timed out"), Failure.UNAVAILABLE),
        (MemoryError(), Failure.UNKNOWN),
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


def test_the_longer_a_failure_lasts_by_nature_the_longer_its_delays() -> None:
    delays = {failure: policy.delay_s for failure, policy in POLICIES.items()}
    assert delays == {
        Failure.HELD: 1,
        Failure.CONFLICT: 1,
        Failure.UNAVAILABLE: 5,
        Failure.SLOW: 5,
        Failure.POISON: 10,
        Failure.UNKNOWN: 10,
        Failure.SATURATED: 15,
        Failure.MISCONFIGURED: 60,
    }
    for policy in POLICIES.values():
        assert policy.delay_s < policy.max_delay_s <= 900
        assert policy.growth > 1


def test_no_outage_uses_up_the_receives_of_a_good_message() -> None:
    """SQS dead-letters what was received maxReceiveCount times, so that must take longer than the queue keeps it."""
    fleet = load_fleet({"DatabaseHost": "proxy.example"})
    cap_s = fleet.parameters["RetryMaxDelay"]
    queues = [fleet.queues[source.queue] for source in fleet.mappings]
    assert queues
    for queue in queues:
        for failure, policy in POLICIES.items():
            # Full jitter: half the bound on average. A held message waits as long as the one that holds it.
            means = [
                min(cap_s, policy.max_delay_s, policy.delay_s * policy.growth ** min(receive, 40)) / 2
                for receive in range(queue.max_receive_count or 0)
            ]
            if failure is not Failure.HELD:
                assert sum(means) > int(queue.attributes["MessageRetentionPeriod"]), (queue.name, failure)
