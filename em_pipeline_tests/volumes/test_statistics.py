import math
from dataclasses import astuple
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from em_pipeline.volumes.statistics import (
    SUMMARY_FIELDS,
    Summary,
    VolumeStatistics,
    bin_edges,
    combine,
    measure,
)
from em_pipeline_tests.volumes.written import DTYPES, random_voxels

EXACT = ("uint8", "int8", "uint16", "int16")
TOP = float(np.finfo(np.float64).max)


def rows(*parts: Summary) -> NDArray[Any]:
    return np.array([astuple(part) for part in parts], list(SUMMARY_FIELDS))


def in_chunks(*chunks: NDArray[Any]) -> VolumeStatistics:
    """Statistics of a volume of these chunks."""
    measured = [measure(chunk) for chunk in chunks]
    counts = np.sum([found for _, found in measured], axis=0)
    return combine(rows(*(summary for summary, _ in measured)), counts, chunks[0].dtype)


def exactly(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation by rational numbers, rounded at the end."""
    exact = [Fraction(float(value)) for value in values]
    mean = sum(exact, Fraction()) / len(exact)
    top = max(map(abs, exact)) or Fraction(1)
    variance = sum(((value - mean) / top) ** 2 for value in exact) / len(exact)
    return float(mean), float(Fraction(math.sqrt(variance)) * top)


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


@given(
    values=hnp.arrays("float64", st.integers(2, 40), elements=st.floats(-TOP, TOP)),
    cut=st.integers(0, 40),
    exponent=st.integers(0, 1023),
)
def test_float64_of_any_magnitude_has_its_mean_and_deviation(
    values: NDArray[Any], cut: int, exponent: int
) -> None:
    values = np.ldexp(values, -exponent)
    chunks = [chunk for chunk in np.split(values, [cut]) if chunk.size]
    mean, std = exactly(values)
    near: dict[str, Any] = {"rel": 1e-9, "abs": max(float(np.abs(values).max()) * 1e-12, 1e-322)}
    for found in (measure(values)[0], in_chunks(*chunks)):
        assert found.mean == pytest.approx(mean, **near)
        assert found.std == pytest.approx(std, **near)
        assert found.min <= found.p01 <= found.p99 <= found.max


def test_the_largest_values_of_both_signs_have_numbers() -> None:
    volume = in_chunks(np.array([-TOP, 0.0]), np.array([-TOP, TOP]), np.array([TOP, TOP]), np.array([0.0]))
    assert volume.mean == pytest.approx(TOP / 7)
    assert volume.std == pytest.approx(TOP * math.sqrt(5 / 7 - 1 / 49))
    assert (volume.min, volume.max) == (-TOP, TOP)


@pytest.mark.parametrize("value", [TOP, -TOP, 1e200, -3.5e38, 5e-324])
def test_float64_of_one_extreme_value_is_that_value(value: float) -> None:
    found = in_chunks(np.full(3, value), np.full(7, value))
    assert astuple(found)[:8] == (10, 0, value, value, value, 0, value, value)


def test_percentiles_beyond_float32_lie_among_the_values() -> None:
    values = np.linspace(-1e200, 1e200, 1001)
    found = in_chunks(values[:500], values[500:])
    assert found.p01 == pytest.approx(np.quantile(values, 0.01), rel=0.01)
    assert found.p99 == pytest.approx(np.quantile(values, 0.99), rel=0.01)


def test_bins_of_float64_reach_to_its_extremes() -> None:
    values = np.array([-TOP, -1e39, 0.0, 1e200])
    found = in_chunks(values)
    edges = found.bin_edges()
    assert (np.diff(edges) >= 0).all()
    inside = [((edges[i] <= values) & (values <= edges[i + 1])).sum() for i in range(len(edges) - 1)]
    assert (found.histogram <= inside).all()


@pytest.mark.parametrize("magnitude", [1e-100, 1.0, 1e100])
def test_float64_of_ordinary_magnitude_is_measured_without_scaling(magnitude: float) -> None:
    values = random_voxels((5, 10, 10), "float64").ravel() * magnitude
    found, _ = measure(values)
    assert found.mean == values.mean()
    assert found.std == math.sqrt(np.square(values - values.mean()).mean())
    first, second = (measure(part)[0] for part in np.split(values, 2))
    whole = in_chunks(*np.split(values, 2))
    assert whole.mean == math.fsum([250 * first.mean, 250 * second.mean]) / 500
    spread = [250 * (one.std**2 + (one.mean - whole.mean) ** 2) for one in (first, second)]
    assert whole.std == math.sqrt(math.fsum(spread) / 500)
