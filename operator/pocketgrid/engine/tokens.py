"""The tokens of one job's attempts, those of checks among them.

A check travels under the number of some shard of the job, its cover, and a token of its own domain, so that whoever
gets it cannot tell it from a shard. Here the cover is put on and taken off; to the job's machine a check is a virtual
shard.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketgrid.model.ids import AttemptSeq, DeviceName
from pocketgrid.trust.tokens import Domain, TokenMint


@dataclass(frozen=True, slots=True)
class Claim:
    """What a genuine token proves.

    Attributes:
        check: the attempt is a check, whatever shard the device names.
    """

    seq: AttemptSeq
    check: bool


class AttemptTokens:
    """Makes and reads tokens."""

    def __init__(self, mint: TokenMint) -> None:
        self._mint = mint
        self._covers: dict[int, int] = {}

    def cover(self, virtual: int, index: int) -> None:
        """From now on the virtual shard travels as shard `index`."""
        self._covers[virtual] = index

    def uncover(self, virtual: int) -> None:
        """The check is over and everybody has been told."""
        self._covers.pop(virtual, None)

    def wire_index(self, shard: int) -> int:
        """The number under which a shard, virtual or not, travels."""
        return self._covers.get(shard, shard)

    def mint(self, seq: AttemptSeq, shard: int, device: DeviceName) -> bytes:
        """The token of an attempt at a shard, virtual or not."""
        cover = self._covers.get(shard)
        if cover is None:
            return self._mint.mint(seq, shard, device)
        return self._mint.mint(seq, cover, device, Domain.CHECK)

    def read(self, token: bytes, index: int, device: DeviceName) -> Claim | None:
        """What `token` proves, if it was made for this device and a shard that travels as `index`."""
        for domain in Domain:
            seq = self._mint.check(token, index, device, domain)
            if seq is not None:
                return Claim(seq, domain is Domain.CHECK)
        return None
