"""Which devices are enrolled, under which key, and what the grid has decided about them.

A certificate proves a name and a key. What they are worth is said here, and can change while a certificate is valid:
whoever is not in the register, is revoked, or has been enrolled again with another key is not let in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from pocketgrid.errors import RefusedError
from pocketgrid.gateway.tokens import JoinToken
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import TrustTier

NOT_ENROLLED = "NotEnrolled"
REVOKED = "Revoked"
NAME_TAKEN = "NameTaken"

_ANEW = "ask whoever runs the operator for a join command and run it"


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One enrolled device.

    Attributes:
        key_sha256: of its public key (SubjectPublicKeyInfo), hexadecimal; empty: nobody has joined under this name yet.
        owner, hardware_class, tier, node_name: as the token said with which it joined, or an administrator since.
        revoked: it is not let in, whatever it presents.
    """

    name: DeviceName
    key_sha256: str
    owner: str
    hardware_class: str = ""
    tier: TrustTier = TrustTier.PUBLIC
    node_name: str = ""
    revoked: bool = False


class Register(Protocol):
    """Where enrolled devices are kept.

    Attributes:
        on_change: called with a device's name after its record has changed or is gone; set by the gateway.
    """

    on_change: Callable[[DeviceName], None]

    def find(self, device: DeviceName) -> DeviceRecord | None:
        """What is known of a device, from memory."""
        ...

    async def enrol(self, record: DeviceRecord) -> None:
        """Keep a device, durably, under its name; after that `find` knows it.

        Raises:
            RefusedError: somebody else has taken the name meanwhile.
            StoreError, PeerError: it cannot be kept now.
        """
        ...


def admit(record: DeviceRecord | None, key_sha256: str) -> DeviceRecord:
    """The record of a device that has proved its name and that key.

    Raises:
        RefusedError: it is not let in.
    """
    if record is None:
        raise RefusedError(NOT_ENROLLED, f"the grid does not know this device (any more); {_ANEW}", retry=False)
    if record.revoked:
        raise RefusedError(REVOKED, "this device was shut out by an administrator (spec.revoked)", retry=False)
    if record.key_sha256 != key_sha256:
        message = f"another key has been enrolled under the name {record.name}; {_ANEW}, with another --name"
        raise RefusedError(NOT_ENROLLED, message, retry=False)
    return record


def decide_enrolment(
    known: DeviceRecord | None, device: DeviceName, key_sha256: str, token: JoinToken, node_name: str
) -> DeviceRecord:
    """What the register is to say of a device that presents a good token.

    A device that has joined before keeps what an administrator may have decided about it since. A name may be taken
    over with another key by its own owner, as after a phone was reset; then the token decides anew, because its holder
    may be somebody whom the owner trusts less than the device that had the name before.

    Raises:
        RefusedError: the name belongs to somebody else, or the token does not allow the Node.
    """
    if known is not None and known.revoked:
        raise RefusedError(REVOKED, "this device was shut out by an administrator (spec.revoked)", retry=False)
    if known is not None and known.owner != token.owner:
        message = f"the name {device} belongs to a device of another owner; choose another with --name"
        raise RefusedError(NAME_TAKEN, message, retry=False)
    if known is not None and known.key_sha256 == key_sha256 and node_name in ("", known.node_name):
        return known
    if not token.allows_node(node_name):
        message = f"the token is not for a device on the Node {node_name}; ask for one made with --node {node_name}"
        raise RefusedError("WrongNode", message, retry=False)
    if known is not None and not known.key_sha256:
        # An administrator has said beforehand what it will be.
        return replace(known, key_sha256=key_sha256, node_name=node_name or known.node_name)
    return DeviceRecord(device, key_sha256, token.owner, token.hardware_class, token.tier, node_name)
