"""What pins an RDS Proxy session, and what leaks past it: one table for the emulator, the linter and docs/pinning.md.

`certainty` says how much of a rule AWS has written down. "documented": it is on the page that `source` names.
"unsettled": AWS's documents leave it open or field reports disagree, so strict takes it for a pin and lenient does not.
"unparseable": PostgreSQL's parser does not take the text, so nobody can say that it is harmless.
"""
# pins: allow-file the examples are there to be found

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Certainty = Literal["documented", "unsettled", "unparseable"]

#: "Avoiding pinning an RDS Proxy"; its PostgreSQL list is the ground of every documented rule.
AWS_PINNING = "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-proxy-pinning.html"
PSYCOPG_PREPARE = "https://www.psycopg.org/psycopg3/docs/advanced/prepare.html"
POSTGRES_SEQUENCES = "https://www.postgresql.org/docs/18/functions-sequence.html"

#: AWS's own words, as public reports quote them from /aws/rds/proxy/<name>. The first is seen for SET, for DECLARE and
#: for a reset query with pg_advisory_unlock_all alike, so it stands for every rule about SQL text.
UNTRACKED = (
    "SQL changed session settings that the proxy doesn't track. Consider moving session configuration to the proxy's "
    "initialization query."
)
_PREPARED = "A protocol-level prepared statement was detected."
_SIZE = "The connection ran a SQL query which exceeded the 16384 byte limit."
_UNPARSEABLE = "The proxy couldn't parse the SQL."


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to lose multiplexing, or isolation between clients.

    kind      "pin": what the proxy sees pins. "leak": the proxy does not see it, so the next client inherits it.
              "advice": neither pins nor leaks by itself; only the linter has these.
    why       one sentence for people
    log       AWS's sentence for its log; empty where the proxy says nothing
    pins      an example that the rule finds
    free      the same job done without it
    language  of the two examples
    """

    id: str
    kind: Literal["pin", "leak", "advice"]
    title: str
    why: str
    certainty: Certainty
    pins: str
    free: str
    fix: str
    log: str = UNTRACKED
    source: str = AWS_PINNING
    language: Literal["sql", "python", "prose"] = "sql"

    def counts(self, *, strict: bool) -> bool:
        """Whether the rule holds in this mode: lenient leaves out what is unsettled."""
        return strict or self.certainty != "unsettled"


_ON_THE_ROLE = "Put the setting on the role (ALTER ROLE ... SET) or into the proxy's initialization query."

_RULES = (
    Rule(
        "set",
        "pin",
        "SET and RESET",
        "SET and RESET change the session's settings.",
        "documented",
        "SET search_path = app",
        "ALTER ROLE worker SET search_path = app",
        _ON_THE_ROLE,
    ),
    Rule(
        "set-local",
        "pin",
        "SET LOCAL, SET TRANSACTION and SET CONSTRAINTS",
        "The setting ends with the transaction, but it is still a SET, and AWS exempts SET LOCAL for MySQL only.",
        "unsettled",
        "SET LOCAL lock_timeout = '2s'",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "Put the setting on the role (ALTER ROLE ... SET) or on the function (CREATE FUNCTION ... SET); give the "
        "isolation level with BEGIN.",
    ),
    Rule(
        "set-config",
        "pin",
        "set_config",
        "set_config changes a setting as SET does.",
        "documented",
        "SELECT set_config('app.tenant', 'acme', false)",
        "SELECT current_setting('app.tenant', true)",
        _ON_THE_ROLE + " Pass per-request values as parameters.",
    ),
    Rule(
        "set-config-local",
        "pin",
        "set_config for the transaction only",
        "set_config(..., true) ends with the transaction, but field reports see it pin.",
        "unsettled",
        "SELECT set_config('app.tenant', 'acme', true)",
        "SELECT app.orders_of($1)",
        "Pass the value as a parameter, or set it inside the function that needs it with set_config(..., true).",
    ),
    Rule(
        "prepare",
        "pin",
        "PREPARE, EXECUTE and DEALLOCATE",
        "Statements prepared in SQL live in one database connection.",
        "documented",
        "PREPARE by_id AS SELECT * FROM orders WHERE order_id = $1",
        "SELECT * FROM orders WHERE order_id = $1",
        "Send the statement with parameters (the unnamed extended protocol); with psycopg, prepare_threshold=None.",
    ),
    Rule(
        "discard",
        "pin",
        "DISCARD",
        "DISCARD resets the session's state.",
        "documented",
        "DISCARD ALL",
        "ROLLBACK",
        "Leave no session state behind; then there is nothing to discard. Switch the pool's reset query off.",
    ),
    Rule(
        "temporary-object",
        "pin",
        "Temporary tables, views and sequences",
        "A temporary table, view or sequence exists in one database connection only.",
        "documented",
        "CREATE TEMP TABLE batch (id uuid)",
        "WITH batch AS (SELECT unnest($1::uuid[]) AS id) SELECT * FROM orders JOIN batch ON event_id = id",
        "Pass rows as arrays or JSON and use a CTE, or use an unlogged table keyed by batch.",
    ),
    Rule(
        "pg-temp",
        "pin",
        "Other objects in pg_temp",
        "An object in pg_temp exists in one database connection only; AWS names tables, views and sequences alone.",
        "unsettled",
        "CREATE FUNCTION pg_temp.one() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION app.one() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "Create it in an ordinary schema, in a migration.",
    ),
    Rule(
        "cursor",
        "pin",
        "DECLARE",
        "A declared cursor lives in one database connection.",
        "documented",
        "DECLARE c CURSOR FOR SELECT * FROM orders",
        "SELECT * FROM orders WHERE order_id > $1 ORDER BY order_id LIMIT 1000",
        "Read page by page with a key and LIMIT; use a client-side cursor.",
    ),
    Rule(
        "listen",
        "pin",
        "LISTEN",
        "Notifications go to the database connection that listens.",
        "documented",
        "LISTEN orders",
        "NOTIFY orders",
        "Listen on a direct connection, or use a queue.",
    ),
    Rule(
        "unlisten",
        "pin",
        "UNLISTEN",
        "UNLISTEN changes what the session listens to; AWS names LISTEN alone.",
        "unsettled",
        "UNLISTEN *",
        "NOTIFY orders",
        "Do not LISTEN through the proxy; then there is nothing to end. Switch the pool's reset query off.",
    ),
    Rule(
        "load",
        "pin",
        "LOAD",
        "LOAD loads a library into one database connection.",
        "documented",
        "LOAD 'auto_explain'",
        "CREATE EXTENSION pg_stat_statements",
        "Name the library in session_preload_libraries or shared_preload_libraries of the parameter group.",
    ),
    Rule(
        "sequence",
        "pin",
        "nextval and setval",
        "nextval and setval leave the sequence's last value in the session.",
        "documented",
        "SELECT nextval('order_numbers')",
        "INSERT INTO orders (customer) VALUES ($1) RETURNING order_number",
        "Let a column default or identity, or a function, draw the number and return it with RETURNING.",
    ),
    Rule(
        "session-lock",
        "pin",
        "Advisory locks of the session",
        "The lock belongs to the session, and outlives the transaction.",
        "documented",
        "SELECT pg_advisory_lock(42)",
        "SELECT pg_advisory_xact_lock(42)",
        "Use pg_advisory_xact_lock or pg_try_advisory_xact_lock: they end with the transaction.",
    ),
    Rule(
        "statement-size",
        "pin",
        "Statements above 16 KB",
        "The statement's text is longer than 16,384 bytes.",
        "documented",
        "an INSERT with the values of 1,000 rows in its text",
        "the same rows as one array or JSON parameter",
        "Pass values as parameters, many rows as one array or JSON parameter; not with a client-side cursor.",
        log=_SIZE,
        language="prose",
    ),
    Rule(
        "named-statement",
        "pin",
        "Named protocol-level prepared statements",
        "A named prepared statement lives in one database connection; AWS has multiplexed unnamed ones since 2023.",
        "unsettled",
        'cursor.execute("SELECT * FROM orders", prepare=True)',
        'cursor.execute("SELECT * FROM orders")',
        "Use unnamed statements: psycopg prepare_threshold=None, asyncpg statement_cache_size=0.",
        log=_PREPARED,
        language="python",
    ),
    Rule(
        "unparseable",
        "pin",
        "What PostgreSQL's parser does not take",
        "PostgreSQL's parser does not take this text, so nobody can say that it is harmless.",
        "unparseable",
        "SELEC 1",
        "SELECT 1",
        "Correct the statement; the database would refuse it too.",
        log=_UNPARSEABLE,
    ),
    Rule(
        "leak-set",
        "leak",
        "SET in a function",
        "The proxy does not see this SET, so the next client of the connection inherits the setting.",
        "documented",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET work_mem = '1GB'; END $$",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql SET work_mem = '1GB' AS $$ BEGIN NULL; END $$",
        "Use the function's own SET clause, SET LOCAL, or set_config(..., true).",
        log="",
    ),
    Rule(
        "leak-temporary-object",
        "leak",
        "A temporary object made in a function",
        "The proxy does not see this temporary object, so the next client of the connection finds it.",
        "documented",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ CREATE TEMP TABLE t (a int) $$",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ CREATE TEMP TABLE t (a int) ON COMMIT DROP $$",
        "Use ON COMMIT DROP, a CTE or an array.",
        log="",
    ),
    Rule(
        "leak-session-lock",
        "leak",
        "A session's advisory lock taken in a function",
        "The proxy does not see this lock, so it stays on the connection that the next client borrows.",
        "documented",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_lock(1) $$",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock(1) $$",
        "Use pg_advisory_xact_lock or pg_try_advisory_xact_lock.",
        log="",
    ),
    Rule(
        "leak-listen",
        "leak",
        "LISTEN in a function",
        "The proxy does not see this LISTEN, so the next client of the connection gets the notifications.",
        "documented",
        "DO $$ BEGIN LISTEN orders; END $$",
        "DO $$ BEGIN NOTIFY orders; END $$",
        "Listen on a direct connection, or use a queue.",
        log="",
    ),
    Rule(
        "leak-prepare",
        "leak",
        "PREPARE in a function",
        "The proxy does not see this PREPARE, so the statement stays on the connection that the next client borrows.",
        "documented",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ PREPARE s AS SELECT 1 $$",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SELECT $1' USING 1; END $$",
        "PL/pgSQL prepares its statements itself; give values with EXECUTE ... USING.",
        log="",
    ),
    Rule(
        "leak-load",
        "leak",
        "LOAD in a function",
        "The proxy does not see this LOAD, so the next client of the connection runs with the library.",
        "documented",
        "DO $$ BEGIN LOAD 'auto_explain'; END $$",
        "DO $$ BEGIN NULL; END $$",
        "Name the library in session_preload_libraries or shared_preload_libraries of the parameter group.",
        log="",
    ),
    Rule(
        "prepare-threshold",
        "advice",
        "psycopg's automatic named statements",
        "psycopg names a statement after five executions, and the first rollback after that sends DEALLOCATE ALL.",
        "unsettled",
        "psycopg.connect(dsn)",
        "psycopg.connect(dsn, prepare_threshold=None)",
        "Connect with prepare_threshold=None.",
        log="",
        source=PSYCOPG_PREPARE,
        language="python",
    ),
    Rule(
        "sequence-read",
        "advice",
        "currval and lastval",
        "currval and lastval answer from the session, which through the proxy may be another client's.",
        "unsettled",
        "SELECT lastval()",
        "INSERT INTO orders (customer) VALUES ($1) RETURNING order_number",
        "Use RETURNING.",
        log="",
        source=POSTGRES_SEQUENCES,
    ),
    Rule(
        "allow-without-reason",
        "advice",
        "An allow comment without its reason",
        "A pin that is allowed needs a reason for the next reader; without one the comment allows nothing.",
        "documented",
        "LISTEN orders; -- pins: allow",
        "LISTEN orders; -- pins: allow this runs on a direct connection",
        "Write the reason after `pins: allow`.",
        log="",
        source="",
    ),
)

#: Every rule by its id, in the order of docs/pinning.md.
RULES: dict[str, Rule] = {rule.id: rule for rule in _RULES}
