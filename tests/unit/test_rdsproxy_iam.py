from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from unittest import mock
from urllib.parse import quote

import botocore.session
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.rdsproxy.iam import TokenRefused, TokenVerifier
from workers.runtime.iam_token import rds_token

KEY_ID, SECRET = "AKIDEXAMPLE", "sec/ret+key"
REGION = "eu-west-1"
HOST = "fleet.proxy-abc.eu-west-1.rds.amazonaws.com"
USER = "spillway_app"
NOW = datetime(2026, 11, 21, 12, 30, 15, tzinfo=UTC)


def ours(
    user: str = USER,
    *,
    host: str = HOST,
    port: int = 5432,
    now: datetime = NOW,
    secret: str = SECRET,
    session_token: str = "",
    region: str = REGION,
) -> str:
    environment = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": session_token}
    with mock.patch.dict("os.environ", environment):
        return rds_token(host, port, user, region, now=now)


@cache
def _client(session_token: str) -> Any:
    session = botocore.session.get_session()
    session.set_credentials(KEY_ID, SECRET, session_token or None)
    return session.create_client("rds", region_name=REGION)


def botocores(user: str, host: str, port: int, session_token: str = "") -> str:
    token: str = _client(session_token).generate_db_auth_token(host, port, user)
    return token


def verifier(host: str = HOST, port: int = 5432) -> TokenVerifier:
    return TokenVerifier({KEY_ID: SECRET, "OTHER": "other"}, REGION, ["localhost", host], port)


def reason(token: str, user: str = USER, now: datetime = NOW) -> str:
    with pytest.raises(TokenRefused) as caught:
        verifier().verify(token, user, now)
    assert SECRET not in caught.value.reason
    return caught.value.reason


USERS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=30)
HOSTS = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,10}[a-zA-Z0-9])?(\.[a-z]{2,5}){0,3}", fullmatch=True)
TIMES = st.datetimes(datetime(2015, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))
SESSION_TOKENS = st.sampled_from(["", "tok/en+with=signs==", "IQoJ"])


@given(user=USERS, host=HOSTS, port=st.integers(1024, 65535), now=TIMES, session_token=SESSION_TOKENS)
def test_accepts_the_workers_tokens(user: str, host: str, port: int, now: datetime, session_token: str) -> None:
    verifier(host, port).verify(ours(user, host=host, port=port, now=now, session_token=session_token), user, now)


@given(user=USERS, host=HOSTS, port=st.integers(1024, 65535), session_token=SESSION_TOKENS)
def test_accepts_botocores_tokens(user: str, host: str, port: int, session_token: str) -> None:
    token = botocores(user, host, port, session_token)
    verifier(host, port).verify(token, user, datetime.now(UTC))


def test_names_are_compared_without_regard_to_case() -> None:
    verifier().verify(ours(host="LocalHost"), USER, NOW)
    verifier(host="FLEET.example").verify(ours(host="fleet.example"), USER, NOW)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "no IAM token"),
        ("hunter2", "no IAM token"),
        (f"{HOST}:5432/?", "no parameter Action"),
        (ours().replace("Action=connect&", ""), "no parameter Action"),
        (ours().partition("&X-Amz-Signature")[0], "no parameter X-Amz-Signature"),
        (ours() + "&Action=connect", "two parameters 'Action'"),
        (ours().replace("connect", "admin"), "Action: expected 'connect', got 'admin'"),
        (ours(user="postgres"), "DBUser: expected 'spillway_app', got 'postgres'"),
        (ours().replace(USER, "%ff"), "not UTF-8"),
        (ours().replace("HMAC-SHA256", "HMAC-SHA1"), "X-Amz-Algorithm"),
        (ours().replace("Headers=host", "Headers=host%3Bx"), "X-Amz-SignedHeaders"),
        (ours(host="db.example"), "it is for 'db.example:5432'; expected one of fleet"),
        (ours(port=6432), "it is for"),
        (ours().replace(":5432/", "/"), "it is for"),
        (ours().replace(KEY_ID, "AKIDNOBODY"), "access key 'AKIDNOBODY' is unknown"),
        (ours(region="eu-west-2"), "credential scope"),
        (ours().replace("rds-db", "rds"), "credential scope"),
        (ours().replace("aws4_request", "aws4"), "credential scope"),
        (ours().replace("%2F20261121%2F", "%2F20261120%2F"), "credential scope"),
        (ours().replace("X-Amz-Date=2026", "X-Amz-Date=202"), "X-Amz-Date: expected"),
        (ours().replace("T123015Z", "T126015Z"), "X-Amz-Date: expected"),
        (ours().replace("Expires=900", "Expires=901"), "X-Amz-Expires"),
        (ours().replace("Expires=900", "Expires=-1"), "X-Amz-Expires"),
        (ours().replace("Expires=900", "Expires=%D9%A9%D9%A0"), "X-Amz-Expires"),
        (ours().replace("Expires=900", "Expires=899"), "signature does not match"),
        (ours(secret="another"), "signature does not match"),
        (ours().replace(KEY_ID, "OTHER"), "signature does not match"),
        (ours() + "x", "signature does not match"),
        (ours()[:-1], "signature does not match"),
        (ours().rpartition("=")[0] + "=", "signature does not match"),
        (ours().rpartition("=")[0] + "=%C3%A9", "signature does not match"),
        (ours() + "&X-Amz-Extra=1", "signature does not match"),
        (ours(session_token="one").replace("Token=one", "Token=two"), "signature does not match"),
        (ours(session_token="one").replace("&X-Amz-Security-Token=one", ""), "signature does not match"),
    ],
)
def test_refuses_and_says_why(token: str, words: str) -> None:
    assert words in reason(token)


def test_a_token_is_for_one_user() -> None:
    assert "DBUser" in reason(ours(), user="postgres")


@given(st.data())
def test_refuses_any_altered_character(data: st.DataObject) -> None:
    token = ours(session_token="one")
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != token[at]))
    altered = token[:at] + other + token[at + 1 :]
    # Host names have no case, and %2f is %2F: still the same request.
    if altered.lower() == token.lower() and (at < len(HOST) or token[max(at - 2, 0) : at + 1].startswith("%2")):
        return
    reason(altered)


@given(st.data())
def test_refuses_any_altered_parameter(data: st.DataObject) -> None:
    endpoint, _, query = ours(session_token="one").partition("/?")
    pairs = [pair.partition("=")[::2] for pair in query.split("&")]
    at = data.draw(st.integers(0, len(pairs) - 1))
    value = data.draw(st.text(st.characters(blacklist_categories=["Cs"]), max_size=80))
    if quote(value, safe="-_.~") == pairs[at][1]:
        return
    pairs[at] = (pairs[at][0], quote(value, safe="-_.~"))
    reason(f"{endpoint}/?{'&'.join(f'{name}={text}' for name, text in pairs)}")


@pytest.mark.parametrize(
    ("seconds", "refused"),
    [(0, ""), (900, ""), (901, "expired"), (86_400, "expired"), (-300, ""), (-301, "from the future")],
)
def test_time(seconds: int, refused: str) -> None:
    later = NOW + timedelta(seconds=seconds)
    if refused:
        assert refused in reason(ours(), now=later)
    else:
        verifier().verify(ours(), USER, later)


def test_reasons_stay_one_short_line() -> None:
    line = reason(ours(user="a\nFATAL: forged" + "x" * 5000))
    assert "\n" not in line
    assert len(line) < 300


@given(st.text(max_size=300))
def test_noise(token: str) -> None:
    reason(token)
