"""The model cache: right bytes or none, within the budget, whatever is killed when."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgrid.errors import StoreError
from pocketgrid_agent.cache import BudgetError, DigestMismatchError, ModelCache


def data_of(seed: int, size: int = 1000) -> bytes:
    return random.Random(seed).randbytes(size)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def store(cache: ModelCache, data: bytes) -> str:
    digest = digest_of(data)
    partial = cache.fetch(digest, len(data))
    assert partial is not None
    partial.append(data[partial.offset :])
    partial.finish()
    return digest


def test_what_was_stored_is_found_and_verified(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path / "new" / "folder", budget_bytes=10_000)
    digest = store(cache, data_of(1))
    assert cache.digests() == [digest]
    model = cache.open(digest)
    assert model is not None
    assert model.path.read_bytes() == data_of(1)
    model.close()


def test_absent_models_are_none(tmp_path: Path) -> None:
    assert ModelCache(tmp_path, budget_bytes=1).open("0" * 64) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_model_damaged_on_disk_is_removed_instead_of_loaded(tmp_path: Path, damage: str) -> None:
    cache = ModelCache(tmp_path, budget_bytes=10_000)
    digest = store(cache, data_of(1))
    path = tmp_path / f"{digest}.onnx"
    good = path.read_bytes()
    path.write_bytes({"flip": b"\0" + good[1:], "truncate": good[:-1], "empty": b""}[damage])
    assert cache.open(digest) is None
    assert cache.digests() == []
    store(cache, data_of(1))
    model = cache.open(digest)
    assert model is not None
    model.close()


@pytest.mark.parametrize("kept", [0, 1, 500, 999, 1000])
def test_fetching_goes_on_where_a_killed_process_stopped(tmp_path: Path, kept: int) -> None:
    data = data_of(1)
    (tmp_path / f"{digest_of(data)}.1000.part").write_bytes(data[:kept])
    cache = ModelCache(tmp_path, budget_bytes=10_000)
    partial = cache.fetch(digest_of(data), 1000)
    assert partial is not None
    assert partial.offset == kept
    partial.append(data[kept:])
    partial.finish()
    assert cache.digests() == [digest_of(data)]
    assert cache.used_bytes() == 1000


def test_a_partial_longer_than_the_model_is_begun_anew(tmp_path: Path) -> None:
    digest = digest_of(data_of(1))
    (tmp_path / f"{digest}.1000.part").write_bytes(b"x" * 1001)
    partial = ModelCache(tmp_path, budget_bytes=10_000).fetch(digest, 1000)
    assert partial is not None
    assert partial.offset == 0
    partial.close()


def test_bytes_that_do_not_match_the_digest_are_not_kept(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, budget_bytes=10_000)
    digest = digest_of(data_of(1))
    partial = cache.fetch(digest, 1000)
    assert partial is not None
    partial.append(data_of(2))
    with pytest.raises(DigestMismatchError, match=digest):
        partial.finish()
    assert cache.digests() == []
    assert cache.used_bytes() == 0


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    partial = ModelCache(tmp_path, budget_bytes=10_000).fetch("a" * 64, 10)
    assert partial is not None
    with pytest.raises(BudgetError, match="has more"):
        partial.append(b"x" * 11)
    partial.close()


def test_least_recently_used_models_make_room(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, budget_bytes=2_500)
    first, second = store(cache, data_of(1)), store(cache, data_of(2))
    os.utime(tmp_path / f"{first}.onnx", (1, 1))
    os.utime(tmp_path / f"{second}.onnx", (2, 2))
    used = cache.open(first)  # now the most recently used
    assert used is not None
    used.close()
    third = store(cache, data_of(3))
    assert cache.digests() == sorted([first, third])


def test_models_in_use_are_not_evicted(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, budget_bytes=1_500)
    in_use = cache.open(store(cache, data_of(1)))
    assert in_use is not None
    with pytest.raises(BudgetError, match="--cache-budget"):
        cache.fetch(digest_of(data_of(2)), 1000)
    assert in_use.path.exists()
    in_use.close()
    store(cache, data_of(2))
    assert not in_use.path.exists()


def test_a_model_larger_than_the_budget_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        ModelCache(tmp_path, budget_bytes=999).fetch(digest_of(data_of(1)), 1000)


def test_abandoned_partials_make_room_and_running_ones_do_not(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path, budget_bytes=1_500)
    running = cache.fetch(digest_of(data_of(1)), 1000)
    assert running is not None
    with pytest.raises(BudgetError):
        cache.fetch(digest_of(data_of(2)), 1000)
    running.close()
    store(cache, data_of(2))
    assert cache.used_bytes() == 1000


def test_two_agents_do_not_fetch_the_same_model_at_the_same_time(tmp_path: Path) -> None:
    data = data_of(1)
    one, other = ModelCache(tmp_path, budget_bytes=5_000), ModelCache(tmp_path, budget_bytes=5_000)
    partial = one.fetch(digest_of(data), 1000)
    assert partial is not None
    assert other.fetch(digest_of(data), 1000) is None
    partial.append(data)
    partial.finish()
    assert other.fetch(digest_of(data), 1000) is None, "it is here now and need not be fetched"
    assert other.digests() == [digest_of(data)]


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    data = data_of(1)
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom pocketgrid_agent.cache import ModelCache\n"
        "partial = ModelCache(Path(sys.argv[1]), budget_bytes=5000).fetch(sys.argv[2], 1000)\n"
        "partial.append(bytes.fromhex(sys.argv[3]))\npartial._file.flush()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = [str(tmp_path), digest_of(data), data[:300].hex()]
    ended = subprocess.run([sys.executable, "-c", script, *arguments], timeout=30, check=False)
    assert ended.returncode == -9
    partial = ModelCache(tmp_path, budget_bytes=5000).fetch(digest_of(data), 1000)
    assert partial is not None
    assert partial.offset == 300
    partial.append(data[300:])
    partial.finish()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/cache"):
        ModelCache(tmp_path / "file" / "cache", budget_bytes=1)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["store", "begin", "drop", "use", "release"]),
            st.integers(0, 5),
            st.integers(1, 1200),
        ),
        max_size=25,
    )
)
def test_the_budget_holds_under_any_history(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = ModelCache(folder, budget_bytes=2_000)
    begun, used = [], []
    try:
        for action, seed, size in steps:
            data = data_of(seed * 10_000 + size, size)
            if action in ("store", "begin"):
                try:
                    partial = cache.fetch(digest_of(data), size)
                except BudgetError:
                    continue
                if partial is None:
                    continue
                if action == "begin":
                    begun.append(partial)
                else:
                    partial.append(data[partial.offset :])
                    partial.finish()
            elif action == "drop" and begun:
                begun.pop().close()
            elif action == "use" and cache.digests():
                model = cache.open(cache.digests()[seed % len(cache.digests())])
                assert model is not None
                used.append(model)
            elif action == "release" and used:
                used.pop().close()
            assert cache.used_bytes() <= 2_000
            assert sum(p.stat().st_size for p in folder.iterdir()) <= 2_000
            assert all(model.path.exists() for model in used)
    finally:
        for each in (*begun, *used):
            each.close()
