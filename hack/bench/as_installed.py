"""Makes a process on a developer's machine like the product as it is installed.

pyarrow imports pandas as soon as it makes its first array, if it is there: a third of a second of processor time and
40 MB. Tests read results with pandas, so developers have it; the operator's own dependencies do not bring it along.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

HIDDEN = frozenset({"pandas"})


class _NotInstalled(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if fullname in HIDDEN:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def hide_what_only_developers_have() -> None:
    """From now on, imports in this process fail as they do where only the operator is installed."""
    sys.meta_path.insert(0, _NotInstalled())
