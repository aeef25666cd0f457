"""What lets containers use the local stack, without Docker: another loopback address stands for its gateway."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import json
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from spillway.aws import sqs_client
from spillway.stack import containers
from spillway.stack.containers import (
    SAM_DEFAULT_KEY,
    Bridge,
    Gateway,
    access_keys,
    container_url,
    find_bridge,
    write_variables,
)
from spillway.stack.errors import StackError
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.ports import free_port
from spillway.stack.processes import Processes
from tests.stack.commands import command_line
from workers.runtime.iam_token import rds_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOPBACK = Bridge("127.0.0.2", ipaddress.ip_network("127.0.0.0/8"))


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server on 127.0.0.1 that sends everything back, once the client has said all."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.sendall(b"".join(iter(partial(client.recv, 65_536), b"")))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_bytes_go_both_ways_whole(echo: int) -> None:
    """Also after one side has said that it is done."""
    said = bytes(range(256)) * 8192
    with Gateway(LOOPBACK, {echo}), socket.create_connection((LOOPBACK.gateway, echo), timeout=10) as client:
        sender = threading.Thread(target=lambda: (client.sendall(said), client.shutdown(socket.SHUT_WR)))
        sender.start()
        heard = b"".join(iter(lambda: client.recv(65_536), b""))
        sender.join()
    assert heard == said


def test_who_is_no_container_is_turned_away(echo: int) -> None:
    bridge = Bridge(LOOPBACK.gateway, ipaddress.ip_network("127.0.0.2/31"))
    with Gateway(bridge, {echo}):
        for address, expected in (("127.0.0.3", b"hello"), ("127.0.0.1", b"")):
            with socket.create_connection((bridge.gateway, echo), timeout=10, source_address=(address, 0)) as client:
                heard = b""
                try:
                    client.sendall(b"hello")
                    client.shutdown(socket.SHUT_WR)
                    heard = client.recv(100)
                except OSError:  # hung up before, or after, what was sent
                    pass
                assert heard == expected, address


def test_stopping_hangs_up_and_frees_the_port(echo: int) -> None:
    gateway = Gateway(LOOPBACK, {echo})
    gateway.start()
    with socket.create_connection((LOOPBACK.gateway, echo), timeout=10) as client:
        client.sendall(b"half a word")
        gateway.stop()
        gateway.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK.gateway, echo), timeout=10)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
    with Gateway(LOOPBACK, {echo}):
        pass


def test_stopping_in_the_moment_that_somebody_comes_in_hangs_up_on_them(echo: int) -> None:
    # A socket that is forgotten is a ResourceWarning, which fails the test.
    for _ in range(50):
        gateway = Gateway(LOOPBACK, {echo})
        gateway.start()
        with socket.create_connection((LOOPBACK.gateway, echo), timeout=10) as client:
            gateway.stop()
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(100) == b""
    gc.collect()


def test_a_server_that_is_gone_is_hung_up_on() -> None:
    port = free_port()
    with Gateway(LOOPBACK, {port}), socket.create_connection((LOOPBACK.gateway, port), timeout=10) as client:
        assert client.recv(100) == b""


def test_a_taken_port_and_a_foreign_address_are_refused(echo: int) -> None:
    with socket.create_server((LOOPBACK.gateway, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=rf"cannot be let in at 127\.0\.0\.2:{port}: .*in use"):
            Gateway(LOOPBACK, {port}).start()
    with pytest.raises(StackError, match=r"cannot be let in at 192\.0\.2\.1"):
        Gateway(Bridge("192.0.2.1", ipaddress.ip_network("192.0.2.0/24")), {echo}).start()


@pytest.mark.parametrize(
    ("configuration", "gateway"),
    [
        ({"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}, "172.17.0.1"),
        ({"Subnet": "172.17.0.0/16"}, "172.17.0.1"),
        ({"Subnet": "192.168.5.0/24", "Gateway": ""}, "192.168.5.1"),
        ({"Subnet": "192.168.5.0/24", "Gateway": "192.168.5.254"}, "192.168.5.254"),
    ],
)
def test_the_gateway_is_what_docker_says_or_the_first_address(configuration: dict[str, str], gateway: str) -> None:
    bridge = containers._bridge_of({"IPAM": {"Config": [configuration]}})
    assert (bridge.gateway, str(bridge.subnet)) == (gateway, configuration["Subnet"])


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # Docker's client forgets the socket it failed with
def test_without_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(StackError, match="Docker does not answer") as error:
        find_bridge()
    assert "leave --docker out" in str(error.value.hint)
    del error
    gc.collect()


def test_the_keys_that_sam_may_give_to_functions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from samcli.local.lambdafn.env_vars import EnvironmentVariables  # noqa: PLC0415  (slow)

    default = EnvironmentVariables._DEFAULT_AWS_CREDS
    assert (default["key"], default["secret"]) == SAM_DEFAULT_KEY

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert access_keys() == dict([SAM_DEFAULT_KEY])

    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = file\naws_secret_access_key = of a file\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert access_keys() == dict([SAM_DEFAULT_KEY, ("file", "of a file")])

    monkeypatch.setenv("AWS_PROFILE", "unknown")
    assert access_keys() == dict([SAM_DEFAULT_KEY])

    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "shell")
    assert access_keys() == dict([SAM_DEFAULT_KEY]), "half a key is none"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the shell")
    assert access_keys() == dict([SAM_DEFAULT_KEY, ("shell", "of the shell")])


def test_the_variables_are_private_and_go_with_their_folder(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    path = tmp_path / ".aws-sam/local-env.json"
    write_variables(path, {"F": {"A": "line\nline"}}, private)
    assert json.loads(path.read_text()) == {"F": {"A": "line\nline"}}
    assert path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    write_variables(path, {"F": {}}, private)  # another stack's, or what an interrupted one left
    assert json.loads(path.read_text()) == {"F": {}}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match=r"Cannot write .*file/x"):
        write_variables(tmp_path / "file/x", {}, private)


def test_a_url_for_containers() -> None:
    url = "http://127.0.0.1:4566/000000000000/spillway-orders"
    assert container_url(url, "172.17.0.1") == "http://172.17.0.1:4566/000000000000/spillway-orders"


@pytest.mark.parametrize("route", ["proxy", "direct"])
def test_the_variables_lead_to_the_stack(route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the database as SAM's default key may log in, with TLS verified for the gateway's name, and to the queues."""
    monkeypatch.setattr("spillway.stack.local.find_bridge", lambda: LOOPBACK)
    with Processes() as processes:
        stack = LocalStack(processes, StackOptions(route=route, docker=True, workers=(), durable=False))
        stack.start()
        variables = stack.container_variables()
        assert {source.function for source in stack.fleet.mappings} <= set(variables)
        found = variables["OrdersConsumer"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", SAM_DEFAULT_KEY[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SAM_DEFAULT_KEY[1])
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
        host, port, user = found["DATABASE_HOST"], int(found["DATABASE_PORT"]), found["DATABASE_USER"]
        assert host == LOOPBACK.gateway
        authorities = processes.temporary_directory("authorities-") / "ca.pem"
        authorities.write_text(found.get("DATABASE_SSLROOTCERT", ""))
        with psycopg.connect(
            host=host,
            port=port,
            dbname=found["DATABASE_NAME"],
            user=user,
            password=found["DATABASE_PASSWORD"] or rds_token(host, port, user, "us-east-1"),
            sslmode=found["DATABASE_SSLMODE"],
            sslrootcert=str(authorities) if route == "proxy" else None,
        ) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (user,)
        for url in (found["QUEUE_URL"], found["DEAD_LETTER_QUEUE_URL"]):
            endpoint = url.partition("/0000")[0]
            assert endpoint.startswith(f"http://{LOOPBACK.gateway}:")
            sqs_client(endpoint, "us-east-1").send_message(QueueUrl=url, MessageBody="from a container")
        assert (found["DATABASE_SSLMODE"], found["DATABASE_AUTH"]) == (
            ("verify-full", "iam") if route == "proxy" else ("disable", "password")
        )
        stack.stop()


def test_up_says_what_is_missing(tmp_path: Path) -> None:
    with command_line() as shell:
        shell.env["DOCKER_HOST"] = f"unix://{tmp_path}/none.sock"
        up = shell.run("up", "--docker")
        assert up.returncode == 1
        assert "Docker does not answer" in up.stdout
        named = shell.run("up", "--env-vars", "x.json")
        assert named.returncode == 1
        assert "only --docker lets in" in named.stdout
