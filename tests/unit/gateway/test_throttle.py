"""How often strangers may try."""

import pytest

from pocketgrid.gateway.throttle import ADDRESSES, Rate, Throttle, address_of, network_of


def test_an_address_has_so_many_tries_and_then_one_now_and_then() -> None:
    throttle = Throttle(Rate(3, 0.5), Rate(100, 100))
    for _ in range(3):
        assert throttle.wait_s("a", 0.0) == 0
        throttle.failed("a", 0.0)
    assert throttle.wait_s("a", 0.0) == pytest.approx(2.0)
    assert throttle.wait_s("b", 0.0) == 0, "others are not to blame"
    assert throttle.wait_s("a", 1.0) == pytest.approx(1.0)
    assert throttle.wait_s("a", 2.0) == 0
    throttle.failed("a", 2.0)
    assert throttle.wait_s("a", 2.0) == pytest.approx(2.0)
    assert throttle.wait_s("a", 1000.0) == 0


def test_many_addresses_together_have_no_more_than_all_may() -> None:
    throttle = Throttle(Rate(10, 1), Rate(50, 10))
    for number in range(50):
        assert throttle.wait_s(f"address-{number}", 0.0) == 0
        throttle.failed(f"address-{number}", 0.0)
    assert throttle.wait_s("somebody new", 0.0) == pytest.approx(0.1)
    assert throttle.wait_s("somebody new", 0.2) == 0


def test_who_asks_and_does_not_fail_uses_nothing_up() -> None:
    throttle = Throttle(Rate(1, 0.1), Rate(1, 0.1))
    assert [throttle.wait_s("a", 0.0) for _ in range(100)] == [0.0] * 100


def test_a_clock_that_stands_still_gives_no_tries() -> None:
    throttle = Throttle(Rate(1, 0.1), Rate(100, 1))
    throttle.failed("a", 5.0)
    assert throttle.wait_s("a", 5.0) == pytest.approx(10.0)


def test_memory_is_bounded_whoever_tries() -> None:
    throttle = Throttle(Rate(1, 0.001), Rate(1e9, 1e9))
    for number in range(3 * ADDRESSES):
        throttle.failed(f"address-{number}", 0.0)
    assert len(throttle._by_address) == ADDRESSES
    assert throttle.wait_s("address-0", 0.0) == 0, "the one that was longest ago is forgotten"
    assert throttle.wait_s(f"address-{3 * ADDRESSES - 1}", 0.0) > 0


@pytest.mark.parametrize(
    ("peer", "address", "network"),
    [
        ("ipv4:93.184.216.34:40123", "93.184.216.34", "93.184.216.0/24"),
        ("ipv4:192.168.1.7:40123", "192.168.1.7", ""),
        ("ipv6:[2606:2800:220:1:3:4:5:6]:40123", "2606:2800:220:1::/64", "2606:2800:220::/48"),
        ("ipv6:%5B2606:2800:220:1:aa::1%5D:40123", "2606:2800:220:1::/64", "2606:2800:220::/48"),
        ("ipv6:[::ffff:93.184.216.34]:40123", "93.184.216.34", "93.184.216.0/24"),
        ("ipv6:[fe80::1%25eth0]:40123", "fe80::/64", ""),
        ("unix:/run/socket", "unix", ""),
        ("rubbish", "rubbish", ""),
    ],
)
def test_what_counts_as_one_address_and_as_one_network(peer: str, address: str, network: str) -> None:
    assert address_of(peer) == address
    assert network_of(peer) == network
