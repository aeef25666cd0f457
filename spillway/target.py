"""Which queue a command talks to: the running local stack's, or the one its options name."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from spillway.aws import is_local
from spillway.errors import SpillwayError
from spillway.stack.state import read_state

_AWS_HOST = re.compile(r"sqs\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?")


class Target(NamedTuple):
    """A queue and how to reach it. `identity` also tells one run of the local stack from the next."""

    queue_url: str
    endpoint_url: str | None
    region: str | None
    profile: str | None
    identity: str


def find_target(
    worker: str,
    queue_url: str | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
) -> Target:
    """The queue of `worker` on the local stack, unless `queue_url` names one.

    With `queue_url`, the endpoint is that machine if the URL is local, else AWS; the region is the URL's.
    Raises SpillwayError when neither gives a queue.
    """
    if queue_url is not None:
        url = urlsplit(queue_url)
        if not (url.scheme in {"http", "https"} and url.netloc and url.path.strip("/")):
            raise SpillwayError(
                f"{queue_url!r} is not a queue URL.",
                "Expected one like https://sqs.eu-west-1.amazonaws.com/123456789012/orders.",
            )
        if endpoint_url is None and is_local(queue_url):
            endpoint_url = f"{url.scheme}://{url.netloc}"
        if region is None and (match := _AWS_HOST.fullmatch(url.hostname or "")):
            region = match["region"]
        return Target(queue_url, endpoint_url, region, profile, queue_url)
    if endpoint_url or region or profile:
        raise SpillwayError("--endpoint-url, --region and --profile need --queue-url.", "Name the queue, too.")
    state = read_state()
    if state is None:
        raise SpillwayError(
            "No local stack is running.", "Start one with `spillway up`, or name a queue with --queue-url."
        )
    if worker not in state.queues:
        known = ", ".join(sorted(state.queues)) or "none"
        raise SpillwayError(f"The local stack has no queue for {worker!r}.", f"It has: {known}.")
    url_ = state.queues[worker]
    return Target(url_, state.endpoint_url, state.region, None, f"{url_} since {state.started_at}")
