"""What a place for files must be able to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pocketgrid.storage.locations import Source
from pocketgrid.storage.places.patterns import Pattern

UNKNOWN_SIZE = -1


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it was when it was listed. There may be many of these, so it is small.

    Attributes:
        path: as its store calls it.
        relative: path below the folder that was named, or below the part of a glob that has no wildcards.
        size: bytes; `UNKNOWN_SIZE` if not even that could be learned.
        mark: changes with the content, as far as the store can tell; for an unknown size, what is wrong.
    """

    path: str
    relative: str
    size: int
    mark: str


class Store(Protocol):
    """A place.

    Failures are OSError: FileNotFoundError where nothing is there, otherwise with a text to be read after
    "cannot read <name>: ".

    Attributes:
        is_local: whether files have descriptors on this machine.
    """

    is_local: bool

    def name_of(self, path: str) -> str:
        """For people, without credentials."""
        ...

    def look(self, path: str) -> Found:
        """One file by its exact name."""
        ...

    def find(self, pattern: Pattern, *, everything: bool, most: int) -> Iterator[Found]:
        """The files that match, in any order; may stop after more than `most`."""
        ...

    def open(self, path: str) -> Source:
        """One file, for reading in ranges."""
        ...

    def fetch(self, files: Sequence[Found]) -> list[bytes | OSError]:
        """The content of each file, or why it alone cannot be read.

        Raises:
            InputChangedError: a file is not what was listed.
            StoreError: the place as a whole cannot be reached.
        """
        ...
