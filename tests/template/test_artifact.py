"""What `sam build` puts into the Lambda, and what of it the handler loads."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from samcli.lib.utils.hash import dir_checksum

from bench.cold_start import build_artifact
from spillway.stack.template import REPOSITORY

BIN = Path(sys.executable).parent

# Cold start is paid by the user (docs/benchmarks.md). psycopg, msgspec, powertools and the standard library are the
# floor.
NOT_ON_THE_HOT_PATH = {
    "boto3", "botocore", "pydantic", "jsonschema", "psycopg_pool", "typer", "rich", "click", "spillway", "yaml",
    "aws_lambda_powertools.utilities.parser", "aws_xray_sdk", "requests", "urllib3",
}  # fmt: skip


#: Lambda takes 250 MB unzipped; a tenth of that is what a cold start can fetch without anybody noticing.
MAX_BYTES = 20_000_000
#: What ELF calls a processor (e_machine of the System V ABI's header), and what wheels do.
PROCESSORS = {"arm64": (0xB7, "aarch64"), "x86_64": (0x3E, "x86_64")}
#: What no function reads: neither code nor data of the workers and their dependencies.
USELESS = re.compile(
    r"(^|/)(tests?|testing|__pycache__|bin)/|\.py[cio]$|(^|/)(conftest|test_\w+)\.py$|^workers/.*\.md$|(^|/)(RECORD|INSTALLER|\.lock)$"
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact as the Makefile builds it, for the Python and processor that run here."""
    directory = tmp_path_factory.mktemp("artifact")
    build_artifact(directory)
    return directory


def test_it_holds_the_workers_and_their_locked_dependencies_and_nothing_else(artifact: Path) -> None:
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (REPOSITORY / "requirements.txt").read_text(), re.MULTILINE))
    installed = {path.name.split("-")[0].replace("_", "-").lower() for path in artifact.glob("*.dist-info")}
    assert installed <= pinned
    assert {"psycopg", "psycopg-binary", "msgspec", "aws-lambda-powertools"} <= installed
    assert (artifact / "workers/orders/handler.py").is_file()
    assert (artifact / "workers/orders/apply.sql").is_file()
    assert (artifact / "workers/migrate/versions/0001_schema.sql").is_file()
    assert not (artifact / "spillway").exists()
    assert not (artifact / "boto3").exists(), "boto3 is in the managed runtime"


def test_the_handler_imports_nothing_slow(artifact: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import workers.orders.handler; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(artifact)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "psycopg_binary" in loaded, "the C implementation"
    assert "workers.runtime.bulk" in loaded
    slow = {name for name in loaded if any(name == bad or name.startswith(f"{bad}.") for bad in NOT_ON_THE_HOT_PATH)}
    assert slow == set()


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which make finds this environment's programs and installs nothing."""
    installed = tmp_path_factory.mktemp("venv")
    (installed / "bin").symlink_to(BIN)
    for mark in (".local-installed", ".dev-installed"):
        (installed / mark).touch()
    return {"VENV": str(installed)}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, make: dict[str, str]) -> dict[str, Path]:
    """The artifact as it is deployed, by architecture."""
    directories = {architecture: tmp_path_factory.mktemp(architecture) for architecture in PROCESSORS}
    for architecture, directory in directories.items():
        make_artifact(REPOSITORY, directory, make | {"ARCHITECTURE": architecture})
    return directories


