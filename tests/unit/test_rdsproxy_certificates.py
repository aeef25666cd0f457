"""Certificates, checked by handshakes over the loopback interface: Python's own TLS client, and libpq."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import shutil
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from cryptography import x509

from spillway.rdsproxy import certificates, wire
from spillway.rdsproxy.certificates import Certificates, ensure_certificates, server_context
from spillway.rdsproxy.client_login import ClientLogin
from spillway.rdsproxy.settings import ProxySettings, RdsProxyError, Secret, Target
from spillway.rdsproxy.startup import SslRequest, Startup, StartupBuffer, parse_startup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENDPOINT = "fleet.proxy-abc.eu-west-1.rds.amazonaws.com"
PASSWORD = "correct horse"


class Proxy(threading.Thread):
    """Takes one client after the other into TLS, logs it in, and says it is ready; knows nothing else."""

    def __init__(self, files: Certificates) -> None:
        super().__init__(daemon=True)
        self._context = server_context(files)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.alpn: list[str | None] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                # A client that does not trust us goes away in the middle.
                with client, contextlib.suppress(OSError):
                    client.settimeout(10)
                    self._serve(client)

    def _serve(self, plain: socket.socket) -> None:
        assert parse_startup(self._packet(plain)) == SslRequest()
        plain.sendall(b"S")
        with self._context.wrap_socket(plain, server_side=True) as client:
            self.alpn.append(client.selected_alpn_protocol())
            startup = parse_startup(self._packet(client))
            assert isinstance(startup, Startup)
            target = Target(host="127.0.0.1", port=5432, database="shop", user="owner")
            login = ClientLogin(
                startup,
                secret=Secret(username="spillway_app", password=PASSWORD),
                settings=ProxySettings(target=target),
                tls=True,
            )
            client.sendall(login.start())
            while not login.done:
                client.sendall(login.feed(client.recv(4096)))
            client.sendall(wire.parameter_status("client_encoding", "UTF8") + wire.ready())
            client.recv(4096)

    @staticmethod
    def _packet(client: socket.socket) -> bytes:
        buffer = StartupBuffer()
        while received := client.recv(4096):
            if packet := buffer.feed(received):
                return packet
        raise ConnectionError("the client went away")

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.join(10)


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return ensure_certificates(tmp_path / "certificates", [ENDPOINT])


@pytest.fixture
def proxy(files: Certificates) -> Iterator[Proxy]:
    server = Proxy(files)
    server.start()
    yield server
    server.stop()


def connect(proxy: Proxy, ca_file: Path, host: str, **options: str) -> None:
    """With libpq, as clients do. The name is checked against `host`; the connection goes to this machine."""
    psycopg.connect(
        host=host,
        hostaddr="127.0.0.1",
        port=proxy.port,
        user="spillway_app",
        password=options.pop("password", PASSWORD),
        sslmode="verify-full",
        sslrootcert=str(ca_file),
        connect_timeout=10,
        **options,
    ).close()


def content(files: Certificates) -> list[bytes]:
    return [path.read_bytes() for path in (files.ca_file, files.cert_file, files.key_file)]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", ENDPOINT, ENDPOINT.upper()])
def test_libpq_verifies_the_name_and_logs_in(proxy: Proxy, files: Certificates, host: str) -> None:
    connect(proxy, files.ca_file, host)
    assert proxy.alpn == ["postgresql"]


def test_libpq_refuses_another_name(proxy: Proxy, files: Certificates) -> None:
    with pytest.raises(psycopg.OperationalError, match='does not match host name "db'):
        connect(proxy, files.ca_file, "db.example")


def test_libpq_refuses_another_authority(proxy: Proxy, tmp_path: Path) -> None:
    other = ensure_certificates(tmp_path / "other", [ENDPOINT])
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        connect(proxy, other.ca_file, "localhost")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", ENDPOINT])
def test_python_verifies_the_name(files: Certificates, name: str) -> None:
    assert handshake(files, name, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert handshake(files, name, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"


def test_python_refuses_another_name(files: Certificates) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(files, "db.example", ssl.TLSVersion.TLSv1_3)


def test_old_versions_are_refused(files: Certificates) -> None:
    assert server_context(files).minimum_version == ssl.TLSVersion.TLSv1_2


def handshake(files: Certificates, name: str, version: ssl.TLSVersion) -> str | None:
    """Between two TLS machines in memory; the version agreed on."""
    trusting = ssl.create_default_context(cafile=str(files.ca_file))
    trusting.maximum_version = version
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context(files).wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return client.version()


class TestReuse:
    def test_the_same_names(self, files: Certificates) -> None:
        before = content(files)
        for names in ([ENDPOINT], [], ["localhost"], [ENDPOINT.upper()]):
            assert ensure_certificates(files.ca_file.parent, names) == files
        assert content(files) == before

    def test_a_new_name_keeps_the_authority_and_the_names(self, files: Certificates) -> None:
        before = content(files)
        ensure_certificates(files.ca_file.parent, ["other.example", "::1"])
        assert content(files)[0] == before[0]
        assert content(files)[1] != before[1]
        for name in (ENDPOINT, "other.example", "localhost", "127.0.0.1", "::1"):
            assert handshake(files, name, ssl.TLSVersion.TLSv1_3)

    def test_one_that_ends_soon_is_renewed(self, files: Certificates) -> None:
        before = content(files)
        directory, now = files.ca_file.parent, datetime.now(UTC)
        almost = certificates.LIFETIME - certificates.RENEW_BEFORE
        ensure_certificates(directory, [ENDPOINT], now=now + almost - timedelta(minutes=1))
        assert content(files) == before
        ensure_certificates(directory, [ENDPOINT], now=now + almost + timedelta(minutes=1))
        assert content(files)[0] == before[0]
        assert content(files)[1] != before[1]
        ends = x509.load_pem_x509_certificate(files.cert_file.read_bytes()).not_valid_after_utc
        assert ends - now > certificates.LIFETIME

    @pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem", "server.pem", "server-key.pem"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "cut", "another's"])
    def test_damage_is_repaired(self, files: Certificates, tmp_path: Path, name: str, damage: str) -> None:
        directory = files.ca_file.parent
        path = directory / name
        match damage:
            case "missing":
                path.unlink()
            case "empty":
                path.write_bytes(b"")
            case "cut":
                path.write_bytes(path.read_bytes()[:100])
            case _:
                ensure_certificates(tmp_path / "another", [ENDPOINT])
                shutil.copy(tmp_path / "another" / name, path)
        ensure_certificates(directory, [ENDPOINT])
        assert handshake(files, ENDPOINT, ssl.TLSVersion.TLSv1_3)
        ensure_certificates(directory, ["another.example"])  # needs the authority's key as well
        assert handshake(files, "another.example", ssl.TLSVersion.TLSv1_3)

    def test_one_at_a_time(self, tmp_path: Path) -> None:
        started = threading.Thread(target=ensure_certificates, args=(tmp_path, []))
        with (tmp_path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            started.start()
            started.join(0.3)
            assert started.is_alive()
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        started.join(10)
        assert (tmp_path / "server.pem").exists()

    def test_two_that_start_at_once(self, tmp_path: Path) -> None:
        names = [f"proxy-{number}.example" for number in range(6)]
        context = multiprocessing.get_context("spawn")
        with context.Pool(3) as pool:
            results = pool.starmap(ensure_certificates, [(tmp_path, [name]) for name in names])
        assert len(set(results)) == 1
        for name in names:
            assert handshake(results[0], name, ssl.TLSVersion.TLSv1_3)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            ".lock",
            "ca-key.pem",
            "ca.pem",
            "server-key.pem",
            "server.pem",
        ]


def test_keys_are_the_owners_only(files: Certificates) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files.ca_file.parent.glob("*.pem")}
    assert modes == {"ca.pem": 0o644, "server.pem": 0o644, "ca-key.pem": 0o600, "server-key.pem": 0o600}


@pytest.mark.parametrize("name", ["", "under score", "a..b", "x" * 64])
def test_a_name_that_cannot_be_certified(tmp_path: Path, name: str) -> None:
    with pytest.raises(RdsProxyError, match="cannot be in a certificate"):
        ensure_certificates(tmp_path, [name])


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RdsProxyError, match="cannot be used"):
        ensure_certificates(tmp_path / "file", [])
