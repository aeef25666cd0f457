"""The image that `sam local invoke` runs functions in, made of what this machine has.

AWS's own is at public.ecr.aws/lambda/python. It cannot be pulled everywhere, and it changes; this one is built from a
Python interpreter that is installed here, the shared libraries that it is linked with, AWS's runtime client and boto3
from the locked requirements, and has AWS's layout: Python in /var/lang, the runtime in /var/runtime, the function in
/var/task. SAM adds AWS's runtime interface emulator itself. Nothing is downloaded but those two packages.
"""

from __future__ import annotations

import io
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillway.stack.template import REPOSITORY, TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: As Docker and SAM call the processor of this machine.
ARCHITECTURE = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
#: On every image that is built here.
LABEL = "spillway.test-image"
#: What the managed runtime has besides Python, with what these need in turn (names of requirements-dev.txt).
RUNTIME_PACKAGES = (
    *("awslambdaric", "simplejson", "snapshot-restore-py"),
    *("boto3", "botocore", "s3transfer", "jmespath", "python-dateutil", "six", "urllib3"),
)
#: For SAM's own Dockerfile (`RUN mv ... && chmod ...`), and to look around in a container.
TOOLS = ("sh", "mv", "chmod", "env", "cat", "ls")
#: What wheels may be linked with and Python itself is not (PEP 600's list: glibc's parts and the compiler's), and what
#: glibc loads by name while a program runs.
LIBRARIES = (
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2"),
    *("libgcc_s.so.1", "libstdc++.so.6", "libnss_files.so.2", "libnss_dns.so.2"),
)
#: Amazon Linux 2023's bundle of certificate authorities, and where Debian, Fedora and SUSE have theirs.
CA_BUNDLE = "etc/pki/tls/certs/ca-bundle.crt"
CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
#: Parts of the standard library that no function needs.
LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", "test", "idlelib", "ensurepip", "lib2to3", "turtledemo"}

#: As in AWS's image (its Dockerfile's ENV), apart from the library path, to which `build` adds this machine's folders.
ENVIRONMENT = {
    "LANG": "en_US.UTF-8",
    "TZ": ":/etc/localtime",
    "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
    "LAMBDA_TASK_ROOT": "/var/task",
    "LAMBDA_RUNTIME_DIR": "/var/runtime",
}
LIBRARY_PATH = ("/var/lang/lib", "/lib64", "/usr/lib64", "/var/runtime", "/var/runtime/lib", "/var/task", "/opt/lib")

#: Started by the emulator. The current folder comes first on Python's path, then the runtime, as on Lambda.
BOOTSTRAP = """#!/bin/sh
export AWS_EXECUTION_ENV=AWS_Lambda_python{version}
export PYTHONPATH="$LAMBDA_RUNTIME_DIR"
exec /var/lang/bin/python{version} -m awslambdaric "$_HANDLER"
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python on this machine. `prefix` is where its standard library's lib/ is; `version` is such as 3.13."""

    executable: Path
    prefix: Path
    version: str


@cache
def find_interpreter(wanted: str) -> Interpreter:
    """Python `wanted` (such as 3.13) if this machine has it, else the one that runs this."""
    candidates = [shutil.which(f"python{wanted}")]
    candidates += map(str, sorted(Path.home().glob(f".pyenv/versions/{wanted}.*/bin/python{wanted}"), reverse=True))
    question = (
        "import os, sys; "
        "print(os.path.realpath(sys.executable), sys.base_prefix, '%d.%d' % sys.version_info[:2], sep='\\n')"
    )
    for candidate in [*filter(None, candidates), sys.executable]:
        answer = subprocess.run([candidate, "-I", "-c", question], capture_output=True, text=True, check=False)
        if answer.returncode == 0:  # a pyenv shim of a version that is not active fails
            executable, prefix, version = answer.stdout.splitlines()
            if version == wanted or candidate == sys.executable:
                return Interpreter(Path(executable), Path(prefix), version)
    raise RuntimeError("the interpreter that runs this does not run")


