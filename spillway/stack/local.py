"""The local stack: PostgreSQL, RDS Proxy, SQS and the event source mappings of template.yaml, as one thing to start."""

from __future__ import annotations

import logging
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode, urlsplit

import psycopg

from spillway.aws import is_local, sqs_client
from spillway.stack.containers import Bridge, Gateway, access_keys, container_url, find_bridge
from spillway.stack.environment import ExecutionEnvironment
from spillway.stack.errors import StackError
from spillway.stack.event_source import RECEIVERS, EventSourceMapping, MappingConfig
from spillway.stack.metrics import MetricStore
from spillway.stack.postgres import PostgresServer
from spillway.stack.queues import CreatedQueue, create_queues
from spillway.stack.rds_proxy import MAX_CONNECTIONS, Credentials, RdsProxyServer
from spillway.stack.scheduler import ScheduledFunction, rate_s, scheduled_event
from spillway.stack.sqs_server import MinistackServer
from spillway.stack.state import WorkerLogin
from spillway.stack.template import (
    ACCOUNT,
    REGION,
    REPOSITORY,
    TEMPLATE,
    EventSource,
    Fleet,
    Function,
    FunctionSchedule,
    resolve,
    translate,
)
from workers.migrate.roles import LoginRole, ensure_roles
from workers.migrate.runner import load, migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TextIO

    from mypy_boto3_sqs import SQSClient

    from spillway.stack.mapping_stats import MappingStats
    from spillway.stack.processes import Processes

DATABASE = "spillway"

#: Added to every timeout, in seconds. Lambda gives a cold start time of its own before the timeout begins to run; AWS's
#: emulator counts it against the first invocation. The template's chain of times leaves a first attempt one second of
#: slack, and a cold start on a busy machine took 2.5 s: whole batches went back for a visibility timeout.
INIT_S = 5

#: It calls APIs of Lambda, RDS and CloudWatch, which nothing here stands for.
ONLY_ON_AWS = ("governor",)

