"""What a device proves itself with, kept in its state folder: its key, and the certificate it was given for it.

The key is made here, once, and never leaves the device. It lies in a file of its own, because it is there before any
gateway has been asked: when an answer is lost, the same question with the same key gets the same answer.

Times come as durations and are kept as readings of this device's own clock, so that it need not agree with anybody's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.errors import StoreError

KEY_FILE = "device.key"
FILE = "credentials.json"

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A device's credentials.

    Attributes:
        device: name in the certificate.
        key_pem: private.
        chain_pem: the certificate and who signed it.
        bundle_pem: whom to trust.
        request_der: what the certificate was asked for with; good for asking again, when it has run out.
        join_address: where to ask then, HOST:PORT.
        gateway_address: what to dial, HOST:PORT.
        server_name: name the gateway's certificate bears; empty: the host.
        issued_at: seconds since the Unix epoch, by this device's clock.
        valid_s, renew_after_s: from then on.
    """

    device: str
    key_pem: bytes
    chain_pem: bytes
    bundle_pem: bytes
    request_der: bytes
    join_address: str
    gateway_address: str
    server_name: str
    issued_at: float
    valid_s: float
    renew_after_s: float

    def trusts(self, ca_sha256: str) -> bool:
        """Whether an authority with that SHA-256 is among those to trust."""
        return ca_sha256.lower() in authorities(self.bundle_pem)

    def remaining_s(self, wall: float) -> float:
        """Seconds until the certificate runs out, as far as this device's clock can tell."""
        return self.issued_at + self.valid_s - wall


def authorities(bundle_pem: bytes) -> set[str]:
    """SHA-256 of each certificate (DER), hexadecimal."""
    import ssl

    found = _CERTIFICATE.findall(bundle_pem.decode())
    return {hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() for pem in found}


def load(folder: Path) -> Credentials | None:
    """What is kept in a state folder; None if this device has not joined.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        key = (folder / KEY_FILE).read_bytes()
        kept = json.loads((folder / FILE).read_bytes())
        return Credentials(
            device=kept["device"],
            key_pem=key,
            chain_pem=kept["certificate"].encode(),
            bundle_pem=kept["trust"].encode(),
            request_der=base64.b64decode(kept["request"]),
            join_address=kept["join"],
            gateway_address=kept["gateway"],
            server_name=kept["serverName"],
            issued_at=float(kept["issuedAt"]),
            valid_s=float(kept["validSeconds"]),
            renew_after_s=float(kept["renewAfterSeconds"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"cannot read the credentials in {folder}: {error}; remove {FILE} there and join anew"
        ) from error


def save(folder: Path, credentials: Credentials) -> None:
    """Keep all but the key, whole or not at all. Raises StoreError."""
    content = {
        "device": credentials.device,
        "join": credentials.join_address,
        "gateway": credentials.gateway_address,
        "serverName": credentials.server_name,
        "issuedAt": credentials.issued_at,
        "validSeconds": credentials.valid_s,
        "renewAfterSeconds": credentials.renew_after_s,
        "request": base64.b64encode(credentials.request_der).decode(),
        "certificate": credentials.chain_pem.decode(),
        "trust": credentials.bundle_pem.decode(),
    }
    write_private(folder / FILE, json.dumps(content, indent=1).encode())


def write_private(path: Path, content: bytes) -> None:
    """Put a file in its place that nobody else can read. Raises StoreError."""
    fresh = path.with_suffix(".new")
    try:
        with suppress(FileNotFoundError):
            fresh.unlink()
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
