"""Numbers under which shards and checks travel in a job whose results are verified.

A device must not be able to tell a check from a shard, nor one shard it is asked about from another. It may also answer
a shard that it is handed twice with the result it still has, so a check must never bear a number that a shard has, or
another check. Therefore what travels is the number in another order: a permutation of all 62-bit numbers under a key
of the operator, a balanced Feistel network of four rounds (Luby and Rackoff 1988) with keyed BLAKE2b as its rounds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_HALF_BITS = 31
_HALF_MASK = (1 << _HALF_BITS) - 1
_ROUNDS = 4
BITS = 2 * _HALF_BITS


@dataclass(frozen=True, slots=True)
class Disguise:
    """A permutation of the numbers below 2**`BITS`.

    Attributes:
        key: secret, at most 64 bytes.
    """

    key: bytes

    def put_on(self, number: int) -> int:
        """What travels instead of `number`.

        Raises:
            ValueError: the number is out of range.
        """
        left, right = self._halves(number)
        for turn in range(_ROUNDS):
            left, right = right, left ^ self._scramble(turn, right)
        return left << _HALF_BITS | right

    def take_off(self, number: int) -> int:
        """The number that travels as `number`.

        Raises:
            ValueError: the number is out of range.
        """
        left, right = self._halves(number)
        for turn in reversed(range(_ROUNDS)):
            left, right = right ^ self._scramble(turn, left), left
        return left << _HALF_BITS | right

    def _scramble(self, turn: int, half: int) -> int:
        message = bytes([turn]) + half.to_bytes(4, "big")
        digest = hashlib.blake2b(message, key=self.key, digest_size=4, person=b"disguise").digest()
        return int.from_bytes(digest, "big") & _HALF_MASK

    @staticmethod
    def _halves(number: int) -> tuple[int, int]:
        if not 0 <= number < 1 << BITS:
            raise ValueError(f"{number} has more than {BITS} bits or is negative")
        return number >> _HALF_BITS, number & _HALF_MASK
