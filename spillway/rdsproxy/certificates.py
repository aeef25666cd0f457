"""The proxy's certificate, from a certificate authority that lives in a directory on this machine.

Clients trust `ca.pem` (sslrootcert). The authority's key is kept beside it, readable by its owner only, so that new
names or a renewal change the certificate and never what clients trust.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import ssl
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import idna
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from spillway.rdsproxy.settings import RdsProxyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: What PostgreSQL calls itself in TLS (IANA's registry of ALPN protocol IDs).
ALPN = "postgresql"

#: Names every certificate holds.
LOCAL_NAMES = ("localhost", "127.0.0.1")
#: A new certificate's life, and how long before its end it is replaced.
LIFETIME = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: what clients trust, the proxy's certificate, and its key."""

    ca_file: Path
    cert_file: Path
    key_file: Path


def ensure_certificates(directory: Path, hostnames: Sequence[str], *, now: datetime | None = None) -> Certificates:
    """Certificates for these host names (or IP addresses) and LOCAL_NAMES in `directory`, made if there are none.

    What is there is kept while it is whole, covers the names and is not about to expire. A new certificate also
    covers the names of the one before it, so that two proxies may share a directory. Safe to run at the same time.
    Raises RdsProxyError where a name cannot be in a certificate or the directory cannot be written.
    """
    wanted = {_normal(name) for name in (*LOCAL_NAMES, *hostnames)}
    moment = now or datetime.now(UTC)
    files = Certificates(directory / "ca.pem", directory / "server.pem", directory / "server-key.pem")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _lock(directory / ".lock"):
            held = _names_of(files, moment)
            if not wanted <= held:
                _issue(files, _authority(files.ca_file, directory / "ca-key.pem", moment), wanted | held, moment)
    except OSError as error:
        raise RdsProxyError(f"The certificates in {directory} cannot be used: {error.strerror}.") from error
    return files


def server_context(certificates: Certificates) -> ssl.SSLContext:
    """For the proxy's side: TLS 1.2 and later, ALPN "postgresql" (which libpq 17 asks for), no session tickets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # as PostgreSQL: a client that only connects and closes must not have to read them
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(certificates.cert_file, certificates.key_file)
    return context


def _normal(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError as error:
        raise RdsProxyError(f"{name!r} cannot be in a certificate: {error}.") from None


def _names_of(files: Certificates, now: datetime) -> set[str]:
    """The names the files are good for: none if they are missing, damaged, do not belong together or end soon."""
    try:
        authority = x509.load_pem_x509_certificate(files.ca_file.read_bytes())
        certificate = x509.load_pem_x509_certificate(files.cert_file.read_bytes())
        key = load_pem_private_key(files.key_file.read_bytes(), password=None)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # whatever is wrong with them, they are made anew
        return set()
    ends = min(authority.not_valid_after_utc, certificate.not_valid_after_utc)
    if key.public_key() != certificate.public_key() or ends - now < RENEW_BEFORE:
        return set()
    return {
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    }


def _authority(cert_file: Path, key_file: Path, now: datetime) -> trustme.CA:
    """The directory's authority; a new one if there is none, it is damaged or ends within a certificate's life."""
    try:
        authority = trustme.CA.from_pem(cert_file.read_bytes(), key_file.read_bytes())
        certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        if key.public_key() == certificate.public_key() and certificate.not_valid_after_utc - now > LIFETIME:
            return authority
    except Exception:  # noqa: S110 - whatever is wrong with it, it is made anew
        pass
    authority = trustme.CA(organization_name="Spillway", organization_unit_name="RDS Proxy emulator, local CA")
    _write(key_file, authority.private_key_pem.bytes(), 0o600)
    _write(cert_file, authority.cert_pem.bytes(), 0o644)
    return authority


def _issue(files: Certificates, authority: trustme.CA, names: set[str], now: datetime) -> None:
    leaf = authority.issue_cert(
        *sorted(names),
        organization_name="Spillway",
        organization_unit_name="RDS Proxy emulator",
        not_before=now - timedelta(days=1),
        not_after=now + LIFETIME,
    )
    _write(files.key_file, leaf.private_key_pem.bytes(), 0o600)
    _write(files.cert_file, b"".join(pem.bytes() for pem in leaf.cert_chain_pems), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file as a whole; no reader sees half of it, and no one else's eyes a key."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
