"""Files of web servers: by ranges, by a copy, and what every kind of bad server leads to, within a bounded time."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketgrid.errors import InputChangedError, InvalidSpecError, StoreError
from pocketgrid.model.ids import ModelDigest
from pocketgrid.model.job import InputFormat, InputRef, ModelRef, TokenizerRef
from pocketgrid.storage.datasets import open_data_set
from pocketgrid.storage.locations import open_source
from pocketgrid.storage.modelstore import ModelStore
from pocketgrid.storage.places import ranged, web
from pocketgrid.storage.tokenizing import TextTokenizer
from tests.fakes.models import write_affine_model
from tests.unit.storage_read.test_encoding import word_tokenizer
from tests.unit.storage_read.web_servers import Site, dripping, serving

T, P, A, F = InputFormat.TEXT, InputFormat.PARQUET, InputFormat.NPY, InputFormat.FILES
LINES = [f"line {i}" for i in range(1000)]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(ranged, "FIRST_PAUSE_SECONDS", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as site:
        site.files["/data.txt"] = "\n".join(LINES).encode()
        yield site


def texts(uri: str) -> list[str]:
    data_set = open_data_set(InputRef(uri, T))
    try:
        return list(data_set.read(0, data_set.items, ["text"]).columns["text"])
    finally:
        data_set.close()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("marks", [True, False])
def test_a_file_is_read_whether_the_server_knows_ranges_or_not(site: Site, ranges: bool, marks: bool) -> None:
    site.ranges, site.marks = ranges, marks
    assert texts(f"{site.url}/data.txt") == LINES
    assert len(site.requests) == (2 if ranges else 1)


def test_formats_with_their_facts_at_the_end_are_read_by_ranges(site: Site) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": np.arange(2_000_000)}), sink, row_group_size=100_000, compression="none")
    site.files["/x.parquet"] = sink.getvalue()
    data_set = open_data_set(InputRef(f"{site.url}/x.parquet", P))
    assert list(data_set.read(1_999_998, 2_000_000, ["x"]).columns["x"]) == [1_999_998, 1_999_999]
    data_set.close()
    assert all(wanted for _, wanted in site.requests)
    assert len(site.requests) < 8


def test_neighbouring_shards_share_a_request(site: Site) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(1_000_000))
    site.files["/x.npy"] = buffer.getvalue()
    data_set = open_data_set(InputRef(f"{site.url}/x.npy", A))
    for start in range(0, 1_000_000, 10_000):
        assert data_set.read(start, start + 10_000, ["data"]).columns["data"][0] == start
    data_set.close()
    assert len(site.requests) == 1 + 4  # 8 MB in blocks of 2 MiB, the header among them


@pytest.mark.parametrize("ranges", [True, False])
def test_an_empty_file_is_empty(site: Site, ranges: bool) -> None:
    site.ranges = ranges
    site.files["/empty"] = b""
    assert texts(f"{site.url}/empty") == []


def test_names_with_queries_redirects_and_passwords(site: Site) -> None:
    site.redirects["/moved"] = f"{site.url}/data.txt?token=1"
    assert texts(f"{site.url}/moved") == LINES
    site.secret = "Basic bWU6cCBx"
    assert texts(f"{site.url.replace('//', '//me:p%20q@')}/data.txt?a=*") == LINES
    with pytest.raises(InvalidSpecError, match="user name and password") as refusal:
        texts(f"{site.url.replace('//', '//me:s3cret@')}/data.txt?token=s3cret")
    assert "s3cret" not in str(refusal.value)
    assert refusal.value.reason == "Unreadable"


def test_a_server_cannot_redirect_to_a_local_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    site.redirects["/moved"] = (tmp_path / "secret").as_uri()
    with pytest.raises(InvalidSpecError):
        texts(f"{site.url}/moved")


@pytest.mark.parametrize("trouble", [500, 503, 429, -1])
@pytest.mark.parametrize("ranges", [True, False])
def test_passing_trouble_is_tried_again(site: Site, trouble: int, ranges: bool) -> None:
    site.ranges = ranges
    site.refuse = [trouble, 0, trouble] if ranges else [trouble]
    assert texts(f"{site.url}/data.txt") == LINES


@pytest.mark.parametrize(
    ("trouble", "reason", "told"),
    [
        ([503] * 9, "Unreadable", "the server says 503"),
        ([403], "Unreadable", "newly signed"),
        ([], "NotFound", "no file"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(site: Site, trouble: list[int], reason: str, told: str) -> None:
    site.refuse = trouble
    with pytest.raises(InvalidSpecError, match=told) as refusal:
        texts(f"{site.url}/missing.txt")
    assert (refusal.value.reason, refusal.value.field) == (reason, "spec.input.uri")
    assert f"{site.url}/missing.txt" in str(refusal.value)


def test_a_server_that_is_not_there_is_named_with_what_to_check() -> None:
    with pytest.raises(InvalidSpecError, match=r"http://127\.0\.0\.1:1/x: .*; is the server up"):
        texts("http://127.0.0.1:1/x")


def test_a_server_that_hangs_costs_a_bounded_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SILENCE_SECONDS", 0.1)
    site.refuse = [-2] * ranged.ATTEMPTS
    begun = time.monotonic()
    with pytest.raises(InvalidSpecError, match="timed out"):
        texts(f"{site.url}/data.txt")
    assert time.monotonic() - begun < 10


def test_a_server_that_drips_is_as_good_as_dead(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "ATTEMPT_SECONDS", 0.2)
    with dripping(0.01) as uri:
        source = open_source(uri, field="spec.model.uri")
        with pytest.raises(StoreError, match=r"of 1000000 bytes came within .* \(4 attempts\)"):
            source.read_at(0, 1_000_000)
        source.close()


@pytest.mark.parametrize("marks", [True, False])
def test_a_file_that_changes_is_noticed_at_the_next_request(site: Site, marks: bool) -> None:
    site.marks = marks
    source = open_source(f"{site.url}/data.txt", field="x")
    site.files["/data.txt"] += b"\nmore"
    with pytest.raises(InputChangedError, match=r"data\.txt changed while a job reads it: its (ETag|size) went from"):
        source.read_at(0, 10)
    source.close()


def test_a_file_that_is_gone_for_a_while_may_come_back(site: Site) -> None:
    source = open_source(f"{site.url}/data.txt", field="x")
    content = site.files.pop("/data.txt")
    with pytest.raises(StoreError, match="the server says 404") as away:
        source.read_at(0, 10)
    assert not isinstance(away.value, InputChangedError)
    site.files["/data.txt"] = content
    assert source.read_at(0, 10) == content[:10]
    source.close()


@pytest.mark.parametrize("ranges", [True, False])
def test_the_fingerprint_is_stable_until_the_content_changes(site: Site, ranges: bool) -> None:
    site.ranges = ranges

    def fingerprint() -> str:
        source = open_source(f"{site.url}/data.txt", field="x")
        source.close()
        return source.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    site.files["/data.txt"] = site.files["/data.txt"].swapcase()
    assert fingerprint() != first


def test_a_server_that_loses_its_ranges_does_not_fill_the_memory(site: Site) -> None:
    source = open_source(f"{site.url}/data.txt", field="x")
    site.ranges = False
    with pytest.raises(StoreError):
        source.read_at(0, 10)
    source.close()


def test_folders_are_refused_with_the_remedy_and_files_may_be_listed(site: Site) -> None:
    site.files["/other.txt"] = b"other"
    data_set = open_data_set(InputRef("", T, uris=(f"{site.url}/data.txt", f"{site.url}/other.txt")))
    assert data_set.items == len(LINES) + 1
    data_set.close()
    site.files |= {"/folder/": b"<html>", "/*.txt": b"<html>"}
    for uri in (f"{site.url}/folder/", f"{site.url}/*.txt"):
        for file_format in (T, F):
            with pytest.raises(InvalidSpecError, match="name each file in uris"):
                open_data_set(InputRef(uri, file_format))


def test_files_of_a_server_are_items(site: Site) -> None:
    site.files |= {"/a%20b.png": b"a", "/c.png": b"cc"}
    data_set = open_data_set(InputRef("", F, uris=(f"{site.url}/a%20b.png", f"{site.url}/c.png")))
    rows = data_set.read(0, 2, ["path", "size", "bytes"])
    assert (rows.columns["path"], rows.columns["bytes"]) == (["a b.png", "c.png"], [b"a", b"cc"])
    assert rows.columns["size"].tolist() == [1, 2]
    site.files["/c.png"] = b"ccc"
    with pytest.raises(InputChangedError, match=r"c\.png changed"):
        data_set.read(0, 2, ["bytes"])
    data_set.close()


@pytest.mark.parametrize("ranges", [True, False])
def test_models_and_tokenizers_are_fetched_too(site: Site, tmp_path: Path, ranges: bool) -> None:
    site.ranges = ranges
    digest = ModelDigest(write_affine_model(tmp_path / "model.onnx"))
    site.files["/model.onnx"] = (tmp_path / "model.onnx").read_bytes()
    site.files["/tokenizer.json"] = word_tokenizer("one", "two").encode()
    stored = ModelStore(tmp_path / "store").ensure(ModelRef(f"{site.url}/model.onnx", digest))
    assert hashlib.sha256(stored.path.read_bytes()).hexdigest() == digest
    tokenizer = TextTokenizer(TokenizerRef(f"{site.url}/tokenizer.json", "t", 8))
    assert tokenizer.encode(["two one"])[0].tolist() == [1, 0]
