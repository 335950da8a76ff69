"""What a unit leaves while it is written: its shards, the voxels for the next level, and its record.

Two processes may be at one unit: a scheduler takes the first for dead, and it is not. Each writes under
temporary names of its own and what they publish is the same, byte by byte; so nothing that is published is
ever removed by a process that begins, only replaced, and whoever's work was ended or begun anew publishes
nothing more.
"""

from operator import attrgetter
from typing import Any

import numpy as np

from em_pipeline.domain.blobs import BlobSink
from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.encode import Encoded
from em_pipeline.volumes.ledger import ROW, STATES, ChunkState
from em_pipeline.volumes.metadata import level_info, shard_path
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit
from em_pipeline.volumes.shard import ShardWriter
from em_pipeline.volumes.statistics import SUMMARY_FIELDS, bin_count
from em_pipeline.volumes.workspace import UnitRecord, Workspace

_numbers = attrgetter(*(name for name, _ in SUMMARY_FIELDS))


class UnitOutput:
    """Takes the chunks of a unit in the order of `Unit.chunks`. Used by one thread at a time."""

    def __init__(self, plan: RechunkPlan, level: LevelPlan, unit: Unit, workspace: Workspace) -> None:
        self._info = level_info(plan, level)
        self._unit = unit
        self._workspace = workspace
        self._rows: list[tuple[Any, ...]] = []
        self._counts = np.zeros(bin_count(plan.dtype) if level.index == 0 else 0, np.int64)
        self._coarse: list[int] = []
        self._scratch: BlobSink | None = None
        self._shards: dict[str, ShardWriter] = {}
        for tile in unit.box.tiles(level.shard_shape):
            shard = Shape(*(a // s for a, s in zip(tile.start, level.shard_shape, strict=True)))
            path = shard_path(level.index, shard)
            self._shards[path] = ShardWriter(workspace.volume, path, self._info.chunks_per_shard)

    def add(self, chunk: Encoded) -> None:
        """Store a chunk, which may be let go of then. Raises `StorageFailed`."""
        if self._counts.size:
            self._counts += chunk.counts
        state = ChunkState.FILL if chunk.valid_fraction else ChunkState.ABSENT
        nbytes = 0
        if chunk.payload is not None:
            path, place = self._info.locate(chunk.index)
            nbytes = chunk.payload.nbytes
            self._shards[path].append(place, chunk.payload.data)
            state = ChunkState.DATA if chunk.valid_fraction == 1 else ChunkState.PADDED
        self._rows.append(
            (
                self._info.index,
                *chunk.index,
                nbytes,
                chunk.checksum,
                STATES.index(state),
                chunk.valid_fraction,
                *_numbers(chunk.summary),
            )
        )
        if chunk.coarse is not None:
            if self._scratch is None:
                self._scratch = self._workspace.create_scratch(self._info.index, self._unit.index)
            self._scratch.append(chunk.coarse.data)
            self._coarse.append(chunk.coarse_checksum)

    def publish(self) -> None:
        """Make the shards visible and durable, then say that the unit is done.

        Raises `StorageFailed`, and `Busy` where the place is no longer this work's.
        """
        try:
            self._workspace.check_begun()
            for shard in self._shards.values():
                shard.publish()
            if self._scratch is not None:
                self._scratch.commit()
        finally:
            self.abandon()
        record = UnitRecord(np.array(self._rows, ROW), self._counts, np.array(self._coarse, np.uint32))
        self._workspace.write_record(self._info.index, self._unit.index, record)

    def abandon(self) -> None:
        """Leave nothing behind of what was not published."""
        for shard in self._shards.values():
            shard.abandon()
        if self._scratch is not None:
            self._scratch.abandon()
