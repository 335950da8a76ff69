"""What the values of a chunk and of a volume are like.

Only true voxels count, never padding. NaN and ±infinity are counted apart (`nonfinite`) and take no part in
any other number. 8- and 16-bit values have one histogram bin each, so everything derived from it is exact.
Wider types are binned by the top 16 bits of their float32 value's total-order key (IEEE 754-2008, 5.10):
about 128 bins per octave, the same for every volume, so that histograms always add up. A float64 beyond
float32's range is counted in the outermost bin of its sign, which reaches to the volume's minimum or maximum.
"""

import math
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.volumes.kernels import COMPILED

Counts = NDArray[np.int64]

KEY_BINS: Final = 1 << 16
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_UNSCALED: Final = 400  # sums of 2⁶³ squares of values below 2⁴⁰⁰ fit a double (below 2¹⁰²⁴)
_PIECE: Final = 1 << 17  # bincount widens what it counts to 8 bytes: pieces keep that in cache


@dataclass(frozen=True)
class Summary:
    """Numbers of some finite values: population standard deviation, percentiles by nearest rank.

    `count` is finite values, `nonfinite` NaN and infinities. Without a finite value the rest is NaN.
    For types wider than 16 bits percentiles are interpolated inside a histogram bin, which for float64 beyond
    ±3.4e38 is as wide as from there to the minimum or maximum. All numbers of finite values are finite.
    """

    count: int
    nonfinite: int
    min: float
    max: float
    mean: float
    std: float
    p01: float
    p99: float


@dataclass(frozen=True)
class VolumeStatistics(Summary):
    """A summary with the histogram it rests on: `histogram[i]` counts values in bin i of `dtype`."""

    dtype: np.dtype[Any]
    histogram: Counts = field(repr=False, compare=False)

    def bin_edges(self) -> NDArray[np.float64]:
        """Lower edge of every bin and the upper edge of the last; bin i is `[edge[i], edge[i+1])`.

        The outermost bins that float64 can fall in reach to `min` and `max` where those are beyond float32.
        """
        return _edges(self.dtype, self.min, self.max)


SUMMARY_FIELDS: Final = tuple((f.name, "<i8" if f.type is int else "<f8") for f in fields(Summary))
"""A summary as fields of a numpy structured type."""


def bin_count(dtype: np.dtype[Any]) -> int:
    """256 bins for 8-bit types, 65536 for all others."""
    return 256 if dtype.itemsize == 1 else KEY_BINS


