"""Numbers of shards and checks, disguised: nothing is lost, nothing meets, nothing shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.engine.tokens import AttemptTokens, Claim
from pocketgrid.model.ids import DeviceName, Epoch, JobUid, attempt_seq
from pocketgrid.trust.disguise import BITS, Disguise
from pocketgrid.trust.tokens import KEY_BYTES, TokenMint

numbers = st.integers(0, (1 << BITS) - 1)
keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
PHONE = DeviceName("phone")


@given(keys, numbers)
def test_what_is_put_on_comes_off(key: bytes, number: int) -> None:
    disguise = Disguise(key)
    travels = disguise.put_on(number)
    assert 0 <= travels < 1 << BITS
    assert disguise.take_off(travels) == number
    assert disguise.put_on(disguise.take_off(number)) == number


@given(keys)
def test_neighbours_do_not_look_alike(key: bytes) -> None:
    travelling = [Disguise(key).put_on(n) for n in range(64)]
    assert len(set(travelling)) == 64
    assert sorted(travelling) != travelling
    assert len({n >> (BITS - 16) for n in travelling}) > 48, "their heads differ"


@pytest.mark.parametrize("number", [-1, 1 << BITS])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    for turn in (Disguise(b"k").put_on, Disguise(b"k").take_off):
        with pytest.raises(ValueError, match="bits or is negative"):
            turn(number)


@given(keys, st.integers(1, 1000), st.integers(0, 2000), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_a_token_proves_what_it_was_made_for(
    key: bytes, shards: int, shard: int, epoch: int, later: int, verify: bool
) -> None:
    mint = TokenMint(key, JobUid("job"))
    made = AttemptTokens(mint, shards=shards, epoch=Epoch(epoch), verify=verify)
    read = AttemptTokens(mint, shards=shards, epoch=Epoch(later), verify=verify)
    if shard >= shards and not verify:
        return
    seq = attempt_seq(Epoch(epoch), 7)
    token, index = made.mint(seq, shard, PHONE), made.wire_index(shard)
    known = shard if shard < shards or epoch == later else None
    assert read.read(token, index, PHONE) == Claim(seq, known)
    assert read.read(token, index ^ 1, PHONE) is None
    assert read.read(token, index, DeviceName("other")) is None


@given(keys, st.integers(1, 1000), st.integers(1, 1 << 31), st.integers(1, 1 << 31))
def test_a_check_never_travels_as_a_shard_or_as_another_check(key: bytes, shards: int, epoch: int, later: int) -> None:
    mint = TokenMint(key, JobUid("job"))
    writers = [AttemptTokens(mint, shards=shards, epoch=Epoch(e), verify=True) for e in {epoch, later}]
    real = {writers[0].wire_index(shard) for shard in range(min(shards, 50))}
    checks = [tokens.wire_index(shards + number) for tokens in writers for number in range(20)]
    assert len(set(checks)) == len(checks)
    assert not real & set(checks)
