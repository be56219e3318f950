"""A token is good for one job, shard and device, and nobody else can make one."""

from hypothesis import assume, given
from hypothesis import strategies as st

from pocketgrid.model.ids import AttemptSeq, DeviceName, JobUid
from pocketgrid.trust.tokens import KEY_BYTES, TOKEN_BYTES, TokenMint

keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
seqs = st.integers(0, 2**63 - 1).map(AttemptSeq)
shards = st.integers(0, 2**40)
names = st.text("abcdefgh-.0123456789", min_size=1, max_size=40)


@given(keys, names, seqs, shards, names)
def test_a_token_proves_its_attempt(key: bytes, job: str, seq: AttemptSeq, shard: int, device: str) -> None:
    mint = TokenMint(key, JobUid(job))
    token = mint.mint(seq, shard, DeviceName(device))
    assert len(token) == TOKEN_BYTES
    assert mint.check(token, shard, DeviceName(device)) == seq


@given(keys, keys, names, names, seqs, shards, shards, names, names)
def test_it_proves_nothing_else(key, key2, job, job2, seq, shard, shard2, device, device2) -> None:
    assume((key, job, shard, device) != (key2, job2, shard2, device2))
    token = TokenMint(key, JobUid(job)).mint(seq, shard, DeviceName(device))
    assert TokenMint(key2, JobUid(job2)).check(token, shard2, DeviceName(device2)) is None


@given(st.binary(max_size=40), shards, names)
def test_noise_is_no_token(noise: bytes, shard: int, device: str) -> None:
    assert TokenMint(bytes(KEY_BYTES), JobUid("j")).check(noise, shard, DeviceName(device)) is None


@given(keys, seqs, shards, st.integers(0, TOKEN_BYTES * 8 - 1))
def test_a_flipped_bit_is_noticed(key: bytes, seq: AttemptSeq, shard: int, bit: int) -> None:
    mint = TokenMint(key, JobUid("j"))
    token = bytearray(mint.mint(seq, shard, DeviceName("d")))
    token[bit // 8] ^= 1 << (bit % 8)
    assert mint.check(bytes(token), shard, DeviceName("d")) is None
