"""Models at rest are of no use without their key: not whole, not in part, not after a kill."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgrid_agent import sealing
from pocketgrid_agent.cache import BudgetError, DigestMismatchError, ModelCache
from pocketgrid_agent.sealing import BLOCK_BYTES, HEADER_BYTES, TAG_BYTES

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
BUDGET = 16 << 20


def data_of(seed: int, size: int = BLOCK_BYTES * 2 + 5000) -> bytes:
    return random.Random(seed).randbytes(size)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def store(cache: ModelCache, data: bytes, key: bytes = KEY) -> str:
    digest = digest_of(data)
    partial = cache.fetch(digest, len(data), key)
    assert partial is not None
    partial.append(data[partial.offset :])
    partial.finish()
    return digest


def read(cache: ModelCache, digest: str, key: bytes = KEY) -> bytes | None:
    content = io.BytesIO()
    model = cache.open(digest, key, content)
    if model is None:
        return None
    model.close()
    return content.getvalue()


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


@pytest.mark.parametrize(
    "size", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES + 7]
)
def test_what_was_sealed_is_read_back_and_nothing_of_it_lies_on_the_disk(tmp_path: Path, size: int) -> None:
    cache, data = ModelCache(tmp_path, budget_bytes=BUDGET), data_of(1, size)
    digest = store(cache, data)
    assert read(cache, digest) == data
    assert cache.digests() == [digest]
    (path,) = tmp_path.glob("*.sealed")
    assert path.stat().st_size == sealing.sealed_size(size)
    assert sealing.plain_size(path.stat().st_size) == size
    if size > 32:
        stored = on_disk(tmp_path)
        assert all(data[at : at + 16] not in stored for at in range(0, size - 16, 997))
    assert KEY not in on_disk(tmp_path)


def test_another_key_opens_nothing_and_destroys_nothing(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, budget_bytes=BUDGET)
    digest = store(cache, data_of(1))
    assert cache.open(digest, OTHER) is None
    assert cache.open(digest) is None
    assert not cache.holds(digest)
    assert not cache.holds(digest, OTHER)
    assert read(cache, digest) == data_of(1)


def test_the_same_model_sealed_twice_looks_different_each_time(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        store(ModelCache(tmp_path / name, budget_bytes=BUDGET), data_of(1))
        files.append(next((tmp_path / name).glob("*.sealed")).read_bytes())
    assert files[0][HEADER_BYTES:] != files[1][HEADER_BYTES:]


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


SEALED_BLOCK = BLOCK_BYTES + TAG_BYTES
DAMAGE = {
    "a bit of the mark": lambda c: flip(c, 0),
    "a bit of the salt": lambda c: flip(c, HEADER_BYTES - 1),
    "a bit of the first block": lambda c: flip(c, HEADER_BYTES),
    "a bit of the last tag": lambda c: flip(c, len(c) - 1),
    "the last byte": lambda c: c[:-1],
    "the last block": lambda c: c[: HEADER_BYTES + 2 * SEALED_BLOCK],
    "the first block": lambda c: c[:HEADER_BYTES] + c[HEADER_BYTES + SEALED_BLOCK :],
    "everything but the header": lambda c: c[:HEADER_BYTES],
    "everything": lambda c: b"",
    "the order of blocks": lambda c: (
        c[:HEADER_BYTES]
        + c[HEADER_BYTES + SEALED_BLOCK : HEADER_BYTES + 2 * SEALED_BLOCK]
        + c[HEADER_BYTES : HEADER_BYTES + SEALED_BLOCK]
        + c[HEADER_BYTES + 2 * SEALED_BLOCK :]
    ),
    "its end": lambda c: c + b"x",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_sealed_file_that_was_touched_is_removed_and_fetched_anew(tmp_path: Path, damage: str) -> None:
    cache = ModelCache(tmp_path, budget_bytes=BUDGET)
    digest = store(cache, data_of(1))
    (path,) = tmp_path.glob("*.sealed")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert cache.open(digest, KEY) is None
    assert not cache.holds(digest, KEY)
    store(cache, data_of(1))
    assert read(cache, digest) == data_of(1)


def test_a_file_of_another_model_under_the_same_key_is_not_taken_for_it(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, budget_bytes=BUDGET)
    one, two = store(cache, data_of(1)), store(cache, data_of(2))
    name = sealing.name_of(KEY)
    (tmp_path / f"{one}.{name}.sealed").replace(tmp_path / f"{two}.{name}.sealed")
    assert cache.open(two, KEY) is None


@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=8), st.sets(st.integers(0, 7)))
@settings(max_examples=25, deadline=None)
def test_fetching_goes_on_after_the_last_whole_block(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int], interruptions: set[int]
) -> None:
    cache, data = ModelCache(tmp_path_factory.mktemp("c"), budget_bytes=BUDGET), data_of(3, sum(pieces))
    digest, kept = digest_of(data), 0
    for number, piece in enumerate(pieces):
        partial = cache.fetch(digest, len(data), KEY)
        assert partial is not None
        assert partial.offset == kept - kept % BLOCK_BYTES
        partial.append(data[partial.offset : partial.offset + piece])
        kept = partial.offset
        if kept == len(data):
            partial.finish()
            break
        partial.close()
        if number in interruptions:
            # What a kill in the middle of a write, or a full disk, leaves behind.
            (path,) = cache.folder.glob("*.part")
            with path.open("ab") as file:
                file.write(b"half a block")
    else:
        partial = cache.fetch(digest, len(data), KEY)
        assert partial is not None
        partial.append(data[partial.offset :])
        partial.finish()
    assert read(cache, digest) == data


def test_a_part_survives_a_kill(tmp_path: Path) -> None:
    data = data_of(4)
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom pocketgrid_agent.cache import ModelCache\n"
        "cache = ModelCache(Path(sys.argv[1]), budget_bytes=1 << 24)\n"
        "partial = cache.fetch(sys.argv[2], int(sys.argv[3]), bytes(range(32)))\n"
        "partial.append(sys.stdin.buffer.read())\npartial._file.flush()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path), digest_of(data), str(len(data))]
    subprocess.run(arguments, input=data[: BLOCK_BYTES + 1000], check=False)
    partial = ModelCache(tmp_path, budget_bytes=BUDGET).fetch(digest_of(data), len(data), KEY)
    assert partial is not None
    assert partial.offset == BLOCK_BYTES
    partial.append(data[BLOCK_BYTES:])
    partial.finish()


def test_a_part_of_another_key_is_begun_anew_beside_it(tmp_path: Path) -> None:
    cache, data = ModelCache(tmp_path, budget_bytes=BUDGET), data_of(5)
    partial = cache.fetch(digest_of(data), len(data), OTHER)
    assert partial is not None
    partial.append(data[:BLOCK_BYTES])
    partial.close()
    partial = cache.fetch(digest_of(data), len(data), KEY)
    assert partial is not None
    assert partial.offset == 0
    partial.close()


def test_wrong_bytes_are_never_a_model(tmp_path: Path) -> None:
    cache, data = ModelCache(tmp_path, budget_bytes=BUDGET), data_of(6)
    partial = cache.fetch(digest_of(data), len(data), KEY)
    assert partial is not None
    partial.append(data[:-1] + b"x")
    with pytest.raises(DigestMismatchError):
        partial.finish()
    assert not cache.holds(digest_of(data), KEY)
    store(cache, data)
    assert read(cache, digest_of(data)) == data


def test_what_lay_here_unsealed_is_gone_once_the_model_is_to_be_sealed(tmp_path: Path) -> None:
    cache, data = ModelCache(tmp_path, budget_bytes=BUDGET), data_of(7)
    store(cache, data, key=b"")
    store(cache, data)
    assert not cache.holds(digest_of(data))
    assert data[:64] not in on_disk(tmp_path)


def test_the_budget_counts_what_is_really_on_the_disk(tmp_path: Path) -> None:
    data = data_of(8)
    size = sealing.sealed_size(len(data))
    with pytest.raises(BudgetError, match="does not fit"):
        ModelCache(tmp_path, budget_bytes=size - 1).fetch(digest_of(data), len(data), KEY)
    cache = ModelCache(tmp_path, budget_bytes=size)
    partial = cache.fetch(digest_of(data), len(data), KEY)
    assert partial is not None
    assert cache.used_bytes() == size
    partial.append(data)
    partial.finish()
    assert cache.used_bytes() == size


def test_an_agent_that_loads_no_sealed_model_does_not_carry_the_library() -> None:
    script = "import sys, pocketgrid_agent.cache, pocketgrid_agent.models; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
