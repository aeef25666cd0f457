"""The database: that it is what this version of the workers needs, and that a worker can do no more than its work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spillway.doctor.facts_database import a_database
from spillway.doctor.finding import Finding, fail, passed, skip, warn
from spillway.doctor.registry import check
from workers.migrate import roles
from workers.migrate.runner import MigrationError, newer, plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spillway.doctor.facts import Facts
    from spillway.doctor.facts_database import Database, Role

AREA = "database"

#: The most locks that one batch of a worker holds (workers/*/apply.sql).
LOCKS_OF_A_BATCH = {"inventory": 512, "audit": 128, "payments": 20}
#: The lock table grows into shared memory that is spare, about as much again by PostgreSQL's defaults: of 6,400 locks
#: that are promised it failed at 14,500 (workers/inventory/apply.sql). Beyond twice what is promised is beyond that.
SPARE_FACTOR = 2

_UNITS_MS = {"": 1, "ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_TIME = re.compile(r"(\d+)\s*(ms|s|min|h|d|)")


@check("migrations-applied", area=AREA, needs=a_database)
def migrations_applied(facts: Facts) -> Iterator[Finding]:
    """Every migration of this checkout was applied, and none was edited afterwards."""
    database = facts.database
    try:
        todo = plan(list(database.migrations), dict(database.applied), accept_newer=True)
    except MigrationError as error:
        yield fail(database.name, str(error), "Check out the version that is deployed, or restore the file.")
        return
    if todo:
        names = ", ".join(one.name for one in todo)
        yield fail(database.name, f"lacks {names}, as this checkout has it", _migrate(facts))
    else:
        yield passed(database.name, f"has all {len(database.migrations)} migrations, unmodified")


@check("migrations-known", area=AREA, needs=a_database)
def migrations_known(facts: Facts) -> Iterator[Finding]:
    """The database was not migrated by newer code than this checkout."""
    database = facts.database
    if names := newer(list(database.migrations), dict(database.applied)):
        said = f"has {', '.join(names)}, which this checkout does not know"
        yield warn(database.name, said, "Run the doctor from the version that is deployed.")
    else:
        yield passed(database.name, "has no migration that this checkout does not know")


@check("roles-exist", area=AREA, needs=a_database)
def roles_exist(facts: Facts) -> Iterator[Finding]:
    """The workers' login exists, may log in, and belongs to the group that may call their functions."""
    database = facts.database
    group = database.roles.get(roles.GROUP)
    if group is None:
        yield fail(roles.GROUP, "does not exist", _migrate(facts))
    elif group.can_login:
        said = "may log in: it is the group and nobody's login"
        yield fail(roles.GROUP, said, f"ALTER ROLE {roles.GROUP} NOLOGIN")
    for name in _expected(database):
        role = database.roles.get(name)
        if role is None:
            yield fail(name, "does not exist", _migrate(facts))
        elif not role.can_login:
            yield fail(name, "may not log in", f"ALTER ROLE {name} LOGIN")
        elif roles.GROUP not in role.groups:
            yield fail(name, f"is not in {roles.GROUP}, and may call no function", f"GRANT {roles.GROUP} TO {name}")
        else:
            yield passed(name, f"may log in and is in {roles.GROUP}")


@check("role-powers", area=AREA, needs=a_database)
def role_powers(facts: Facts) -> Iterator[Finding]:
    """The workers' roles are no superusers and may make no roles or databases."""
    for role in facts.database.roles.values():
        if role.powers:
            no = " ".join(f"NO{power}" for power in role.powers)
            yield fail(role.name, f"has {', '.join(role.powers)}", f"ALTER ROLE {role.name} {no}")
        else:
            yield passed(role.name, "has no power beyond its grants")
    yield from _none(facts)


