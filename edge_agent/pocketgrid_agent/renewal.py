"""Keeps a running agent's certificate fresh, beside the stream and without touching it.

A certificate is renewed after two thirds of its life, a random part earlier, so that devices that joined together do
not come together for ever. If it has run out, as after a week in a drawer, or if the gateway cannot be dialled with it
several times in a row, as when this device's clock is wrong, the key alone is enough to get another one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from pocketgrid.clock import Rng
from pocketgrid.errors import PeerError, RefusedError, StoreError
from pocketgrid_agent import joining
from pocketgrid_agent.credentials import Credentials

log = logging.getLogger(__name__)

EARLIER = 0.1
"""Share of the time until a renewal by which it may come earlier."""

LOOK_SECONDS = 60.0
"""How often clocks are looked at: a device that sleeps does not notice by its monotonic one."""

RETRY_SECONDS = 30.0

FAILURES = 3
"""Dials in a row that have failed before another certificate is asked for."""


class CredentialKeeper:
    """The credentials of the moment.

    Args:
        folder: the state folder.
        address: what is dialled instead of what the gateway said; empty: that.
    """

    def __init__(self, folder: Path, credentials: Credentials, rng: Rng, address: str = "") -> None:
        self.current = credentials
        self._folder = folder
        self._rng = rng
        self._address = address
        self._failures = 0
        self._came_back_at = float("-inf")
        self._look = asyncio.Event()

    @property
    def address(self) -> str:
        """What to dial."""
        return self._address or self.current.gateway_address

    def dialled(self, *, successfully: bool) -> None:
        """The gateway was dialled."""
        self._failures = 0 if successfully else self._failures + 1
        if self._failures >= FAILURES:
            self._look.set()

    async def run(self) -> None:
        """Renew whenever it is due, until cancelled or refused for good."""
        due = self._due_at()
        while True:
            now = time.time()
            stale = self.current.remaining_s(now) <= 0 or now < self.current.issued_at - joining.CALL_SECONDS
            stranded = self._failures >= FAILURES and time.monotonic() >= self._came_back_at + LOOK_SECONDS
            if now >= due or stale or stranded:
                try:
                    await self.refresh(stale=stale or stranded)
                    due = self._due_at()
                except RefusedError as error:
                    # The stream will hear the same, and ends the agent if it is for good.
                    log.warning("not given another certificate cause=%s", error)
                    await asyncio.sleep(LOOK_SECONDS)
                except (PeerError, StoreError) as error:
                    log.info("cannot renew the certificate now cause=%s", error)
                    await asyncio.sleep(RETRY_SECONDS * (0.5 + self._rng.random()))
            self._look.clear()
            try:
                async with asyncio.timeout(min(LOOK_SECONDS, max(0.05, due - now))):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def refresh(self, *, stale: bool) -> None:
        """Get the next certificate; `stale`: by the key alone. Raises RefusedError, PeerError, StoreError."""
        if stale:
            self._came_back_at = time.monotonic()
            self.current = await joining.come_back(self._folder, self.current)
        else:
            self.current = await joining.renew(self._folder, self.current, self.address)
        log.info("certificate renewed device=%s valid_s=%.0f", self.current.device, self.current.valid_s)

    def _due_at(self) -> float:
        credentials = self.current
        return credentials.issued_at + credentials.renew_after_s * (1.0 - EARLIER * self._rng.random())
