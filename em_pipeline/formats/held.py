"""Which objects of an array a folder holds, and which part of the array it lacks."""

import os
from array import array as packed
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.arrays import ArrayLayout, StoredArray
from em_pipeline.formats.gaps import gaps, in_voxels


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
        size, shape = self.layout.object_shape, self.layout.shape
        grid = BoundingBox.of_shape(self.layout.grid_shape)
        return tuple(in_voxels(box, size, shape) for box in gaps(grid, present))

    def find(self) -> tuple[BoundingBox, ...]:
        """`missing`."""
        return self.missing

    def vanished(self, key: str, covered: BoundingBox) -> bool:
        """Whether the object `key` was there when `missing` was asked for, and is gone."""
        if "missing" not in self.__dict__ or (self.root / key).exists():
            return False
        return not any(_contains(gap, covered) for gap in self.missing)


def object_names(
    folder: Path, array: StoredArray, wanted: Sequence[range] = (), inside: str = ""
) -> Iterator[str]:
    """Names below the array's folder of the files that may be its objects, by listing folders.

    `wanted` are the indices asked for along each stored axis, by default all; folders of others stay closed.
    """
    try:
        entries = os.scandir(folder / inside)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            name = f"{inside}{entry.name}"
            if entry.is_dir():
                if _leads_to(f"{name}/", array, wanted):
                    yield from object_names(folder, array, wanted, f"{name}/")
            elif (index := array.index(name)) is not None and _among(index, wanted):
                yield name


def _leads_to(inside: str, array: StoredArray, wanted: Sequence[range]) -> bool:
    """Whether objects that are wanted may lie in the folder `inside`."""
    if inside == array.prefix:
        return True
    above = inside.removeprefix(array.prefix).removesuffix("/").split("/")
    return all(map(str.isdecimal, above)) and _among(map(int, above), wanted)


def _among(index: Iterable[int], wanted: Sequence[range]) -> bool:
    return all(at in along for at, along in zip(index, wanted, strict=False))


def _contains(outer: BoundingBox, inner: BoundingBox) -> bool:
    begins = all(a <= b for a, b in zip(outer.start, inner.start, strict=True))
    return begins and all(b <= a for a, b in zip(outer.stop, inner.stop, strict=True))
