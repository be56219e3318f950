"""Windows of fixed length from the beginning, the middle and the end of content of any length.

The rules for beginning and end are those by which Magika (Google, magika 1.x, "features extraction v2") looks at files,
so that its models see what they were trained on: of the first and last `block_size` bytes, white space is passed over
from the outer side, and what remains is cut or padded to the window's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid.model.decoding import BytesDecode
from pocketgrid.storage.decoding import Content, Fault
from pocketgrid.storage.reasons import ItemReason

_LARGEST_BYTE = 255


@dataclass(frozen=True, slots=True)
class WindowDecoder:
    """See `decoding.Decoder`."""

    windows: BytesDecode

    @property
    def dtype(self) -> str:
        """The narrowest that holds bytes and padding."""
        return "uint8" if self.windows.padding <= _LARGEST_BYTE else "uint16"

    @property
    def item_shape(self) -> tuple[int, ...]:
        """One axis, of all windows."""
        return (self.windows.length,)

    def decode(self, content: Content, out: npt.NDArray[Any]) -> Fault | None:
        """See `Decoder.decode`. Looks at two blocks and the middle window only, however long `content` is."""
        windows, size = self.windows, len(content)
        out[:] = windows.padding
        head = content[: min(windows.block_size, size)]
        head = (head.lstrip() if windows.strip else head)[: windows.beginning]
        if len(head) < windows.minimum:
            passed_over = " after white space" if windows.strip else ""
            return (
                ItemReason.TOO_SHORT,
                f"has {len(head)} bytes{passed_over}, and at least {windows.minimum} are needed",
            )
        out[: len(head)] = np.frombuffer(head, np.uint8)
        if windows.middle:
            start = max(0, (size - windows.middle) // 2)
            middle = content[start : start + windows.middle]
            at = windows.beginning + (windows.middle - len(middle)) // 2
            out[at : at + len(middle)] = np.frombuffer(middle, np.uint8)
        if windows.end:
            tail = content[max(0, size - windows.block_size) : size]
            tail = (tail.rstrip() if windows.strip else tail)[-windows.end :]
            out[len(out) - len(tail) :] = np.frombuffer(tail, np.uint8)
        return None
