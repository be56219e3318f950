"""What happens to pieces of work, as far as money is concerned.

A **piece** is one result of one shard as one device brought it. A shard that is done again is another piece. `place`
names a piece for ever: nothing else is ever stored there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Payee(NamedTuple):
    """Who is paid, and what for one row, in micro-units; names are empty if nobody can be named."""

    owner: str
    device: str
    price: int


UNKNOWN = Payee("", "", 0)
"""Whoever did what nobody can be named for. Nobody can be paid for it either."""

Place = tuple[str, int]
"""Where a piece is stored."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A piece is durable; `rows` of it have a result."""

    shard: int
    place: Place
    payee: Payee
    rows: int


@dataclass(frozen=True, slots=True)
class Believed:
    """The present pieces of these shards are final. Shards without one are passed over."""

    shards: tuple[range, ...]


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A piece counts no more.

    Attributes:
        rows: of the piece, if it had been final: they stay paid, since it is we who lost it; else 0.
        payee: who is paid for them.
    """

    shard: int
    place: Place
    payee: Payee = UNKNOWN
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Somebody did again what others had done: `rows` agreed. `number` grows with every one of a job."""

    number: int
    payee: Payee
    rows: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """Whole pieces in place for good, whatever is known of them one by one.

    Attributes:
        part: number of the file they are in.
        work: payee and rows of each who computed some of it.
    """

    part: int
    shards: range
    work: tuple[tuple[Payee, int], ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """A sealed part is gone. Its pieces stay paid; its shards are done again."""

    part: int


Event = Delivered | Believed | TakenBack | Confirmed | Sealed | Lost
