"""Narrowing saves bytes and changes no bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pocketgrid.model.tensors import TensorData
from pocketgrid.storage.narrowing import PROBE, narrow, narrow_tensor

DTYPES = ["float32", "float64", "int32", "int64", "uint8", "bool", "float16", "uint32"]
shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=40)


@given(st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, shapes)))
def test_any_values_come_back_bit_by_bit(values: np.ndarray) -> None:
    narrowed = narrow(values)
    assert narrowed.nbytes <= values.nbytes
    assert narrowed.shape == values.shape
    assert narrowed.astype(values.dtype).tobytes() == values.tobytes()


@given(st.sampled_from(["float32", "float64", "int32", "int64"]), hnp.arrays("uint8", shapes))
def test_bytes_in_disguise_travel_as_bytes(dtype: str, values: np.ndarray) -> None:
    assert narrow(values.astype(dtype)).dtype == (np.uint8 if values.size else np.dtype(dtype))


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        pytest.param(0.5, np.float32, id="a fraction"),
        pytest.param(-0.0, np.float32, id="minus zero"),
        pytest.param(np.nan, np.float32, id="not a number"),
        pytest.param(np.inf, np.float32, id="infinity"),
        pytest.param(1e9, np.int32, id="a large whole number"),
        pytest.param(256.0, np.int16, id="one more than a byte"),
        pytest.param(-1.0, np.int16, id="a negative number"),
        pytest.param(255.0, np.uint8, id="the largest byte"),
    ],
)
def test_a_value_behind_the_probe_counts_too(late: float, expected: type) -> None:
    values = np.zeros(4 * PROBE, np.float32)
    values[-1] = late
    narrowed = narrow(values)
    assert narrowed.dtype == expected or (expected is np.int32 and narrowed.dtype == np.float32)
    assert narrowed.astype(np.float32).tobytes() == values.tobytes()


def test_a_tensor_on_its_way_to_a_device_is_narrowed_and_a_ragged_one_is_not() -> None:
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4)
    dense = TensorData("float32", (3, 4), pixels.tobytes())
    narrowed = narrow_tensor(dense)
    assert (narrowed.dtype, narrowed.shape, narrowed.problem()) == ("uint8", (3, 4), None)
    assert narrowed.data == pixels.astype(np.uint8).tobytes()
    ids = TensorData("int32", (3,), np.arange(3, dtype=np.int32).tobytes(), (1, 2))
    assert narrow_tensor(ids) is ids
