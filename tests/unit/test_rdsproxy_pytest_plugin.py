"""The pytest plugin, in a pytest of its own. Its proxy is a fake here; the real one serves test_pins.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Protocol

import pytest

from spillway.rdsproxy.settings import ProxySettings

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
URL = "postgresql://app:secret@127.0.0.1:5999/orders"
#: What a project's conftest never holds: a proxy that only remembers its settings.
FAKE = """
import pytest
from spillway.rdsproxy import background
from spillway.rdsproxy.settings import RdsProxyError

class Fake:
    def __init__(self, settings, admin_port=0):
        self.settings, self.pinned = settings, []
    def __enter__(self):
        if self.settings.target.host == "nowhere":
            raise RdsProxyError("The target nowhere:5432 cannot be reached.", "Is PostgreSQL running there?")
        print("started", self.settings.target.database)
        return self
    def __exit__(self, *_):
        print("stopped")
    def assert_no_pins(self):
        assert not self.pinned, f"1 sessions were pinned: {self.pinned[0]}"

background.BackgroundProxy = Fake
"""


class Pytest(Protocol):
    """Runs pytest over a test module; returns its exit status and all it printed."""

    def __call__(
        self, test: str, *arguments: str, conftest: str = "", env: Mapping[str, str] | None = None, ini: str = ""
    ) -> tuple[int, str]: ...


@pytest.fixture
def run_pytest(tmp_path: Path) -> Pytest:
    def run(
        test: str, *arguments: str, conftest: str = "", env: Mapping[str, str] | None = None, ini: str = ""
    ) -> tuple[int, str]:
        (tmp_path / "test_project.py").write_text("import pytest\n" + dedent(test))
        (tmp_path / "conftest.py").write_text(FAKE + dedent(conftest))
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n" + ini)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RDS_PROXY"))}
        plugin = ["-p", "spillway.rdsproxy.pytest_plugin", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-rA", *plugin, *arguments],
            cwd=tmp_path,
            env=clean | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)} | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


TARGET_TEST = """
def test_target(rds_proxy):
    target = rds_proxy.settings.target
    assert (target.host, target.port, target.user, target.password) == ("127.0.0.1", 5999, "app", "secret")
