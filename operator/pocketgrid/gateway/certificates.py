"""The operator's own certificate authority, the gateway's certificate, and the join secret.

All three are made once and kept in the state folder: a device is given the authority's certificate and the secret, and
trusts nothing else. Server certificates are short-lived and made anew at every start, and again before they run out;
the authority stays.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pocketgrid.errors import StoreError
from pocketgrid.storage.durable import fsync_folder

CA_YEARS = 10
SERVER_DAYS = 90
CLOCK_SKEW = dt.timedelta(hours=1)
"""How far a device's clock may run behind ours and still accept a certificate made this moment."""


@dataclass(frozen=True, slots=True)
class GatewayIdentity:
    """What a gateway proves itself with.

    Attributes:
        ca_file: the authority's certificate, for devices; PEM.
        join_secret_file: the shared secret, for devices.
        renew_at: when a new certificate should take the place of this one.
    """

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    join_secret: str
    ca_file: Path
    join_secret_file: Path
    renew_at: dt.datetime
    expires_at: dt.datetime


def load_identity(folder: Path, names: Sequence[str], now: dt.datetime) -> GatewayIdentity:
    """The gateway's identity from `folder`, making what is missing.

    Args:
        folder: private to the operator; made if missing.
        names: host names and IP addresses under which devices reach the gateway.
        now: time zone aware.

    Raises:
        StoreError: the folder cannot be written, what lies there cannot be read, or a name is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key_file, ca_file, secret_file = folder / "ca.key", folder / "ca.crt", folder / "join-secret"
        # The key comes first and is never replaced: whoever loses the race reads what the winner wrote.
        _create_once(key_file, _pem_key(ec.generate_private_key(ec.SECP256R1())))
        ca_key = _read_key(key_file)
        _create_once(ca_file, _make_ca(ca_key, now).public_bytes(serialization.Encoding.PEM))
        _create_once(secret_file, secrets.token_urlsafe(32).encode() + b"\n")
        ca = x509.load_pem_x509_certificate(ca_file.read_bytes())
        secret = secret_file.read_text().strip()
    except (OSError, ValueError) as exc:
        raise StoreError(f"cannot read or make the gateway's certificates in {folder}: {exc}") from exc
    if not secret:
        raise StoreError(f"{secret_file} is empty; write a secret there, or remove it to have one made")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _make_server(ca, ca_key, key, names, now)
    return GatewayIdentity(
        ca_pem=ca.public_bytes(serialization.Encoding.PEM),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=_pem_key(key),
        join_secret=secret,
        ca_file=ca_file,
        join_secret_file=secret_file,
        renew_at=now + dt.timedelta(days=SERVER_DAYS / 2),
        expires_at=certificate.not_valid_after_utc,
    )


def _create_once(path: Path, content: bytes) -> None:
    # Write aside and link into place: a reader never sees half a file, and an existing one is never replaced.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
            fsync_folder(path.parent)
    finally:
        temporary.unlink()


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StoreError(f"{path} holds no elliptic-curve key")
    return key


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _make_ca(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PocketGrid device authority")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=365 * CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_server(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    now: dt.datetime,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PocketGrid gateway")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=SERVER_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as exc:
        raise StoreError(f"{name!r} is neither a host name nor an IP address: {exc}") from exc


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
