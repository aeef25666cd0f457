"""`spillway pins`: what it finds in each kind of file, on which line, what it passes over, and how it reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.pins import document, formats
from spillway.pins.findings import MAX_SQL, Finding
from spillway.pins.lint import lint_text
from spillway.pins.sql_files import statements
from spillway.rdsproxy.rules import RULES
from spillway.stack.template import REPOSITORY


def found(name: str, text: str, *, strict: bool = True) -> list[tuple[int, str]]:
    return [(finding.line, finding.rule) for finding in lint_text(name, text, strict=strict)]


def sql(text: str) -> list[tuple[int, str]]:
    return found("a.sql", text)


def python(text: str) -> list[tuple[int, str]]:
    return found("a.py", text)


# ── both sides of every rule ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES.values() if rule.language != "prose"], ids=lambda rule: rule.id
)
def test_the_example_of_every_rule_is_found_and_its_alternative_is_not(rule) -> None:
    read = python if rule.language == "python" else sql
    assert (1, rule.id) in read(rule.pins)
    assert read(rule.free) == []


@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if rule.language == "sql"], ids=lambda rule: rule.id)
def test_the_same_in_a_python_call(rule) -> None:
    if rule.id in {"unparseable", "allow-without-reason"}:
        return
    assert [name for _, name in python(f"cursor.execute({rule.pins!r})")] == [rule.id]
    assert python(f"cursor.execute({rule.free!r})") == []


def test_statement_size_is_each_statements_own() -> None:
    long = f"SELECT '{'a' * 16_384}'"
    assert sql(f"SELECT 1;\n{long};") == [(2, "statement-size")]
    assert sql(";".join(["SELECT 'a'"] * 5_000)) == []
    assert python(f'execute("""\n{long}""")') == [(1, "statement-size")]


def test_the_document_has_every_rule_as_it_is() -> None:
    text = (REPOSITORY / "docs/pinning.md").read_text()
    _, mark, generated = text.partition(document.MARK)
    assert mark
    assert generated == f"\n{document.rules_section()}", "run `python -m spillway.pins.document`"
    for rule in RULES.values():
        assert f"### `{rule.id}`" in generated


# ── .sql ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1;\n\n-- about\nSET x = 1;\nLISTEN a;", [(4, "set"), (5, "listen")]),
        ("/* a\n b */ SET x = 1", [(2, "set")]),
        ("SELECT a,\n  b,\n  nextval('s')\nFROM t;", [(3, "sequence")]),
        ("SELECT é,\n  'ü', nextval('s'),\n  setval('s', 1);", [(2, "sequence"), (3, "sequence")]),
        ("SELECT ';SET x = 1;', \"a;b\", $$;SET x = 1;$$, E'\\';', $a$;$$;$a$;\nSET x = 1", [(2, "set")]),
        ("CREATE RULE r AS ON INSERT TO t DO (NOTIFY a; NOTIFY b);\nSET x = 1", [(2, "set")]),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC\n SELECT 2; SELECT CASE WHEN a THEN 1 END; END;\nLISTEN a;",
            [(3, "listen")],
        ),
        ("BEGIN; SELECT 1; END; LISTEN a;", [(1, "listen")]),
        ("\\set x 1\n\\connect db\n\\if :x\nSET y = 1;\n\\endif\n\\echo 'it''s", [(4, "set")]),
        ("SELECT 1 \\gexec\nSET x = 1 \\g\nLISTEN a;", [(2, "set"), (3, "listen")]),
        ("SELECT 1\\; SET x = 1;", [(1, "set")]),
        ("COPY t (a) FROM stdin;\nSET x = 1;\tb'\n\\.\n\nLISTEN a;", [(5, "listen")]),
        ("COPY t FROM STDIN WITH (FORMAT csv);\nit's;\n", []),
        ("SELECT :a, :'b', :\"c\", $1, x::int;\nSET x = :a;", [(2, "set")]),
        ("SELECT %s, %(name)s FROM t WHERE a = ?;\nSET x = %s;\nLISTEN %s", [(2, "set"), (3, "listen")]),
        ("SELECT * FROM {schema}.{table} LIMIT {};\nSET ROLE {role};", [(2, "set")]),
        ("{% if a %}\nSET x = {{ y }};\n{% endif %}", [(2, "set")]),
        ("SELECT a[1:2], '{\"a\": 1}'::jsonb ? 'a', b @> '{}';", []),
        ("SELEC 1;\nSELECT 1;", [(1, "unparseable")]),
        ("SET x = ;\nSELECT nextval('s') FROM", [(1, "set"), (2, "sequence")]),
        ("SELECT 'never ends", [(1, "unparseable")]),
        ("", []),
        ("-- SET x = 1;\n;;\n", []),
        ("SET x = 1;\r\nLISTEN a;\r\n".replace("\r\n", "\n"), [(1, "set"), (2, "listen")]),
        ("SELECT nextval('a'), nextval('b'), 1", [(1, "sequence")]),
        ("SELECT 1,\n currval('s')", [(2, "sequence-read")]),
    ],
)
def test_sql_files(text: str, expected: list[tuple[int, str]]) -> None:
    assert sql(text) == expected


@given(
    st.lists(st.sampled_from([*"';$\"\\\n()a ", "--", "/*", "*/", "$$", "\\.", "COPY t FROM STDIN;", "BEGIN ATOMIC"]))
)
def test_cutting_loses_no_text_and_stops(parts: list[str]) -> None:
    data = "".join(parts).encode()
    end = 0
    for start, statement in statements(data):
        assert start >= end
        assert statement
        end = start + len(statement)
    assert end <= len(data)


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    clean = text.encode("utf-8", "replace").decode()
    for name in ("a.sql", "a.log", "a.csv"):
        lint_text(name, clean)


# ── function bodies ──────────────────────────────────────────────────────────────────────────────────────────────────

PLPGSQL = """CREATE FUNCTION f(a text) RETURNS SETOF int LANGUAGE plpgsql AS $body$
DECLARE
    x int;
    r record;
