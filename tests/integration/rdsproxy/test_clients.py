"""Clients through the proxy, unchanged: what they get, whether it pins them, and why. psycopg 3 has its own file."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from tests.integration.rdsproxy.conftest import refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.rdsproxy.conftest import ProxiedDatabase, StartProxy

NODE_FOLDER = Path(__file__).parent / "node"
TIMEOUT_S = 120


# ── psycopg2 ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_psycopg2_in_autocommit_mode(proxied: ProxiedDatabase, text: str) -> None:
    connection = psycopg2.connect(proxied.dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for number in range(20):
            cursor.execute("SELECT %s, %s", (number, text))
            assert cursor.fetchone() == (number, text)
        with pytest.raises(psycopg2.errors.DivisionByZero):
            cursor.execute("SELECT 1 / 0")
        cursor.execute("DO $$ BEGIN RAISE NOTICE 'heard'; END $$")
        assert connection.notices[-1].strip().endswith("heard")
    proxied.never_pinned()
    connection.close()


def test_psycopg2_in_transactions(proxied: ProxiedDatabase) -> None:
    connection = psycopg2.connect(proxied.dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE things (id int PRIMARY KEY)")
        proxied.borrowed(1)
    proxied.borrowed(0)
    with pytest.raises(psycopg2.errors.UniqueViolation), connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO things VALUES (1), (1)")
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM things")
        assert cursor.fetchone() == (0,)
    proxied.never_pinned()
    connection.close()


def test_psycopg2_execute_values_and_copy_expert(proxied: ProxiedDatabase, text: str) -> None:
    rows = [(number, f"{text} {number}") for number in range(1000)]
    connection = psycopg2.connect(proxied.dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE things (id int, body text)")
        psycopg2.extras.execute_values(cursor, "INSERT INTO things VALUES %s", rows, page_size=100)
        cursor.execute("SELECT * FROM things ORDER BY id")
        assert cursor.fetchall() == rows
        exported = io.StringIO()
        cursor.copy_expert("COPY things TO STDOUT", exported)
        assert exported.getvalue().count("\n") == 1000
        exported.seek(0)
        cursor.copy_expert("COPY things FROM STDIN", exported)
        assert cursor.rowcount == 1000
    assert proxied.ask("SELECT count(*) FROM things") == 2000
    proxied.never_pinned()
    connection.close()


def test_psycopg2_execute_values_with_a_page_above_16_kb_pins(proxied: ProxiedDatabase) -> None:
    connection = psycopg2.connect(proxied.dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE things (id int, body text)")
        rows = [(number, "x" * 200) for number in range(100)]
        psycopg2.extras.execute_values(cursor, "INSERT INTO things VALUES %s", rows, page_size=100)
    proxied.pinned_by("statement-size")
    connection.close()


def test_a_psycopg2_named_cursor_pins(proxied: ProxiedDatabase) -> None:
    connection = psycopg2.connect(proxied.dsn)
    with connection, connection.cursor("named") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT * FROM generate_series(1, 1000)")
        assert sum(row[0] for row in cursor) == 500_500
    proxied.pinned_by("cursor")
    connection.close()


# ── asyncpg ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# Without its cache asyncpg parses the unnamed statement anew for every execution. With a cache that is too small for
# any statement it parses once, waits for the description, and binds later: by then the proxy may have lent the
# database connection, with its one unnamed statement, to somebody else.
UNNAMED = {"no cache": {"statement_cache_size": 0}, "parsed once, bound later": {"max_cacheable_statement_size": 1}}


@asynccontextmanager
async def asyncpg_client(proxied: ProxiedDatabase, **arguments: Any) -> AsyncIterator[Any]:
    """A connection through the proxy, closed at the end."""
    connection = await asyncpg.connect(proxied.dsn, **arguments)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture(params=UNNAMED.values(), ids=UNNAMED)
def unnamed(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The ways to keep asyncpg from naming its statements."""
    return dict(request.param)


def test_asyncpgs_statement_cache_pins(proxied: ProxiedDatabase) -> None:
    async def run() -> None:
        async with asyncpg_client(proxied) as connection:
            for number in range(10):
                assert await connection.fetchval("SELECT $1::int * 3", number) == number * 3
            proxied.pinned_by("named-statement")

    asyncio.run(run())


