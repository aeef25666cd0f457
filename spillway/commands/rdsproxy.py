"""`spillway rdsproxy`: an emulated RDS Proxy in front of any PostgreSQL, in the foreground."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import queue
import shlex
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec
import typer
from rich.console import Console

from spillway import screens
from spillway.interrupts import interrupts
from spillway.rdsproxy.settings import IamAuth, ProxySettings, RdsProxyError, Secret, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spillway.rdsproxy.metrics import Snapshot

LOGGER = "spillway.rdsproxy"
#: Log lines that wait to be written; further ones are dropped while standard error takes none.
MAX_LOG_LINES = 10_000
#: How long the last log lines may take to be written, in seconds.
LAST_LINES_S = 1.0

#: How often to look whether the proxy still runs, in seconds.
_LOOK_S = 0.5

AdminUrl = Annotated[
    str,
    typer.Option(
        envvar="SPILLWAY_RDSPROXY_ADMIN_URL", metavar="URL", help="The proxy's admin URL, printed when it starts."
    ),
]


class RunningProxy(Protocol):
    """What this command needs of a proxy that runs in the background."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def ca_file(self) -> Path | None: ...
    @property
    def admin_url(self) -> str | None: ...
    @property
    def failure(self) -> BaseException | None: ...
    def snapshot(self) -> Snapshot: ...


app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def rdsproxy(
    context: typer.Context,
    *,
    target: Annotated[
        str | None,
        typer.Option(
            envvar="SPILLWAY_RDSPROXY_TARGET",
            show_envvar=True,
            metavar="URL",
            help="The database: postgresql://USER:PASSWORD@HOST:PORT/DATABASE. In the environment its password "
            "is not in the list of processes.",
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 is any.")
    ] = "127.0.0.1:5432",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Allow --listen on an address that other machines reach.")
    ] = False,
    endpoint: Annotated[
        list[str], typer.Option(metavar="NAME", help="A host name of the proxy, for its certificate and IAM tokens.")
    ] = [],  # noqa: B006  (typer copies it)
    secret: Annotated[
        list[Path], typer.Option(metavar="FILE", help="More credentials: JSON as in Secrets Manager. Repeatable.")
    ] = [],  # noqa: B006
    max_connections_percent: Annotated[int, typer.Option(help="The pool's size, of the database's limit.")] = 75,
    max_idle_connections_percent: Annotated[int, typer.Option(help="How many of them may stay idle.")] = 50,
    max_connections: Annotated[int | None, typer.Option(min=1, help="The pool's size itself, instead.")] = None,
    connection_borrow_timeout: Annotated[float, typer.Option(help="Seconds a client waits for a connection.")] = 30.0,
    idle_client_timeout: Annotated[float, typer.Option(help="Seconds after which an idle client is closed.")] = 1800.0,
    client_lifetime: Annotated[float, typer.Option(min=0.01, help="Seconds a client connection lives.")] = 24 * 3600.0,
    init_query: Annotated[str, typer.Option(metavar="SQL", help="Run on every new database connection.")] = "",
    tls: Annotated[bool, typer.Option("--tls/--no-tls", help="Serve TLS to clients that ask for it.")] = True,
    require_tls: Annotated[bool, typer.Option("--require-tls", help="Refuse clients without TLS.")] = False,
    certificate_dir: Annotated[Path | None, typer.Option(help="Keep the certificates here from run to run.")] = None,
    iam_auth: Annotated[IamAuth, typer.Option(help="Whether clients log in with IAM tokens.")] = "disabled",
    region: Annotated[str | None, typer.Option(help="The region that IAM tokens must be for.")] = None,
    max_client_connections: Annotated[int | None, typer.Option(min=1, help="Refuse clients above this.")] = None,
    max_connection_rate: Annotated[
        int | None, typer.Option(min=1, help="Refuse clients above this, per second.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict/--lenient", help="Whether what AWS leaves unsettled is taken to pin, or not to."),
    ] = True,
    admin_port: Annotated[int, typer.Option(min=0, max=65535, help="For metrics and faults; 0 is any.")] = 0,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write host, port, admin URL and CA file here, as JSON, once clients may come.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show a live view instead of log lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No log lines.")] = False,
    seed: Annotated[int, typer.Option(help="Of what the emulator draws by lot.")] = 0,
) -> None:
    """Run an RDS Proxy emulator in front of a PostgreSQL until Ctrl-C.

    It multiplexes, pins, queues and refuses as RDS Proxy does. With --iam-auth required, tokens are verified against
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and further keys in SPILLWAY_RDSPROXY_ACCESS_KEYS: a JSON object, each
    secret by its id. Log lines go to standard error in the shape of RDS Proxy's own.

    Exit status: 0 after Ctrl-C; 1 when it could not start.
    """
    if context.invoked_subcommand is not None:
        return
    if target is None:
        raise typer.BadParameter("name the database with --target or SPILLWAY_RDSPROXY_TARGET.")
    host, port = parse_listen(listen, allow_remote=allow_remote)
    settings = ProxySettings(
        target=Target.parse(target),
        listen_host=host,
        listen_port=port,
        endpoints=tuple(endpoint),
        secrets=read_secrets(secret),
        max_connections_percent=max_connections_percent,
        max_idle_connections_percent=max_idle_connections_percent,
        max_connections=max_connections,
        connection_borrow_timeout=connection_borrow_timeout,
        idle_client_timeout=idle_client_timeout,
        client_lifetime=client_lifetime,
        init_query=init_query,
        strict=strict,
        tls=tls,
        require_tls=require_tls,
        certificate_dir=certificate_dir,
        iam_auth=iam_auth,
        region=region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "",
        credentials=iam_credentials(os.environ) if iam_auth == "required" else {},
        max_client_connections=max_client_connections,
        max_connection_rate=max_connection_rate,
        seed=seed,
    )
    settings.check()
    if iam_auth == "required" and not settings.region:
        raise RdsProxyError("IAM tokens are for one region.", "Name it with --region or AWS_REGION.")
    run(settings, admin_port=admin_port, ready_file=ready_file, watch=watch, quiet=quiet)