BEGIN
    {statement}
END
$body$;"""


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SET search_path = app;", [(6, "leak-set")]),
        ("SET LOCAL search_path = app;", []),
        ("RESET search_path;", []),
        ("PERFORM set_config('a', 'b', false);", [(6, "leak-set")]),
        ("PERFORM set_config('a', 'b', true);", []),
        ("PERFORM 1,\n        set_config('a', 'b', false);", [(7, "leak-set")]),
        ("x := pg_advisory_lock(1);", [(6, "leak-session-lock")]),
        (
            "IF pg_try_advisory_lock(1) THEN\n        LISTEN a;\n    END IF;",
            [(6, "leak-session-lock"), (7, "leak-listen")],
        ),
        ("PERFORM pg_advisory_lock_shared(1);", [(6, "leak-session-lock")]),
        ("PERFORM pg_try_advisory_lock_shared(1);", [(6, "leak-session-lock")]),
        ("PERFORM pg_advisory_xact_lock(1); PERFORM pg_advisory_unlock(1);", []),
        ("CREATE TEMP TABLE t (a int);", [(6, "leak-temporary-object")]),
        ("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1;", []),
        ("x := nextval('s');", []),
        ("LOAD 'x';", [(6, "leak-load")]),
        ("EXECUTE 'set x = ' || a;", [(6, "leak-set")]),
        ("EXECUTE format('LISTEN %I', a);", [(6, "leak-listen")]),
        ("EXECUTE 'SELECT $1' USING 'SET x = 1';", []),
        ("FOR r IN EXECUTE 'SET x = 1' LOOP\n        LISTEN a;\n    END LOOP;", [(6, "leak-set"), (7, "leak-listen")]),
        ("RETURN QUERY EXECUTE 'SELECT pg_advisory_lock(1)';", [(6, "leak-session-lock")]),
        ("RETURN QUERY SELECT set_config('a', 'b', false);", [(6, "leak-set")]),
        ("-- SET x = 1;\n    RAISE NOTICE 'SET x = 1; %', a;", []),
        ("UPDATE t SET a = 1;", []),
        # What its PL/pgSQL parser refuses is judged by its words: here an undeclared loop variable.
        ("FOR u IN SELECT 1 LOOP\n        SET x = 1; UPDATE t SET a = 1;\n    END LOOP;", [(7, "leak-set")]),
    ],
)
def test_plpgsql(statement: str, expected: list[tuple[int, str]]) -> None:
    assert sql(PLPGSQL.replace("{statement}", statement)) == expected


def test_other_bodies() -> None:
    assert sql("CREATE PROCEDURE p() LANGUAGE sql AS $$\nSELECT 1;\nSET x = 1;\n$$;") == [(3, "leak-set")]
    assert sql("CREATE FUNCTION f() RETURNS int AS 'SELECT ''a''; SET x = 1' LANGUAGE SQL;") == [(1, "leak-set")]
    assert sql("CREATE FUNCTION f() RETURNS int LANGUAGE plpython3u AS $$\nSET x = 1\n$$;") == []
    assert sql("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC\n SELECT pg_advisory_lock(1);\nEND;") == [
        (2, "leak-session-lock"),
        (2, "session-lock"),
    ]


def test_a_do_block_is_unsettled_and_no_less_a_finding() -> None:
    text = "SELECT 1;\nDO $$\nBEGIN\n  SET x = 1;\nEND $$;"
    for strict in (True, False):
        [finding] = lint_text("a.sql", text, strict=strict)
        assert (finding.line, finding.rule, finding.certainty) == (4, "leak-set", "unsettled")


# ── Python ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conn.execute('SET x = 1')", [(1, "set")]),
        ("conn.execute(\n    'SELECT 1, '\n    # why\n    'nextval(1)'\n)", [(4, "sequence")]),
        ('conn.execute("""\n  SELECT a,\n    nextval(\'s\')\n""")', [(3, "sequence")]),
        ('conn.execute(f"""\n  SELECT {a\n  + b}, {c!r:>{d}},\n    nextval({x["s"]})\n""")', [(4, "sequence")]),
        ("conn.execute('SELECT 1,\\\n nextval(1)')", [(2, "sequence")]),
        ("conn.execute('SELECT 1,\\n nextval(\\'s\\')')", [(1, "sequence")]),
        ("conn.execute('SELECT 1, ' + column + ', ' +\n  'nextval(1)')", [(2, "sequence")]),
        ("conn.execute(r'SET x = 1')", [(1, "set")]),
        ("conn.execute(b'SET x = 1')", [(1, "set")]),
        ("conn.execute(f'SET {name} = {value}')", [(1, "set")]),
        ("conn.execute(f'SELECT {{}} {x}')", []),
        ("conn.execute('set role %s' % role)", [(1, "set")]),
        ("conn.execute('LISTEN {}'.format(name))", [(1, "listen")]),
        ("conn.execute(sql.SQL('set role {}').format(role))", [(1, "set")]),
        ("conn.execute(query='reset all')", [(1, "set")]),
        ("session.execute(text('reset all'))", [(1, "set")]),
        ("await conn.fetchval('SELECT nextval($1)', 's')", [(1, "sequence")]),
        ("Q = 'reset all'\nconn.execute(Q)", [(1, "set")]),
        ("Q: str = 'reset all'\ndef f():\n    conn.execute(Q)", [(1, "set")]),
        ("Q = 'SET x = 1'", [(1, "set")]),
        ("Q = ['select nextval(1)']", [(1, "sequence")]),
        ("conn.execute('DO $$\\nBEGIN SET x = 1; END $$')", [(1, "leak-set")]),
        ("conn.execute('DECLARE ' + x)", [(1, "cursor")]),
        # English, and other people's words
        ("help = 'Set the timeout'\nx = 'reset all'\ny = 'execute it'\nz = 'Load more'\nw = 'listen here'", []),
        ("'''SET x = 1'''\ndef f():\n    '''LISTEN a'''\nclass C:\n    'SET x = 1'", []),
        ("# conn.execute('SET x = 1')", []),
        ("conn.execute('SELECT 1 -- SET x = 1')", []),
        ("d.set('SETTINGS'); d['SET'] = 1; d.execute('SETUP')", []),
        ("conn.execute('PRAGMA x'); conn.execute('INSERT OR REPLACE INTO t VALUES (?)')", []),
        ("conn.execute(f'{a} SET x')", []),
        ("conn.execute(f\"SELECT {run('SET x = 1')}\")", [(1, "set")]),
        ("conn.execute(b'SELECT \\xff, nextval(1)')", [(1, "sequence")]),
        ("conn.execute(\"SELECT 'it''s', '{}', '\\u00e9'\")", []),
        # what psycopg does by itself
        ("conn.cursor(name='c')", [(1, "cursor")]),
        ("conn.cursor('c')", [(1, "cursor")]),
        ("with psycopg.ServerCursor(conn, 'c') as c:\n    pass", [(1, "cursor")]),
        ("conn.cursor(); conn.cursor(name=None); conn.cursor(row_factory=x); cursor('c')", []),
        ("cur.execute('SELECT 1', prepare=True)", [(1, "named-statement")]),
        ("cur.execute('SELECT 1', prepare=False); other(prepare=True)", []),
        ("psycopg.connect(dsn)", [(1, "prepare-threshold")]),
        ("await psycopg.AsyncConnection.connect(\n    dsn)", [(1, "prepare-threshold")]),
        ("psycopg.connect(dsn, prepare_threshold=None); psycopg.connect(**a); psycopg2.connect(dsn)", []),
    ],
)
def test_python_files(text: str, expected: list[tuple[int, str]]) -> None:
    assert python(text) == expected


