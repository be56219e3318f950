"""Collects what devices are to be told during one turn, so that each gets one message and not one per shard."""

from __future__ import annotations

from collections.abc import Mapping

from pocketgrid.engine.fleet import DeviceRecord
from pocketgrid.engine.history import History
from pocketgrid.engine.links import Settlement
from pocketgrid.engine.tokens import AttemptTokens
from pocketgrid.model import events as ev
from pocketgrid.model.ids import DeviceName, JobUid


class Outbox:
    """Settlements and cancellations of one job, by device. Devices that are away are told nothing: they ask again."""

    def __init__(self, job: JobUid, tokens: AttemptTokens, history: History) -> None:
        self._job = job
        self._history = history
        self._tokens = tokens
        self._committed: dict[DeviceName, list[bytes]] = {}
        self._superseded: dict[DeviceName, list[bytes]] = {}
        self._refused: dict[DeviceName, list[tuple[bytes, str, str]]] = {}
        self._cancelled: dict[DeviceName, list[bytes]] = {}

    def settle(self, effect: ev.Settle) -> None:
        """Add one settled result."""
        token = self._tokens.mint(effect.seq, effect.shard, effect.device)
        if effect.outcome == "committed":
            self._committed.setdefault(effect.device, []).append(token)
        elif effect.outcome == "superseded":
            self._superseded.setdefault(effect.device, []).append(token)
        else:
            self._refused.setdefault(effect.device, []).append((token, effect.reason, effect.message))

    def supersede(self, device: DeviceName, token: bytes) -> None:
        """Add one result nobody waits for any more."""
        self._superseded.setdefault(device, []).append(token)

    def refuse(self, device: DeviceName, token: bytes, reason: str, message: str) -> None:
        """Add one result that is not to be had any use of, whatever its token says."""
        self._refused.setdefault(device, []).append((token, reason, message))

    def cancel(self, effect: ev.CancelAttempt) -> None:
        """Add one attempt to be stopped."""
        token = self._tokens.mint(effect.seq, effect.shard, effect.device)
        self._cancelled.setdefault(effect.device, []).append(token)

    def deliver(self, devices: Mapping[DeviceName, DeviceRecord]) -> None:
        """Send everything, one message of each sort per device."""
        names = {**self._committed, **self._superseded, **self._refused}
        for name in names:
            record = devices.get(name)
            if record is not None and record.link is not None:
                settlement = Settlement(
                    tuple(self._committed.get(name, ())),
                    tuple(self._superseded.get(name, ())),
                    tuple(self._refused.get(name, ())),
                )
                self._history.settled(self._job, name, settlement)
                record.link.send_settled(self._job, settlement)
        for name, tokens in self._cancelled.items():
            record = devices.get(name)
            if record is not None and record.link is not None:
                record.link.send_cancel(self._job, tokens)
