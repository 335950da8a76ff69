"""From a lazily readable volume to a complete OME-Zarr with its ledger, in one pass over each level.

The finest level is read once. Its downsampled voxels wait in a raw scratch file for the next level's pass,
and so on up the pyramid. Work is done unit by unit; what a killed run finished is never written again, and
what it left half done is never visible.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import ChunkCorrupt, InputRefused, NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.durable import write_whole
from em_pipeline.volumes.ledger import ChunkState, Ledger, write_ledger
from em_pipeline.volumes.metadata import LevelInfo, documents, parse, read_documents
from em_pipeline.volumes.passes import STEP, LevelPass, Read
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit
from em_pipeline.volumes.resume import unfinished
from em_pipeline.volumes.scratch import Scratch
from em_pipeline.volumes.statistics import VolumeStatistics, bin_count, combine
from em_pipeline.volumes.workspace import Workspace


@dataclass(frozen=True)
class WrittenVolume:
    """A complete volume. `chunks` counts the chunks in each state, all levels together.

    `bytes_stored` is encoded chunks. `bytes_read` (voxels asked of the source), `seconds`, `units_done` and
    `units_resumed` (finished by an earlier run) are of this call: 0 where the volume was complete already.
    """

    volume: Path
    ledger_path: Path
    ledger_sha256: str
    statistics: VolumeStatistics
    levels: tuple[LevelInfo, ...]
    chunks: Mapping[ChunkState, int]
    bytes_stored: int
    bytes_read: int = 0
    seconds: float = 0.0
    units_done: int = 0
    units_resumed: int = 0


def open_written(folder: Path) -> WrittenVolume | None:
    """The complete volume in `folder`, or None where none is complete.

    Raises `NotFound` or `ChunkCorrupt` where there is a ledger but not the documents, or either is altered.
    """
    workspace = Workspace(folder)
    if not workspace.ledger.exists():
        return None
    return _written(workspace, Ledger.read(workspace.ledger), _Tally())


def rechunk(
    source: LazyVolume, box: BoundingBox, plan: RechunkPlan, folder: Path, *, name: str, progress: Progress
) -> WrittenVolume:
    """Write the voxels of `box` (of `source`, z-y-x) as planned: `folder`/volume.ome.zarr and ledger.parquet.

    `name` is the multiscale's. A folder whose volume is complete by the same plan is returned at once; one
    that was begun with another plan starts afresh. The bytes written depend on the voxels and the plan's
    shapes and codec alone. Raises `InputRefused` where plan and source do not fit, `Busy` where another
    process works in the folder, `StorageFailed` where the disk refuses, and whatever reading raises.
    """
    _check_fit(source, box, plan)
    workspace = Workspace(folder)
    with workspace.locked():
        digest = plan.digest(name=name, box=box)
        if (complete := _complete_already(workspace, digest, progress)) is not None:
            return complete
        workspace.begin(plan.work_digest(name=name, box=box), progress)
        tally = _Tally()
        started = time.monotonic()
        progress.start(STEP, sum(lv.shape.voxels for lv in plan.levels) * plan.dtype.itemsize, "bytes")
        for level, todo in zip(plan.levels, unfinished(plan, workspace, progress), strict=True):
            _write_level(source, box, plan, level, todo, workspace, progress, tally)
        ledger = _complete(plan, workspace, name, digest)
        tally.seconds = time.monotonic() - started
        return _written(workspace, ledger, tally)


@dataclass
class _Tally:
    """What one call did."""

    bytes_read: int = 0
    seconds: float = 0.0
    units_done: int = 0
    units_resumed: int = 0


def _complete_already(workspace: Workspace, digest: str, progress: Progress) -> WrittenVolume | None:
    """The volume, where it is complete by the plan of that digest.

    A damaged ledger or document is no obstacle: the ledger is removed, and its volume completed again.
    """
    if not workspace.ledger.exists():
        return None
    try:
        ledger = Ledger.read(workspace.ledger)
        if ledger.plan_digest != digest:
            return None
        written = _written(workspace, ledger, _Tally())
    except (ChunkCorrupt, NotFound) as error:
        progress.note(f"{workspace.folder} is completed again: {error.tried}: {error.found}")
        workspace.forget_ledger()
        return None
    workspace.finish()
    return written


def _check_fit(source: LazyVolume, box: BoundingBox, plan: RechunkPlan) -> None:
    if not box.within(source.shape) or box.shape != plan.shape or source.dtype != plan.dtype:
        raise InputRefused(
            f"Rechunk voxels {tuple(box.start)} to {tuple(box.stop)}",
            f"the plan is for {tuple(plan.shape)} voxels of {plan.dtype}, "
            f"the source has {tuple(source.shape)} of {source.dtype}",
            "Plan for the shape of the box and the type of the source",
        )


def _write_level(
    source: LazyVolume,
    box: BoundingBox,
    plan: RechunkPlan,
    level: LevelPlan,
    todo: list[Unit],
    workspace: Workspace,
    progress: Progress,
    tally: _Tally,
) -> None:
    """Write what is missing of a level, and let go of the scratch it was made from."""
    units = list(level.units())
    if len(todo) < len(units):
        done = set(range(len(units))) - {unit.index for unit in todo}
        progress.note(f"level {level.index}: {len(done)} of {len(units)} units were finished before")
        progress.advance(STEP, sum(units[i].box.shape.voxels for i in done) * plan.dtype.itemsize)
    tally.units_resumed += len(units) - len(todo)
    if todo:
        with ExitStack() as opened:
            coarser = _coarser(plan, level, workspace, opened)
            read, granule = _reader(source, box, plan, level, workspace, opened)
            LevelPass(plan, level, workspace, read, granule, coarser, progress).run(todo)
        if level.index == 0:
            tally.bytes_read = _voxels(todo) * plan.dtype.itemsize
        tally.units_done += len(todo)
    workspace.scratch(level.index).unlink(missing_ok=True)


def _coarser(plan: RechunkPlan, level: LevelPlan, workspace: Workspace, opened: ExitStack) -> Scratch | None:
    """Where the next level's voxels go; None at the last level."""
    if level is plan.levels[-1]:
        return None
    following = plan.levels[level.index + 1]
    scratch = Scratch.prepare(workspace.scratch(following.index), following.shape, plan.dtype)
    return opened.enter_context(scratch)