def test_lenient_leaves_out_what_is_unsettled() -> None:
    text = "conn.execute('SET LOCAL x = 1')\npsycopg.connect(dsn)\nconn.execute('SET x = 1')"
    assert found("a.py", text, strict=False) == [(3, "set")]


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

LOG = """\
2026-11-21 09:30:00.000 UTC [1] LOG:  connection authorized: user=a
2026-11-21 09:30:00.000 UTC [1] LOG:  statement: SELECT a,
\tnextval('s')
2026-11-21 09:30:00.000 UTC [1] LOG:  execute <unnamed>: SELECT 1
2026-11-21 09:30:00.000 UTC [1] DETAIL:  parameters: $1 = 'SET x = 1'
2026-11-21 09:30:00.000 UTC [1] LOG:  execute _pg3_0/portal: SELECT 2
2026-11-21 09:30:00.000 UTC [1] LOG:  duration: 0.123 ms  statement: SET x = 1
2026-11-21 09:30:00.000 UTC [1] ERROR:  syntax error
2026-11-21 09:30:00.000 UTC [1] STATEMENT:  SET broken
2026-11-21 09:30:00.000 UTC [1] LOG:  statement: SET x = 1
2026-11-21 09:30:00.000 UTC [1] LOG:  checkpoint starting: time
"""