def make_artifact(source: Path, directory: Path, make: dict[str, str], *, umask: int = 0o022) -> None:
    """`make artifact` of the checkout at `source`."""
    built = subprocess.run(
        ["make", "artifact", f"ARTIFACTS_DIR={directory}", *(f"{name}={value}" for name, value in make.items())],
        cwd=source,
        env={name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
        umask=umask,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if not path.is_dir())


def fingerprint(directory: Path) -> dict[str, tuple[int, str]]:
    """Mode and SHA-256 of every file and folder by name: all that the zip says of them, which dates everything 1980."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_mode,
            "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(directory.rglob("*"))
    }


def test_it_is_small_and_holds_nothing_that_no_function_reads(deployed: dict[str, Path]) -> None:
    for architecture, directory in deployed.items():
        assert sum(path.stat().st_size for path in files(directory)) <= MAX_BYTES, architecture
        names = [str(path.relative_to(directory)) for path in files(directory)]
        assert [name for name in names if USELESS.search(name)] == []
        odd = [
            path for path in directory.rglob("*") if path.is_symlink() or (path.is_dir() and not any(path.iterdir()))
        ]
        assert odd == [], "links and empty folders"
        # Whatever the wheels bring, they bring under the names in their own lists.
        tops = {name.split("/")[0] for name in names}
        packages = {name.split("-")[0] for name in tops if name.endswith(".dist-info")}
        libraries = {f"{package}.libs" for package in packages}
        assert {top.removesuffix(".py") for top in tops if not top.endswith(".dist-info")} <= packages | libraries | {
            "workers"
        }


@pytest.mark.parametrize("architecture", PROCESSORS)
def test_its_libraries_are_for_the_processor_and_python_of_the_function(
    deployed: dict[str, Path], architecture: str
) -> None:
    machine, tag = PROCESSORS[architecture]
    libraries = [path for path in files(deployed[architecture]) if path.read_bytes()[:4] == b"\x7fELF"]
    modules = [path.name for path in libraries if ".cpython-" in path.name]
    assert len(libraries) > len(modules) >= 3, "psycopg's and msgspec's, and libpq with what it needs"
    assert {name.split(".cpython-")[1] for name in modules} == {f"313-{tag}-linux-gnu.so"}
    for library in libraries:
        [found] = struct.unpack_from("<H", library.read_bytes(), 18)
        assert found == machine, library.name


def test_another_checkout_makes_the_same(deployed: dict[str, Path], make: dict[str, str], tmp_path: Path) -> None:
    """Elsewhere, later, by somebody whose umask and editor are others: the same names, modes and bytes."""
    checkout = tmp_path / "elsewhere"
    checkout.mkdir()
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "requirements-local.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, checkout)
    shutil.copytree(
        REPOSITORY / "workers",
        checkout / "workers",
        copy_function=shutil.copyfile,
        ignore=shutil.ignore_patterns("*.pyc"),
    )
    for path in checkout.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    (checkout / "workers/orders/__pycache__").mkdir(exist_ok=True)
    (checkout / "workers/orders/__pycache__/handler.cpython-313.pyc").write_bytes(b"not what Lambda compiles")
    (checkout / "workers/orders/README.md").write_text("another\n")
    # make would install what is older than these; the marks in `make` are not this checkout's.
    for mark in (".local-installed", ".dev-installed"):
        (Path(make["VENV"]) / mark).touch()
    artifact = tmp_path / "artifact"
    make_artifact(checkout, artifact, make | {"ARCHITECTURE": "arm64"}, umask=0o077)
    assert fingerprint(artifact) == fingerprint(deployed["arm64"])


def test_sam_build_makes_it_once_for_all_functions(
    deployed: dict[str, Path], make: dict[str, str], tmp_path: Path
) -> None:
    build = tmp_path / "build"
    cache = subprocess.run([BIN / "uv", "cache", "dir"], capture_output=True, text=True, timeout=60, check=True)
    environment = os.environ | {
        "SAM_CLI_TELEMETRY": "0",
        "HOME": str(tmp_path),
        "UV_CACHE_DIR": cache.stdout.strip(),
        "AWS_DEFAULT_REGION": "us-east-1",
        "MAKEFLAGS": " ".join(f"{name}={value}" for name, value in make.items()),
    }
    result = subprocess.run(
        [str(BIN / "sam"), "build", "--build-dir", str(build), "--no-cached"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (build / "template.yaml").is_file()
    functions = [path for path in build.iterdir() if (path / "workers").is_dir()]
    assert {"OrdersConsumer", "HousekeepingFunction"} <= {path.name for path in functions}
    # `sam deploy` uploads a folder under this checksum, and not again what is there: one artifact for all functions,
    # and none where nothing changed.
    assert {dir_checksum(str(path)) for path in functions} == {dir_checksum(str(deployed["arm64"]))}
    shutil.rmtree(build)
