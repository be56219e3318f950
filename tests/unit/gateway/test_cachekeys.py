"""Keys of model caches: the same for the same device and model, and nothing of one in another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pocketgrid.errors import StoreError
from pocketgrid.gateway.cachekeys import CacheKeys, load_cache_keys
from pocketgrid.gateway.convert import write_order
from pocketgrid.model.ids import DeviceName, JobUid, ModelDigest
from pocketgrid.model.job import WorkOrder
from pocketgrid_agent import codec

PHONE, BOARD = DeviceName("phone"), DeviceName("board")
ONE, TWO = ModelDigest("1" * 64), ModelDigest("2" * 64)


def test_a_key_belongs_to_one_device_and_one_model(tmp_path: Path) -> None:
    keys = load_cache_keys(tmp_path / "gateway")
    all_keys = {keys.key_for(device, model) for device in (PHONE, BOARD) for model in (ONE, TWO)}
    assert len(all_keys) == 4
    assert {len(key) for key in all_keys} == {32}


def test_keys_are_the_same_after_a_restart_and_others_with_another_secret(tmp_path: Path) -> None:
    first = load_cache_keys(tmp_path).key_for(PHONE, ONE)
    assert load_cache_keys(tmp_path).key_for(PHONE, ONE) == first
    (tmp_path / "cache-secret").unlink()
    assert load_cache_keys(tmp_path).key_for(PHONE, ONE) != first


def test_the_secret_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    load_cache_keys(tmp_path / "gateway")
    assert (tmp_path / "gateway" / "cache-secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "gateway").iterdir()] == ["cache-secret"]


def test_operators_that_begin_together_agree(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom pocketgrid.gateway.cachekeys import load_cache_keys\n"
        "sys.stdin.readline()\nprint(load_cache_keys(Path(sys.argv[1])).key_for('d', 'm').hex())\n"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=-1, stdout=-1, text=True)
        for _ in range(4)
    ]
    said = {racer.communicate("go\n", timeout=60)[0] for racer in racers}
    assert len(said) == 1
    assert "" not in said


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_secret_is_told_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache-secret").write_bytes(content)
    with pytest.raises(StoreError, match=r"cache-secret is damaged.*remove it"):
        load_cache_keys(tmp_path)


def test_the_key_travels_with_the_work_order_and_is_never_shown() -> None:
    key = CacheKeys(bytes(32)).key_for(PHONE, ONE)
    order = codec.order_of(write_order(WorkOrder(JobUid("job"), ONE, 1, (), ()), key))
    assert order.cache_key == key
    assert key.hex() not in repr(order)
    assert repr(key) not in repr(order)
    assert codec.order_of(write_order(WorkOrder(JobUid("job"), ONE, 1, (), ()))).cache_key == b""


def test_a_key_of_another_length_is_no_key() -> None:
    message = write_order(WorkOrder(JobUid("job"), ONE, 1, (), ()), b"short")
    with pytest.raises(codec.ProtocolError, match="a cache key of 5 bytes"):
        codec.order_of(message)
