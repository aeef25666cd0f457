"""How clients come in: TLS in its variants, passwords, and IAM tokens."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import boto3
import psycopg
import pytest

from tests.integration.rdsproxy.conftest import PASSWORD, ROLE, refusal
from workers.runtime.iam_token import rds_token

if TYPE_CHECKING:
    from tests.integration.rdsproxy.conftest import ProxiedDatabase, StartProxy

KEY_ID, SECRET_KEY, REGION = "AKIDEXAMPLE", "sec/ret+key", "eu-central-1"


def verifying(proxied: ProxiedDatabase) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=proxied.proxy.ca_file)


def works(proxied: ProxiedDatabase, **arguments: Any) -> bool:
    """Whether the client has TLS; that the connection works is asserted."""
    with proxied.connect(**arguments) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (ROLE,)
        with connection.transaction():
            content = "x" * 100_000
            assert connection.execute("SELECT %s::text", (content,)).fetchone() == (content,)
        proxied.never_pinned()
        return bool(connection.pgconn.ssl_in_use)


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-full"])
def test_every_sslmode(proxied: ProxiedDatabase, mode: str) -> None:
    arguments = {"sslrootcert": proxied.proxy.ca_file} if mode == "verify-full" else {}
    assert works(proxied, sslmode=mode, **arguments) == (mode != "disable")


def test_direct_tls_negotiation(proxied: ProxiedDatabase) -> None:
    assert works(proxied, sslmode="verify-full", sslrootcert=proxied.proxy.ca_file, sslnegotiation="direct")


def test_another_authority_is_not_trusted(proxied: ProxiedDatabase, start_proxy: StartProxy) -> None:
    other = start_proxy()
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        proxied.connect(sslmode="verify-full", sslrootcert=other.proxy.ca_file)


def test_asyncpg_over_verified_tls(proxied: ProxiedDatabase) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(proxied.dsn, ssl=verifying(proxied), statement_cache_size=0)
        assert await connection.fetchval("SELECT $1::text", "x" * 100_000) == "x" * 100_000
        await connection.close()

    asyncio.run(run())
    proxied.never_pinned()


def test_a_proxy_without_tls_says_no_politely(start_proxy: StartProxy) -> None:
    proxied = start_proxy(tls=False)
    assert proxied.proxy.ca_file is None
    assert works(proxied) is False
    with pytest.raises(psycopg.OperationalError, match="server does not support SSL"):
        proxied.connect(sslmode="require")


def test_required_tls(start_proxy: StartProxy) -> None:
    proxied = start_proxy(require_tls=True)
    assert works(proxied)
    with pytest.raises(psycopg.OperationalError, match="This RDS Proxy requires TLS connections"):
        proxied.connect(sslmode="disable")
    assert refusal(proxied, ssl=False) == ("28000", "This RDS Proxy requires TLS connections.")


def test_wrong_passwords_and_unknown_users(proxied: ProxiedDatabase) -> None:
    code, said = refusal(proxied, password="not the password")
    assert (code, said) == ("28P01", f"The password that was provided for the role {ROLE} is wrong.")
    code, said = refusal(proxied, user="stranger")
    assert code == "28000"
    assert said.startswith("This RDS proxy has no credentials for the role stranger.")
    assert works(proxied)


@pytest.fixture
def with_iam(start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> ProxiedDatabase:
    """A proxy that wants IAM tokens; the environment holds the credentials to sign them with."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    return start_proxy(iam_auth="required", credentials={KEY_ID: SECRET_KEY}, region=REGION)


def token(proxied: ProxiedDatabase, user: str = ROLE, region: str = REGION, age: timedelta = timedelta(0)) -> str:
    return rds_token(proxied.proxy.host, proxied.proxy.port, user, region, now=datetime.now(UTC) - age)


def test_an_iam_token_lets_in(with_iam: ProxiedDatabase) -> None:
    arguments = {"sslmode": "verify-full", "sslrootcert": with_iam.proxy.ca_file}
    assert works(with_iam, password=token(with_iam), **arguments)
    assert works(with_iam, password=token(with_iam, age=timedelta(minutes=14)), **arguments)
    client = boto3.Session().client("rds", region_name=REGION)
    botocores = client.generate_db_auth_token(with_iam.proxy.host, with_iam.proxy.port, ROLE)
    assert works(with_iam, password=botocores, **arguments)


def test_iam_tokens_that_are_refused(with_iam: ProxiedDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    good = token(with_iam)
    refused = {
        "another user's": token(with_iam, user="somebody_else"),
        "expired": token(with_iam, age=timedelta(minutes=16)),
        "from the future": token(with_iam, age=-timedelta(hours=1)),
        "for another region": token(with_iam, region="us-east-1"),
        "for another port": rds_token(with_iam.proxy.host, 1, ROLE, REGION),
        "changed": good[:-1] + ("0" if good[-1] != "0" else "1"),
        "the password": PASSWORD,
        "empty query": good.partition("?")[0],
    }
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another key")
    refused["signed with another key"] = token(with_iam)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDUNKNOWN")
    refused["signed by nobody we know"] = token(with_iam)
    for what, password in refused.items():
        code, said = refusal(with_iam, password=password, ssl=verifying(with_iam))
        assert (code, said.partition(".")[0]) == ("28P01", f"IAM authentication failed for user {ROLE}"), what
        with pytest.raises(psycopg.OperationalError, match="IAM authentication failed"):
            with_iam.connect(password=password, sslmode="verify-full", sslrootcert=with_iam.proxy.ca_file)


def test_iam_needs_tls(with_iam: ProxiedDatabase) -> None:
    assert refusal(with_iam, password=token(with_iam), ssl=False) == (
        "28000",
        "IAM authentication is allowed only with SSL connections.",
    )
