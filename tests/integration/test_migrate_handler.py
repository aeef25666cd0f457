"""The migrate function as CloudFormation calls it: with RDS's roles, as a master user that is no superuser."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import psycopg
import pytest
from moto import mock_aws

from spillway.commands.migrate import PASSWORD_VARIABLE, migrate
from spillway.errors import SpillwayError
from spillway.rdsproxy.certificates import ensure_certificates
from spillway.stack.postgres import PostgresServer
from workers.migrate import custom_resource, deployment, handler, runner
from workers.migrate.custom_resource import AnswerError
from workers.migrate.deployment import Deployment
from workers.migrate.handler import MigrateError
from workers.migrate.runner import Migration, MigrationError, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.rdsproxy.background import BackgroundProxy
    from spillway.stack.processes import Processes
    from tests.conftest import TestDatabase

MASTER, MASTER_PASSWORD = "master_user", "master-password"
PASSWORD = "application-password"
DATABASE = "fleet"
_numbers = itertools.count(1)

ONE = Migration("0001_one.sql", "CREATE TABLE spillway.one (x int);", 1)
TWO = Migration("0002_two.sql", "ALTER TABLE spillway.one ADD y int;", 2)


# What CloudFormation, Lambda and RDS are here


@dataclass
class S3:
    """The address that CloudFormation has signed: what was put there, and how often it still refuses."""

    url: str = ""
    refusals: int = 0
    answers: list[dict[str, Any]] = field(default_factory=list)
    content_types: list[str | None] = field(default_factory=list)
    put: threading.Event = field(default_factory=threading.Event)

    @property
    def answer(self) -> dict[str, Any]:
        """The one and only."""
        assert len(self.answers) == 1, self.answers
        return self.answers[0]


@pytest.fixture
def s3() -> Iterator[S3]:
    bucket = S3()

    class Bucket(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bucket.content_types.append(self.headers["Content-Type"])
            assert len(body) <= 4096
            status = 200
            if bucket.refusals:
                bucket.refusals -= 1
                status = 503
            else:
                bucket.answers.append(json.loads(body))
                bucket.put.set()
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        bucket.url = f"http://127.0.0.1:{server.server_address[1]}/answer?X-Amz-Signature=signed"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield bucket
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def rds(processes: Processes) -> PostgresServer:
    """A server with what RDS brings: the role rds_iam, and a master that may grant it, create roles, and no more."""
    server = PostgresServer(processes, durable=False)
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE ROLE rds_iam NOLOGIN")
        admin.execute(f"CREATE ROLE {MASTER} LOGIN CREATEROLE CREATEDB PASSWORD '{MASTER_PASSWORD}'")
        admin.execute(f"GRANT rds_iam TO {MASTER} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
        admin.execute(f"CREATE DATABASE {DATABASE} OWNER {MASTER}")
    return server


@dataclass
class Fleet:
    """A fleet's database and secrets, and the function that brings them together."""

    server: PostgresServer
    s3: S3
    name: str
    user: str
    secrets: Any
    monkeypatch: pytest.MonkeyPatch
    remaining_s: float = 300.0

    def admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.dsn(self.name), autocommit=True)

    def login(self, password: str, user: str = "") -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.dsn(self.name, user or self.user, password), autocommit=True)

    def request(self, kind: str = "Update", **changes: Any) -> dict[str, Any]:
        """Let CloudFormation ask; its answer."""
        event = {
            "RequestType": kind,
            "ResponseURL": self.s3.url,
            "StackId": "arn:aws:cloudformation:eu-west-1:123456789012:stack/fleet/1",
            "RequestId": "the-request",
            "LogicalResourceId": "Schema",
            "ResourceProperties": {},
        }
        if kind != "Create":
            event["PhysicalResourceId"] = "fleet-schema"
        self.s3.answers.clear()
        handler.handler(event | changes, self.context)
        answer = self.s3.answer
        assert answer["StackId"] == event["StackId"]
        assert (answer["RequestId"], answer["LogicalResourceId"]) == ("the-request", "Schema")
        for secret in (MASTER_PASSWORD, PASSWORD):
            assert secret not in json.dumps(answer)
        return answer

    @property
    def context(self) -> Any:
        return SimpleNamespace(
            get_remaining_time_in_millis=lambda: self.remaining_s * 1000, log_stream_name="2026/11/21/[$LATEST]1"
        )

    def reason(self, kind: str = "Update", **changes: Any) -> str:
        """Why it failed."""
        answer = self.request(kind, **changes)
        assert answer["Status"] == "FAILED"
        assert "Data" not in answer
        return str(answer["Reason"])

    def data(self, kind: str = "Update") -> dict[str, str]:
        """What it said where it succeeded."""
        answer = self.request(kind)
        assert answer["Status"] == "SUCCESS", answer
        found: dict[str, str] = answer["Data"]
        return found

    def secret(self, name: str, user: str, password: str, stage: str = "AWSCURRENT") -> None:
        text = json.dumps({"username": user, "password": password, "engine": "postgres"})
        self.secrets.put_secret_value(SecretId=name, SecretString=text, VersionStages=[stage])

    def migrations(self, *migrations: Migration) -> None:
        """What the deployed code has."""
        self.monkeypatch.setattr(runner, "load", lambda: list(migrations))

    def authentication(self, by: str) -> None:
        """ProxyAuthentication."""
        self.monkeypatch.setenv("APPLICATION_SECRET_ARN", {"iam": "", "secret": "application"}[by])

    def verifier(self, user: str = "") -> str | None:
        with self.admin() as admin:
            row = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (user or self.user,)).fetchone()
        assert row is not None
        return row[0]  # type: ignore[no-any-return]

    def groups(self, user: str) -> set[str]:
        with self.admin() as admin:
            rows = admin.execute(
                "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = %s::regrole", (user,)
            )
            return {name for (name,) in rows}

    def tables(self) -> set[str]:
        with self.admin() as admin:
            rows = admin.execute("SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('spillway')")
            return {name for (name,) in rows}