def template_version() -> str:
    """The Python of template.yaml's functions."""
    found = set(re.findall(r"^ +Runtime: python([0-9.]+)$", TEMPLATE.read_text(), re.MULTILINE))
    if len(found) != 1:
        raise RuntimeError(f"expected one Runtime in template.yaml, got {sorted(found)}")
    return str(found.pop())


def is_ours(docker: Any, name: str) -> bool | None:
    """Whether an image of that name was built here; None if there is none at all."""
    found = docker.images.list(name)
    return LABEL in (found[0].labels or {}) if found else None


def remove(docker: Any, version: str) -> None:
    """Remove what was built here, and what SAM made of it: under its name everybody expects AWS's."""
    name = name_of(version)
    if is_ours(docker, name):
        for tag in (f"{name.partition(':')[0]}:{version}-rapid-{ARCHITECTURE}", name):
            if docker.images.list(tag):
                docker.images.remove(tag, force=True)


def name_of(version: str) -> str:
    """Repository and tag under which SAM looks for the image of pythonVERSION."""
    return f"public.ecr.aws/lambda/python:{version}-{ARCHITECTURE}"


def build(docker: Any, interpreter: Interpreter, folder: Path) -> str:
    """Build the image with what is downloaded put into `folder`, give it to the daemon, and return its name."""
    runtime = folder / "runtime"
    _install(runtime, interpreter.version)
    archive = folder / "image.tar"
    tree = _Tree()
    _add_python(tree, interpreter)
    tree.add_folder(runtime, "var/runtime")
    tree.add_text("var/runtime/bootstrap", BOOTSTRAP.format(version=interpreter.version), mode=0o755)
    # SAM and AWS's own tools take it for the image's entry point; its arguments are the handler.
    tree.add_text("lambda-entrypoint.sh", '#!/bin/sh\nexport _HANDLER="$1"\nexec /var/runtime/bootstrap\n', mode=0o755)
    tree.add_text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsbx_user1051:x:993:990::/home/sbx_user1051:/bin/sh\n")
    tree.add_text("etc/group", "root:x:0:\nsbx_user1051:x:990:\n")
    tree.add_text("etc/nsswitch.conf", "hosts: files dns\n")
    for bundle in CA_BUNDLES:
        if Path(bundle).is_file():
            tree.add_file(Path(bundle), CA_BUNDLE)
            break
    for directory, mode in (("tmp", 0o1777), ("var/task", 0o755), ("opt", 0o755), ("var/rapid", 0o755)):
        tree.add_directory(directory, mode)
    for tool in TOOLS:
        if (path := shutil.which(tool)) is None:
            raise RuntimeError(f"{tool} is missing on this machine")
        tree.add_file(Path(path).resolve(), f"bin/{tool}")
    libraries = tree.add_libraries()
    tree.write(archive)

    name = name_of(interpreter.version)
    repository, _, tag = name.partition(":")
    environment = ENVIRONMENT | {"LD_LIBRARY_PATH": ":".join((*LIBRARY_PATH, *libraries))}
    docker.api.import_image_from_file(
        str(archive),
        repository=repository,
        tag=tag,
        changes=[
            *(f"ENV {key}={value}" for key, value in environment.items()),
            "WORKDIR /var/task",
            'ENTRYPOINT ["/lambda-entrypoint.sh"]',
            f"LABEL {LABEL}=true",
        ],
    )
    archive.unlink()
    return name


def _install(target: Path, version: str) -> None:
    """The runtime's packages, as they are locked."""
    requirements = target.with_suffix(".txt")
    requirements.parent.mkdir(parents=True, exist_ok=True)
    requirements.write_text("".join(_locked(RUNTIME_PACKAGES)))
    subprocess.run(
        [
            *(Path(sys.executable).with_name("uv"), "pip", "install", "--system-certs", "--quiet"),
            *("--target", target, "--python-version", version),
            *("--python-platform", f"{platform.machine()}-manylinux_2_28"),
            *("--only-binary", ":all:", "--require-hashes", "--no-deps", "-r", requirements),
        ],
        check=True,
    )


