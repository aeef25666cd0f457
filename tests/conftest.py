"""One PostgreSQL for the session; one database for each test that asks for it, copied from a migrated one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.stack.postgres import PostgresServer
from spillway.stack.processes import Processes
from workers.migrate.roles import LoginRole, ensure_roles
from workers.migrate.runner import load, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGIN = LoginRole.with_timeouts("spillway_app", "application-password", 10)
_numbers = itertools.count(1)


@dataclass(frozen=True)
class TestDatabase:
    """A database with the workers' schema: as its owner sees it, and as a worker does."""

    __test__ = False
    name: str
    server: PostgresServer

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    @property
    def worker_dsn(self) -> str:
        return self.server.dsn(self.name, LOGIN.name, LOGIN.password)

    def owner(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True)

    def worker(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.worker_dsn, autocommit=True, prepare_threshold=None)


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    with Processes() as owner:
        yield owner


@pytest.fixture(scope="session")
def postgres(processes: Processes) -> PostgresServer:
    """A server for all tests; fsync is off, because no test pulls the power plug."""
    server = PostgresServer(processes, durable=False)
    server.start()
    return server


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


@pytest.fixture
def database(postgres: PostgresServer, migrated: str) -> Iterator[TestDatabase]:
    name = new_database(postgres, migrated)
    yield TestDatabase(name, postgres)
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
