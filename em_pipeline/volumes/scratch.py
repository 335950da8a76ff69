"""The downsampled voxels of a level, kept raw until the next coarser level is made from them.

Each unit leaves one blob: the downsampled part of each of its chunks, one after the other, in the order in
which it writes them. Nothing else is needed to find a part, and units never share a blob.
"""

import threading
from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline.volumes.tiling import grid
from em_pipeline.volumes.workspace import Workspace

_MAPS_HELD: Final = 16  # each has an entry of some hundred bytes for every chunk of a unit
_CHECKSUMS_HELD: Final = 256  # each has 4 bytes for every chunk of a unit; finding one reads its record


class Part(NamedTuple):
    """What a chunk left in its unit's blob: `number` in their order, first byte, shape (coarser z-y-x)."""

    number: int
    offset: int
    shape: Shape


class ScratchReader:
    """Chunks of a level, assembled from what the units of the finer level `finer` left. Thread-safe.

    Days may lie between the writing of a part and its reading: each is compared with its unit's record.
    """

    def __init__(self, finer: LevelPlan, dtype: np.dtype[Any], workspace: Workspace) -> None:
        self.finer = finer
        self._dtype = dtype
        self._workspace = workspace
        self._parts = lru_cache(maxsize=_MAPS_HELD)(self._find_parts)
        self._checksums = lru_cache(maxsize=_CHECKSUMS_HELD)(self._read_checksums)
        self._reading = threading.Lock()

    def read_chunk(self, index: Shape, out: NDArray[Any]) -> None:
        """The voxels of chunk `index` (z, y, x) of the coarser level into `out`, of its level's `tile_shape`.

        Past the level's edge `out` is left as it is. Raises `ChunkCorrupt` where a part, or the
        record of the unit that left it, is missing or altered.
        """
        finer = self.finer
        grid_shape = finer.chunk_grid
        ranges = [
            range(i * f, min(i * f + f, n)) for i, f, n in zip(index, finer.factors, grid_shape, strict=True)
        ]
        for child in product(*ranges):
            unit = finer.unit_of(Shape(*child))
            part = self._parts(unit)[Shape(*child)]
            place = tuple(
                (c - r.start) * (n // f)
                for c, r, n, f in zip(child, ranges, finer.chunk_shape, finer.factors, strict=True)
            )
            target = out[tuple(slice(a, a + n) for a, n in zip(place, part.shape, strict=True))]
            target[...] = self._read(unit, part)

    def _read(self, unit: int, part: Part) -> NDArray[Any]:
        with self._reading:  # once, and not by every thread that comes meanwhile
            checksums = self._checksums(unit)
        name = self._workspace.scratch(self.finer.index, unit)
        nbytes = part.shape.voxels * self._dtype.itemsize
        try:
            payload = self._workspace.place.read_range(name, part.offset, nbytes)
        except NotFound as error:
            raise self._lost(unit, "it is missing") from error
        if len(payload) != nbytes:
            raise self._lost(unit, f"it ends before byte {part.offset + nbytes}")
        if part.number >= len(checksums) or crc32c(payload) != checksums[part.number]:
            raise self._lost(
                unit, f"its {nbytes} bytes from byte {part.offset} are not those that were written"
            )
        return np.frombuffer(payload, self._dtype).reshape(part.shape)

    def _lost(self, unit: int, found: str) -> ChunkCorrupt:
        return _lost(self.finer, unit, self._workspace, found)

    def _read_checksums(self, unit: int) -> NDArray[np.uint32]:
        """The CRC-32C of each part of a unit, in their order."""
        try:
            return self._workspace.read_record(self.finer.index, unit).coarse
        except NotFound as error:
            raise self._lost(unit, "the record of the unit is missing") from error

    def _find_parts(self, unit: int) -> Mapping[Shape, Part]:
        """The part of each chunk of a unit."""
        return parts_of(self.finer, self.finer.unit(unit), self._dtype.itemsize)


def parts_of(level: LevelPlan, unit: Unit, itemsize: int) -> dict[Shape, Part]:
    """Where in the unit's blob the part of each chunk lies, in the order in which they were written."""
    found, offset = {}, 0
    for number, (chunk, valid) in enumerate(unit.chunks(level.chunk_shape)):
        part = found[chunk] = Part(number, offset, grid(valid, level.factors))
        offset += part.shape.voxels * itemsize
    return found


def check_scratch(
    level: LevelPlan, unit: Unit, dtype: np.dtype[Any], workspace: Workspace, coarse: NDArray[np.uint32]
) -> None:
    """Raises `ChunkCorrupt` unless what the unit left is as its record says (`UnitRecord.coarse`)."""
    name = workspace.scratch(level.index, unit.index)
    checksums = []
    for part in parts_of(level, unit, dtype.itemsize).values():
        try:
            payload = workspace.place.read_range(name, part.offset, part.shape.voxels * dtype.itemsize)
        except NotFound as error:
            found = "it is missing, though its unit was finished"
            raise _lost(level, unit.index, workspace, found) from error
        checksums.append(crc32c(payload))
    if checksums != coarse.tolist():
        raise _lost(level, unit.index, workspace, "it has changed since its unit was finished")


def _lost(level: LevelPlan, unit: int, workspace: Workspace, found: str) -> ChunkCorrupt:
    name = workspace.scratch(level.index, unit)
    return ChunkCorrupt(
        f"Read what unit {unit} of level {level.index} left in {workspace.place.url}/{name}",
        found,
        "Run the same again: the unit that wrote it is repeated",
    )