@app.command()
def fault(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as `fail-over`; an unknown one lists them all.")],
    arguments: Annotated[list[str], typer.Argument(metavar="KEY=VALUE", help="Such as outage=5.")] = [],  # noqa: B006
    *,
    admin_url: AdminUrl,
) -> None:
    """Inject a fault into a running proxy.

    Exit status: 0; 1 when the proxy refuses it, or none answers.
    """
    from spillway.rdsproxy.admin import AdminClient  # noqa: PLC0415

    answer = AdminClient(admin_url).fault(name, dict(map(_argument, arguments)))
    typer.echo(msgspec.json.encode(answer))


@app.command(name="watch")
def watch_command(*, admin_url: AdminUrl) -> None:
    """Show a live view of a running proxy until Ctrl-C.

    Exit status: 0 after Ctrl-C; 1 when no proxy answers, or no longer.
    """
    from spillway.rdsproxy.admin import AdminClient  # noqa: PLC0415
    from spillway.rdsproxy.watch import watch  # noqa: PLC0415

    with interrupts() as interrupted:
        watch(AdminClient(admin_url).snapshot, screens.console(), interrupted)


def run(settings: ProxySettings, *, admin_port: int, ready_file: Path | None, watch: bool, quiet: bool) -> None:
    """Run a proxy in the foreground until interrupted."""
    from spillway.rdsproxy.background import BackgroundProxy  # noqa: PLC0415  (uvloop and TLS, 0.2 s)
    from spillway.rdsproxy.watch import watch as show  # noqa: PLC0415

    console = screens.console()
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(interrupts())
        stack.enter_context(log_lines(enabled=not (quiet or watch)))
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)  # an earlier run's would be taken for this one's
        proxy = stack.enter_context(BackgroundProxy(settings, admin_port=admin_port))
        describe(proxy, settings, console)
        if ready_file is not None:
            write_ready_file(ready_file, proxy)
            stack.callback(ready_file.unlink, missing_ok=True)
        if watch:
            show(proxy.snapshot, console, interrupted)
            console.print()
        else:
            while proxy.failure is None and not interrupted.wait(_LOOK_S):
                pass
        if proxy.failure is not None:
            raise proxy.failure
        console.print(closing_words(proxy.snapshot()), markup=False, soft_wrap=True)


