"""Authority, tokens and register in a folder: for a gateway without a cluster.

Every file is written whole, aside, and put in its place; what may be written by several processes is written under a
lock. Files are small and rarely written, and are written in a thread because the disk may be slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pocketgrid.errors import RefusedError, StoreError
from pocketgrid.gateway.register import NAME_TAKEN, DeviceRecord
from pocketgrid.gateway.tokens import JoinToken
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import TrustTier
from pocketgrid.storage.durable import fsync_folder, store_error

log = logging.getLogger(__name__)


class FileAuthority:
    """An `AuthorityStore`: one file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "authority.json"

    async def read(self) -> tuple[bytes, str] | None:
        """Content and the hash of it."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise store_error("reading", self._path, exc) from exc
        return content, hashlib.sha256(content).hexdigest()

    async def create(self, content: bytes) -> bool:
        """Write it unless something is there."""
        return await asyncio.to_thread(self._write, content, "")

    async def replace(self, content: bytes, version: str) -> bool:
        """Write it if nothing else has been written meanwhile."""
        return await asyncio.to_thread(self._write, content, version)

    def _write(self, content: bytes, version: str) -> bool:
        with _locked(self._path.parent):
            there = hashlib.sha256(self._path.read_bytes()).hexdigest() if self._path.exists() else ""
            if there != version:
                return False
            write_whole(self._path, content)
            return True


class FileTokens:
    """A `TokenStore`: one file for each token."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tokens"

    async def get(self, token_id: str) -> JoinToken | None:
        """The token with that id."""
        return self._read(token_id)

    async def redeem(self, token_id: str, mark: str, now: float) -> JoinToken | None:
        """Count a use."""
        return await asyncio.to_thread(self._redeem, token_id, mark, now)

    async def create(self, token: JoinToken) -> None:
        """Keep a new one."""
        await asyncio.to_thread(self._create, token)

    def _create(self, token: JoinToken) -> None:
        with _locked(self._folder):
            self._write(token)

    def _redeem(self, token_id: str, mark: str, now: float) -> JoinToken | None:
        with _locked(self._folder):
            before = self._read(token_id)
            after = before.redeem(mark, now) if before is not None else None
            if after is not None and after != before:
                self._write(after)
            return after

    def _read(self, token_id: str) -> JoinToken | None:
        path = self._folder / f"{token_id}.json"
        try:
            kept = json.loads(path.read_bytes())
            return JoinToken(**{**kept, "tier": TrustTier(kept["tier"]), "redeemed": tuple(kept["redeemed"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise StoreError(f"cannot read {path}: {exc}; remove it, and make a new token") from exc

    def _write(self, token: JoinToken) -> None:
        write_whole(self._folder / f"{token.token_id}.json", _json(asdict(token)))


class FileRegister:
    """A `Register`: one file for each device, read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "devices"
        self._known: dict[DeviceName, DeviceRecord] = {}
        self.on_change: Callable[[DeviceName], None] = lambda _: None

    def find(self, device: DeviceName) -> DeviceRecord | None:
        """What is known of a device. A file that cannot be read stands for a device that may not come in."""
        if device not in self._known:
            path = self._path(device)
            try:
                kept = json.loads(path.read_bytes())
                self._known[device] = DeviceRecord(**{**kept, "tier": TrustTier(kept["tier"])})
            except FileNotFoundError:
                return None
            except (OSError, ValueError, KeyError, TypeError):
                log.exception("unreadable device path=%s; remove it, and let the device join anew", path)
                return None
        return self._known[device]

    async def enrol(self, record: DeviceRecord) -> None:
        """Keep a device."""
        known = self.find(record.name)
        if known is not None and known.owner != record.owner:
            raise RefusedError(NAME_TAKEN, f"the name {record.name} belongs to another owner", retry=False)
        await asyncio.to_thread(self._write, self._path(record.name), record)
        self._known[record.name] = record
        self.on_change(record.name)

    def _path(self, device: DeviceName) -> Path:
        # A name may be longer than a file's.
        return self._folder / f"{hashlib.sha256(device.encode()).hexdigest()[:32]}.json"

    def _write(self, path: Path, record: DeviceRecord) -> None:
        with _locked(self._folder):
            write_whole(path, _json(asdict(record)))


def write_whole(path: Path, content: bytes) -> None:
    """Put a private file in its place, whole and durable. Raises StoreError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_folder(path.parent)
    except OSError as exc:
        raise store_error("writing", path, exc) from exc


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as exc:
        raise store_error("using", folder, exc) from exc


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
