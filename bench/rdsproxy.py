"""What does the emulated RDS Proxy cost compared with PgBouncer, and how does it bear a crowd?

    python -m bench.rdsproxy [--quick] [--json FILE]

PostgreSQL (fsync on), PgBouncer (transaction mode) and the proxy are processes of their own; both poolers have the same
number of database connections, SCRAM on both sides and, unless a line says so, no TLS. Without PgBouncer on this
machine the proxy is compared with direct connections only. Rivals take turns within each round, every round in another
order; values are medians of the rounds, ratios are medians of each round's ratio, with their quartiles.

1. Batch writes: 8 clients write batches of order events, the statement and the parameters of the orders worker.
2. Tiny statements: pgbench -S, simple and extended protocol; and the median time of one statement at a time, measured
   on connections that take turns every few hundred statements.
3. A crowd: 2,000 clients stay connected and run statements. Memory is the growth of the pooler's resident set per
   client, after a few clients have warmed it up; CPU is what it uses while all of them are idle.
4. A queue: 1,000 clients, each running one transaction of 50 ms (pg_sleep) after the other. A wait is the time until
   the answer minus those 50 ms. Each client's first wait does not count: all clients arrive in one instant, so these
   run from nothing to the whole queue however fair the pooler is. From then on the queue has the same length all the
   time (clients go on until the last of them has all its counted waits), so a fair pooler lets everyone wait equally
   long, max/mean near 1, and a client that is overtaken again and again shows as a high maximum.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from bench import events, pgbouncer
from bench.common import (
    LOGIN,
    BenchDatabase,
    databases,
    environment,
    number,
    parse_arguments,
    postgres_version,
    print_environment,
    print_goal,
    print_table,
    write_json,
)
from spillway.stack import ports
from spillway.stack.processes import Processes
from spillway.stack.template import REPOSITORY
from workers.orders.contract import OrderEvent
from workers.orders.handler import to_row
from workers.runtime.database import JsonText, JsonTextDumper
from workers.runtime.envelope import EventDecoder
from workers.runtime.worker import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DIRECT, PGBOUNCER, PROXY, PROXY_TLS = "direct", "PgBouncer", "RDS Proxy emulator", "RDS Proxy emulator, TLS"
BATCH_GOAL, TINY_GOAL, LATENCY_GOAL_MS, MEMORY_GOAL_KB, FAIRNESS_GOAL = 0.95, 0.85, 0.1, 60, 3.0
POOL = 20
WRITERS = 8
SLEEP_S = 0.05
START_TIMEOUT_S = 30.0
#: How many clients log in at a time; the crowd is about staying, not about arriving.
ARRIVING = 50
#: A queue that has not served everyone by then is reported as it is.
QUEUE_TIMEOUT_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `batches`: how many by their size; `latency`: blocks of how many statements."""

    batch_rounds: int
    batches: dict[int, int]
    tiny_rounds: int
    tiny_clients: tuple[int, ...]
    tiny_duration: tuple[str, str]
    latency: tuple[int, int]
    crowd: int
    settle_s: float
    idle_s: float
    queue_rounds: int
    queue_clients: int
    queue_counted: int


