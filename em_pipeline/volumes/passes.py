"""One pass over one level: read a slab ahead, and for each chunk measure, downsample and encode.

The voxels of a slab are read once and everything that needs them happens while they are in the cache; what
comes out is appended to the shards in one thread, in one order.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.downsample import reduction
from em_pipeline.volumes.ledger import ROW, STATES, ChunkState
from em_pipeline.volumes.metadata import level_info, shard_path
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit, grid
from em_pipeline.volumes.scratch import Scratch
from em_pipeline.volumes.shard import ShardWriter
from em_pipeline.volumes.statistics import Counts, Summary, bin_count, measure
from em_pipeline.volumes.workspace import UnitRecord, Workspace

Read = Callable[[BoundingBox, NDArray[Any]], NDArray[Any]]
"""Voxels of a box into a C-contiguous array."""

STEP = "rechunk"


@dataclass(frozen=True)
class _Encoded:
    """A chunk ready to be stored; `payload` is None where no voxel of the source is in it but fill values."""

    index: Shape
    payload: bytes | None
    valid_fraction: float
    summary: Summary
    counts: Counts


class LevelPass:
    """Writes the units of one level. `read` gives its voxels, `coarser` takes those of the next level.

    `missing` are the level's voxels that the source does not hold.
    """

    def __init__(
        self,
        plan: RechunkPlan,
        level: LevelPlan,
        workspace: Workspace,
        read: Read,
        read_granule: int,
        missing: Missing | None,
        coarser: Scratch | None,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._level = level
        self._info = level_info(plan, level)
        self._codec = plan.chunk_codec
        self._workspace = workspace
        self._read = read
        self._granule = read_granule
        self._missing = missing
        self._coarser = coarser
        self._progress = progress
        self._reduce = reduction(plan.kind)
        self._local = threading.local()

    def run(self, units: Sequence[Unit]) -> None:
        """Write `units`. Raises `StorageFailed`, and whatever reading raises."""
        boxes = [slab for unit in units for slab in unit.slabs]
        slabs = prefetched(self._read, boxes, self._plan.dtype, self._plan.threads, self._granule)
        with closing(slabs), ThreadPoolExecutor(self._plan.threads, "encode") as encoders:
            for unit in units:
                self._write_unit(unit, slabs, encoders)

    def _write_unit(self, unit: Unit, slabs: Iterator[NDArray[Any]], encoders: ThreadPoolExecutor) -> None:
        output = _UnitOutput(self._plan, self._level, unit, self._workspace)
        try:
            for box in unit.slabs:
                coarse = self._write_slab(box, next(slabs), output, encoders)
                if self._coarser is not None and coarse is not None:
                    self._coarser.write(self._level.coarse_box(box), coarse)
                    output.left_for_coarser(coarse)
                self._progress.advance(STEP, box.shape.voxels * self._plan.dtype.itemsize)
            if self._coarser is not None:
                self._coarser.sync()
            output.publish()
        except BaseException:
            output.abandon()
            raise

    def _write_slab(
        self, box: BoundingBox, voxels: NDArray[Any], output: "_UnitOutput", encoders: ThreadPoolExecutor
    ) -> NDArray[Any] | None:
        """Encode the chunks of a slab; its voxels for the next level, None where there is none."""
        shape = grid(box.shape, self._level.factors)
        coarse = np.empty(shape, self._plan.dtype) if self._coarser else None
        waiting: deque[Future[_Encoded]] = deque()
        for tile in box.tiles(self._level.chunk_shape):
            if len(waiting) > 2 * self._plan.threads:
                output.add(waiting.popleft().result())
            waiting.append(encoders.submit(self._encode, box, voxels, tile, coarse))
        while waiting:
            output.add(waiting.popleft().result())
        return coarse

    def _encode(
        self, box: BoundingBox, voxels: NDArray[Any], tile: BoundingBox, coarse: NDArray[Any] | None
    ) -> _Encoded:
        """Everything one chunk needs, in one thread. Its part of `coarse` belongs to no other chunk."""
        chunk_shape, factors = self._level.chunk_shape, self._level.factors
        origin = Shape(*(a - b for a, b in zip(tile.start, box.start, strict=True)))
        chunk = self._chunk_buffer()
        if tile.shape != chunk_shape:
            chunk.fill(0)
        valid = chunk[BoundingBox.of_shape(tile.shape).slices]
        valid[...] = voxels[BoundingBox.at(origin, tile.shape).slices]
        gone = self._missing.within(tile) if self._missing else None
        if gone is not None:
            valid[gone] = 0  # the source's own fill value may be another
        held = valid if gone is None else valid[~gone]
        summary, counts = measure(held)
        if coarse is not None:
            part = self._reduce(valid, factors)
            start = Shape(*(a // f for a, f in zip(origin, factors, strict=True)))
            coarse[BoundingBox.at(start, Shape(*part.shape)).slices] = part
        return _Encoded(
            index=Shape(*(a // c for a, c in zip(tile.start, chunk_shape, strict=True))),
            payload=None if not held.size or _is_fill(summary, chunk) else self._codec.encode(chunk),
            valid_fraction=held.size / chunk_shape.voxels,
            summary=summary,
            counts=counts,
        )

    def _chunk_buffer(self) -> NDArray[Any]:
        """This thread's own, used again for every chunk: fresh pages cost more than the copy into them."""
        if not hasattr(self._local, "chunk"):
            self._local.chunk = np.empty(self._level.chunk_shape, self._plan.dtype)
        chunk: NDArray[Any] = self._local.chunk
        return chunk