def test_a_stderr_log_with_repeats_counted() -> None:
    findings = lint_text("postgresql.log", LOG)
    assert [(finding.line, finding.rule) for finding in findings] == [
        (2, "sequence"),
        (6, "named-statement"),
        (7, "set"),
    ]
    assert findings[2].reason.endswith("2 times in this log.")
    assert findings[0].sql == "SELECT a, nextval('s')"


def test_csv_and_json_logs_and_pg_stat_statements() -> None:
    row = ",".join(['""'] * 13 + ['"statement: SELECT 1,\n nextval(""s"")"'] + ['""'] * 9)
    heading_free = f"{row.replace('nextval', 'abs')}\n{row}\n"
    assert found("a.csv", heading_free) == [(3, "sequence")]
    assert found("a.log", '{"message": "execute s1: SELECT 1"}\n{"a": 1}\n{broken\n') == [(1, "named-statement")]
    table = 'userid,query,calls\n1,SELECT 1,7\n1,"SET search_path TO $1",1200\n1,"SELECT nextval($1)",1\n'
    findings = lint_text("a.csv", table)
    assert [(finding.line, finding.rule) for finding in findings] == [(3, "set"), (4, "sequence")]
    assert findings[0].reason.endswith("1,200 times in this log.")


# ── allow comments ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.sql", "SET x = 1; -- pins: allow direct connection", []),
        ("a.sql", "-- pins: allow direct connection\nSET x = 1;\nLISTEN a;", [(3, "listen")]),
        ("a.sql", "-- pins: allow a long reason\n-- over two lines\nSET x = 1;", []),
        ("a.sql", "-- pins: allow direct\nSELECT 1,\n  nextval('s');", []),
        ("a.sql", "SELECT 1,\n  -- pins: allow direct\n  nextval('s');", []),
        ("a.sql", "SELECT 1; -- pins: allow direct\nSET x = 1;", [(2, "set")]),
        ("a.sql", "-- pins: allow direct\n\nSET x = 1;", [(3, "set")]),
        ("a.sql", "SET x = 1; -- pins: allow", [(1, "allow-without-reason"), (1, "set")]),
        ("a.sql", "SET x = 1; -- pins: allow  \nSELECT 1;", [(1, "allow-without-reason"), (1, "set")]),
        ("a.sql", "SELECT 1;\n-- pins: allow-file all direct\nSET x = 1;\nLISTEN a;", []),
        ("a.sql", "-- pins: allow-file\nSET x = 1;", [(1, "allow-without-reason"), (2, "set")]),
        ("a.sql", "-- pins: allowed is no such word\nSET x = 1;", [(2, "set")]),
        ("a.sql", "DO $$ BEGIN\n  SET x = 1; -- pins: allow reset below\nEND $$;", []),
        ("a.py", "execute('SET x = 1')  # pins: allow direct connection", []),
        ("a.py", "# pins: allow direct connection\nexecute(\n    'SET x = 1',\n)", []),
        ("a.py", "execute(\n    # pins: allow direct connection\n    'SET x = 1',\n)", []),
        ("a.py", 'execute("""\n  -- pins: allow direct\n  SELECT nextval(1)\n""")', []),
        ("a.py", "execute('LISTEN a -- pins: allow')", [(1, "allow-without-reason"), (1, "listen")]),
        ("a.py", "execute('SET x = 1')  # pins: allow", [(1, "allow-without-reason"), (1, "set")]),
        ("a.py", "psycopg.connect(dsn)  # pins: allow migrations", []),
    ],
)
def test_allow_comments(name: str, text: str, expected: list[tuple[int, str]]) -> None:
    assert found(name, text) == expected


