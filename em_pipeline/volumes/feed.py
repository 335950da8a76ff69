"""Where the voxels of a level come from: the source for the finest, what its units left for every other.

Voxels are handed over chunk by chunk: a *slab buffer* has the shape (chunks in z, y, x, then z, y, x of what
is held of each, `LevelPlan.tile_shape`), so that whatever follows works on memory of its own, without gaps.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume, Plain
from em_pipeline.volumes.kernels import COMPILED
from em_pipeline.volumes.memory import CHUNKS_AHEAD, granule, spans
from em_pipeline.volumes.plan import LevelPlan
from em_pipeline.volumes.scratch import ScratchReader
from em_pipeline.volumes.tiling import chunks_of

_BAND_BYTES: Final = 256 << 10  # of rows read from a file before they are dealt out: half of a core's cache

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
        self._tile = level.tile_shape
        self._local = threading.local()

    def pieces(self, slab: BoundingBox, threads: int) -> list[Piece]:
        """About one piece per thread, cut in z or else in y; no chunk of the source is decoded twice."""
        for axis in (0, 1):
            stored = self._source.decode_shape[axis]
            share = -(-slab.shape[axis] // threads)
            cuts = spans(
                slab.start[axis], slab.stop[axis], -(-share // stored) * stored, stored, self._origin[axis]
            )
            parts = [_along(slab, axis, *cut) for cut in cuts]
            if len(parts) > 1:
                break
        return [self._piece(slab, part) for part in parts]

    def _piece(self, slab: BoundingBox, part: BoundingBox) -> Piece:
        step = granule(slab.shape, self._source.decode_shape, self._source.dtype.itemsize)

        def fill(tiles: NDArray[Any]) -> None:
            if self._dealt_from_file(part, slab.start, tiles):
                return
            cuts = map(spans, part.start, part.stop, step, self._source.decode_shape, self._origin)
            for z, y, x in product(*cuts):
                box = BoundingBox(start=Shape(z[0], y[0], x[0]), stop=Shape(z[1], y[1], x[1]))
                first = Shape(*(a - b for a, b in zip(box.start, slab.start, strict=True)))
                self._deal(self._read(box), first, tiles)

        return fill

    def _dealt_from_file(self, part: BoundingBox, origin: Shape, tiles: NDArray[Any]) -> bool:
        """Fill it without an array in between, where the voxels lie in a file as they do in memory.

        False also where that fails: the source itself can say why.
        """
        plain = (
            self._source.plain_rows(part.shifted(self._origin)) if isinstance(self._source, Plain) else None
        )
        if plain is None or not COMPILED:
            return False
        _, count, width = part.shape
        band = self._buffer(max(width, _BAND_BYTES // tiles.itemsize)).view(np.uint8)
        first = Shape(*(a - b for a, b in zip(part.start, origin, strict=True)))
        try:
            descriptor = os.open(plain.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return COMPILED.deal_file(
                descriptor, plain.starts, (count, width, plain.row_voxels), band, first, tiles
            )
        finally:
            os.close(descriptor)

    def _read(self, box: BoundingBox) -> NDArray[Any]:
        buffer = self._buffer(box.shape.voxels)[: box.shape.voxels].reshape(box.shape)
        return self._source.read(box.shifted(self._origin), buffer)

    def _deal(self, voxels: NDArray[Any], first: Shape, tiles: NDArray[Any]) -> None:
        """Copy voxels, of which the first is voxel `first` of the slab, to the chunks they belong to."""
        if COMPILED and COMPILED.deal(voxels, first, tiles):
            return
        depth, rows, _ = self._tile
        for z0, z1 in _cuts(first.z, len(voxels), depth):
            planes = slice(z0 % depth, z0 % depth + z1 - z0)
            for y0, y1 in _cuts(first.y, voxels.shape[1], rows):
                target = tiles[z0 // depth, y0 // rows, :, planes, y0 % rows : y0 % rows + y1 - y0]
                band = voxels[z0 - first.z : z1 - first.z, y0 - first.y : y1 - first.y]
                _deal_rows(band, first.x, target)

    def _buffer(self, voxels: int) -> NDArray[Any]:
        """This thread's own, used again: fresh pages cost more than the copy into them."""
        held: NDArray[Any] | None = getattr(self._local, "buffer", None)
        if held is None or held.size < voxels:
            held = self._local.buffer = np.empty(voxels, self._source.dtype)
        return held


def _deal_rows(band: NDArray[Any], first: int, target: NDArray[Any]) -> None:
    """Rows (planes, rows, columns), whose first column is column `first` of the slab, to the chunks of a row.

    `target` has the shape (chunks in x, planes, rows, columns held of a chunk).
    """
    width, columns = band.shape[2], target.shape[3]
    head = min(-first % columns, width)
    if head:
        at = first % columns
        target[first // columns, :, :, at : at + head] = band[:, :, :head]
    chunk, whole = (first + head) // columns, (width - head) // columns
    end = head + whole * columns
    cut = band[:, :, head:end].reshape(*band.shape[:2], whole, columns)
    target[chunk : chunk + whole] = cut.transpose(2, 0, 1, 3)
    if end < width:
        target[chunk + whole, :, :, : width - end] = band[:, :, end:]


def _cuts(start: int, length: int, step: int) -> list[tuple[int, int]]:
    """[start, start + length) cut at every multiple of `step`."""
    stop = start + length
    return list(pairwise([start, *range(start - start % step + step, stop, step), stop]))


def _along(box: BoundingBox, axis: int, start: int, stop: int) -> BoundingBox:
    """The part of a box between two places on an axis."""
    first, last = list(box.start), list(box.stop)
    first[axis], last[axis] = start, stop
    return BoundingBox(start=Shape(*first), stop=Shape(*last))


class ScratchFeed:
    """Voxels of a level whose finer level was written before."""

    def __init__(self, scratch: ScratchReader, level: LevelPlan) -> None:
        self._scratch = scratch
        self._chunk = level.chunk_shape

    def pieces(self, slab: BoundingBox, threads: int) -> list[Piece]:
        """A piece for each thread, which takes chunk after chunk, and asks for more than one at a time."""
        first = Shape(*(a // c for a, c in zip(slab.start, self._chunk, strict=True)))
        todo = deque(index for index, _ in chunks_of(slab, self._chunk))

        def fill(tiles: NDArray[Any]) -> None:
            wanted = (
                (index, tiles[tuple(i - f for i, f in zip(index, first, strict=True))])
                for index in _taken(todo)
            )
            self._scratch.read_chunks(wanted, CHUNKS_AHEAD * tiles[0, 0, 0].nbytes)

        return [fill] * min(threads, len(todo))


def _taken(todo: "deque[Shape]") -> Iterator[Shape]:
    """What is left of `todo`, of which each is taken by one thread."""
    while True:
        try:
            yield todo.popleft()
        except IndexError:
            return
