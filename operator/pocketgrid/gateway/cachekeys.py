"""Keys under which devices keep models encrypted on their disks: one for each device and model, none of them stored.

All are derived from one secret in the operator's state folder, which is made once. An operator that has lost it makes
another; devices then find that what they have is of no use and fetch models anew. A device can derive no other key
from its own. What the keys protect against, and what not, is in docs/security.md.
"""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from pocketgrid.errors import StoreError
from pocketgrid.model.ids import DeviceName, ModelDigest

SECRET_BYTES = 32


class CacheKeys:
    """Derives keys, by HMAC-SHA256 as a key derivation function in counter mode of one round (NIST SP 800-108)."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret of {len(secret)} bytes; it must have {SECRET_BYTES}")
        self._secret = secret

    def key_for(self, device: DeviceName, model: ModelDigest) -> bytes:
        """32 bytes for AES-256."""
        label = b"\x01pocketgrid model cache\x00" + device.encode() + b"\x00" + model.encode()
        return hmac.digest(self._secret, label, "sha256")


def load_cache_keys(folder: Path) -> CacheKeys:
    """The keys of the secret in `folder`, made if there is none; also if two operators begin at the same time.

    Raises:
        StoreError: the folder cannot be read or written, or what lies there is no secret.
    """
    path = folder / "cache-secret"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _make(path)
        return CacheKeys(path.read_bytes())
    except OSError as exc:
        raise StoreError(f"cannot read or make the secret of model caches {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise StoreError(f"{path} is damaged: {exc}; remove it, and devices fetch their models anew") from exc


def _make(path: Path) -> None:
    # Linked into place whole: whoever comes second finds the first one's.
    own = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(own, path)
    finally:
        own.unlink()
