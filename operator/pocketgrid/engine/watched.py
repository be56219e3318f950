"""A dict that tells when it changes, so that whatever is derived from it can be derived anew, whoever changed it."""

from __future__ import annotations

from typing import Any, TypeVar

from pocketgrid.model.ids import DeviceName

K = TypeVar("K")
V = TypeVar("V")


class Watched(dict[K, V]):
    """What a device's record knows by job.

    Args:
        touched: to which `name` is added at every change.
    """

    __slots__ = ("_name", "_touched")

    def __init__(self, touched: set[DeviceName], name: DeviceName) -> None:
        super().__init__()
        self._touched = touched
        self._name = name

    def __setitem__(self, key: K, value: V) -> None:
        """As of any dict."""
        self._touched.add(self._name)
        super().__setitem__(key, value)

    def __delitem__(self, key: K) -> None:
        """As of any dict."""
        self._touched.add(self._name)
        super().__delitem__(key)

    def pop(self, key: K, *default: Any) -> Any:
        """As of any dict."""
        if key in self:
            self._touched.add(self._name)
        return super().pop(key, *default)

    def clear(self) -> None:
        """As of any dict."""
        self._touched.add(self._name)
        super().clear()

    def update(self, *_args: Any, **_more: Any) -> None:
        """Not needed here, and not watched."""
        raise NotImplementedError("set items one by one")

    setdefault = popitem = __ior__ = update  # type: ignore[assignment]
