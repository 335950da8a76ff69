"""How many requests it takes to put a unit's chunks together, counted without a look at any of them.

Each chunk has children, up to two of the finer level along each axis. What of them lies in one finer unit is
a box of its chunks, which a unit keeps in C order: so the parts of a box's row follow each other in the
unit's blob, its rows do where they are as wide as the unit, its planes where they are as wide and as high.
Each run of parts is one request (`scratch.ScratchReader`). Boxes are products of segments along the axes, and
whether one spans its unit is seen along one axis alone, so counts of segments are enough.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.plan import LevelPlan


class _Segments(NamedTuple):
    """Of a unit along one axis: its voxels; of the segments below it those that span a finer unit (`whole`),
    those that do not (`cut`), and how many finer chunks all of them have (`children`)."""

    voxels: int
    whole: int
    cut: int
    children: int


def units_by_requests(level: LevelPlan, finer: LevelPlan) -> Iterator[tuple[Shape, int, int]]:
    """Shape (voxels, z-y-x), requests for scratch, and number of the units of `level` that are alike."""
    axes = [_along(level, finer, axis).items() for axis in range(3)]
    for (z, deep), (y, high), (x, wide) in product(*axes):
        apart = x.cut * y.children * z.children
        rows = x.whole * y.cut * z.children
        planes = x.whole * y.whole * (z.whole + z.cut)
        yield Shape(z.voxels, y.voxels, x.voxels), apart + rows + planes, deep * high * wide


def _along(level: LevelPlan, finer: LevelPlan, axis: int) -> Counter[_Segments]:
    """The units of `level` along an axis, alike ones counted together."""
    chunk, extent, unit = level.chunk_shape[axis], level.shape[axis], level.unit_shape[axis]
    found: Counter[_Segments] = Counter()
    for start in range(0, extent, unit):
        stop = min(start + unit, extent)
        whole = cut = children = 0
        for index in range(start // chunk, -(-stop // chunk)):
            for count, spans in _below(index, finer, axis):
                whole, cut, children = whole + spans, cut + (not spans), children + count
        found[_Segments(stop - start, whole, cut, children)] += 1
    return found


def _below(index: int, finer: LevelPlan, axis: int) -> Iterator[tuple[int, bool]]:
    """Of the children of chunk `index` those in each finer unit: how many, and whether it has no others."""
    chunks, factor = finer.chunk_grid[axis], finer.factors[axis]
    of_unit = finer.unit_shape[axis] // finer.chunk_shape[axis]
    at, stop = index * factor, min(index * factor + factor, chunks)
    while at < stop:
        first = at // of_unit * of_unit
        end = min(first + of_unit, chunks)
        upto = min(stop, end)
        yield upto - at, upto - at == end - first
        at = upto