class _UnitOutput:
    """The shards and the record of a unit being written. Used by one thread."""

    def __init__(self, plan: RechunkPlan, level: LevelPlan, unit: Unit, workspace: Workspace) -> None:
        self._info = level_info(plan, level)
        self._unit = unit
        self._workspace = workspace
        self._rows: list[tuple[Any, ...]] = []
        self._counts = np.zeros(bin_count(plan.dtype) if level.index == 0 else 0, np.int64)
        self._coarse: list[int] = []
        self._shards: dict[str, ShardWriter] = {}
        for tile in unit.box.tiles(level.shard_shape):
            shard = Shape(*(a // s for a, s in zip(tile.start, level.shard_shape, strict=True)))
            path = shard_path(level.index, shard)
            # Published by a run that was killed before it could record the unit.
            (workspace.volume / path).unlink(missing_ok=True)
            self._shards[path] = ShardWriter(workspace.blobs(), path, self._info.chunks_per_shard)

    def add(self, chunk: _Encoded) -> None:
        if self._counts.size:
            self._counts += chunk.counts
        path, place = self._info.locate(chunk.index)
        nbytes, checksum = 0, 0
        state = ChunkState.FILL if chunk.valid_fraction else ChunkState.ABSENT
        if chunk.payload is not None:
            self._shards[path].append(place, chunk.payload)
            nbytes, checksum = len(chunk.payload), crc32c(chunk.payload)
            state = ChunkState.DATA if chunk.valid_fraction == 1 else ChunkState.PADDED
        self._rows.append(
            (
                self._info.index,
                *chunk.index,
                nbytes,
                checksum,
                STATES.index(state),
                chunk.valid_fraction,
                *astuple(chunk.summary),
            )
        )

    def left_for_coarser(self, voxels: NDArray[Any]) -> None:
        """Remember what a slab left in the next level's scratch, for a resumed run to compare."""
        self._coarse.append(crc32c(voxels.tobytes()))

    def publish(self) -> None:
        """Give the shards their names, make them durable, then say that the unit is done."""
        for shard in self._shards.values():
            shard.publish()
        record = UnitRecord(np.array(self._rows, ROW), self._counts, np.array(self._coarse, np.uint32))
        self._workspace.write_record(self._info.index, self._unit.index, record)

    def abandon(self) -> None:
        for shard in self._shards.values():
            shard.abandon()


def prefetched(
    read: Read, boxes: Sequence[BoundingBox], dtype: np.dtype[Any], threads: int, granule: int
) -> Generator[NDArray[Any], None, None]:
    """Voxels of each box in turn, the next box being read meanwhile: valid until the next is asked for.

    A box is read in up to `threads` pieces along z, cut at multiples of `granule` planes so that no stored
    chunk is decoded twice. Raises what `read` raises.
    """
    if not boxes:
        return
    buffers = [np.empty(max(box.shape.voxels for box in boxes), dtype) for _ in boxes[:2]]

    def submit(turn: int) -> tuple[NDArray[Any], list[Future[NDArray[Any]]]]:
        box = boxes[turn]
        voxels = buffers[turn % 2][: box.shape.voxels].reshape(box.shape)
        pieces = _pieces(box, threads, granule)
        first = box.start.z
        return voxels, [
            readers.submit(_read_piece, read, piece, voxels[piece.start.z - first : piece.stop.z - first])
            for piece in pieces
        ]

    readers = ThreadPoolExecutor(threads, "read")
    try:
        ahead = submit(0)
        for turn in range(len(boxes)):
            voxels, reading = ahead
            for piece in reading:
                piece.result()
            if turn + 1 < len(boxes):
                ahead = submit(turn + 1)
            yield voxels
    finally:
        readers.shutdown(cancel_futures=True)


def _read_piece(read: Read, box: BoundingBox, out: NDArray[Any]) -> NDArray[Any]:
    found = read(box, out)
    if found is not out:
        out[...] = found
    return out


def _pieces(box: BoundingBox, threads: int, granule: int) -> list[BoundingBox]:
    planes = -(-box.shape.z // threads)
    planes = -(-planes // granule) * granule
    return list(box.tiles((planes, box.stop.y, box.stop.x)))


def _is_fill(summary: Summary, chunk: NDArray[Any]) -> bool:
    """Whether every byte is zero; negative zeros are data."""
    return summary.min == summary.max == 0 and not summary.nonfinite and not chunk.view(np.uint8).any()
