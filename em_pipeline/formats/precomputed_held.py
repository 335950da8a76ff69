"""Which chunks of a precomputed level a folder holds, found from what is there: grids may be far larger."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.base import opened
from em_pipeline.formats.gaps import gaps, in_voxels
from em_pipeline.formats.precomputed_info import Scale
from em_pipeline.formats.sharded import ShardIndexes, Sharding

# As cloud-volume writes compressed chunks on disks.
SUFFIXES = ("", ".gz")


class HeldChunks(Protocol):
    """The chunks in a folder that meet a part of a level."""

    @property
    def cells(self) -> NDArray[np.int64]:
        """Their grid indices, a row z-y-x each, in C order."""
        ...

    @property
    def names(self) -> list[str]:
        """Names of the files in the folder that hold them."""
        ...

    def read(self, chunk: BoundingBox) -> bytes | None:
        """A chunk's bytes as stored, None for one that was never written."""
        ...


def held_chunks(folder: Path, scale: Scale, part: BoundingBox) -> HeldChunks:
    """Those that meet `part` (voxels z-y-x) in the `folder` of a level, in shards or one file for each.

    Raises `UnsupportedFormat` for shards that are damaged, `OSError` where the folder cannot be read.
    """
    names = frozenset(child.name for child in folder.iterdir()) if folder.is_dir() else frozenset[str]()
    shards = sorted(name for name in names if name.endswith(".shard"))
    if scale.sharding is not None and shards:
        indexes = ShardIndexes(scale.sharding, FolderRanges(folder), scale.key)
        return _Shards(
            folder, scale, part, indexes, _shard_cells(scale, scale.sharding, part, indexes, shards)
        )
    return _Files(folder, scale, part, names, _file_cells(scale, part, names))


def missing_of(held: HeldChunks, scale: Scale, part: BoundingBox) -> tuple[BoundingBox, ...]:
    """Boxes of voxels, whole chunks, that meet `part` and that the folder does not hold."""
    grid = scale.grid.cells(part)
    return tuple(in_voxels(box, scale.chunk, scale.shape) for box in gaps(grid, held.cells))


@dataclass(frozen=True)
class _Files:
    """One file for each chunk. `there` are the names in the folder when it was opened."""

    folder: Path
    scale: Scale
    part: BoundingBox
    there: frozenset[str]
    cells: NDArray[np.int64]

    @property
    def names(self) -> list[str]:
        plain = (self.scale.grid.name(self.scale.grid.chunk_at(Shape(*cell))) for cell in self.cells.tolist())
        return [f"{name}{suffix}" for name in plain for suffix in SUFFIXES if f"{name}{suffix}" in self.there]

    def read(self, chunk: BoundingBox) -> bytes | None:
        plain = self.scale.grid.name(chunk)
        for suffix in SUFFIXES:
            if f"{plain}{suffix}" in self.there:
                return read_bytes(self.folder / f"{plain}{suffix}")
        if _meet(chunk, self.part):
            return None
        raise NotFound(
            f"Read the chunk {self.scale.key}/{plain}",
            f"only those of {tuple(self.part.start)}..{tuple(self.part.stop)} (z-y-x) are held",
            "Read inside that box",
        )


@dataclass(frozen=True)
class _Shards:
    folder: Path
    scale: Scale
    part: BoundingBox
    indexes: ShardIndexes
    cells: NDArray[np.int64]

    @property
    def names(self) -> list[str]:
        grid = self.scale.grid
        chunks = (grid.chunk_at(Shape(*cell)) for cell in self.cells.tolist())
        places = (self.indexes.locate(grid.morton(chunk)) for chunk in chunks)
        return sorted({place.shard for place in places if place is not None})

    def read(self, chunk: BoundingBox) -> bytes | None:
        place = self.indexes.locate(self.scale.grid.morton(chunk))
        return None if place is None else FolderRanges(self.folder)(*place)


def _file_cells(scale: Scale, part: BoundingBox, names: Iterable[str]) -> NDArray[np.int64]:
    found = (scale.grid.cell_named(name.removesuffix(".gz")) for name in names)
    return _within(scale.grid.cells(part), {cell for cell in found if cell is not None})


def _shard_cells(
    scale: Scale, sharding: Sharding, part: BoundingBox, indexes: ShardIndexes, names: list[str]
) -> NDArray[np.int64]:
    """By asking for every chunk, or by listing the shards' indexes where those are fewer."""
    grid = scale.grid
    if grid.count(part) <= len(names) << sharding.minishard_bits:
        chunks = (chunk for chunk in grid.boxes(part) if indexes.locate(grid.morton(chunk)) is not None)
        return _within(grid.cells(part), {grid.cell_of(chunk) for chunk in chunks})
    found = (grid.cell_coded(code) for name in names for code in indexes.chunks(name))
    return _within(grid.cells(part), {cell for cell in found if cell is not None})


def _within(cells: BoundingBox, found: set[Shape]) -> NDArray[np.int64]:
    rows = np.array(sorted(found), np.int64).reshape(-1, 3)
    return rows[((rows >= np.array(cells.start)) & (rows < np.array(cells.stop))).all(axis=1)]


@dataclass(frozen=True)
class FolderRanges:
    """Reads a part of a file in the folder; None where there is no such file. May be pickled."""

    folder: Path

    def __call__(self, name: str, offset: int, size: int) -> bytes | None:
        path = self.folder / name
        return read_bytes(path, offset, size) if path.is_file() else None


def read_bytes(path: Path, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes from `offset`, by default all; fewer where the file ends first."""
    with opened(path) as descriptor:
        there = os.fstat(descriptor).st_size - offset
        left = there if size is None else min(size, there)
        pieces: list[bytes] = []
        while left > 0 and (piece := os.pread(descriptor, left, offset)):
            pieces.append(piece)
            left, offset = left - len(piece), offset + len(piece)
    return b"".join(pieces)


def _meet(a: BoundingBox, b: BoundingBox) -> bool:
    sides = zip(a.start, a.stop, b.start, b.stop, strict=True)
    return all(first < other_stop and other < stop for first, stop, other, other_stop in sides)
