"""Which objects of an array a folder holds, and the part of the array that it does not, as few boxes."""

import os
from array import array as packed
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.arrays import ArrayLayout, StoredArray


class HeldObjects:
    """Which objects of a layout are below a folder, listed once, when first asked."""

    def __init__(self, root: Path, layout: ArrayLayout) -> None:
        self.root = root
        self.layout = layout

    @cached_property
    def missing(self) -> tuple[BoundingBox, ...]:
        """Boxes of voxels whose objects are not there; neighbours are joined, so a region has few."""
        found = packed("q")
        for name in object_names(self.root / self.layout.path, self.layout.array):
            index = self.layout.grid_index(name)
            if index is not None:
                found.extend(index)
        present = np.frombuffer(found, np.int64).reshape(-1, 3)
        grid = BoundingBox.of_shape(self.layout.grid_shape)
        return tuple(self.layout.covered(box.start, box.stop) for box in gaps(grid, present))

    def vanished(self, key: str, covered: BoundingBox) -> bool:
        """Whether the object `key` was there when `missing` was asked for, and is gone."""
        if "missing" not in self.__dict__ or (self.root / key).exists():
            return False
        return not any(_contains(gap, covered) for gap in self.missing)


class MissingBoxes(Sequence[BoundingBox]):
    """The boxes of `HeldObjects.missing`, found when first looked at: a container may have 10⁶ files."""

    def __init__(self, held: HeldObjects) -> None:
        self._held = held

    def __getitem__(self, index: Any) -> Any:
        return self._held.missing[index]

    def __len__(self) -> int:
        return len(self._held.missing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._held.missing)

    def __repr__(self) -> str:
        return repr(self._held.missing)


def object_names(folder: Path, array: StoredArray, inside: str = "") -> Iterator[str]:
    """Names below the array's folder of the files that may be its objects, by listing folders."""
    try:
        entries = os.scandir(folder / inside)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.is_dir():
                if entry.name.isdigit() or f"{entry.name}/" == array.prefix:
                    yield from object_names(folder, array, f"{name}/")
            elif array.index(name) is not None:
                yield name


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


def _contains(outer: BoundingBox, inner: BoundingBox) -> bool:
    begins = all(a <= b for a, b in zip(outer.start, inner.start, strict=True))
    return begins and all(b <= a for a, b in zip(outer.stop, inner.stop, strict=True))
