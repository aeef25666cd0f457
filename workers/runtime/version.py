"""Which version of the worker wrote something down."""

from __future__ import annotations

import os

#: The package's version, which a test holds to pyproject.toml: the artifact does not hold the package's metadata.
VERSION = "0.1.0"


def worker_version() -> str:
    """The package's version and, in Lambda, the function's: like `0.1.0+17`, or `0.1.0+$LATEST`."""
    function = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION", "")
    return f"{VERSION}+{function}" if function else VERSION
