"""What the benchmarks share: where a number was measured, medians and ratios, tables, and a database to write to."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from spillway.stack.postgres import PostgresServer
from spillway.stack.processes import Processes
from workers.migrate.roles import LoginRole, ensure_roles
from workers.migrate.runner import load, migrate
from workers.runtime.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOGIN = LoginRole.with_timeouts("spillway_app", "application-password", 30)
PACKAGES = ("psycopg", "aws-lambda-powertools", "msgspec")


def parse_arguments(doc: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that every benchmark takes: `quick` and `json` (a path or None)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds; its numbers mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    return parser.parse_args(argv)


def environment(*packages: str, postgres: str | None = None) -> dict[str, str]:
    """The machine and the versions that a number belongs to."""
    described = {
        "CPU": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{_distribution()}, kernel {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
    }
    if postgres is not None:
        described["PostgreSQL"] = postgres
    for package in (*PACKAGES, *packages):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            continue
    return described


def print_environment(described: dict[str, str]) -> None:
    """One line for above the table."""
    print("; ".join(f"{name} {value}" for name, value in described.items()) + ".")
    print()


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table: the first column is text, the others numbers."""
    print(f"| {' | '.join(head)} |")
    print(f"|---|{'---:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def print_goal(what: str, goal: str, value: str, *, reached: bool) -> None:
    """One line per goal; none is an assertion, because a busy machine is no defect of the code."""
    print(f"- {what}: goal {goal}: {value} {'ok' if reached else 'MISSED'}")


def write_json(path: Path | None, described: dict[str, str], numbers: Any) -> None:
    """The numbers for machines, if asked for."""
    if path is not None:
        path.write_text(json.dumps({"environment": described, "numbers": numbers}, indent=2) + "\n", encoding="utf-8")


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios within each round: what slows a whole round down cancels out."""
    return statistics.median(one / other for one, other in zip(numerators, denominators, strict=False))


def number(value: float) -> str:
    """Three or more significant digits, thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class BenchDatabase:
    """A migrated database of its own on the benchmark's server."""

    server: PostgresServer
    name: str

    def owner(self) -> psycopg.Connection[Any]:
        """A connection that may do everything."""
        return psycopg.connect(self.server.dsn(self.name), autocommit=True)

    def settings(self) -> Settings:
        """A worker's settings for this database."""
        return Settings(
            host=self.server.host,
            port=self.server.port,
            database=self.name,
            user=LOGIN.name,
            auth="password",
            password=LOGIN.password or "",
            sslmode="disable",
            sslrootcert="system",
            connect_timeout=5,
            borrow_timeout=0,
            statement_timeout=30,
            function_timeout=900,
            dead_letter_queue_url="",
            region="us-east-1",
        )

    def worker(self) -> psycopg.Connection[Any]:
        """A connection as the application role, as psycopg makes it by default but for autocommit."""
        return psycopg.connect(self.server.dsn(self.name, LOGIN.name, LOGIN.password), autocommit=True)

    def empty(self) -> None:
        """Empty tables, and the disk at rest."""
        with self.owner() as owner:
            owner.execute("TRUNCATE spillway.orders, spillway.order_events")
            owner.execute("VACUUM (ANALYZE) spillway.orders, spillway.order_events")
            owner.execute("CHECKPOINT")


@contextmanager
def databases(*names: str) -> Iterator[list[BenchDatabase]]:
    """Migrated databases on one embedded PostgreSQL with fsync on, all of it gone afterwards."""
    with Processes() as processes:
        server = PostgresServer(processes, durable=True)
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            for name in names:
                admin.execute(f"CREATE DATABASE {name}")
        made = [BenchDatabase(server, name) for name in names]
        for one in made:
            with one.owner() as owner:
                ensure_roles(owner, LOGIN)
                migrate(owner, load())
        yield made


def postgres_version(database: BenchDatabase) -> str:
    """As the server says it, with what decides about durability."""
    with database.owner() as owner:
        found = owner.execute("SELECT current_setting('server_version'), current_setting('fsync')").fetchone()
    assert found is not None
    return f"{found[0].partition(' ')[0]} (fsync {found[1]})"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
