"""Signatures of settlements: Ed25519 (RFC 8032) over the canonical bytes of everything but the signature itself.

The signature is a pure function of key and content, so that the same settlement is the same file. The private key is
made once, in the state folder, and never leaves it; who is to check settlements is given the public one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.metering.settlements import canonical, claimed_id
from pocketgrid.storage.durable import fsync_folder, make_folder, store_error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PRIVATE_KEY = "settlement-key.pem"
PUBLIC_KEY = "settlement-public.pem"
_ALGORITHM = "Ed25519"


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The key in `folder`, made if there is none; two who ask at the same moment get the same.

    Raises:
        StoreError: it cannot be read or written, or is no such key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = folder / PRIVATE_KEY
    try:
        make_folder(folder)
        if not path.exists():
            made = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            _create(path, made, 0o600)
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise StoreError(f"{path} holds no {_ALGORITHM} key; restore it from a backup")
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        if not (folder / PUBLIC_KEY).exists():
            _create(folder / PUBLIC_KEY, public, 0o644)
    except OSError as error:
        raise store_error("keeping the key of settlements in", path, error) from error
    except ValueError as error:
        raise StoreError(f"{path} holds no private key ({error}); restore it from a backup") from error
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The public key in the PEM file `path`.

    Raises:
        InvalidSpecError: there is none.
        StoreError: it cannot be read.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise store_error("reading", path, error) from error
    except ValueError as error:
        raise InvalidSpecError(
            "InvalidSettlementKey", f"{path} holds no public key: {error}", field="--public-key"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidSpecError("InvalidSettlementKey", f"{path} holds no {_ALGORITHM} key", field="--public-key")
    return key


def signed(document: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """`document` with its signature."""
    raw = key.public_key().public_bytes_raw()
    signature = {
        "algorithm": _ALGORITHM,
        "public_key": raw.hex(),
        "value": key.sign(canonical(document)).hex(),
    }
    return {**document, "signature": signature}


def signature_problem(document: Mapping[str, Any], key: Ed25519PublicKey) -> str | None:
    """Why `document` is not what the holder of `key` signed, or None. Which key it names itself is of no account."""
    from cryptography.exceptions import InvalidSignature

    signature = document.get("signature")
    try:
        if not isinstance(signature, Mapping) or signature["algorithm"] != _ALGORITHM:
            return f"it has no {_ALGORITHM} signature"
        content = {name: value for name, value in document.items() if name != "signature"}
        key.verify(bytes.fromhex(signature["value"]), canonical(content))
    except (KeyError, TypeError, ValueError):
        return "its signature cannot be understood"
    except InvalidSignature:
        return "it was changed after it had been signed, or another key has signed it"
    if document.get("id") != claimed_id(document):
        return "its id is not the digest of what it says"
    return None


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write `path` durably, unless somebody else was first."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
