"""Logging in: with a token over verified TLS, and in no other way."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spillway.doctor.finding import Finding, fail, passed, skip, warn
from spillway.doctor.fixes import spillway
from spillway.doctor.registry import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spillway.doctor.facts import Facts

AREA = "login"

_CERTIFICATE = re.compile(r"certificate|SSL error|server name|does not support SSL", re.IGNORECASE)
#: What an RDS Proxy that would take a password says to a wrong one; PostgreSQL's own words follow.
_TAKES_PASSWORDS = re.compile(r"password that was provided for the role|^password authentication failed", re.IGNORECASE)
_WANTS_TLS = re.compile(r"TLS|SSL|no encryption", re.IGNORECASE)
#: The server said no, and not the way there.
_REFUSAL = re.compile(r"authentication|pg_hba|password|credentials|token", re.IGNORECASE)
_NO_TOKEN = re.compile(r"(IAM|PAM) authentication failed", re.IGNORECASE)


@check("certificate", area=AREA)
def certificate(facts: Facts) -> Iterator[Finding]:
    """The server's certificate verifies, for the name that the workers call it."""
    login = facts.login
    if login.skipped:
        yield skip(facts.fleet.name, login.skipped)
    elif _CERTIFICATE.search(login.token.error):
        fix = (
            "Check DATABASE_HOST and DATABASE_SSLROOTCERT: the name must be in the certificate, its issuer in the file."
        )
        yield fail(login.endpoint, f"its certificate does not verify: {login.token.error}", fix)
    else:
        yield passed(login.endpoint, "its certificate verifies, issuer and name")


@check("iam-login", area=AREA)
def iam_login(facts: Facts) -> Iterator[Finding]:
    """A token lets the workers' role in, and it gets an answer."""
    login = facts.login
    if login.skipped:
        yield skip(facts.fleet.name, login.skipped)
    elif login.token.done:
        yield passed(login.endpoint, f"lets {login.user} in with a token, and answers")
    elif _CERTIFICATE.search(login.token.error):
        yield skip(login.endpoint, "no token was sent: its certificate does not verify")
    elif facts.fleet.local is None and _NO_TOKEN.search(login.token.error):
        # Most operators may not log in as the workers, and cannot tell this from a proxy that refuses those.
        said = f"refuses a token of these credentials for {login.user}"
        yield skip(login.endpoint, said, f"Allow rds-db:connect for {login.user} to look.")
    else:
        said = f"does not let {login.user} in with a token: {login.token.error}"
        yield fail(login.endpoint, said, _login_fix(facts))


@check("password-refused", area=AREA)
def password_refused(facts: Facts) -> Iterator[Finding]:
    """A password does not let anybody in as the workers' role."""
    login = facts.login
    fix = "Set IAMAuth REQUIRED on the proxy (infra/proxy.yaml does): aws rds modify-db-proxy --auth ..."
    if login.skipped:
        yield skip(facts.fleet.name, login.skipped)
    elif login.password.done:
        yield fail(login.endpoint, f"lets {login.user} in with a password", fix)
    elif _CERTIFICATE.search(login.password.error):
        yield skip(login.endpoint, "no password was sent: its certificate does not verify")
    elif not login.password_known and _TAKES_PASSWORDS.search(login.password.error):
        yield fail(login.endpoint, f"would let {login.user} in with the right password", fix)
    elif _REFUSAL.search(login.password.error):
        yield passed(login.endpoint, f"refuses passwords: {login.password.error}")
    else:
        yield skip(login.endpoint, f"could not be asked: {login.password.error}")


@check("plain-refused", area=AREA)
def plain_refused(facts: Facts) -> Iterator[Finding]:
    """A connection without TLS is refused."""
    login = facts.login
    if login.skipped:
        yield skip(facts.fleet.name, login.skipped)
    elif _WANTS_TLS.search(login.plain.error):
        yield passed(login.endpoint, f"refuses connections without TLS: {login.plain.error}")
    elif login.plain.done or _REFUSAL.search(login.plain.error):
        # Refused for what was sent, not for how: it has read that by then, and so has whoever listens.
        fix = "Set RequireTLS on the proxy (aws rds modify-db-proxy --require-tls), rds.force_ssl on a database."
        yield fail(login.endpoint, "takes connections without TLS: a token can be read on the way", fix)
    else:
        yield warn(login.endpoint, f"could not be asked without TLS: {login.plain.error}", "Try again.")


def _login_fix(facts: Facts) -> str:
    if facts.fleet.local is not None:
        return f"Its log says why: {facts.fleet.local.log_dir}/rdsproxy.log"
    return f"Its log group says why; whether its target is available: {spillway(facts, 'doctor --area proxy')}"