def _reader(
    source: LazyVolume,
    box: BoundingBox,
    plan: RechunkPlan,
    level: LevelPlan,
    workspace: Workspace,
    opened: ExitStack,
) -> tuple[Read, int]:
    """How to read the level's voxels, and how many planes are stored together."""
    if level.index == 0:
        return partial(_read_shifted, source, box.start), source.chunk_shape.z
    scratch = Scratch.reopen(workspace.scratch(level.index), level.shape, plan.dtype)
    return opened.enter_context(scratch).read, 1


def _read_shifted(source: LazyVolume, origin: Shape, box: BoundingBox, out: NDArray[Any]) -> NDArray[Any]:
    return source.read(box.shifted(origin), out)


def _voxels(units: list[Unit]) -> int:
    return sum(unit.box.shape.voxels for unit in units)


def _complete(plan: RechunkPlan, workspace: Workspace, name: str, digest: str) -> Ledger:
    """Write the documents and, last, the ledger; then clear the work away."""
    records = [
        [workspace.read_record(level.index, index) for index in range(level.unit_count)]
        for level in plan.levels
    ]
    counts = np.zeros(bin_count(plan.dtype), np.int64)
    for record in records[0]:
        counts += record.counts
    finest = np.sort(np.concatenate([record.rows for record in records[0]]), order=["z", "y", "x"])
    found = documents(plan, name)
    for path, text in found.items():
        write_whole(workspace.volume / path, text)
    write_ledger(
        workspace.ledger,
        np.concatenate([record.rows for level in records for record in level]),
        grids=tuple(level.chunk_grid for level in plan.levels),
        documents=found,
        statistics=combine(finest, counts, plan.dtype),
        plan_digest=digest,
    )
    ledger = Ledger.read(workspace.ledger)
    workspace.finish()
    return ledger


def _written(workspace: Workspace, ledger: Ledger, tally: _Tally) -> WrittenVolume:
    info = parse(read_documents(workspace.volume))
    return WrittenVolume(
        volume=workspace.volume,
        ledger_path=workspace.ledger,
        ledger_sha256=ledger.sha256,
        statistics=ledger.statistics,
        levels=info.levels,
        chunks=ledger.states(),
        bytes_stored=int(ledger.rows["nbytes"].sum()),
        **vars(tally),
    )
