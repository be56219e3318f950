"""Remote files by blocks: what a request costs does not depend on how little is asked for.

Shards are far smaller than what a request to a store is worth, and follow one another, so remote files are read in
blocks of `BLOCK_BYTES`, of which the last ones used are kept, up to `CACHE_BYTES` over all jobs of the process. A
request that fails is tried again a few times; one attempt may take at most `ATTEMPT_SECONDS`.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeVar

from pocketgrid.errors import StoreError

BLOCK_BYTES = 2 << 20
CACHE_BYTES = 64 << 20
LARGEST_REQUEST_BYTES = 8 << 20

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.25
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 20.0
"""Longest wait for the next bytes of an answer."""

ATTEMPT_SECONDS = 90.0
"""Longest time for one answer as a whole: a server that sends a byte now and then is as good as dead. At 8 MiB it
asks for 93 KB a second."""

_T = TypeVar("_T")


class TransientError(Exception):
    """A request failed in a way that trying again may mend. The text is to be read after "cannot read <name>: "."""


def with_retries(name: str, attempt: Callable[[], _T]) -> _T:
    """What `attempt` returns, after up to `ATTEMPTS` tries with growing pauses.

    Raises:
        StoreError: all of them failed.
    """
    for number in itertools.count(1):
        try:
            return attempt()
        except TransientError as error:
            if number == ATTEMPTS:
                raise StoreError(f"cannot read {name}: {error} ({number} attempts)") from error
        time.sleep(FIRST_PAUSE_SECONDS * 2 ** (number - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


class Body(Protocol):
    """An answer that is still coming."""

    def read1(self, size: int, /) -> bytes:
        """Up to `size` bytes, as soon as there are any; none at the end."""
        ...


def read_body(body: Body, length: int) -> bytes:
    """At most `length` + 1 bytes of an answer: one more shows that it is too long.

    Raises:
        TransientError: it takes longer than `ATTEMPT_SECONDS`.
    """
    deadline = time.monotonic() + ATTEMPT_SECONDS
    pieces: list[bytes] = []
    left = length + 1
    while left and (data := body.read1(left)):
        pieces.append(data)
        left -= len(data)
        if time.monotonic() > deadline:
            raise TransientError(f"{length + 1 - left} of {length} bytes came within {ATTEMPT_SECONDS:.0f} s")
    return b"".join(pieces)


class PacedBody:
    """An answer of any length, read by a consumer that knows nothing of deadlines."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._deadline = time.monotonic() + ATTEMPT_SECONDS
        self._due = LARGEST_REQUEST_BYTES

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end.

        Raises:
            TransientError: less than `LARGEST_REQUEST_BYTES` came within `ATTEMPT_SECONDS`.
        """
        data = self._body.read1(size)
        self._due -= len(data)
        now = time.monotonic()
        if self._due <= 0:
            self._deadline, self._due = now + ATTEMPT_SECONDS, LARGEST_REQUEST_BYTES
        elif now > self._deadline:
            raise TransientError(f"less than {LARGEST_REQUEST_BYTES} bytes came within {ATTEMPT_SECONDS:.0f} s")
        return data


class BlockCache:
    """Blocks by key, the least recently used of which go first; thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int, int], load: Callable[[], bytes]) -> bytes:
        """The block of `key`, loaded if it is not there. Two threads may load the same one at the same time."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
                return block
        block = load()
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = block
                self._bytes += len(block)
            while self._bytes > self._limit and len(self._blocks) > 1:
                _, oldest = self._blocks.popitem(last=False)
                self._bytes -= len(oldest)
        return block

    def forget(self, owner: int) -> None:
        """Drop the blocks whose key begins with `owner`."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == owner]:
                self._bytes -= len(self._blocks.pop(key))


_cache = BlockCache(CACHE_BYTES)
_numbers = itertools.count()


class RangedSource:
    """A remote file. See `locations.Source`.

    Args:
        fetch: exactly so many bytes from an offset, by one request; raises StoreError.
    """

    def __init__(self, name: str, size: int, fingerprint: str, fetch: Callable[[int, int], bytes]) -> None:
        self.name = name
        self.size = size
        self.fingerprint = fingerprint
        self._fetch = fetch
        self._number = next(_numbers)

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Source.read_at`."""
        if length <= 0:
            return b""
        if length >= BLOCK_BYTES:
            # Nobody reads so much in order to read it again soon.
            stop = offset + length
            starts = range(offset, stop, LARGEST_REQUEST_BYTES)
            return b"".join(self._fetch(at, min(LARGEST_REQUEST_BYTES, stop - at)) for at in starts)
        pieces: list[bytes] = []
        for index in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)):
            begin = index * BLOCK_BYTES
            block = self._block(index)
            pieces.append(block[max(offset - begin, 0) : offset + length - begin])
        return b"".join(pieces)

    def close(self) -> None:
        """See `Source.close`."""
        _cache.forget(self._number)

    def _block(self, index: int) -> bytes:
        begin = index * BLOCK_BYTES
        length = min(BLOCK_BYTES, self.size - begin)
        return _cache.get((self._number, index), lambda: self._fetch(begin, length))
