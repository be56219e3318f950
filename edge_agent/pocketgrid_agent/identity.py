"""Who this device is, over restarts: its name, and the folder of state only one agent may use at a time."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pocketgrid.errors import InvalidSpecError, StoreError

_DNS_1123 = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_LONGEST_NAME = 253
_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, so no words; no look-alikes


class StateInUseError(StoreError):
    """Another agent uses the same state folder."""


@dataclass
class State:
    """The state folder, locked for this process until it ends.

    Attributes:
        folder: holds the device's name and the journal.
        name: of the device.
        boot_id: random for each start, so that the gateway tells a restart from a reconnect.
    """

    folder: Path
    name: str
    boot_id: str
    _lock: BinaryIO

    @property
    def journal_path(self) -> Path:
        """Where finished results are kept."""
        return self.folder / "journal.sqlite3"

    def close(self) -> None:
        """Let another agent use the folder."""
        self._lock.close()


def open_state(folder: Path, *, name: str = "", hostname: str | None = None) -> State:
    """Lock the state folder and settle the device's name: as given, else as kept there, else made up and kept.

    Raises:
        InvalidSpecError: the given name is no DNS-1123 subdomain.
        StateInUseError: another agent uses the folder.
        StoreError: the folder cannot be written.
    """
    if name and not is_device_name(name):
        raise InvalidSpecError(
            "InvalidName",
            f"{name!r} cannot name a Kubernetes Node: use lower-case letters, digits, '-' and '.', at most "
            f"{_LONGEST_NAME}, beginning and ending with a letter or digit",
            field="--name",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("a+b")
    except OSError as error:
        raise StoreError(f"cannot use the state folder {folder}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise StateInUseError(
            f"another agent uses the state folder {folder}; give each agent its own with --state-dir"
        ) from error
    try:
        settled = name or _kept_name(folder, socket.gethostname() if hostname is None else hostname)
    except OSError as error:
        lock.close()
        raise StoreError(f"cannot keep the device's name in {folder}: {error.strerror}") from error
    return State(folder, settled, secrets.token_hex(8), lock)


def is_device_name(name: str) -> bool:
    """Whether `name` is a DNS-1123 subdomain."""
    return len(name) <= _LONGEST_NAME and _DNS_1123.match(name) is not None


def make_name(hostname: str) -> str:
    """A device name after the machine's own, with a random suffix: many phones are called `localhost`."""
    stem = re.sub(r"[^a-z0-9]+", "-", hostname.split(".", maxsplit=1)[0].lower()).strip("-")[:40].rstrip("-")
    suffix = "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(6))
    return f"{stem or 'device'}-{suffix}"


def _kept_name(folder: Path, hostname: str) -> str:
    path = folder / "device-name"
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if is_device_name(kept):
        return kept
    name = make_name(hostname)
    # Whole or not at all: half a name would make a second device out of this one.
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return name
