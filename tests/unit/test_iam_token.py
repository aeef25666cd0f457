from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest

from workers.runtime.failures import WorkerError
from workers.runtime.iam_token import rds_token


@pytest.mark.parametrize("session_token", [None, "tok/en+with=signs=="])
@pytest.mark.parametrize("user", ["spillway_app", "odd user+/=&"])
@pytest.mark.parametrize("region", ["eu-west-1", "us-gov-west-1"])
def test_equals_botocores(monkeypatch: pytest.MonkeyPatch, session_token: str | None, user: str, region: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sec/ret+key")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    if session_token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", session_token)
    host = f"fleet.proxy-abc.{region}.rds.amazonaws.com"
    theirs = boto3.Session().client("rds", region_name=region).generate_db_auth_token(host, 5432, user)
    their_query = parse_qs(urlsplit(f"https://{theirs}").query)
    moment = datetime.strptime(their_query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

    ours = rds_token(host, 5432, user, region, now=moment)

    assert ours.partition("?")[0] == theirs.partition("?")[0]
    assert parse_qs(urlsplit(f"https://{ours}").query) == their_query


def test_without_credentials_says_which_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(WorkerError, match="AWS_ACCESS_KEY_ID: expected AWS credentials"):
        rds_token("h", 5432, "u", "eu-west-1")
