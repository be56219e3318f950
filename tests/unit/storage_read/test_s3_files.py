"""S3, against moto's server on loopback: single objects, listings, credentials, change, and trouble."""

from __future__ import annotations

import gzip
import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketgrid.errors import InputChangedError, InvalidSpecError, StoreError
from pocketgrid.model.ids import ModelDigest
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef, ModelRef, TokenizerRef
from pocketgrid.model.tensors import ModelSignature, TensorSpec
from pocketgrid.storage.datasets import open_data_set
from pocketgrid.storage.encoding import open_encoder
from pocketgrid.storage.locations import open_source
from pocketgrid.storage.modelstore import ModelStore
from pocketgrid.storage.places import ranged, s3
from pocketgrid.storage.tokenizing import TextTokenizer
from tests.fakes.models import write_affine_model
from tests.unit.storage_read.test_encoding import word_tokenizer

T, J, P, F = InputFormat.TEXT, InputFormat.JSONL, InputFormat.PARQUET, InputFormat.FILES


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client of an empty bucket, with the environment that an operator would have."""
    for name in ("http_proxy", "HTTP_PROXY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-north-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranged, "FIRST_PAUSE_SECONDS", 0.01)
    client = s3._make_client()
    client.create_bucket(Bucket="data", CreateBucketConfiguration={"LocationConstraint": "eu-north-1"})
    yield client
    for entry in client.list_objects_v2(Bucket="data").get("Contents", ()):
        client.delete_object(Bucket="data", Key=entry["Key"])
    client.delete_bucket(Bucket="data")
    client.close()


def put(client: Any, **objects: bytes) -> None:
    for key, content in objects.items():
        client.put_object(Bucket="data", Key=key.replace("__", "/").replace("_DOT_", "."), Body=content)


def texts(*uris: str) -> list[str]:
    data_set = open_data_set(InputRef("", T, uris=uris))
    try:
        return list(data_set.read(0, data_set.items, ["text"]).columns["text"])
    finally:
        data_set.close()


def test_objects_folders_and_globs(bucket: Any) -> None:
    put(bucket, b_DOT_txt=b"b", a_DOT_txt=b"a", sub__c_DOT_txt=b"c", sub___log=b"x", sub__empty__=b"")
    assert texts("s3://data/b.txt") == ["b"]
    assert texts("s3://data/") == ["a", "b", "c"]
    assert texts("s3://data/sub/") == ["c"]
    assert texts("s3://data/*.txt") == ["a", "b"]
    assert texts("s3://data/**/*.txt", "s3://data/sub/_log") == ["a", "b", "c", "x"]
    for uri in ("s3://data/nothing/", "s3://data/*.csv", "s3://data/c.txt", "s3://nobody/x"):
        with pytest.raises(InvalidSpecError) as refusal:
            texts(uri)
        assert refusal.value.reason == "NotFound"
        assert uri in str(refusal.value)


def test_listings_of_several_pages_are_read_to_the_end(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(7):
        put(bucket, **{f"{index}": str(index).encode()})
    real = s3.S3Store._ask
    pages = 0

    def in_small_pages(self: Any, path: str, request: Any) -> Any:
        nonlocal pages
        if path != "data/":
            return real(self, path, request)
        pages += 1
        return real(self, path, request)

    monkeypatch.setattr(s3.S3Store, "_ask", in_small_pages)
    monkeypatch.setattr(s3, "PAGE_KEYS", 3)
    assert texts("s3://data/") == [str(i) for i in range(7)]
    assert pages == 3


def test_every_kind_of_reading(bucket: Any) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": np.arange(300_000, dtype=np.float32)}), sink, row_group_size=50_000)
    put(bucket, x_DOT_parquet=sink.getvalue(), lines_DOT_jsonl_DOT_gz=gzip.compress(b'{"x":1}\n{"x":2}\n'))
    signature = ModelSignature((TensorSpec("X", "float32", ("N",)),), (), 17, 9)
    for uri, file_format, last in (("s3://data/x.parquet", P, 299_999), ("s3://data/lines.jsonl.gz", J, 2)):
        encoder = open_encoder(InputRef(uri, file_format, columns=(ColumnBinding("x", "X"),)), signature)
        shard = encoder.encode(encoder.items - 1, encoder.items)
        assert np.frombuffer(shard.inputs[0].data, np.float32).tolist() == [last]
        encoder.close()


def test_objects_are_items(bucket: Any) -> None:
    put(bucket, pics__a_DOT_png=b"a", pics__b_DOT_png=b"bb", pics___c=b"")
    data_set = open_data_set(InputRef("s3://data/pics/", F))
    rows = data_set.read(0, data_set.items, ["path", "size", "bytes"])
    assert rows.columns["path"] == ["_c", "a.png", "b.png"]
    assert rows.columns["bytes"] == [b"", b"a", b"bb"]
    put(bucket, pics__a_DOT_png=b"A")
    with pytest.raises(InputChangedError, match=r"s3://data/pics/a\.png changed .* entity tag"):
        data_set.read(0, 3, ["bytes"])
    data_set.close()


def test_an_object_that_is_denied_fails_alone(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, a=b"a", b=b"b")
    data_set = open_data_set(InputRef("s3://data/", F))
    from botocore.exceptions import ClientError

    real = data_set._stores[0]._client.get_object  # type: ignore[attr-defined]

    def deny(**asked: Any) -> Any:
        if asked["Key"] == "a":
            raise ClientError(
                {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "GetObject"
            )
        return real(**asked)

    monkeypatch.setattr(data_set._stores[0]._client, "get_object", deny)  # type: ignore[attr-defined]
    rows = data_set.read(0, 2, ["bytes"])
    assert [(f.row, f.reason) for f in rows.failures] == [(0, "UnreadableFile")]
    assert "AccessDenied; check AWS_ACCESS_KEY_ID" in rows.failures[0].message
    assert rows.columns["bytes"][1] == b"b"
    data_set.close()


def test_an_object_that_changes_is_noticed_and_one_that_is_gone_may_come_back(bucket: Any) -> None:
    put(bucket, a=b"one\ntwo\n")
    source = open_source("s3://data/a", field="x")
    bucket.delete_object(Bucket="data", Key="a")
    with pytest.raises(StoreError, match="s3://data/a") as away:
        source.read_at(0, 3)
    assert not isinstance(away.value, InputChangedError)
    put(bucket, a=b"one\ntwo\n")
    assert source.read_at(0, 3) == b"one"
    source.close()
    source = open_source("s3://data/a", field="x")
    put(bucket, a=b"two\none\n")
    with pytest.raises(InputChangedError, match="s3://data/a changed while a job reads it"):
        source.read_at(0, 3)
    source.close()


def test_without_credentials_the_remedy_is_said(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, a=b"a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        InvalidSpecError, match=r"s3://data/a: there are no complete credentials; set AWS_ACCESS_KEY_ID"
    ) as e:
        texts("s3://data/a")
    assert (e.value.reason, e.value.field) == ("Unreadable", "spec.input.uris[0]")


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://data"])
def test_a_uri_without_bucket_and_key_is_refused(bucket: Any, uri: str) -> None:
    with pytest.raises(InvalidSpecError, match=r"write s3://bucket/key"):
        texts(uri)


def test_a_store_that_is_down_or_hangs_costs_a_bounded_time(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(s3, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for endpoint in (f"http://127.0.0.1:{silent.getsockname()[1]}", "http://127.0.0.1:1"):
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            begun = time.monotonic()
            with pytest.raises(InvalidSpecError, match=r"is AWS_ENDPOINT_URL right, and the store up\? \(4 attempts\)"):
                texts("s3://data/a")
            assert time.monotonic() - begun < 10


def test_the_fingerprint_follows_the_entity_tag(bucket: Any) -> None:
    def fingerprint() -> str:
        source = open_source("s3://data/a", field="x")
        source.close()
        return source.fingerprint

    put(bucket, a=b"one")
    first = fingerprint()
    put(bucket, a=b"one")
    assert fingerprint() == first
    put(bucket, a=b"two")
    assert fingerprint() != first


def test_models_and_tokenizers_are_fetched_too(bucket: Any, tmp_path: Path) -> None:
    digest = ModelDigest(write_affine_model(tmp_path / "model.onnx"))
    put(bucket, model=(tmp_path / "model.onnx").read_bytes(), tokenizer=word_tokenizer("one", "two").encode())
    stored = ModelStore(tmp_path / "store").ensure(ModelRef("s3://data/model", digest))
    assert stored.sha256 == digest
    tokenizer = TextTokenizer(TokenizerRef("s3://data/tokenizer", "t", 8))
    assert tokenizer.encode(["two one"])[0].tolist() == [1, 0]