@check("role-timeouts", area=AREA, needs=a_database)
def role_timeouts(facts: Facts) -> Iterator[Finding]:
    """The login's timeouts are those that follow from DatabaseStatementTimeout."""
    seconds = int(facts.stack.parameters["DatabaseStatementTimeout"])
    for role in _logins(facts.database):
        login = roles.LoginRole.with_timeouts(role.name, None, seconds)
        expected = {
            "statement_timeout": login.statement_timeout_ms,
            "lock_timeout": login.lock_timeout_ms,
            "idle_in_transaction_session_timeout": login.idle_in_transaction_session_timeout_ms,
        }
        wrong = [
            f"{name} is {role.settings.get(name, 'not set')} and not {value} ms"
            for name, value in expected.items()
            if _milliseconds(role.settings.get(name, "")) != value
        ]
        if wrong:
            yield fail(role.name, "; ".join(wrong), _migrate(facts))
        else:
            yield passed(role.name, f"has the timeouts of DatabaseStatementTimeout {seconds} s")
    yield from _none(facts)


@check("role-search-path", area=AREA, needs=a_database)
def role_search_path(facts: Facts) -> Iterator[Finding]:
    """The login finds the workers' functions by the role's own search_path, not by a SET that would pin."""
    for role in _logins(facts.database):
        path = role.settings.get("search_path", "")
        if [part.strip(' "') for part in path.split(",")] == ["spillway", "pg_temp"]:
            yield passed(role.name, f"has search_path {path}")
        else:
            said = f"has search_path {path or 'of the server'} and not spillway, pg_temp"
            yield fail(role.name, said, f"ALTER ROLE {role.name} SET search_path = spillway, pg_temp")
    yield from _none(facts)


@check("role-iam", area=AREA, needs=a_database)
def role_iam(facts: Facts) -> Iterator[Finding]:
    """Membership of rds_iam is as the way of logging in needs it."""
    database = facts.database
    if not database.has_rds_iam:
        yield skip(database.name, f"has no {roles.RDS_IAM}: only RDS has")
        return
    by_secret = facts.stack.parameters.get("ProxyAuthentication") == "secret"
    for role in _logins(database):
        member, direct = roles.RDS_IAM in role.groups, role.name.endswith(roles.DIRECT_SUFFIX)
        if direct or not by_secret:
            if member:
                yield passed(role.name, f"is in {roles.RDS_IAM} and logs in with tokens")
            else:
                said = f"is not in {roles.RDS_IAM}: no token lets it in"
                yield fail(role.name, said, f"GRANT {roles.RDS_IAM} TO {role.name}")
        elif member:
            said = f"is in {roles.RDS_IAM}, so RDS refuses the password of the secret that the proxy logs in with"
            yield fail(role.name, said, f"REVOKE {roles.RDS_IAM} FROM {role.name}")
        else:
            yield passed(role.name, "logs in with the secret's password")


@check("worker-functions", area=AREA, needs=a_database)
def worker_functions(facts: Facts) -> Iterator[Finding]:
    """What workers call runs as its owner, on a search_path of its own, and may be called by them."""
    functions = {one.name: one for one in facts.database.functions}
    for worker in facts.fleet.workers:
        name = f"apply_{worker}"
        if name not in functions:
            yield fail(name, "does not exist", _migrate(facts))
        elif not functions[name].worker:
            said = f"may not be called by {roles.GROUP}"
            yield fail(name, said, f"GRANT EXECUTE ON FUNCTION spillway.{name}(jsonb) TO {roles.GROUP}")
    for one in functions.values():
        if not one.worker:
            continue
        if not one.security_definer:
            said = "is not SECURITY DEFINER: it needs rights on tables that no worker has"
            yield fail(one.name, said, f"ALTER FUNCTION spillway.{one.name} SECURITY DEFINER")
        elif "pg_temp" not in one.settings.get("search_path", ""):
            said = (
                "is SECURITY DEFINER without a search_path of its own: a caller's tables could take its tables' place"
            )
            yield fail(one.name, said, f"ALTER FUNCTION spillway.{one.name} SET search_path = spillway, pg_temp")
        else:
            yield passed(one.name, "runs as its owner on its own search_path")


