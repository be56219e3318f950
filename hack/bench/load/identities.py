"""Certificates for a crowd: one key for all, and a gateway that knows the key.

Ten thousand files would say nothing about how many devices a gateway can serve. What a connection costs is the same:
each device has a certificate of its own, and each handshake proves and verifies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hack.joining import DeviceKey, make_device_key
from pocketgrid.gateway.filestores import FileRegister
from pocketgrid.gateway.register import DeviceRecord
from pocketgrid.model.ids import DeviceName
from pocketgrid_agent.credentials import Credentials

OWNER = "load"


def device_names(prefix: str, count: int) -> list[str]:
    """Names of so many devices."""
    return [f"{prefix}-{number:05d}" for number in range(count)]


def crowd_key(gateway_folder: Path) -> DeviceKey:
    """The key that all devices of a crowd share; made by the gateway's process before it listens."""
    return make_device_key(gateway_folder / "crowd")


class CrowdRegister(FileRegister):
    """Knows every device that has the crowd's key, beside those that are enrolled one by one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._key_sha256 = crowd_key(folder).sha256
        self._crowd: dict[DeviceName, DeviceRecord] = {}

    def find(self, device: DeviceName) -> DeviceRecord | None:
        """What is known of a device."""
        if device.startswith("idle-"):
            return self._crowd.setdefault(device, DeviceRecord(device, self._key_sha256, OWNER))
        return super().find(device)


@dataclass(frozen=True, slots=True)
class FixedCredentials:
    """Credentials that are not renewed: a benchmark is over before they run out."""

    current: Credentials

    @property
    def address(self) -> str:
        """HOST:PORT of the gateway."""
        return self.current.gateway_address

    def dialled(self, *, successfully: bool) -> None:
        """Nothing follows from it."""
