"""The emulator's door for people and scripts: metrics, pins and faults over HTTP on 127.0.0.1.

It trusts every program of this machine but no web page: a request must name 127.0.0.1 or localhost as its host (else
a page could reach it by DNS rebinding), and one that changes something must not come from a browser.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import socket
import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from spillway.rdsproxy.metrics import CONTENT_TYPE, Snapshot, render_prometheus
from spillway.rdsproxy.settings import RdsProxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")
log = logging.getLogger("spillway.rdsproxy.admin")

HOST = "127.0.0.1"
#: Larger bodies are refused.
MAX_BODY = 64 * 1024
#: How much of a refused body is still read, so that the client gets to see why.
MAX_DISCARDED = 1024 * 1024
#: How long a client may stay silent, and how long a whole request may take, in seconds.
SILENCE_S = 5.0
REQUEST_S = 30.0
#: How often `close` is looked for, in seconds.
POLL_S = 0.1

PATHS = {
    "/metrics": "metrics for Prometheus",
    "/metrics.json": "metrics, peaks, percentiles and pins as JSON",
    "/pins.json": "the latest pins, oldest first, and their number by rule",
    "/health": "whether the proxy runs, and whether it reaches the database",
}
_ALLOWED_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", re.IGNORECASE)


class AdminServer:
    """Serves a proxy's metrics and takes its faults, in threads of its own. `port` 0: any free port.

    snapshot and faults are called in those threads; faults(name, arguments) answers what the client is to see and may
    raise RdsProxyError.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        faults: Callable[[str, dict[str, Any]], dict[str, Any]],
        fault_names: Sequence[str],
        port: int = 0,
    ) -> None:
        self.snapshot = snapshot
        self.faults = faults
        self.fault_names = tuple(fault_names)
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it answers, once started."""
        return f"http://{HOST}:{self._port}"

    def start(self) -> None:
        """Answer from now on. Raises RdsProxyError if the port is taken."""
        try:
            self._server = _Server(self, self._port)
        except OSError as error:
            raise RdsProxyError(
                f"Cannot listen on the admin port {self._port}: {error.strerror}.",
                "Choose another with --admin-port, or 0 for any that is free.",
            ) from error
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="rdsproxy-admin", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop, and leave no socket and no thread behind; requests under way are cut off."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.cut_off(older_than_s=0)
        self._server.join()
        self._server = self._thread = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, admin: AdminServer, port: int) -> None:
        self.admin = admin
        self._lock = threading.Lock()
        self._requests: dict[threading.Thread, tuple[socket.socket, float]] = {}
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own would ask DNS for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="rdsproxy-admin-request",
            daemon=True,
        )
        with self._lock:
            self._requests[thread] = request, time.monotonic()
            thread.start()

    def service_actions(self) -> None:
        # A client that sends a byte now and then never runs into the socket's own timeout.
        self.cut_off(older_than_s=REQUEST_S)

    def cut_off(self, *, older_than_s: float) -> None:
        """End requests that are older than that, and forget those that have ended."""
        with self._lock:
            self._requests = {thread: request for thread, request in self._requests.items() if thread.is_alive()}
            for request, since in self._requests.values():
                if time.monotonic() - since >= older_than_s:
                    with contextlib.suppress(OSError):  # it has just been closed
                        request.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait for the requests' threads."""
        with self._lock:
            threads = list(self._requests)
        for thread in threads:
            thread.join(SILENCE_S)

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        log.debug("a request failed", exc_info=True)


class _Refused(Exception):
    """Ends a request with a status other than 200."""

    def __init__(self, status: HTTPStatus, error: str, **more: Any) -> None:
        super().__init__(error)
        self.status = status
        self.answer = {"error": error} | more


