"""The fleet's functions: that what runs is whole, supported, and told the truth."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from spillway.doctor.facts_functions import ALIAS, GOVERNOR, MIGRATE
from spillway.doctor.finding import Finding, fail, passed, skip, warn
from spillway.doctor.fixes import deploy_again
from spillway.doctor.registry import check, deployed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_functions import Function

AREA = "functions"

#: From when on Lambda patches a runtime no longer ("Lambda runtimes", Lambda developer guide, as of 2026-02). Of two
#: dates that AWS's pages give for one, the earlier. What is older than the oldest here is deprecated, too.
DEPRECATED = {
    "python3.10": datetime(2026, 6, 30, tzinfo=UTC),
    "python3.11": datetime(2026, 6, 30, tzinfo=UTC),
    "python3.12": datetime(2028, 10, 31, tzinfo=UTC),
    "python3.13": datetime(2029, 6, 30, tzinfo=UTC),
    "python3.14": datetime(2029, 6, 30, tzinfo=UTC),
}
#: How long before that a warning begins: AWS's own comes 180 days ahead.
NOTICE = timedelta(days=180)

_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|PWD$|SECRET|PRIVATE_KEY|API_?KEY|(?:^|_)TOKEN$")
_SECRET_VALUE = re.compile(
    r"""
      [a-z][a-z0-9+.-]*://[^\s:/@]*:[^\s@/]+@        # a URL with a password
    | \bpassword\s*=\s*[^\s]                         # libpq's keywords
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    | \b(?:AKIA|ASIA)[A-Z2-7]{16}\b                  # an AWS access key's id
    """,
    re.VERBOSE,
)
#: An AWS secret access key: 40 characters of base64, and no path or checksum, which lack one kind or another.
_SECRET_KEY = re.compile(
    r"(?<![\w/+=])(?=[a-z0-9/+]*[A-Z])(?=[A-Z0-9/+]*[a-z])(?=[A-Za-z/+]*[0-9])[A-Za-z0-9/+]{40}(?![\w/+=])"
)


@check("function-ready", area=AREA, needs=deployed)
def function_ready(facts: Facts) -> Iterator[Finding]:
    """Every function can be invoked, and its last update succeeded."""
    for function in facts.functions.values():
        fix = f"aws lambda get-function-configuration --function-name {function.name}"
        if function.state == "Failed":
            yield fail(function.name, f"cannot be invoked: {function.state_reason or 'no reason given'}", fix)
        elif function.update == "Failed":
            said = f"its last update failed: {function.update_reason or 'no reason given'}"
            yield fail(function.name, said, "Deploy again; `aws cloudformation describe-stack-events` says why.")
        elif function.state == "Pending" or function.update == "InProgress":
            yield warn(function.name, "is being created or updated", "Look again in a minute.")
        else:
            yield passed(function.name, "can be invoked")


@check("runtime-supported", area=AREA, needs=deployed)
def runtime_supported(facts: Facts) -> Iterator[Finding]:
    """No function's runtime is deprecated, or will be soon."""
    fix = "Raise Runtime in template.yaml (Globals), build and deploy."
    for function in facts.functions.values():
        runtime = function.runtime
        if not runtime.startswith("python"):
            yield skip(function.name, f"runs on {runtime or 'an image'}, whose dates are not known here")
            continue
        ends = DEPRECATED.get(runtime)
        if ends is None and _minor(runtime) > max(map(_minor, DEPRECATED)):
            yield passed(function.name, f"runs on {runtime}")
        elif ends is None or ends <= facts.now:
            since = f" since {ends:%Y-%m-%d}" if ends else ""
            yield fail(function.name, f"runs on {runtime}, which gets no security patches any more{since}", fix)
        elif ends - facts.now < NOTICE:
            yield warn(function.name, f"runs on {runtime}, which is deprecated from {ends:%Y-%m-%d} on", fix)
        else:
            yield passed(function.name, f"runs on {runtime}, supported until {ends:%Y-%m-%d}")


@check("function-alias", area=AREA, needs=deployed)
def function_alias(facts: Facts) -> Iterator[Finding]:
    """Every consumer has its alias, which leads to a published version."""
    for function in facts.functions.values():
        if function.alias is None:
            continue
        if not function.alias:
            said = f"has no alias {ALIAS}: nothing can be rolled out or back"
            fix = f"aws lambda create-alias --function-name {function.name} --name {ALIAS} --function-version VERSION"
            yield fail(function.name, said, fix)
        elif function.version == "$LATEST":
            said = f"{ALIAS} leads to $LATEST, whatever that is: a rollback would change nothing"
            fix = f"aws lambda update-alias --function-name {function.name} --name {ALIAS} --function-version VERSION"
            yield fail(function.name, said, fix)
        elif function.weights:
            shares = ", ".join(f"{share:.0%} to version {version}" for version, share in function.weights.items())
            said = f"a rollout is under way: {shares}, the rest to version {function.version}"
            yield warn(function.name, said, "Wait for it, or stop it: aws deploy stop-deployment --deployment-id ID.")
        else:
            yield passed(function.name, f"{ALIAS} leads to version {function.version}")


