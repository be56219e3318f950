"""A shard's rows are those that were sent, those that failed and those that could not be read: each exactly once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.engine.merging import drop_rows, merge_failures
from pocketgrid.model.job import ItemFailure
from pocketgrid.model.tensors import TensorData


@st.composite
def shards(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """Rows of a shard; those that could not be read; those of the sent that failed, in any order."""
    rows = draw(st.integers(0, 20))
    unread = sorted(draw(st.sets(st.integers(0, rows - 1)))) if rows else []
    sent = rows - len(unread)
    failed = draw(st.permutations(sorted(draw(st.sets(st.integers(0, sent - 1)))))) if sent else []
    return rows, unread, list(failed)


@given(shards())
def test_every_failure_is_found_at_its_own_row(shard: tuple[int, list[int], list[int]]) -> None:
    rows, unread, failed = shard
    merged = merge_failures(
        [ItemFailure(row, "Unread") for row in unread], [ItemFailure(row, "Failed", str(row)) for row in failed], rows
    )
    assert [f.row for f in merged] == sorted({f.row for f in merged})
    assert [f.row for f in merged if f.reason == "Unread"] == unread
    good = [row for row in range(rows) if row not in unread]
    assert {f.row: f.message for f in merged if f.reason == "Failed"} == {good[row]: str(row) for row in failed}


@given(shards(), st.sampled_from(["int32", "uint8", "float64"]), st.lists(st.integers(0, 3), max_size=2))
def test_what_is_left_are_the_other_rows(shard, dtype: str, item_shape: list[int]) -> None:
    rows, _, failed = shard
    gone = [row for row in failed if row < rows]
    values = np.arange(rows * int(np.prod(item_shape, dtype=int))).astype(dtype).reshape(rows, *item_shape)
    left = drop_rows(TensorData(dtype, values.shape, values.tobytes()), gone)
    assert left.problem() is None
    assert left.row_lengths is None
    expected = np.delete(values, gone, axis=0)
    assert left.shape == expected.shape
    assert left.data == expected.tobytes()


@given(st.lists(st.integers(0, 4), max_size=12), st.sets(st.integers(0, 11)))
def test_ragged_rows_are_cut_out_whole(lengths: list[int], failed: set[int]) -> None:
    gone = sorted(row for row in failed if row < len(lengths))
    values = np.arange(sum(lengths) * 2, dtype=np.int16).reshape(-1, 2)
    left = drop_rows(TensorData("int16", values.shape, values.tobytes(), tuple(lengths)), gone)
    assert left.problem() is None
    parts = np.split(values, np.cumsum(lengths)[:-1]) if lengths else []
    kept = [part.tobytes() for row, part in enumerate(parts) if row not in gone]
    assert left.data == b"".join(kept)
    assert left.row_lengths == tuple(n for row, n in enumerate(lengths) if row not in gone)
