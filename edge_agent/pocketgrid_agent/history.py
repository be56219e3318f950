"""What an agent tells of itself for a history: the life of every attempt on this device.

Everything that happens to an attempt passes through the machine, so its events and effects are all there is to tell:

    welcomed, lost, leased, begun, finished, abandoned, journaled, delivered, settled, revoked, cancelled, returned,
    reissued

An attempt is named by the number at the head of its token, in hexadecimal, as in the operator's history; the rest of
the token is a proof, and stays out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pocketgrid_agent import events as ev
from pocketgrid_agent.events import Token

NUMBER_BYTES = 8


class Recorder(Protocol):
    """Takes in one event; must be quick, and never raises."""

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write `fields`, which hold nothing but what JSON holds."""
        ...


class History:
    """Tells `recorder`.

    Args:
        device: name of this one, said with every event.
    """

    def __init__(self, recorder: Recorder, device: str) -> None:
        self._recorder = recorder
        self._device = device

    def happened(self, event: ev.Event) -> None:
        """Tell of what happened, before the machine answers."""
        match event:
            case ev.Welcomed():
                self._tell("welcomed")
            case ev.LinkLost():
                self._tell("lost")
            case ev.Leased(attempts):
                self._tell("leased", shards=[[a.shard, _name(a.token)] for a in attempts], job=attempts[0].job)
            case ev.Finished():
                self._tell("finished", attempt=_name(event.token), failed=event.failed)
            case ev.Abandoned(token):
                self._tell("abandoned", attempt=_name(token))
            case ev.Journaled(tokens):
                self._tell("journaled", attempts=_names(tokens))
            case ev.Settled(tokens):
                self._tell("settled", attempts=_names(tokens))
            case ev.Revoked(job, tokens):
                self._tell("revoked", job=job, attempts=_names(tokens))
            case ev.Cancelled(job, tokens):
                self._tell("cancelled", job=job, attempts=_names(tokens))
            case ev.Ordered() | ev.Prepared() | ev.DrainRequested() | ev.PolicyChanged():
                pass  # nothing of an attempt

    def decided(self, effect: ev.Effect) -> None:
        """Tell of what the machine decided, before it is carried out."""
        match effect:
            case ev.Compute(attempt):
                self._tell("begun", job=attempt.job, shard=attempt.shard, attempt=_name(attempt.token))
            case ev.Reissue(old, new):
                self._tell("reissued", old=_name(old), attempt=_name(new))
            case ev.Deliver(job, tokens):
                self._tell("delivered", job=job, attempts=_names(tokens))
            case ev.GiveBack(job, tokens, reason):
                self._tell("returned", job=job, attempts=_names(tokens), reason=reason)
            case _:
                pass  # carries out what was told already, or nothing of an attempt

    def _tell(self, kind: str, **fields: Any) -> None:
        self._recorder.record(kind, {"device": self._device, **fields})


def _name(token: Token) -> str:
    return token[:NUMBER_BYTES].hex()


def _names(tokens: Iterable[Token]) -> list[str]:
    return [_name(token) for token in tokens]
