"""What a row is worth."""

from __future__ import annotations

import itertools

from pocketgrid.metering.prices import unit_price
from pocketgrid.model.device import HardwareClass
from pocketgrid.model.ids import ModelDigest
from pocketgrid.model.money import PriceList
from pocketgrid.model.selectors import LabelSelector

BIG, SMALL = ModelDigest("b" * 64), ModelDigest("a" * 64)


def a_class(name: str, price: PriceList | None) -> HardwareClass:
    return HardwareClass(name, LabelSelector(), price)


PHONE = a_class("phone", PriceList(100, {BIG: 900}))
ARM = a_class("arm", PriceList(250))
PC = a_class("pc", None)


def test_a_model_may_have_a_price_of_its_own() -> None:
    assert unit_price([PHONE], SMALL) == 100
    assert unit_price([PHONE], BIG) == 900


def test_a_device_of_several_classes_gets_the_highest_price_in_any_order() -> None:
    for order in itertools.permutations([PHONE, ARM, PC]):
        assert (unit_price(order, SMALL), unit_price(order, BIG)) == (250, 900)


def test_without_a_price_nothing_is_paid() -> None:
    assert unit_price([], SMALL) == 0
    assert unit_price([PC], SMALL) == 0
