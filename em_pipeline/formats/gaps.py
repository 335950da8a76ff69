"""The part of a grid where nothing lies, as few boxes, found when they are asked for."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape


class LazyBoxes(Sequence[BoundingBox]):
    """Boxes that `find` gives when first looked at: listing what a container lacks may take seconds."""

    def __init__(self, find: Callable[[], tuple[BoundingBox, ...]]) -> None:
        self._find = find

    @cached_property
    def _boxes(self) -> tuple[BoundingBox, ...]:
        return self._find()

    def __getitem__(self, index: Any) -> Any:
        return self._boxes[index]

    def __len__(self) -> int:
        return len(self._boxes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._boxes)

    def __reduce__(self) -> tuple[type[tuple[BoundingBox, ...]], tuple[tuple[BoundingBox, ...]]]:
        """Pickled, they are found: whoever they are sent to need not look again."""
        return tuple, (self._boxes,)

    def __repr__(self) -> str:
        return repr(self._boxes)


def in_voxels(cells: BoundingBox, size: Shape, shape: Shape) -> BoundingBox:
    """The voxels of grid cells of `size` voxels each, clipped to a volume of `shape`; all z-y-x."""
    last = (min(b * n, s) for b, n, s in zip(cells.stop, size, shape, strict=True))
    first = (a * n for a, n in zip(cells.start, size, strict=True))
    return BoundingBox(start=Shape(*first), stop=Shape(*last))


def gaps(grid: BoundingBox, present: NDArray[np.int64]) -> Iterator[BoundingBox]:
    """Boxes that do not overlap and together hold every cell of `grid` that is not in `present`.

    `present` are distinct cells inside `grid`, one row z-y-x each. The work grows with their number, not with
    the grid's: empty margins are cut off whole, and only what is neither empty nor full is halved.
    """
    start, stop = np.array(grid.start), np.array(grid.stop)
    if len(present):
        yield from _margins(start, stop, present)
    elif (stop > start).all():
        yield _box(start, stop)
        return
    if len(present) == np.prod(stop - start, dtype=object):
        return
    axis = int(np.argmax(stop - start))
    middle = (start[axis] + stop[axis]) // 2
    lower, upper = stop.copy(), start.copy()
    lower[axis] = upper[axis] = middle
    below = present[:, axis] < middle
    yield from gaps(_box(start, lower), present[below])
    yield from gaps(_box(upper, stop), present[~below])


def _margins(
    start: NDArray[np.int64], stop: NDArray[np.int64], present: NDArray[np.int64]
) -> Iterator[BoundingBox]:
    """Cut the empty margins around `present` off, shrinking `start` and `stop` in place."""
    first, last = present.min(axis=0), present.max(axis=0) + 1
    for axis in range(3):
        if first[axis] > start[axis]:
            end = stop.copy()
            end[axis] = first[axis]
            yield _box(start, end)
            start[axis] = first[axis]
        if last[axis] < stop[axis]:
            begin = start.copy()
            begin[axis] = last[axis]
            yield _box(begin, stop)
            stop[axis] = last[axis]


def _box(start: NDArray[np.int64], stop: NDArray[np.int64]) -> BoundingBox:
    return BoundingBox(start=Shape(*start.tolist()), stop=Shape(*stop.tolist()))
