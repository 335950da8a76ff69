"""One pass over one level: read slabs ahead, and for each chunk measure, downsample and encode.

The voxels of a slab are read once and everything that needs them happens while they are near; what comes
out is appended to the shards in one thread, in one order, whatever order it was worked out in.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.allocator import keep_freed_memory
from em_pipeline.volumes.encode import ChunkEncoder, Encoded, Slot
from em_pipeline.volumes.feed import Feed
from em_pipeline.volumes.memory import CHUNKS_IN_FLIGHT
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.output import UnitOutput
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit
from em_pipeline.volumes.tiling import chunks_of, grid
from em_pipeline.volumes.workspace import Workspace

STEP = "rechunk"


@dataclass
class _Slab:
    """A slab on its way: being read into `tiles`, then its chunks encoded one by one."""

    output: UnitOutput
    box: BoundingBox
    ends_unit: bool
    tiles: NDArray[Any]
    reading: list[Future[None]]
    chunks_left: int = 0


@dataclass(frozen=True)
class _Chunk:
    """A chunk on its way."""

    slab: _Slab
    slot: Slot
    encoding: Future[Encoded]


class LevelPass:
    """Writes units of one level. `feed` gives its voxels; `missing` are those the source does not hold."""

    def __init__(
        self,
        plan: RechunkPlan,
        level: LevelPlan,
        workspace: Workspace,
        feed: Feed,
        missing: Missing | None,
        progress: Progress,
    ) -> None:
        self.plan = plan
        self.level = level
        self.workspace = workspace
        self.feed = feed
        self.progress = progress
        self.encoder = ChunkEncoder(plan, level, missing)

    def run(self, units: Sequence[Unit]) -> None:
        """Write `units`, which come in any order. Raises `StorageFailed`, and whatever reading raises."""
        if not units:
            return
        keep_freed_memory()
        with _Run(self, units) as run:
            run.work()


class _Run(AbstractContextManager["_Run"]):
    """Units on their way: threads, memory that goes round, and what is between two of its stations.

    On an error what was begun ends, nothing else begins, and what is not published is abandoned.
    """

    def __init__(self, task: LevelPass, units: Sequence[Unit]) -> None:
        self._task = task
        self._opened: list[UnitOutput] = []
        self._todo = self._slabs(units)
        self._buffers = _slab_buffers(task.plan, task.level, units)
        self._slots = _slots(task.plan, task.level, units)
        self._ahead: deque[_Slab] = deque()
        self._waiting: deque[_Chunk] = deque()
        self._closing: Future[None] | None = None
        self._readers = ThreadPoolExecutor(task.plan.threads, "read")
        self._encoders = ThreadPoolExecutor(task.plan.threads, "encode")
        self._closer = ThreadPoolExecutor(1, "close")

    def __exit__(self, *exc: object) -> None:
        for pool in (self._readers, self._encoders):
            pool.shutdown(wait=True, cancel_futures=True)
        self._closer.shutdown(wait=True)
        for output in self._opened:
            output.abandon()

    def work(self) -> None:
        """Until every unit is published."""
        self._read_ahead()
        while self._ahead or self._waiting:
            if not self._ahead:
                self._drain_one()
                continue
            slab = self._ahead.popleft()
            for piece in slab.reading:
                piece.result()
            self._encode(slab)
        self._finish_closing()

    def _slabs(self, units: Sequence[Unit]) -> Iterator[tuple[UnitOutput, BoundingBox, bool]]:
        """Every slab with what takes its chunks, and whether it is the unit's last."""
        task = self._task
        for unit in units:
            output = UnitOutput(task.plan, task.level, unit, task.workspace)
            self._opened.append(output)
            for number, box in enumerate(unit.slabs, 1):
                yield output, box, number == len(unit.slabs)

    def _read_ahead(self) -> None:
        """Begin to read as many slabs as there are buffers for."""
        while self._buffers and (found := next(self._todo, None)):
            output, box, ends_unit = found
            tiles = _tiles(self._buffers.pop(), self._task.level, box)
            pieces = self._task.feed.pieces(box, self._task.plan.threads)
            reading = [self._readers.submit(piece, tiles) for piece in pieces]
            self._ahead.append(_Slab(output, box, ends_unit, tiles, reading))

    def _encode(self, slab: _Slab) -> None:
        level, encode = self._task.level, self._task.encoder.encode
        tiles = slab.tiles.reshape(-1, *level.tile_shape)
        slab.chunks_left = len(tiles)
        for (index, valid), tile in zip(chunks_of(slab.box, level.chunk_shape), tiles, strict=True):
            while not self._slots:
                self._drain_one()
            slot = self._slots.pop()
            encoding = self._encoders.submit(encode, index, valid, tile, slot)
            self._waiting.append(_Chunk(slab, slot, encoding))

    def _drain_one(self) -> None:
        """Store the oldest chunk, and let go of what it was the last to need."""
        chunk = self._waiting.popleft()
        slab = chunk.slab
        slab.output.add(chunk.encoding.result())
        self._slots.append(chunk.slot)
        slab.chunks_left -= 1
        if slab.chunks_left:
            return
        base = slab.tiles.base
        assert isinstance(base, np.ndarray)  # noqa: S101 - every slab is a view of one of our buffers
        self._buffers.append(base)
        if slab.ends_unit:
            self._close(slab.output)
        self._read_ahead()
        self._task.progress.advance(STEP, slab.box.shape.voxels * self._task.plan.dtype.itemsize)

    def _close(self, output: UnitOutput) -> None:
        """Publish a unit beside the work on the next one; only one at a time."""
        self._finish_closing()
        self._opened.remove(output)
        self._closing = self._closer.submit(output.publish)

    def _finish_closing(self) -> None:
        if self._closing is not None:
            closing, self._closing = self._closing, None
            closing.result()


def _slab_buffers(plan: RechunkPlan, level: LevelPlan, units: Sequence[Unit]) -> list[NDArray[Any]]:
    """As many as go round, each with room for the largest slab."""
    most = max(grid(box.shape, level.chunk_shape).voxels for unit in units for box in unit.slabs)
    count = min(level.slabs_held, sum(len(unit.slabs) for unit in units))
    return [np.empty(most * level.tile_shape.voxels, plan.dtype) for _ in range(count)]


def _slots(plan: RechunkPlan, level: LevelPlan, units: Sequence[Unit]) -> list[Slot]:
    """As many as there are chunks being encoded, or waiting to be stored in their order."""
    chunks = sum(grid(unit.box.shape, level.chunk_shape).voxels for unit in units)
    return [Slot.of(plan, level) for _ in range(min(CHUNKS_IN_FLIGHT * plan.threads, chunks))]


def _tiles(buffer: NDArray[Any], level: LevelPlan, box: BoundingBox) -> NDArray[Any]:
    """The part of a slab buffer that the slab `box` takes: chunks in z, y, x, and what is held of each."""
    shape = (*grid(box.shape, level.chunk_shape), *level.tile_shape)
    return buffer[: math.prod(shape)].reshape(shape)
