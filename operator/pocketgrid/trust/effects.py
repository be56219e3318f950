"""What the verification of a job asks for and what it finds: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from pocketgrid.model.ids import DeviceName


@dataclass(frozen=True, slots=True, order=True)
class Sample:
    """One item to be computed again: `row` of `shard`, from 0."""

    shard: int
    row: int


@dataclass(frozen=True, slots=True)
class Check:
    """Work for a checker, to look like any other.

    Attributes:
        number: unique in this machine, never used again.
        samples: in the order in which the items are to be sent.
        replica: all rows of one shard, in order.
    """

    number: int
    samples: tuple[Sample, ...]
    replica: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """These shards, all brought by `device`, are final now.

    Attributes:
        agreed: who else computed whole shards and got the same (replicas and late results); they have earned as much
            as `device`. Empty for shards of which only samples were checked.
    """

    shards: tuple[int, ...]
    device: DeviceName
    agreed: tuple[DeviceName, ...] = ()


@dataclass(frozen=True, slots=True)
class Disproved:
    """Take these provisional shards back and have them done again, not by `device`, which brought them."""

    shards: tuple[int, ...]
    device: DeviceName


@dataclass(frozen=True, slots=True)
class Caught:
    """`device` lied: no more work for it. Other jobs' machines are to be told; this one knows."""

    device: DeviceName
    reason: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class KeepAnswers:
    """Answers differ, or more are wanted: keep the one just reported to these items, behind those kept already."""

    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class ForgetAnswers:
    """The question about these items is closed: drop all answers kept for them."""

    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class NoConsensus:
    """As many as may be asked were asked, and not enough agree: take these shards back and have them done again.

    Attributes:
        times: how often this has happened to the one of them it happened to most.
    """

    shards: tuple[int, ...]
    device: DeviceName
    times: int


Effect = Verified | Disproved | Caught | KeepAnswers | ForgetAnswers | NoConsensus
