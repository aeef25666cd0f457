"""Certificate authorities as text."""

from __future__ import annotations

import re
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from spillway.rdsproxy.certificates import ensure_certificates
from spillway.stack.template import REPOSITORY
from tests.unit.test_settings import GOOD
from workers.runtime.certificates import file_with, tidied
from workers.runtime.database import authorities
from workers.runtime.settings import Settings, SettingsError


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    return ensure_certificates(tmp_path_factory.mktemp("ca"), ["127.0.0.1"]).ca_file.read_text()


@pytest.mark.parametrize(
    "squeezed",
    [
        lambda pem: pem,
        lambda pem: pem.replace("\n", " "),
        lambda pem: pem.replace("\n", "\\n"),
        lambda pem: pem.replace("\n", "\r\n"),
        lambda pem: pem.replace("\n", "\\r\\n"),
        lambda pem: pem.replace("\n", ""),
    ],
    ids=["as it is", "spaces", "backslashes", "CRLF", "escaped CRLF", "nothing"],
)
def test_line_ends_that_got_lost_come_back(pem: str, squeezed: object) -> None:
    text = squeezed(pem)  # type: ignore[operator]
    assert tidied(text) == pem
    assert Settings.from_env(GOOD | {"DATABASE_SSLROOTCERT": text}).sslrootcert == text


def test_several_authorities(pem: str) -> None:
    assert tidied(f"{pem}\n{pem}") == pem + pem


@pytest.mark.parametrize(
    "mangle",
    [
        lambda pem: pem[:-30],
        lambda pem: pem.replace("-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE"),
        lambda pem: pem + "-----BEGIN CERTIFICATE-----",
        lambda pem: pem.replace("CERTIFICATE", "PRIVATE KEY"),
        lambda pem: pem + "and more",
        lambda pem: pem.replace("M", "?"),
    ],
    ids=["cut off", "bad begin", "second cut off", "key", "more", "no base64"],
)
def test_what_is_not_whole_is_refused(pem: str, mangle: object) -> None:
    text = mangle(pem)  # type: ignore[operator]
    assert tidied(text) == ""
    with pytest.raises(SettingsError, match="DATABASE_SSLROOTCERT: expected a file, or whole certificates") as refused:
        Settings.from_env(GOOD | {"DATABASE_SSLROOTCERT": text})
    assert len(str(refused.value)) < 300


def test_they_are_written_once_and_for_us_only(pem: str) -> None:
    path = Path(authorities(pem))
    assert path == Path(authorities(pem)) == Path(file_with(pem))
    assert path.read_text() == pem
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(ssl.create_default_context(cafile=str(path)).get_ca_certs()) == 1


def test_they_are_gone_with_the_process(pem: str) -> None:
    code = "import sys; from workers.runtime.certificates import file_with; print(file_with(sys.argv[1]))"
    result = subprocess.run([sys.executable, "-c", code, pem], check=True, timeout=60, capture_output=True, text=True)
    assert result.stdout.startswith("/")
    assert not Path(result.stdout.strip()).exists()


def test_a_path_is_left_alone_and_costs_nothing() -> None:
    assert authorities("/etc/pki/tls/certs/ca-bundle.crt") == "/etc/pki/tls/certs/ca-bundle.crt"
    code = (
        "import sys, workers.runtime.database as d; d.authorities('/a/file');"
        "print('workers.runtime.certificates' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert result.stdout == "False\n"


def test_the_roots_of_rds_are_whole() -> None:
    path = REPOSITORY / "workers/runtime/rds-ca.pem"
    certificates = x509.load_pem_x509_certificates(path.read_bytes())
    names = [one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value for one in certificates]
    found = [re.fullmatch(r"Amazon RDS ([a-z]+-[a-z]+-\d) Root CA (RSA2048|RSA4096|ECC384) G1", str(n)) for n in names]
    regions = {match[1] for match in found if match}
    assert len(regions) > 25
    # Every region's three, each signed by itself.
    assert sorted(names) == sorted(
        f"Amazon RDS {region} Root CA {kind} G1" for region in regions for kind in ("RSA2048", "RSA4096", "ECC384")
    )
    for one in certificates:
        one.verify_directly_issued_by(one)
    # The lines between them are for people; OpenSSL skips them.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=path)
    assert context.cert_store_stats()["x509_ca"] == len(certificates)
