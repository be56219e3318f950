"""What the engine tells of itself for a history: the events that decide whether a row is lost or doubled.

Responsible for what is told and in which words, not for where it goes: the composition root passes a recorder in, or
none, and then each call returns at once. Told in the order in which the engine's loop did it:

    opened, attached, leased, resumed, sent, returned, gone, cancelled, result, committed, refused, reopened, verified,
    settled, detached, fenced, finished

An attempt is named by its fencing number in hexadecimal, 16 digits, of which the first 8 are the epoch. Its token is
not told: whoever reads a history must not be able to answer in a device's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pocketgrid.engine.links import HeldAttempt, Settlement
from pocketgrid.model import events as ev
from pocketgrid.model.device import DeviceIdentity
from pocketgrid.model.ids import AttemptSeq, DeviceName, Epoch, JobUid, ShardIndex

TOKEN_NUMBER_BYTES = 8
"""The fencing number at the head of a token."""


class Recorder(Protocol):
    """Takes in one event; must be quick, and never raises."""

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write `fields`, which hold nothing but what JSON holds."""
        ...


def attempt_name(seq: AttemptSeq) -> str:
    """How a history names an attempt."""
    return f"{seq:016x}"


def name_of_token(token: bytes) -> str:
    """The same, from an attempt's token."""
    return token[:TOKEN_NUMBER_BYTES].hex()