# ── formats and exits ────────────────────────────────────────────────────────────────────────────────────────────────

ODD = Finding("a,b:c%.sql", 3, "set", "50 % of\nit", "documented", "Do: this, that", "SET x = 1")


def test_text() -> None:
    assert formats.text([ODD], 2).splitlines()[-1] == "1 finding in 1 of 2 files"
    [finding] = lint_text("a.sql", "SET x = 1")
    assert formats.text([finding], 1).splitlines() == [
        "a.sql:1: set: SET and RESET change the session's settings. [documented]",
        f"    {RULES['set'].fix}",
        "1 finding in 1 of 1 file",
    ]
    assert formats.text([], 3) == "Nothing pins: 3 files read."


def test_json_has_exactly_the_documented_keys() -> None:
    [finding] = json.loads(formats.json(lint_text("a.sql", "SELECT 1;\nSET x =\n 1"), 1))
    assert finding == {
        "file": "a.sql",
        "line": 2,
        "rule": "set",
        "reason": RULES["set"].why,
        "certainty": "documented",
        "fix": RULES["set"].fix,
        "sql": "SET x = 1",
    }
    assert json.loads(formats.json([], 1)) == []


def test_a_long_statement_is_shortened() -> None:
    [finding] = lint_text("a.sql", f"SET x = '{'a' * 1000}'")
    assert len(finding.sql) == MAX_SQL


