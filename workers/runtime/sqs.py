"""The worker's SQS client, made when something is dead-lettered or delayed for the first time."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Record = dict[str, Any]

#: SQS quotas: entries per batch request; bytes per batch and message; attributes per message.
MAX_ENTRIES = 10
MAX_BATCH_BYTES = 1_048_576
MAX_ATTRIBUTES = 10

#: Seconds for the client to connect, and for each read. It tries once: what fails stays in its queue and comes again.
CLIENT_TIMEOUT_S = 1.0
#: The longest that one request can take, in seconds.
REQUEST_S = 2 * CLIENT_TIMEOUT_S

#: Requests at once. More only help a processor that is not the bottleneck: signing and parsing take 1.1 ms of one.
CONNECTIONS = 4


class Sqs:
    """One lazily made client for the server of the queue at `url`.

    Making it raises what boto3 raises, each time, so that a later batch tries again.
    """

    def __init__(self, make: Callable[[], Any] | None = None, *, url: str = "") -> None:
        self._make = make or partial(_client, url)
        self._made: Any = None

    @property
    def client(self) -> Any:
        """A boto3 SQS client; boto3's clients are thread-safe."""
        if self._made is None:
            self._made = self._make()
        return self._made


def receive_count(record: Record) -> int:
    """How often SQS has handed `record` out, this time included; 1 where it does not say."""
    count = (record.get("attributes") or {}).get("ApproximateReceiveCount", "1")
    return int(count) if count.isascii() and count.isdigit() else 1


def group_of(record: Record) -> str:
    """The FIFO group of `record`."""
    return str((record.get("attributes") or {}).get("MessageGroupId", ""))


def is_fifo(record: Record) -> bool:
    """Whether `record` came from a FIFO queue. On a standard queue a MessageGroupId orders nothing ("fair queues")."""
    return str(record.get("eventSourceARN", "")).endswith(".fifo")


def endpoint_of(url: str, env: Mapping[str, str]) -> str | None:
    """Where the server of the queue at `url` is; None to let boto3 decide.

    boto3 decides on AWS, where it knows the Region's endpoint and heeds FIPS and dual-stack settings, and where `env`
    names an endpoint. Everywhere else a queue is where its URL says: `sam local invoke` passes no variable that the
    template does not have, so a function in a container knows its SQS server by nothing else.
    """
    if env.get("AWS_ENDPOINT_URL_SQS") or env.get("AWS_ENDPOINT_URL"):
        return None
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not host or ".amazonaws.com" in f".{host}":  # China's ends in .cn
        return None
    return f"{parts.scheme}://{parts.netloc}"


def _client(url: str) -> Any:
    # boto3 more than doubles a cold start, and most environments never need it.
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        connect_timeout=CLIENT_TIMEOUT_S,
        read_timeout=CLIENT_TIMEOUT_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
    )
    return boto3.client("sqs", endpoint_url=endpoint_of(url, os.environ), config=config)
