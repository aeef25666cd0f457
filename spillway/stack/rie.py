"""AWS's Runtime Interface Emulator as a process: found, started, asked, ended.

It travels in the SAM CLI's wheel. It needs two ports, one for invocations and one for the runtime client, starts
the runtime at the first invocation, and crashes when two invocations meet: `spillway.stack.environment` sees to that.
"""

import contextlib
import http.client
import importlib.util
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from spillway.stack import ports, reaper
from spillway.stack.errors import StackError
from spillway.stack.processes import Processes

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
_POLL_S = 0.005
_INVOKE_PATH = "/2015-03-31/functions/function/invocations"
_OWN_LINES = ("START RequestId: ", "END RequestId: ", "REPORT RequestId: ")
_OWN_TAG = " (rapid) "
_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


def find_emulator() -> Path:
    """The emulator's binary for this machine; `StackError` if there is none. Does not import the SAM CLI."""
    architecture = _ARCHITECTURES.get(platform.machine().lower())
    if not sys.platform.startswith("linux") or architecture is None:
        raise StackError(
            f"AWS's Lambda runtime emulator does not run on {platform.system()} {platform.machine()}.",
            "Use Linux on x86_64 or arm64 (on macOS and Windows: in a container or WSL).",
        )
    spec = importlib.util.find_spec("samcli")
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0], "local", "rapid", f"aws-lambda-rie-{architecture}")
        if os.access(path, os.X_OK):
            return path
    raise StackError(
        "AWS's Lambda runtime emulator is not installed for this Python.", "Install aws-sam-cli, or run make again."
    )


class RuntimeInterfaceEmulator:
    """One emulator process and the runtime below it. Not thread-safe but for `stop` and `kill_runtime`."""

    def __init__(
        self,
        processes: Processes,
        binary: Path,
        command: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str],
        cwd: Path,
        timeout_s: float,
        on_output: Callable[[str], None],
    ) -> None:
        self.killed = False
        """Whether `kill_runtime` was used: the emulator would answer the next invocation with the old corpse."""
        self._processes = processes
        self._on_output = on_output
        self._log: deque[str] = deque(maxlen=20)
        self._ports = ports.free_port(), ports.free_port()
        self._popen = processes.spawn(
            [
                *(binary, "--log-level", "error"),
                *("--runtime-interface-emulator-address", f"{ports.HOST}:{self._ports[0]}"),
                *("--runtime-api-address", f"{ports.HOST}:{self._ports[1]}"),
                *command,
            ],
            name=f"The Lambda emulator of {name}",
            env=env,
            cwd=cwd,
            stdout=subprocess.PIPE,
            # It holds no state, and the runtime is killed with it.
            stop_signal=signal.SIGKILL,
        )
        self._invoked = False
        self._connection = http.client.HTTPConnection(ports.HOST, self._ports[0], timeout=timeout_s)
        self._reader = threading.Thread(target=self._read_output, name=f"output of {name}", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the emulator can take another invocation."""
        return self._popen.poll() is None and not self.killed

    def wait_until_ready(self) -> bool:
        """Wait until it listens on both ports; False if it ended instead, as it does when one was taken."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.alive and time.monotonic() < deadline:
            if all(ports.listens(self._popen.pid, port) for port in self._ports):
                return True
            time.sleep(_POLL_S)
        return False

    def post(self, payload: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """One invocation: HTTP status and body. Raises OSError or HTTPException if no answer comes."""
        self._invoked = True
        self._connection.request("POST", _INVOKE_PATH, payload, dict(headers))
        response = self._connection.getresponse()
        return response.status, response.read()

    def kill_runtime(self) -> None:
        """SIGKILL the function's process."""
        self.killed = True
        for process in reaper.process_table().values():
            if process.parent == self._popen.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End emulator and runtime at once and wait for the last of their output."""
        self._processes.stop(self._popen)
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout=5)

    def hang_up(self) -> None:
        """Close the connection that invocations use; only while none is running."""
        self._connection.close()

    def log_tail(self) -> str:
        """The emulator's own last lines."""
        return "\n".join(self._log)

    def _read_output(self) -> None:
        assert self._popen.stdout is not None  # noqa: S101 - it is a pipe
        with self._popen.stdout as output:
            for raw in output:
                # The runtime client ends the inner lines of a traceback with a carriage return.
                for line in raw.decode(errors="replace").rstrip("\r\n").split("\r"):
                    if line.startswith(_OWN_LINES):
                        continue
                    if _OWN_TAG in line:
                        self._log.append(line)
                        continue
                    # Go's panics look like anything; before the first invocation nothing else is written.
                    if not self._invoked:
                        self._log.append(line)
                        continue
                    self._emit(line)

    def _emit(self, line: str) -> None:
        try:
            self._on_output(line)
        except Exception:
            # A full pipe would block the function.
            logger.exception("output_callback_failed")
