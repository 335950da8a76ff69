"""What an earlier process left undone: records and scratch are believed only where their checksums agree.

The scratch of level n+1 is made by the units of level n. A unit whose part of it is lost or altered is
done again, and with it, where its own voxels are gone by then, the finer units that they were made from.
"""

from collections.abc import Sequence

import numpy as np

from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.codec import crc32c
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit, grid
from em_pipeline.volumes.scratch import Scratch
from em_pipeline.volumes.workspace import UnitRecord, Workspace


def unfinished(plan: RechunkPlan, workspace: Workspace, progress: Progress) -> list[list[Unit]]:
    """Units still to be written, by level. Records that cannot be relied on are removed, with a note.

    Raises `StorageFailed` where the disk refuses.
    """
    todo: list[list[Unit]] = []
    # Coarsest first: the voxels left for a level matter only while units of that level are to be written.
    for level in reversed(plan.levels):
        todo.insert(0, _unfinished_of(plan, level, workspace, progress, todo[0] if todo else ()))
    return todo


def _unfinished_of(
    plan: RechunkPlan, level: LevelPlan, workspace: Workspace, progress: Progress, waiting: Sequence[Unit]
) -> list[Unit]:
    """Units of one level; `waiting` are those that read what this level left for the next."""
    todo, reasons = [], []
    for unit in level.units():
        if workspace.is_done(level.index, unit.index):
            try:
                record = workspace.read_record(level.index, unit.index)
                _check_rows(level, unit, record)
                if waiting:
                    _check_coarse(plan, level, unit, record, workspace)
                continue
            except ChunkCorrupt as error:
                # Gone for good before its shards are touched: a record must never outlive them.
                workspace.forget(level.index, unit.index)
                reasons.append(f"{error.tried}: {error.found}")
        todo.append(unit)
    if reasons:
        progress.note(f"level {level.index}: {len(reasons)} finished units are done again ({reasons[0]})")
    return todo


def _check_rows(level: LevelPlan, unit: Unit, record: UnitRecord) -> None:
    """Raises `ChunkCorrupt` unless the record's rows are the unit's chunks."""
    first = tuple(a // c for a, c in zip(unit.box.start, level.chunk_shape, strict=True))
    places = np.argwhere(np.ones(grid(unit.box.shape, level.chunk_shape), bool)) + first
    rows = np.sort(record.rows, order=["z", "y", "x"])
    found = np.stack([rows[axis] for axis in "zyx"], axis=1)
    if not np.array_equal(found, places) or (rows["level"] != level.index).any():
        raise ChunkCorrupt(
            f"Read the record of unit {unit.index} of level {level.index}", "it is another unit's"
        )


def _check_coarse(
    plan: RechunkPlan, level: LevelPlan, unit: Unit, record: UnitRecord, workspace: Workspace
) -> None:
    """Raises `ChunkCorrupt` unless the unit's part of the next level's scratch is as it was written."""
    following = plan.levels[level.index + 1]
    path = workspace.scratch(following.index)
    with Scratch.reopen(path, following.shape, plan.dtype) as scratch:
        checksums = []
        for slab in unit.slabs:
            box = level.coarse_box(slab)
            checksums.append(crc32c(scratch.read(box, np.empty(box.shape, plan.dtype)).tobytes()))
    if checksums != record.coarse.tolist():
        raise ChunkCorrupt(f"Resume from {path}", f"what unit {unit.index} wrote to it has changed")
