"""Laws of CSV: what is written is read back, and neither blocks nor cuts nor parsers change what is read."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pocketgrid.model.job import CsvOptions, InputFormat, InputRef
from pocketgrid.storage.datasets import DataSet, open_data_set
from pocketgrid.storage.datasets import csv as csv_reading
from tests.property.test_datasets import check_cuts


@contextmanager
def opened(content: str, block: int, patch: pytest.MonkeyPatch, columns: tuple[str, ...] = ()) -> Iterator[DataSet]:
    """A data set of `content`, scanned in blocks of so many bytes; its column n holds numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        path.write_bytes(content.encode())
        patch.setattr("pocketgrid.storage.locations.BLOCK_BYTES", block)
        types = {"n": "float64"} if columns else {}
        data_set = open_data_set(InputRef(str(path), InputFormat.CSV, csv=CsvOptions(columns=columns)), types=types)
        try:
            yield data_set
        finally:
            data_set.close()


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.text(st.sampled_from('ab",;\n\r \u00fc'), max_size=5), min_size=2, max_size=2), max_size=20
    ),
    repeat=st.integers(1, 60),
    block=st.integers(3, 200),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_pythons_csv_writes_is_read_back(
    rows: list[list[str]], repeat: int, block: int, quoting: int, end: str
) -> None:
    # Python leaves a carriage return without quotes, and at the end of a row it is part of the line end.
    assume(quoting == csv.QUOTE_ALL or not any("\r" in cell for row in rows for cell in row))
    rows = rows * repeat
    buffer = io.StringIO()
    csv.writer(buffer, quoting=quoting, lineterminator=end).writerows([["n", "t"], *rows])
    with pytest.MonkeyPatch.context() as patch, opened(buffer.getvalue(), block, patch) as data_set:
        assert data_set.items == len(rows)
        for names in (["n", "t"], ["t"]):
            found = data_set.read(0, data_set.items, names)
            assert not found.failures
            assert [found.columns[name] for name in names] == [
                [row[["n", "t"].index(name)] for row in rows] for name in names
            ]


@settings(max_examples=150, deadline=None)
@given(
    content=st.text(st.sampled_from('a1.5,"\n\r x'), max_size=60),
    repeat=st.integers(1, 30),
    block=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 10**6), max_size=4),
)
def test_any_bytes_are_the_same_rows_however_they_are_read(
    content: str, repeat: int, block: int, cuts: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch, opened(content * repeat, block, patch, ("n", "t")) as data_set:
        names = ["n", "t"]
        patch.setattr(csv_reading, "_SMALLEST_ARROW_BLOCK", 0)
        quick = data_set.read(0, data_set.items, names)
        check_cuts(data_set, cuts)
        patch.setattr(csv_reading, "_SMALLEST_ARROW_BLOCK", 1 << 40)
        slow = data_set.read(0, data_set.items, names)
        check_cuts(data_set, cuts)
        assert quick.failures == slow.failures
        failed = {failure.row for failure in slow.failures}
        for row in set(range(slow.count)) - failed:
            assert [repr(quick.columns[n][row]) for n in names] == [repr(slow.columns[n][row]) for n in names]
