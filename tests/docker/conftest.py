"""A checkout that `sam build` has built, and a local stack that lets containers in; one of each for the session.

Everything is run as README.md says, in a folder that has what a checkout has, so that nobody's .aws-sam is touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spillway.contracts import CONTRACTS
from spillway.dead_letters import reasons_of
from spillway.stack.containers import write_variables
from spillway.stack.local import LocalStack, StackOptions
from spillway.stack.template import REPOSITORY
from tests.docker.image import ARCHITECTURE, template_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spillway.stack.processes import Processes

BIN = Path(sys.executable).parent
TIMEOUT_S = 120
#: What a shell may hold: temporary credentials, as `aws sso login` or an assumed role give them.
SHELL = {
    "AWS_ACCESS_KEY_ID": "ASIAEXAMPLEEXAMPLE00",
    "AWS_SECRET_ACCESS_KEY": "secret/access+key=",
    "AWS_SESSION_TOKEN": "session/token+of=the/shell",
}
#: samconfig.toml says x86_64.
OVERRIDES = () if ARCHITECTURE == "x86_64" else ("--parameter-overrides", f"Architecture={ARCHITECTURE}")
COPIED = ("*.toml", "*.yaml", "Makefile", "requirements*.txt", "workers", "spillway", "events", "infra")
#: README.md's commands.
BLOCKS = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
UP = next(block for block in BLOCKS if "up --docker" in block)
IN_ANOTHER_TERMINAL = next(block for block in BLOCKS if "sam local invoke" in block)
PATH_LINE, BUILD, INVOKE = IN_ANOTHER_TERMINAL.splitlines()


def quiet_environment(home: Path) -> dict[str, str]:
    """A shell without credentials or settings of its user."""
    cache = subprocess.run([BIN / "uv", "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SAM_", "DATABASE_", "PYTEST"))
    }
    return inherited | {
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "UV_CACHE_DIR": cache,
        "SAM_CLI_TELEMETRY": "0",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@dataclass(frozen=True)
class Answer:
    """What one command said. SAM prints the function's answer to standard output, its log to standard error."""

    stdout: str
    stderr: str

    @property
    def response(self) -> Any:
        """The function's answer. SAM's exit status is 0 whatever became of the function, so this is all there is."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            pytest.fail(f"no JSON on standard output: {self.stdout!r}\n{self.stderr}")


@dataclass(frozen=True)
class Checkout:
    """A folder with what `sam build` and `sam local` need, and the shell that they run in."""

    folder: Path
    shell: Mapping[str, str]

    def run(self, *command: str | Path, **variables: str) -> Answer:
        """Run a command here; it must succeed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.shell, **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return Answer(done.stdout, done.stderr)

    def invoke(self, function: str, sample: str, env_vars: Path, **variables: str) -> Answer:
        """`sam local invoke` with a sample event."""
        event = f"events/samples/{sample}.json"
        return self.run(
            "sam", "local", "invoke", function, "-e", event, "--env-vars", env_vars, *OVERRIDES, **variables
        )


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The working tree's files, with this virtual environment as its .venv."""
    version = os.environ.get("SPILLWAY_TEST_RUNTIME")
    assert version, "run this with `make test-docker`: it starts Docker and builds the image"
    folder = tmp_path_factory.mktemp("checkout")
    for pattern in COPIED:
        for source in REPOSITORY.glob(pattern):
            target = folder / source.name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
    (folder / ".venv").symlink_to(BIN.parent)
    # `make` must find this environment complete: what it installed from here, it would install for everybody.
    asked = subprocess.run(["make", "--question", ".venv/.dev-installed"], cwd=folder, capture_output=True, check=False)
    assert asked.returncode == 0, "run make first: the virtual environment is older than its requirements"
    shell = quiet_environment(tmp_path_factory.mktemp("home"))
    if version != template_version():
        template = folder / "template.yaml"
        template.write_text(template.read_text().replace(f"python{template_version()}", f"python{version}"))
        shell["MAKEFLAGS"] = f"LAMBDA_PYTHON={version}"
    return Checkout(folder, shell)


@pytest.fixture(scope="session")
def built(checkout: Checkout) -> Checkout:
    """After README.md's `sam build`, for this machine's processor."""
    checkout.run("bash", "-euc", f"{PATH_LINE}\n{BUILD.replace('x86_64', ARCHITECTURE)}")
    return checkout


@pytest.fixture(scope="session")
def stack(processes: Processes) -> Iterator[LocalStack]:
    """Servers that containers reach. Nobody polls the queues: what is in them was sent by a function in a container."""
    patch = pytest.MonkeyPatch()
    with patch.context() as environment:
        for name, value in SHELL.items():
            environment.setenv(name, value)
        environment.delenv("AWS_PROFILE", raising=False)
        stack = LocalStack(processes, StackOptions(docker=True, workers=(), durable=False))
        stack.start()
    yield stack
    stack.stop()


@pytest.fixture(scope="session")
def functions(stack: LocalStack) -> dict[str, str]:
    """The logical id of every worker's function."""
    found = {stack.worker_of(source): source.function for source in stack.fleet.mappings}
    assert set(found) == set(CONTRACTS)
    return found


def take_dead_letters(stack: LocalStack, worker: str) -> dict[str, dict[str, str]]:
    """Empty the worker's dead-letter queue: what each letter says, by the id that the message had before."""
    source = next(one for one in stack.fleet.mappings if stack.worker_of(one) == worker)
    url = stack.queue_urls[stack.fleet.queues[source.queue].dead_letter_queue or ""]
    found = {}
    while messages := stack.client.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], WaitTimeSeconds=0
    ).get("Messages"):
        for message in messages:
            reasons = reasons_of(message)
            found[reasons["message-id"]] = reasons
            stack.client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


@dataclass(frozen=True)
class Variables:
    """Writes files for --env-vars into `folder`."""

    stack: LocalStack
    folder: Path

    def write(self, **changes: str) -> Path:
        """The stack's own variables with `changes` in every function's."""
        path = self.folder / "env-vars.json"
        # The emulator counts a cold start against the timeout, and a worker begins nothing that may not end in time. On
        # a busy machine nothing would be left for it, so these believe that less is needed.
        changes = {"DATABASE_BORROW_TIMEOUT": "1", "DATABASE_STATEMENT_TIMEOUT": "5"} | changes
        functions = {name: values | changes for name, values in self.stack.container_variables().items()}
        path.unlink(missing_ok=True)
        write_variables(path, functions, self.folder / "private")
        return path


@pytest.fixture(scope="session")
def variables(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Variables:
    folder = tmp_path_factory.mktemp("variables")
    (folder / "private").mkdir()
    return Variables(stack, folder)
