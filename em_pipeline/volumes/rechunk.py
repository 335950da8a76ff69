"""From a lazily readable volume to a complete OME-Zarr with its ledger, in one pass over each level.

The finest level is read once. Each unit leaves its downsampled voxels as raw scratch for the next level's
pass, and so on up the pyramid. Work is done unit by unit, by anybody; what a killed run finished is never
written again, and what it left half done is never visible.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, InputRefused, NotFound
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.progress import Progress
from em_pipeline.domain.wording import counted
from em_pipeline.volumes.allocator import give_freed_memory_back
from em_pipeline.volumes.compute import Compute, Job, ThisProcess
from em_pipeline.volumes.ledger import ChunkState, Ledger, in_order, load_ahead, write_ledger
from em_pipeline.volumes.metadata import GROUP, OF_ITS_IMAGE, LevelInfo, documents, parse, read_documents
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.passes import STEP
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit
from em_pipeline.volumes.resume import unfinished
from em_pipeline.volumes.statistics import Counts, VolumeStatistics, bin_count, combine
from em_pipeline.volumes.workspace import Workspace

_RECORDS_AT_ONCE: Final = 8  # each may take a request to an object store


@dataclass(frozen=True)
class WrittenVolume:
    """A complete volume. `chunks` counts the chunks in each state, all levels together.

    `volume` is its folder, `ledger` the name of its ledger in the place it was written in. `bytes_stored` is
    encoded chunks. `bytes_read` (voxels asked of the source), `seconds`, `units_done` and `units_resumed`
    (finished by an earlier run) are of this call: 0 where the volume was complete already.
    """

    volume: Blobs
    ledger: str
    ledger_sha256: str
    statistics: VolumeStatistics
    levels: tuple[LevelInfo, ...]
    chunks: Mapping[ChunkState, int]
    bytes_stored: int
    bytes_read: int = 0
    seconds: float = 0.0
    units_done: int = 0
    units_resumed: int = 0


def rechunk(
    source: LazyVolume,
    box: BoundingBox,
    plan: RechunkPlan,
    place: Blobs,
    *,
    name: str,
    progress: Progress,
    label: str | None = None,
    compute: Compute | None = None,
) -> WrittenVolume:
    """Write the voxels of `box` (of `source`, z-y-x) as planned, with their ledger, in `place` (`Workspace`).

    With `label`, they become labels/`label` of that volume, with a ledger of their own beside the volume's.
    `name` is the multiscale's; `compute` has the units written, this process where it is not given. What the
    source lacks (`LazyVolume.missing`) is written as the fill value and recorded as absent, at every level. A
    place whose volume is complete by the same plan is returned at once; one that was begun with another plan
    starts afresh. The bytes written depend on the voxels and the plan's shapes and codec alone. Raises
    `InputRefused` where plan and source do not fit, `Busy` where another process works in the place,
    `StorageFailed` where the storage refuses, and whatever reading raises.
    """
    _check_fit(source, box, plan)
    workspace = Workspace(place, label)
    missing = Missing.of(source.missing, box)
    with workspace.held():
        digest = plan.digest(name=name, box=box, missing=missing)
        if (complete := _complete_already(workspace, digest, progress)) is not None:
            return complete
        workspace.begin(plan.work_digest(name=name, box=box, missing=missing), progress)
        tally = _Tally()
        started = time.monotonic()
        give_freed_memory_back()  # what was done before the rechunk took other buffers
        progress.start(STEP, sum(lv.shape.voxels for lv in plan.levels) * plan.dtype.itemsize, "bytes")
        shapes = [lv.shape for lv in plan.levels]
        holes = missing.pyramid(shapes) if missing else (None,) * len(shapes)
        job = Job(source, box, plan, workspace, holes)
        levels = zip(plan.levels, unfinished(plan, workspace, progress), strict=True)
        with ThreadPoolExecutor(1, "ledger") as meanwhile:
            meanwhile.submit(load_ahead)  # where it fails, so does writing the ledger
            for level, todo in levels:
                _write_level(job, level, todo, compute or ThisProcess(), progress, tally)
        give_freed_memory_back()
        ledger = _complete(plan, workspace, name, digest, missing)
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
    if not workspace.is_complete():
        return None
    try:
        ledger = Ledger.read(workspace.place, workspace.ledger)
        if ledger.plan_digest != digest:
            return None
        written = _written(workspace, ledger, _Tally())
    except (ChunkCorrupt, NotFound) as error:
        progress.note(f"{workspace.place.url} is completed again: {error.tried}: {error.found}")
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
    job: Job, level: LevelPlan, todo: list[Unit], compute: Compute, progress: Progress, tally: _Tally
) -> None:
    """Write what is missing of a level, and let go of what it was made from."""
    plan, workspace = job.plan, job.workspace
    if skipped := level.unit_count - len(todo):
        finished = counted(skipped, "unit was", "units were")
        progress.note(f"level {level.index}: {finished} finished before, of {level.unit_count}")
        progress.advance(STEP, (level.shape.voxels - _voxels(todo)) * plan.dtype.itemsize)
    if todo:
        compute.run(job, level, todo, progress)
    if level.index == 0:
        tally.bytes_read = _voxels(todo) * plan.dtype.itemsize
    else:
        workspace.drop_scratch(level.index - 1)
    tally.units_done += len(todo)
    tally.units_resumed += skipped


def _voxels(units: Sequence[Unit]) -> int:
    return sum(unit.box.shape.voxels for unit in units)


def _complete(
    plan: RechunkPlan, workspace: Workspace, name: str, digest: str, missing: Missing | None
) -> Ledger:
    """Write the documents and, last, the ledger; then clear the work away."""
    grids = tuple(level.chunk_grid for level in plan.levels)
    counts = np.zeros(bin_count(plan.dtype), np.int64)
    rows = in_order(_all_rows(plan, workspace, counts), grids)
    found = documents(plan, name, {} if workspace.label is None else OF_ITS_IMAGE)
    # The group's last: without it nobody takes what is there for a volume.
    for path, text in sorted(found.items(), key=lambda item: item[0] == GROUP):
        workspace.volume.write(path, text)
    write_ledger(
        workspace.place,
        workspace.ledger,
        rows,
        grids=grids,
        documents=found,
        statistics=combine(rows[: grids[0].voxels], counts, plan.dtype),
        plan_digest=digest,
        missing=missing,
    )
    del rows
    ledger = Ledger.read(workspace.place, workspace.ledger)
    workspace.finish()
    return ledger


def _all_rows(plan: RechunkPlan, workspace: Workspace, counts: Counts) -> Iterator[NDArray[Any]]:
    """The rows of every unit. What the units of level 0 counted is added to `counts`.

    No more records are read ahead than there are threads: each has a histogram.
    """
    with ThreadPoolExecutor(_RECORDS_AT_ONCE, "records") as pool:
        for level in plan.levels:
            read = partial(workspace.read_record, level.index)
            for first in range(0, level.unit_count, _RECORDS_AT_ONCE):
                units = range(first, min(first + _RECORDS_AT_ONCE, level.unit_count))
                for record in pool.map(read, units):
                    if level.index == 0:
                        counts += record.counts
                    yield record.rows


def _written(workspace: Workspace, ledger: Ledger, tally: _Tally) -> WrittenVolume:
    info = parse(read_documents(workspace.volume))
    return WrittenVolume(
        volume=workspace.volume,
        ledger=workspace.ledger,
        ledger_sha256=ledger.sha256,
        statistics=ledger.statistics,
        levels=info.levels,
        chunks=ledger.states(),
        bytes_stored=ledger.stored_bytes,
        **vars(tally),
    )