def describe(proxy: RunningProxy, settings: ProxySettings, console: Console) -> None:
    """Print where the proxy listens and how to connect to it."""
    from spillway.rdsproxy.metrics import target_url  # noqa: PLC0415

    size = proxy.snapshot().cloudwatch["MaxDatabaseConnectionsAllowed"]
    dsn = example_dsn(proxy, settings)
    facts = {
        "RDS Proxy": f"[{proxy.host}]:{proxy.port}" if ":" in proxy.host else f"{proxy.host}:{proxy.port}",
        "target": target_url(settings.target),
        "pool": f"{size:,.0f} database connections, {settings.connection_borrow_timeout:g} s to borrow one",
        "TLS": f"{'required' if settings.require_tls else 'optional'}, CA file {proxy.ca_file}"
        if proxy.ca_file is not None
        else "off",
        "psql": f"psql {shlex.quote(dsn)}",
        "psycopg": f"psycopg.connect({dsn!r}, prepare_threshold=None)",
        "admin": f"{proxy.admin_url}  (spillway rdsproxy watch, spillway rdsproxy fault)",
    }
    if settings.iam_auth == "required":
        facts["login"] = f"IAM tokens for {settings.region}"
    for name, fact in facts.items():
        console.print(f"{name:<10} {fact}", soft_wrap=True, markup=False)
    console.print("Ctrl-C stops.\n")


