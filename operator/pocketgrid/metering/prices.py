"""What a row is worth: a fixed, published price for each hardware class and model.

The price does not depend on how fast, how often or by how many a row is computed: each device whose answer agreed gets
the same for it, so that it can be known beforehand and checked afterwards. (Credit that depends on measured speed is
neither: BOINC issue 2498.)
"""

from __future__ import annotations

from collections.abc import Iterable

from pocketgrid.model.device import HardwareClass
from pocketgrid.model.ids import ModelDigest


def unit_price(classes: Iterable[HardwareClass], model: ModelDigest) -> int:
    """Micro-units for one row of `model` from a device of these classes; 0 if none of them has a price.

    A device of several classes gets the highest of their prices, in whatever order they are given.
    """
    return max((c.price.price_micro(model) for c in classes if c.price is not None), default=0)