def test_asyncpg_without_named_statements(proxied: ProxiedDatabase, unnamed: dict[str, Any], text: str) -> None:
    async def run() -> None:
        async with asyncpg_client(proxied, **unnamed) as connection:
            await connection.execute("CREATE TABLE things (id int PRIMARY KEY, body text, seen timestamptz)")
            for number in range(20):
                assert await connection.fetchval("SELECT $1::int * 3", number) == number * 3
            await connection.executemany(
                "INSERT INTO things VALUES ($1, $2, now())", [(number, text) for number in range(500)]
            )
            assert await connection.fetchval("SELECT count(*) FROM things WHERE body = $1", text) == 500
            for _ in range(3):
                with pytest.raises(asyncpg.UniqueViolationError):
                    await connection.execute("INSERT INTO things VALUES ($1, $2, now())", 1, text)
                with pytest.raises(asyncpg.UndefinedTableError):
                    await connection.fetch("SELECT $1::int FROM nothing", 1)
                assert await connection.fetchval("SELECT body FROM things WHERE id = $1", 3) == text
            proxied.never_pinned()

    asyncio.run(run())


async def fail_after_writing(connection: Any) -> None:
    async with connection.transaction(isolation="serializable"):
        await connection.execute("INSERT INTO things VALUES ($1)", 3)
        await connection.fetch("SELECT 1 / $1::int", 0)


def test_asyncpg_transactions(proxied: ProxiedDatabase, unnamed: dict[str, Any]) -> None:
    async def run() -> None:
        async with asyncpg_client(proxied, **unnamed) as connection:
            await connection.execute("CREATE TABLE things (id int PRIMARY KEY)")
            async with connection.transaction():
                await connection.execute("INSERT INTO things VALUES ($1)", 1)
                proxied.borrowed(1)
                with pytest.raises(asyncpg.UniqueViolationError):
                    async with connection.transaction():
                        await connection.execute("INSERT INTO things VALUES ($1)", 1)
                await connection.execute("INSERT INTO things VALUES ($1)", 2)
            with pytest.raises(asyncpg.DivisionByZeroError):
                await fail_after_writing(connection)
            found = await connection.fetch("SELECT id FROM things ORDER BY id")
            assert [row["id"] for row in found] == [1, 2]
            proxied.never_pinned()

    asyncio.run(run())


def test_asyncpg_copies(proxied: ProxiedDatabase, text: str) -> None:
    rows = [(number, f"{text} {number}") for number in range(2000)]

    async def run() -> None:
        async with asyncpg_client(proxied, statement_cache_size=0) as connection:
            await connection.execute("CREATE TABLE things (id int, body text)")
            assert await connection.copy_records_to_table("things", records=rows) == "COPY 2000"
            exported = io.BytesIO()
            assert await connection.copy_from_query("SELECT * FROM things WHERE id >= $1", 1000, output=exported) == (
                "COPY 1000"
            )
            lines = exported.getvalue().decode().splitlines()
            assert lines == [f"{number}\t{body}" for number, body in rows[1000:]]
            with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
                await connection.copy_records_to_table("things", records=[(1, "fits"), ("does not", "fit")])
            assert await connection.fetchval("SELECT count(*) FROM things") == 2000
            proxied.never_pinned()

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 2])
def test_asyncpg_answers_belong_to_their_questions(start_proxy: StartProxy, unnamed: dict[str, Any], size: int) -> None:
    """Every client asks in other words, with other types, and for another number of columns."""
    proxied = start_proxy(max_connections=size)

    async def client(number: int) -> None:
        async with asyncpg_client(proxied, **unnamed) as connection:
            columns = ", ".join(
                f"$1::{kind} AS column_{number}_{index}" for index, kind in enumerate(["int"] * (number % 5))
            )
            statement = f"SELECT 'client {number}' AS who, $1::int + {number} AS sum{', ' * bool(columns)}{columns}"
            for turn in range(15):
                row = await connection.fetchrow(statement, turn)
                assert list(row.values()) == [f"client {number}", turn + number, *[turn] * (number % 5)]
                assert await connection.fetchval("SELECT $1::text || $2", f"{number}", f"-{turn}") == f"{number}-{turn}"
                if number % 3 == 0:
                    async with connection.transaction():
                        assert await connection.fetchval("SELECT $1::jsonb", f"[{number}]") == f"[{number}]"
                        assert list((await connection.fetchrow(statement, turn)).values())[1] == turn + number
                if number % 4 == 0:
                    with pytest.raises(asyncpg.DivisionByZeroError):
                        await connection.fetch("SELECT $1::int / 0", turn)

    async def run() -> None:
        await asyncio.gather(*(client(number) for number in range(25)))

    asyncio.run(run())
    assert proxied.metric("DatabaseConnections") <= size
    proxied.never_pinned()