@check("environment-secrets", area=AREA, needs=deployed)
def environment_secrets(facts: Facts) -> Iterator[Finding]:
    """No function has a password or key in its environment."""
    for function in facts.functions.values():
        names = sorted(secrets_in(function.environment))
        if not names:
            yield passed(function.name, "has no secret in its environment")
            continue
        said = f"has what looks like a secret in {', '.join(names)}; everybody who may describe it can read that"
        fix = (
            "Deploy with DatabaseAuth=iam and no DatabasePassword, and change the password."
            if names == ["DATABASE_PASSWORD"]
            else "Move it to Secrets Manager, let the function's role read it, and change it."
        )
        yield fail(function.name, said, fix)


@check("database-tls", area=AREA, needs=deployed)
def database_tls(facts: Facts) -> Iterator[Finding]:
    """Every function verifies the server that it gives its token to."""
    for function in facts.functions.values():
        mode = function.environment.get("DATABASE_SSLMODE")
        if mode is None:
            yield skip(function.name, "does not connect to a database")
        elif mode != "verify-full":
            said = f"connects with sslmode={mode}: it would give its token to whoever answers"
            yield fail(function.name, said, "Deploy with DatabaseSslMode=verify-full.")
        else:
            yield passed(function.name, "verifies the server's certificate and name")


@check("one-route", area=AREA)
def one_route(facts: Facts) -> Iterator[Finding]:
    """All workers reach the database the same way."""
    ways: dict[tuple[str, str], list[str]] = {}
    for function in facts.functions.values():
        if function.logical_id not in (MIGRATE, GOVERNOR) and "DATABASE_HOST" in function.environment:
            way = function.environment.get("DATABASE_ROUTE", ""), function.environment["DATABASE_HOST"]
            ways.setdefault(way, []).append(function.name)
    if len(ways) > 1:
        told = "; ".join(f"{', '.join(names)}: {route}, {host}" for (route, host), names in ways.items())
        said = f"workers reach the database in {len(ways)} ways: {told}"
        yield fail(facts.fleet.name, said, deploy_again(facts, "with the DatabaseRoute that all are to take"))
    else:
        for (route, host), names in ways.items():
            yield passed(facts.fleet.name, f"{len(names)} functions reach the database by {route}, at {host}")
    if not ways:
        yield skip(facts.fleet.name, "no function says where its database is")


@check("queue-urls", area=AREA)
def queue_urls(facts: Facts) -> Iterator[Finding]:
    """Every consumer is told its own queue and dead-letter queue."""
    for function in _consumers(facts):
        worker = facts.fleet.workers.get(function.worker)
        if worker is None:
            yield skip(function.name, "does not run here")
            continue
        told = {"QUEUE_URL": worker.queue_url, "DEAD_LETTER_QUEUE_URL": worker.dead_letter_url}
        wrong = [name for name, url in told.items() if _path(function.environment.get(name, "")) != _path(url)]
        if wrong:
            leads = ", ".join(f"{name} to {_path(function.environment.get(name, '')) or 'nothing'}" for name in wrong)
            said = f"leads elsewhere: {leads}; poison would be lost there, or stay"
            yield fail(function.name, said, deploy_again(facts, "it gets the URLs of its queues"))
        else:
            yield passed(function.name, f"knows {worker.queue} and {worker.dead_letter_queue}")
    if not any(True for _ in _consumers(facts)):
        yield skip(facts.fleet.name, "has no consumer")


@check("environment-drift", area=AREA, needs=deployed)
def environment_drift(facts: Facts) -> Iterator[Finding]:
    """Every function's variables are as the template set them."""
    for function in facts.functions.values():
        if function.logical_id not in facts.stack.wanted.functions:
            continue
        wanted = facts.stack.environment(function.logical_id)
        # CloudFormation tells no parameter that is marked NoEcho.
        different = sorted(
            name for name, value in wanted.items() if value != "****" and function.environment.get(name) != value
        )
        extra = sorted(set(function.environment) - set(facts.stack.wanted.functions[function.logical_id].environment))
        if different or extra:
            words = [f"{', '.join(different)} changed"] * bool(different) + [f"{', '.join(extra)} added"] * bool(extra)
            fix = "Put the change into the template's parameters and deploy, or deploy after setting it back."
            yield warn(function.name, f"has other variables than were deployed: {'; '.join(words)}", fix)
        else:
            yield passed(function.name, f"has the {len(wanted)} variables that were deployed")


def secrets_in(environment: Mapping[str, str]) -> Iterator[str]:
    """The names of variables whose values look like secrets."""
    for name, value in environment.items():
        if not value or value.startswith("arn:"):
            continue  # of a secret, that is: whoever reads the ARN has no secret yet
        if _SECRET_NAME.search(name.upper()) or _SECRET_VALUE.search(value) or _SECRET_KEY.search(value):
            yield name


def _consumers(facts: Facts) -> Iterator[Function]:
    return (one for one in facts.functions.values() if one.worker)


def _minor(runtime: str) -> int:
    number = runtime.rpartition(".")[2]
    return int(number) if number.isdigit() else 0


def _path(url: str) -> str:
    """Account and name: endpoints have several host names."""
    return "/".join(url.rstrip("/").split("/")[-2:])
