"""The one place that makes AWS clients: timeouts, retries and credentials are decided here."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spillway.errors import SpillwayError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

CONNECT_TIMEOUT_S = 5
#: Longer than SQS's longest long poll (20 s, "Amazon SQS short and long polling"), so that no poll is cut off.
READ_TIMEOUT_S = 30
LOCAL_REGION = "us-east-1"


def sqs_client(
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    *,
    attempts: int = 3,
    connections: int = 10,
) -> SQSClient:
    """An SQS client: see `client`."""
    made: SQSClient = client("sqs", endpoint_url, region, profile, attempts=attempts, connections=connections)
    return made


def client(
    service: str,
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    *,
    attempts: int = 3,
    connections: int = 10,
) -> Any:
    """A boto3 client of `service`; without further arguments it reaches AWS as the AWS CLI would.

    An endpoint on this machine needs no configuration: it gets dummy credentials unless the environment or `profile`
    has some, a region, and no HTTP proxy. `attempts` counts tries of one call; pass 1 where the caller retries
    itself. `connections` is how many threads may use the client at once.
    Raises SpillwayError for an unknown profile, an invalid endpoint, or a region that nobody names.
    """
    # Importing boto3 takes 0.2 s; commands that never talk to SQS do not pay for it.
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import InvalidRegionError, NoRegionError, ProfileNotFound  # noqa: PLC0415

    local = endpoint_url is not None and is_local(endpoint_url)
    dummy = local and profile is None and "AWS_ACCESS_KEY_ID" not in os.environ
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=connections,
        tcp_keepalive=True,
        proxies={} if local else None,
    )
    try:
        # botocore reads AWS_DEFAULT_REGION only; every other SDK, and Lambda, has AWS_REGION.
        session: Any = boto3.Session(profile_name=profile, region_name=region or os.environ.get("AWS_REGION"))
        return session.client(
            service,
            endpoint_url=endpoint_url,
            region_name=session.region_name or (LOCAL_REGION if local else None),
            aws_access_key_id="test" if dummy else None,
            aws_secret_access_key="test" if dummy else None,  # what local SQS servers expect
            config=config,
        )
    except ProfileNotFound as error:
        raise SpillwayError(f"{error}.", "Check --profile, AWS_PROFILE and ~/.aws/config.") from error
    except NoRegionError as error:
        raise SpillwayError("No AWS region is configured.", "Pass --region or set AWS_REGION.") from error
    except InvalidRegionError as error:
        raise SpillwayError(str(error), "Check --region and AWS_REGION; eu-west-1 is one.") from error
    except ValueError as error:
        raise SpillwayError(f"{error}.", "Expected an endpoint like http://127.0.0.1:4566.") from error


def is_local(url: str) -> bool:
    """Whether `url` points to this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