"""


@pytest.mark.parametrize("how", ["option", "ini", "environment", "fixture"])
def test_the_target_can_be_named_in_four_ways(run_pytest: Pytest, how: str) -> None:
    arguments, env, ini, conftest = (), {}, "", ""
    match how:
        case "option":
            arguments = ("--rds-proxy-target", URL)
        case "ini":
            ini = f"rds_proxy_target = {URL}\n"
        case "environment":
            env = {"RDS_PROXY_TARGET": URL}
        case "fixture":
            conftest = f"@pytest.fixture(scope='session')\ndef rds_proxy_target():\n    return {URL!r}\n"
    status, output = run_pytest(TARGET_TEST, *arguments, env=env, ini=ini, conftest=conftest)
    assert status == 0, output
    assert "started orders" in output
    assert "stopped" in output


def test_the_option_goes_before_the_configuration_and_that_before_the_environment(run_pytest: Pytest) -> None:
    test = "def test_it(rds_proxy): print('target is', rds_proxy.settings.target.database)"
    env, ini = {"RDS_PROXY_TARGET": "postgresql://a@b/env"}, "rds_proxy_target = postgresql://a@b/ini\n"
    status, output = run_pytest(test, "--rds-proxy-target=postgresql://a@b/option", env=env, ini=ini)
    assert (status, "target is option" in output) == (0, True), output
    status, output = run_pytest(test, env=env, ini=ini)
    assert (status, "target is ini" in output) == (0, True), output


def test_without_a_target_the_error_says_how_to_name_one(run_pytest: Pytest) -> None:
    status, output = run_pytest("def test_it(rds_proxy): pass\ndef test_other(): pass")
    assert status == 1
    assert "1 passed, 1 error" in output
    for way in ("--rds-proxy-target", "rds_proxy_target in pytest's", "RDS_PROXY_TARGET", "postgresql://USER"):
        assert way in output
    assert "skipped" not in output


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://a@b/c", "The target begins with 'mysql'."),
        ("postgresql://b/c", "The target names no user."),
        ("postgresql://a@nowhere/c", "The target nowhere:5432 cannot be reached. Is PostgreSQL running there?"),
    ],
)
def test_a_target_that_does_not_do_is_a_usage_error(run_pytest: Pytest, url: str, message: str) -> None:
    status, output = run_pytest("def test_it(rds_proxy): pass", "--rds-proxy-target", url)
    assert status == 1
    assert "UsageError: " + message in output


def test_each_test_has_a_proxy_of_its_own_and_all_share_the_certificates(run_pytest: Pytest) -> None:
    test = """
    seen = []
    @pytest.mark.parametrize("n", [1, 2])
    def test_it(rds_proxy, n):
        seen.append(rds_proxy)
        assert rds_proxy.settings.listen_port == 0
        assert rds_proxy.settings.certificate_dir.is_dir()
    def test_both():
        first, second = seen
        assert first is not second
        assert first.settings.certificate_dir == second.settings.certificate_dir
    """
    status, output = run_pytest(test, "--rds-proxy-target", URL)
    assert status == 0, output


def test_the_marker_changes_settings_and_the_nearest_wins(run_pytest: Pytest) -> None:
    test = """
    pytestmark = pytest.mark.rds_proxy(max_connections=7, strict=False)
    def test_module(rds_proxy):
        assert (rds_proxy.settings.max_connections, rds_proxy.settings.strict) == (7, False)
    @pytest.mark.rds_proxy(max_connections=1)
    def test_own(rds_proxy):
        assert (rds_proxy.settings.max_connections, rds_proxy.settings.strict) == (1, False)
    """
    status, output = run_pytest(test, "--rds-proxy-target", URL)
    assert status == 0, output


def test_the_settings_can_be_overridden_and_the_marker_still_goes_before_them(run_pytest: Pytest) -> None:
    conftest = """
    from pathlib import Path
    from spillway.rdsproxy.settings import ProxySettings, Target
    @pytest.fixture
    def rds_proxy_settings(tmp_path):
        target = Target(host="h", port=1, database="own", user="u")
        return ProxySettings(target=target, max_connections=3, init_query="SELECT 1", certificate_dir=tmp_path)
    """
    test = """
    def test_settings(rds_proxy, tmp_path):
        settings = rds_proxy.settings
        assert (settings.target.database, settings.max_connections, settings.init_query) == ("own", 3, "SELECT 1")
        assert settings.certificate_dir == tmp_path
        assert settings.listen_port == 0
    @pytest.mark.rds_proxy(max_connections=9, listen_port=6999)
    def test_marked(rds_proxy):
        assert (rds_proxy.settings.max_connections, rds_proxy.settings.listen_port) == (9, 6999)
        assert rds_proxy.settings.init_query == "SELECT 1"
    """
    status, output = run_pytest(test, conftest=conftest)
    assert status == 0, output


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("max_conections=1", "The marker rds_proxy has no setting 'max_conections'. Settings: target, listen_host,"),
        ("5", "The marker rds_proxy takes settings by name"),
    ],
)
def test_a_wrong_marker_is_a_usage_error(run_pytest: Pytest, marker: str, message: str) -> None:
    test = f"@pytest.mark.rds_proxy({marker})\ndef test_it(rds_proxy): pass"
    status, output = run_pytest(test, "--rds-proxy-target", URL)
    assert status == 1
    assert message in output


PINNING_TEST = """
def test_pins(rds_proxy):
    rds_proxy.pinned.append("SET x = 1")
"""


def test_a_test_that_pins_fails_with_what_pinned(run_pytest: Pytest) -> None:
    status, output = run_pytest(PINNING_TEST, "--rds-proxy-target", URL)
    assert status == 1
    assert "1 failed" in output
    assert "AssertionError: 1 sessions were pinned: SET x = 1" in output
    assert "stopped" in output


def test_pins_can_be_allowed(run_pytest: Pytest) -> None:
    status, output = run_pytest(PINNING_TEST, "--rds-proxy-target", URL, "--rds-proxy-allow-pins")
    assert status == 0, output
    marked = "@pytest.mark.rds_proxy(allow_pins=True)" + PINNING_TEST
    status, output = run_pytest(marked, "--rds-proxy-target", URL)
    assert status == 0, output


def test_a_test_that_fails_by_itself_shows_its_own_failure(run_pytest: Pytest) -> None:
    test = PINNING_TEST + "    assert 1 == 2, 'its own'"
    status, output = run_pytest(test, "--rds-proxy-target", URL)
    assert status == 1
    assert "its own" in output
    assert "sessions were pinned" not in output


def test_the_marker_and_the_options_explain_themselves(run_pytest: Pytest) -> None:
    _, output = run_pytest("", "--markers")
    assert "@pytest.mark.rds_proxy(*, allow_pins=False, **settings)" in output
    _, output = run_pytest("", "--help")
    assert "--rds-proxy-target=URL" in output
    assert "--rds-proxy-allow-pins" in output


def test_loading_the_plugin_loads_nothing_that_takes_time() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import spillway.rdsproxy.pytest_plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert set(loaded.split()) <= {"spillway", "spillway.rdsproxy", "spillway.rdsproxy.pytest_plugin", "dataclasses"}


def test_the_marker_knows_no_name_that_is_a_setting() -> None:
    assert "allow_pins" not in ProxySettings.__dataclass_fields__
