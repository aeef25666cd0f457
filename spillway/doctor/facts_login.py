"""What becomes of logging in: as the workers do, and in the ways that must be refused."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from workers import runtime
from workers.runtime.database import authorities
from workers.runtime.iam_token import rds_token

if TYPE_CHECKING:
    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_functions import Function

#: A server in the VPC that this machine cannot reach does not answer at all.
REACH_TIMEOUT_S = 3
CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Attempt:
    """`error` is the server's or libpq's word, '' where the login went through."""

    error: str = ""

    @property
    def done(self) -> bool:
        return not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The attempts. `skipped` is why there are none. `password_known` is whether the real one was tried.

    token: an IAM token, and verify-full; password: a password instead of it; plain: a made-up one without TLS, because
    whoever listens would have read it.
    """

    user: str = ""
    endpoint: str = ""
    skipped: str = ""
    password_known: bool = False
    token: Attempt = Attempt()
    password: Attempt = Attempt()
    plain: Attempt = Attempt()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    host: str
    port: int
    database: str
    user: str
    ca_file: str


def load(facts: Facts) -> Login:
    """Raises botocore's errors, and nothing for a refusal, which is what it is about.

    Every connection is autocommit, runs SELECT 1 at most and is closed: nothing here can pin.
    """
    if facts.fleet.local is not None:
        login = facts.fleet.local.login
        if login is None:
            return Login(skipped="the local stack does not say how its workers log in: start it anew")
        if not login.proxy:
            return Login(skipped="the local stack runs without a proxy, and so without TLS and tokens")
        way = _Way(
            host=login.host, port=login.port, database=login.database, user=login.user, ca_file=login.ca_file or ""
        )
        keys = login.access_key, login.secret_key, login.session_token
        return _attempts(way, _token(way, facts.fleet.region or "", *keys), login.password)
    function = next(
        (one for one in facts.functions.values() if one.worker and "DATABASE_HOST" in one.environment), None
    )
    if function is None:
        return Login(skipped="no function says where its database is")
    return _deployed(facts, function)


def _deployed(facts: Facts, function: Function) -> Login:
    told = function.environment
    if told.get("DATABASE_AUTH") != "iam":
        return Login(skipped="workers log in with a password (DatabaseAuth)")
    way = _Way(
        host=told["DATABASE_HOST"],
        port=int(told.get("DATABASE_PORT", "5432")),
        database=told.get("DATABASE_NAME", ""),
        user=told.get("DATABASE_USER", ""),
        ca_file=_authorities(told),
    )
    try:
        socket.create_connection((way.host, way.port), REACH_TIMEOUT_S).close()
    except OSError:
        return Login(skipped=f"{way.host} cannot be reached from here: run it inside the VPC")
    return _attempts(way, _token(way, facts.fleet.region or "", *_own_keys(facts)), None)


def _attempts(way: _Way, token: str, password: str | None) -> Login:
    verify = {"sslmode": "verify-full", "sslrootcert": way.ca_file}
    return Login(
        user=way.user,
        endpoint=f"{way.host}:{way.port}",
        password_known=password is not None,
        token=_attempt(way, token, verify),
        # Where the real one is not known, any: what the server says tells whether it would take one.
        password=_attempt(way, password or secrets.token_urlsafe(24), verify),
        plain=_attempt(way, secrets.token_urlsafe(24), {"sslmode": "disable"}),
    )


def _attempt(way: _Way, password: str, tls: Mapping[str, str]) -> Attempt:
    try:
        with psycopg.connect(
            host=way.host,
            port=way.port,
            dbname=way.database,
            user=way.user,
            password=password,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="spillway-doctor",
            autocommit=True,
            prepare_threshold=None,
            **dict(tls),  # type: ignore[arg-type]
        ) as connection:
            connection.execute("SELECT 1")  # the whole way: the proxy borrows a connection for it
    except psycopg.Error as error:
        return Attempt(_said(error))
    return Attempt()


def _said(error: psycopg.Error) -> str:
    """The first line, without libpq's words for "failed" and with nothing of what was sent."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^[A-Z]+: +", "", line.rpartition(" failed: ")[2]).rstrip(".")


def _token(way: _Way, region: str, access_key: str, secret_key: str, session_token: str | None) -> str:
    """Signed as a worker signs it, with other credentials."""
    credentials = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
    if session_token:
        credentials["AWS_SESSION_TOKEN"] = session_token
    return rds_token(way.host, way.port, way.user, region, env=credentials)


def _own_keys(facts: Facts) -> tuple[str, str, str | None]:
    """The credentials that the doctor itself has. Raises botocore's errors where there are none."""
    import boto3  # noqa: PLC0415
    from botocore.exceptions import NoCredentialsError  # noqa: PLC0415

    found: Any = boto3.Session(profile_name=facts.fleet.profile).get_credentials()
    if found is None:
        raise NoCredentialsError
    keys = found.get_frozen_credentials()
    return keys.access_key, keys.secret_key, keys.token


def _authorities(told: Mapping[str, str]) -> str:
    """A file of this machine with the authorities that the function trusts by a path of its own."""
    given = told.get("DATABASE_SSLROOTCERT", "")
    if given.startswith("-----"):
        return authorities(given)
    if told.get("DATABASE_ROUTE") == "direct":
        return str(Path(runtime.__file__).parent / "rds-ca.pem")
    # An RDS Proxy's certificate comes from a public authority; botocore has a bundle of those.
    from botocore.httpsession import where  # noqa: PLC0415

    bundle: str = where()
    return bundle
