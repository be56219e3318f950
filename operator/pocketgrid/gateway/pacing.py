"""How often devices report, and how widely they spread when all have to dial again at once. Pure.

As rarely as the size of the fleet demands, as often as work demands. Each heartbeat costs the gateway about a third of
a millisecond, so what all devices together may send is bounded. A device with work is heard often, because its leases
are taken back when it falls silent. An idle one has nothing to be taken back, and is heard the less often the more of
them there are; when it is given work, it is asked for more.

Taking a device in costs several milliseconds, most of them for the handshake and before anything could be refused. Ten
thousand devices that dial at once would keep a gateway busy with handshakes that their devices give up before they are
done, for ever. Only the devices themselves can prevent that, and only the gateway knows how many they are; so it tells
them, while all is well, over what time they are to spread should they lose it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pocketgrid.settings import GatewaySettings

HEARTBEAT_STEP_S = 0.5
SPREAD_STEP_S = 2.0
"""Paces are steps apart, so that a device is not told of every other one that comes or goes."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a device is asked for.

    Attributes:
        heartbeat_s: between two heartbeats.
        silence_s: either side gives up a link on which nothing arrived for so long.
        spread_s: a device that has lost its gateway dials at a random moment of so long a time.
    """

    heartbeat_s: float
    silence_s: float
    spread_s: float


@dataclass(slots=True)
class Paces:
    """The paces of the moment, shared by all sessions of a gateway."""

    idle: Pace
    working: Pace


def choose_paces(settings: GatewaySettings, idle: int, working: int) -> Paces:
    """Paces for so many idle devices and so many with work; those with work report and return no later than others."""
    at_work = choose_pace(settings, working)
    at_rest = choose_pace(settings, idle)
    return Paces(at_rest if at_rest.heartbeat_s >= at_work.heartbeat_s else at_work, at_work)


def choose_pace(settings: GatewaySettings, devices: int) -> Pace:
    """The pace of each of `devices` that share `heartbeats_per_second` and `attaches_per_second`."""
    shared = math.ceil(devices / settings.heartbeats_per_second / HEARTBEAT_STEP_S) * HEARTBEAT_STEP_S
    heartbeat = max(settings.heartbeat_seconds, min(shared, settings.longest_heartbeat_seconds))
    # A few devices come back as fast as they can.
    spread = math.floor(devices / settings.attaches_per_second / SPREAD_STEP_S) * SPREAD_STEP_S
    return Pace(
        heartbeat,
        heartbeat * settings.silence_seconds / settings.heartbeat_seconds,
        min(spread, settings.longest_spread_seconds),
    )
