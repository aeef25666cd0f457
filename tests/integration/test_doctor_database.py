"""The doctor on a real PostgreSQL and behind a real proxy: each fault is seeded into a good one, and found alone."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from spillway.doctor.facts import Facts
from spillway.doctor.facts_functions import EventSource, Function
from spillway.doctor.finding import Finding, Level
from spillway.doctor.registry import run, select
from spillway.fleet.find import local
from spillway.fleet.fleet import Fleet, Worker
from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.certificates import ensure_certificates
from spillway.rdsproxy.settings import ProxySettings, Target
from spillway.stack.state import StackState, WorkerLogin
from tests.conftest import ACCESS_KEY, LOGIN, REGION, SECRET_KEY, drop_database, new_database
from workers.migrate.roles import LoginRole, ensure_roles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spillway.stack.postgres import PostgresServer

USER = "doctor_app"
FAIL, WARN, SKIP, PASS = Level.FAIL, Level.WARN, Level.SKIP, Level.PASS
PARAMETERS = {
    "DatabaseUser": USER,
    "DatabaseStatementTimeout": "10",
    "DatabaseRoute": "proxy",
    "ProxyAuthentication": "secret",
}
CONCURRENCY = {"orders": 10, "inventory": 10, "payments": 10, "audit": 5}


@pytest.fixture(scope="module")
def admin(postgres: PostgresServer, migrated: str) -> Iterator[psycopg.Connection[Any]]:
    """A migrated database with a login of its own, which no other test uses."""
    name = new_database(postgres, migrated)
    with psycopg.connect(postgres.dsn(name), autocommit=True) as connection:
        ensure_roles(connection, LoginRole.with_timeouts(USER, "doctors-password", 10))
        yield connection
        connection.execute(f"DROP OWNED BY {USER}")
        connection.execute(f"DROP ROLE {USER}")
    drop_database(postgres, name)


@pytest.fixture
def dsn(admin: psycopg.Connection[Any], postgres: PostgresServer) -> str:
    return postgres.dsn(admin.info.dbname)


def facts(dsn: str | None, concurrency: dict[str, int] | None = None, **parameters: str) -> Facts:
    """Of a deployed fleet whose database is reached with `dsn`."""
    workers = {
        name: Worker(name=name, queue_url=name, dead_letter_url=name, function=name, logs=name) for name in CONCURRENCY
    }
    mappings = {
        worker: EventSource(
            worker=worker,
            logical_id="",
            batch_size=10,
            window_s=1,
            maximum_concurrency=count,
            partial_responses=True,
        )
        for worker, count in (concurrency or CONCURRENCY).items()
    }
    known = {"stack": SimpleNamespace(parameters=PARAMETERS | parameters), "mappings": mappings}
    return Facts(Fleet(name="spillway-test", workers=workers, region=REGION), dsn, known=known)


def look(of: Facts, area: str = "database") -> list[Finding]:
    return run(of, select(areas=[area]))


def troubles(findings: list[Finding]) -> dict[str, Level]:
    wrong = {one.check: one.level for one in findings if one.level in (FAIL, WARN)}
    assert all(one.fix for one in findings if one.check in wrong and one.level in (FAIL, WARN))
    return wrong


def test_nothing_is_wrong_with_a_migrated_database(dsn: str) -> None:
    found = look(facts(dsn))
    assert troubles(found) == {}
    assert {one.check for one in found if one.level is SKIP} == {"role-iam", "connection-room"}


@dataclass(frozen=True)
class Fault:
    """SQL that seeds it, SQL that takes it back, and what is found."""

    name: str
    seed: str
    undo: str
    found: dict[str, Level]
    says: str


FAULTS = [
    Fault(
        "migration edited",
        "UPDATE spillway.migrations SET checksum = 'x' || checksum WHERE version = 2",
        "UPDATE spillway.migrations SET checksum = substr(checksum, 2) WHERE version = 2",
        {"migrations-applied": FAIL},
        "was edited after it was applied",
    ),
    Fault(
        "function not applied as it is here",
        "UPDATE spillway.migrations SET checksum = 'x' || checksum WHERE name = 'orders/apply.sql'",
        "UPDATE spillway.migrations SET checksum = substr(checksum, 2) WHERE name = 'orders/apply.sql'",
        {"migrations-applied": FAIL},
        "lacks orders/apply.sql",
    ),
    Fault(
        "migrated by newer code",
        "INSERT INTO spillway.migrations VALUES ('0999_later.sql', 999, 'x')",
        "DELETE FROM spillway.migrations WHERE version = 999",
        {"migrations-known": WARN},
        "0999_later.sql, which this checkout does not know",
    ),
    Fault(
        "may not log in",
        f"ALTER ROLE {USER} NOLOGIN",
        f"ALTER ROLE {USER} LOGIN",
        {"roles-exist": FAIL},
        "may not log in",
    ),
    Fault(
        "not in the group",
        f"REVOKE spillway_worker FROM {USER}",
        f"GRANT spillway_worker TO {USER}",
        {"roles-exist": FAIL},
        "not in spillway_worker",
    ),
    Fault(
        "group may log in",
        "ALTER ROLE spillway_worker LOGIN",
        "ALTER ROLE spillway_worker NOLOGIN",
        {"roles-exist": FAIL},
        "nobody's login",
    ),
    Fault(
        "superuser",
        f"ALTER ROLE {USER} SUPERUSER",
        f"ALTER ROLE {USER} NOSUPERUSER",
        {"role-powers": FAIL},
        "has SUPERUSER",
    ),
    Fault(
        "may make roles and pass row security by",
        f"ALTER ROLE {USER} CREATEROLE BYPASSRLS",
        f"ALTER ROLE {USER} NOCREATEROLE NOBYPASSRLS",
        {"role-powers": FAIL},
        "has CREATEROLE, BYPASSRLS",
    ),
    Fault(
        "no statement timeout",
        f"ALTER ROLE {USER} RESET statement_timeout",
        f"ALTER ROLE {USER} SET statement_timeout = '10s'",
        {"role-timeouts": FAIL},
        "statement_timeout is not set and not 10000 ms",
    ),
    Fault(
        "another timeout in this database alone",
        "DO $$ BEGIN EXECUTE format("
        f"'ALTER ROLE {USER} IN DATABASE %I SET lock_timeout = ''1min''', current_database()); END $$",
        "DO $$ BEGIN EXECUTE format("
        f"'ALTER ROLE {USER} IN DATABASE %I RESET lock_timeout', current_database()); END $$",
        {"role-timeouts": FAIL},
        "lock_timeout is 1min and not 5000 ms",
    ),
    Fault(
        "no search_path",
        f"ALTER ROLE {USER} RESET search_path",
        f"ALTER ROLE {USER} SET search_path = spillway, pg_temp",
        {"role-search-path": FAIL},
        "search_path of the server",
    ),
    Fault(
        "function of the caller's rights",
        "ALTER FUNCTION spillway.apply_orders SECURITY INVOKER",
        "ALTER FUNCTION spillway.apply_orders SECURITY DEFINER",
        {"worker-functions": FAIL},
        "not SECURITY DEFINER",
    ),
    Fault(
        "function on the caller's search_path",
        "ALTER FUNCTION spillway.apply_orders RESET search_path",
        "ALTER FUNCTION spillway.apply_orders SET search_path = spillway, pg_temp",
        {"worker-functions": FAIL},
        "without a search_path of its own",
    ),
    Fault(
        "function that workers may not call",
        "REVOKE EXECUTE ON FUNCTION spillway.apply_orders FROM spillway_worker",
        "GRANT EXECUTE ON FUNCTION spillway.apply_orders TO spillway_worker",
        {"worker-functions": FAIL},
        "may not be called by spillway_worker",
    ),
    Fault(
        "no function",
        "ALTER FUNCTION spillway.apply_orders RENAME TO apply_other",
        "ALTER FUNCTION spillway.apply_other RENAME TO apply_orders",
        {"worker-functions": FAIL},
        "does not exist",
    ),
    Fault(
        "function open to everybody",
        "GRANT EXECUTE ON FUNCTION spillway.apply_orders TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION spillway.apply_orders FROM PUBLIC",
        {"least-privilege": FAIL},
        "by everybody who may log in",
    ),
    Fault(
        "table open to a worker",
        f"GRANT UPDATE ON spillway.orders TO {USER}",
        f"REVOKE UPDATE ON spillway.orders FROM {USER}",
        {"least-privilege": FAIL},
        "may be read or written",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_and_nothing_else(fault: Fault, admin: psycopg.Connection[Any], dsn: str) -> None:
    admin.execute(fault.seed)
    try:
        found = look(facts(dsn))
    finally:
        admin.execute(fault.undo)
    assert troubles(found) == fault.found
    assert fault.says in " ".join(one.said for one in found if one.level in (FAIL, WARN))


def test_a_login_that_does_not_exist_is_found(dsn: str) -> None:
    assert troubles(look(facts(dsn, DatabaseUser="nobody_here"))) == {"roles-exist": FAIL}


def test_timeouts_are_held_against_the_deployed_parameter(dsn: str) -> None:
    assert troubles(look(facts(dsn, DatabaseStatementTimeout="20"))) == {"role-timeouts": FAIL}


def test_nothing_is_known_of_a_database_without_migrations(empty_database: Any) -> None:
    wrong = troubles(look(facts(empty_database.dsn)))
    assert wrong == {"migrations-applied": FAIL, "worker-functions": FAIL}


@pytest.mark.parametrize(
    ("inventory", "level"), [(10, PASS), (12, WARN), (23, WARN), (24, FAIL)]
)  # 6,400 locks are promised, 840 are others'
def test_batches_at_once_need_room_in_the_lock_table(inventory: int, level: Level, dsn: str) -> None:
    (one,) = [one for one in look(facts(dsn, CONCURRENCY | {"inventory": inventory})) if one.check == "lock-space"]
    assert one.level is level


def test_without_a_proxy_every_batch_needs_a_connection(dsn: str) -> None:
    assert troubles(look(facts(dsn, DatabaseRoute="direct"))) == {}
    assert troubles(look(facts(dsn, CONCURRENCY | {"orders": 73}, DatabaseRoute="direct"))) == {"connection-room": FAIL}


@pytest.mark.parametrize(
    ("members", "authentication", "wrong"),
    [
        ([f"{USER}_direct"], "secret", {}),
        ([USER, f"{USER}_direct"], "iam", {}),
        ([USER, f"{USER}_direct"], "secret", {"role-iam": FAIL}),
        ([f"{USER}_direct"], "iam", {"role-iam": FAIL}),
        ([], "secret", {"role-iam": FAIL}),
    ],
)
def test_membership_of_rds_iam_follows_the_way_of_logging_in(
    members: list[str], authentication: str, wrong: dict[str, Level], admin: psycopg.Connection[Any], dsn: str
) -> None:
    direct = f"{USER}_direct"
    admin.execute("CREATE ROLE rds_iam NOLOGIN")
    try:
        ensure_roles(admin, LoginRole.with_timeouts(USER, "doctors-password", 10))
        admin.execute(f"REVOKE rds_iam FROM {direct}")
        for name in members:
            admin.execute(f"GRANT rds_iam TO {name}")
        assert troubles(look(facts(dsn, ProxyAuthentication=authentication))) == wrong
    finally:
        admin.execute("DROP ROLE rds_iam")
        admin.execute(f"DROP ROLE {direct}")


def test_without_a_dsn_the_database_is_left_alone() -> None:
    found = look(facts(None))
    assert {one.level for one in found} == {SKIP}
    assert all("--dsn" in one.said for one in found)


def test_a_database_that_is_away_fails_without_its_password() -> None:
    found = look(facts("postgresql://somebody:s3cret-s3cret@127.0.0.1:1/none"))
    assert {one.level for one in found} == {FAIL}
    assert all("could not look" in one.said for one in found)
    assert "s3cret" not in str(found)


def test_looking_leaves_no_connection(admin: psycopg.Connection[Any], dsn: str) -> None:
    look(facts(dsn))
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    # A backend is still listed for a moment after its client has closed the connection.
    admin.execute("SELECT pg_stat_clear_snapshot()")
    while (row := admin.execute(others).fetchone()) != (0,):
        assert row is not None
        states = admin.execute(
            "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
        assert all(state != ("idle",) for state in states) or admin.execute("SELECT pg_sleep(0.01)")


# ── logging in ────────────────────────────────────────────────────────────────────────────────────────────────────────


def login_facts(behind: BackgroundProxy, **changed: Any) -> Facts:
    """Of a local stack whose workers log in through the proxy `behind`."""
    login = WorkerLogin(
        proxy=True,
        host=behind.host,
        port=behind.port,
        database="postgres",
        user=LOGIN.name,
        password=LOGIN.password or "",
        ca_file=str(behind.ca_file),
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
    )
    state = StackState(
        pid=1,
        endpoint_url="http://127.0.0.1:1",
        region=REGION,
        queues={},
        dead_letter_queues={},
        dsn="",
        started_at=0,
        log_dir="/nowhere",
        login=msgspec.structs.replace(login, **changed),
    )
    return Facts(local(state))


def test_workers_get_in_and_nobody_else_does(shared_proxy: BackgroundProxy) -> None:
    found = look(login_facts(shared_proxy), "login")
    assert {one.check: one.level for one in found} == dict.fromkeys(
        ("certificate", "iam-login", "password-refused", "plain-refused"), PASS
    )
    assert LOGIN.password not in str(found)
    assert SECRET_KEY not in str(found)


def test_no_login_could_pin_or_skip_the_name(shared_proxy: BackgroundProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, asked = psycopg.connect, []

    def recording(**options: Any) -> Any:
        asked.append(options)
        return connect(**options)

    monkeypatch.setattr(psycopg, "connect", recording)
    look(login_facts(shared_proxy), "login")
    assert [one["sslmode"] for one in asked] == ["verify-full", "verify-full", "disable"]
    for one in asked:
        assert one["autocommit"]
        assert one["prepare_threshold"] is None
        assert "options" not in one


def test_a_token_signed_with_another_key_does_not_get_in(shared_proxy: BackgroundProxy) -> None:
    assert troubles(look(login_facts(shared_proxy, secret_key="another"), "login")) == {"iam-login": FAIL}


def test_a_certificate_of_another_authority_does_not_verify(shared_proxy: BackgroundProxy, tmp_path: Path) -> None:
    ca_file = str(ensure_certificates(tmp_path, ["127.0.0.1"]).ca_file)
    found = look(login_facts(shared_proxy, ca_file=ca_file), "login")
    assert troubles(found) == {"certificate": FAIL}
    assert {one.check for one in found if one.level is SKIP} == {"iam-login", "password-refused"}


@pytest.fixture(scope="module")
def lax_proxy(postgres: PostgresServer, migrated: str) -> Iterator[BackgroundProxy]:
    """One that takes passwords, and that in the clear."""
    settings = ProxySettings(
        target=Target.parse(postgres.dsn("postgres", LOGIN.name, LOGIN.password)),
        listen_port=0,
        max_connections=2,
        require_tls=False,
        iam_auth="disabled",
        region=REGION,
        credentials={ACCESS_KEY: SECRET_KEY},
    )
    with BackgroundProxy(settings) as proxy:
        yield proxy


def test_a_proxy_that_takes_passwords_in_the_clear_is_found(lax_proxy: BackgroundProxy) -> None:
    found = look(login_facts(lax_proxy), "login")
    assert troubles(found) == {"iam-login": FAIL, "password-refused": FAIL, "plain-refused": FAIL}
    assert LOGIN.password not in str(found)


def test_a_stack_without_a_proxy_is_skipped(shared_proxy: BackgroundProxy) -> None:
    found = look(login_facts(shared_proxy, proxy=False), "login")
    assert {one.level for one in found} == {SKIP}


def deployed_facts(behind: BackgroundProxy, monkeypatch: pytest.MonkeyPatch, **changed: str) -> Facts:
    """Of a fleet on AWS whose workers log in through the proxy `behind`; the doctor has the credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", changed.pop("access_key", ACCESS_KEY))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    told = {
        "DATABASE_HOST": behind.host,
        "DATABASE_PORT": str(behind.port),
        "DATABASE_NAME": "postgres",
        "DATABASE_USER": LOGIN.name,
        "DATABASE_AUTH": "iam",
        "DATABASE_SSLROOTCERT": behind.ca_file.read_text(),
    } | changed
    function = Function(name="f", logical_id="F", worker="orders", timeout_s=1, environment=told)
    return Facts(Fleet(name="spillway-test", workers={}, region=REGION), known={"functions": {"f": function}})


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {one.check: one.level for one in findings}


