"""Docker, for as long as the tests run: the daemon that is here, or one of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.stack.processes import Processes

START_TIMEOUT_S = 40.0
APT_TIMEOUT_S = 180.0
#: Containers are stopped and unmounted first.
GRACE_S = 20.0
#: Where Debian's packages put what other users than root may not have on their path.
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
BRIDGE = Path("/sys/class/net/docker0")
_POLL_S = 0.1


class NoDocker(Exception):
    """Functions cannot be run in containers here; the message says why, in one line."""


@contextlib.contextmanager
def running_docker(processes: Processes, *, may_install: bool) -> Iterator[None]:
    """Within, DOCKER_HOST names a daemon that answers. One that runs already is used, never stopped.

    Raises NoDocker. With `may_install`, Debian's package is installed where there is none and this is root.
    """
    if not _answers():
        if (program := _find()) is None and may_install:
            _install()
            program = _find()
        if not _answers():  # on a machine with an init system, installing it has started it
            with _daemon(processes, program) as address:
                before = os.environ.get("DOCKER_HOST")
                os.environ["DOCKER_HOST"] = address
                try:
                    yield
                finally:
                    del os.environ["DOCKER_HOST"]
                    if before is not None:
                        os.environ["DOCKER_HOST"] = before
            return
    yield


def check_containers(client: Any, image: str) -> None:
    """Run nothing much in a container. Raises NoDocker where the daemon runs and containers do not."""
    try:
        said = client.containers.run(image, ["-c", "echo works"], entrypoint="/bin/sh", remove=True)
    except docker.errors.APIError as error:
        raise NoDocker(f"containers do not start: {error.explanation or error}") from error
    except docker.errors.ContainerError as error:
        raise NoDocker(f"containers do not run: {error}") from error
    if said != b"works\n":
        raise NoDocker(f"containers do not run: expected 'works', got {said!r}")


def _answers() -> bool:
    try:
        with contextlib.closing(docker.from_env(timeout=10)) as client:
            return bool(client.ping())
    except docker.errors.DockerException:
        return False


def _find() -> str | None:
    return shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def _install() -> None:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return
    # RUNLEVEL: invoke-rc.d then starts no service (invoke-rc.d(8)); we start it ourselves, with folders of its own.
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (
        [apt, "update", "-qq"],
        [apt, "install", "-qq", "-y", "--no-install-recommends", "docker.io"],
    ):
        try:
            done = subprocess.run(
                command,
                env=env,
                capture_output=True,
                text=True,
                timeout=APT_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NoDocker(f"apt-get {command[1]} took longer than {APT_TIMEOUT_S:g} s") from None
        if done.returncode:
            raise NoDocker(f"apt-get {command[1]} failed: {_last_line(done.stderr)}")


@contextlib.contextmanager
def _daemon(processes: Processes, program: str | None) -> Iterator[str]:
    """A daemon of our own; the address that it listens on."""
    if program is None:
        raise NoDocker("dockerd is not installed (apt-get install --no-install-recommends docker.io)")
    if os.geteuid() != 0:
        raise NoDocker("no Docker daemon answers, and only root can start one")
    if (other := _running_daemon()) is not None:
        raise NoDocker(f"process {other} is a Docker daemon that does not answer here; name its socket in DOCKER_HOST")
    directory = processes.temporary_directory("spillway-docker-")
    address = f"unix://{directory}/docker.sock"
    had_bridge = BRIDGE.exists()
    # Not the machine's /etc/docker/daemon.json: what is said there and here would contradict.
    configuration = directory / "daemon.json"
    configuration.write_text("{}")
    log = directory / "dockerd.log"
    with log.open("wb") as output:
        daemon = processes.spawn(
            [
                *(program, "--host", address, "--data-root", directory / "data", "--exec-root", directory / "exec"),
                *("--pidfile", directory / "docker.pid", "--config-file", configuration),
                # Containers talk to this machine and to nobody else, so its firewall and routing stay as they are.
                *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
            ],
            name="Docker",
            env=os.environ | {"PATH": f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"},
            stdout=output,
            grace_s=GRACE_S,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(address):
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise NoDocker(f"dockerd does not start here: {_last_line(log.read_text(errors='replace'))}")
            time.sleep(_POLL_S)
        yield address
    finally:
        processes.stop(daemon)
        _clean_up(directory, remove_bridge=not had_bridge)
        processes.remove_directory(directory)


def _listens(address: str) -> bool:
    try:
        with contextlib.closing(docker.DockerClient(base_url=address, timeout=10)) as client:
            return bool(client.ping())
    except docker.errors.DockerException:
        return False


def _running_daemon() -> int | None:
    """The process number of a Docker daemon of this machine, if any."""
    for name in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if name.read_text() == "dockerd\n":
                return int(name.parent.name)
    return None


def _clean_up(directory: Path, *, remove_bridge: bool) -> None:
    """What a daemon leaves behind: mounts below its folder, and its bridge."""
    with contextlib.suppress(OSError):
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in sorted((one for one in mounted if one.startswith(f"{directory}/")), reverse=True):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
    if (
        remove_bridge
        and BRIDGE.exists()
        and (ip := shutil.which("ip", path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"))
    ):
        subprocess.run([ip, "link", "delete", BRIDGE.name], capture_output=True, check=False)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"
