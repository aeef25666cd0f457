"""The database as an administrator sees it: what was applied to it, its roles and functions, and its room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from workers.migrate import roles, runner

if TYPE_CHECKING:
    from spillway.doctor.facts import Facts

#: Seconds to wait for the server to accept a connection.
CONNECT_TIMEOUT_S = 5

_POWERS = {
    "rolsuper": "SUPERUSER",
    "rolcreaterole": "CREATEROLE",
    "rolcreatedb": "CREATEDB",
    "rolbypassrls": "BYPASSRLS",
    "rolreplication": "REPLICATION",
}
# A setting for this role in this database goes before one for this role everywhere.
_ROLES = f"""
    SELECT r.rolname, r.rolcanlogin, ARRAY[{", ".join(f"r.{one}" for one in _POWERS)}],
           ARRAY(SELECT setting FROM pg_db_role_setting s, unnest(s.setconfig) WITH ORDINALITY AS u(setting, n)
                 WHERE s.setrole = r.oid
                   AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                 ORDER BY s.setdatabase, n),
           ARRAY(SELECT g.rolname FROM pg_roles g WHERE g.rolname = ANY(%(groups)s) AND g.oid <> r.oid
                   AND (EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = g.oid AND m.member = r.oid)
                        OR NOT r.rolsuper AND pg_has_role(r.oid, g.oid, 'MEMBER')))
    FROM pg_roles r WHERE r.rolname = ANY(%(roles)s)
"""  # noqa: S608  (names of ours)
_FUNCTIONS = """
    SELECT p.proname, p.prosecdef, coalesce(p.proconfig, '{}'),
           EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
                   WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE'),
           EXISTS (SELECT FROM pg_roles g
                   WHERE g.rolname = %(group)s AND has_function_privilege(g.oid, p.oid, 'EXECUTE'))
    FROM pg_proc p WHERE p.pronamespace = to_regnamespace('spillway') ORDER BY 1
"""
_TABLES = """
    SELECT c.relname
    FROM pg_class c, pg_roles r
    WHERE c.relnamespace = to_regnamespace('spillway') AND c.relkind IN ('r', 'p', 'v', 'm')
      AND r.rolname = ANY(%(roles)s) AND NOT r.rolsuper
      AND has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
    GROUP BY 1 ORDER BY 1
"""
_ROOM = ("max_connections", "superuser_reserved_connections", "max_prepared_transactions", "max_locks_per_transaction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A role. `powers` are attributes that a worker must not have; `groups`: GROUP and RDS_IAM, if it is in them."""

    name: str
    can_login: bool
    powers: tuple[str, ...]
    settings: Mapping[str, str]
    groups: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlFunction:
    """A function of the schema. `public` and `worker` are whether everybody, and the workers' group, may call it."""

    name: str
    security_definer: bool
    settings: Mapping[str, str]
    public: bool
    worker: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """The database. `applied` is name -> version, checksum; `migrations` are those of this checkout.

    `tables` are those that a login role may touch past the functions. `room` has PostgreSQL's limits by name.
    """

    name: str
    user: str
    applied: Mapping[str, tuple[int | None, str]]
    migrations: tuple[runner.Migration, ...]
    roles: Mapping[str, Role]
    has_rds_iam: bool
    functions: tuple[SqlFunction, ...]
    tables: tuple[str, ...]
    room: Mapping[str, int]


def a_database(facts: Facts) -> str:
    """Need: somebody said where the database is."""
    return "" if facts.dsn else "nobody said how to reach the database: pass --dsn, from inside the VPC"


def load(facts: Facts) -> Database:
    """Raises psycopg.Error. Leaves the server as it was: no SET, nothing but SELECT."""
    user = facts.stack.parameters["DatabaseUser"]
    names = [user, user + roles.DIRECT_SUFFIX]
    # pins: allow looks at the catalog on a direct connection
    with psycopg.connect(facts.dsn or "", autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
        has_rds_iam = roles.exists(connection, roles.RDS_IAM)
        asked = {"roles": [*names, roles.GROUP], "groups": [roles.GROUP, roles.RDS_IAM], "group": roles.GROUP}
        found = connection.execute(_ROLES, asked).fetchall()
        functions = connection.execute(_FUNCTIONS, asked).fetchall()
        tables = connection.execute(_TABLES, {"roles": names}).fetchall()
        room = {name: int(connection.execute(f"SHOW {name}").fetchone()[0]) for name in _ROOM}  # type: ignore[index]
        return Database(
            name=connection.info.dbname,
            user=user,
            applied=runner.applied(connection),
            migrations=tuple(runner.load()),
            roles={row[0]: _role(*row) for row in found},
            has_rds_iam=has_rds_iam,
            functions=tuple(_function(*row) for row in functions),
            tables=tuple(name for (name,) in tables),
            room=room,
        )


def _role(name: str, can_login: bool, powers: list[bool], settings: list[str], groups: list[str]) -> Role:
    has = tuple(word for word, there in zip(_POWERS.values(), powers, strict=True) if there)
    return Role(name=name, can_login=can_login, powers=has, settings=_pairs(settings), groups=frozenset(groups))


def _function(name: str, security_definer: bool, settings: list[str], public: bool, worker: bool) -> SqlFunction:
    return SqlFunction(
        name=name, security_definer=security_definer, settings=_pairs(settings), public=public, worker=worker
    )


def _pairs(settings: list[Any]) -> dict[str, str]:
    return dict(str(one).split("=", 1) for one in settings)
