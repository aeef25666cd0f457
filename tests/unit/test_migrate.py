"""What the migrate function needs of its environment, what it plans, and how it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from workers.migrate import custom_resource
from workers.migrate.custom_resource import MAX_BODY_BYTES, Request, cut
from workers.migrate.roles import LoginRole
from workers.migrate.runner import Migration, MigrationError, newer, plan
from workers.migrate.settings import MigrateSettings
from workers.runtime.settings import SettingsError

GOOD = {
    "DATABASE_HOST": "fleet.cluster-1.eu-west-1.rds.amazonaws.com",
    "DATABASE_PORT": "5432",
    "DATABASE_NAME": "spillway",
    "DATABASE_USER": "spillway_app",
    "DATABASE_SSLMODE": "verify-full",
    "DATABASE_SSLROOTCERT": "/etc/pki/tls/certs/ca-bundle.crt",
    "DATABASE_STATEMENT_TIMEOUT": "10",
    "MASTER_SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:rds!cluster-1",
    "APPLICATION_SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:app",
}


def test_a_good_environment() -> None:
    settings = MigrateSettings.from_env(GOOD)
    assert settings.application_secret == GOOD["APPLICATION_SECRET_ARN"]
    for without in ({"APPLICATION_SECRET_ARN": ""}, {}):
        env = {name: value for name, value in GOOD.items() if name != "APPLICATION_SECRET_ARN"} | without
        assert MigrateSettings.from_env(env).application_secret == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"DATABASE_HOST": ""}, "DATABASE_HOST: expected a value, got nothing"),
        ({"MASTER_SECRET_ARN": ""}, "MASTER_SECRET_ARN: expected a value, got nothing"),
        ({"DATABASE_SSLMODE": "prefer"}, "DATABASE_SSLMODE: expected one of disable, require"),
        (
            {"DATABASE_SSLROOTCERT": ""},
            "DATABASE_SSLROOTCERT: expected a file because DATABASE_SSLMODE is 'verify-full'",
        ),
        ({"DATABASE_SSLROOTCERT": "-----BEGIN CERTIFICATE-----\nMII"}, "expected a file, or whole certificates"),
        ({"DATABASE_STATEMENT_TIMEOUT": "0"}, "DATABASE_STATEMENT_TIMEOUT: expected an integer from 1 to 300, got '0'"),
        # With _direct it would be longer than PostgreSQL's names are, and be cut off without an error.
        ({"DATABASE_USER": "a" * 57}, "DATABASE_USER: expected at most 56 bytes, got 'aaa"),
        ({"DATABASE_USER": "ä" * 29}, "DATABASE_USER: expected at most 56 bytes, got 'äää"),
    ],
)
def test_a_wrong_environment_is_refused_in_one_sentence(change: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        MigrateSettings.from_env(GOOD | change)
    assert sentence in str(refused.value)


def test_the_longest_user_fits() -> None:
    settings = MigrateSettings.from_env(GOOD | {"DATABASE_USER": "a" * 56})
    assert len(LoginRole.with_timeouts(settings.user, None, 10).direct.name) == 63


ONE, TWO = (Migration(f"000{number}_x.sql", f"SELECT {number}", number) for number in (1, 2))
FUNCTION = Migration("w/apply.sql", "SELECT 0", None)


def had(*migrations: Migration) -> dict[str, tuple[int | None, str]]:
    return {migration.name: (migration.version, migration.checksum) for migration in migrations}


def test_old_code_accepts_a_newer_database_only_where_it_is_told_to() -> None:
    ahead = had(ONE, TWO, FUNCTION)
    old_function = Migration("w/apply.sql", "SELECT 'as it was'", None)
    with pytest.raises(MigrationError, match=r"0002_x.sql was applied to this database but is missing here"):
        plan([ONE, old_function], ahead)
    assert plan([ONE, old_function], ahead, accept_newer=True) == [old_function]
    assert newer([ONE, old_function], ahead) == ["0002_x.sql"]
    assert newer([ONE, TWO], ahead) == [], "a function that went is no newer version"


def test_nothing_else_is_accepted_with_it() -> None:
    edited = Migration("0001_x.sql", "SELECT 'edited'", 1)
    with pytest.raises(MigrationError, match=r"0001_x.sql was edited"):
        plan([edited], had(ONE, TWO), accept_newer=True)
    with pytest.raises(MigrationError, match=r"0001_x.sql would run after 0002"):
        plan([ONE], had(TWO), accept_newer=True)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("short", 10, "short"),
        ("exactly ten", 11, "exactly ten"),
        ("one too many", 11, "one too ..."),
        ("two\nlines\tand\x00more", 50, "two lines and more"),
        ("ääääää", 9, "äää..."),
        ("äääääää", 10, "äää..."),  # no half letter
        ("a\udc80b", 10, "a b"),  # cannot be encoded
    ],
)
def test_what_is_shown_is_one_line_of_so_many_bytes(text: str, most: int, expected: str) -> None:
    assert cut(text, most) == expected
    assert len(cut(text, most).encode()) <= most


def test_an_answer_fits_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytes] = []
    monkeypatch.setattr(Request, "_put", lambda _, body: bodies.append(body))
    event = {
        "StackId": "arn:aws:cloudformation:eu-west-1:123456789012:stack/" + "s" * 128 + "/" + "u" * 36,
        "RequestId": "r" * 36,
        "LogicalResourceId": "l" * 255,
        "PhysicalResourceId": "fleet-schema",
    }
    worst = "\"\\€'\n" * 2000
    Request(event, "").failed(worst)
    Request(event, "").succeeded(dict.fromkeys(("Version", "Applied", "Newer", "Warnings"), worst))
    for body in bodies:
        assert len(body) <= MAX_BODY_BYTES
    assert json.loads(bodies[0])["Reason"].endswith("...")


def test_only_the_first_answer_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[dict[str, Any]] = []
    monkeypatch.setattr(Request, "_put", lambda _, body: bodies.append(json.loads(body)))
    request = Request({}, "fleet-schema")
    assert request.failed("too late") is True
    assert request.succeeded({}) is False
    assert request.failed("again") is False
    assert [(body["Status"], body["PhysicalResourceId"]) for body in bodies] == [("FAILED", "fleet-schema")]


def test_all_attempts_to_answer_and_the_end_of_a_run_fit_into_what_is_kept_back() -> None:
    from workers.migrate import deployment, handler  # noqa: PLC0415

    pauses = sum(custom_resource._FIRST_PAUSE_S * 2**n for n in range(custom_resource.ATTEMPTS - 1))
    answer = custom_resource.ATTEMPTS * custom_resource._PUT_TIMEOUT_S + pauses
    end = handler.END_S + deployment._CANCEL_TIMEOUT_S + handler._POLL_S
    assert handler._POLL_S + end + answer < handler.RESERVE_S


def test_the_handler_can_answer_before_anything_else_is_loaded() -> None:
    """A driver that does not load is a reason to tell, so it must not keep the handler from loading."""
    code = (
        "import sys\n"
        "for name in ('psycopg', 'boto3', 'aws_lambda_powertools'): sys.modules[name] = None\n"
        "import workers.migrate.handler\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_consumer_loads_it() -> None:
    code = "import sys, workers.orders.handler; print([m for m in sys.modules if m.startswith('workers.migrate')])"
    result = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert result.stdout == "[]\n"
