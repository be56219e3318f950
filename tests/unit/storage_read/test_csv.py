"""CSV: where records end, what cells mean, and which rows fail alone."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import ColumnBinding, CsvOptions, InputFormat, InputRef, TokenizerRef
from pocketgrid.model.tensors import ModelSignature, TensorSpec
from pocketgrid.storage.datasets import open_data_set, records
from pocketgrid.storage.datasets.base import DataSet
from pocketgrid.storage.datasets.lines import STRIDE
from pocketgrid.storage.encoding import open_encoder
from tests.unit.storage_read.test_encoding import all_of, columns, model, word_tokenizer


def opened(path: Path, content: str | bytes, types: dict[str, str] | None = None, **options: Any) -> DataSet:
    (path / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    ref = InputRef(str(path / "data.csv"), InputFormat.CSV, csv=CsvOptions(**options))
    return open_data_set(ref, types=types)


def read(data_set: DataSet, *names: str) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """Values of good rows, and why the others failed; however the rows are cut."""
    wanted = list(names) or [column.name for column in data_set.columns]
    rows = data_set.read(0, data_set.items, wanted)
    failed = {failure.row: failure.reason for failure in rows.failures}
    for row in range(data_set.items):
        alone = data_set.read(row, row + 1, wanted)
        assert [f.reason for f in alone.failures] == ([failed[row]] if row in failed else [])
        assert all(f"row {row}: " in f.message for f in alone.failures)
        if row not in failed:
            for name in wanted:
                assert repr(alone.columns[name][0]) == repr(rows.columns[name][row])
    data_set.close()
    good = [row for row in range(rows.count) if row not in failed]
    return {name: [rows.columns[name][row] for row in good] for name in wanted}, failed


# ---- records and cells ----


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param("a,b\n1,2\n3,4\n", {"a": ["1", "3"], "b": ["2", "4"]}, id="plain"),
        pytest.param("a,b\r\n1,2\r\n3,4", {"a": ["1", "3"], "b": ["2", "4"]}, id="Windows, without a last line end"),
        pytest.param("\ufeffa\n1\n", {"a": ["1"]}, id="a byte order mark"),
        pytest.param('"a","b"\n"1,5","say ""hi"""\n', {"a": ["1,5"], "b": ['say "hi"']}, id="quoted"),
        pytest.param('a,b\n"one\ntwo","x\r\ny"\n3,4\n', {"a": ["one\ntwo", "3"], "b": ["x\r\ny", "4"]}, id="line ends"),
        pytest.param('a,b\n5" disk,"q"\n', {"a": ['5" disk'], "b": ["q"]}, id="a quote within a cell is text"),
        pytest.param("a,b\n,\n", {"a": [""], "b": [""]}, id="empty cells"),
        pytest.param('a,b\n"",""\n', {"a": [""], "b": [""]}, id="empty quoted cells"),
        pytest.param("a,b\n1,2\n\n \n\r\n", {"a": ["1"], "b": ["2"]}, id="blank rows at the end are none"),
        pytest.param("a\n", {"a": []}, id="only a header"),
        pytest.param("", {}, id="nothing"),
        pytest.param("a b,c\n1 ,ü\n", {"a b": ["1 "], "c": ["ü"]}, id="blanks and accents are kept"),
    ],
)
def test_a_record_is_what_rfc_4180_says(tmp_path: Path, content: str, found: dict[str, list[str]]) -> None:
    assert read(opened(tmp_path, content)) == (found, {})


def test_delimiter_and_names_may_be_given(tmp_path: Path) -> None:
    assert read(opened(tmp_path, "1;a,b\n2;c\n", delimiter=";", columns=("n", "t")))[0] == {
        "n": ["1", "2"], "t": ["a,b", "c"]
    }  # fmt: skip
    assert read(opened(tmp_path, "n\tt\n1\tx\n", delimiter="\t"))[0] == {"n": ["1"], "t": ["x"]}