@check("least-privilege", area=AREA, needs=a_database)
def least_privilege(facts: Facts) -> Iterator[Finding]:
    """Nobody else may call the functions, and workers touch no table past them."""
    database = facts.database
    for one in database.functions:
        if one.public:
            fix = f"REVOKE ALL ON FUNCTION spillway.{one.name} FROM PUBLIC"
            yield fail(one.name, "may be called by everybody who may log in", fix)
    for name in database.tables:
        said = "may be read or written by a worker's login directly, and not by its functions alone"
        yield fail(name, said, f"REVOKE ALL ON spillway.{name} FROM PUBLIC, {roles.GROUP}, {database.user}")
    if not database.tables and not any(one.public for one in database.functions):
        yield passed(database.name, f"{len(database.functions)} functions, none public; no table open to a worker")


@check("lock-space", area=AREA, needs=a_database)
def lock_space(facts: Facts) -> Iterator[Finding]:
    """The lock table has room for the batches that may be in progress at once."""
    room = facts.database.room
    slots = room["max_connections"] + room["max_prepared_transactions"]
    space = room["max_locks_per_transaction"] * slots
    needed = sum(
        locks * (facts.mappings[worker].maximum_concurrency or 0)
        for worker, locks in LOCKS_OF_A_BATCH.items()
        if worker in facts.mappings
    )
    told = f"batches in progress hold up to {needed:,} locks, the lock table promises {space:,}"
    fix = (
        f"Raise max_locks_per_transaction to {-(-needed // slots)} in the parameter group and restart, "
        "or lower InventoryMaximumConcurrency."
    )
    if needed > SPARE_FACTOR * space:
        yield fail(facts.database.name, f"{told}: they fail with 53200, out of shared memory", fix)
    elif needed > space:
        yield warn(facts.database.name, f"{told}; beyond that it takes memory that happens to be spare", fix)
    else:
        yield passed(facts.database.name, told)


@check("connection-room", area=AREA, needs=a_database)
def connection_room(facts: Facts) -> Iterator[Finding]:
    """Without a proxy, the server has a connection for every batch that may be in progress."""
    database = facts.database
    if facts.stack.parameters.get("DatabaseRoute") != "direct":
        yield skip(database.name, "workers borrow connections from the proxy's pool")
        return
    room = database.room["max_connections"] - database.room["superuser_reserved_connections"]
    needed = sum(mapping.maximum_concurrency or 0 for mapping in facts.mappings.values())
    told = f"workers may hold {needed} connections, the server has {room}"
    if needed > room:
        yield fail(database.name, told, "Raise max_connections, lower MaximumConcurrency, or go through a proxy.")
    else:
        yield passed(database.name, told)


def _expected(database: Database) -> list[str]:
    return [database.user] + [database.user + roles.DIRECT_SUFFIX] * database.has_rds_iam


def _logins(database: Database) -> Iterator[Role]:
    return (role for name, role in database.roles.items() if name != roles.GROUP)


def _none(facts: Facts) -> Iterator[Finding]:
    if not any(True for _ in _logins(facts.database)):
        yield skip(facts.database.name, "has no login for workers")


def _milliseconds(text: str) -> int | None:
    found = _TIME.fullmatch(text.strip())
    return int(found[1]) * _UNITS_MS[found[2]] if found else None


def _migrate(facts: Facts) -> str:
    if facts.fleet.local is not None:
        return "spillway migrate"
    parameters: Mapping[str, str] = facts.stack.parameters
    return (
        f"Deploy again, which migrates; or spillway migrate --dsn DSN --user {parameters['DatabaseUser']} "
        f"--statement-timeout {parameters['DatabaseStatementTimeout']}."
    )