def _locked(names: Iterable[str]) -> Iterator[str]:
    """These packages' parts of the lock file, hashes included."""
    text = (REPOSITORY / "requirements-dev.txt").read_text()
    for name in names:
        found = re.search(rf"^{re.escape(name)}==.*?(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
        if found is None:
            raise RuntimeError(f"requirements-dev.txt has no {name}")
        yield found[0]


def _add_python(tree: _Tree, interpreter: Interpreter) -> None:
    name = f"python{interpreter.version}"
    library = interpreter.prefix / "lib" / name
    tree.add_file(interpreter.executable, f"var/lang/bin/{name}")
    for path in sorted(library.rglob("*")):
        inside = path.relative_to(library)
        if path.is_file() and not LEFT_OUT.intersection(inside.parts) and not inside.parts[0].startswith("config-"):
            tree.add_file(path.resolve(), f"var/lang/lib/{name}/{inside}")
    for shared in interpreter.prefix.glob(f"lib/lib{name}*.so*"):
        tree.add_file(shared.resolve(), f"var/lang/lib/{shared.name}")


class _Tree:
    """The image's files, and which shared libraries they are linked with."""

    def __init__(self) -> None:
        self._entries: dict[str, Path | bytes | None] = {}
        self._modes: dict[str, int] = {}

    def add_file(self, source: Path, name: str) -> None:
        self._entries[name] = source

    def add_text(self, name: str, text: str, mode: int = 0o644) -> None:
        self._entries[name] = text.encode()
        self._modes[name] = mode

    def add_directory(self, name: str, mode: int) -> None:
        self._entries[name] = None
        self._modes[name] = mode

    def add_folder(self, source: Path, name: str) -> None:
        for path in sorted(source.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                self.add_file(path, f"{name}/{path.relative_to(source)}")

    def add_libraries(self) -> list[str]:
        """Add what every program and library so far is linked with, where it is here; returns the folders."""
        binaries = [
            source
            for name, source in self._entries.items()
            if isinstance(source, Path) and (".so" in source.name or "bin/" in name)
        ]
        found: set[str] = set()
        for start in range(0, len(binaries), 100):
            # Of what has no libraries (a script, a static program) ldd says so and fails.
            listed = subprocess.run(
                ["ldd", *binaries[start : start + 100]], capture_output=True, text=True, check=False
            )
            found.update(re.findall(r"(?:=> |^\s+)(/\S+)", listed.stdout, re.MULTILINE))
        folders = sorted({str(Path(path).parent) for path in found if path.startswith("/lib/")})
        found.update(f"{folder}/{name}" for folder in folders for name in LIBRARIES)
        held = {f"/{name}" for name in self._entries}
        for path in sorted(found - held):
            if Path(path).is_file():
                self.add_file(Path(path).resolve(), path.removeprefix("/"))
        return folders

    def write(self, archive: Path) -> None:
        """The files as a tar archive, everything owned by root."""
        with tarfile.open(archive, "w") as tar:
            for name, source in self._entries.items():
                entry = tarfile.TarInfo(name)
                if isinstance(source, Path):
                    status = source.stat()
                    entry.size, entry.mode = status.st_size, status.st_mode & 0o755 | 0o444
                    with source.open("rb") as content:
                        tar.addfile(entry, content)
                elif source is None:
                    entry.type, entry.mode = tarfile.DIRTYPE, self._modes[name]
                    tar.addfile(entry)
                else:
                    entry.size, entry.mode = len(source), self._modes[name]
                    tar.addfile(entry, io.BytesIO(source))
