"""How the attempts of one job travel: under which number, and with which token.

To the job's machine a check is a virtual shard, numbered from the number of real ones on. Where results are verified,
shards and checks alike travel under numbers that tell nothing, see `trust.disguise`; else shards travel as they are
numbered. A check of an operator that has died is known for one, but not which.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketgrid.model.ids import AttemptSeq, DeviceName, Epoch
from pocketgrid.trust.disguise import BITS, Disguise
from pocketgrid.trust.tokens import TokenMint

_CHECK = 1 << (BITS - 1)
_NUMBER_BITS = 32
_EPOCH_MASK = (1 << (BITS - 1 - _NUMBER_BITS)) - 1


@dataclass(frozen=True, slots=True)
class Claim:
    """What a genuine token proves.

    Attributes:
        shard: real or virtual; None for a check of an earlier epoch.
    """

    seq: AttemptSeq
    shard: int | None


class AttemptTokens:
    """Makes and reads tokens.

    Args:
        shards: how many the job has.
        epoch: of this writer.
        verify: results are verified.
    """

    def __init__(self, mint: TokenMint, *, shards: int, epoch: Epoch, verify: bool) -> None:
        self._mint = mint
        self._shards = shards
        self._epoch = epoch & _EPOCH_MASK
        self._disguise = Disguise(mint.key) if verify else None

    def wire_index(self, shard: int) -> int:
        """The number under which a shard, virtual or not, travels."""
        if self._disguise is None:
            return shard
        if shard < self._shards:
            return self._disguise.put_on(shard)
        return self._disguise.put_on(_CHECK | self._epoch << _NUMBER_BITS | (shard - self._shards))

    def mint(self, seq: AttemptSeq, shard: int, device: DeviceName) -> bytes:
        """The token of an attempt at a shard, virtual or not."""
        return self._mint.mint(seq, self.wire_index(shard), device)

    def read(self, token: bytes, index: int, device: DeviceName) -> Claim | None:
        """What `token` proves, if it was made for this device and what travels as `index`."""
        seq = self._mint.check(token, index, device)
        if seq is None:
            return None
        number = self._disguise.take_off(index) if self._disguise is not None else index
        if self._disguise is None or not number & _CHECK:
            return Claim(seq, number) if number < self._shards else None
        epoch, number = divmod(number ^ _CHECK, 1 << _NUMBER_BITS)
        return Claim(seq, self._shards + number if epoch == self._epoch else None)