def test_a_deployed_fleet_is_asked_with_the_doctors_own_credentials(
    shared_proxy: BackgroundProxy, lax_proxy: BackgroundProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = ("certificate", "iam-login", "password-refused", "plain-refused")
    found = look(deployed_facts(shared_proxy, monkeypatch), "login")
    assert levels(found) == dict.fromkeys(checks, PASS)
    # Without rds-db:connect, as most operators are, a token says nothing about the fleet.
    found = look(deployed_facts(shared_proxy, monkeypatch, access_key="somebody"), "login")
    assert levels(found) == dict.fromkeys(checks, PASS) | {"iam-login": SKIP}
    assert "rds-db:connect" in " ".join(one.fix for one in found)
    # Nobody tells the doctor the password; the proxy tells that it would have taken the right one.
    found = look(deployed_facts(lax_proxy, monkeypatch), "login")
    assert levels(found)["password-refused"] is FAIL
    assert "would let" in " ".join(one.said for one in found)


def test_what_cannot_be_reached_from_here_is_skipped(
    shared_proxy: BackgroundProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(deployed_facts(shared_proxy, monkeypatch, DATABASE_PORT="1"), "login")
    assert {one.level for one in found} == {SKIP}
    assert all("inside the VPC" in one.said for one in found)
    found = look(deployed_facts(shared_proxy, monkeypatch, DATABASE_AUTH="password"), "login")
    assert {one.level for one in found} == {SKIP}