def example_dsn(proxy: RunningProxy, settings: ProxySettings) -> str:
    """How a client on this machine connects, without the password."""
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    host = {"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(proxy.host, proxy.host)  # noqa: S104  (not listened on)
    parameters: dict[str, Any] = {"host": host, "port": proxy.port}
    if settings.endpoints:
        parameters |= {"host": settings.endpoints[0], "hostaddr": "127.0.0.1" if host == "localhost" else host}
    parameters |= {"dbname": settings.target.database, "user": settings.target.user}
    if proxy.ca_file is not None:
        parameters |= {"sslmode": "verify-full", "sslrootcert": str(proxy.ca_file)}
    return make_conninfo("", **parameters)


def closing_words(snapshot: Snapshot) -> str:
    """What the proxy did, in a few lines."""
    from spillway.rdsproxy.watch import without_digest  # noqa: PLC0415

    value, peaks = snapshot.cloudwatch, snapshot.peaks
    lines = [
        f"served {value['ClientConnectionsSetupSucceeded']:,.0f} clients and {value['QueryRequests']:,.0f} requests "
        f"with at most {peaks.database_connections:,} of {value['MaxDatabaseConnectionsAllowed']:,.0f} "
        f"database connections"
    ]
    if snapshot.borrow_timeouts:
        lines.append(f"{snapshot.borrow_timeouts:,} requests timed out waiting for a database connection")
    if not snapshot.pinned_sessions_total:
        lines.append("no session was pinned")
    else:
        reasons = {pin.rule: without_digest(pin.reason) for pin in snapshot.pins}
        lines.append(f"{snapshot.pinned_sessions_total:,} sessions were pinned:")
        by_count = sorted(snapshot.pins_by_rule.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"  {count:>6,}  {reasons.get(rule, rule)}" for rule, count in by_count]
    return "\n".join(lines)


def parse_listen(listen: str, *, allow_remote: bool) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises RdsProxyError, also for a host that is not this machine's own alone."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not (colon and host and port.isascii() and port.isdecimal()) or (":" in host and "[" not in listen):
        raise RdsProxyError(f"--listen {listen!r} is not an address.", "Expected HOST:PORT, such as 127.0.0.1:5432.")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host.lower() == "localhost"
    if not loopback and not allow_remote:
        raise RdsProxyError(
            f"--listen {listen} could be reached from other machines.",
            "The emulator is made for one machine; --allow-remote says that this is meant.",
        )
    return host, int(port)


class _SecretFile(msgspec.Struct, frozen=True):
    # Secrets Manager's own have more keys (engine, host, dbname ...), which RDS Proxy does not read either.
    username: str
    password: str
    database_username: str | None = None
    database_password: str | None = None


def read_secrets(files: Sequence[Path]) -> tuple[Secret, ...]:
    """Credentials from JSON files. Raises RdsProxyError that names the file and the key, and never shows a value."""
    secrets: dict[str, Secret] = {}
    for file in files:
        hint = 'Expected JSON like {"username": "app", "password": "..."}.'
        try:
            found = msgspec.json.decode(file.read_bytes(), type=_SecretFile)
        except OSError as error:
            raise RdsProxyError(f"Cannot read the secret {file}: {error.strerror}.") from error
        except msgspec.DecodeError as error:
            raise RdsProxyError(f"The secret {file} is not as expected: {error}.", hint) from error
        if not found.username:
            raise RdsProxyError(f"The secret {file} is not as expected: `username` is empty.", hint)
        if found.database_password is not None and not found.database_username:
            raise RdsProxyError(f"The secret {file} has `database_password` without `database_username`.")
        if found.username in secrets:
            raise RdsProxyError(f"The secret {file} is the second one for user {found.username!r}.")
        secrets[found.username] = Secret(
            username=found.username,
            password=found.password,
            database_username=found.database_username,
            database_password=found.database_password,
        )
    return tuple(secrets.values())


def iam_credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Secret access keys by id: the one that AWS's tools find here, if any, and further ones of our own variable.

    Raises RdsProxyError, which shows no key, where that is not as expected.
    """
    try:
        found = msgspec.json.decode(environ.get("SPILLWAY_RDSPROXY_ACCESS_KEYS") or "{}", type=dict[str, str])
    except msgspec.DecodeError as error:
        raise RdsProxyError(
            f"SPILLWAY_RDSPROXY_ACCESS_KEYS is not as expected: {error}.", 'Expected JSON like {"AKIA...": "secret"}.'
        ) from None
    key_id, key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    return found | ({key_id: key} if key_id and key else {})


def write_ready_file(path: Path, proxy: RunningProxy) -> None:
    """Say in one step that clients may come, and where to."""
    content = msgspec.json.encode(
        {
            "host": proxy.host,
            "port": proxy.port,
            "admin_url": proxy.admin_url,
            "ca_file": None if proxy.ca_file is None else str(proxy.ca_file),
            "pid": os.getpid(),
        }
    )
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content + b"\n")
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RdsProxyError(f"Cannot write --ready-file {path}: {error.strerror}.") from error


class AwsFormatter(logging.Formatter):
    """RDS Proxy's shape: 2026-11-21T10:00:00.000Z [WARN] [proxyEndpoint=default] [clientConnection=7] Text."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a line break in a message (in a client's name, say) cannot forge a second one."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text} {self.formatException(record.exc_info)}"
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return f"{seconds}.{int(record.msecs):03}Z [{level}] [proxyEndpoint=default] {line}"


class _ThreadedHandler(logging.Handler):
    """Writes to standard error from a thread; drops lines rather than stop the proxy while nobody reads them."""

    def __init__(self) -> None:
        super().__init__()
        self._output = logging.StreamHandler(sys.stderr)
        self._output.setFormatter(AwsFormatter())
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(MAX_LOG_LINES)
        self._thread = threading.Thread(target=self._write, name="rdsproxy-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(record)

    def close(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._lines.put(None, timeout=LAST_LINES_S)
                self._thread.join(LAST_LINES_S)
        super().close()

    def _write(self) -> None:
        for record in iter(self._lines.get, None):
            self._output.handle(record)


@contextlib.contextmanager
def log_lines(*, enabled: bool) -> Iterator[None]:
    """Within, the proxy's log lines go to standard error, from a thread of their own; or nowhere."""
    logger = logging.getLogger(LOGGER)
    handler: logging.Handler = _ThreadedHandler() if enabled else logging.NullHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if enabled else logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def _argument(text: str) -> tuple[str, object]:
    """KEY=VALUE; the value is JSON if it reads as such, else a string."""
    name, equals, value = text.partition("=")
    if not (equals and name):
        raise RdsProxyError(f"The argument {text!r} has no value.", "Expected KEY=VALUE, such as outage=5.")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value
