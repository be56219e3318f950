"""Join tokens, apart from where they are kept."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.errors import InvalidSpecError, RefusedError
from pocketgrid.gateway.register import DeviceRecord, admit, decide_enrolment
from pocketgrid.gateway.tokens import MAX_USES, make_token, mark_of, split_token
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import TrustTier

PHONE = DeviceName("phone")


def a_token(**changes):
    return make_token(**{"owner": "alice", "now": 0.0, "ttl_s": 100.0, **changes}).token


def test_a_token_has_the_form_of_kubernetes_bootstrap_tokens_and_is_known_by_its_hash() -> None:
    made = make_token(owner="alice", now=0.0, ttl_s=60.0)
    token_id, secret = split_token(made.text)
    assert token_id == made.token.token_id
    assert (len(token_id), len(secret)) == (6, 16)
    assert set(token_id + secret) <= set(string.ascii_lowercase + string.digits)
    assert made.token.matches(secret)
    assert not made.token.matches(secret[:-1])
    assert secret not in repr(made.token)


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": ""}, {"owner": "Ada & Charles"}, {"owner": "o" * 64}, {"uses": 0}, {"uses": MAX_USES + 1},
        {"ttl_s": 0.0}, {"hardware_class": "No Class"}, {"node_name": "../etc"},
    ],
)  # fmt: skip
def test_what_no_token_can_have_is_refused(changes) -> None:
    with pytest.raises(InvalidSpecError):
        a_token(**changes)


@given(st.integers(1, 6), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 120)), max_size=40))
def test_never_more_devices_than_uses_and_nobody_is_counted_twice(uses: int, tries: list[tuple[str, float]]) -> None:
    token = a_token(uses=uses)
    let_in: set[str] = set()
    for mark, now in tries:
        after = token.redeem(mark, now)
        expected = now < 100.0 and (mark in let_in or len(let_in) < uses)
        assert (after is not None) == expected
        if after is not None:
            let_in.add(mark)
            token = after
    assert set(token.redeemed) == let_in
    assert token.uses_left == uses - len(let_in)


def test_a_mark_is_of_one_device_and_one_key() -> None:
    assert len({mark_of(DeviceName(d), k) for d in ("a", "b") for k in ("x", "y")}) == 4


def test_what_an_administrator_has_decided_outlives_a_repeated_question_but_no_new_key() -> None:
    known = DeviceRecord(PHONE, "key", "alice", "gold", TrustTier.OWNED, "k3s-1")
    token = a_token(hardware_class="bronze")
    assert decide_enrolment(known, PHONE, "key", token, "") == known
    assert decide_enrolment(known, PHONE, "other", token, "") == DeviceRecord(PHONE, "other", "alice", "bronze")
    beforehand = DeviceRecord(PHONE, "", "alice", "gold", TrustTier.OWNED)
    assert decide_enrolment(beforehand, PHONE, "key", token, "").tier is TrustTier.OWNED


@pytest.mark.parametrize(
    ("known", "node", "reason"),
    [
        (DeviceRecord(PHONE, "key", "bob"), "", "NameTaken"),
        (DeviceRecord(PHONE, "", "bob"), "", "NameTaken"),
        (DeviceRecord(PHONE, "key", "alice", revoked=True), "", "Revoked"),
        (DeviceRecord(PHONE, "other", "alice", revoked=True), "", "Revoked"),
        (DeviceRecord(PHONE, "key", "alice"), "k3s-1", "WrongNode"),
        (None, "k3s-1", "WrongNode"),
    ],
)
def test_who_may_not_enrol(known, node, reason) -> None:
    with pytest.raises(RefusedError, match=f"^{reason}: "):
        decide_enrolment(known, PHONE, "key", a_token(), node)


def test_who_is_let_in() -> None:
    good = DeviceRecord(PHONE, "key", "alice")
    assert admit(good, "key") == good
    for record, reason in [
        (None, "NotEnrolled"),
        (DeviceRecord(PHONE, "other", "alice"), "NotEnrolled"),
        (DeviceRecord(PHONE, "", "alice"), "NotEnrolled"),
        (DeviceRecord(PHONE, "key", "alice", revoked=True), "Revoked"),
    ]:
        with pytest.raises(RefusedError, match=f"^{reason}: "):
            admit(record, "key")
