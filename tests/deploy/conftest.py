"""The fleet, built and deployed once for all tests of this folder. They tell one story, from top to bottom."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from spillway.stack import ports
from spillway.stack.postgres import PostgresServer
from tests.deploy.derived import change_all, read, report, unknown_types, write
from tests.deploy.emulator import Account
from tests.deploy.fleet import Deployment, FunctionKeys, Local, changes, inventory
from tests.deploy.sam import BIN, Sam

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spillway.stack.processes import Processes

OWNER, OWNER_PASSWORD, DATABASE = "spillway_owner", "owner-password", "spillway"
DIFFERENCES = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Whoever reads that it deployed reads what was deployed."""
    if text := config.stash.get(DIFFERENCES, None):
        terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def account(processes: Processes) -> Iterator[Account]:
    with Account(processes) as account:
        yield account


@pytest.fixture(scope="session")
def database(processes: Processes) -> Iterator[PostgresServer]:
    """A server as RDS hands it over: an owner who may create roles and owns one empty database, and no superuser."""
    with PostgresServer(processes, durable=False) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE CREATEDB PASSWORD '{OWNER_PASSWORD}'")
            admin.execute("CREATE ROLE rds_iam")
            admin.execute(f"GRANT rds_iam TO {OWNER} WITH ADMIN OPTION")
            admin.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
        yield server


@pytest.fixture(scope="session")
def deployment(
    account: Account,
    database: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Deployment]:
    """The stack after its first `sam deploy`, with the proxy that its workers connect to."""
    root = tmp_path_factory.mktemp("deploy")
    secret = account.client("secretsmanager").create_secret(
        Name="owner", SecretString=json.dumps({"username": OWNER, "password": OWNER_PASSWORD})
    )
    local = Local(proxy_port=ports.free_port(), database_port=database.port, master_secret_arn=secret["ARN"])
    source = root / "source"
    source.mkdir()
    templates = read()
    applied = change_all(templates, changes(local))
    request.config.stash[DIFFERENCES] = report(applied)
    assert unknown_types(templates) == set(), "ministack refuses these types, and nothing takes them out"
    write(templates, source)
    sam = Sam(source, account, make_variables(root))
    sam.build()
    deployment = Deployment(account, database, sam, local, FunctionKeys(account), root, applied, inventory(account))
    deployment.deploy()
    deployment.keep_template()
    with deployment.proxy():
        yield deployment


def make_variables(root: Path) -> dict[str, str]:
    """For the Makefile: this environment's programs, as they are installed, and this machine's Python and processor."""
    installed = root / "venv"
    installed.mkdir()
    (installed / "bin").symlink_to(BIN)
    for mark in (".local-installed", ".dev-installed"):
        (installed / mark).touch()
    return {
        "VENV": str(installed),
        "LAMBDA_PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "LAMBDA_PLATFORM": f"{os.uname().machine}-manylinux_2_28",
    }
