"""Lets devices of tests and benchmarks join a gateway that keeps its stores in a folder, without dialling it.

The code is the gateway's and the agent's own; what is left out is the network and the token, because a device of a
benchmark does not have to be believed by anybody.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.clock import SystemClock
from pocketgrid.gateway import certificates
from pocketgrid.gateway.authority import load_keyring
from pocketgrid.gateway.filestores import FileAuthority, FileRegister, FileTokens
from pocketgrid.gateway.register import DeviceRecord
from pocketgrid.gateway.registrar import Registrar
from pocketgrid.model.ids import DeviceName
from pocketgrid.settings import GatewaySettings
from pocketgrid_agent import joining
from pocketgrid_agent.credentials import Credentials, save


@dataclass(frozen=True)
class DeviceKey:
    """A device's key, and the request for a certificate."""

    key_pem: bytes
    request_der: bytes

    @property
    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo."""
        return certificates.read_request(self.request_der)

    @property
    def sha256(self) -> str:
        """Of the public key."""
        return hashlib.sha256(self.public_key).hexdigest()


def make_device_key(folder: Path) -> DeviceKey:
    """The key kept in `folder`, made if there is none."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return DeviceKey(*joining.key_and_request(folder))


async def certify(
    gateway_folder: Path, key: DeviceKey, devices: list[str], address: str, *, valid_s: float = 86400.0
) -> list[Credentials]:
    """Credentials for devices that share a key, without any of them being enrolled."""
    clock = SystemClock()
    keyring = await load_keyring(FileAuthority(gateway_folder), clock.wall())
    registrar = Registrar(
        lambda: keyring,
        FileTokens(gateway_folder),
        FileRegister(gateway_folder),
        clock,
        trust_domain=GatewaySettings().trust_domain,
        valid_s=valid_s,
    )
    made = []
    for device in devices:
        issued = registrar.issue(DeviceName(device), key.public_key)
        made.append(
            Credentials(
                device=device,
                key_pem=key.key_pem,
                chain_pem=issued.chain_pem,
                bundle_pem=issued.bundle_pem,
                request_der=key.request_der,
                join_address=address,
                gateway_address=address,
                server_name="",
                issued_at=time.time(),
                valid_s=issued.valid_s,
                renew_after_s=issued.renew_after_s,
            )
        )
    return made


async def enrol(
    gateway_folder: Path, state_dir: Path, device: str, address: str, *, owner: str = "bench", node_name: str = ""
) -> Credentials:
    """Enrol a device and put its credentials into its state folder."""
    key = make_device_key(state_dir)
    record = DeviceRecord(DeviceName(device), key.sha256, owner, node_name=node_name)
    await FileRegister(gateway_folder).enrol(record)
    (made,) = await certify(gateway_folder, key, [device], address)
    save(state_dir, made)
    return made


def enrol_agent(where: dict[str, str], state_dir: Path, device: str) -> None:
    """`enrol`, with what a process of a benchmark says of itself."""
    asyncio.run(enrol(Path(where["gateway_folder"]), state_dir, device, where["address"]))


INVITE_SECONDS = 30.0


def invite(owner: str, uses: int, options: Sequence[str]) -> list[str]:
    """Agent's options for joining a cluster's grid: what `pocketgrid token create` prints, as soon as it does.

    Args:
        options: more of that command, such as which cluster.
    """
    command = [sys.executable, "-m", "pocketgrid", "token", "create", "--owner", owner, "--uses", str(uses), *options]
    end = time.monotonic() + INVITE_SECONDS
    while True:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode == 0:
            _, _, address, *rest = said.stdout.split()
            return ["--join", address, *rest]
        if time.monotonic() > end:
            raise RuntimeError(f"no token could be made: {said.stderr}")
        time.sleep(0.2)
