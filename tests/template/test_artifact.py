"""What `sam build` puts into the Lambda, and what of it the handler loads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cold_start import build_artifact
from spillway.stack.template import REPOSITORY

BIN = Path(sys.executable).parent

# Cold start is paid by the user (docs/benchmarks.md). psycopg, msgspec, powertools and the standard library are the
# floor.
NOT_ON_THE_HOT_PATH = {
    "boto3", "botocore", "pydantic", "jsonschema", "psycopg_pool", "typer", "rich", "click", "spillway", "yaml",
    "aws_lambda_powertools.utilities.parser", "aws_xray_sdk", "requests", "urllib3",
}  # fmt: skip


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


def test_sam_build_makes_it(tmp_path: Path) -> None:
    build = tmp_path / "build"
    environment = os.environ | {
        "SAM_CLI_TELEMETRY": "0",
        "HOME": str(tmp_path),
        "AWS_DEFAULT_REGION": "us-east-1",
        "BIN": str(BIN),
        "VENV": str(BIN.parent),
        "MAKEFLAGS": f"VENV={BIN.parent}",
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
    handler = build / "OrdersConsumer/workers/orders/handler.py"
    assert handler.is_file()
    # For what is deployed (Python 3.13 on arm64), not for what happens to run here.
    assert list((build / "OrdersConsumer/msgspec").glob("*cpython-313-aarch64*.so"))
    shutil.rmtree(build)