class History:
    """Tells a recorder, if there is one."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder

    def opened(
        self,
        job: JobUid,
        epoch: Epoch,
        items: int,
        per_shard: int,
        committed: str,
        rows: tuple[int, int],
        *,
        verified: str | None,
    ) -> None:
        """A job can be worked on.

        Args:
            committed: shards that its log has.
            rows: how many are done, and how many of these failed.
            verified: what of it is final; None if nothing is verified.
        """
        if self._recorder is not None:
            fields = {"job": job, "epoch": epoch, "items": items, "perShard": per_shard, "committed": committed}
            if verified is not None:
                fields["verified"] = verified
            self._recorder.record("opened", {**fields, "done": rows[0], "failed": rows[1]})

    def attached(self, identity: DeviceIdentity, held: Sequence[HeldAttempt]) -> None:
        """A device has said hello, and what it still has."""
        if self._recorder is not None:
            fields = {"device": identity.name, "boot": identity.boot_id, "credits": identity.credits.shards}
            told = [[h.job, h.shard, name_of_token(h.token), h.finished] for h in held]
            self._recorder.record("attached", {**fields, "held": told})

    def detached(self, device: DeviceName, reason: str) -> None:
        """A device's link has ended."""
        if self._recorder is not None:
            self._recorder.record("detached", {"device": device, "reason": reason})

    def leased(
        self, job: JobUid, cut: ev.LeaseCut, index: Callable[[int], int], *, copy: bool, check: bool = False
    ) -> None:
        """A lease was handed out; it is on its way once it is `sent`.

        Args:
            index: the number under which a shard travels; where it is another than its own it is told as well.
            check: the one shard is a virtual one.
        """
        if self._recorder is not None:
            shards: list[list[int | str]] = []
            for handed in cut.shards:
                travels = index(handed.shard)
                shards.append([handed.shard, attempt_name(handed.seq)])
                if travels != handed.shard:
                    shards[-1].append(travels)
            fields = {"job": job, "device": cut.device, "lease": cut.lease, "shards": shards, "copy": copy}
            self._recorder.record("leased", {**fields, "check": True} if check else fields)

    def resumed(self, job: JobUid, device: DeviceName, shard: int, seq: AttemptSeq) -> None:
        """A device came back with an attempt of an earlier session, and it counts again."""
        if self._recorder is not None:
            fields = {"job": job, "device": device, "shard": shard, "attempt": attempt_name(seq)}
            self._recorder.record("resumed", fields)

    def sent(self, job: JobUid, device: DeviceName, seqs: Iterable[AttemptSeq]) -> None:
        """Shards of a lease were given to the device's link."""
        if self._recorder is not None:
            self._recorder.record("sent", {"job": job, "device": device, "attempts": [attempt_name(s) for s in seqs]})

    def ended(self, job: JobUid, event: ev.JobEvent) -> None:
        """Something took attempts away from a device; other events are told where they happen."""
        if self._recorder is None:
            return
        if isinstance(event, ev.AttemptsReturned):
            attempts = [attempt_name(seq) for seq in event.seqs]
            self._recorder.record("returned", {"job": job, "device": event.device, "attempts": attempts})
        elif isinstance(event, ev.DeviceGone):
            keep = sorted(attempt_name(seq) for seq in event.keep)
            self._recorder.record("gone", {"job": job, "device": event.device, "keep": keep})

    def carried_out(self, job: JobUid, effect: ev.JobEffect, *, answered: bool) -> None:
        """An effect that ends attempts; others are told where they come true.

        Args:
            answered: it follows from a device's answer.
        """
        if self._recorder is None:
            return
        if isinstance(effect, ev.CancelAttempt):
            attempts = [attempt_name(effect.seq)]
            self._recorder.record("cancelled", {"job": job, "device": effect.device, "attempts": attempts})
        elif isinstance(effect, ev.CancelJob):
            self._recorder.record("cancelled", {"job": job})
        elif isinstance(effect, ev.CommitShard) and (effect.give_up or not answered):
            reason = effect.give_up or "Unreadable"
            self.result(job, effect.device, effect.shard, effect.seq, "given up", reason)

    def result(
        self, job: JobUid, device: DeviceName, shard: int, seq: AttemptSeq | None, verdict: str, reason: str = ""
    ) -> None:
        """A device's answer, and what was thought of it.

        Args:
            seq: None if the token was not genuine.
            verdict: ``accepted``, ``rejected``, ``superseded`` (not looked at), ``failed`` (says the device),
                ``forged``, ``checked`` (a check's, taken to be compared) or ``given up`` (the shard is committed
                without a result).
        """
        if self._recorder is not None:
            attempt = attempt_name(seq) if seq is not None else ""
            fields = {"job": job, "device": device, "shard": shard, "attempt": attempt, "verdict": verdict}
            self._recorder.record("result", {**fields, "reason": reason} if reason else fields)

    def committed(self, job: JobUid, epoch: Epoch, shards: Iterable[tuple[int, AttemptSeq, str, int, int]]) -> None:
        """Shards are durable: index, attempt, device, rows, and how many of them failed."""
        if self._recorder is not None:
            told = [[shard, attempt_name(seq), device, rows, failed] for shard, seq, device, rows, failed in shards]
            self._recorder.record("committed", {"job": job, "epoch": epoch, "shards": told})

    def refused(self, job: JobUid, refused: Mapping[ShardIndex, str]) -> None:
        """The store would not take accepted results after all."""
        if self._recorder is not None and refused:
            self._recorder.record("refused", {"job": job, "shards": sorted(refused)})

    def reopened(self, job: JobUid, shards: Iterable[int]) -> None:
        """Committed shards turned out to be damaged and are done again."""
        if self._recorder is not None:
            self._recorder.record("reopened", {"job": job, "shards": [int(s) for s in shards]})

    def verified(self, job: JobUid, shards: Iterable[int]) -> None:
        """Committed shards are final."""
        if self._recorder is not None:
            self._recorder.record("verified", {"job": job, "shards": [int(s) for s in shards]})

    def settled(self, job: JobUid, device: DeviceName, settlement: Settlement) -> None:
        """A device was told what it may forget."""
        if self._recorder is not None:
            fields: dict[str, Any] = {"job": job, "device": device}
            fields["committed"] = [name_of_token(token) for token in settlement.committed]
            fields["superseded"] = [name_of_token(token) for token in settlement.superseded]
            fields["refused"] = [name_of_token(token) for token, _, _ in settlement.refused]
            self._recorder.record("settled", fields)

    def fenced(self, job: JobUid, message: str) -> None:
        """Another operator has taken over."""
        if self._recorder is not None:
            self._recorder.record("fenced", {"job": job, "message": message})

    def finished(self, job: JobUid, manifest: str) -> None:
        """The manifest is written."""
        if self._recorder is not None:
            self._recorder.record("finished", {"job": job, "manifest": manifest})
