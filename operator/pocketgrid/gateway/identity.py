"""What the gateway proves itself with: a short-lived certificate of its own, kept in the state folder.

It is kept because a gateway that finds one need not load the library that makes them, and starts a tenth of a second
sooner. The authority that signs it is another matter (`authority`).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.errors import StoreError
from pocketgrid.gateway.authority import Keyring
from pocketgrid.gateway.filestores import write_whole

SERVER_DAYS = 90


@dataclass(frozen=True, slots=True)
class GatewayIdentity:
    """What a gateway proves itself with.

    Attributes:
        chain_pem: the gateway's certificate and who signed it: a joining device compares that one with what it was
            told.
        ca_sha256: SHA-256 of the authority's certificate in DER, hexadecimal.
        renew_at: when a new certificate should take the place of this one.
        expires_at: when devices stop believing it.
    """

    chain_pem: bytes
    key_pem: bytes
    ca_sha256: str
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


def load_identity(folder: Path, keyring: Keyring, names: Sequence[str], now: dt.datetime) -> GatewayIdentity:
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
        server = _server(folder / "server.json", keyring, names, now)
    except (OSError, ValueError) as exc:
        raise StoreError(f"cannot read or make the gateway's certificate in {folder}: {exc}") from exc
    signed_by = keyring.signing(now.timestamp())
    return GatewayIdentity(
        chain_pem=server.certificate_pem + signed_by.certificate_pem,
        key_pem=server.key_pem,
        ca_sha256=signed_by.sha256,
        renew_at=server.made_at + dt.timedelta(days=SERVER_DAYS / 2),
        expires_at=server.made_at + dt.timedelta(days=SERVER_DAYS),
    )


def _server(path: Path, keyring: Keyring, names: Sequence[str], now: dt.datetime) -> _Server:
    authority = keyring.signing(now.timestamp())
    issued_for = [*names, authority.sha256]
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_bytes())
        made_at = dt.datetime.fromtimestamp(kept["made_at"], dt.UTC)
        if kept["issued_for"] == issued_for and dt.timedelta() <= now - made_at < dt.timedelta(days=SERVER_DAYS / 2):
            return _Server(kept["certificate"].encode(), kept["key"].encode(), made_at)
    from pocketgrid.gateway import certificates

    key_pem = certificates.make_key()
    certificate_pem = certificates.make_server(
        authority.certificate_pem, authority.key_pem, key_pem, names, now, SERVER_DAYS
    )
    content = {
        "made_at": now.timestamp(),
        "issued_for": issued_for,
        "certificate": certificate_pem.decode(),
        "key": key_pem.decode(),
    }
    write_whole(path, json.dumps(content).encode())
    return _Server(certificate_pem, key_pem, now)
