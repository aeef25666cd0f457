"""Servers that the stack tests share: one of each per session, on 127.0.0.1 and a free port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from spillway.stack.sqs_server import MinistackServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.stack.processes import Processes


@pytest.fixture(scope="session")
def sqs_endpoint(processes: Processes) -> Iterator[str]:
    """The URL of a real SQS server; its queues are in memory and every test's to make."""
    with MinistackServer(processes) as server:
        yield server.endpoint_url