@pytest.mark.parametrize(
    ("row", "reason", "told"),
    [
        ("1", "WrongCellCount", "has 1 cell where there are 2 columns"),
        ("1,2,3", "WrongCellCount", "has 3 cells where there are 2 columns"),
        ("", "EmptyLine", "blank"),
        ('"1,2', "InvalidCSV", "the quote of cell 1 is never closed"),
        ('1,"2', "InvalidCSV", "the quote of cell 2 is never closed"),
        ('"1"x,2', "InvalidCSV", "cell 1 goes on after its closing quote"),
        (b"\xff,2", "InvalidText", "not UTF-8"),
        ("x,2", "InvalidNumber", "column 'a' is 'x', not a number"),
        (",2", "NullValue", "column 'a' is empty"),
        ("1e999,2", "OutOfRange", "column 'a' holds a number that float64 cannot"),
        ("1,2.5", "InvalidNumber", "column 'b' is '2.5', not a whole number"),
        ("1,0x10", "InvalidNumber", "column 'b' is '0x10', not a whole number"),
        ("1,9223372036854775808", "OutOfRange", "column 'b' holds a number that int64 cannot"),
        ("1_0,2", "InvalidNumber", "column 'a' is '1_0', not a number"),
        ("nan(1),2", "InvalidNumber", "not a number"),
    ],
)
@pytest.mark.parametrize("around", [1, 2 * STRIDE, 2000])
def test_a_bad_row_fails_alone(tmp_path: Path, row: str | bytes, reason: str, told: str, around: int) -> None:
    raw = row.encode() if isinstance(row, str) else row
    content = b"a,b\n" + b"0.5,7\n" * around + raw + b"\n" + b"0.5,7\n" * around
    data_set = opened(tmp_path, content, {"a": "float64", "b": "int64"})
    assert data_set.items == 2 * around + 1
    rows = data_set.read(0, data_set.items, ["a", "b"])
    data_set.close()
    assert [(f.row, f.reason) for f in rows.failures] == [(around, reason)]
    assert told in rows.failures[0].message
    good = np.arange(data_set.items) != around
    assert (np.asarray(rows.columns["a"])[good] == 0.5).all()
    assert (np.asarray(rows.columns["b"])[good] == 7).all()


@pytest.mark.parametrize(
    ("dtype", "cell", "value"),
    [
        ("float64", " 1.5\t", 1.5),
        ("float64", "+.5e-3", 0.0005),
        ("float64", "1.", 1.0),
        ("float64", "-Inf", -np.inf),
        ("float64", "infinity", np.inf),
        ("float64", "007", 7.0),
        ("float64", "0.1", 0.1),
        ("int64", "+5", 5),
        ("int64", "-007", -7),
        ("int64", "9223372036854775807", 2**63 - 1),
        ("uint64", "18446744073709551615", 2**64 - 1),
        ("bool", "TRUE", True),
        ("bool", "0", False),
    ],
)
def test_a_cell_becomes_what_the_model_wants(tmp_path: Path, dtype: str, cell: str, value: Any) -> None:
    data_set = opened(tmp_path, "x\n" + f"{cell}\n" * 4000, {"x": dtype})
    assert data_set.columns[0].dtype == dtype
    found = data_set.read(0, 4000, ["x"])
    data_set.close()
    assert not found.failures
    assert found.columns["x"].dtype == dtype
    assert set(np.asarray(found.columns["x"]).tolist()) == {value}


def test_not_a_number_is_a_number(tmp_path: Path) -> None:
    assert np.isnan(opened(tmp_path, "x\nNaN\n", {"x": "float64"}).read(0, 1, ["x"]).columns["x"]).all()


def test_one_forgotten_quote_does_not_swallow_the_rest_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "QUOTED_LIMIT_BYTES", 1000)
    content = 'a,b\n"x,1\n' + "y,2\n" * 1000
    found, failed = read(opened(tmp_path, content))
    assert failed == {0: "InvalidCSV"}
    assert found["b"] == ["2"] * 1000


