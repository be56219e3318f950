"""Attempt tokens: proof that a device was given a piece of work, without a list of who was given what.

A token is the attempt's fencing number and a MAC over everything the attempt is about. The key lies in the job's
commit log, so an operator that was killed recognises, after its restart, the results of leases its predecessor
handed out, although nothing was written when they were. A device cannot make a token, use another device's, or
move one to another shard or job.

MAC: keyed BLAKE2b (RFC 7693, section 2.9), 16 bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from pocketgrid.model.ids import AttemptSeq, DeviceName, JobUid

MAC_BYTES = 16
TOKEN_BYTES = 8 + MAC_BYTES
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class TokenMint:
    """Makes and checks the tokens of one job.

    Attributes:
        key: secret of the job, `KEY_BYTES` long.
    """

    key: bytes
    job: JobUid

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a token key has {KEY_BYTES} bytes, not {len(self.key)}")

    def mint(self, seq: AttemptSeq, shard: int, device: DeviceName) -> bytes:
        """The token of one attempt; `TOKEN_BYTES` long."""
        number = seq.to_bytes(8, "big")
        return number + self._mac(number, shard, device)

    def check(self, token: bytes, shard: int, device: DeviceName) -> AttemptSeq | None:
        """The attempt's number if `token` was minted for this job, shard and device, else None."""
        if len(token) != TOKEN_BYTES:
            return None
        number, mac = token[:8], token[8:]
        if not hmac.compare_digest(mac, self._mac(number, shard, device)):
            return None
        return AttemptSeq(int.from_bytes(number, "big"))

    def _mac(self, number: bytes, shard: int, device: str) -> bytes:
        # Lengths are fixed or stated, so that no two attempts share one message.
        job = self.job.encode()
        message = b"%b%b%b%b%b" % (
            number,
            shard.to_bytes(8, "big"),
            len(job).to_bytes(2, "big"),
            job,
            device.encode(),
        )
        return hashlib.blake2b(message, key=self.key, digest_size=MAC_BYTES).digest()
