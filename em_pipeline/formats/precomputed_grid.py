"""Boxes of voxels stored one by one: which of them meet a box, what they are called, how they are read."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape

# The first and last position along x, y, z.
NAME = re.compile(r"(-?\d+)-(?:-?\d+)_(-?\d+)-(?:-?\d+)_(-?\d+)-(?:-?\d+)", re.ASCII)


@dataclass(frozen=True)
class ChunkGrid:
    """Chunks of `chunk` voxels from the first voxel of a volume of `shape` on, the last ones clipped; z-y-x.

    `origin` is the position of that first voxel where names are counted from, z-y-x; it may be negative.
    """

    shape: Shape
    chunk: Shape
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def size(self) -> Shape:
        """Number of chunks, z-y-x."""
        return Shape(*(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True)))

    def boxes(self, box: BoundingBox) -> Iterator[BoundingBox]:
        """Voxels of each chunk that meets `box`, clipped to the volume, in C order of z, y, x.

        Raises `InputRefused` for a box outside the volume.
        """
        if not box.within(self.shape):
            raise InputRefused(
                f"Find the chunks of {tuple(box.start)}..{tuple(box.stop)} (z-y-x)",
                f"the volume has only {tuple(self.shape)} voxels",
                "Clip the box to the volume",
            )
        for index in product(*(range(span.start, span.stop) for span in self.cells(box).slices)):
            yield self.chunk_at(Shape(*index))

    def cells(self, box: BoundingBox) -> BoundingBox:
        """Grid indices of the chunks that meet `box`, as a box of them."""
        start = Shape(*(a // c for a, c in zip(box.start, self.chunk, strict=True)))
        stop = Shape(*(-(-b // c) for b, c in zip(box.stop, self.chunk, strict=True)))
        return BoundingBox(start=start, stop=stop)

    def count(self, box: BoundingBox) -> int:
        """How many chunks meet `box`."""
        return self.cells(box).shape.voxels

    def chunk_at(self, cell: Shape) -> BoundingBox:
        """Voxels of the chunk at the grid index `cell`, clipped to the volume."""
        start = Shape(*(i * c for i, c in zip(cell, self.chunk, strict=True)))
        stop = (min(a + c, n) for a, c, n in zip(start, self.chunk, self.shape, strict=True))
        return BoundingBox(start=start, stop=Shape(*stop))

    def cell_of(self, chunk: BoundingBox) -> Shape:
        """Grid index of a chunk: the inverse of `chunk_at`."""
        return Shape(*(a // c for a, c in zip(chunk.start, self.chunk, strict=True)))

    def name(self, chunk: BoundingBox) -> str:
        """`<x0>-<x1>_<y0>-<y1>_<z0>-<z1>`, counted from `origin`: how unsharded precomputed names a chunk.

        https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
        """
        spans = zip(chunk.start, chunk.stop, self.origin, strict=True)
        z, y, x = (f"{origin + start}-{origin + stop}" for start, stop, origin in spans)
        return f"{x}_{y}_{z}"

    def cell_named(self, name: str) -> Shape | None:
        """Grid index of the chunk called `name`: None for what is no chunk's name."""
        match = NAME.fullmatch(name)
        if match is None:
            return None
        starts = [
            int(start) - origin for start, origin in zip(match.groups()[::-1], self.origin, strict=True)
        ]
        cell = Shape(*(start // c for start, c in zip(starts, self.chunk, strict=True)))
        return cell if self._holds(cell) and self.name(self.chunk_at(cell)) == name else None

    def cell_coded(self, code: int) -> Shape | None:
        """Grid index of the chunk whose id is `code`: the inverse of `morton`; None for no chunk's id."""
        size, index = self.size[::-1], [0, 0, 0]
        taken = 0
        for bit in range(max(size).bit_length()):
            for axis, count in enumerate(size):
                if 1 << bit < count:
                    index[axis] |= (code >> taken & 1) << bit
                    taken += 1
        cell = Shape(*index[::-1])
        return cell if code >> taken == 0 and self._holds(cell) else None

    def _holds(self, cell: Shape) -> bool:
        return all(0 <= i < n for i, n in zip(cell, self.size, strict=True))

    def morton(self, chunk: BoundingBox) -> int:
        """The chunk's compressed Morton code: its id in a sharded volume.

        Bits of the grid position, x first, interleaved from the lowest up; an axis contributes bit i only
        where its number of chunks is above 2^i (volume.md, "Sharded chunk storage").
        """
        index = self.cell_of(chunk)[::-1]
        size = self.size[::-1]
        code = taken = 0
        for bit in range(max(size).bit_length()):
            for position, count in zip(index, size, strict=True):
                if 1 << bit < count:
                    code |= (position >> bit & 1) << taken
                    taken += 1
        return code


@dataclass(frozen=True)
class ChunkVoxels:
    """Voxels of a volume whose chunks `load` gives, z-y-x; None for one that was never written, read as 0.

    A chunk is loaded once per read, whole. `scratch_bytes` is what `load` takes for one.
    """

    grid: ChunkGrid
    load: Callable[[BoundingBox], NDArray[Any] | None]
    scratch_bytes: int

    def fill(self, box: BoundingBox, out: NDArray[Any]) -> None:
        for chunk in self.grid.boxes(box):
            start = Shape(*np.maximum(chunk.start, box.start).tolist())
            stop = Shape(*np.minimum(chunk.stop, box.stop).tolist())
            into = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, box.start, strict=True))
            voxels = self.load(chunk)
            if voxels is None:
                out[into] = 0
            else:
                taken = zip(start, stop, chunk.start, strict=True)
                out[into] = voxels[tuple(slice(a - o, b - o) for a, b, o in taken)]
