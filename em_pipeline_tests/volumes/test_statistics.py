import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from em_pipeline.volumes.statistics import SUMMARY_FIELDS, Summary, bin_edges, combine, measure
from em_pipeline_tests.volumes.written import DTYPES, random_voxels

EXACT = ("uint8", "int8", "uint16", "int16")


def rows(*parts: Summary) -> NDArray[Any]:
    return np.array([astuple(part) for part in parts], list(SUMMARY_FIELDS))


@pytest.mark.parametrize("dtype", EXACT)
@given(data=st.data())
def test_narrow_integers_are_measured_exactly(dtype: str, data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(dtype, st.integers(1, 300)))
    found, counts = measure(values)
    assert (found.count, found.nonfinite) == (values.size, 0)
    assert (found.min, found.max) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-12, abs=1e-12)
    assert found.std == pytest.approx(values.std(dtype=np.float64), rel=1e-9, abs=1e-9)
    for q, value in ((0.01, found.p01), (0.99, found.p99)):
        assert value == np.quantile(values, q, method="inverted_cdf")
    assert counts.sum() == values.size
    assert (np.flatnonzero(counts) + np.iinfo(dtype).min == np.unique(values)).all()


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in EXACT])
def test_wide_types_are_measured_to_a_bin(dtype: str) -> None:
    values = random_voxels((16, 16, 16), dtype)
    found, counts = measure(values)
    assert (found.min, found.max) == (float(values.min()), float(values.max()))
    assert found.mean == pytest.approx(values.mean(dtype=np.float64))
    assert found.std == pytest.approx(values.std(dtype=np.float64))
    spread = found.max - found.min
    for q, value in ((0.01, found.p01), (0.99, found.p99)):
        assert value == pytest.approx(float(np.quantile(values, q)), abs=spread / 64)
    assert counts.sum() == values.size


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_lies_in_the_bin_that_counts_it(dtype: str) -> None:
    edges = bin_edges(np.dtype(dtype))
    assert (np.diff(edges) >= 0).all()
    for value in random_voxels((3, 4, 5), dtype).ravel():
        _, counts = measure(np.array([value]))
        (index,) = np.flatnonzero(counts)
        # A wider value is binned by its float32, which may round it up to the edge.
        assert edges[index] <= np.float32(value) <= edges[index + 1]


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 500), max_size=4))
def test_chunks_combine_to_the_whole_in_any_order(dtype: str, seed: int, cuts: list[int]) -> None:
    values = random_voxels((5, 10, 10), dtype, seed).ravel()
    pieces = [piece for piece in np.split(values, sorted(cuts)) if piece.size]
    measured = [measure(piece) for piece in pieces]
    counts = sum((c for _, c in measured), start=np.zeros_like(measured[0][1]))
    whole, whole_counts = measure(values)
    forward = combine(rows(*(s for s, _ in measured)), counts, values.dtype)
    backward = combine(rows(*(s for s, _ in reversed(measured))), counts, values.dtype)
    assert astuple(forward)[:8] == astuple(backward)[:8]
    assert astuple(forward)[:8] == pytest.approx(astuple(whole))
    np.testing.assert_array_equal(forward.histogram, whole_counts)


def test_what_is_not_finite_is_counted_apart() -> None:
    found, counts = measure(np.array([1, np.nan, 3, np.inf, -np.inf], np.float32))
    assert (found.count, found.nonfinite, found.min, found.max, found.mean) == (2, 3, 1, 3, 2)
    assert counts.sum() == 2


def test_without_a_finite_value_there_are_no_numbers() -> None:
    nothing, counts = measure(np.full(4, np.nan, np.float32))
    assert (nothing.count, nothing.nonfinite) == (0, 4)
    assert math.isnan(nothing.min)
    volume = combine(rows(nothing, nothing), counts, np.dtype(np.float32))
    assert (volume.count, volume.nonfinite) == (0, 8)
    assert math.isnan(volume.p99)


def test_both_zeros_share_a_bin() -> None:
    _, counts = measure(np.array([0.0, -0.0], np.float32))
    assert counts.max() == 2


def test_sums_of_a_large_volume_do_not_overflow() -> None:
    _, counts = measure(np.array([65534, 65535], np.uint16))
    many = combine(rows(), counts * 10**15, np.dtype(np.uint16))
    assert many.mean == 65534.5
    assert many.std == 0.5
