"""PgBouncer in transaction mode, in front of the benchmark's PostgreSQL."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spillway.stack import ports

if TYPE_CHECKING:
    from spillway.stack.postgres import PostgresServer
    from spillway.stack.processes import Processes

HOW_TO_INSTALL = "on Debian and Ubuntu: apt-get install pgbouncer; PGBOUNCER=/path/to/it names one elsewhere"
START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """One that runs."""

    port: int
    pid: int


def find() -> str | None:
    """The program: what the variable PGBOUNCER names, else where packages put it."""
    wanted = os.environ.get("PGBOUNCER", "pgbouncer")
    return shutil.which(wanted) or shutil.which(wanted, path="/usr/sbin:/usr/local/sbin")


def version(program: str) -> str:
    """Such as 1.18.0."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    found = re.search(r"[\d.]+\d", said)
    return found.group() if found else "of an unknown version"


def start(
    processes: Processes, program: str, server: PostgresServer, *, user: str, password: str, pool_size: int
) -> PgBouncer:
    """Start it with `pool_size` connections for `user`: SCRAM towards both sides, as RDS Proxy has it, and no TLS."""
    directory = processes.temporary_directory("spillway-pgbouncer-")
    port = ports.free_port()
    (directory / "users.txt").write_text(f'"{user}" "{password}"\n')
    (directory / "pgbouncer.ini").write_text(
        f"""
[databases]
* = host={server.host} port={server.port}

[pgbouncer]
listen_addr = {server.host}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory}/users.txt
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 3000
log_connections = 0
log_disconnections = 0
"""
    )
    account = _account()
    if account is not None:
        for path in (directory, *directory.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)
    with (directory / "pgbouncer.log").open("wb") as log:
        popen = processes.spawn(
            [program, directory / "pgbouncer.ini"],
            name="PgBouncer",
            cwd=Path("/"),
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            stdout=log,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ports.listens(popen.pid, port):
        if popen.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"PgBouncer did not start:\n{(directory / 'pgbouncer.log').read_text(errors='replace')}")
        time.sleep(0.02)
    return PgBouncer(port, popen.pid)


def _account() -> pwd.struct_passwd | None:
    """Whom to become: PgBouncer refuses to run as root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None