def test_a_file_of_one_endless_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORD_LIMIT_BYTES", 5 << 20)
    with pytest.raises(InvalidSpecError, match="row 0 is longer than 5 MiB") as refusal:
        opened(tmp_path, b"x" * (9 << 20))
    assert refusal.value.reason == "WrongFormat"


def test_rows_across_blocks_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketgrid.storage.locations.BLOCK_BYTES", 100)
    rows = [[f"{i}", 'line\nline, and "more"' * (i % 5)] for i in range(300)]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["n", "t"], *rows])
    found, failed = read(opened(tmp_path, buffer.getvalue()))
    assert not failed
    assert found == {"n": [n for n, _ in rows], "t": [t for _, t in rows]}


# ---- meeting a model ----


def ref(path: Path, content: str, key: str = "", **bound: str) -> InputRef:
    (path / "data.csv").write_text(content)
    return InputRef(str(path / "data.csv"), InputFormat.CSV, key=key, columns=columns(**bound))


def test_columns_take_the_types_of_the_model(tmp_path: Path) -> None:
    content = "id,a,b,c\nk1,1.5,7,true\nk2,2,300,false\nk3,3,x,1\n,4,4,0\n"
    signature = model(A=("float32", ()), B=("uint8", (1,)), C=("bool", ()))
    encoder = open_encoder(ref(tmp_path, content, key="id", A="a", B="b", C="c"), signature)
    assert encoder.keys(0, 4).to_pylist() == ["k1", "k2", "k3", ""]
    found, failures = all_of(encoder)
    assert found == [[1.5, 4], [[7], [4]], [True, False]]
    assert failures == {1: "OutOfRange", 2: "InvalidNumber"}


def test_a_vector_cannot_come_from_one_cell(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(ref(tmp_path, "a\n1\n", A="a"), model(A=("float32", (2,))))
    assert (refusal.value.reason, refusal.value.field) == ("WrongShape", "spec.input.columns[0]")


def test_two_columns_of_one_name_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpecError, match="several columns have this name"):
        open_encoder(ref(tmp_path, "a,a\n1,2\n", A="a"), model(A=("float32", ())))


def test_a_column_that_is_not_in_the_header_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpecError, match="there are 'a', 'b'") as refusal:
        open_encoder(ref(tmp_path, "a,b\n1,2\n", A="c"), model(A=("float32", ())))
    assert refusal.value.reason == "UnknownColumn"


def test_text_is_tokenised(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(word_tokenizer("one", "two"))
    (tmp_path / "data.csv").write_text('id,t\n1,"two, one"\n2,two\n')
    tokenizer = TokenizerRef(str(tmp_path / "tokenizer.json"), "t", 8)
    encoder = open_encoder(
        InputRef(str(tmp_path / "data.csv"), InputFormat.CSV, key="id", tokenizer=tokenizer),
        model(input_ids=("int64", ("s",))),
    )
    assert encoder.encode(0, 2).inputs[0].row_lengths == (2, 1)
    assert encoder.keys(0, 2).to_pylist() == ["1", "2"]
    encoder.close()


def test_a_header_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpecError, match="names of columns: not UTF-8"):
        opened(tmp_path, b"\xff,b\n1,2\n")


def test_the_same_column_may_feed_two_inputs(tmp_path: Path) -> None:
    signature = ModelSignature(
        tuple(TensorSpec(n, t, ("N",)) for n, t in (("A", "float32"), ("B", "float64"))), (), 17, 9
    )
    bound = (ColumnBinding("a", "A"), ColumnBinding("a", "B"))
    (tmp_path / "data.csv").write_text("a\n0.5\n")
    encoder = open_encoder(InputRef(str(tmp_path / "data.csv"), InputFormat.CSV, columns=bound), signature)
    assert all_of(encoder)[0] == [[0.5], [0.5]]
