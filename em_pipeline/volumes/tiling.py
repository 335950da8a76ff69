"""How volumes, slabs and shards are divided into boxes of one shape. Everything is voxels z-y-x."""

import math
from collections.abc import Iterator
from itertools import product

from em_pipeline.domain.geometry import BoundingBox, Shape

_Extent = tuple[int, int, int]


def grid(shape: _Extent, tile: _Extent) -> Shape:
    """How many tiles cover `shape` along each axis."""
    return Shape(*(-(-n // t) for n, t in zip(shape, tile, strict=True)))


def padded(shape: _Extent, tile: _Extent) -> Shape:
    """The smallest multiple of a tile that holds `shape`."""
    return Shape(*(math.ceil(n / t) * t for n, t in zip(shape, tile, strict=True)))


def clipped(shape: _Extent, within: _Extent) -> Shape:
    """What of `shape` lies inside `within`, both beginning at the same voxel."""
    return Shape(*(min(a, n) for a, n in zip(shape, within, strict=True)))


def held_of_chunks(shape: _Extent, chunk: _Extent) -> Shape:
    """What memory holds of each chunk of a level of `shape` before it is encoded.

    The whole chunk; but of a level so thin that it fills no more than half of any chunk, only what it fills:
    of a single plane, planes of a chunk's rows and columns.
    """
    filled, whole = clipped(chunk, shape), Shape(*chunk)
    return filled if 2 * filled.voxels <= whole.voxels else whole


def chunks_of(box: BoundingBox, chunk_shape: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Index and shape (voxels, clipped to the box) of each chunk of `box`, which starts at one; C order."""
    spans = [
        [(at // size, min(size, b - at)) for at in range(a, b, size)]
        for a, b, size in zip(box.start, box.stop, chunk_shape, strict=True)
    ]
    for (z, depth), (y, rows), (x, columns) in product(*spans):
        yield Shape(z, y, x), Shape(depth, rows, columns)