@pytest.fixture
def fleet(rds: PostgresServer, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    name, user = DATABASE, f"app_{next(_numbers)}"
    environment = {
        "DATABASE_HOST": rds.host,
        "DATABASE_PORT": str(rds.port),
        "DATABASE_NAME": name,
        "DATABASE_USER": user,
        "DATABASE_SSLMODE": "disable",
        "DATABASE_SSLROOTCERT": "",
        "DATABASE_STATEMENT_TIMEOUT": "10",
        "MASTER_SECRET_ARN": "master",
        "APPLICATION_SECRET_ARN": "application",
        "FLEET_NAME": "fleet",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    # Nothing here is worth waiting for.
    monkeypatch.setattr(deployment, "PATIENCE_S", 0.0)
    monkeypatch.setattr(deployment, "REFUSED_PATIENCE_S", 0.0)
    monkeypatch.setattr(custom_resource, "_FIRST_PAUSE_S", 0.0)
    # Not a new session for each test: that would read botocore's data again.
    with mock_aws(config={"core": {"reset_boto3_session": False}}):
        secrets = boto3.client("secretsmanager", region_name="eu-west-1")
        for secret in ("master", "application"):
            secrets.create_secret(Name=secret)
        one = Fleet(rds, s3, name, user, secrets, monkeypatch)
        one.secret("master", MASTER, MASTER_PASSWORD)
        one.secret("application", user, PASSWORD)
        yield one
    with one.admin() as admin:
        admin.execute("DROP SCHEMA IF EXISTS spillway CASCADE")
        admin.execute(f"ALTER DATABASE {name} RESET ALL")
        for role in (user, f"{user}_direct"):
            admin.execute(f"DROP ROLE IF EXISTS {role}")


# Create, update, delete


def test_a_new_database_gets_roles_and_schema_from_a_master_that_is_no_superuser(fleet: Fleet) -> None:
    answer = fleet.request("Create")
    names = [migration.name for migration in load()]
    newest = max(migration.version for migration in load() if migration.version)
    assert answer["Status"] == "SUCCESS", answer
    assert answer["PhysicalResourceId"] == "fleet-schema"
    assert answer["Data"]["Version"] == f"{newest:04d}"
    assert answer["Data"]["Applied"].split(",") == names
    assert (answer["Data"]["Newer"], answer["Data"]["Warnings"]) == ("", "")
    assert fleet.s3.content_types == [""], "the signature is for none"
    direct = f"{fleet.user}_direct"
    assert fleet.groups(fleet.user) == {"spillway_worker"}
    assert fleet.groups(direct) == {"spillway_worker", "rds_iam"}
    assert (fleet.verifier() or "").startswith("SCRAM-SHA-256$")
    assert fleet.verifier(direct) is None
    with fleet.login(PASSWORD) as worker:
        assert worker.execute("SELECT * FROM apply_orders('[]')").fetchall() == []
        assert worker.execute("SELECT * FROM apply_audit('[]')").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            worker.execute("SELECT * FROM orders")
    with fleet.admin() as admin:
        rows = admin.execute(
            "SELECT r.rolname, s.setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole"
            " WHERE r.rolname LIKE %s",
            (f"{fleet.user}%",),
        ).fetchall()
    expected = [
        "statement_timeout=10000ms",
        "lock_timeout=5000ms",
        "idle_in_transaction_session_timeout=10000ms",
        "search_path=spillway, pg_temp",
    ]
    assert dict(rows) == {fleet.user: expected, direct: expected}


def test_an_update_with_nothing_new_changes_nothing(fleet: Fleet) -> None:
    fleet.request("Create")
    before = fleet.verifier()
    data = fleet.data()
    assert (data["Applied"], data["Warnings"]) == ("", "")
    assert data["Version"] == fleet.data()["Version"] > "0001"
    assert fleet.verifier() == before


def test_deleting_the_stack_touches_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.request("Create")
    before = fleet.tables()
    for variable in ("DATABASE_HOST", "MASTER_SECRET_ARN"):
        monkeypatch.delenv(variable)
    answer = fleet.request("Delete")
    assert (answer["Status"], answer["PhysicalResourceId"]) == ("SUCCESS", "fleet-schema")
    assert fleet.tables() == before != set()


def test_an_update_keeps_whatever_id_the_resource_has(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another one CloudFormation would send a delete for the old."""
    fleet.migrations()
    assert fleet.request(PhysicalResourceId="as-it-was")["PhysicalResourceId"] == "as-it-was"
    monkeypatch.setenv("DATABASE_PORT", "none")
    assert fleet.request(PhysicalResourceId="as-it-was")["PhysicalResourceId"] == "as-it-was"


def test_by_hand_it_answers_with_the_report(fleet: Fleet) -> None:
    report = handler.handler({}, fleet.context)
    assert report["applied"] == [migration.name for migration in load()]
    assert report["version"] >= 7
    assert (report["newer"], report["warnings"]) == ([], [])
    assert fleet.s3.answers == []
    fleet.migrations(ONE)
    with pytest.raises(MigrateError, match=r"^0001_one.sql would run after"):
        handler.handler({}, fleet.context)


def test_several_at_once_do_it_once(fleet: Fleet) -> None:
    reports: list[dict[str, Any]] = []
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        try:
            reports.append(handler.handler({}, fleet.context))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(len(report["applied"]) for report in reports) == [0, 0, 0, len(load())]
    assert all(report["warnings"] == [] for report in reports)


# Roles and passwords


def test_a_proxy_without_a_secret_logs_in_by_iam(fleet: Fleet) -> None:
    fleet.authentication("iam")
    fleet.migrations()
    assert fleet.data("Create")["Warnings"] == ""
    assert fleet.groups(fleet.user) == {"spillway_worker", "rds_iam"}
    assert fleet.verifier() is None


def test_from_a_secret_to_iam_and_back(fleet: Fleet) -> None:
    fleet.migrations()
    fleet.data("Create")
    fleet.authentication("iam")
    fleet.data()
    assert "rds_iam" in fleet.groups(fleet.user)
    assert fleet.verifier() is None
    fleet.authentication("secret")
    fleet.data()
    assert "rds_iam" not in fleet.groups(fleet.user), "its members cannot log in with a password"
    fleet.login(PASSWORD).close()
    assert "rds_iam" in fleet.groups(f"{fleet.user}_direct")


def test_a_membership_that_the_master_cannot_revoke_is_told(fleet: Fleet) -> None:
    fleet.migrations()
    fleet.data("Create")
    with fleet.admin() as admin:
        admin.execute(f"GRANT rds_iam TO {fleet.user}")
    assert f"{fleet.user} must log in with a password but stays a member of rds_iam" in fleet.reason()


def test_a_password_that_does_not_work_is_set(fleet: Fleet) -> None:
    fleet.migrations()
    fleet.data("Create")
    fleet.secret("application", fleet.user, "brought-in-by-hand")
    fleet.data()
    fleet.login("brought-in-by-hand").close()


def test_a_rotation_that_is_under_way_is_not_undone(fleet: Fleet) -> None:
    """Between the step that sets the password and the step that makes it the secret's current one."""
    fleet.migrations()
    fleet.data("Create")
    fleet.secret("application", fleet.user, "brought-in-by-rotation", "AWSPENDING")
    with fleet.admin() as admin:
        admin.execute(f"ALTER ROLE {fleet.user} PASSWORD 'brought-in-by-rotation'")
    fleet.data()
    fleet.login("brought-in-by-rotation").close()
    # And before: what is pending does not work yet, what is current does.
    with fleet.admin() as admin:
        admin.execute(f"ALTER ROLE {fleet.user} PASSWORD '{PASSWORD}'")
    before = fleet.verifier()
    fleet.data()
    assert fleet.verifier() == before


def test_a_rotation_that_ends_meanwhile_wins(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.migrations()
    set_password = deployment.roles.set_password
    calls: list[str] = []

    def rotated(connection: Any, role: str, password: str) -> None:
        set_password(connection, role, password)
        if not calls:
            fleet.secret("application", fleet.user, "brought-in-by-rotation")
        calls.append(password)

    monkeypatch.setattr(deployment.roles, "set_password", rotated)
    fleet.data("Create")
    assert calls == [PASSWORD, "brought-in-by-rotation"]
    fleet.login("brought-in-by-rotation").close()


def test_passwords_are_not_in_what_the_server_may_log(fleet: Fleet) -> None:
    fleet.migrations()
    with fleet.admin() as admin:
        admin.execute(f"ALTER DATABASE {fleet.name} SET log_statement = 'all'")
    fleet.data("Create")
    log = fleet.server.log_tail(2000)
    assert f'ALTER ROLE "{fleet.user}" PASSWORD' in log
    assert PASSWORD not in log


def test_a_login_that_is_refused_for_another_reason_is_no_wrong_password(fleet: Fleet) -> None:
    fleet.migrations()
    fleet.data("Create")
    before = fleet.verifier()
    with fleet.admin() as admin:
        admin.execute(f"ALTER ROLE {fleet.user} CONNECTION LIMIT 0")
    fleet.secret("application", fleet.user, PASSWORD)
    assert f"logging in as {fleet.user}: " in (reason := fleet.reason())
    assert "too many connections for role" in reason
    assert fleet.verifier() == before


@pytest.mark.parametrize("by", ["secret", "iam"])
def test_a_master_that_iam_would_lock_out_keeps_its_password(fleet: Fleet, by: str) -> None:
    """PostgreSQL 16 and later counts who made a role among its members, and so would pg_hba.conf."""
    fleet.migrations()
    fleet.authentication(by)
    made = f"{fleet.user}_direct"
    with refused(fleet, f"+{made}"):
        if by == "iam":
            assert "the server refuses the master user's password; the grant was taken back" in fleet.reason("Create")
        else:
            assert fleet.data("Create")["Warnings"].startswith(
                "no direct route: with a role in rds_iam that the master"
            )
    assert "rds_iam" not in fleet.groups(made) | fleet.groups(fleet.user)
    assert fleet.data()["Warnings"] == ""


@pytest.mark.parametrize("password", ["", PASSWORD])
def test_the_command_does_not_lock_its_user_out_either(
    fleet: Fleet, password: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn = fleet.server.dsn(fleet.name, MASTER, MASTER_PASSWORD)
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    fleet.migrations(ONE)
    made = f"{fleet.user}_direct"
    with refused(fleet, f"+{made}"):
        if password:
            monkeypatch.setenv(PASSWORD_VARIABLE, password)
            migrate(dsn=dsn, user=fleet.user, statement_timeout=10)
            assert "There is no role for workers that pass the proxy by: with a role in" in capsys.readouterr().err
        else:
            with pytest.raises(SpillwayError, match="Nothing was applied: with a role in rds_iam"):
                migrate(dsn=dsn, user=fleet.user, statement_timeout=10)
    assert "rds_iam" not in fleet.groups(made) | fleet.groups(fleet.user)
    assert ("one" in fleet.tables()) is bool(password)


@contextmanager
def refused(fleet: Fleet, who: str) -> Iterator[None]:
    """pg_hba.conf refuses this user's passwords, as RDS's does those of members of rds_iam."""
    with psycopg.connect(fleet.server.dsn(), autocommit=True) as admin:
        (path,) = admin.execute("SHOW hba_file").fetchone() or ("",)
        file = Path(path)
        before = file.read_text()
        try:
            file.write_text(f"host {fleet.name} {who} 127.0.0.1/32 reject\n{before}")
            reload(admin)
            yield
        finally:
            file.write_text(before)
            reload(admin)


def reload(admin: psycopg.Connection[Any]) -> None:
    """Until the server has read its files again, which it does on its own time."""
    loaded = "SELECT pg_conf_load_time()"
    before = admin.execute(loaded).fetchone()
    admin.execute("SELECT pg_reload_conf()")
    while True:
        with psycopg.connect(admin.info.dsn, password=admin.info.password) as other:
            if other.execute(loaded).fetchone() != before:
                return


def test_a_database_without_iam(fleet: Fleet, empty_database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rds_iam: not on RDS, or not turned on."""
    server = empty_database.server
    fleet.secret("master", server.superuser, server.password)
    monkeypatch.setenv("DATABASE_PORT", str(server.port))
    monkeypatch.setenv("DATABASE_NAME", empty_database.name)
    fleet.migrations()
    fleet.authentication("iam")
    assert "turn IAM authentication on" in fleet.reason("Create")
    mine = "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)"
    with empty_database.owner() as owner:
        assert owner.execute(mine, (fleet.user,)).fetchall() == []
        fleet.authentication("secret")
        try:
            assert fleet.data("Create")["Warnings"] == "no direct route: the database has no role rds_iam"
            assert owner.execute(mine, (fleet.user,)).fetchall() == [(fleet.user,)]
            psycopg.connect(server.dsn(empty_database.name, fleet.user, PASSWORD)).close()
        finally:
            owner.execute(f"DROP ROLE {fleet.user}")


# Failures, in the words of the stack's events


def test_a_migration_that_fails_fails_the_deployment_with_its_place(fleet: Fleet) -> None:
    broken = Migration(
        "0002_broken.sql", "CREATE TABLE spillway.two ();\n\nALTER TABLE spillway.one ADD y nonsense;", 2
    )
    fleet.migrations(ONE, broken)
    reason = fleet.reason("Create")
    assert reason.startswith('0002_broken.sql:3: type "nonsense" does not exist (SQLSTATE 42704)')
    assert reason.endswith("(log stream 2026/11/21/[$LATEST]1)")
    assert fleet.tables() == set()
    fleet.migrations(ONE)
    assert fleet.data()["Applied"] == "0001_one.sql"


def test_an_error_inside_a_block_says_where_in_it(fleet: Fleet) -> None:
    text = "DO $$\nBEGIN\n    EXECUTE 'SELECT 1 / 0';\nEND\n$$;"
    fleet.migrations(Migration("0001_block.sql", text, 1))
    reason = fleet.reason("Create")
    assert "0001_block.sql: division by zero (SQLSTATE 22012) in SQL statement" in reason or "line 3" in reason


@pytest.mark.parametrize(
    ("after", "advice"),
    [
        ("FUNCTION spillway.f() RETURNS text LANGUAGE sql RETURN 'a'", "give the new one another name"),
        ("FUNCTION spillway.g(b int) RETURNS int LANGUAGE sql RETURN 1", "give the new one another name"),
    ],
    ids=["result", "parameter"],
)
def test_a_function_that_changes_its_shape_is_refused_with_advice(fleet: Fleet, after: str, advice: str) -> None:
    before = "FUNCTION spillway.f() RETURNS int LANGUAGE sql RETURN 1; CREATE {} FUNCTION spillway.g(a int) RETURNS int"
    before = f"CREATE OR REPLACE {before.format('OR REPLACE')} LANGUAGE sql RETURN 1;"
    fleet.migrations(Migration("w/apply.sql", before, None))
    fleet.data("Create")
    fleet.migrations(Migration("w/apply.sql", f"CREATE OR REPLACE {after};", None))
    reason = fleet.reason()
    assert reason.startswith("w/apply.sql: cannot change")
    assert "(SQLSTATE 42P13)" in reason
    assert advice in reason


def test_a_wrong_environment(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PORT", "none")
    assert "DATABASE_PORT: expected an integer from 1 to 65535, got 'none'" in fleet.reason("Create")


def test_an_artifact_that_does_not_load(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "workers.migrate.deployment", None)
    assert fleet.reason("Create").startswith("ModuleNotFoundError: ")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("master", "not json: hush", "master: expected JSON with username and password (AWSCURRENT)"),
        ("master", '{"username": "hush"}', "master: expected JSON with username and password (AWSCURRENT)"),
        ("master", '["hush"]', "master: expected JSON with username and password (AWSCURRENT)"),
        ("master", '{"username": "hush", "password": ""}', "master: expected JSON with username and password"),
        ("application", '{"username": "other", "password": "hush"}', "application: expected the secret of app_"),
    ],
)
def test_a_secret_that_is_something_else(fleet: Fleet, name: str, text: str, said: str) -> None:
    fleet.migrations()
    fleet.secrets.put_secret_value(SecretId=name, SecretString=text)
    reason = fleet.reason("Create")
    assert reason.startswith(said)
    assert "hush" not in reason


def test_a_secret_that_is_not_there(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_SECRET_ARN", "elsewhere")
    reason = fleet.reason("Create")
    assert reason.startswith("reading the secret of the master user: ")
    assert "ResourceNotFoundException" in reason


def test_a_master_password_that_is_refused(fleet: Fleet) -> None:
    fleet.secret("master", MASTER, "guessed-wrong")
    reason = fleet.reason("Create")
    assert reason.startswith("connecting to 127.0.0.1 as master_user: ")
    assert "password authentication failed" in reason
    assert "guessed-wrong" not in reason


def test_a_master_password_that_is_being_rotated(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database knows it first; the secret a moment later."""
    fleet.migrations()
    fleet.secret("master", MASTER, "of-last-week")
    monkeypatch.setattr(deployment, "REFUSED_PATIENCE_S", 60.0)
    monkeypatch.setattr(Deployment, "_pause", lambda *_: fleet.secret("master", MASTER, MASTER_PASSWORD))
    fleet.data("Create")


def test_a_database_that_is_reached_late(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.migrations()
    monkeypatch.setattr(deployment, "PATIENCE_S", 60.0)
    monkeypatch.setenv("DATABASE_PORT", "1")
    pauses: list[float] = []

    def pause(self: Deployment, seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            self._settings = replace(self._settings, port=fleet.server.port)

    monkeypatch.setattr(Deployment, "_pause", pause)
    fleet.data("Create")
    assert len(pauses) == 3
    monkeypatch.setattr(deployment, "PATIENCE_S", 6.0)
    pauses.extend([0.0] * 10)
    assert "Connection refused" in fleet.reason()
    assert len(pauses) == 16, "6 s of pauses, then no more"


def test_a_password_in_an_error_is_not_shown(fleet: Fleet) -> None:
    fleet.migrations(Migration("0001_chatty.sql", f"SELECT '{MASTER_PASSWORD} {PASSWORD}'::int;", 1))
    reason = fleet.reason("Create")
    assert 'invalid input syntax for type integer: "*** ***"' in reason


def test_tls_with_the_authority_as_text(
    fleet: Fleet, shared_proxy: BackgroundProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy, because the embedded PostgreSQL has no TLS; it also is what DATABASE_HOST must not be."""
    authority = shared_proxy.ca_file.read_text().replace("\n", " ")  # as a command line leaves it
    monkeypatch.setenv("DATABASE_PORT", str(shared_proxy.port))
    monkeypatch.setenv("DATABASE_SSLMODE", "verify-full")
    monkeypatch.setenv("DATABASE_SSLROOTCERT", authority)
    assert "RDS Proxy currently doesn't support command-line options" in fleet.reason("Create")
    other = ensure_certificates(tmp_path, ["127.0.0.1"]).ca_file.read_text()
    monkeypatch.setenv("DATABASE_SSLROOTCERT", other)
    assert "certificate verify failed" in fleet.reason("Create")
    monkeypatch.setenv("DATABASE_SSLROOTCERT", "/var/runtime/none.pem")
    assert 'root certificate file "/var/runtime/none.pem" does not exist' in fleet.reason("Create")
    monkeypatch.setenv("DATABASE_SSLROOTCERT", "-----BEGIN CERTIFICATE-----")
    assert "DATABASE_SSLROOTCERT: expected a file, or whole certificates" in fleet.reason("Create")


# Old and new code together


def test_a_deployment_that_is_rolled_back_runs_old_code_on_a_newer_database(fleet: Fleet) -> None:
    function = "CREATE OR REPLACE FUNCTION spillway.f() RETURNS int LANGUAGE sql RETURN {};"
    old = [ONE, Migration("w/apply.sql", function.format(1), None)]
    new = [ONE, TWO, Migration("w/apply.sql", function.format(2), None)]
    fleet.migrations(*old)
    fleet.data("Create")
    fleet.migrations(*new)
    assert fleet.data()["Applied"] == "0002_two.sql,w/apply.sql"
    fleet.migrations(*old)
    data = fleet.data()
    assert (data["Version"], data["Applied"], data["Newer"]) == ("0002", "w/apply.sql", "0002_two.sql")
    assert "the database is ahead of this code" in data["Warnings"]
    with fleet.admin() as admin:
        assert admin.execute("SELECT spillway.f()").fetchone() == (1,), "the old function is back"
        with pytest.raises(MigrationError, match="use a newer checkout"):
            runner.migrate(admin, old)
    fleet.migrations(*new)
    assert fleet.data() == {"Version": "0002", "Applied": "w/apply.sql", "Newer": "", "Warnings": ""}


def test_a_table_that_is_in_use_is_tried_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.migrations(ONE)
    fleet.data("Create")
    monkeypatch.setattr(runner, "LOCK_TIMEOUT", "20ms")
    pauses: list[float] = []
    with fleet.admin() as reader:
        reader.execute("BEGIN; SELECT * FROM spillway.one")

        def pause(_: Deployment, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                reader.execute("COMMIT")

        monkeypatch.setattr(Deployment, "_pause", pause)
        fleet.migrations(ONE, TWO)
        assert fleet.data()["Applied"] == "0002_two.sql"
        assert pauses == [deployment.LOCK_PAUSE_S] * 2
        reader.execute("BEGIN; SELECT * FROM spillway.one")
        fleet.migrations(ONE, TWO, Migration("0003_three.sql", "ALTER TABLE spillway.one ADD z int;", 3))
        reason = fleet.reason()
        assert "0003_three.sql: canceling statement due to lock timeout (SQLSTATE 55P03)" in reason
        assert "try again when they are done" in reason
        assert len(pauses) == 2 + deployment.LOCK_ATTEMPTS - 1


def test_a_migration_waits_for_a_lock_for_less_than_the_writers_behind_it_do() -> None:
    from tests.conftest import LOGIN  # noqa: PLC0415  (the default of template.yaml)

    assert float(runner.LOCK_TIMEOUT.removesuffix("s")) * 1000 < LOGIN.lock_timeout_ms


# Time


def test_a_migration_that_takes_too_long_is_ended_and_answered_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = "CREATE TABLE spillway.two ();\nSELECT pg_sleep(600);\nSELECT pg_sleep(600);"
    fleet.migrations(ONE, Migration("0002_slow.sql", sleep, 2))
    applying = Deployment._applying

    def reached(self: Deployment, name: str) -> None:
        applying(self, name)
        if name == "0002_slow.sql":
            fleet.remaining_s = handler.RESERVE_S

    monkeypatch.setattr(Deployment, "_applying", reached)
    reason = fleet.reason("Create")
    assert reason.startswith("timed out while applying 0002_slow.sql; nothing is half done")
    assert fleet.tables() == set()
    with fleet.admin() as admin:
        busy = "SELECT query FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
        assert admin.execute(busy).fetchall() == []


def test_waiting_for_another_run_ends_in_time_too(fleet: Fleet) -> None:
    fleet.migrations(ONE)
    fleet.remaining_s = handler.RESERVE_S
    with fleet.admin() as other:
        other.execute("SELECT pg_advisory_lock(%s)", (runner.LOCK_KEY,))
        assert "timed out while making the roles" in fleet.reason("Create")


def test_pauses_end_in_time_too(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "PATIENCE_S", 600.0)
    monkeypatch.setattr(deployment, "PAUSE_S", 600.0)
    monkeypatch.setenv("DATABASE_PORT", "1")
    fleet.remaining_s = handler.RESERVE_S
    assert "timed out while connecting to 127.0.0.1 as master_user" in fleet.reason("Create")


def test_a_run_that_does_not_even_end_is_answered_for(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(self: Deployment) -> None:
        self.doing = "looking up a name"
        assert fleet.s3.put.wait(60), "answered while it still hangs"

    monkeypatch.setattr(Deployment, "run", hang)
    fleet.remaining_s = handler.RESERVE_S
    monkeypatch.setattr(handler, "END_S", 0.05)
    monkeypatch.setattr(handler, "_POLL_S", 0.01)
    assert "while looking up a name" in fleet.reason("Create")


def test_nothing_new_is_begun_when_time_is_up(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to cancel ends what the server is doing, and between two files it is doing nothing."""
    fleet.migrations(ONE, TWO)
    applying = Deployment._applying

    def between(self: Deployment, name: str) -> None:
        if name == TWO.name:
            self.end()
        applying(self, name)

    monkeypatch.setattr(Deployment, "_applying", between)
    assert fleet.reason("Create").startswith("timed out while applying 0001_one.sql; nothing is half done")
    assert fleet.tables() == set()


def test_a_run_that_ends_just_in_time_has_succeeded(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to end when everything is committed: what is true is answered."""
    fleet.migrations(ONE)
    run = Deployment.run

    def ended(self: Deployment) -> Any:
        report = run(self)
        fleet.remaining_s = handler.RESERVE_S
        assert self._ended.wait(60)
        return report

    monkeypatch.setattr(Deployment, "run", ended)
    monkeypatch.setattr(handler, "END_S", 2.0)
    assert fleet.data("Create")["Applied"] == "0001_one.sql"


def test_the_server_works_no_longer_than_the_function_can_live(fleet: Fleet) -> None:
    fleet.remaining_s = 123
    seen = Migration("0001_seen.sql", "CREATE TABLE spillway.seen AS SELECT name, setting FROM pg_settings;", 1)
    fleet.migrations(seen)
    fleet.data("Create")
    with fleet.admin() as admin:
        rows = admin.execute("SELECT name, setting FROM spillway.seen WHERE name LIKE '%timeout%'").fetchall()
    settings = dict(rows)
    assert settings["statement_timeout"] == "123000"
    assert settings["lock_timeout"] == "3000"
    assert settings["idle_in_transaction_session_timeout"] == "60000"


# The answer


def test_an_answer_that_could_not_be_put_may_be_put_by_another(fleet: Fleet) -> None:
    request = custom_resource.Request({"ResponseURL": fleet.s3.url}, "fleet-schema")
    fleet.s3.refusals = custom_resource.ATTEMPTS
    with pytest.raises(AnswerError):
        request.failed("the first")
    assert request.failed("the second")
    assert fleet.s3.answer["Reason"] == "the second"


def test_an_answer_is_put_again_until_it_is_taken(fleet: Fleet) -> None:
    fleet.migrations()
    fleet.s3.refusals = custom_resource.ATTEMPTS - 1
    fleet.data("Create")
    assert fleet.s3.content_types == [""] * custom_resource.ATTEMPTS


def test_an_answer_that_is_never_taken_is_an_error_without_the_address(fleet: Fleet) -> None:
    fleet.migrations()
    fleet.s3.refusals = custom_resource.ATTEMPTS
    with pytest.raises(AnswerError, match="refused 5 times: HTTP Error 503") as failed:
        fleet.request("Create")
    assert "Signature" not in str(failed.value)
    assert failed.value.__cause__ is None


def test_a_reason_of_any_length_fits(fleet: Fleet) -> None:
    """S3 here refuses more than 4,096 bytes, as CloudFormation does."""
    name = "ä" * 60
    said = '"€\\' * 3000
    text = f"DO $$ BEGIN RAISE EXCEPTION '{said}'; END $$;"
    fleet.migrations(Migration(f"0001_{name}.sql", text, 1))
    reason = fleet.reason("Create")
    assert 990 < len(reason.encode()) <= 1000
    assert reason.startswith(f"0001_{name}.sql: ")
