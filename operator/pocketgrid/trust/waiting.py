"""Samples that were drawn and wait for somebody to compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pocketgrid.clock import Rng
from pocketgrid.model.ids import DeviceName
from pocketgrid.trust.draws import below
from pocketgrid.trust.effects import Sample
from pocketgrid.trust.windows import Window


class WaitingSamples:
    """Samples by the device that brought them.

    Args:
        window_of: the window for which a sample is still to be asked, or None: such samples are dropped when met.
    """

    def __init__(self, window_of: Callable[[Sample], Window | None]) -> None:
        self._window_of = window_of
        self._by_device: dict[DeviceName, list[Sample]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many wait, those included that nobody needs to answer any more."""
        return self._count

    def add(self, device: DeviceName, samples: Iterable[Sample]) -> None:
        """These of `device` wait from now on."""
        added = list(samples)
        if added:
            self._by_device.setdefault(device, []).extend(added)
            self._count += len(added)

    def take(self, room: int, claim: Callable[[Window], bool], rng: Rng) -> dict[Sample, Window]:
        """Remove and return up to `room` samples, from devices in turn.

        claim: asked before each sample whether it may be taken, as things stand by then.
        """
        taken: dict[Sample, Window] = {}
        devices = list(self._by_device)
        start = below(rng, len(devices)) if devices else 0
        devices = devices[start:] + devices[:start]
        while devices and len(taken) < room:
            devices = [d for d in devices if len(taken) < room and self._take_one(d, claim, taken)]
        return taken

    def _take_one(self, device: DeviceName, claim: Callable[[Window], bool], taken: dict[Sample, Window]) -> bool:
        """Move one sample of `device`; False if there are no more that may be taken."""
        samples = self._by_device[device]
        while samples:
            window = self._window_of(samples[-1])
            if window is not None and not claim(window):
                return False
            sample = samples.pop()
            self._count -= 1
            if window is not None:
                taken[sample] = window
                break
        if not samples:
            del self._by_device[device]
        return bool(samples)