def test_start_up_parameters_that_only_asyncpg_can_send(start_proxy: StartProxy) -> None:
    proxied = start_proxy(max_connections=1)
    wanted: list[dict[str, str]] = [
        {"application_name": "one", "search_path": "first", "TimeZone": "Asia/Tokyo", "DateStyle": "German, DMY"},
        {"application_name": "two", "search_path": "second, pg_catalog", "extra_float_digits": "0"},
        {"TimeZone": "America/Lima", "search_path": "first"},
    ]
    rows = {"first": "of the first", "second, pg_catalog": "of the second"}

    async def run() -> None:
        owner = await asyncpg.connect(proxied.dsn, statement_cache_size=0)
        for schema in ("first", "second"):
            await owner.execute(f"CREATE SCHEMA {schema}")
            await owner.execute(f"CREATE TABLE {schema}.things AS SELECT 'of the {schema}' AS body")
        defaults = {name: await owner.fetchval("SELECT current_setting($1)", name) for name in wanted[0] | wanted[1]}
        clients = [await asyncpg.connect(proxied.dsn, statement_cache_size=0, server_settings=one) for one in wanted]
        for _ in range(3):
            for client, settings in zip([*clients, owner], [*wanted, {}], strict=True):
                for name, default in defaults.items():
                    assert await client.fetchval("SELECT current_setting($1)", name) == settings.get(name, default)
                async with client.transaction():
                    assert await client.fetchval("SHOW TimeZone") == settings.get("TimeZone", defaults["TimeZone"])
                    if settings:
                        assert await client.fetchval("SELECT body FROM things") == rows[settings["search_path"]]
        assert proxied.metric("DatabaseConnections") == 1
        proxied.never_pinned()
        for client in (*clients, owner):
            await client.close()

    asyncio.run(run())


@pytest.mark.parametrize("refused", [{"options": "-c jit=off"}, {"statement_timeout": "5s"}, {"jit": "off"}], ids=str)
def test_start_up_parameters_that_rds_proxy_refuses(proxied: ProxiedDatabase, refused: dict[str, str]) -> None:
    code, said = refusal(proxied, server_settings=refused)
    assert code == "0A000"
    assert said.startswith("Feature not supported: RDS Proxy currently doesn't support ")
    if "options" not in refused:
        assert next(iter(refused)) in said


def test_asyncpg_looking_up_a_type_pins(proxied: ProxiedDatabase) -> None:
    """For arrays, enums and domains it asks the catalogue, with set_config('jit', 'off') around the question."""

    async def run() -> None:
        async with asyncpg_client(proxied, statement_cache_size=0) as connection:
            assert await connection.fetchval("SELECT $1::int[]", [1, 2]) == [1, 2]
            assert await connection.fetchval("SELECT $1::int[]", [3]) == [3]
            proxied.pinned_by("set-config")

    asyncio.run(run())


def test_an_asyncpg_pool_pins_unless_its_reset_is_replaced(proxied: ProxiedDatabase) -> None:
    """What the pool sends when a connection comes back begins with pg_advisory_unlock_all() and ends with RESET ALL."""

    async def replaced(connection: Any) -> None:
        assert not connection.is_in_transaction()

    async def use(pool: Any) -> None:
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT $1::int", 7) == 7

    async def run() -> None:
        async with asyncpg.create_pool(
            proxied.dsn, min_size=2, max_size=4, statement_cache_size=0, reset=replaced
        ) as pool:
            await asyncio.gather(*(use(pool) for _ in range(40)))
            proxied.never_pinned()
        async with asyncpg.create_pool(proxied.dsn, min_size=1, max_size=1, statement_cache_size=0) as pool:
            await use(pool)
            assert len(proxied.proxy.pins) == 1

    asyncio.run(run())


# ── SQLAlchemy ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Base(orm.DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    orders: orm.Mapped[list[Order]] = orm.relationship(back_populates="customer")


class Order(Base):
    __tablename__ = "orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    total: orm.Mapped[int]
    customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("customers.id"))
    customer: orm.Mapped[Customer] = orm.relationship(back_populates="orders")


def sqlalchemy_engine(proxied: ProxiedDatabase, **arguments: Any) -> sa.Engine:
    return sa.create_engine(
        proxied.dsn.replace("postgresql://", "postgresql+psycopg://"),
        pool_size=2,
        max_overflow=0,
        connect_args=arguments,
    )


