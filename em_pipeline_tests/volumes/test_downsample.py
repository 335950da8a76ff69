from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from em_pipeline.volumes.downsample import mean_2x, mode_2x
from em_pipeline_tests.volumes.written import DTYPES, reference_mean, reference_mode

FACTORS = st.sampled_from(list(product((1, 2), repeat=3)))
SHAPES = st.tuples(*[st.integers(1, 5)] * 3)


def integers(dtype: str) -> st.SearchStrategy[Any]:
    """The ends of the range come up often: that is where sums overflow."""
    info = np.iinfo(dtype)
    ends = st.sampled_from([info.min, info.min + 1, 0, 1, info.max - 1, info.max])
    return ends | st.integers(int(info.min), int(info.max))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if "int" in d])
@given(data=st.data(), shape=SHAPES, factors=FACTORS)
def test_integer_means_are_exact(dtype: str, data: st.DataObject, shape: Any, factors: Any) -> None:
    block = data.draw(hnp.arrays(dtype, shape, elements=integers(dtype)))
    mean = mean_2x(block, factors)
    assert mean.dtype == block.dtype
    np.testing.assert_array_equal(mean, reference_mean(block, factors))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(data=st.data(), shape=SHAPES, factors=FACTORS)
def test_float_means_are_those_of_float64(dtype: str, data: st.DataObject, shape: Any, factors: Any) -> None:
    elements = st.floats(-1000, 1000, width=16)
    block = data.draw(hnp.arrays(dtype, shape, elements=elements))
    mean = mean_2x(block, factors)
    assert mean.dtype == block.dtype
    np.testing.assert_allclose(mean, reference_mean(block, factors), rtol=1e-12)


@given(data=st.data(), shape=SHAPES, factors=FACTORS)
def test_modes_are_the_most_frequent_label(data: st.DataObject, shape: Any, factors: Any) -> None:
    block = data.draw(hnp.arrays("uint64", shape, elements=st.sampled_from([0, 1, 2, 2**64 - 1])))
    np.testing.assert_array_equal(mode_2x(block, factors), reference_mode(block, factors))


def test_halves_round_up_on_both_sides_of_zero() -> None:
    assert mean_2x(np.array([[[1, 2]]], np.int8), (1, 1, 2)).item() == 2
    assert mean_2x(np.array([[[-1, -2]]], np.int8), (1, 1, 2)).item() == -1


def test_ties_go_to_the_smallest_label() -> None:
    assert mode_2x(np.array([[[7, 3]]], np.uint16), (1, 1, 2)).item() == 3


def test_large_floats_do_not_overflow_and_nan_stays_in_its_cell() -> None:
    top = np.finfo(np.float32).max
    assert mean_2x(np.full((2, 2, 2), top, np.float32), (2, 2, 2)).item() == top
    block = np.ones((1, 1, 4), np.float32)
    block[0, 0, 0] = np.nan
    mean = mean_2x(block, (1, 1, 2))
    assert np.isnan(mean[0, 0, 0])
    assert mean[0, 0, 1] == 1


def test_a_sum_beyond_float64_makes_its_cell_infinite_without_a_warning() -> None:
    top = np.finfo(np.float64).max
    assert mean_2x(np.array([[[-top, -top]]]), (1, 1, 2)).item() == -np.inf
    assert mean_2x(np.array([[[top, -top]]]), (1, 1, 2)).item() == 0


def test_infinities_of_both_signs_make_nan_without_a_warning() -> None:
    assert np.isnan(mean_2x(np.array([[[np.inf, -np.inf]]], np.float32), (1, 1, 2))).all()
