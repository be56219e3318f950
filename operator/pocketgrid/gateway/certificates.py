"""Makes keys and certificates: authorities, a gateway's certificate and those of devices.

A device's certificate names it as SPIFFE does (X.509-SVID, section 2): one URI,
``spiffe://<trust domain>/device/<name>``. Its common name is the SHA-256 of its public key, so that a gateway sees from
what gRPC says of a connection which key it was made with, and need not take a certificate apart at each of them.

Not responsible for keeping any of it (`authority`, `identity`), nor for who gets one (`registrar`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pocketgrid.errors import InvalidSpecError, StoreError

CLOCK_SKEW = dt.timedelta(hours=1)
"""How far a device's clock may run behind ours and still accept a certificate made this moment."""


def make_key() -> bytes:
    """A new private key; PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_authority(key_pem: bytes, now: dt.datetime, valid: dt.timedelta) -> bytes:
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
        .not_valid_after(now + valid)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        # Two authorities bear the same name while one takes over from the other: this is how they are told apart.
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
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PocketGrid gateway")]))
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False)
    )
    valid, purpose = dt.timedelta(days=days), ExtendedKeyUsageOID.SERVER_AUTH
    return _sign(builder, _read_key(key_pem).public_key(), purpose, ca_pem, ca_key_pem, now, valid)


def make_device(
    ca_pem: bytes, ca_key_pem: bytes, public_key_der: bytes, uri: str, now: dt.datetime, valid: dt.timedelta
) -> bytes:
    """A device's certificate; PEM.

    Args:
        public_key_der: SubjectPublicKeyInfo, as `read_request` and `public_key_of` return it.
        uri: the device's SPIFFE ID.

    Raises:
        StoreError: the authority's key is not that of its certificate.
        ValueError: something is no key or no certificate.
    """
    key = serialization.load_der_public_key(public_key_der)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    common_name = hashlib.sha256(public_key_der).hexdigest()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    )
    return _sign(builder, key, ExtendedKeyUsageOID.CLIENT_AUTH, ca_pem, ca_key_pem, now, valid)


def read_request(request_der: bytes) -> bytes:
    """The public key of a certificate request whose sender has the private one; SubjectPublicKeyInfo in DER.

    Raises:
        InvalidSpecError: it is no request, is not signed with its own key, or the key is not on P-256.
    """
    reason, field = "InvalidRequest", "certificate_request"
    try:
        request = x509.load_der_x509_csr(request_der)
        key = request.public_key()
        genuine = request.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as exc:
        raise InvalidSpecError(reason, f"no PKCS #10 request in DER: {exc}", field=field) from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidSpecError(reason, "the key is not on the curve P-256", field=field)
    if not genuine:
        raise InvalidSpecError(reason, "it is not signed with its own key", field=field)
    return _public_bytes(key)


def public_key_of(certificate_pem: bytes) -> bytes:
    """The public key of a certificate that `make_device` made; SubjectPublicKeyInfo in DER."""
    key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return _public_bytes(key)


def _sign(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePublicKey,
    purpose: x509.ObjectIdentifier,
    ca_pem: bytes,
    ca_key_pem: bytes,
    now: dt.datetime,
    valid: dt.timedelta,
) -> bytes:
    ca, ca_key = x509.load_pem_x509_certificate(ca_pem), _read_key(ca_key_pem)
    if ca.public_key() != ca_key.public_key():
        raise StoreError(
            "the authority's key is not that of its certificate; restore both from one backup, or remove both and let "
            "all devices join anew"
        )
    certificate = (
        builder.issuer_name(ca.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + valid)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


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
