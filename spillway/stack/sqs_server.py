"""An SQS server on this machine: ministack, with everything but SQS turned off."""

import contextlib
import http.client
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from spillway.stack import ministack_queues, ports
from spillway.stack.errors import StackError
from spillway.stack.processes import Processes

START_TIMEOUT_S = 30.0
_POLL_S = 0.01
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
# The service is read from the signature's scope; the signature itself is not checked.
_LIST_QUEUES = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, "
    "Signature=0",
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "AmazonSQS.ListQueues",
}


class MinistackServer:
    """A ministack process that lives as long as `processes`, on any free port or the given one.

    Its queues are in memory and gone with it. It accepts every credential; a twelve-digit access key is the account.
    `as_released` leaves its queues as they are: slow when deep, see `spillway.stack.ministack_queues`.
    """

    def __init__(self, processes: Processes, port: int | None = None, *, as_released: bool = False) -> None:
        self.port = port or 0
        self._processes = processes
        self._wanted_port = port
        self._as_released = as_released
        self._directory: Path | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """What an AWS SDK takes as `endpoint_url`."""
        return f"http://{ports.HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process, once started."""
        return None if self._popen is None else self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start and wait until SQS answers. Raises `StackError` if the port is taken or it does not come up."""
        if self.running:
            return
        if importlib.util.find_spec("ministack") is None:
            raise StackError(
                "The SQS server is not installed for this Python.", "Install ministack, or run make again."
            )
        if self._wanted_port:
            ports.check_port(self._wanted_port, "The SQS server")
        self._directory = self._directory or self._processes.temporary_directory("spillway-sqs-")
        for _ in range(1 if self._wanted_port else ports.ATTEMPTS):
            self.port = self._wanted_port or ports.free_port()
            self._popen = self._launch(self._directory)
            if self._wait_until_ready(self._popen):
                return
            self.stop()
            if "in use" not in self.log_tail():
                break
        raise StackError(
            f"The SQS server did not start on {ports.HOST}:{self.port}.", f"The end of its log says:\n{self.log_tail()}"
        )

    def stop(self) -> None:
        """End the server; its queues and messages are gone."""
        if self._popen is not None:
            self._processes.stop(self._popen)
            self._popen = None

    def log_tail(self, lines: int = 20) -> str:
        """The last lines the server wrote."""
        if self._directory is None:
            return ""
        with contextlib.suppress(OSError):
            return "\n".join((self._directory / "ministack.log").read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _launch(self, directory: Path) -> subprocess.Popen[bytes]:
        env = {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {
            "BIND_HOST": ports.HOST,  # its default is every interface
            "GATEWAY_PORT": str(self.port),
            "SERVICES": "sqs",
            "LOG_LEVEL": "WARNING",
            "IOT_MTLS_ENABLED": "0",  # else it also listens on port 8883
            "SFTP_ENABLED": "0",
            "DOCKER_HOST": f"unix://{directory}/no-docker.sock",  # else it removes containers it takes for its own
            "PERSIST_STATE": "0",
            # Its pid file, state and data go to these, and so away with the stack.
            "TMPDIR": str(directory),
            "HOME": str(directory),
            "STATE_DIR": str(directory / "state"),
            "S3_DATA_DIR": str(directory / "s3"),
        }
        with (directory / "ministack.log").open("wb") as log:
            return self._processes.spawn(
                # Without -P the modules beside the program would hide others of the same name.
                [sys.executable, *(("-m", "ministack") if self._as_released else ("-P", ministack_queues.__file__))],
                name="The SQS server",
                env=env,
                cwd=directory,
                stdout=log,
                grace_s=1.0,
            )

    def _wait_until_ready(self, popen: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while popen.poll() is None and time.monotonic() < deadline:
            if ports.listens(popen.pid, self.port) and self._answers():
                return True
            time.sleep(_POLL_S)
        return False

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(ports.HOST, self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/", b"{}", _LIST_QUEUES)
            return connection.getresponse().status == http.HTTPStatus.OK
        return False
