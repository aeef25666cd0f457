"""`make test-docker`: Docker and the runtime image first, then the tests in this folder.

python -m tests.docker                        fails, with the reason, where containers do not run
python -m tests.docker --docker if-possible   for CI: installs Docker where that is possible, else skips in one line
Further arguments go to pytest, and then name the tests, too: tests/docker -k payments
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import docker

from spillway.stack.processes import Processes
from spillway.stack.template import REPOSITORY
from tests.docker import image
from tests.docker.daemon import NoDocker, check_containers, running_docker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def say(text: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.docker", description=__doc__.partition("\n")[0])
    parser.add_argument("--docker", choices=("required", "if-possible"), default="required")
    options, pytest_arguments = parser.parse_known_args(arguments)
    optional = options.docker == "if-possible"
    with Processes() as processes:
        try:
            with running_docker(processes, may_install=optional), runtime(processes) as version:
                command = [sys.executable, "-m", "pytest", *(pytest_arguments or ["tests/docker"])]
                env = os.environ | {"SPILLWAY_TEST_RUNTIME": version}
                return subprocess.run(command, cwd=REPOSITORY, env=env, check=False).returncode
        except NoDocker as error:
            say(f"test-docker {'skipped' if optional else 'failed'}: {error}")
            return 0 if optional else 1


@contextlib.contextmanager
def runtime(processes: Processes) -> Iterator[str]:
    """The Python version for which there is an image; within. Raises NoDocker where containers do not run."""
    wanted = image.template_version()
    with contextlib.closing(docker.from_env(timeout=120)) as client:
        if image.is_ours(client, image.name_of(wanted)) is False:
            say(f"Using {image.name_of(wanted)}, which is here already.")
            check_containers(client, image.name_of(wanted))
            yield wanted
            return
        interpreter = image.find_interpreter(wanted)
        version = interpreter.version
        say(f"Building {image.name_of(version)} from {interpreter.prefix} ...")
        if version != wanted:
            say(f"There is no Python {wanted} here: the functions run on {version}, in a copy of the template.")
        try:
            name = image.build(client, interpreter, processes.temporary_directory("spillway-image-"))
            check_containers(client, name)
            yield version
        finally:
            image.remove(client, version)


if __name__ == "__main__":
    os.environ.setdefault("SAM_CLI_TELEMETRY", "0")
    sys.exit(main())
