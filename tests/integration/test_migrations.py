from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.conftest import LOGIN
from workers.migrate.roles import ensure_roles, set_password
from workers.migrate.runner import Migration, MigrationError, load, migrate, pending

if TYPE_CHECKING:
    from tests.conftest import TestDatabase

ONE = Migration("0001_one.sql", "CREATE TABLE one ();", 1)
TWO = Migration("0002_two.sql", "CREATE TABLE two ();", 2)
FUNCTION = Migration("w/apply.sql", "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1;", None)


def tables(connection: psycopg.Connection[Any]) -> set[str]:
    return {
        name for (name,) in connection.execute("SELECT relname FROM pg_class WHERE relname IN ('one', 'two', 'three')")
    }


def test_the_real_migrations_apply_once_and_then_do_nothing(empty_database: TestDatabase) -> None:
    with empty_database.owner() as owner:
        ensure_roles(owner, LOGIN)
        names = [migration.name for migration in load()]
        assert [migration.name for migration in pending(owner, load())] == names
        assert migrate(owner, load()) == names
        assert names[0] == "0001_schema.sql"
        assert "orders/apply.sql" in names
        assert migrate(owner, load()) == []
        ensure_roles(owner, LOGIN)


def test_a_changed_function_is_applied_again_and_a_changed_version_is_refused(empty_database: TestDatabase) -> None:
    with empty_database.owner() as owner:
        migrate(owner, [ONE, FUNCTION])
        newer = replace(FUNCTION, text=FUNCTION.text.replace("1;", "2;"))
        assert migrate(owner, [ONE, newer]) == ["w/apply.sql"]
        assert owner.execute("SELECT f()").fetchone() == (2,)
        with pytest.raises(MigrationError, match=r"0001_one.sql was edited after it was applied"):
            migrate(owner, [replace(ONE, text="CREATE TABLE eins ();")])
        assert migrate(owner, [replace(ONE, text=ONE.text.replace("\n", "\r\n")), newer]) == []


def test_out_of_order_and_missing_files_are_refused(empty_database: TestDatabase) -> None:
    with empty_database.owner() as owner:
        migrate(owner, [TWO])
        with pytest.raises(MigrationError, match=r"0001_one.sql would run after 0002"):
            migrate(owner, [ONE, TWO])
        with pytest.raises(MigrationError, match=r"0002_two.sql was applied to this database but is missing here"):
            migrate(owner, [])
        assert tables(owner) == {"two"}


def test_a_failure_changes_nothing_and_names_file_and_line(empty_database: TestDatabase) -> None:
    broken = Migration("0002_broken.sql", "CREATE TABLE two ();\n\nCREATE TABLE three (x nonsense);\n", 2)
    with empty_database.owner() as owner:
        with pytest.raises(MigrationError, match=r'0002_broken.sql:3: type "nonsense" does not exist .SQLSTATE 42704.'):
            migrate(owner, [ONE, broken])
        assert tables(owner) == set()
        assert migrate(owner, [ONE]) == ["0001_one.sql"]


def test_two_at_once_apply_everything_once(empty_database: TestDatabase) -> None:
    applied: list[list[str]] = []
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def run() -> None:
        try:
            with empty_database.owner() as owner:
                start.wait()
                ensure_roles(owner, LOGIN)
                applied.append(migrate(owner, load()))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(map(len, applied)) == [0, 0, 0, 0, 0, len(load())]


def test_a_role_that_somebody_else_is_changing_is_waited_for(empty_database: TestDatabase) -> None:
    """PostgreSQL itself answers "tuple concurrently updated"."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with empty_database.owner() as owner:
                set_password(owner, "changing", "second")
        except BaseException as error:
            failures.append(error)

    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    with empty_database.owner() as owner, empty_database.owner() as watcher:
        owner.execute("CREATE ROLE changing LOGIN")
        thread = threading.Thread(target=run)
        try:
            with owner.transaction():
                set_password(owner, "changing", "first")
                thread.start()
                while watcher.execute(waiting, (empty_database.name,)).fetchone() == (0,):
                    assert thread.is_alive()
            thread.join()
        finally:
            owner.execute("DROP ROLE changing")
    assert failures == []


def test_bad_file_names_are_refused(tmp_path: Path) -> None:
    versions = tmp_path / "migrate" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_fine.sql").touch()
    assert [migration.version for migration in load(tmp_path)] == [1]
    (versions / "0001_twin.sql").touch()
    with pytest.raises(MigrationError, match=r"0001_twin.sql: number 0001 is taken by 0001_fine.sql"):
        load(tmp_path)
    (versions / "0001_twin.sql").rename(versions / "2-more.sql")
    with pytest.raises(MigrationError, match=r"2-more.sql: expected a name like 0003_add_refunds.sql"):
        load(tmp_path)
