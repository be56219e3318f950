"""Models that lie encrypted on disk, under a key that the operator sends with each work order.

A sealed file is a header (a mark and a random salt) and the model in blocks of 256 KiB, each with AES-256-GCM. The
nonce of a block is the salt and its number; what is authenticated with it is the model's digest and size and the
block's number, so that blocks cannot be moved, left out or taken from another file. One key belongs to one model on one
device; its files differ in their salts, of 64 bits, so no nonce comes twice in practice.

The key is held in memory by whoever holds the work order. What this does not protect against is in docs/security.md.
The library is imported when a model is first sealed or opened: an idle agent does not carry it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO

BLOCK_BYTES = 256 << 10
"""Of the model; also what one message of a fetch brings, so that no more is lost when a fetch is interrupted."""

KEY_BYTES = 32

_MARK = b"PGMODEL1"
_SALT_BYTES = 8
HEADER_BYTES = len(_MARK) + _SALT_BYTES
TAG_BYTES = 16


class SealBrokenError(Exception):
    """A block is not what was sealed: damaged, cut short, moved, or of another key."""


def name_of(key: bytes) -> str:
    """What tells files of different keys apart. Says nothing of the key."""
    return hashlib.sha256(b"pocketgrid model cache key " + key).hexdigest()[:16]


def sealed_size(plain_bytes: int) -> int:
    """Bytes on disk of a model of so many bytes."""
    return HEADER_BYTES + plain_bytes + TAG_BYTES * -(-plain_bytes // BLOCK_BYTES)


def plain_size(sealed_bytes: int) -> int:
    """The inverse of `sealed_size`; of a file of any other size, a number that its blocks were not sealed for."""
    body = max(0, sealed_bytes - HEADER_BYTES)
    return body - TAG_BYTES * -(-body // (BLOCK_BYTES + TAG_BYTES))


class Seal:
    """Encrypts and decrypts the blocks of one file.

    Args:
        key: 32 bytes.
        digest: of the model, lower-case hexadecimal.
        plain_bytes: of the whole model.
        salt: of an existing file; None for a new one.
    """

    def __init__(self, key: bytes, digest: str, plain_bytes: int, salt: bytes | None = None) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(key)
        self._salt = os.urandom(_SALT_BYTES) if salt is None else salt
        self._bound = bytes.fromhex(digest) + plain_bytes.to_bytes(8, "big")

    @property
    def header(self) -> bytes:
        """What the file begins with."""
        return _MARK + self._salt

    def close_block(self, number: int, plain: bytes) -> bytes:
        """Encrypt a block; it gets `TAG_BYTES` longer."""
        place = number.to_bytes(4, "big")
        return self._cipher.encrypt(self._salt + place, plain, self._bound + place)

    def open_block(self, number: int, sealed: bytes) -> bytes:
        """Decrypt a block.

        Raises:
            SealBrokenError: it is not the block with that number of this file.
        """
        from cryptography.exceptions import InvalidTag

        place = number.to_bytes(4, "big")
        try:
            return self._cipher.decrypt(self._salt + place, sealed, self._bound + place)
        except (InvalidTag, ValueError) as error:
            raise SealBrokenError(f"block {number} is not what was sealed") from error


def read_header(file: BinaryIO) -> bytes | None:
    """The salt of a sealed file, read from its beginning; None if it is none."""
    header = file.read(HEADER_BYTES)
    return header[len(_MARK) :] if len(header) == HEADER_BYTES and header.startswith(_MARK) else None


def blocks(file: BinaryIO, key: bytes, digest: str) -> Iterator[bytes]:
    """Decrypt a whole sealed file, a block at a time.

    Raises:
        SealBrokenError: it is not whole, or not sealed with this key for this model.
        OSError: it cannot be read.
    """
    salt = read_header(file)
    if salt is None:
        raise SealBrokenError("it has no header")
    seal = Seal(key, digest, plain_size(os.fstat(file.fileno()).st_size), salt)
    number = 0
    while sealed := file.read(BLOCK_BYTES + TAG_BYTES):
        yield seal.open_block(number, sealed)
        number += 1
