"""One Lambda execution environment: the real runtime client (`awslambdaric`) under AWS's runtime emulator.

It starts at the first invocation, runs one at a time and enforces the function's timeout; after a timeout or a
crash the next invocation is a cold one.

What differs from Lambda: initialisation counts against the timeout of the first invocation, and the memory size
is told to the function but not enforced.
"""

import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spillway.stack import ports
from spillway.stack.errors import StackError
from spillway.stack.processes import Processes
from spillway.stack.rie import RuntimeInterfaceEmulator, find_emulator

ANSWER_GRACE_S = 5.0
"""How long after the function's timeout the emulator may take to say so before it is given up."""

Outcome = Literal["response", "error", "timeout", "crash"]

_TIMED_OUT = b"Task timed out after "  # not JSON: a handler that returns this text answers it in quotes
_RUNTIME_ERROR_KEYS = {"errorMessage", "errorType", "requestId", "stackTrace"}
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")


@dataclass(frozen=True)
class Invocation:
    """What became of one invocation.

    kind: `response`: the handler returned, `body` is its JSON; `error`: it raised, could not be imported, or
    answered more than 6 MB, `body` is JSON with errorType and errorMessage; `timeout`: it was killed at its limit;
    `crash`: its process died, or never answered. `duration_s` is wall time; `cold`: this invocation started it.
    """

    kind: Outcome
    body: bytes
    duration_s: float
    cold: bool


class ExecutionEnvironment:
    """Runs one function, one invocation at a time; callers from several threads take turns.

    `handler` is "package.module.function" below `code_dir`, `env` all of the function's own variables: of this
    process's it sees path, locale and temporary directory, never anybody's AWS credentials. `timeout_s` is in whole
    seconds. `on_output` receives each line that the function writes, without its end, from a thread of ours.
    """

    def __init__(
        self,
        processes: Processes,
        *,
        name: str,
        handler: str,
        code_dir: Path,
        timeout_s: int,
        memory_mb: int,
        env: Mapping[str, str],
        on_output: Callable[[str], None],
    ) -> None:
        self.name = name
        self._processes = processes
        self._binary = find_emulator()
        self._command = [sys.executable, "-m", "awslambdaric", handler]
        self._code_dir = code_dir.absolute()
        self._timeout_s = timeout_s
        self._on_output = on_output
        self._env = _base_env(self._code_dir) | {
            **env,
            "AWS_LAMBDA_FUNCTION_NAME": name,
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout_s),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb),
        }
        self._turn = threading.Lock()
        self._emulator: RuntimeInterfaceEmulator | None = None
        self._cold = True
        self._closed = False

    def invoke(self, payload: bytes, headers: Mapping[str, str] | None = None) -> Invocation:
        """Run the function on a JSON payload and wait for the outcome.

        Raises `StackError` if the environment cannot be started, or is closed.
        """
        with self._turn:
            emulator = self._ready_emulator()
            cold = self._cold
            started = time.monotonic()
            kind: Outcome
            try:
                status, body = emulator.post(payload, headers or {})
            except (OSError, http.client.HTTPException) as error:
                # Whether the function ran is unknown. The next invocation gets a new environment.
                self._discard()
                kind, body = "crash", f"The environment was lost: {type(error).__name__}: {error}".encode()
            else:
                kind = classify(status, body)
                self._cold = kind == "timeout" or status != http.HTTPStatus.OK
            return Invocation(kind, body, time.monotonic() - started, cold)

    def recycle(self) -> None:
        """Make the next invocation a cold one; waits for a running one to end."""
        with self._turn:
            self._discard()

    def kill(self) -> None:
        """SIGKILL the function's process, as the out-of-memory killer would; a running invocation is a crash."""
        if (emulator := self._emulator) is not None:
            emulator.kill_runtime()

    def close(self) -> None:
        """End the environment for good, without waiting for a running invocation: that is a crash."""
        self._closed = True
        if (emulator := self._emulator) is not None:
            emulator.stop()
        # A running invocation ends now and gives up its turn; unless it is ours, interrupted by a signal handler.
        if self._turn.acquire(timeout=1):
            try:
                self._discard()
            finally:
                self._turn.release()

    def _ready_emulator(self) -> RuntimeInterfaceEmulator:
        if self._emulator is not None and not self._emulator.alive:
            self._discard()
        if self._emulator is None and not self._closed:
            self._emulator = self._start()
            self._cold = True
        if self._closed or self._emulator is None:
            self._discard()
            raise StackError(f"The environment of {self.name} is closed.")
        return self._emulator

    def _start(self) -> RuntimeInterfaceEmulator:
        log = ""
        for _ in range(ports.ATTEMPTS):
            emulator = RuntimeInterfaceEmulator(
                self._processes,
                self._binary,
                self._command,
                name=self.name,
                env=self._env,
                cwd=self._code_dir,
                timeout_s=self._timeout_s + ANSWER_GRACE_S,
                on_output=self._on_output,
            )
            if emulator.wait_until_ready():
                return emulator
            emulator.stop()
            emulator.hang_up()
            log = emulator.log_tail()
        raise StackError(f"The Lambda emulator did not start for {self.name}.", f"The end of its log says:\n{log}")

    def _discard(self) -> None:
        emulator, self._emulator = self._emulator, None
        if emulator is not None:
            emulator.stop()
            emulator.hang_up()


def classify(status: int, body: bytes) -> Outcome:
    """What an answer of the emulator means.

    It answers a timeout and an exception with status 200 like any response: only the body tells. An exception is
    the JSON object that the runtime client makes of it, with exactly its four keys.
    """
    if status == http.HTTPStatus.OK and body.startswith(_TIMED_OUT):
        return "timeout"
    answer = None
    # Large responses are not parsed: none of them begins like an error of the runtime client.
    if status != http.HTTPStatus.OK or body.startswith(b'{"errorMessage":'):
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
    if status == http.HTTPStatus.OK:
        is_error = isinstance(answer, dict) and answer.keys() == _RUNTIME_ERROR_KEYS
        return "error" if is_error else "response"
    error_type = answer.get("errorType", "") if isinstance(answer, dict) else ""
    return "error" if error_type and error_type != "Runtime.ExitError" else "crash"


def _base_env(code_dir: Path) -> dict[str, str]:
    """What a function sees besides its own variables."""
    return {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "LAMBDA_TASK_ROOT": str(code_dir),
        "TZ": ":UTC",
        # A library that looks for the developer's credentials or passwords must not find any.
        "HOME": tempfile.gettempdir(),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
