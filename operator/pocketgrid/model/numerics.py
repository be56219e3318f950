"""Which devices compute the same bits, and how far apart others were measured to be.

Two machines run the same model with different kernels if their processors, instruction sets or inference engines
differ, and then round differently. Integer kernels of quantised models differ most: saturation and the order of
accumulation change with VNNI or dot-product instructions (onnxruntime issues 20479 and 28609). Devices whose kernels
are the same form a **numerics class**. Between classes a **tolerance profile**, measured on real devices, says how far
honest results lie apart; where there is none, results of different classes are not compared. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from pocketgrid.model.device import DeviceFacts
from pocketgrid.model.ids import ModelDigest
from pocketgrid.model.trust import Comparator, ComparatorKind

INTEGER_KERNELS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Instructions that only kernels for 8-bit integers choose by; floating-point models compute alike without them."""

_SLACK = 1e-12
"""Texts such as 0.9999 and 0.0001 make 1 together, which their nearest floating-point numbers need not."""


def numerics_class(facts: DeviceFacts, *, quantised: bool = True) -> str:
    """The class of a device, from what it says of itself.

    A device that lies about it is compared with devices whose results differ from its own, and gains nothing.

    Args:
        facts: architecture, instruction sets, engine with version.
        quantised: whether the model computes with 8-bit integers. True is the safe choice: it only makes classes finer.
    """
    simd = [name for name in sorted(facts.simd) if quantised or name not in INTEGER_KERNELS]
    return "/".join((facts.arch, "+".join(simd) or "-", facts.engine or "-"))


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far apart honest results of two classes were measured to be, with twice the measured as a margin.

    Attributes:
        items: compared.
        identical: every bit of every item was the same.
        absolute: twice the 99.9th percentile, over items, of the largest difference of two values; infinite if wrong
            results lie no further apart.
        cosine: twice the 99.9th percentile of 1 - cosine of the items' vectors; infinite likewise.
    """

    items: int
    identical: bool
    absolute: float
    cosine: float


@dataclass(frozen=True, slots=True)
class ToleranceProfile:
    """What was measured of one model.

    Attributes:
        pairs: by two different classes in alphabetical order.
    """

    model: ModelDigest
    pairs: Mapping[tuple[str, str], Deviation]


def comparable(
    profiles: Iterable[ToleranceProfile], model: ModelDigest, comparator: Comparator, a: str, b: str
) -> bool:
    """Whether results of classes `a` and `b` may be compared with `comparator`.

    Within a class always. Between two only if a profile of this model has both, and what honest devices were measured
    to differ by passes the comparator: else it would find honest devices guilty.
    """
    if a == b:
        return True
    one, other = sorted((a, b))
    measured = [d for p in profiles if p.model == model and (d := p.pairs.get((one, other))) is not None]
    return bool(measured) and all(passes(comparator, deviation) for deviation in measured)


def passes(comparator: Comparator, deviation: Deviation) -> bool:
    """Whether honest results that lie so far apart are the same to `comparator`."""
    if deviation.identical:
        return True
    match comparator.kind:
        case ComparatorKind.EXACT:
            return False
        case ComparatorKind.ALL_CLOSE:
            # The relative part helps only large values; the absolute one must do by itself.
            return comparator.atol >= deviation.absolute
        case ComparatorKind.COSINE:
            return comparator.minimum + deviation.cosine <= 1.0 + _SLACK
        case ComparatorKind.TOP_K:
            # Two classes change places only if their values lie within twice the largest difference of one value.
            return comparator.margin >= 2.0 * deviation.absolute
        case _:
            assert_never(comparator.kind)