@cache
def bin_edges(dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """Edges of the histogram bins of `dtype`, ascending: `bin_count + 1` values, within float32's range."""
    if _exact(dtype):
        low = np.iinfo(dtype).min
        return np.arange(low, low + bin_count(dtype) + 1, dtype=np.float64)
    keys = np.arange(KEY_BINS, dtype=np.uint32) << np.uint32(16)
    negative = keys < np.uint32(0x80000000)
    bits = np.where(negative, ~keys, keys ^ np.uint32(0x80000000)).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        edges = bits.view(np.float32).astype(np.float64)
    edges = np.where(np.isfinite(edges), edges, np.where(negative, -_FLOAT32_MAX, _FLOAT32_MAX))
    return np.append(edges, _FLOAT32_MAX)


def measure(values: NDArray[Any]) -> tuple[Summary, Counts]:
    """Summary and histogram counts of all `values` of one chunk, any shape."""
    if not values.size:
        return _nothing(0), np.zeros(bin_count(values.dtype), np.int64)
    if _exact(values.dtype):
        ranks = _rank(values.size, 0.01), _rank(values.size, 0.99)
        if COMPILED and (measured := COMPILED.measure(_block(values), ranks)):
            counts, moments = measured
            return _from_moments(values.size, *moments), counts
        counts = _value_counts(values)
        return _from_counts(counts, values.dtype), counts
    flat = np.ascontiguousarray(values).reshape(-1)
    finite = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
    counts = _key_counts(finite)
    nonfinite = flat.size - finite.size
    if not finite.size:
        return _nothing(nonfinite), counts
    wide = finite.astype(np.float64)
    low, high = float(finite.min()), float(finite.max())
    if scale := _scale(low, high):
        np.ldexp(wide, -scale, out=wide)
    mean = float(wide.mean())
    wide -= mean
    std = math.sqrt(float(np.square(wide, out=wide).mean()))
    mean, std = _unscaled(mean, std, low, high, scale)
    p01, p99 = (_percentile(counts, flat.dtype, q, low, high) for q in (0.01, 0.99))
    return Summary(finite.size, nonfinite, low, high, mean, std, p01, p99), counts


def measure_padded(chunk: NDArray[Any], valid: tuple[int, int, int]) -> tuple[Summary, Counts]:
    """`measure` of the `valid` first voxels per axis of a C-contiguous chunk (z, y, x) padded with zeros."""
    held = math.prod(valid)
    padding = chunk.size - held
    if COMPILED or not padding or not _exact(chunk.dtype) or held < padding:
        return measure(chunk[tuple(slice(n) for n in valid)])
    # Counting the padding too and taking it off again needs no contiguous copy.
    counts = _value_counts(chunk)
    counts[-np.iinfo(chunk.dtype).min] -= padding
    return _from_counts(counts, chunk.dtype), counts


def combine(parts: NDArray[Any], counts: Counts, dtype: np.dtype[Any]) -> VolumeStatistics:
    """Statistics of a volume from its chunks' summaries (`SUMMARY_FIELDS`) and the sum of their counts.

    The order of the parts does not show in the result.
    """
    total = _combined(parts, counts, dtype)
    return VolumeStatistics(**vars(total), dtype=dtype, histogram=counts)


def _combined(parts: NDArray[Any], counts: Counts, dtype: np.dtype[Any]) -> Summary:
    if _exact(dtype):
        return _from_counts(counts, dtype)
    nonfinite = int(parts["nonfinite"].sum())
    some = parts[parts["count"] > 0]
    if not some.size:
        return _nothing(nonfinite)
    low, high = float(some["min"].min()), float(some["max"].max())
    scale = _scale(low, high)
    means, stds = (np.ldexp(some[name], -scale) if scale else some[name] for name in ("mean", "std"))
    # fsum rounds once, whatever the order.
    count = int(some["count"].sum())
    mean = math.fsum(some["count"] * means) / count
    std = math.sqrt(math.fsum(some["count"] * (stds**2 + (means - mean) ** 2)) / count)
    mean, std = _unscaled(mean, std, low, high, scale)
    p01, p99 = (_percentile(counts, dtype, q, low, high) for q in (0.01, 0.99))
    return Summary(count, nonfinite, low, high, mean, std, p01, p99)


def _scale(low: float, high: float) -> int:
    """Values from `low` to `high` times two to the minus this have sums of squares that fit a double.

    0, and so nothing to do, for all but float64 of extraordinary magnitude.
    """
    _, exponent = math.frexp(max(-low, high))
    return exponent if abs(exponent) > _UNSCALED else 0


def _unscaled(mean: float, std: float, low: float, high: float, scale: int) -> tuple[float, float]:
    """Mean and standard deviation of values from `low` to `high`, of which those scaled are given."""
    if not scale:
        return mean, std
    # Held to their bounds, or rounding could take them past the largest double.
    least, most = math.ldexp(low, -scale), math.ldexp(high, -scale)
    mean, std = min(max(mean, least), most), min(std, (most - least) / 2)
    return math.ldexp(mean, scale), math.ldexp(std, scale)


def _exact(dtype: np.dtype[Any]) -> bool:
    """Whether every value has a bin of its own."""
    return dtype.kind in "iu" and dtype.itemsize <= 2


def _nothing(nonfinite: int) -> Summary:
    return Summary(0, nonfinite, *[math.nan] * 6)


def _value_counts(values: NDArray[Any]) -> Counts:
    flat = np.ascontiguousarray(values.view(f"u{values.itemsize}")).reshape(-1)
    counts = _byte_counts(flat) if flat.itemsize == 1 else _word_counts(flat)
    # Two's complement: the negative half is the upper one, and belongs first.
    return np.roll(counts, counts.size // 2) if values.dtype.kind == "i" else counts


def _block(values: NDArray[Any]) -> NDArray[Any]:
    """The same values with three axes."""
    return values if values.ndim == 3 else values.reshape(1, 1, -1)


def _byte_counts(flat: Any) -> Counts:
    # Pillow counts bytes several times faster than numpy and needs no widened copy.
    from PIL import Image

    image = Image.frombuffer("L", (flat.size, 1), flat, "raw", "L", 0, 1)
    return np.array(image.histogram(), np.int64)


def _word_counts(flat: NDArray[np.uint16]) -> Counts:
    counts = np.zeros(KEY_BINS, np.int64)
    for start in range(0, flat.size, _PIECE):
        part = np.bincount(flat[start : start + _PIECE])
        counts[: part.size] += part
    return counts


def _key_counts(finite: NDArray[Any]) -> Counts:
    counts = np.zeros(KEY_BINS, np.int64)
    if COMPILED and COMPILED.count_keys(_block(finite), counts):
        return counts
    for start in range(0, finite.size, _PIECE):
        piece = finite[start : start + _PIECE]
        if piece.dtype == np.float64:
            piece = np.clip(piece, -_FLOAT32_MAX, _FLOAT32_MAX)
        bits = (piece.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 makes -0.0 into 0.0
        sign = (bits.view(np.int32) >> 31).view(np.uint32)
        counts += np.bincount((bits ^ (sign | np.uint32(0x80000000))) >> np.uint32(16), minlength=KEY_BINS)
    return counts


def _from_counts(counts: Counts, dtype: np.dtype[Any]) -> Summary:
    bins = np.flatnonzero(counts)
    if not bins.size:
        return _nothing(0)
    number, value = counts[bins], bins + int(np.iinfo(dtype).min)
    rank = np.cumsum(number)
    count = int(rank[-1])
    if count >= 1 << 31:
        # The squares of a large 16-bit volume sum up to more than 64 bits: Python integers.
        number, value = number.astype(object), value.astype(object)
    first, second = int(number @ value), int(number @ (value * value))
    p01, p99 = (int(value[int(np.searchsorted(rank, _rank(count, q)))]) for q in (0.01, 0.99))
    return _from_moments(count, first, second, int(value[0]), int(value[-1]), p01, p99)


def _from_moments(count: int, first: int, second: int, low: int, high: int, p01: int, p99: int) -> Summary:
    """Of integers whose sum is `first` and the sum of whose squares is `second`."""
    std = math.sqrt((count * second - first * first) / (count * count))
    return Summary(count, 0, float(low), float(high), first / count, std, float(p01), float(p99))


def _rank(count: int, q: float) -> int:
    """Nearest rank: the q-quantile of n ordered values is the ⌈q·n⌉-th."""
    return max(1, math.ceil(q * count))


def _edges(dtype: np.dtype[Any], low: float, high: float) -> NDArray[np.float64]:
    """`bin_edges`, the outermost moved out to values `low` to `high` that are beyond them."""
    edges = bin_edges(dtype)
    if low < edges[0]:
        edges = np.where(edges == edges[0], low, edges)
    if high > edges[-1]:
        edges = np.where(edges == edges[-1], high, edges)
    return edges


def _percentile(counts: Counts, dtype: np.dtype[Any], q: float, low: float, high: float) -> float:
    """The ranked value's bin, and its place inside it as if the bin's values were evenly spread."""
    cumulative = np.cumsum(counts)
    rank = _rank(int(cumulative[-1]), q)
    index = int(np.searchsorted(cumulative, rank))
    edges = _edges(dtype, low, high)
    within = (rank - (int(cumulative[index]) - int(counts[index]))) / int(counts[index])
    value = edges[index] + within * (edges[index + 1] - edges[index])
    return float(min(max(value, low), high))
