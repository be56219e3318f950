"""How often strangers may try tokens: token buckets, one for each address and one for all.

What is counted are failures; whoever has a good token waits for nobody, unless others at the same address have used up
its bucket. A bucket is looked at before the token is, so that a throttled guess tells nothing. Guessing 82 bits is
hopeless at any rate; this is so that the tries cost the gateway nothing either. Pure: time is an argument.

Overflow rule: of more addresses than are remembered, the one whose last failure is longest ago is forgotten.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import unquote

ADDRESSES = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and then so many a second."""

    burst: float
    per_second: float


EACH = Rate(10, 0.1)
ALL = Rate(200, 10)


class Throttle:
    """Failures of all addresses."""

    def __init__(self, each: Rate = EACH, overall: Rate = ALL) -> None:
        self._each = each
        self._overall = overall
        self._all = _Bucket(overall.burst, 0.0)
        self._by_address: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, address: str, now: float) -> float:
        """Seconds until an address may try again; 0 if it may now. `now` is monotonic."""
        bucket = self._by_address.get(address)
        own = bucket.wait_s(self._each, now) if bucket is not None else 0.0
        return max(own, self._all.wait_s(self._overall, now))

    def failed(self, address: str, now: float) -> None:
        """A try of that address was wrong."""
        bucket = self._by_address.pop(address, None) or _Bucket(self._each.burst, now)
        self._by_address[address] = bucket
        while len(self._by_address) > ADDRESSES:
            self._by_address.popitem(last=False)
        bucket.take(self._each, now)
        self._all.take(self._overall, now)


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float

    def wait_s(self, rate: Rate, now: float) -> float:
        return max(0.0, (1.0 - self._fill(rate, now)) / rate.per_second)

    def take(self, rate: Rate, now: float) -> None:
        self.left, self.at = max(0.0, self._fill(rate, now) - 1.0), now

    def _fill(self, rate: Rate, now: float) -> float:
        return min(rate.burst, self.left + max(0.0, now - self.at) * rate.per_second)


def address_of(peer: str) -> str:
    """What counts as one address of what gRPC calls a peer, such as ``ipv4:192.0.2.7:40123``.

    Of IPv6 the first 64 bits: any household has all addresses of such a network.
    """
    family, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    if family not in ("ipv4", "ipv6"):
        return family
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def network_of(peer: str) -> str:
    """The network a peer dials from: IPv4 /24, IPv6 /48; empty if it cannot be told.

    Nor can it be told of private addresses and this machine's own: those of one site, or all that come through one
    proxy, have such in common without having anything else in common.
    """
    found = address_of(peer).partition("/")[0]
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return ""
    if not address.is_global:
        return ""
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))