#: How the workers reach the database: through the RDS Proxy with IAM tokens and verified TLS, as on AWS, or straight,
#: with a password and without TLS.
Route = Literal["proxy", "direct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """How a local stack is to be run. Ports None: any free one. `parameters` override template.yaml's.

    `proxy_connections` is how many database connections the RDS Proxy may have. `workers` are those to run, None for
    all; the others have their queues, and nobody who empties them. What runs on a schedule counts as a worker here.
    `docker` lets containers use the servers, too (containers.py).
    """

    route: Route = "proxy"
    workers: tuple[str, ...] | None = None
    sqs_endpoint: str | None = None
    sqs_port: int | None = None
    postgres_port: int | None = None
    proxy_port: int | None = None
    proxy_connections: int = MAX_CONNECTIONS
    data_dir: Path | None = None
    durable: bool = True
    ramp: bool = True
    docker: bool = False
    template: Path = TEMPLATE
    parameters: Mapping[str, Any] | None = None


class LocalStack:
    """Everything of one template.yaml, running on this machine; what it starts belongs to `processes`.

    `start` and `stop` are for one thread; the rest may be called from any.
    """

    def __init__(self, processes: Processes, options: StackOptions | None = None) -> None:
        self._processes = processes
        self._options = options or StackOptions()
        self._password = secrets.token_urlsafe(24)
        self._outputs: dict[str, TextIO] = {}
        self._output_lock = threading.Lock()
        self.metrics = MetricStore()
        self.mappings: dict[str, EventSourceMapping] = {}
        self.schedules: dict[str, ScheduledFunction] = {}
        self._queues: dict[str, CreatedQueue] = {}
        self.queue_urls: dict[str, str] = {}
        self.postgres: PostgresServer
        self.proxy: RdsProxyServer | None = None
        self.fleet: Fleet
        self.client: SQSClient
        self.endpoint_url = ""
        self.log_dir: Path
        self._sqs_server: MinistackServer | None = None
        self._credentials: Credentials | None = None
        self._log: logging.Handler | None = None
        self._bridge: Bridge | None = None
        self._gateway: Gateway | None = None

    def start(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Start everything, telling `report` what comes next. Raises StackError; the caller then closes `processes`."""
        options = self._options
        self.log_dir = self._processes.temporary_directory("spillway-logs-")
        # The emulator's own troubles, beside the functions' logs; without a handler they would end up on the terminal.
        self._log = logging.FileHandler(self.log_dir / "stack.log", encoding="utf-8")
        logging.getLogger("spillway.stack").addHandler(self._log)
        if options.docker:
            report("Asking Docker for its network")
            self._bridge = find_bridge()
        report("Starting PostgreSQL and the SQS server")
        template = self._start_servers()
        self.fleet = resolve(template, self._parameters())
        report("Migrating the database")
        self._prepare_database()
        report("Creating the queues")
        self._create_queues()
        if options.route == "proxy":
            report("Starting the RDS Proxy")
            self._start_proxy()
            # The functions are told the port that it has got.
            self.fleet = resolve(template, self._parameters())
        if self._bridge is not None:
            self._gateway = Gateway(self._bridge, self._server_ports())
            self._gateway.start()
        report("Starting the event source mappings")
        for source in self._sources():
            queue, function = self.fleet.queues[source.queue], self.fleet.functions[source.function]
            config = MappingConfig(
                queue_url=self.queue_urls[source.queue],
                queue_arn=self._queues[source.queue].arn,
                region=self.client.meta.region_name,
                fifo=queue.fifo,
                batch_size=source.batch_size,
                window_s=source.window_s,
                maximum_concurrency=source.maximum_concurrency,
                report_batch_item_failures=source.report_batch_item_failures,
                function_timeout_s=function.timeout_s,
                ramp=options.ramp,
            )
            mapping = EventSourceMapping(
                config,
                # The mapping backs off by itself; while one batch is deleted, its slot invokes the next.
                partial(self.sqs_client, connections=RECEIVERS + 2 * config.concurrency, attempts=1),
                partial(self._environment, function),
            )
            mapping.start()
            self.mappings[source.logical_id] = mapping
        for schedule in self.scheduled():
            self._start_schedule(schedule)

    def stop(self, *, drain_s: float = 10.0) -> None:
        """Stop receiving, let running invocations end for `drain_s` seconds, give back what is left, end everything."""
        for schedule in self.schedules.values():
            schedule.stop(timeout_s=drain_s)
        self.schedules.clear()
        for mapping in self.mappings.values():
            mapping.stop_receiving()  # all of them at once: each may have a poll to wait for
        for mapping in self.mappings.values():
            mapping.stop(drain=False, timeout_s=drain_s)
        self.mappings.clear()
        if self._gateway is not None:
            self._gateway.stop()
        self._processes.close()
        for output in self._outputs.values():
            output.close()
        if self._log is not None:
            logging.getLogger("spillway.stack").removeHandler(self._log)
            self._log.close()

    @property
    def dsn(self) -> str:
        """The database as its superuser: for psql, not for workers."""
        return self.postgres.dsn(DATABASE)

    @property
    def worker_dsn(self) -> str:
        """The database as the workers see it; through the proxy the password is an IAM token and not in it."""
        if self.proxy is None:
            return self.postgres.dsn(DATABASE, self._user, self._password)
        verify = urlencode({"sslmode": "verify-full", "sslrootcert": str(self.proxy.ca_file)}, safe="/")
        return f"postgresql://{quote(self._user, safe='')}@{self.proxy.host}:{self.proxy.port}/{DATABASE}?{verify}"

    @property
    def access_key(self) -> str:
        """Id of the key that the functions have, and sign their IAM tokens with."""
        return self._function_credentials().access_key

    @property
    def login(self) -> WorkerLogin:
        """How the workers log in to the database, secrets and all."""
        credentials = self._function_credentials()
        server = self.proxy or self.postgres
        return WorkerLogin(
            proxy=self.proxy is not None,
            host=server.host,
            port=server.port,
            database=DATABASE,
            user=self._user,
            password=self._password,
            ca_file=str(self.proxy.ca_file) if self.proxy is not None else None,
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            session_token=credentials.token,
        )

    def functions(self) -> dict[str, str]:
        """The function's name of every worker that is to run, by schedule or by queue."""
        every: list[EventSource | FunctionSchedule] = [*self._sources(), *self.scheduled()]
        return {self.worker_of(one): self.fleet.functions[one.function].name for one in every}

    @property
    def template(self) -> Path:
        """The file that the stack is made of."""
        return self._options.template.absolute()

    def stats(self) -> list[MappingStats]:
        """A snapshot of every mapping."""
        return [mapping.stats for mapping in self.mappings.values()]

    def workers(self) -> dict[str, tuple[str, str]]:
        """Queue and dead-letter queue, by logical id, of every worker that is to run."""
        return {
            self.worker_of(source): (source.queue, self.fleet.queues[source.queue].dead_letter_queue or "")
            for source in self._sources()
        }

    def worker_of(self, source: EventSource | FunctionSchedule) -> str:
        """The worker that `source` feeds, or that a schedule runs: the folder its handler is in."""
        return self.fleet.functions[source.function].handler.split(".")[1]

    def mapping_of(self, worker: str) -> EventSourceMapping:
        """The running mapping of `worker`."""
        return next(self.mappings[source.logical_id] for source in self._sources() if self.worker_of(source) == worker)

    def _sources(self) -> list[EventSource]:
        wanted = self._options.workers
        return [source for source in self.fleet.mappings if wanted is None or self.worker_of(source) in wanted]

    def scheduled(self) -> list[FunctionSchedule]:
        """The schedules of the workers that are to run; those in `schedules` do, under the same logical ids."""
        wanted = self._options.workers
        here = [one for one in self.fleet.schedules if self.worker_of(one) not in ONLY_ON_AWS]
        return [one for one in here if wanted is None or self.worker_of(one) in wanted]

    def _start_schedule(self, schedule: FunctionSchedule) -> None:
        period_s = rate_s(schedule.expression)
        if period_s is None:
            return  # a cron expression; see scheduler.py
        name, text = self.worker_of(schedule), schedule.input
        region = self.client.meta.region_name

        def payload() -> bytes:
            return text.encode() if text is not None else scheduled_event(schedule.logical_id, region, ACCOUNT)

        function = self.fleet.functions[schedule.function]
        scheduled = ScheduledFunction(name, period_s, partial(self._environment, function), payload)
        scheduled.start()
        self.schedules[schedule.logical_id] = scheduled

    def check_alive(self) -> None:
        """Raise StackError if a server of the stack has died."""
        if not self.postgres.running:
            raise _died("PostgreSQL", self.postgres.log_tail())
        if self._sqs_server is not None and not self._sqs_server.running:
            raise _died("The SQS server", self._sqs_server.log_tail())
        if self.proxy is not None and not self.proxy.running:
            raise _died("The RDS Proxy", self.proxy.log_tail())

    def log_tail(self, lines: int = 10) -> str:
        """The last lines that the functions and the RDS Proxy logged."""
        texts = [path.read_text(encoding="utf-8").splitlines() for path in sorted(self.log_dir.glob("*.log"))]
        return "\n".join(line for text in texts for line in text[-lines:])

    def watcher(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A superuser's connection, for `connections` and to look at rows. Raises StackError if PostgreSQL is gone."""
        try:
            return psycopg.connect(self.dsn, autocommit=True)  # pins: allow a direct connection, to watch
        except psycopg.OperationalError as error:  # noticed here before its process is found to be gone
            raise _died("PostgreSQL", self.postgres.log_tail()) from error

    def connections(self, admin: psycopg.Connection[Any]) -> int:
        """How many database connections the workers or their proxy hold. Raises StackError if PostgreSQL is gone."""
        try:
            row = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", (self._user,)).fetchone()
        except psycopg.OperationalError as error:  # noticed here before its process is found to be gone
            raise _died("PostgreSQL", self.postgres.log_tail()) from error
        return int(row[0]) if row else 0

    def _parameters(self) -> dict[str, Any]:
        local: dict[str, Any] = {"DatabaseName": DATABASE, "DatabaseRoute": self._options.route}
        if self._options.route == "direct":
            local |= {
                "DatabaseHost": self.postgres.host,
                "DatabasePort": self.postgres.port,
                "DatabaseAuth": "password",
                "DatabasePassword": self._password,
                "DatabaseSslMode": "disable",
            }
        elif self.proxy is None:
            local |= {"DatabaseHost": "not-started-yet"}
        else:
            # How they log in is the template's default, as deployed.
            local |= {
                "DatabaseHost": self.proxy.host,
                "DatabasePort": self.proxy.port,
                "DatabaseSslRootCert": str(self.proxy.ca_file),
            }
        return local | dict(self._options.parameters or {})

    @property
    def _user(self) -> str:
        return str(self.fleet.parameters["DatabaseUser"])

    def _prepare_database(self) -> None:
        with psycopg.connect(self.postgres.dsn(), autocommit=True) as admin:  # pins: allow a direct connection
            if admin.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                admin.execute(f"CREATE DATABASE {DATABASE}")
        statement_timeout = int(self.fleet.parameters["DatabaseStatementTimeout"])
        login = LoginRole.with_timeouts(self._user, self._password, statement_timeout)
        with psycopg.connect(self.dsn, autocommit=True) as admin:  # pins: allow migrations need a direct connection
            ensure_roles(admin, login)
            migrate(admin, load())

    def _start_servers(self) -> dict[str, Any]:
        """Start PostgreSQL and the SQS server, side by side; return the translated template, read meanwhile."""
        options = self._options
        self.postgres = PostgresServer(
            self._processes, directory=options.data_dir, port=options.postgres_port, durable=options.durable
        )
        if options.sqs_endpoint is None:
            self._sqs_server = MinistackServer(self._processes, options.sqs_port)
        with ThreadPoolExecutor(2) as pool:
            try:
                servers = [pool.submit(server.start) for server in (self.postgres, self._sqs_server) if server]
                template = translate(options.template)
                for server in servers:
                    server.result()
            except BaseException:
                self._processes.close()  # else a Ctrl-C would wait for servers that do not come up
                raise
        self.endpoint_url = options.sqs_endpoint or self._sqs_server.endpoint_url  # type: ignore[union-attr]
        return template

    def _create_queues(self) -> None:
        self.client = self.sqs_client()
        self._queues = create_queues(self.client, self.fleet)
        self.queue_urls = {logical_id: queue.url for logical_id, queue in self._queues.items()}

    def _start_proxy(self) -> None:
        # Fixed for the run: what the proxy verifies with must stay what the functions sign with.
        self._credentials = self._function_credentials()
        self.proxy = RdsProxyServer(
            self._processes,
            target=self.postgres.dsn(DATABASE, self._user, self._password),
            credentials=self._credentials,
            region=self.client.meta.region_name,
            # What the workers believe is what the proxy does.
            borrow_timeout_s=float(self.fleet.parameters["DatabaseBorrowTimeout"]),
            log_file=self.log_dir / "rdsproxy.log",
            port=self._options.proxy_port,
            max_connections=self._options.proxy_connections,
            endpoints=(self._bridge.gateway,) if self._bridge is not None else (),
            access_keys=access_keys() if self._bridge is not None else {},
        )
        self.proxy.start()

    def sqs_client(self, connections: int = 10, attempts: int = 3) -> SQSClient:
        """A client of the stack's SQS endpoint for `connections` threads that tries each call `attempts` times."""
        region = REGION if is_local(self.endpoint_url) else None
        return sqs_client(self.endpoint_url, region, connections=connections, attempts=attempts)

    def container_variables(self) -> dict[str, dict[str, str]]:
        """By logical id, the variables with which a function finds the stack from a container; only with `docker`."""
        if self._bridge is None:
            return {}
        gateway = self._bridge.gateway
        queues = {
            name: replace(queue, url=container_url(queue.url, gateway)) if is_local(queue.url) else queue
            for name, queue in self._queues.items()
        }
        way = {"DATABASE_HOST": gateway}
        if self.proxy is not None:
            # As text: no file of this machine is in the container.
            way["DATABASE_SSLROOTCERT"] = self.proxy.ca_file.read_text(encoding="ascii")
        here = [one for one in self.fleet.schedules if self.worker_of(one) not in ONLY_ON_AWS]
        names = {one.function for one in self.fleet.mappings} | {one.function for one in here}
        return {name: self.fleet.environment(self.fleet.functions[name], queues) | way for name in sorted(names)}

    def _server_ports(self) -> set[int]:
        """Of what containers use; a server elsewhere they reach by themselves."""
        local = {urlsplit(self.endpoint_url).port or 80} if is_local(self.endpoint_url) else set()
        return local | {self.postgres.port if self.proxy is None else self.proxy.port}

    def _environment(self, function: Function) -> ExecutionEnvironment:
        variables = self.fleet.environment(function, self._queues) | self._aws_variables()
        return ExecutionEnvironment(
            self._processes,
            name=function.name,
            handler=function.handler,
            timeout_s=function.timeout_s + INIT_S,
            memory_mb=function.memory_mb,
            env=variables,
            code_dir=REPOSITORY,
            on_output=partial(self._take_output, function.name),
        )

    def _aws_variables(self) -> dict[str, str]:
        """What Lambda gives every function: a region and credentials; here also the way to the local SQS server."""
        credentials = self._function_credentials()
        variables = {
            "AWS_REGION": self.client.meta.region_name,
            "AWS_DEFAULT_REGION": self.client.meta.region_name,
            "AWS_ENDPOINT_URL_SQS": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        }
        return variables | ({"AWS_SESSION_TOKEN": credentials.token} if credentials.token else {})

    def _function_credentials(self) -> Credentials:
        if self._credentials is not None:
            return self._credentials
        signer: Any = self.client._request_signer  # type: ignore[attr-defined]
        frozen = signer._credentials.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    def _take_output(self, function: str, line: str) -> None:
        if self.metrics.feed(line):
            return
        with self._output_lock:
            output = self._outputs.get(function)
            if output is None:
                output = self._outputs[function] = (self.log_dir / f"{function}.log").open("a", encoding="utf-8")
            if not output.closed:
                output.write(line.rstrip("\n") + "\n")
                output.flush()


def _died(server: str, log: str) -> StackError:
    said = f"The end of its log says:\n{log}" if log else "It logged nothing."
    return StackError(f"{server} has died; the stack is stopped.", f"Start it again. {said}")
