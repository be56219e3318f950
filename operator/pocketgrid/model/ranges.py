"""A set of shard numbers kept as runs, and its text form.

A job of a million shards is done nearly in order, so its state is a few runs and not a million entries.
The text form is that of an Indexed Job's `completedIndexes`: ``1,3-5,7`` with runs of three and more
compressed (batch/v1 Job, KEP-2214).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

TRUNCATED = ",..."
"""Suffix of a text that was cut at a length limit; the commit log has the rest."""


class IndexSet:
    """A mutable set of non-negative integers as sorted, disjoint, non-adjacent half-open runs."""

    __slots__ = ("_size", "_starts", "_stops")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._size = 0
        for start, stop in runs:
            self.add_run(start, stop)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._starts, index) - 1
        return at >= 0 and index < self._stops[at]

    def __iter__(self) -> Iterator[int]:
        for start, stop in zip(self._starts, self._stops, strict=True):
            yield from range(start, stop)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IndexSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"IndexSet({self.to_text(limit=80)!r})"

    def runs(self) -> Iterator[tuple[int, int]]:
        """Half-open runs in ascending order."""
        return zip(self._starts, self._stops, strict=True)

    def add(self, index: int) -> bool:
        """Add one index; False if it was there. O(log runs) to find, O(runs) to insert."""
        if index < 0:
            raise ValueError(f"negative index {index}")
        at = bisect_right(self._starts, index)
        if at and index < self._stops[at - 1]:
            return False
        joins_left = at > 0 and self._stops[at - 1] == index
        joins_right = at < len(self._starts) and self._starts[at] == index + 1
        if joins_left and joins_right:
            self._stops[at - 1] = self._stops[at]
            del self._starts[at], self._stops[at]
        elif joins_left:
            self._stops[at - 1] = index + 1
        elif joins_right:
            self._starts[at] = index
        else:
            self._starts.insert(at, index)
            self._stops.insert(at, index + 1)
        self._size += 1
        return True

    def add_run(self, start: int, stop: int) -> None:
        """Add all of ``range(start, stop)``."""
        if start < 0 or stop < start:
            raise ValueError(f"impossible run {start}..{stop}")
        if start == stop:
            return
        first = bisect_right(self._starts, start)
        if first and self._stops[first - 1] >= start:
            first -= 1
        last = first
        new_start, new_stop = start, stop
        while last < len(self._starts) and self._starts[last] <= stop:
            new_start = min(new_start, self._starts[last])
            new_stop = max(new_stop, self._stops[last])
            self._size -= self._stops[last] - self._starts[last]
            last += 1
        self._starts[first:last] = [new_start]
        self._stops[first:last] = [new_stop]
        self._size += new_stop - new_start

    def discard(self, index: int) -> bool:
        """Remove one index; False if it was not there."""
        at = bisect_right(self._starts, index) - 1
        if at < 0 or index >= self._stops[at]:
            return False
        start, stop = self._starts[at], self._stops[at]
        if start == index and stop == index + 1:
            del self._starts[at], self._stops[at]
        elif start == index:
            self._starts[at] = index + 1
        elif stop == index + 1:
            self._stops[at] = index
        else:
            self._stops[at] = index
            self._starts.insert(at + 1, index + 1)
            self._stops.insert(at + 1, stop)
        self._size -= 1
        return True

    def take_first(self, count: int) -> list[int]:
        """Remove and return up to `count` of the smallest indexes, ascending."""
        taken: list[int] = []
        while self._starts and len(taken) < count:
            start, stop = self._starts[0], self._stops[0]
            upto = min(stop, start + count - len(taken))
            taken.extend(range(start, upto))
            if upto == stop:
                del self._starts[0], self._stops[0]
            else:
                self._starts[0] = upto
        self._size -= len(taken)
        return taken

    def complement(self, size: int) -> IndexSet:
        """What of ``range(size)`` is not in this set."""
        out = IndexSet()
        at = 0
        for start, stop in self.runs():
            if start >= size:
                break
            out.add_run(at, start)
            at = stop
        if at < size:
            out.add_run(at, size)
        return out

    def to_text(self, limit: int | None = None) -> str:
        """Text form, cut after a whole entry so that it has at most `limit` characters, suffix included."""
        entries: list[str] = []
        length = 0
        for start, stop in self.runs():
            run = [f"{start}-{stop - 1}"] if stop - start >= 3 else [str(i) for i in range(start, stop)]
            for entry in run:
                if limit is not None and length + len(entry) + 1 > limit - len(TRUNCATED):
                    return ",".join(entries) + TRUNCATED
                entries.append(entry)
                length += len(entry) + 1
        return ",".join(entries)

    @classmethod
    def from_text(cls, text: str) -> IndexSet:
        """Read what `to_text` wrote.

        Raises:
            ValueError: the text is malformed or was truncated.
        """
        out = cls()
        if not text:
            return out
        for entry in text.split(","):
            first, dash, last = entry.partition("-")
            out.add_run(int(first), (int(last) if dash else int(first)) + 1)
        return out