def test_github_escapes_what_would_end_a_command() -> None:
    assert formats.github([ODD], 1) == (
        "::error file=a%2Cb%3Ac%25.sql,line=3,title=pins%3A set::50 %25 of%0Ait [documented] Do: this, that"
    )
    assert formats.github([], 1) == ""


def test_sarif() -> None:
    findings = [ODD, *lint_text("x y/b.sql", "LISTEN a;\nSET LOCAL x = 1;\nLISTEN b")]
    log = json.loads(formats.sarif(findings, 2))
    assert (log["version"], log["$schema"]) == ("2.1.0", formats.SARIF_SCHEMA)
    [run] = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert {rule["id"] for rule in rules} == {"set", "listen", "set-local"}
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning"}
        assert result["message"]["text"]
        assert result["locations"][0]["physicalLocation"]["region"]["startLine"] >= 1
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]]
    assert places[:2] == ["a%2Cb%3Ac%25.sql", "x%20y/b.sql"]
    assert [result["level"] for result in run["results"]] == ["error", "error", "warning", "error"]
    assert json.loads(formats.sarif([], 0))["runs"][0]["results"] == []


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spillway", "pins", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(REPOSITORY)}
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "ok.sql": "SELECT 1;",
        "sub/bad.sql": "SELECT 1;\nSET x = 1;",
        "sub/soft.py": "execute('SET LOCAL x = 1')",
        "node_modules/x.sql": "SET x = 1;",
        ".venv/x.py": "execute('SET x = 1')",
        "server.log": "LOG:  statement: SET x = 1",
        "notes.txt": "SET x = 1",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_exit_0_when_nothing_pins(project: Path) -> None:
    result = run(project, "ok.sql")
    assert (result.returncode, result.stdout, result.stderr) == (0, "Nothing pins: 1 file read.\n", "")


def test_exit_1_with_findings_in_folders(project: Path) -> None:
    result = run(project, ".", "sub", "--format", "json")
    assert result.returncode == 1
    assert [(finding["file"], finding["rule"]) for finding in json.loads(result.stdout)] == [
        ("sub/bad.sql", "set"),
        ("sub/soft.py", "set-local"),
    ]
    assert run(project, "sub/soft.py", "--lenient").returncode == 0
    assert run(project, "server.log").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.sql"], "absent.sql does not exist."),
        (["ok.sql", "sub/absent"], "sub/absent does not exist."),
        ([], "Missing argument"),
        (["ok.sql", "--format", "xml"], "xml"),
        (["broken.py"], "broken.py:2: not a Python source"),
    ],
)
def test_exit_2_for_a_bad_call(project: Path, arguments: list[str], says: str) -> None:
    (project / "broken.py").write_text("x = 1\ndef f(:\n")
    result = run(project, *arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_bytes_that_are_no_utf8_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.sql"
    file.write_bytes(b"\xef\xbb\xbfSELECT 1;\r\nSET x = 1;\r\n")
    assert run(tmp_path, "a.sql").stdout.startswith("a.sql:2: set:")
    file.write_bytes(b"SELECT '\xff';\nSET x = 1;")
    assert run(tmp_path, "a.sql").stdout.startswith("a.sql:2: set:")


def test_spillway_is_clean() -> None:
    result = run(REPOSITORY, "workers", "spillway")
    assert result.returncode == 0, result.stdout
