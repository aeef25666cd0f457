"""The emulator's admin server over real HTTP: what it answers, whom it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from spillway.rdsproxy import admin
from spillway.rdsproxy.admin import MAX_BODY, AdminClient, AdminServer
from spillway.rdsproxy.metrics import Metrics, PinRecord, Snapshot, render_prometheus
from spillway.rdsproxy.settings import RdsProxyError, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTS = ("fail-over", "clear", "broken")


class Gauges:
    client_connections = 3
    database_connections = borrowed = in_transaction = session_pinned = waiting = 1
    max_database_connections = 75
    available = True


class Core:
    """What the proxy's core gives to the server."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.gauges = Gauges()
        self.injected: list[tuple[str, dict[str, Any]]] = []
        self.failing = False
        self.metrics.record_pin(PinRecord("set", "r", "documented", "SET x", "u", "d", "a", "c", 1, 1.0))

    def snapshot(self) -> Snapshot:
        if self.failing:
            raise TimeoutError("the event loop is stuck")
        target = Target(host="127.0.0.1", port=5433, database="orders", user="app", password="hunter2")
        return self.metrics.snapshot(self.gauges, proxy="default", endpoint="127.0.0.1:5432", target=target)

    def fault(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if name == "broken":
            raise OSError("no such thing")
        if "outage" in arguments and arguments["outage"] < 0:
            raise RdsProxyError("outage: expected 0 or more.", "Try outage=5.")
        self.injected.append((name, arguments))
        return {"injected": name}


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def server(core: Core) -> Iterator[AdminServer]:
    one = AdminServer(core.snapshot, core.fault, FAULTS)
    one.start()
    yield one
    one.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rdsproxy-admin")]


def port_of(server: AdminServer) -> int:
    return int(server.url.rpartition(":")[2])


def ask(
    server: AdminServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=10)
    try:
        connection.request(method, path, body, headers={name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def raw(server: AdminServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_metrics_for_prometheus(server: AdminServer, core: Core) -> None:
    status, body, headers = ask(server, "GET", "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    names = [line.split("{")[0] for line in body.decode().splitlines()]
    assert names == [line.split("{")[0] for line in render_prometheus(core.snapshot()).splitlines()]


def test_metrics_as_json(server: AdminServer) -> None:
    status, body, headers = ask(server, "GET", "/metrics.json?pretty")
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    assert msgspec.json.decode(body, type=Snapshot).cloudwatch["ClientConnections"] == 3
    assert b"hunter2" not in body


def test_pins_health_and_what_is_here(server: AdminServer, core: Core) -> None:
    pins = json.loads(ask(server, "GET", "/pins.json")[1])
    assert pins["by_rule"] == {"set": 1}
    assert [one["sql"] for one in pins["pins"]] == ["SET x"]
    assert pins["left_out"] == 0
    assert json.loads(ask(server, "GET", "/health")[1]) == {"status": "ok", "database_available": True}
    core.gauges.available = False
    status, body, _ = ask(server, "GET", "/health")
    assert (status, json.loads(body)["database_available"]) == (200, False)
    index = ask(server, "GET", "/")[1].decode()
    for path in ("/metrics", "/metrics.json", "/pins.json", "/health", *(f"/faults/{name}" for name in FAULTS)):
        assert path in index


def test_a_fault_reaches_the_core(server: AdminServer, core: Core) -> None:
    status, body, _ = ask(server, "POST", "/faults/fail-over", b'{"outage": 2.5}')
    assert (status, json.loads(body)) == (200, {"injected": "fail-over"})
    assert ask(server, "POST", "/faults/clear")[0] == 200
    assert ask(server, "POST", "/faults/cle%61r", b" \n")[0] == 200
    assert core.injected == [("fail-over", {"outage": 2.5}), ("clear", {}), ("clear", {})]


def test_a_fault_the_core_refuses(server: AdminServer) -> None:
    status, body, _ = ask(server, "POST", "/faults/fail-over", b'{"outage": -1}')
    assert (status, json.loads(body)) == (400, {"error": "outage: expected 0 or more.", "hint": "Try outage=5."})


def test_an_unknown_fault_lists_the_known(server: AdminServer, core: Core) -> None:
    status, body, _ = ask(server, "POST", "/faults/fail-ovre", b"{}")
    assert status == 404
    assert json.loads(body)["faults"] == list(FAULTS)
    assert "fail-over, clear" in json.loads(body)["hint"]
    assert not core.injected


@pytest.mark.parametrize("body", [b"[1]", b"null", b"3", b"{", b'{"a": NaN}', b"\xff", b"[" * 60_000])
def test_a_body_that_is_no_object(server: AdminServer, core: Core, body: bytes) -> None:
    assert ask(server, "POST", "/faults/clear", body)[0] == 400
    assert not core.injected


def test_what_the_core_fails_at_is_answered(server: AdminServer, core: Core) -> None:
    status, body, _ = ask(server, "POST", "/faults/broken", b"{}")
    assert (status, json.loads(body)) == (500, {"error": "OSError: no such thing"})
    core.failing = True
    status, body, _ = ask(server, "GET", "/metrics.json")
    assert (status, json.loads(body)) == (500, {"error": "TimeoutError: the event loop is stuck"})


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/faults", "/../etc/passwd"])
def test_unknown_paths(server: AdminServer, path: str) -> None:
    assert ask(server, "GET", path)[0] == ask(server, "POST", path)[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/faults/clear", "POST"),
        ("GET", "/faults/clear", "POST"),
        ("DELETE", "/metrics", "GET"),
        ("POST", "/metrics", "GET"),
        ("OPTIONS", "/faults/clear", "POST"),
        ("BREW", "/", "GET"),
    ],
)
def test_other_methods(server: AdminServer, core: Core, method: str, path: str, allowed: str) -> None:
    status, body, headers = ask(server, method, path, b"{}" if method in {"PUT", "POST"} else None)
    assert (status, headers["Allow"]) == (405, allowed)
    assert json.loads(body)["error"]
    assert not core.injected


def test_head_has_no_body(server: AdminServer) -> None:
    answer = raw(server, b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b" 405 " in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:{port}", "LocalHost", "127.0.0.1:1"])
def test_hosts_of_this_machine(server: AdminServer, host: str) -> None:
    assert ask(server, "GET", "/health", Host=host.format(port=port_of(server)))[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "127.0.0.1:80:80", "127.0.0.1@evil", "", "[::1]"],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/metrics"), ("POST", "/faults/clear")])
def test_other_hosts_are_refused(server: AdminServer, core: Core, host: str, method: str, path: str) -> None:
    status, body, _ = ask(server, method, path, b"{}" if method == "POST" else None, Host=host)
    assert status == 403
    assert b"rds_proxy" not in body
    assert not core.injected


def test_no_host_and_two_hosts_are_refused(server: AdminServer) -> None:
    assert b" 403 " in raw(server, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert b" 403 " in raw(server, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ""])
def test_web_pages_inject_no_faults(server: AdminServer, core: Core, origin: str) -> None:
    assert ask(server, "POST", "/faults/clear", b"{}", Origin=origin)[0] == 403
    assert not core.injected


def test_large_bodies_are_refused_in_words(server: AdminServer, core: Core) -> None:
    padding = b'{"a": "%s"}'
    assert ask(server, "POST", "/faults/clear", padding % (b"x" * (MAX_BODY - 9)))[0] == 200
    status, body, _ = ask(server, "POST", "/faults/clear", padding % (b"x" * (MAX_BODY - 8)))
    assert (status, len(core.injected)) == (413, 1)
    assert "65536" in json.loads(body)["error"]
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=10) as client:
        client.sendall(_post(b"Content-Length: 600000"))
        for _ in range(10):  # a client that does not look before it has sent everything
            client.sendall(b"x" * 60_000)
            time.sleep(0.02)
        assert b" 413 " in client.recv(65536)
    assert b" 413 " in raw(server, _post(b"Content-Length: 900000000000") + b"x" * 2_000_000)


def _post(header: bytes) -> bytes:
    return b"POST /faults/clear HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n"


@pytest.mark.parametrize("length", [b"-1", b"many", b"1_0", b"\xb2", b"", b"1" * 30])
def test_lengths_that_are_none(server: AdminServer, core: Core, length: bytes) -> None:
    assert b" 400 " in raw(server, _post(b"Content-Length: " + length))
    assert not core.injected


def test_bodies_of_unknown_length(server: AdminServer) -> None:
    assert b" 411 " in raw(server, _post(b"Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n")


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n"])
def test_garbage_does_not_hurt(server: AdminServer, garbage: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    raw(server, garbage)
    assert ask(server, "GET", "/health")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_silent_client_is_dropped(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin._Handler, "timeout", 0.2)
    one = AdminServer(core.snapshot, core.fault, FAULTS)
    one.start()
    try:
        with socket.create_connection(("127.0.0.1", port_of(one)), timeout=10) as silent:
            silent.sendall(_post(b"Content-Length: 10")[:-10])
            assert silent.recv(100) == b""
            assert ask(one, "GET", "/health")[0] == 200
    finally:
        one.close()


def test_a_slow_client_is_dropped(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "REQUEST_S", 0.3)
    one = AdminServer(core.snapshot, core.fault, FAULTS)
    one.start()
    try:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port_of(one)), timeout=10) as slow, suppress(ConnectionError):
            while time.monotonic() - began < 8:
                slow.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 4
    finally:
        one.close()


def test_closing_cuts_off_who_is_connected_and_frees_the_port(core: Core) -> None:
    one = AdminServer(core.snapshot, core.fault, FAULTS)
    one.start()
    port = port_of(one)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as idle:
        ask(one, "GET", "/health")
        began = time.monotonic()
        one.close()
        assert time.monotonic() - began < 2
        assert idle.recv(100) == b""
    one.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    again = AdminServer(core.snapshot, core.fault, FAULTS, port)
    again.start()
    assert port_of(again) == port
    again.close()


def test_closing_waits_for_the_fault_under_way(core: Core) -> None:
    began = threading.Event()

    def slow(_name: str, _arguments: dict[str, Any]) -> dict[str, Any]:
        began.set()
        time.sleep(0.5)
        ended.append(True)
        return {}

    ended: list[bool] = []
    one = AdminServer(core.snapshot, slow, FAULTS)
    one.start()
    with socket.create_connection(("127.0.0.1", port_of(one)), timeout=10) as client:
        client.sendall(_post(b"Content-Length: 0"))
        assert began.wait(10)
        one.close()
    assert ended


def test_it_listens_on_this_machine_only(server: AdminServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert server._server is not None
    assert server._server.socket.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_is_explained(server: AdminServer, core: Core) -> None:
    second = AdminServer(core.snapshot, core.fault, FAULTS, port_of(server))
    with pytest.raises(RdsProxyError, match="--admin-port"):
        second.start()
    second.close()


def test_many_at_once(server: AdminServer) -> None:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(ask(server, "GET", "/metrics")[0])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 20


def test_the_client_asks_and_injects(server: AdminServer, core: Core) -> None:
    client = AdminClient(server.url + "/")
    assert client.snapshot().pins == core.snapshot().pins
    assert client.fault("fail-over", {"outage": 1}) == {"injected": "fail-over"}
    assert core.injected == [("fail-over", {"outage": 1})]
    with pytest.raises(RdsProxyError) as refused:
        client.fault("fail-over", {"outage": -1})
    assert (refused.value.message, refused.value.hint) == ("outage: expected 0 or more.", "Try outage=5.")
    with pytest.raises(RdsProxyError, match=r"no fault 'a/b\?'\. Known: fail-over"):
        client.fault("a/b?", {})


def test_the_client_of_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RdsProxyError, match=r"No RDS Proxy emulator answers at .*: Connection refused"):
        AdminClient(f"http://127.0.0.1:{port}").snapshot()


@pytest.mark.parametrize("url", ["127.0.0.1:9000", "ftp://127.0.0.1", "http://", "http://[", "http://a:b", ""])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(RdsProxyError, match="Expected one like"):
        AdminClient(url)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.0 200 OK\r\n\r\n{}", b"HTTP/1.0 200 OK\r\n\r\nhello", b"HTTP/1.0 500 No\r\n\r\n<html>", b"SSH-2.0\r\n"],
)
def test_the_client_of_something_else(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(RdsProxyError, match="emulator"):
            AdminClient(f"http://127.0.0.1:{listener.getsockname()[1]}").snapshot()
        serving.join()
