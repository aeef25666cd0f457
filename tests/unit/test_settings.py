from __future__ import annotations

import pytest

from workers.runtime.settings import Settings, SettingsError

GOOD = {
    "DATABASE_HOST": "proxy.example",
    "DATABASE_PORT": "5432",
    "DATABASE_NAME": "spillway",
    "DATABASE_USER": "spillway_app",
    "DATABASE_AUTH": "password",
    "DATABASE_PASSWORD": "hush",
    "DATABASE_SSLMODE": "verify-full",
    "DATABASE_SSLROOTCERT": "/etc/pki/tls/certs/ca-bundle.crt",
    "DATABASE_CONNECT_TIMEOUT": "5",
    "DATABASE_BORROW_TIMEOUT": "10",
    "DATABASE_STATEMENT_TIMEOUT": "10",
    "FUNCTION_TIMEOUT": "35",
    "QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/123456789012/orders",
    "QUEUE_VISIBILITY_TIMEOUT": "211",
    "RETRY_MAX_DELAY": "600",
    "AWS_REGION": "eu-west-1",
}


def test_a_good_environment() -> None:
    settings = Settings.from_env(GOOD)
    assert settings.attempt == 21  # borrow 10 + statement 10 + margin 1
    assert settings.dead_letter_queue_url == ""
    assert (settings.queue_visibility_timeout, settings.retry_max_delay) == (211, 600)
    assert settings.survived == 175  # 5 x function timeout; visibility - function timeout would be 176
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DATABASE_HOST": ""}, "DATABASE_HOST: expected a value, got nothing"),
        ({"DATABASE_PORT": "0"}, "DATABASE_PORT: expected an integer from 1 to 65535, got '0'"),
        ({"DATABASE_PORT": "54_32"}, "got '54_32'"),
        ({"DATABASE_PORT": "\u0665"}, "expected an integer"),
        ({"DATABASE_PORT": " 5432"}, "expected an integer"),
        ({"DATABASE_AUTH": "kerberos"}, "DATABASE_AUTH: expected one of iam, password, got 'kerberos'"),
        ({"DATABASE_PASSWORD": ""}, "DATABASE_PASSWORD: expected a password because DATABASE_AUTH is 'password'"),
        ({"DATABASE_AUTH": "iam", "AWS_REGION": ""}, "AWS_REGION: expected a region"),
        ({"DATABASE_AUTH": "iam", "DATABASE_SSLMODE": "disable"}, "DATABASE_SSLMODE: expected TLS"),
        ({"DATABASE_SSLROOTCERT": ""}, "DATABASE_SSLROOTCERT: expected a file"),
        ({"DATABASE_SSLMODE": "prefer"}, "DATABASE_SSLMODE: expected one of disable, require"),
        (
            {"FUNCTION_TIMEOUT": "31"},
            r"FUNCTION_TIMEOUT: expected at least 32 s \(start 1 \+ connect 5 \+ borrow 10 \+ statement 10 \+ margin 1"
            r" \+ dead letters 3 \+ visibility 2\), got 31",
        ),
        ({"QUEUE_VISIBILITY_TIMEOUT": "34"}, "QUEUE_VISIBILITY_TIMEOUT: expected at least FUNCTION_TIMEOUT, 35 s"),
        ({"QUEUE_VISIBILITY_TIMEOUT": ""}, "QUEUE_VISIBILITY_TIMEOUT: expected a value, got nothing"),
        ({"QUEUE_VISIBILITY_TIMEOUT": "43201"}, "QUEUE_VISIBILITY_TIMEOUT: expected an integer from 1 to 43200"),
        ({"RETRY_MAX_DELAY": "0"}, "RETRY_MAX_DELAY: expected an integer from 1 to 43200, got '0'"),
        ({"RETRY_MAX_DELAY": "43201"}, "RETRY_MAX_DELAY: expected an integer from 1 to 43200, got '43201'"),
        ({"DATABASE_BORROW_TIMEOUT": "301"}, "expected an integer from 0 to 300, got '301'"),
    ],
)
def test_a_wrong_environment_says_what_was_expected_and_what_was_there(change: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings.from_env(GOOD | change)


def test_a_chain_of_times_that_just_fits() -> None:
    assert Settings.from_env(GOOD | {"FUNCTION_TIMEOUT": "32"}).function_timeout == 32


def test_a_queue_whose_url_is_not_told_has_no_back_off() -> None:
    without = {name: value for name, value in GOOD.items() if not name.startswith(("QUEUE", "RETRY"))}
    settings = Settings.from_env(without)
    assert (settings.queue_url, settings.survived, settings.retry_max_delay) == ("", 0, 900)
