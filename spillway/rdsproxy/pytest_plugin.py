"""pytest fixtures that put an emulated RDS Proxy between a test and its PostgreSQL.

    def test_writes_a_batch(rds_proxy):
        with psycopg.connect(rds_proxy.dsn(), autocommit=True, prepare_threshold=None) as connection:
            ...
        assert rds_proxy.metrics["DatabaseConnectionsCurrentlyBorrowed"] == 0

A test in which a session was pinned fails, with the statements that pinned. Where pins are meant:
`@pytest.mark.rds_proxy(allow_pins=True)`, or `--rds-proxy-allow-pins` for a whole run.

Which database: `--rds-proxy-target URL`, `rds_proxy_target` in pytest's configuration or RDS_PROXY_TARGET in the
environment, in this order; or override the fixture `rds_proxy_target` where the URL is known to another fixture only.
Every setting of `ProxySettings`: override the fixture `rds_proxy_settings`, or for one test
`@pytest.mark.rds_proxy(max_connections=1, connection_borrow_timeout=0.5)`.
"""

# Every pytest run in this environment imports this module: the emulator, uvloop and TLS come with the first proxy.
from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from spillway.rdsproxy.background import BackgroundProxy
    from spillway.rdsproxy.settings import ProxySettings

MARKER = "rds_proxy"
ENVIRONMENT_VARIABLE = "RDS_PROXY_TARGET"
_ALLOW_PINS = "allow_pins"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rds-proxy", "an emulated RDS Proxy for tests")
    group.addoption(
        "--rds-proxy-target",
        metavar="URL",
        help="PostgreSQL behind the rds_proxy fixture: postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    )
    group.addoption(
        "--rds-proxy-allow-pins", action="store_true", help="do not fail tests in which a session was pinned"
    )
    parser.addini("rds_proxy_target", "PostgreSQL behind the rds_proxy fixture, as for --rds-proxy-target")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*, {_ALLOW_PINS}=False, **settings): settings of this test's rds_proxy, by their names in "
        "ProxySettings; allow_pins: do not fail if a session was pinned",
    )


@pytest.fixture
def rds_proxy_target(pytestconfig: pytest.Config) -> str:
    """The database behind the proxy, as a URL. Override it where another fixture knows."""
    target = (
        pytestconfig.getoption("--rds-proxy-target")
        or pytestconfig.getini("rds_proxy_target")
        or os.environ.get(ENVIRONMENT_VARIABLE)
    )
    if not target:
        raise pytest.UsageError(
            "rds_proxy needs a PostgreSQL to stand before. Name it, as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
            f"with --rds-proxy-target, rds_proxy_target in pytest's configuration or {ENVIRONMENT_VARIABLE} in the "
            "environment; or override the fixture rds_proxy_target."
        )
    return str(target)


@pytest.fixture
def rds_proxy_settings(rds_proxy_target: str) -> ProxySettings:
    """The proxy's settings. An override decides everything, the target too; the marker still goes before it."""
    from spillway.rdsproxy.settings import ProxySettings, RdsProxyError, Target  # noqa: PLC0415

    try:
        return ProxySettings(target=Target.parse(rds_proxy_target), listen_port=0)
    except RdsProxyError as error:
        raise pytest.UsageError(_text(error)) from error


@pytest.fixture(scope="session")
def rds_proxy_certificate_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the proxies of a run share their certificates: making them takes longer than all else."""
    return tmp_path_factory.mktemp("rds-proxy-certificates")


@pytest.fixture
def rds_proxy(
    request: pytest.FixtureRequest, rds_proxy_settings: ProxySettings, rds_proxy_certificate_dir: Path
) -> Iterator[BackgroundProxy]:
    """A running proxy for this test alone. Its port is a free one unless the settings name another than 5432."""
    from spillway.rdsproxy.background import BackgroundProxy  # noqa: PLC0415
    from spillway.rdsproxy.settings import RdsProxyError  # noqa: PLC0415

    changes: dict[str, Any] = {"certificate_dir": rds_proxy_settings.certificate_dir or rds_proxy_certificate_dir}
    if rds_proxy_settings.listen_port == type(rds_proxy_settings).__dataclass_fields__["listen_port"].default:
        changes["listen_port"] = 0
    marked = _marked(request.node)
    del marked[_ALLOW_PINS]
    known = [field.name for field in dataclasses.fields(rds_proxy_settings)]
    if unknown := sorted(marked.keys() - known):
        raise pytest.UsageError(f"The marker {MARKER} has no setting {unknown[0]!r}. Settings: {', '.join(known)}.")
    try:
        proxy = BackgroundProxy(dataclasses.replace(rds_proxy_settings, **changes | marked))
        with proxy:
            request.node.stash[_PROXY] = proxy
            yield proxy
    except RdsProxyError as error:
        raise pytest.UsageError(_text(error)) from error


_PROXY: pytest.StashKey[BackgroundProxy] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that passed but pinned has failed."""
    result = yield
    proxy = item.stash.get(_PROXY, None)
    if proxy is not None and not item.config.getoption("--rds-proxy-allow-pins") and not _marked(item)[_ALLOW_PINS]:
        __tracebackhide__ = True
        proxy.assert_no_pins()
    return result


def _marked(item: pytest.Item) -> dict[str, Any]:
    """The markers' settings; the nearest to the test wins."""
    settings: dict[str, Any] = {_ALLOW_PINS: False}
    for marker in reversed(list(item.iter_markers(MARKER))):
        if marker.args:
            raise pytest.UsageError(f"The marker {MARKER} takes settings by name: @pytest.mark.{MARKER}(NAME=VALUE).")
        settings |= marker.kwargs
    return settings


def _text(error: Any) -> str:
    return f"{error.message} {error.hint}".strip()
