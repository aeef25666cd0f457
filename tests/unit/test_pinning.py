"""The pinning classifier against the table of rules, and against everything that looks like a pin and is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.rdsproxy.pinning import (
    MAX_KNOWN_BYTES,
    MAX_TEXT,
    MISSING,
    NAMED_STATEMENT,
    STATEMENT_SIZE,
    Classifier,
    digest,
    matches,
    token_matches,
)
from spillway.rdsproxy.rules import RULES

STRICT = Classifier()
LENIENT = Classifier(strict=False)
SQL_PINS = [rule for rule in RULES.values() if rule.kind == "pin" and rule.language == "sql"]


def rule_of(sql: str, classifier: Classifier = STRICT) -> str | None:
    pin = classifier.verdict(sql.encode())
    return pin.rule if pin else None


# ── both sides of every rule ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", SQL_PINS, ids=lambda rule: rule.id)
def test_the_example_of_every_rule_pins_and_its_alternative_does_not(rule) -> None:
    pin = STRICT.verdict(rule.pins.encode())
    assert pin is not None
    assert (pin.rule, pin.certainty) == (rule.id, rule.certainty)
    assert pin.reason.startswith(rule.log)
    assert STRICT.verdict(rule.free.encode()) is None


@pytest.mark.parametrize("rule", SQL_PINS, ids=lambda rule: rule.id)
def test_lenient_leaves_out_what_is_unsettled_and_nothing_else(rule) -> None:
    assert rule_of(rule.pins, LENIENT) == (None if rule.certainty == "unsettled" else rule.id)


@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if rule.kind == "leak"], ids=lambda rule: rule.id)
def test_what_leaks_does_not_pin(rule) -> None:
    assert rule_of(rule.pins) is None
    assert rule_of(rule.free) is None


PINS = {
    "set": [
        "set x = 1",
        "SET SESSION x = 1",
        "SET x TO DEFAULT",
        "SET TIME ZONE 'UTC'",
        "SET NAMES 'utf8'",
        "SET ROLE worker",
        "SET SESSION AUTHORIZATION worker",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET XML OPTION DOCUMENT",
        "SET SCHEMA 'app'",
        "RESET x",
        "RESET ALL",
        "RESET ROLE",
        "RESET SESSION AUTHORIZATION",
        "SELECT 1; SET x = 1",
        ";;/* a */SET x = 1",
    ],
    "set-local": [
        "SET LOCAL ROLE worker",
        "SET TRANSACTION READ ONLY",
        "SET TRANSACTION SNAPSHOT '1'",
        "SET CONSTRAINTS ALL DEFERRED",
        "BEGIN; SET LOCAL x = 1; COMMIT",
    ],
    "set-config": [
        "SELECT pg_catalog.set_config('a', 'b', false)",
        "SELECT SET_CONFIG('a', 'b', $1)",
        "SELECT set_config('a', 'b', not true)",
        "SELECT set_config('a', 'b', 'false')",
        "INSERT INTO t VALUES (set_config('a', 'b', false))",
        "SELECT lower(set_config('a', 'b', false))",
        "SELECT \"set_config\"('a', 'b', false)",
        "SELECT * FROM t ORDER BY set_config('a', 'b', false)",
        "SELECT * FROM set_config('a', 'b', false)",
        "EXPLAIN ANALYZE SELECT set_config('a', 'b', false)",
    ],
    "set-config-local": [
        "SELECT set_config('a', 'b', TRUE)",
        "SELECT set_config('a', 'b', 'on'::boolean)",
        "SELECT set_config('a', 'b', true) AS x",
    ],
    "prepare": [
        "PREPARE s(int) AS SELECT $1",
        "EXECUTE s(1)",
        "DEALLOCATE s",
        "DEALLOCATE ALL",
        "EXPLAIN EXECUTE s",
        "CREATE TABLE t AS EXECUTE s",
        "PREPARE s AS SELECT nextval('x')",
    ],
    "discard": ["DISCARD PLANS", "discard temp", "DISCARD SEQUENCES"],
    "temporary-object": [
        "CREATE TEMPORARY TABLE t (a int)",
        "CREATE LOCAL TEMP TABLE t (a int) ON COMMIT DROP",
        "CREATE TEMP TABLE IF NOT EXISTS t AS SELECT 1",
        "CREATE TEMP VIEW v AS SELECT 1",
        "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
        "CREATE TEMP SEQUENCE s",
        "CREATE TABLE pg_temp.t (a int)",
        'CREATE TABLE "pg_temp".t (a int)',
        "CREATE VIEW pg_temp_3.v AS SELECT 1",
        "CREATE TABLE pg_temp.t AS SELECT 1",
        "SELECT 1 INTO TEMP t",
        "SELECT 1 INTO TEMPORARY TABLE t",
        "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
    ],
    "pg-temp": [
        "CREATE TYPE pg_temp.t AS ENUM ('a')",
        "CREATE TYPE pg_temp.t AS (a int)",
        "CREATE DOMAIN pg_temp.d AS int",
        "CREATE TYPE pg_temp.r AS RANGE (subtype = int)",
    ],
    "cursor": [
        "DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1",
        "BEGIN; DECLARE c CURSOR FOR SELECT 1",
        "EXPLAIN DECLARE c CURSOR FOR SELECT 1",
    ],
    "listen": ['LISTEN "Orders"'],
    "unlisten": ["UNLISTEN orders"],
    "load": ["load '$libdir/x'"],
    "sequence": [
        "SELECT setval('s', 1)",
        "SELECT setval('s', 1, false)",
        "INSERT INTO t VALUES (nextval('s'))",
        "WITH n AS (SELECT nextval('s') AS i) INSERT INTO t SELECT i FROM n",
        "CREATE TABLE t (id int DEFAULT nextval('s'))",
        "ALTER TABLE t ALTER COLUMN id SET DEFAULT pg_catalog.nextval('s')",
        "COPY (SELECT nextval('s')) TO STDOUT",
        "UPDATE t SET a = nextval('s') WHERE b = 1 RETURNING a",
        "CREATE VIEW v AS SELECT nextval('s')",
        "CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT nextval('s'); END",
        "SELECT (SELECT (SELECT nextval('s')))",
        "CALL p(nextval('s'))",
        "SELECT U&\"n\\0065xtval\"('s')",
        "MERGE INTO t USING u ON t.a = u.a WHEN NOT MATCHED THEN INSERT VALUES (nextval('s'))",
    ],
    "session-lock": [
        "SELECT pg_advisory_lock(1, 2)",
        "SELECT pg_advisory_lock_shared(1)",
        "SELECT pg_try_advisory_lock($1)",
        "SELECT pg_try_advisory_lock_shared(1)",
        "SELECT pg_advisory_unlock(1)",
        "SELECT pg_advisory_unlock_shared(1)",
        "SELECT pg_advisory_unlock_all()",
        "SELECT 1 WHERE pg_try_advisory_lock(1)",
    ],
    "unparseable": ["SELECT", "SET", "CREATE TEMP", "SELECT 'a", "SET x = 1; SELEC", "select \0"],
}


@pytest.mark.parametrize(("rule", "sql"), [(rule, sql) for rule, texts in PINS.items() for sql in texts])
def test_pins(rule: str, sql: str) -> None:
    if rule == "unparseable" and sql == "SELECT":
        assert rule_of(sql) is None  # a SELECT of nothing is valid
    else:
        assert rule_of(sql) == rule


@pytest.mark.parametrize(
    "sql",
    [
        "",
        " \n",
        "-- SET x = 1",
        "/* SET x = 1 */",
        ";",
        "SELECT 1",
        "BEGIN",
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
        "START TRANSACTION READ ONLY",
        "COMMIT",
        "SAVEPOINT a",
        "PREPARE TRANSACTION 'x'",
        "SHOW search_path",
        "SELECT current_setting('x')",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_advisory_xact_lock_shared(1)",
        "SELECT pg_try_advisory_xact_lock(1)",
        "SELECT pg_try_advisory_xact_lock_shared(1)",
        "SELECT app.f(1)",
        "CALL app.p()",
        "DO $$ BEGIN SET x = 1; END $$",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = app AS 'SELECT 1'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT nextval('s') $$",
        "ALTER FUNCTION f() SET search_path = app",
        "ALTER FUNCTION f() RESET ALL",
        "ALTER ROLE r SET search_path = app",
        "ALTER DATABASE d SET search_path = app",
        "ALTER ROLE r RESET ALL",
        "ALTER SYSTEM SET work_mem = '1GB'",
        "FETCH 10 FROM c",
        "MOVE c",
        "CLOSE c",
        "CLOSE ALL",
        "NOTIFY orders, 'x'",
        "UPDATE t SET x = 1",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 1",
        "ALTER TABLE t ALTER a SET DEFAULT 1",
        "CREATE TABLE t (id serial, b bigint GENERATED ALWAYS AS IDENTITY)",
        "CREATE UNLOGGED TABLE t (a int)",
        "CREATE TABLE temp (temporary int)",
        "SELECT * INTO t FROM u",
        "CREATE TABLE nextval (nextval int)",
        "SELECT nextval, setval FROM t",
        "SELECT 1 AS nextval",
        "SELECT 'SELECT nextval(1)'",
        "SELECT other.nextval('s')",
        "SELECT \"NEXTVAL\"('s')",
        "CREATE FUNCTION nextval() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT $a$ SET x = 1; $a$",
        "SELECT 1 -- ; SET x = 1",
        "SELECT currval('s'), lastval()",
        "LOCK TABLE t",
        "TRUNCATE t RESTART IDENTITY",
        "DROP TABLE pg_temp.t",
        "SELECT * FROM pg_temp.t",
        "CREATE EXTENSION x",
        "VACUUM",
        "COPY t FROM STDIN",
    ],
)
def test_does_not_pin(sql: str) -> None:
    assert rule_of(sql) is None


def test_the_first_pin_of_a_text_wins() -> None:
    assert rule_of("SELECT 1; LISTEN a; SET x = 1") == "listen"
    assert rule_of("SET LOCAL x = 1; LISTEN a") == "set-local"
    assert rule_of("SET LOCAL x = 1; LISTEN a", LENIENT) == "listen"


def test_lenient_takes_only_literally_true_for_local() -> None:
    assert rule_of("SELECT set_config('a', 'b', true)", LENIENT) is None
    assert rule_of("SELECT set_config('a', 'b', $1)", LENIENT) == "set-config"


# ── size, bytes, memory ──────────────────────────────────────────────────────────────────────────────────────────────


def test_size_is_the_bytes_of_the_text() -> None:
    fits = b"SELECT '" + b"a" * (MAX_TEXT - 9) + b"'"
    assert len(fits) == MAX_TEXT
    assert STRICT.verdict(fits) is None
    assert STRICT.verdict(fits + b" ") is STATEMENT_SIZE
    assert STRICT.verdict("SELECT 'é'".encode() + b" " * (MAX_TEXT - 11)) is None
    assert STRICT.verdict(b"SET x = 1" + b" " * MAX_TEXT) is STATEMENT_SIZE
    assert fits + b" " not in STRICT.known


@pytest.mark.parametrize("text", [b"SELECT '\xff'", b"\xff", b"SELECT 1\0; SET x = 1"])
def test_what_cannot_be_read_pins(text: bytes) -> None:
    for classifier in (STRICT, LENIENT):
        pin = classifier.verdict(text)
        assert pin is not None
        assert (pin.rule, pin.certainty) == ("unparseable", "unparseable")


def test_an_answer_is_kept_and_none_is_an_answer() -> None:
    classifier = Classifier()
    assert classifier.known.get(b"SELECT 1", MISSING) is MISSING
    assert classifier.verdict(b"SELECT 1") is None
    assert classifier.known.get(b"SELECT 1", MISSING) is None
    first = classifier.verdict(b"SET x = 1")
    assert classifier.verdict(b"SET x = 1") is first


def test_memory_is_bounded_by_count_and_by_bytes() -> None:
    classifier = Classifier(capacity=10)
    for number in range(100):
        assert classifier.verdict(b"SELECT %d" % number) is None
        assert len(classifier.known) <= 10
    classifier = Classifier()
    classifier._known_bytes = MAX_KNOWN_BYTES
    assert classifier.verdict(b"SELECT 1") is None
    assert classifier.known == {b"SELECT 1": None}
    assert classifier._known_bytes == 8


# ── too deep for a tree ──────────────────────────────────────────────────────────────────────────────────────────────

DEEP = "||".join(["'a'"] * 200)


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        (f"SELECT {DEEP}", None),
        ("SELECT 1" + " UNION ALL SELECT 1" * 200, None),
        (f"SELECT 'nextval(1)', {DEEP} -- nextval(", None),
        (f"SELECT nextval, {DEEP}", None),
        (f"SELECT nextval('s'), {DEEP}", "sequence"),
        (f"SELECT pg_catalog . nextval('s'), {DEEP}", "sequence"),
        (f"SELECT other.nextval('s'), {DEEP}", None),
        (f"SELECT set_config('a', {DEEP}, true)", "set-config-local"),
        (f"SELECT set_config('a', {DEEP}, false)", "set-config"),
        (f"SELECT {DEEP}; SET x = 1", "set"),
        (f"SELECT {DEEP} INTO TEMP t", "temporary-object"),
        (f"SELECT {DEEP} INTO LOCAL TEMPORARY t", "temporary-object"),
        (f"CREATE OR REPLACE TEMP VIEW v AS SELECT {DEEP}", "temporary-object"),
        (f"UPDATE t SET a = {DEEP}", None),  # noqa: S608
        (f"PREPARE s AS SELECT {DEEP}", "prepare"),
        (f"EXPLAIN (ANALYZE) EXECUTE s({DEEP})", "prepare"),
    ],
)
def test_a_text_nested_too_deeply_is_judged_by_its_words(sql: str, rule: str | None) -> None:
    assert rule_of(sql) == rule


@pytest.mark.parametrize("rule", [rule for rule in SQL_PINS if rule.id not in {"unparseable", "pg-temp"}])
def test_words_and_tree_agree_on_the_examples(rule) -> None:
    assert [(match.rule.id, match.offset) for match in token_matches(rule.pins)] == [
        (match.rule.id, match.offset) for match in matches(rule.pins)
    ]
    assert list(token_matches(rule.free)) == []


#: Words alone do not tell these: a schema, an escaped name, a cast, a bare keyword's meaning further on.
ONLY_BY_TREE = ("pg_temp", 'U&"', "::boolean", "EXECUTE s")


@pytest.mark.parametrize(
    ("rule", "sql"),
    [
        (rule, sql)
        for rule, texts in PINS.items()
        if rule not in {"unparseable", "pg-temp"}
        for sql in texts
        if not any(part in sql for part in ONLY_BY_TREE) and not sql.startswith("EXPLAIN")
    ],
)
def test_words_find_what_the_tree_finds(rule: str, sql: str) -> None:
    assert rule in [match.rule.id for match in token_matches(sql)]


def test_words_tell_execute_at_the_start() -> None:
    assert [match.word for match in token_matches("EXECUTE s(1); PREPARE TRANSACTION 'x'; EXPLAIN EXECUTE s")] == [
        "execute",
        "execute",
    ]


# ── what the log says ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_reason_is_worded_as_the_proxys_log_words_it() -> None:
    pin = STRICT.verdict(b'SET search_path = "app"')
    assert pin is not None
    assert pin.reason == (
        "SQL changed session settings that the proxy doesn't track. Consider moving session configuration to the "
        'proxy\'s initialization query. Digest: "set search_path = $1".'
    )
    assert NAMED_STATEMENT.reason == "A protocol-level prepared statement was detected."
    assert STATEMENT_SIZE.reason == "The connection ran a SQL query which exceeded the 16384 byte limit."


@pytest.mark.parametrize(
    ("sql", "shape"),
    [
        ("SET a = 'x';  SET NAMES 'y';", "set a = $1; set names $2;"),
        ("SELECT  pg_advisory_lock(42) -- key\n", "select pg_advisory_lock($1)"),
        ('LISTEN "Orders"', 'listen "Orders"'),
        ("CREATE TEMP TABLE t (a text DEFAULT 'secret')", "create temp table t (a text default $1)"),
        ("SELEC", ""),
    ],
)
def test_a_digest_has_the_shape_and_no_value(sql: str, shape: str) -> None:
    assert digest(sql) == shape


def test_a_digest_is_cut() -> None:
    assert len(digest(f"SELECT nextval('s'), {DEEP}, {DEEP}")) == 1_001


# ── properties ───────────────────────────────────────────────────────────────────────────────────────────────────────

# Texts whose words may be in any case: no quoted identifier, no literal that matters.
TEXTS = [sql for rule, texts in PINS.items() if rule != "unparseable" for sql in texts if '"' not in sql]
BLANKS = st.sampled_from([" ", "\n", "\t", " /* SET x = 1; */ ", " -- LISTEN a\n", "\r\n", " /* a /* b */ c */ "])


@given(st.sampled_from(TEXTS), BLANKS, BLANKS, st.randoms(use_true_random=False))
def test_case_blanks_and_comments_change_nothing(sql: str, before: str, after: str, random) -> None:
    # Blanks inside literals are data, so only those outside quotes are exchanged.
    parts = sql.split("'")
    for index in range(0, len(parts), 2):
        cased = "".join(random.choice((character.lower(), character.upper())) for character in parts[index])
        parts[index] = cased.replace(" ", after)
    changed = before + "'".join(parts) + after
    assert rule_of(changed) == rule_of(sql)


@given(st.sampled_from(TEXTS), st.sampled_from(["$$", "$q$"]))
def test_a_pin_inside_a_literal_is_none(sql: str, quote: str) -> None:
    escaped = sql.replace("'", "''")
    for text in (
        f"SELECT '{escaped}'",
        f"SELECT {quote}{sql}{quote}",
        f"SELECT 1 /* {sql} */",
        f"DO {quote}{sql}{quote}",
        f"COMMENT ON TABLE t IS '{escaped}'",
    ):
        assert rule_of(text) is None, text


@given(st.text(max_size=200))
def test_any_text_gets_an_answer(sql: str) -> None:
    Classifier().verdict(sql.encode("utf-8", "surrogatepass"))
