"""What the gateway proves itself with, and what devices are given: kept in the state folder, made where it is missing.

The authority and the join secret are made once and stay. A device is given the authority's certificate and the secret,
and trusts nothing else. The gateway's own certificate is short-lived; it is kept as well, because a gateway that finds
one need not load the library that makes them, and starts a tenth of a second sooner.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.errors import StoreError
from pocketgrid.storage.durable import fsync_folder

SERVER_DAYS = 90


@dataclass(frozen=True, slots=True)
class GatewayIdentity:
    """What a gateway proves itself with.

    Attributes:
        ca_file: the authority's certificate, for devices; PEM.
        join_secret_file: the shared secret, for devices.
        renew_at: when a new certificate should take the place of this one.
        expires_at: when devices stop believing it.
    """

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    join_secret: str
    ca_file: Path
    join_secret_file: Path
    renew_at: dt.datetime
    expires_at: dt.datetime

    def fresh(self, now: dt.datetime) -> bool:
        """Whether the certificate will do at `now`: not too old, and not made while the clock was ahead of `now`."""
        return self.renew_at - dt.timedelta(days=SERVER_DAYS / 2) <= now < self.renew_at


@dataclass(frozen=True, slots=True)
class _Server:
    certificate_pem: bytes
    key_pem: bytes
    made_at: dt.datetime


def load_identity(folder: Path, names: Sequence[str], now: dt.datetime) -> GatewayIdentity:
    """The gateway's identity from `folder`, making what is missing or runs out.

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
        _make_missing(key_file, ca_file, secret_file, now)
        ca_pem = ca_file.read_bytes()
        secret = secret_file.read_text().strip()
        server = _server(folder / "server.json", key_file, ca_pem, names, now)
    except (OSError, ValueError) as exc:
        raise StoreError(f"cannot read or make the gateway's certificates in {folder}: {exc}") from exc
    if not secret:
        raise StoreError(f"{secret_file} is empty; write a secret there, or remove it to have one made")
    return GatewayIdentity(
        ca_pem=ca_pem,
        certificate_pem=server.certificate_pem,
        key_pem=server.key_pem,
        join_secret=secret,
        ca_file=ca_file,
        join_secret_file=secret_file,
        renew_at=server.made_at + dt.timedelta(days=SERVER_DAYS / 2),
        expires_at=server.made_at + dt.timedelta(days=SERVER_DAYS),
    )


def _make_missing(key_file: Path, ca_file: Path, secret_file: Path, now: dt.datetime) -> None:
    # The key comes first and is never replaced: whoever loses the race reads what the winner wrote.
    if not key_file.exists() or not ca_file.exists():
        from pocketgrid.gateway import certificates

        _create_once(key_file, certificates.make_key())
        _create_once(ca_file, certificates.make_authority(key_file.read_bytes(), now))
    if not secret_file.exists():
        _create_once(secret_file, secrets.token_urlsafe(32).encode() + b"\n")


def _server(path: Path, key_file: Path, ca_pem: bytes, names: Sequence[str], now: dt.datetime) -> _Server:
    issued_for = [*names, hashlib.sha256(ca_pem).hexdigest()]
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_bytes())
        made_at = dt.datetime.fromtimestamp(kept["made_at"], dt.UTC)
        if kept["issued_for"] == issued_for and dt.timedelta() <= now - made_at < dt.timedelta(days=SERVER_DAYS / 2):
            return _Server(kept["certificate"].encode(), kept["key"].encode(), made_at)
    from pocketgrid.gateway import certificates

    key_pem = certificates.make_key()
    certificate_pem = certificates.make_server(ca_pem, key_file.read_bytes(), key_pem, names, now, SERVER_DAYS)
    content = {
        "made_at": now.timestamp(),
        "issued_for": issued_for,
        "certificate": certificate_pem.decode(),
        "key": key_pem.decode(),
    }
    _replace(path, json.dumps(content).encode())
    return _Server(certificate_pem, key_pem, now)


def _create_once(path: Path, content: bytes) -> None:
    # Write aside and link into place: a reader never sees half a file, and an existing one is never replaced.
    temporary = _write_aside(path, content)
    try:
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
            fsync_folder(path.parent)
    finally:
        temporary.unlink()


def _replace(path: Path, content: bytes) -> None:
    _write_aside(path, content).replace(path)


def _write_aside(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary
