"""The downsampled voxels of a level, kept raw until the next coarser level is made from them.

Each unit leaves one blob: the downsampled part of each of its chunks, one after the other, in the order in
which it writes them. Nothing else is needed to find a part, and units never share a blob.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline.volumes.tiling import grid
from em_pipeline.volumes.workspace import Workspace

_MAPS_HELD: Final = 16  # each has an entry of some hundred bytes for every chunk of a unit


class ScratchReader:
    """Chunks of a level, assembled from what the units of the finer level `finer` left. Thread-safe."""

    def __init__(self, finer: LevelPlan, dtype: np.dtype[Any], workspace: Workspace) -> None:
        self.finer = finer
        self._dtype = dtype
        self._workspace = workspace
        self._parts = lru_cache(maxsize=_MAPS_HELD)(self._find_parts)

    def read_chunk(self, index: Shape, out: NDArray[Any]) -> None:
        """The voxels of chunk `index` (z, y, x) of the coarser level into `out`, of its level's `tile_shape`.

        Past the level's edge `out` is left as it is. Raises `ChunkCorrupt` where a part is missing.
        """
        finer = self.finer
        grid_shape = finer.chunk_grid
        ranges = [
            range(i * f, min(i * f + f, n)) for i, f, n in zip(index, finer.factors, grid_shape, strict=True)
        ]
        for child in product(*ranges):
            unit = finer.unit_of(Shape(*child))
            offset, shape = self._parts(unit)[Shape(*child)]
            place = tuple(
                (c - r.start) * (n // f)
                for c, r, n, f in zip(child, ranges, finer.chunk_shape, finer.factors, strict=True)
            )
            target = out[tuple(slice(a, a + n) for a, n in zip(place, shape, strict=True))]
            target[...] = self._read(unit, offset, shape)

    def _read(self, unit: int, offset: int, shape: Shape) -> NDArray[Any]:
        name = self._workspace.scratch(self.finer.index, unit)
        nbytes = shape.voxels * self._dtype.itemsize
        try:
            payload = self._workspace.place.read_range(name, offset, nbytes)
        except NotFound:
            payload = b""
        if len(payload) != nbytes:
            raise _lost(self._workspace, name, f"it ends before byte {offset + nbytes}")
        return np.frombuffer(payload, self._dtype).reshape(shape)

    def _find_parts(self, unit: int) -> Mapping[Shape, tuple[int, Shape]]:
        """Offset and shape of the part of each chunk of a unit."""
        return parts_of(self.finer, self.finer.unit(unit), self._dtype.itemsize)


def parts_of(level: LevelPlan, unit: Unit, itemsize: int) -> dict[Shape, tuple[int, Shape]]:
    """Where in the unit's blob the part of each chunk lies: byte offset, and shape in coarser voxels."""
    found, offset = {}, 0
    for chunk, valid in unit.chunks(level.chunk_shape):
        shape = grid(valid, level.factors)
        found[chunk] = (offset, shape)
        offset += shape.voxels * itemsize
    return found


def check_scratch(
    level: LevelPlan, unit: Unit, dtype: np.dtype[Any], workspace: Workspace, coarse: NDArray[np.uint32]
) -> None:
    """Raises `ChunkCorrupt` unless what the unit left is as its record says (`UnitRecord.coarse`)."""
    name = workspace.scratch(level.index, unit.index)
    checksums = []
    for offset, shape in parts_of(level, unit, dtype.itemsize).values():
        try:
            payload = workspace.place.read_range(name, offset, shape.voxels * dtype.itemsize)
        except NotFound as error:
            raise _lost(workspace, name, "it is missing, though its unit was finished") from error
        checksums.append(crc32c(payload))
    if checksums != coarse.tolist():
        raise _lost(workspace, name, "it has changed since its unit was finished")


def _lost(workspace: Workspace, name: str, found: str) -> ChunkCorrupt:
    return ChunkCorrupt(
        f"Read {workspace.place.url}/{name}", found, "Run the same again: the unit that wrote it is repeated"
    )