FULL_PLAN = Plan(
    batch_rounds=11,
    batches={100: 160, 1_000: 32},
    tiny_rounds=9,
    tiny_clients=(1, 8, 16),
    tiny_duration=("-T", "1"),
    latency=(20, 300),
    crowd=2_000,
    settle_s=0.5,
    idle_s=5,
    queue_rounds=3,
    queue_clients=1_000,
    queue_counted=3,
)
QUICK_PLAN = Plan(
    batch_rounds=1,
    batches={100: 8},
    tiny_rounds=1,
    tiny_clients=(1, 4),
    tiny_duration=("-t", "100"),
    latency=(1, 50),
    crowd=60,
    settle_s=0.05,
    idle_s=0.2,
    queue_rounds=1,
    queue_clients=60,
    queue_counted=2,
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the database."""

    name: str
    dsn: str
    pid: int


@dataclass(slots=True)
class Measured:
    """Everything, by way: lists are by round."""

    batches: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    tiny: dict[tuple[str, int], dict[str, list[float]]] = field(default_factory=dict)
    latency_ms: dict[str, list[float]] = field(default_factory=dict)
    crowd: dict[str, dict[str, float]] = field(default_factory=dict)
    queue: dict[str, list[dict[str, float]]] = field(default_factory=dict)


# ── the rivals ──────────────────────────────────────────────────────────────────────────────────────────────────────


def url(host: str, port: int, database: str, tls: bool = False) -> str:
    """As the application role."""
    return (
        f"postgresql://{LOGIN.name}:{LOGIN.password}@{host}:{port}/{database}?sslmode={'require' if tls else 'disable'}"
    )


def start_proxy(processes: Processes, database: BenchDatabase, *, tls: bool = False) -> Way:
    """The emulator as people run it."""
    directory = processes.temporary_directory("spillway-rdsproxy-")
    ready, log_path = directory / "ready.json", directory / "log"
    with log_path.open("wb") as log:
        popen = processes.spawn(
            [
                *(sys.executable, "-m", "spillway", "rdsproxy"),
                *("--listen", f"127.0.0.1:{ports.free_port()}", "--max-connections", str(POOL)),
                *("--connection-borrow-timeout", "120", "--quiet", "--ready-file", ready),
                *(() if tls else ("--no-tls",)),
            ],
            name="the RDS Proxy emulator",
            env=os.environ
            | {"SPILLWAY_RDSPROXY_TARGET": database.server.dsn(database.name, LOGIN.name, LOGIN.password)},
            cwd=REPOSITORY,
            stdout=log,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready.exists():
        if popen.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The proxy did not start:\n{log_path.read_text(errors='replace')}")
        time.sleep(0.02)
    told = json.loads(ready.read_text())
    return Way(PROXY_TLS if tls else PROXY, url(told["host"], told["port"], database.name, tls), told["pid"])


def start_pgbouncer(processes: Processes, database: BenchDatabase, program: str) -> Way:
    """PgBouncer with as many database connections."""
    assert LOGIN.password is not None
    running = pgbouncer.start(
        processes, program, database.server, user=LOGIN.name, password=LOGIN.password, pool_size=POOL
    )
    return Way(PGBOUNCER, url(database.server.host, running.port, database.name), running.pid)


@contextmanager
def poolers(database: BenchDatabase, *, tls: bool = False) -> Iterator[list[Way]]:
    """Fresh ones: PgBouncer if there is one, and the proxy; on demand also a proxy whose clients use TLS."""
    with Processes() as processes:
        ways = []
        if program := pgbouncer.find():
            ways.append(start_pgbouncer(processes, database, program))
        ways.append(start_proxy(processes, database))
        if tls:
            ways.append(start_proxy(processes, database, tls=True))
        yield ways


def rotated(ways: Sequence[Way], index: int) -> list[Way]:
    """Another one begins in each round."""
    turn = index % len(ways)
    return [*ways[turn:], *ways[:turn]]


# ── 1. batch writes ─────────────────────────────────────────────────────────────────────────────────────────────────


def parameters(size: int, count: int) -> tuple[list[JsonText], int]:
    """`count` batches as the orders worker would send them, and how many different events they hold."""
    decode = EventDecoder[Any](OrderEvent).decode
    decoded = [decode(body) for body in events.bodies(size * count)]
    batches = []
    for start in range(0, size * count, size):
        rows = {one.id: to_row(one) for one in decoded[start : start + size]}
        batches.append(JsonText(msgspec.json.encode(list(rows.values()))))
    return batches, len({one.id for one in decoded})


def write(way: Way, batches: Sequence[JsonText]) -> float:
    """Seconds that all clients together need."""
    text = statement("orders")
    waiting = deque(batches)
    failures: list[BaseException] = []
    barrier = threading.Barrier(WRITERS + 1)

    def client() -> None:
        try:
            with psycopg.connect(way.dsn, autocommit=True, prepare_threshold=None) as connection:
                connection.adapters.register_dumper(JsonText, JsonTextDumper)
                connection.execute("SELECT 1")
                barrier.wait()
                with suppress(IndexError):
                    while True:
                        connection.execute(text, (waiting.popleft(),), binary=True)
                barrier.wait()
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=client) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    started = seconds = 0.0
    with suppress(threading.BrokenBarrierError):
        barrier.wait()
        started = time.perf_counter()
        barrier.wait()
        seconds = time.perf_counter() - started
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return seconds


def measure_batches(plan: Plan, database: BenchDatabase, ways: Sequence[Way]) -> dict[int, dict[str, list[float]]]:
    """Events a second; the first round warms up, and after each turn the claims are counted."""
    measured: dict[int, dict[str, list[float]]] = {}
    for size, count in plan.batches.items():
        batches, distinct = parameters(size, count)
        gc.collect()
        measured[size] = {way.name: [] for way in ways}
        for index in range(plan.batch_rounds + 1):
            for way in rotated(ways, index):
                database.empty()
                seconds = write(way, batches)
                with database.owner() as owner:
                    claims = owner.execute("SELECT count(*) FROM spillway.order_events").fetchone()
                assert claims == (distinct,), f"{way.name}: {claims} events claimed, expected {distinct}"
                if index:
                    measured[size][way.name].append(size * count / seconds)
    return measured


# ── 2. tiny statements ──────────────────────────────────────────────────────────────────────────────────────────────


def program(processes: Processes, database: BenchDatabase, name: str, *arguments: str) -> str:
    """What one of PostgreSQL's programs prints."""
    popen = processes.spawn(
        [database.server.bin_dir / name, *arguments], name=name, env={"LC_ALL": "C"}, stdout=subprocess.PIPE
    )
    output, _ = popen.communicate(timeout=120)
    if processes.stop(popen) != 0:
        raise SystemExit(f"{name} failed:\n{output.decode(errors='replace')}")
    return output.decode()


def prepare_pgbench(processes: Processes, database: BenchDatabase) -> None:
    """Its tables, readable by the application role."""
    program(processes, database, "pgbench", "-i", "-q", database.server.dsn(database.name))
    with database.owner() as owner:
        owner.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {LOGIN.name}")
        owner.execute(f"ALTER ROLE {LOGIN.name} IN DATABASE {database.name} SET search_path = spillway, public")


def pgbench(processes: Processes, database: BenchDatabase, way: Way, *arguments: str) -> float:
    """Statements a second."""
    printed = program(
        processes,
        database,
        "pgbench",
        *("-n", "-S", "--random-seed", "1", *arguments, way.dsn),
    )
    rate = re.search(r"tps = ([\d.]+) \(without", printed)
    assert rate is not None, printed
    assert "number of failed transactions: 0 (" in printed, printed
    return float(rate.group(1))


def measure_tiny(
    plan: Plan, processes: Processes, database: BenchDatabase, ways: Sequence[Way]
) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Statements a second by protocol and number of clients."""
    measured: dict[tuple[str, int], dict[str, list[float]]] = {
        (mode, clients): {way.name: [] for way in ways}
        for mode in ("simple", "extended")
        for clients in plan.tiny_clients
    }
    for index in range(plan.tiny_rounds):
        for (mode, clients), by_way in measured.items():
            for way in rotated(ways, index):
                by_way[way.name].append(
                    pgbench(processes, database, way, "-M", mode, "-c", str(clients), *plan.tiny_duration)
                )
    return measured


def measure_latency(plan: Plan, ways: Sequence[Way]) -> dict[str, list[float]]:
    """Median milliseconds of one statement, by block: libpq's own call, so the client is as light as can be."""
    blocks, statements = plan.latency
    medians: dict[str, list[float]] = {way.name: [] for way in ways}
    connections = {way.name: psycopg.connect(way.dsn, autocommit=True) for way in ways}
    try:
        for index in range(blocks + 1):
            for way in rotated(ways, index):
                connection = connections[way.name].pgconn
                spent = []
                for aid in range(1, statements + 1):
                    text = b"SELECT abalance FROM pgbench_accounts WHERE aid = %d" % aid
                    started = time.perf_counter()
                    answer = connection.exec_(text)
                    spent.append(time.perf_counter() - started)
                    assert answer.ntuples == 1
                if index:
                    medians[way.name].append(statistics.median(spent) * 1e3)
    finally:
        for connection_ in connections.values():
            connection_.close()
    return medians


# ── 3. a crowd ──────────────────────────────────────────────────────────────────────────────────────────────────────


def resident_kb(pid: int) -> float:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    raise SystemExit(f"/proc/{pid}/status has no VmRSS")


def cpu_s(pid: int) -> float:
    """CPU seconds of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Crowd:
    """Clients that are connected at the same time."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._arriving = asyncio.Semaphore(ARRIVING)
        self.connections: list[psycopg.AsyncConnection[Any]] = []

    async def arrive(self, count: int) -> None:
        """Connect so many."""
        await asyncio.gather(*(self._connect() for _ in range(count)))

    async def _connect(self) -> None:
        async with self._arriving:
            self.connections.append(
                await psycopg.AsyncConnection.connect(self._dsn, autocommit=True, prepare_threshold=None)
            )

    async def ask(self, times: int) -> None:
        """Everyone at once runs `times` statements with parameters and looks at the answers."""

        async def client(connection: psycopg.AsyncConnection[Any], own: int) -> None:
            for turn in range(times):
                cursor = await connection.execute("SELECT %s::int, %s::int", (own, turn))
                assert await cursor.fetchone() == (own, turn)

        await asyncio.gather(*(client(connection, own) for own, connection in enumerate(self.connections)))

    async def leave(self) -> None:
        """Disconnect all."""
        for connection in self.connections:
            await connection.close()
        self.connections.clear()


async def crowd(way: Way, plan: Plan) -> dict[str, float]:
    """Memory and idle CPU of the pooler with all clients there; an error of any client ends the benchmark."""
    few = Crowd(way.dsn)
    await few.arrive(2 * POOL)
    await few.ask(20)
    await few.leave()
    await asyncio.sleep(plan.settle_s)
    before = resident_kb(way.pid)
    many = Crowd(way.dsn)
    started = time.perf_counter()
    await many.arrive(plan.crowd)
    arrived = time.perf_counter() - started
    connected = resident_kb(way.pid)
    await many.ask(5)
    await asyncio.sleep(plan.settle_s)
    after = resident_kb(way.pid)
    cpu, at = cpu_s(way.pid), time.perf_counter()
    await asyncio.sleep(plan.idle_s)
    idle = (cpu_s(way.pid) - cpu) / (time.perf_counter() - at)
    await many.leave()
    return {
        "connect_s": arrived,
        "before_mb": before / 1024,
        "connected_kb": (connected - before) / plan.crowd,
        "after_kb": (after - before) / plan.crowd,
        "idle_cpu_percent": idle * 100,
    }


# ── 4. a queue ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def queue(way: Way, plan: Plan) -> dict[str, float]:
    """Seconds that clients wait: mean, median, maximum, and maximum over mean."""
    clients = Crowd(way.dsn)
    await clients.arrive(plan.queue_clients)
    unfinished = plan.queue_clients
    finished = asyncio.Event()
    waits: list[float] = []
    sent_at: dict[int, float] = {}

    async def client(own: int, connection: psycopg.AsyncConnection[Any]) -> None:
        nonlocal unfinished
        turn = 0
        while not finished.is_set():
            sent_at[own] = time.perf_counter()
            await connection.execute(f"SELECT pg_sleep({SLEEP_S})")
            wait = time.perf_counter() - sent_at[own] - SLEEP_S
            if 1 <= turn <= plan.queue_counted:
                waits.append(wait)
            if turn == plan.queue_counted:
                unfinished -= 1
                if not unfinished:
                    finished.set()
            turn += 1

    tasks = [asyncio.create_task(client(own, connection)) for own, connection in enumerate(clients.connections)]
    done, _ = await asyncio.wait(
        {*tasks, asyncio.create_task(finished.wait())}, timeout=QUEUE_TIMEOUT_S, return_when=asyncio.FIRST_EXCEPTION
    )
    for task in done:
        task.result()
    if unfinished:  # whoever still waits has waited at least so long
        finished.set()
        waits += [time.perf_counter() - at - SLEEP_S for at in sent_at.values()]
    await asyncio.gather(*tasks)
    await clients.leave()
    mean = statistics.fmean(waits)
    return {
        "mean_s": mean,
        "median_s": statistics.median(waits),
        "max_s": max(waits),
        "max_over_mean": max(waits) / mean,
    }


# ── the run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(plan: Plan, database: BenchDatabase) -> Measured:
    """Everything in turn. The poolers of the first two parts are not those of the crowd: their heaps are used."""
    measured = Measured()
    direct = Way(DIRECT, url(database.server.host, database.server.port, database.name), 0)
    with Processes() as processes:
        prepare_pgbench(processes, database)
    with Processes() as processes, poolers(database) as pooled:
        ways = [direct, *pooled]
        measured.batches = measure_batches(plan, database, ways)
        measured.tiny = measure_tiny(plan, processes, database, ways)
        measured.latency_ms = measure_latency(plan, ways)
    with poolers(database, tls=True) as pooled:
        for way in pooled:
            measured.crowd[way.name] = asyncio.run(crowd(way, plan))
    with poolers(database) as pooled:
        measured.queue = {way.name: [] for way in pooled}
        for index in range(plan.queue_rounds):
            for way in rotated(pooled, index):
                measured.queue[way.name].append(asyncio.run(queue(way, plan)))
    return measured


def allow_many_files(wanted: int) -> None:
    """For us and for whom we start: a socket per client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    if enough < wanted:
        print(f"Only {enough:,} files may be open here (ulimit -n); the crowd wants {wanted:,}.\n")


def main() -> None:
    """Measure, print, and leave nothing running."""
    arguments = parse_arguments(__doc__)
    plan = QUICK_PLAN if arguments.quick else FULL_PLAN
    allow_many_files(4 * max(plan.crowd, plan.queue_clients))
    with databases("shop") as (database,):
        measured = measure(plan, database)
        described = environment("uvloop", postgres=postgres_version(database))
    found = pgbouncer.find()
    described["PgBouncer"] = pgbouncer.version(found) if found else "not installed"
    report(plan, measured, described)
    write_json(arguments.json, described, as_json(measured))


def as_json(measured: Measured) -> dict[str, Any]:
    """All rounds."""
    return {
        "batches": {str(size): by_way for size, by_way in measured.batches.items()},
        "tiny": {f"{mode}, {clients} clients": by_way for (mode, clients), by_way in measured.tiny.items()},
        "latency_ms": measured.latency_ms,
        "crowd": measured.crowd,
        "queue": measured.queue,
    }


# ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────────


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower, median, upper."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(by_way: dict[str, list[float]], rival: str) -> tuple[float, float, float]:
    """Quartiles of the proxy over a rival, by round."""
    return quartiles([ours / theirs for ours, theirs in zip(by_way[PROXY], by_way[rival], strict=True)])


def spread(found: tuple[float, float, float]) -> str:
    """Median and quartiles."""
    low, middle, high = found
    return f"{middle:.2f} x ({low:.2f} to {high:.2f})"


def print_rates(head: str, rows: dict[str, dict[str, list[float]]], unit: str) -> None:
    """Medians of all ways, and the proxy over each of the others."""
    names = list(next(iter(rows.values())))
    rivals = [name for name in names if name != PROXY]
    print_table(
        [head, *(f"{name}, {unit}" for name in names), *(f"emulator / {rival}" for rival in rivals)],
        [
            [
                label,
                *(number(statistics.median(by_way[name])) for name in names),
                *(spread(ratios(by_way, rival)) for rival in rivals),
            ]
            for label, by_way in rows.items()
        ],
    )


def report(plan: Plan, measured: Measured, described: dict[str, str]) -> None:
    """Print the tables and the goals."""
    print("## RDS Proxy emulator\n")
    print_environment(described)
    rival = PGBOUNCER if PGBOUNCER in measured.latency_ms else None
    if rival is None:
        print(f"PgBouncer is not installed ({pgbouncer.HOW_TO_INSTALL}): compared with direct connections only.\n")
    print(f"Batch writes, {WRITERS} clients, {POOL} database connections.\n")
    print_rates("batch", {f"{size:,}": by_way for size, by_way in measured.batches.items()}, "events/s")
    print("Tiny statements: pgbench -S.\n")
    tiny = {f"{mode}, {_clients(clients)}": by_way for (mode, clients), by_way in measured.tiny.items()}
    print_rates("protocol", tiny, "statements/s")
    added = _print_latency(measured.latency_ms)
    _print_crowd(plan, measured.crowd)
    _print_queue(plan, measured.queue)
    print("Ratios are medians of each round's ratio, quartiles in parentheses.\n")
    _print_goals(plan, measured, added, rival)


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _print_latency(latency_ms: dict[str, list[float]]) -> dict[str, float]:
    """Returns the milliseconds that each way adds to a direct connection."""
    differences = {
        name: [own - direct for own, direct in zip(values, latency_ms[DIRECT], strict=True)]
        for name, values in latency_ms.items()
    }
    print("One statement at a time, 1 client: the median of each block of statements.\n")
    rows = []
    for name, values in latency_ms.items():
        low, middle, high = quartiles(differences[name])
        more = "" if name == DIRECT else f"{middle:.3f} ({low:.3f} to {high:.3f})"
        rows.append([name, f"{statistics.median(values):.3f}", more])
    print_table(["", "p50, ms", "added to direct, ms"], rows)
    return {name: statistics.median(values) for name, values in differences.items()}


def _print_crowd(plan: Plan, measured: dict[str, dict[str, float]]) -> None:
    print(f"{plan.crowd:,} clients on {POOL} database connections; every client ran 5 statements, none failed.\n")
    print_table(
        [
            "",
            "before, MB",
            "per client connected, KB",
            "after statements, KB",
            "CPU when idle",
            "all connected after, s",
        ],
        [
            [
                name,
                number(one["before_mb"]),
                f"{one['connected_kb']:.1f}",
                f"{one['after_kb']:.1f}",
                f"{one['idle_cpu_percent']:.1f} %",
                number(one["connect_s"]),
            ]
            for name, one in measured.items()
        ],
    )


def _print_queue(plan: Plan, measured: dict[str, list[dict[str, float]]]) -> None:
    fair = (plan.queue_clients / POOL - 1) * SLEEP_S
    print(
        f"{plan.queue_clients:,} clients with transactions of {SLEEP_S * 1e3:.0f} ms on {POOL} database connections; "
        f"in strict order everybody waits {number(fair)} s.\n"
    )
    print_table(
        ["wait", "mean, s", "median, s", "max, s", "max / mean", "highest max / mean of a round"],
        [
            [
                name,
                *(number(statistics.median(one[key] for one in rounds)) for key in ("mean_s", "median_s", "max_s")),
                f"{statistics.median(one['max_over_mean'] for one in rounds):.2f}",
                f"{max(one['max_over_mean'] for one in rounds):.2f}",
            ]
            for name, rounds in measured.items()
        ],
    )


def _print_goals(plan: Plan, measured: Measured, added: dict[str, float], rival: str | None) -> None:
    def over_rival(what: str, goal: float, found: Callable[[], dict[str, float]]) -> None:
        if rival is None:
            print(f"- {what}: goal >= {goal} x PgBouncer: not measured, PgBouncer is not installed")
            return
        where, worst = min(found().items(), key=lambda item: item[1])
        print_goal(what, f">= {goal} x PgBouncer", f"{worst:.2f} x at the worst ({where})", reached=worst >= goal)

    over_rival(
        "batch writes",
        BATCH_GOAL,
        lambda: {f"batch {size:,}": ratios(one, PGBOUNCER)[1] for size, one in measured.batches.items()},
    )
    over_rival(
        "tiny statements",
        TINY_GOAL,
        lambda: {
            f"{mode}, {_clients(clients)}": ratios(one, PGBOUNCER)[1] for (mode, clients), one in measured.tiny.items()
        },
    )
    more = added[PROXY]
    print_goal(
        "added to a statement, p50", f"<= {LATENCY_GOAL_MS} ms", f"{more:.3f} ms", reached=more <= LATENCY_GOAL_MS
    )
    memory = measured.crowd[PROXY]["after_kb"]
    print_goal(
        f"memory per client, {plan.crowd:,} of them",
        f"<= {MEMORY_GOAL_KB} KB",
        f"{memory:.1f} KB (with TLS {measured.crowd[PROXY_TLS]['after_kb']:.1f} KB)",
        reached=memory <= MEMORY_GOAL_KB,
    )
    fairness = max(one["max_over_mean"] for one in measured.queue[PROXY])
    print_goal(
        f"waits of {plan.queue_clients:,} clients, max / mean",
        f"<= {FAIRNESS_GOAL:g}",
        f"{fairness:.2f} in the worst round",
        reached=fairness <= FAIRNESS_GOAL,
    )


if __name__ == "__main__":
    main()
