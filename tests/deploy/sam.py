"""The SAM CLI as an operator calls it, against an Account."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.deploy.emulator import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.deploy.emulator import Account

TIMEOUT_S = 240
BIN = Path(sys.executable).parent


class Refused(AssertionError):
    """The SAM CLI ended with an error; the message is what it printed."""


@dataclass
class Sam:
    """One folder with a template.yaml, built and deployed to one account."""

    directory: Path
    account: Account
    #: Variables for `make`, which builds the artifact.
    make: Mapping[str, str]

    def build(self) -> None:
        """`sam build`, for the Python and processor that run here."""
        self._run("build", "--build-in-source")

    def deploy(self, stack: str, parameters: Mapping[str, str]) -> str:
        """`sam deploy` of what was built; returns what it printed. Raises Refused."""
        overrides = [f"{name}={value}" for name, value in parameters.items()]
        return self._run(
            "deploy",
            *("--stack-name", stack, "--region", CREDENTIALS["AWS_REGION"]),
            *("--resolve-s3", "--no-confirm-changeset", "--no-progressbar", "--no-fail-on-empty-changeset"),
            *("--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"),
            *(["--parameter-overrides", *overrides] if overrides else []),
        )

    def _run(self, command: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(BIN / "sam"), command, *arguments],
            cwd=self.directory,
            env={key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SAM_", "DATABASE_"))}
            | CREDENTIALS
            | {
                "AWS_ENDPOINT_URL": self.account.endpoint_url,
                "AWS_CA_BUNDLE": str(self.account.ca_file),
                "AWS_EC2_METADATA_DISABLED": "true",
                "HOME": str(self.account.directory),
                "UV_CACHE_DIR": self._uv_cache(),
                "SAM_CLI_TELEMETRY": "0",
                "SAM_CLI_POLL_DELAY": "0.2",
                "MAKEFLAGS": " ".join(f"{name}={value}" for name, value in self.make.items()),
            },
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise Refused(f"sam {command}:\n{_end_of(done.stdout)}\n{_end_of(done.stderr)}\n{self.account.log_tail()}")
        return done.stdout

    @staticmethod
    def _uv_cache() -> str:
        asked = subprocess.run(
            [str(BIN / "uv"), "cache", "dir"], capture_output=True, text=True, timeout=30, check=True
        )
        return asked.stdout.strip()


def _end_of(text: str, characters: int = 6000) -> str:
    return text[-characters:]
