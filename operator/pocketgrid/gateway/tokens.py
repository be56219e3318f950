"""Join tokens: what lets a device ask for its first certificate, and what the certificate's holder will be.

The form is that of Kubernetes' bootstrap tokens, ``[a-z0-9]{6}.[a-z0-9]{16}``: a public id, and a secret of 82 bits, of
which only a SHA-256 is kept. A plain hash will do: what makes passwords need a slow one is that they can be guessed.

A use belongs to a device and its key. Who asks again with the same ones, because the answer was lost, takes no second.

Not here: where tokens are kept (`TokenStore` and its implementations), how often one may guess (`throttle`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, replace
from typing import Protocol

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import TrustTier

MAX_USES = 1000
"""Each use is remembered in the token, and a Secret holds 1 MiB."""

ANY_NODE = "*"

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_OWNER = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_CLASS = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as it is kept.

    Attributes:
        token_id: its public half.
        secret_sha256: of the other half, hexadecimal.
        owner: of every device that joins with it.
        hardware_class: the only HardwareClass such a device belongs to; empty: those its Node's labels match.
        tier: of such a device.
        node_name: the Kubernetes Node such a device may say it runs on; empty: none; ``*``: any.
        expires_at: seconds since the Unix epoch.
        uses: how many devices may join with it.
        redeemed: marks of those that have.
    """

    token_id: str
    secret_sha256: str
    owner: str
    expires_at: float
    uses: int = 1
    hardware_class: str = ""
    tier: TrustTier = TrustTier.PUBLIC
    node_name: str = ""
    redeemed: tuple[str, ...] = ()

    @property
    def uses_left(self) -> int:
        """How many more devices may join with it."""
        return max(0, self.uses - len(self.redeemed))

    def matches(self, secret: str) -> bool:
        """Whether that is its secret half."""
        return hmac.compare_digest(hash_secret(secret), self.secret_sha256)

    def allows_node(self, node_name: str) -> bool:
        """Whether a device that joins with it may run on that Node; empty: on none."""
        return not node_name or self.node_name in (ANY_NODE, node_name)

    def redeem(self, mark: str, now: float) -> JoinToken | None:
        """The token after a use by the device with that mark; None if it has expired or is used up."""
        if now >= self.expires_at:
            return None
        if mark in self.redeemed:
            return self
        return replace(self, redeemed=(*self.redeemed, mark)) if self.uses_left else None


class TokenStore(Protocol):
    """Where tokens are kept. Several processes may use one."""

    async def get(self, token_id: str) -> JoinToken | None:
        """The token with that id, expired or not."""
        ...

    async def redeem(self, token_id: str, mark: str, now: float) -> JoinToken | None:
        """`JoinToken.redeem`, durable and counted once whoever else does so now; None also if there is none."""
        ...

    async def create(self, token: JoinToken) -> None:
        """Keep a new one."""
        ...


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token at the only moment at which it is known whole.

    Attributes:
        text: what a device presents.
        token: what is kept.
    """

    text: str
    token: JoinToken


def make_token(
    *,
    owner: str,
    now: float,
    ttl_s: float,
    uses: int = 1,
    hardware_class: str = "",
    tier: TrustTier = TrustTier.PUBLIC,
    node_name: str = "",
) -> NewToken:
    """A new token, not kept anywhere yet.

    Raises:
        InvalidSpecError: something of it is out of bounds.
    """
    if not _OWNER.fullmatch(owner):
        message = f"{owner!r} cannot be a label's value: at most 63 letters, digits, '-', '_' and '.'"
        raise InvalidSpecError("InvalidToken", message, field="owner")
    if hardware_class and not _CLASS.fullmatch(hardware_class):
        raise InvalidSpecError("InvalidToken", f"{hardware_class!r} is no name of a HardwareClass", field="class")
    if node_name and node_name != ANY_NODE and not _NAME.fullmatch(node_name):
        raise InvalidSpecError("InvalidToken", f"{node_name!r} is no name of a Node", field="node")
    if not 1 <= uses <= MAX_USES:
        raise InvalidSpecError("InvalidToken", f"{uses} is not between 1 and {MAX_USES}", field="uses")
    if ttl_s <= 0:
        raise InvalidSpecError("InvalidToken", "it would expire before anybody can use it", field="ttl")
    token_id, secret = _letters(6), _letters(16)
    kept = JoinToken(token_id, hash_secret(secret), owner, now + ttl_s, uses, hardware_class, tier, node_name)
    return NewToken(f"{token_id}.{secret}", kept)


def split_token(text: str) -> tuple[str, str] | None:
    """Id and secret of what a device presents; None if it is no token."""
    match = _TOKEN.fullmatch(text)
    return (match[1], match[2]) if match else None


def hash_secret(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def mark_of(device: DeviceName, key_sha256: str) -> str:
    """What is remembered of a device that has used a token."""
    return hashlib.sha256(f"{device}\n{key_sha256}".encode()).hexdigest()[:16]


def _letters(count: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(count))
