"""One pass over one level: read slabs ahead, and for each chunk measure, downsample and encode.

The voxels of a slab are read once and everything that needs them happens while they are near; what comes
out is appended to the shards in one thread, in one order, whatever order it was worked out in.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.allocator import keep_freed_memory
from em_pipeline.volumes.encode import ChunkEncoder, Encoded, Slot
from em_pipeline.volumes.feed import Feed
from em_pipeline.volumes.memory import CHUNKS_IN_FLIGHT, SLABS_HELD
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.output import UnitOutput
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit, chunks_of, grid
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
        self._plan = plan
        self._level = level
        self._workspace = workspace
        self._feed = feed
        self._encoder = ChunkEncoder(plan, level, missing)
        self._progress = progress
        self._waiting: deque[_Chunk] = deque()
        self._slots: list[Slot] = []
        self._buffers: list[NDArray[Any]] = []

    def run(self, units: Sequence[Unit]) -> None:
        """Write `units`, which come in any order. Raises `StorageFailed`, and whatever reading raises."""
        if not units:
            return
        keep_freed_memory()
        self._make_buffers(units)
        with ExitStack() as stack:
            pools = (
                stack.enter_context(ThreadPoolExecutor(self._plan.threads, name))
                for name in ("read", "encode")
            )
            self._readers, self._encoders = pools
            self._closer = stack.enter_context(ThreadPoolExecutor(1, "close"))
            self._closing: Future[None] | None = None
            stack.callback(self._stop)
            self._work(units)

    def _work(self, units: Sequence[Unit]) -> None:
        self._opened: list[UnitOutput] = []
        self._todo = self._slabs(units)
        self._ahead: deque[_Slab] = deque()
        try:
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
        except BaseException:
            self._stop()
            self._abandon()
            raise

    def _slabs(self, units: Sequence[Unit]) -> Iterator[tuple[UnitOutput, BoundingBox, bool]]:
        for unit in units:
            output = UnitOutput(self._plan, self._level, unit, self._workspace)
            self._opened.append(output)
            for number, box in enumerate(unit.slabs, 1):
                yield output, box, number == len(unit.slabs)

    def _read_ahead(self) -> None:
        """Begin to read as many slabs as there are buffers for."""
        while self._buffers and (found := next(self._todo, None)):
            output, box, ends_unit = found
            buffer = self._buffers.pop()
            tiles = self._tiles(buffer, box)
            pieces = self._feed.pieces(box, self._plan.threads)
            reading = [self._readers.submit(piece, tiles) for piece in pieces]
            self._ahead.append(_Slab(output, box, ends_unit, tiles, reading))

    def _tiles(self, buffer: NDArray[Any], box: BoundingBox) -> NDArray[Any]:
        shape = (*grid(box.shape, self._level.chunk_shape), *self._level.chunk_shape)
        return buffer[: int(np.prod(shape))].reshape(shape)

    def _encode(self, slab: _Slab) -> None:
        tiles = slab.tiles.reshape(-1, *self._level.chunk_shape)
        slab.chunks_left = len(tiles)
        for (index, valid), tile in zip(chunks_of(slab.box, self._level.chunk_shape), tiles, strict=True):
            while not self._slots:
                self._drain_one()
            slot = self._slots.pop()
            encoding = self._encoders.submit(self._encoder.encode, index, valid, tile, slot)
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
        self._progress.advance(STEP, slab.box.shape.voxels * self._plan.dtype.itemsize)

    def _close(self, output: UnitOutput) -> None:
        """Publish a unit beside the work on the next one; only one at a time."""
        self._finish_closing()
        self._opened.remove(output)
        self._closing = self._closer.submit(output.publish)

    def _finish_closing(self) -> None:
        if self._closing is not None:
            closing, self._closing = self._closing, None
            closing.result()

    def _make_buffers(self, units: Sequence[Unit]) -> None:
        chunk = self._level.chunk_shape
        most = max(grid(box.shape, chunk).voxels for unit in units for box in unit.slabs)
        count = min(SLABS_HELD, sum(len(unit.slabs) for unit in units))
        self._buffers = [np.empty(most * chunk.voxels, self._plan.dtype) for _ in range(count)]
        chunks = sum(grid(unit.box.shape, chunk).voxels for unit in units)
        slots = min(CHUNKS_IN_FLIGHT * self._plan.threads, chunks)
        self._slots = [Slot.of(self._plan, self._level) for _ in range(slots)]

    def _stop(self) -> None:
        """Let no task begin that has not yet."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._encoders.shutdown(wait=True, cancel_futures=True)
        self._closer.shutdown(wait=True)

    def _abandon(self) -> None:
        for output in self._opened:
            output.abandon()