class _Handler(BaseHTTPRequestHandler):
    timeout = SILENCE_S
    server: _Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def version_string(self) -> str:
        return "spillway"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def send_error(self, code: int, message: str | None = None, _explain: str | None = None) -> None:
        # The base class calls this for what is not HTTP, and for methods that are not ours (501).
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, f"{self.command} is not allowed; use GET or POST"
        status = HTTPStatus(code)
        self._send_json(status, {"error": message or status.phrase})

    def _answer(self, method: Callable[[], None]) -> None:
        try:
            self._check_host()
            method()
        except _Refused as refused:
            self._discard_body()
            self._send_json(refused.status, refused.answer)

    def _check_host(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _ALLOWED_HOST.fullmatch(hosts[0].strip()):
            raise _Refused(HTTPStatus.FORBIDDEN, "The Host header must name 127.0.0.1 or localhost.")

    def _core(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """What the core answers; what it raises becomes a refusal."""
        try:
            return call(*arguments)
        except RdsProxyError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, error.message, hint=error.hint) from error
        except Exception as error:
            log.exception("%s %s failed", self.command, self.path)
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}") from error

    def _snapshot(self) -> Snapshot:
        return self._core(self.server.admin.snapshot)

    def _get(self) -> None:
        match self._path():
            case "/":
                self._send(HTTPStatus.OK, "text/plain; charset=utf-8", self._index().encode())
            case "/health":
                available = self._snapshot().cloudwatch["AvailabilityPercentage"] > 0
                self._send_json(HTTPStatus.OK, {"status": "ok", "database_available": available})
            case "/metrics":
                self._send(HTTPStatus.OK, CONTENT_TYPE, render_prometheus(self._snapshot()).encode())
            case "/metrics.json":
                self._send_json(HTTPStatus.OK, self._snapshot())
            case "/pins.json":
                snapshot = self._snapshot()
                answer = {"by_rule": snapshot.pins_by_rule, "pins": snapshot.pins, "left_out": snapshot.pins_left_out}
                self._send_json(HTTPStatus.OK, answer)
            case path if path.startswith("/faults/"):
                raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "Faults are injected with POST.")
            case _:
                self._not_found()

    def _post(self) -> None:
        if "Origin" in self.headers:
            raise _Refused(HTTPStatus.FORBIDDEN, "Faults are not for web pages (the request has an Origin header).")
        path = self._path()
        if path in {"/", *PATHS}:
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} is read with GET.")
        if not path.startswith("/faults/"):
            self._not_found()
        admin = self.server.admin
        arguments = self._arguments()
        name = unquote(path.removeprefix("/faults/"))
        if name not in admin.fault_names:
            known = ", ".join(admin.fault_names)
            raise _Refused(
                HTTPStatus.NOT_FOUND, f"There is no fault {name!r}.", hint=f"Known: {known}.", faults=admin.fault_names
            )
        self._send_json(HTTPStatus.OK, self._core(admin.faults, name, arguments))

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _not_found(self) -> NoReturn:
        raise _Refused(HTTPStatus.NOT_FOUND, f"There is no {self._path()}.", hint="GET / lists what is here.")

    def _index(self) -> str:
        lines = [f"GET  {path:<14} {what}" for path, what in PATHS.items()]
        lines += [f"POST /faults/{name}" for name in self.server.admin.fault_names]
        return "RDS Proxy emulator\n\n" + "\n".join(lines) + "\n\nA fault takes its arguments as a JSON object.\n"

    def _arguments(self) -> dict[str, Any]:
        """The body, a JSON object; none is an empty one."""
        length = self._content_length()
        if length > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {MAX_BODY} bytes.")
        body = self.rfile.read(length)
        self._body_read = True
        if len(body) < length:
            raise _Refused(HTTPStatus.BAD_REQUEST, "The body is shorter than its Content-Length.")
        try:
            arguments = msgspec.json.decode(body) if body.strip() else {}
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"The body is not JSON: {error}.") from error
        if not isinstance(arguments, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "Expected a JSON object as the body.")
        return arguments

    _body_read = False

    def _content_length(self) -> int:
        if "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Send the body with a Content-Length.")
        values = self.headers.get_all("Content-Length", ["0"])
        if len(set(values)) != 1 or not re.fullmatch(r"[0-9]{1,18}", values[0].strip(), re.ASCII):
            raise _Refused(HTTPStatus.BAD_REQUEST, f"The Content-Length {values[0]!r} is no number.")
        return int(values[0])

    def _discard_body(self) -> None:
        # A socket closed over unread bytes resets the connection, and the client would never see the answer.
        if self._body_read:
            return
        try:
            left = min(self._content_length(), MAX_DISCARDED)
        except _Refused:
            return
        self._body_read = True
        while left > 0 and (chunk := self.rfile.read(min(left, 65536))):
            left -= len(chunk)

    def _send_json(self, status: HTTPStatus, answer: object) -> None:
        self._send(status, "application/json", msgspec.json.encode(answer) + b"\n")

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "POST" if self._path().startswith("/faults/") else "GET")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class AdminClient:
    """Asks a running proxy's admin server. Raises RdsProxyError where it does not answer, or refuses."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if host is None or parts.scheme != "http":
            raise RdsProxyError(f"The admin URL {url!r} is not one.", "Expected one like http://127.0.0.1:9000.")
        self._url = url
        self._host, self._port = host, port or 80

    def snapshot(self) -> Snapshot:
        """What the proxy is doing now."""
        try:
            return msgspec.json.decode(self._ask("GET", "/metrics.json"), type=Snapshot)
        except msgspec.DecodeError as error:
            raise self._stranger() from error

    def fault(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Inject a fault; returns the proxy's answer."""
        try:
            return msgspec.json.decode(
                self._ask("POST", f"/faults/{quote(name, safe='')}", msgspec.json.encode(arguments)),
                type=dict[str, Any],
            )
        except msgspec.DecodeError as error:
            raise self._stranger() from error

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=REQUEST_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise RdsProxyError(
                f"No RDS Proxy emulator answers at {self._url}: {reason}.",
                "Its admin URL is printed when it starts, and in its --ready-file.",
            ) from error
        finally:
            connection.close()
        if answer.status == HTTPStatus.OK:
            return content
        try:
            refusal = msgspec.json.decode(content, type=dict[str, Any])
            raise RdsProxyError(str(refusal["error"]), str(refusal.get("hint", "")))
        except (msgspec.DecodeError, LookupError) as error:
            raise self._stranger() from error

    def _stranger(self) -> RdsProxyError:
        return RdsProxyError(f"What answers at {self._url} is not an RDS Proxy emulator of this version.")
