"""Where devices dial from, as far as it tells whether they are of one place."""

import pytest

from pocketgrid.gateway.throttle import network_of


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:93.184.216.34:51000", "93.184.216.0/24"),
        ("ipv6:%5B2606:2800:220:1::1%5D:51000", "2606:2800:220::/48"),
        ("ipv4:127.0.0.1:51000", ""),
        ("ipv4:10.1.2.3:51000", ""),
        ("ipv4:192.168.1.20:51000", ""),
        ("ipv6:%5B::1%5D:51000", ""),
        ("unix:/run/socket", ""),
        ("nonsense", ""),
    ],
)
def test_the_network_of_a_peer(peer: str, network: str) -> None:
    assert network_of(peer) == network
