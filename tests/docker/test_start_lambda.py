"""`sam local start-lambda`, with boto3 as the caller: every broken body, in containers that stay warm."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import boto3
import docker
import pytest
from botocore.config import Config

from spillway.contracts import CONTRACTS
from spillway.samples import of_worker
from spillway.stack.ports import free_port
from spillway.stack.template import REPOSITORY
from tests.docker.conftest import OVERRIDES, take_dead_letters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.stack.local import LocalStack
    from tests.docker.conftest import Checkout, Variables

START_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def endpoint(
    built: Checkout, variables: Variables, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Where `sam local start-lambda` answers, and its process."""
    port, log = free_port(), tmp_path_factory.mktemp("start-lambda") / "sam.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["sam", "local", "start-lambda", "--port", str(port), "--env-vars", variables.write(), *OVERRIDES],
            cwd=built.folder,
            env=built.shell,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", server
    finally:
        end(server)


@pytest.fixture(scope="module")
def client(endpoint: tuple[str, subprocess.Popen[bytes]]) -> Any:
    """As any program would call the functions on AWS."""
    return boto3.client(
        "lambda",
        endpoint_url=endpoint[0],
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=START_TIMEOUT_S),
    )


def invoke(client: Any, function: str, sample: str) -> Any:
    payload = (REPOSITORY / f"events/samples/{sample}.json").read_bytes()
    answer = client.invoke(FunctionName=function, Payload=payload)
    body = answer["Payload"].read()
    assert (answer["StatusCode"], answer.get("FunctionError")) == (200, None), body
    return json.loads(body)


@pytest.mark.parametrize("worker", CONTRACTS)
def test_every_broken_body_is_dead_lettered_with_its_reason(
    worker: str, client: Any, stack: LocalStack, functions: dict[str, str]
) -> None:
    """The reason and the detail are those of the samples' README."""
    take_dead_letters(stack, worker)
    expected = {}
    for broken in of_worker(worker).broken():
        event = json.loads((REPOSITORY / f"events/samples/{broken.name}.json").read_text())
        assert invoke(client, functions[worker], broken.name) == {"batchItemFailures": []}, broken.name
        expected[event["Records"][0]["messageId"]] = (broken.reason, broken.detail)
    found = take_dead_letters(stack, worker)
    assert {name: (letter["reason"], letter["detail"]) for name, letter in found.items()} == expected != {}


def test_each_function_has_one_warm_container(
    client: Any, endpoint: tuple[str, subprocess.Popen[bytes]], functions: dict[str, str]
) -> None:
    """Which goes with the server."""
    for worker, function in functions.items():
        assert invoke(client, function, f"{worker}.single") == {"batchItemFailures": []}
    assert containers() == sorted(functions.values())
    end(endpoint[1])
    assert containers() == []


def end(server: subprocess.Popen[bytes]) -> None:
    """Ask it to end, upon which it removes its containers. Not by SIGINT, which programs started by `&` ignore."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
    try:
        server.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        raise


def containers() -> list[str]:
    """The functions that have a running container."""
    with contextlib.closing(docker.from_env()) as daemon:
        running = daemon.containers.list(filters={"label": "sam.cli.container.type=lambda"})
        return sorted(container.labels["sam.cli.function.name"] for container in running)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
