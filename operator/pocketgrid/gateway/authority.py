"""The authority that signs the certificates of gateway and devices: made once, replaced before it runs out.

Its keys lie in a store that several operators may share (`AuthorityStore`). Whoever comes first creates the content,
whoever comes second reads what the first one wrote; nothing that was written is ever overruled by what somebody made
for himself. (Replicas of KubeEdge's CloudCore that started together once made an authority each, and cut off all
devices.)

Replacing an authority takes two steps of `OVERLAP` each, so that no device is cut off that asks for a new certificate
meanwhile, which devices do daily:

1. A new authority is made. Gateways believe what it signs, and devices are told to; nothing is signed by it yet.
2. After an overlap it signs everything. What the old one has signed is believed for another overlap.

Which step it is follows from the times at which the authorities were made, and from nothing else.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pocketgrid.errors import StoreError

log = logging.getLogger(__name__)

LIFE = dt.timedelta(days=3650)
"""How long an authority is believed."""

OVERLAP = dt.timedelta(days=90)
"""A device that is switched off for longer than two of these in the wrong year has to join anew."""

TRIES = 8


class AuthorityStore(Protocol):
    """Where authorities are kept, whole: one piece of text, with a version that changes whenever it does."""

    async def read(self) -> tuple[bytes, str] | None:
        """Content and version; None if there is none yet. Raises StoreError or PeerError."""
        ...

    async def create(self, content: bytes) -> bool:
        """Write it unless something is there; whether it was written."""
        ...

    async def replace(self, content: bytes, version: str) -> bool:
        """Write it if the version is still that; whether it was written."""
        ...


@dataclass(frozen=True, slots=True)
class Authority:
    """One key that signs.

    Attributes:
        made_at: when, seconds since the Unix epoch.
    """

    key_pem: bytes
    certificate_pem: bytes
    made_at: float

    @property
    def sha256(self) -> str:
        """SHA-256 of the certificate in DER, hexadecimal: what a joining device compares."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate_pem.decode())).hexdigest()


@dataclass(frozen=True, slots=True)
class Keyring:
    """All authorities there are, oldest first; at least one."""

    authorities: tuple[Authority, ...]

    def signing(self, now: float) -> Authority:
        """Whose signature new certificates get at `now` (seconds since the Unix epoch)."""
        told = [a for a in self.authorities if a.made_at + OVERLAP.total_seconds() <= now]
        return told[-1] if told else self.authorities[0]

    def trusted(self, now: float) -> tuple[Authority, ...]:
        """Whose signatures are believed at `now`."""
        newer = [*self.authorities[1:], None]
        return tuple(
            a
            for a, successor in zip(self.authorities, newer, strict=True)
            if successor is None or now < successor.made_at + 2 * OVERLAP.total_seconds()
        )

    def bundle(self, now: float) -> bytes:
        """The certificates of all who are believed; PEM."""
        return b"".join(a.certificate_pem for a in self.trusted(now))

    def successor_due(self, now: float) -> bool:
        """Whether it is time to make the next one, so that it can take over before the newest runs out."""
        return now >= self.authorities[-1].made_at + (LIFE - 3 * OVERLAP).total_seconds()


def encode(keyring: Keyring) -> bytes:
    """As it is kept. Secret: it holds keys."""
    kept = [
        {"madeAt": a.made_at, "key": a.key_pem.decode(), "certificate": a.certificate_pem.decode()}
        for a in keyring.authorities
    ]
    return json.dumps({"authorities": kept}, indent=1).encode()


def decode(content: bytes) -> Keyring:
    """What `encode` wrote. Raises StoreError for anything else."""
    try:
        kept = json.loads(content)["authorities"]
        found = [Authority(a["key"].encode(), a["certificate"].encode(), float(a["madeAt"])) for a in kept]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StoreError(
            f"the authority's keys cannot be read ({type(exc).__name__}); restore them from a backup, or remove them "
            "and let all devices join anew"
        ) from exc
    if not found:
        raise StoreError("no authority is among the authority's keys; restore them from a backup")
    return Keyring(tuple(sorted(found, key=lambda a: a.made_at)))


def add_authority(authorities: Sequence[Authority], now: float) -> Keyring:
    """The same and a new one, made at `now`."""
    from pocketgrid.gateway import certificates

    key = certificates.make_key()
    certificate = certificates.make_authority(key, dt.datetime.fromtimestamp(now, dt.UTC), LIFE)
    return Keyring((*authorities, Authority(key, certificate, now)))


async def load_keyring(store: AuthorityStore, now: float) -> Keyring:
    """What the store holds, made or renewed if that is due at `now`.

    Raises:
        StoreError, PeerError: the store cannot be read or written, or what it holds is no keyring.
    """
    for _ in range(TRIES):
        found = await store.read()
        if found is None:
            fresh = await asyncio.to_thread(add_authority, (), now)
            if await store.create(encode(fresh)):
                log.info("made the authority sha256=%s", fresh.authorities[0].sha256)
            # Read it again even so: what counts is what others will read.
            continue
        content, version = found
        keyring = decode(content)
        if not keyring.successor_due(now):
            return keyring
        # Those that nobody believes any more go.
        grown = await asyncio.to_thread(add_authority, keyring.trusted(now), now)
        if await store.replace(encode(grown), version):
            log.info("made the next authority sha256=%s", grown.authorities[-1].sha256)
    raise StoreError("the authority's keys change again and again while they are read; see who writes them")