def use_the_orm(engine: sa.Engine, text: str, rounds: int = 10) -> None:
    Base.metadata.create_all(engine)
    for number in range(rounds):
        with orm.Session(engine) as session, session.begin():
            customer = Customer(name=f"{text} {number}", orders=[Order(total=total) for total in range(5)])
            session.add(customer)
        with orm.Session(engine) as session:
            found = session.scalars(sa.select(Customer).where(Customer.name == f"{text} {number}")).one()
            assert sorted(order.total for order in found.orders) == [0, 1, 2, 3, 4]
    with orm.Session(engine) as session:
        session.add(Order(total=1, customer_id=-1))
        with pytest.raises(sa.exc.IntegrityError):
            session.commit()
    with orm.Session(engine) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Order)) == rounds * 5


def test_sqlalchemy_without_prepare_threshold_does_not_pin(proxied: ProxiedDatabase, text: str) -> None:
    engine = sqlalchemy_engine(proxied, prepare_threshold=None)
    use_the_orm(engine, text)
    proxied.never_pinned()
    engine.dispose()


def test_sqlalchemy_with_psycopgs_default_threshold_pins(proxied: ProxiedDatabase, text: str) -> None:
    """Not at once: psycopg counts from zero after each rollback, and every session that only read ends with one."""
    engine = sqlalchemy_engine(proxied)
    use_the_orm(engine, text)
    with orm.Session(engine) as session:
        for _ in range(5):
            session.scalars(sa.select(Customer).where(Customer.id == 1)).one()
        proxied.proxy.assert_no_pins()
        for _ in range(5):
            session.scalars(sa.select(Customer).where(Customer.id == 1)).one()
    proxied.pinned_by("named-statement")
    engine.dispose()


@pytest.mark.parametrize(("page", "pins"), [(100, False), (1000, True)])
def test_sqlalchemy_inserts_many_rows_in_one_text(proxied: ProxiedDatabase, page: int, pins: bool) -> None:
    """A thousand rows, its default page, are more than 16 KB of placeholders."""
    engine = sqlalchemy_engine(proxied, prepare_threshold=None)
    Base.metadata.create_all(engine)
    with orm.Session(engine.execution_options(insertmanyvalues_page_size=page)) as session, session.begin():
        session.add_all(Customer(name=f"customer {number}") for number in range(1000))
    assert proxied.ask("SELECT count(*) FROM customers") == 1000
    if pins:
        proxied.pinned_by("statement-size")
    else:
        proxied.never_pinned()
    engine.dispose()


# ── psql and pgbench ────────────────────────────────────────────────────────────────────────────────────────────────


