"""What an earlier process left undone: records and scratch are believed only where their checksums agree.

Shards are believed where their length and their index are what the record says; altered bytes within a chunk
are found when the volume is verified. A unit leaves voxels for the next level. One whose voxels are lost or
altered, and still needed, is done again, and with it, where its own voxels are gone by then, the finer units
that they were made from.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from em_pipeline.domain.errors import ChunkCorrupt, NotFound
from em_pipeline.domain.geometry import Shape
from em_pipeline.domain.progress import Progress
from em_pipeline.domain.wording import counted
from em_pipeline.volumes.metadata import LevelInfo, level_info, shard_path
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit
from em_pipeline.volumes.scratch import check_scratch
from em_pipeline.volumes.shard import check_frame
from em_pipeline.volumes.tiling import grid
from em_pipeline.volumes.workspace import UnitRecord, Workspace

_AT_ONCE = 8  # records and scratch may lie in an object store, where each takes a request


def unfinished(plan: RechunkPlan, workspace: Workspace, progress: Progress) -> list[list[Unit]]:
    """Units still to be written, by level. Records that cannot be relied on are removed, with a note.

    Raises `StorageFailed` where the storage refuses.
    """
    finished = workspace.finished()
    todo: list[list[Unit]] = []
    # Coarsest first: the voxels left for a level matter only while units of that level are to be written.
    for level in reversed(plan.levels):
        todo.insert(0, _unfinished_of(plan, level, workspace, progress, finished, todo[0] if todo else ()))
    return todo


def is_finished(plan: RechunkPlan, level: LevelPlan, workspace: Workspace, unit: Unit) -> bool:
    """Whether somebody has finished a unit, and it is still there. Changes nothing."""
    needed = not plan.is_last(level)
    try:
        return _fault(plan, level, workspace, needed, unit) is None
    except NotFound:
        return False


def _unfinished_of(
    plan: RechunkPlan,
    level: LevelPlan,
    workspace: Workspace,
    progress: Progress,
    finished: set[tuple[int, int]],
    waiting: Sequence[Unit],
) -> list[Unit]:
    """Units of one level; `waiting` are those that read what this level left for the next."""
    units = list(level.units())
    claimed = [unit for unit in units if (level.index, unit.index) in finished]
    check = partial(_fault, plan, level, workspace, bool(waiting))
    with ThreadPoolExecutor(_AT_ONCE, "resume") as pool:
        faults = dict(zip((unit.index for unit in claimed), pool.map(check, claimed), strict=True))
    reasons = []
    for index, error in faults.items():
        if error is not None:
            # Gone for good before its shards are touched: a record must never outlive them.
            workspace.forget(level.index, index)
            reasons.append(f"{error.tried}: {error.found}")
    if reasons:
        again = counted(len(reasons), "finished unit is", "finished units are")
        progress.note(f"level {level.index}: {again} done again ({reasons[0]})")
    return [unit for unit in units if unit.index not in faults or faults[unit.index] is not None]


def _fault(
    plan: RechunkPlan, level: LevelPlan, workspace: Workspace, needed: bool, unit: Unit
) -> ChunkCorrupt | None:
    """Why a unit that has a record does not count as done; None where it does."""
    try:
        record = workspace.read_record(level.index, unit.index)
        _check_rows(level, unit, record)
        _check_shards(level_info(plan, level), unit, record, workspace)
        if needed:
            check_scratch(level, unit, plan.dtype, workspace, record.coarse)
    except ChunkCorrupt as error:
        return error
    return None


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


def _check_shards(info: LevelInfo, unit: Unit, record: UnitRecord, workspace: Workspace) -> None:
    """Raises `ChunkCorrupt` unless each shard ends where, and with the index, it was written with."""
    chunks = np.stack([record.rows[axis] for axis in "zyx"], axis=1)
    of_shard, within = np.divmod(chunks, info.chunks_per_shard)
    places = np.ravel_multi_index(tuple(within.T), info.chunks_per_shard)
    lengths = np.zeros((*grid(unit.box.shape, info.shard_shape), info.chunks_per_shard.voxels), np.int64)
    first = tuple(a // s for a, s in zip(unit.box.start, info.shard_shape, strict=True))
    lengths[(*(of_shard - first).T, places)] = record.rows["nbytes"]
    for shard in np.ndindex(lengths.shape[:3]):
        path = shard_path(info.index, Shape(*map(sum, zip(first, shard, strict=True))))
        check_frame(workspace.volume, path, lengths[shard])
