"""ministack as an AWS account to deploy to: all of its services, IAM enforced, functions run by this Python."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import boto3
import trustme
from botocore.config import Config

from spillway.stack import ports
from tests.deploy import ministack_main

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from spillway.stack.processes import Processes

ACCOUNT, REGION = "000000000000", "us-east-1"
#: An access key that is the account's number is the account's root user to ministack.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCOUNT,
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
}
START_TIMEOUT_S = 30.0
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class Account:
    """A running ministack with TLS; its state is in memory and gone with it.

    TLS because the queues refuse everybody without.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.directory: Path = processes.temporary_directory("spillway-deploy-")
        self.port = ports.free_port()
        self.ca_file = self.directory / "ca.pem"
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._issue_certificate()
        with (self.directory / "ministack.log").open("wb") as log:
            self._popen = self._processes.spawn(
                [sys.executable, "-P", ministack_main.__file__],
                name="ministack",
                env=self._environment(),
                cwd=self.directory,
                stdout=log,
                grace_s=2.0,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers(self._popen):
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"ministack did not start:\n{self.log_tail()}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._popen is not None:
            self._processes.stop(self._popen)

    @property
    def endpoint_url(self) -> str:
        """What an AWS SDK takes as `endpoint_url`."""
        return f"https://{ports.HOST}:{self.port}"

    def client(self, service: str) -> Any:
        """A boto3 client with the root user's credentials."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            verify=str(self.ca_file),
            config=Config(retries={"total_max_attempts": 1}),
        )

    def log_tail(self, lines: int = 30) -> str:
        """The last lines that ministack and the functions wrote, without the traces of connections that went away."""
        text = (self.directory / "ministack.log").read_text(errors="replace")
        told = [line[:500] for line in text.splitlines() if re.match(r"[{]|\d{4}-(?!.*\[asyncio\])", line)]
        return "\n".join(told[-lines:])

    def _environment(self) -> dict[str, str]:
        return {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {
            "BIND_HOST": ports.HOST,  # its default is every interface
            "MINISTACK_HOST": ports.HOST,  # in the addresses that it gives out
            "GATEWAY_PORT": str(self.port),
            "USE_SSL": "1",
            "MINISTACK_SSL_CERT": str(self.directory / "server.pem"),
            "MINISTACK_SSL_KEY": str(self.directory / "server-key.pem"),
            # The functions', which inherit them.
            "AWS_CA_BUNDLE": str(self.ca_file),
            "SSL_CERT_FILE": str(self.ca_file),
            "AUTH": "true",  # a function may do what its role allows, and nothing else
            "LOG_LEVEL": "INFO",
            "IOT_MTLS_ENABLED": "0",  # else it also listens on port 8883
            "SFTP_ENABLED": "0",
            "DOCKER_HOST": f"unix://{self.directory}/no-docker.sock",  # else it removes containers it takes for its own
            "PERSIST_STATE": "0",
            "TMPDIR": str(self.directory),
            "HOME": str(self.directory),
            "STATE_DIR": str(self.directory / "state"),
            "S3_DATA_DIR": str(self.directory / "s3"),
        }

    def _issue_certificate(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        server = authority.issue_cert(ports.HOST)
        server.private_key_pem.write_to_path(self.directory / "server-key.pem")
        for certificate in server.cert_chain_pems:
            certificate.write_to_path(self.directory / "server.pem", append=True)

    def _answers(self, popen: subprocess.Popen[bytes]) -> bool:
        if not ports.listens(popen.pid, self.port):
            return False
        try:
            with urllib.request.urlopen(  # noqa: S310
                f"{self.endpoint_url}/_ministack/health",
                timeout=5,
                context=ssl.create_default_context(cafile=self.ca_file),
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
