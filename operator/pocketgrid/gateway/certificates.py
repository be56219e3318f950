"""Makes keys and certificates: the operator's own authority, and the gateway's certificate signed by it.

Not responsible for keeping them; see `identity`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pocketgrid.errors import StoreError

CA_YEARS = 10
CLOCK_SKEW = dt.timedelta(hours=1)
"""How far a device's clock may run behind ours and still accept a certificate made this moment."""


def make_key() -> bytes:
    """A new private key; PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_authority(key_pem: bytes, now: dt.datetime) -> bytes:
    """The certificate of an authority that signs with that key; PEM. Raises ValueError for what is no key."""
    key = _read_key(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PocketGrid device authority")])
    certificate = (
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
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_server(
    ca_pem: bytes, ca_key_pem: bytes, key_pem: bytes, names: Sequence[str], now: dt.datetime, days: int
) -> bytes:
    """A gateway's certificate; PEM.

    Args:
        key_pem: the gateway's own key.
        names: host names and IP addresses it is good for.

    Raises:
        StoreError: a name is neither, or the authority's key is not that of its certificate.
        ValueError: something is no key or no certificate.
    """
    ca, ca_key, key = x509.load_pem_x509_certificate(ca_pem), _read_key(ca_key_pem), _read_key(key_pem)
    if ca.public_key() != ca_key.public_key():
        raise StoreError("ca.key is not the key of ca.crt; restore both from one backup, or remove both and enrol anew")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PocketGrid gateway")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("a private key is no elliptic-curve key")
    return key


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
