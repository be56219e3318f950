"""Files a manifest points at, damaged anyhow: an error that names the field, or rows and failures; nothing else."""

import csv
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef, TokenizerRef
from pocketgrid.storage.datasets import open_data_set
from pocketgrid.storage.datasets.base import OTHER
from pocketgrid.storage.feeding import TokenFeed
from pocketgrid.storage.onnxgraph import inspect_model
from pocketgrid.storage.reasons import ItemReason
from pocketgrid.storage.tokenizing import TextTokenizer
from tests.fakes.models import write_affine_model
from tests.fuzz.profiles import examples
from tests.fuzz.protobufs import damaged

TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 0, "content": "[PAD]", "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True}],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[PAD]": 0, "a": 1, "b": 2, "[UNK]": 3}, "unk_token": "[UNK]"},
}  # fmt: skip

ROWS = [{"x": [1.0, 2.0], "key": "k0"}, {"x": [3.0, 4.0], "key": "k1"}, {"x": [5.0, 6.0], "key": "k2"}]


def _csv() -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([["x", "key"], [1.5, "k0"], [2.5, 'k "1"'], [3.5, "k\n2"]])
    return text.getvalue().encode()


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1.0, 2.0, 3.0], "key": ["a", "b", "c"]}), sink)
    return sink.getvalue()


def _npy() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.arange(12, dtype=np.float32).reshape(4, 3))
    return sink.getvalue()


def _npz() -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, x=np.arange(8, dtype=np.float32).reshape(4, 2), y=np.arange(4))
    return sink.getvalue()


def _npy_with_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


FILES: dict[InputFormat, tuple[Callable[[], bytes], str]] = {
    InputFormat.JSONL: (lambda: "\n".join(map(json.dumps, ROWS)).encode(), "x"),
    InputFormat.CSV: (_csv, "x"),
    InputFormat.TEXT: ("one\ntwo\nthree ünï\n".encode, "text"),
    InputFormat.PARQUET: (_parquet, "x"),
    InputFormat.NPY: (_npy, "data"),
    InputFormat.NPZ: (_npz, "x"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def _read_all(path: Path, kind: InputFormat, column: str) -> int:
    ref = InputRef(path.as_uri(), kind, columns=(ColumnBinding(column, "input"),))
    data_set = open_data_set(ref, types={column: "float64"} if kind is InputFormat.CSV else None)
    try:
        known = [c.name for c in data_set.columns if c.dtype != OTHER]
        assert data_set.items >= 0
        stop = min(data_set.items, 10)
        rows = data_set.read(0, stop, [c for c in (column, "key") if c in known])
        assert rows.count == stop
        return stop
    finally:
        data_set.close()


def _survives(action: Callable[[], Any]) -> None:
    complaint: Exception | None = None
    try:
        action()
    except (InvalidSpecError, StoreError) as error:
        complaint = error
    assert complaint is None or len(str(complaint)) < 4000


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.value)
def test_damaged_data_is_rows_or_an_error(folder: Path, kind: InputFormat) -> None:
    make, column = FILES[kind]
    whole = make()
    path = folder / f"data.{kind.value.lower()}"
    path.write_bytes(whole)
    assert _read_all(path, kind, column) >= 3, "undamaged, it is read"

    @examples(60)
    @given(damaged(st.just(whole)))
    def survive(data: bytes) -> None:
        path.write_bytes(data)
        _survives(lambda: _read_all(path, kind, column))

    survive()


def test_a_text_in_parquet_that_is_no_text_fails_alone(folder: Path) -> None:
    sink = io.BytesIO()
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a b", b"\x80", b"b"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": texts}), sink, use_dictionary=False)
    path = folder / "bad.parquet"
    path.write_bytes(sink.getvalue())
    (folder / "good-tokenizer.json").write_text(json.dumps(TOKENIZER))
    tokenizer = TextTokenizer(TokenizerRef((folder / "good-tokenizer.json").as_uri(), "text", 8))
    data_set = open_data_set(InputRef(path.as_uri(), InputFormat.PARQUET))
    rows = data_set.read(0, 3, ["text"])
    (_, lengths), faults = TokenFeed("text", tokenizer).prepare(rows.columns["text"], 3)
    data_set.close()
    assert {row: reason for row, (reason, _) in faults.items()} == {1: ItemReason.INVALID_TEXT}
    assert lengths.tolist() == [2, 0, 1]


HEADERS = [
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 0), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 3, }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
    "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<U99999999', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': __import__('os'), 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 40 + "), }",
    "[" * 3000,
    "(" * 90 + ")" * 90,
    "9" * 5000,
    "",
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda h: h[:60].replace("/", ""))
def test_headers_of_arrays_that_cannot_be(folder: Path, header: str) -> None:
    path = folder / "header.npy"
    path.write_bytes(_npy_with_header(header, bytes(64)))
    _survives(lambda: _read_all(path, InputFormat.NPY, "data"))


def test_a_pickle_in_an_array_is_never_read(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "evil"),)

    path = folder / "pickled.npy"
    np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)
    _survives(lambda: _read_all(path, InputFormat.NPY, "data"))
    assert not (folder / "evil").exists()


@pytest.mark.parametrize("number", [99, -5, 2**31 - 1])
@pytest.mark.parametrize("port", ["input", "output"])
def test_types_no_version_of_onnx_knows(folder: Path, port: str, number: int) -> None:
    path = folder / "types.onnx"
    write_affine_model(path)
    model = onnx.load(path)
    getattr(model.graph, port)[0].type.tensor_type.elem_type = number
    path.write_bytes(model.SerializeToString())
    complaint = ""
    try:
        complaint = str(inspect_model(path).unusable_outputs)
    except InvalidSpecError as error:
        complaint = str(error)
    assert f"elements of type {number}" in complaint


def test_a_name_that_is_no_text(folder: Path) -> None:
    path = folder / "names.onnx"
    write_affine_model(path)
    path.write_bytes(path.read_bytes().replace(b"\x0a\x01x", b"\x0a\x01\xff"))
    with pytest.raises(InvalidSpecError, match="a name in its graph is not text"):
        inspect_model(path)


def test_damaged_models_are_known_or_refused(folder: Path) -> None:
    path = folder / "model.onnx"
    write_affine_model(path)
    whole = path.read_bytes()
    inspect_model(path)

    @examples(250)
    @given(damaged(st.just(whole)))
    def survive(data: bytes) -> None:
        path.write_bytes(data)
        _survives(lambda: inspect_model(path))

    survive()


def test_damaged_tokenizers_are_usable_or_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    whole = json.dumps(TOKENIZER).encode()

    def use() -> None:
        ids, lengths = TextTokenizer(TokenizerRef(path.as_uri(), "text", 8)).encode(["a b", "", "ü" * 50])
        assert len(ids) == lengths.sum()

    path.write_bytes(whole)
    use()

    @examples(150)
    @given(damaged(st.just(whole)))
    def survive(data: bytes) -> None:
        path.write_bytes(data)
        _survives(use)

    survive()
