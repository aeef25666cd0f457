"""Where a worker's SQS client looks for its queues."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_settings import GOOD
from workers.orders.contract import OrderEvent
from workers.runtime import worker
from workers.runtime.settings import Settings
from workers.runtime.sqs import Sqs, endpoint_of

LOCAL = "http://172.17.0.1:20441/000000000000/spillway-orders"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (LOCAL, "http://172.17.0.1:20441"),
        ("http://localhost:4566/000000000000/q", "http://localhost:4566"),
        ("http://[::1]:4566/000000000000/q", "http://[::1]:4566"),
        ("https://sqs.example.internal/1/q", "https://sqs.example.internal"),
        ("https://notamazonaws.com/1/q", "https://notamazonaws.com"),
        # AWS's, in every partition and spelling: boto3 decides.
        ("https://sqs.eu-central-1.amazonaws.com/123456789012/q", None),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", None),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com/123456789012/q", None),
        ("https://eu-central-1.queue.amazonaws.com/123456789012/q", None),
        ("https://queue.amazonaws.com/123456789012/q", None),
        ("HTTPS://SQS.EU-CENTRAL-1.AMAZONAWS.COM/123456789012/q", None),
        # Nothing that a client could be pointed to.
        ("", None),
        ("spillway-orders", None),
        ("/123456789012/q", None),
        ("ftp://example.org/q", None),
        ("http://", None),
        ("http://[/q", None),
    ],
)
def test_a_queue_elsewhere_than_on_aws_is_where_its_url_says(url: str, expected: str | None) -> None:
    assert endpoint_of(url, {}) == expected


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"])
def test_a_configured_endpoint_goes_first(name: str) -> None:
    assert endpoint_of(LOCAL, {name: "http://127.0.0.1:1"}) is None
    assert endpoint_of(LOCAL, {name: ""}) == "http://172.17.0.1:20441"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (LOCAL, "http://172.17.0.1:20441"),
        ("https://sqs.eu-central-1.amazonaws.com/123456789012/q", "https://sqs.eu-central-1.amazonaws.com"),
        ("", "https://sqs.eu-central-1.amazonaws.com"),
    ],
)
def test_the_client_has_that_endpoint(url: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert Sqs(url=url).client.meta.endpoint_url == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"QUEUE_URL": LOCAL}, LOCAL),
        ({"QUEUE_URL": "", "DEAD_LETTER_QUEUE_URL": f"{LOCAL}-dlq"}, f"{LOCAL}-dlq"),
        ({"QUEUE_URL": ""}, ""),
    ],
)
def test_a_worker_looks_where_its_own_queues_are(
    changes: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(worker, "Sqs", lambda *, url: made.append(url) or Sqs(url=url))
    store: Any = None
    worker.build_processor("orders", OrderEvent, Settings.from_env(GOOD | changes), store)
    assert made == [expected]
