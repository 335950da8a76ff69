"""The compressed_segmentation encoding of labels.

Format: https://github.com/google/neuroglancer/blob/master/src/sliceview/compressed_segmentation/README.md
The library of that name reads beyond the end of a truncated chunk, which ends the process or invents labels;
this decoder checks every offset before it follows it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import Shape

BITS = (0, 1, 2, 4, 8, 16, 32)


def decode_compressed_segmentation(
    data: bytes, shape: Shape, dtype: np.dtype[Any], block: tuple[int, int, int]
) -> NDArray[Any]:
    """Labels (uint32 or uint64) of one channel, z-y-x, from blocks of `block` (x-y-z) voxels.

    Raises `ValueError` for data that end early or whose offsets lead outside.
    """
    words = np.frombuffer(data, "<u4", len(data) // 4)
    if len(words) < 2 or not 1 <= int(words[0]) < len(words):
        raise ValueError("it has no offset of its channel")
    words = words[int(words[0]) :]
    sizes = Shape(*block[::-1])
    grid = Shape(*(-(-n // b) for n, b in zip(shape, sizes, strict=True)))
    if len(words) < 2 * grid.voxels:
        raise ValueError(f"{len(words)} words hold no headers of {grid.voxels} blocks")
    headers = words[: 2 * grid.voxels].reshape(-1, 2).astype(np.int64)
    tables, bits, values = headers[:, 0] & 0xFFFFFF, headers[:, 0] >> 24, headers[:, 1]
    if not np.isin(bits, BITS).all():
        raise ValueError(f"its blocks have {sorted(set(bits.tolist()) - set(BITS))} bits per voxel")
    labels = np.empty((grid.voxels, sizes.voxels), dtype)
    for width in np.unique(bits).tolist():
        chosen = np.flatnonzero(bits == width)
        places = _unpacked(words, values[chosen], width, sizes.voxels)
        labels[chosen] = _looked_up(words, tables[chosen, None] + places * (dtype.itemsize // 4), dtype)
    tiled = labels.reshape(*grid, *sizes).transpose(0, 3, 1, 4, 2, 5)
    whole = tiled.reshape([n * b for n, b in zip(grid, sizes, strict=True)])
    return np.ascontiguousarray(whole[tuple(slice(n) for n in shape)])


def _unpacked(words: NDArray[Any], starts: NDArray[Any], width: int, count: int) -> NDArray[np.int64]:
    """(blocks, count) table positions of `width` bits each, packed into words from the lowest bit up."""
    if width == 0:
        return np.zeros((len(starts), count), np.int64)
    bit = np.arange(count) * width
    mask = np.uint32((1 << width) - 1)
    packed = _taken(words, starts[:, None] + (bit >> 5))
    return ((packed >> (bit & 31).astype(np.uint32)) & mask).astype(np.int64)


def _looked_up(words: NDArray[Any], at: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Labels whose words begin at `at`: one word each, or the low and the high one."""
    labels: NDArray[Any] = _taken(words, at).astype(dtype)
    if dtype.itemsize == 8:
        labels |= _taken(words, at + 1).astype(dtype) << dtype.type(32)
    return labels


def _taken(words: NDArray[Any], at: NDArray[np.int64]) -> NDArray[Any]:
    if int(at.max()) >= len(words):
        raise ValueError(f"it has {len(words)} words and points to word {int(at.max())}")
    return words[at]
