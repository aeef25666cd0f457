"""One PostgreSQL for the session; one database for each test that asks for it, copied from a migrated one.

What a worker does can be tested on both of its routes: a test or module that is marked BOTH_ROUTES and asks for a
`database` runs straight on PostgreSQL, and through an RDS Proxy with IAM tokens and verified TLS.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hypothesis
import psycopg
import pytest

from spillway.rdsproxy.background import BackgroundProxy
from spillway.rdsproxy.settings import ProxySettings, Target
from spillway.stack.postgres import PostgresServer
from spillway.stack.processes import Processes
from workers.migrate.roles import LoginRole, ensure_roles
from workers.migrate.runner import load, migrate
from workers.runtime.iam_token import rds_token

if TYPE_CHECKING:
    from collections.abc import Iterator

# No test asserts a time: machines are noisy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

LOGIN = LoginRole.with_timeouts("spillway_app", "application-password", 10)
REGION = "us-east-1"
#: What the functions have, and the proxy verifies their tokens with.
ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
PROXY_ROUTE = pytest.mark.parametrize("route", ["proxy"], indirect=True)
BOTH_ROUTES = pytest.mark.parametrize("route", ["direct", "proxy"], indirect=True)
#: A container's may be as small as 64 MB; a server of these tests takes 100 to 200.
SHARED_MEMORY, MEMORY_NEEDED = "/dev/shm", 2 * 1024**3  # noqa: S108
_numbers = itertools.count(1)


@dataclass(frozen=True)
class TestDatabase:
    """A database with the workers' schema: as its owner sees it, and as a worker does, through `proxy` if there is one.

    worker_dsn leads straight to the database.
    """

    __test__ = False
    name: str
    server: PostgresServer
    proxy: BackgroundProxy | None = None

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    @property
    def worker_dsn(self) -> str:
        return self.server.dsn(self.name, LOGIN.name, LOGIN.password)

    def owner(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True)

    def worker(self) -> psycopg.Connection[Any]:
        if self.proxy is None:
            return psycopg.connect(self.worker_dsn, autocommit=True, prepare_threshold=None)
        return psycopg.connect(
            host=self.proxy.host,
            port=self.proxy.port,
            dbname=self.name,
            user=LOGIN.name,
            password=rds_token(self.proxy.host, self.proxy.port, LOGIN.name, REGION),
            sslmode="verify-full",
            sslrootcert=str(self.proxy.ca_file),
            autocommit=True,
            prepare_threshold=None,
        )


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    with Processes() as owner:
        yield owner


@pytest.fixture(scope="session")
def postgres(processes: Processes) -> PostgresServer:
    """A server for all tests; fsync is off, because no test pulls the power plug."""
    server = PostgresServer(processes, durable=False)
    with in_memory():
        server.start()
    return server


@contextmanager
def in_memory() -> Iterator[None]:
    """New temporary directories are in memory, where there is some: a thousand databases are a third faster there."""
    before = tempfile.gettempdir()
    with suppress(OSError):
        if shutil.disk_usage(SHARED_MEMORY).free > MEMORY_NEEDED:
            tempfile.tempdir = SHARED_MEMORY
    try:
        yield
    finally:
        tempfile.tempdir = before


@pytest.fixture(scope="session")
def migrated(postgres: PostgresServer) -> str:
    """The template database's name."""
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE migrated")
    with psycopg.connect(postgres.dsn("migrated"), autocommit=True) as admin:
        ensure_roles(admin, LOGIN)
        migrate(admin, load())
    return "migrated"


def new_database(server: PostgresServer, template: str = "template1") -> str:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    return name


def drop_database(server: PostgresServer, name: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def shared_proxy(postgres: PostgresServer, migrated: str) -> Iterator[BackgroundProxy]:
    """An RDS Proxy for all tests, as strict as AWS's can be: TLS and IAM. No worker may ever have pinned a session."""
    settings = ProxySettings(
        # Not the template database: nobody may be connected to that while it is copied.
        target=Target.parse(postgres.dsn("postgres", LOGIN.name, LOGIN.password)),
        listen_port=0,
        max_connections=20,
        connection_borrow_timeout=10,
        require_tls=True,
        iam_auth="required",
        region=REGION,
        credentials={ACCESS_KEY: SECRET_KEY},
    )
    with BackgroundProxy(settings) as proxy:
        yield proxy
        proxy.assert_no_pins()


@pytest.fixture
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundProxy | None]:
    """The proxy on a worker's way to its database; None for the direct route, which is the default."""
    if getattr(request, "param", "direct") == "direct":
        yield None
        return
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    proxy: BackgroundProxy = request.getfixturevalue("shared_proxy")
    yield proxy
    proxy.assert_no_pins()


@pytest.fixture
def database(postgres: PostgresServer, migrated: str, route: BackgroundProxy | None) -> Iterator[TestDatabase]:
    name = new_database(postgres, migrated)
    yield TestDatabase(name, postgres, route)
    drop_database(postgres, name)


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """A database nothing was migrated in."""
    name = new_database(postgres)
    yield TestDatabase(name, postgres)
    drop_database(postgres, name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failing test shows what PostgreSQL said."""
    report = yield
    server = getattr(item, "funcargs", {}).get("postgres") or getattr(
        getattr(item, "funcargs", {}).get("database"), "server", None
    )
    if report.when == "call" and report.failed and server is not None:
        report.sections.append(("PostgreSQL log", server.log_tail(15)))
    return report
