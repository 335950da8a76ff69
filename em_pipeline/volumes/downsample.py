"""The next coarser level of a block: 2×2×2 means of images, modes of labels, exact and reproducible.

A block whose extent is odd ends in voxels that have no partner: they are averaged (or counted) alone, which
is the same as giving them their own value as partner. Blocks are halved where a factor is 2.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.volumes.kernels import COMPILED

Reduction = Callable[[NDArray[Any], tuple[int, int, int]], NDArray[Any]]
"""From a block (z, y, x) and its factors to the coarser block."""

_WIDER: Final = {
    "u1": np.uint16,
    "i1": np.int16,
    "u2": np.uint32,
    "i2": np.int32,
    "u4": np.uint64,
    "i4": np.int64,
}
"""Eight values of the narrow type and the rounding term fit the wide one."""


def reduction(kind: Kind) -> Reduction:
    """How volumes of a kind are downsampled."""
    return mode_2x if kind == "labels" else mean_2x


def mean_2x(block: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    """Mean of each cell of `factors` (1 or 2 per axis) voxels of `block` (z, y, x), in its own dtype.

    Integers: exact, halves rounded towards +∞. Floats: summed in float64, rounded once; a NaN or infinity
    makes its cell NaN or infinite, and so does a sum beyond float64. Result shape is `ceil(extent / factor)`
    per axis.
    """
    cells = int(np.prod(factors))
    if cells == 1:
        return block.copy()
    if COMPILED and (compiled := COMPILED.mean(block, factors)) is not None:
        return compiled
    shift = cells.bit_length() - 1
    if block.dtype.kind == "f":
        # An infinity is data here, not a fault of the arithmetic. Sums of float64 overflow to one, too.
        with np.errstate(invalid="ignore", over="ignore"):
            return (_cell_sums(block, factors, np.dtype(np.float64)) / cells).astype(block.dtype)
    if block.dtype.itemsize == 8:
        return _mean_of_widest(block, factors, shift)
    if factors[2] == 2 and block.flags.c_contiguous and block.shape[2] % 2 == 0 and block.dtype.itemsize < 4:
        return _mean_of_pairs(block, factors, shift)
    total = _cell_sums(block, factors, np.dtype(_WIDER[block.dtype.str[1:]]))
    total += cells >> 1
    total >>= shift
    return total.astype(block.dtype)


def mode_2x(block: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    """The most frequent label of each cell of `block` (z, y, x); among equals the smallest id.

    Background (0) is a label like any other, and so wins a tie.
    """
    if COMPILED and (compiled := COMPILED.mode(block, factors)) is not None:
        return compiled
    corners = np.stack([corner.ravel() for corner in _corners(block, factors)])
    shape = tuple(-(-n // f) for n, f in zip(block.shape, factors, strict=True))
    modes: NDArray[Any] = corners[0].copy()
    mixed = np.flatnonzero((corners != corners[0]).any(axis=0))
    if mixed.size:
        modes[mixed] = _mode(np.sort(corners[:, mixed], axis=0))
    return modes.reshape(shape)


def _mode(ordered: NDArray[Any]) -> NDArray[Any]:
    """Mode of each column, whose values ascend along axis 0: the first value of the longest run."""
    best: NDArray[Any] = ordered[0].copy()
    run = np.ones(ordered.shape[1], np.uint8)
    longest = run.copy()
    for before, value in pairwise(ordered):
        run = np.where(value == before, run + 1, 1).astype(np.uint8)
        longer = run > longest
        best[longer] = value[longer]
        longest[longer] = run[longer]
    return best


def _mean_of_pairs(block: NDArray[Any], factors: tuple[int, int, int], shift: int) -> NDArray[Any]:
    """Means of 8- and 16-bit integers whose rows are whole pairs.

    Two neighbours in x are one number of twice the width, whose halves are masked and shifted apart and
    added: that needs no widened copy of the voxels.
    """
    narrow, wide = np.dtype(f"u{block.dtype.itemsize}"), np.dtype(f"u{2 * block.dtype.itemsize}")
    bits, top = 8 * narrow.itemsize, wide.type(1 << (8 * narrow.itemsize - 1))
    pairs = block.view(wide)
    total, odd = pairs & wide.type((1 << bits) - 1), pairs >> wide.type(bits)
    if block.dtype.kind == "i":
        # Half the range added to two's complement is unsigned, and comes off the mean again.
        total ^= top
        odd ^= top
    total += odd
    for axis in (0, 1):
        if factors[axis] == 2:
            first, second = _halves(total, axis)
            total = first + second
    total += wide.type(1 << (shift - 1))
    total >>= wide.type(shift)
    if block.dtype.kind == "i":
        total ^= top
    mean: NDArray[Any] = total.astype(narrow).view(block.dtype)
    return mean


def _mean_of_widest(block: NDArray[Any], factors: tuple[int, int, int], shift: int) -> NDArray[Any]:
    """Means of 64-bit integers, whose sums no integer holds: quotients and remainders apart."""
    remainder: NDArray[Any] = _cell_sums(block & ((1 << shift) - 1), factors, block.dtype)
    quotient: NDArray[Any] = _cell_sums(block >> shift, factors, block.dtype)
    remainder += 1 << shift >> 1
    return quotient + (remainder >> shift)  # type: ignore[no-any-return]


def _cell_sums(block: NDArray[Any], factors: tuple[int, int, int], wide: np.dtype[Any]) -> NDArray[Any]:
    """Sums over the cells, each lone edge voxel counted as its own partner. Pairs along z, then y, then x."""
    total = block
    for axis, factor in enumerate(factors):
        if factor == 2:
            first, second = _halves(total, axis)
            total = np.add(first, second, dtype=wide)
    return total


def _corners(block: NDArray[Any], factors: tuple[int, int, int]) -> list[NDArray[Any]]:
    corners = [block]
    for axis, factor in enumerate(factors):
        if factor == 2:
            corners = [half for corner in corners for half in _halves(corner, axis)]
    return corners


def _halves(block: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Even and odd planes along an axis; the last even plane stands in for an odd one that is not there."""
    view = np.moveaxis(block, axis, 0)
    if len(view) % 2:
        view = np.concatenate([view, view[-1:]])
    return np.moveaxis(view[0::2], 0, axis), np.moveaxis(view[1::2], 0, axis)
