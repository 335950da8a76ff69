"""Where the voxels of a level come from: the source for the finest, what its units left for every other.

Voxels are handed over chunk by chunk: a *slab buffer* has the shape (chunks in z, y, x, then the chunk's own
z, y, x), so that whatever follows works on memory of its own, without gaps.
"""

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.volumes.plan import LevelPlan, chunks_of
from em_pipeline.volumes.scratch import ScratchReader

GRANULE: Final = 1 << 20
"""Bytes read from a source before they are dealt out to their chunks: still in a core's cache by then."""

Piece = Callable[[NDArray[Any]], None]
"""Fills its part of a slab buffer. Pieces of a slab share no voxel and may run in several threads."""


class Feed(Protocol):
    """The voxels of one level."""

    def pieces(self, slab: BoundingBox, threads: int) -> list[Piece]:
        """What fills a slab buffer with the voxels of `slab`; padding is left as it is."""
        ...


class SourceFeed:
    """Voxels of a source, `origin` being the first of the level (z, y, x)."""

    def __init__(self, source: LazyVolume, origin: Shape, level: LevelPlan) -> None:
        self._source = source
        self._origin = origin
        self._chunk = level.chunk_shape
        self._local = threading.local()

    def pieces(self, slab: BoundingBox, threads: int) -> list[Piece]:
        """One piece per thread, cut in z so that no chunk of the source is decoded twice."""
        stored = self._source.decode_shape.z
        planes = -(-slab.shape.z // threads)
        return [
            self._piece(slab, z0, z1) for z0, z1 in self._spans(slab.start.z, slab.stop.z, planes, stored)
        ]

    def _piece(self, slab: BoundingBox, start: int, stop: int) -> Piece:
        def fill(tiles: NDArray[Any]) -> None:
            plane_bytes = slab.shape.y * slab.shape.x * self._source.dtype.itemsize
            planes = max(1, GRANULE // plane_bytes)
            for z0, z1 in self._spans(start, stop, planes, self._source.decode_shape.z):
                box = BoundingBox(
                    start=Shape(z0, slab.start.y, slab.start.x), stop=Shape(z1, slab.stop.y, slab.stop.x)
                )
                self._deal(self._read(box), z0 - slab.start.z, tiles)

        return fill

    def _spans(self, start: int, stop: int, planes: int, stored: int) -> list[tuple[int, int]]:
        """[start, stop) cut every `planes`, but only where the source's own chunks end."""
        first = self._origin.z
        step = max(1, -(-planes // stored)) * stored
        cuts = range((start + first) // stored * stored + step, stop + first, step)
        edges = [start, *(cut - first for cut in cuts), stop]
        return list(pairwise(edges))

    def _read(self, box: BoundingBox) -> NDArray[Any]:
        buffer = self._buffer(box.shape.voxels)[: box.shape.voxels].reshape(box.shape)
        return self._source.read(box.shifted(self._origin), buffer)

    def _deal(self, voxels: NDArray[Any], first: int, tiles: NDArray[Any]) -> None:
        """Copy planes `first` and following of the slab to the chunks they belong to."""
        depth, rows, columns = self._chunk
        whole = voxels.shape[2] // columns
        z = 0
        while z < len(voxels):
            layer, below = divmod(first + z, depth)
            planes = voxels[z : z + depth - below]
            into = slice(below, below + len(planes))
            for iy, y in enumerate(range(0, voxels.shape[1], rows)):
                band = planes[:, y : y + rows]
                parts = band[:, :, : whole * columns].reshape(*band.shape[:2], whole, columns)
                tiles[layer, iy, :whole, into, : band.shape[1]] = parts.transpose(2, 0, 1, 3)
                if rest := voxels.shape[2] - whole * columns:
                    tiles[layer, iy, whole, into, : band.shape[1], :rest] = band[:, :, whole * columns :]
            z += len(planes)

    def _buffer(self, voxels: int) -> NDArray[Any]:
        """This thread's own, used again: fresh pages cost more than the copy into them."""
        held: NDArray[Any] | None = getattr(self._local, "buffer", None)
        if held is None or held.size < voxels:
            held = self._local.buffer = np.empty(voxels, self._source.dtype)
        return held


class ScratchFeed:
    """Voxels of a level whose finer level was written before."""

    def __init__(self, scratch: ScratchReader, level: LevelPlan) -> None:
        self._scratch = scratch
        self._chunk = level.chunk_shape

    def pieces(self, slab: BoundingBox, threads: int) -> list[Piece]:  # noqa: ARG002 - a chunk is a piece
        first = Shape(*(a // c for a, c in zip(slab.start, self._chunk, strict=True)))
        return [self._piece(index, first) for index, _ in chunks_of(slab, self._chunk)]

    def _piece(self, index: Shape, first: Shape) -> Piece:
        place = tuple(i - f for i, f in zip(index, first, strict=True))
        return lambda tiles: self._scratch.read_chunk(index, tiles[place])