def run(proxied: ProxiedDatabase, program: str, *arguments: str | Path, status: int = 0) -> str:
    """What one of PostgreSQL's programs prints, both outputs together."""
    done = subprocess.run(
        [proxied.server.bin_dir / program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": str(TIMEOUT_S)},
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def psql(proxied: ProxiedDatabase, *arguments: str | Path, status: int = 0) -> str:
    return run(proxied, "psql", "--no-psqlrc", "--quiet", proxied.dsn, *arguments, status=status)


def test_psql_runs_commands(proxied: ProxiedDatabase, text: str) -> None:
    literal = text.replace("'", "''")
    assert psql(proxied, "-At", "-c", f"SELECT '{literal}'").strip() == text
    several = (
        "CREATE TABLE things (id int); INSERT INTO things SELECT generate_series(1, 9); SELECT sum(id) FROM things"
    )
    assert psql(proxied, "-At", "-c", several).strip() == "45"
    failing = "INSERT INTO things VALUES (10); SELECT 1 / 0; INSERT INTO things VALUES (11)"
    assert "division by zero" in psql(proxied, "-c", failing, status=1)
    assert proxied.ask("SELECT max(id) FROM things") == 9, "one simple query is one transaction"
    assert '"things"' in psql(proxied, "-c", r"\d things").replace("public.things", "things")
    proxied.never_pinned()


def test_psql_runs_a_script(proxied: ProxiedDatabase, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("".join(f'{number},"line ""{number}"""\n' for number in range(1000)))
    script = tmp_path / "script.sql"
    script.write_text(
        rf"""
        CREATE TABLE things (id int PRIMARY KEY, body text);
        \copy things FROM '{tmp_path}/in.csv' WITH (FORMAT csv)
        BEGIN;
        DELETE FROM things WHERE id >= 500;
        ROLLBACK;
        \copy (SELECT * FROM things ORDER BY id) TO '{tmp_path}/out.csv' WITH (FORMAT csv)
        SELECT count(*) AS counted FROM things \gx
        SELECT max(id) AS largest FROM things \gset
        \echo largest is :largest
        SELECT $1::int + $2::int AS added \bind 3 4 \g
        INSERT INTO things VALUES (1, 'twice');
        SELECT 'still running';
        """  # noqa: S608
    )
    printed = psql(proxied, "-f", script)
    assert "counted | 1000" in printed
    assert "largest is 999" in printed
    assert "7" in printed
    assert "things_pkey" in printed
    assert "still running" in printed
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "in.csv").read_text()

    script.write_text("SELECT 'before';\nSELECT 1 / 0;\nSELECT 'after';\n")
    printed = psql(proxied, "-v", "ON_ERROR_STOP=1", "-f", script, status=3)
    assert "before" in printed
    assert "after" not in printed
    proxied.never_pinned()


def test_psql_in_a_single_transaction(proxied: ProxiedDatabase) -> None:
    psql(proxied, "-1", "-c", "CREATE TABLE things (id int)", "-c", "INSERT INTO things VALUES (1)")
    psql(proxied, "-1", "-v", "ON_ERROR_STOP=1", "-c", "DELETE FROM things", "-c", "SELECT 1 / 0", status=1)
    assert proxied.ask("SELECT count(*) FROM things") == 1
    proxied.never_pinned()


def test_what_psql_sets_pins(proxied: ProxiedDatabase) -> None:
    assert "Asia/Tokyo" in psql(proxied, "-c", "SET TimeZone = 'Asia/Tokyo'", "-c", "SHOW TimeZone")
    assert len(proxied.proxy.pins) == 1
    assert "Asia/Tokyo" not in psql(proxied, "-c", "SHOW TimeZone")


@pytest.mark.parametrize(("mode", "pins"), [("simple", 0), ("extended", 0), ("prepared", 8)])
def test_pgbench(proxied: ProxiedDatabase, mode: str, pins: int) -> None:
    assert "done in" in run(proxied, "pgbench", "-i", "-s", "1", proxied.dsn)
    proxied.never_pinned()
    printed = run(proxied, "pgbench", "-n", "-M", mode, "-c", "8", "-j", "2", "-t", "200", proxied.dsn)
    assert "number of transactions actually processed: 1600/1600" in printed
    assert "number of failed transactions: 0 (" in printed
    assert proxied.ask("SELECT count(*) FROM pgbench_history") == 1600
    moved = proxied.ask("SELECT sum(delta) FROM pgbench_history")
    for table, column in (("accounts", "abalance"), ("tellers", "tbalance"), ("branches", "bbalance")):
        assert proxied.ask(f"SELECT sum({column}) FROM pgbench_{table}") == moved  # noqa: S608
    if pins:
        proxied.pinned_by(*["named-statement"] * pins)
    else:
        proxied.never_pinned()
    proxied.borrowed(0)


# ── node-postgres ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """node-postgres at the locked versions, in a copy of node/."""
    if missing := [program for program in ("node", "npm") if shutil.which(program) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed: node-postgres cannot run here")
    folder = tmp_path_factory.mktemp("node") / "clients"
    shutil.copytree(NODE_FOLDER, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def run_node(folder: Path, proxied: ProxiedDatabase, part: str) -> dict[str, Any]:
    done = subprocess.run(
        ["node", "client.mjs", part],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": proxied.dsn},
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_node_postgres(node_folder: Path, proxied: ProxiedDatabase) -> None:
    assert run_node(node_folder, proxied, "client") == {
        "plain": [{"answer": 42}],
        "parameters": [{"sum": number + 1, "text": f"ümlaut {number}"} for number in range(20)],
        "several": [1, 2],
        "error": "22012",
        "afterError": 1,
        "inTransaction": ["23505", "25P02"],
        "committed": [1, 2],
        "large": 300_000,
    }
    proxied.never_pinned()


def test_a_node_postgres_pool_shares_two_connections(node_folder: Path, start_proxy: StartProxy) -> None:
    proxied = start_proxy(max_connections=2)
    assert run_node(node_folder, proxied, "pool") == {"wrong": 0, "asked": 400}
    assert proxied.metric("DatabaseConnections") <= 2
    proxied.never_pinned()


def test_a_named_query_of_node_postgres_pins(node_folder: Path, proxied: ProxiedDatabase) -> None:
    assert run_node(node_folder, proxied, "named") == {"answers": [0, 2, 4, 6, 8]}
    proxied.pinned_by("named-statement")


def test_the_lock_names_no_registry() -> None:
    """Whoever installs decides where from."""
    locked = (NODE_FOLDER / "package-lock.json").read_text(encoding="utf-8")
    assert "integrity" in locked
    assert "resolved" not in locked
    assert "://" not in locked
