"""From a lazily readable volume to a complete OME-Zarr with its ledger, in one pass over each level.

The finest level is read once. Its downsampled voxels wait in a raw scratch file for the next level's pass,
and so on up the pyramid. Work is done unit by unit; what a killed run finished is never written again, and
what it left half done is never visible.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.errors import ChunkCorrupt, InputRefused, NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.durable import write_whole
from em_pipeline.volumes.ledger import ChunkState, Ledger, write_ledger
from em_pipeline.volumes.metadata import LevelInfo, documents, parse, read_documents
from em_pipeline.volumes.missing import Missing
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

    volume: Blobs
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
) -> WrittenVolume:
    import tempfile

    from em_pipeline.storage.local_blobs import LocalBlobs

    if isinstance(place, LocalBlobs):
        written = _rechunk(source, box, plan, place.root, name=name, progress=progress, label=label)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            local = LocalBlobs(Path(temporary))
            for found in place.names():
                local.write(found, place.read(found))
            written = _rechunk(source, box, plan, local.root, name=name, progress=progress, label=label)
            for found in sorted(local.names(), key=lambda n: n.endswith("ledger.parquet")):
                place.write(found, local.read(found))
    where = "volume.ome.zarr" if label is None else f"volume.ome.zarr/labels/{label}"
    return replace(written, volume=place.below(where))


def _rechunk(
    source: LazyVolume,
    box: BoundingBox,
    plan: RechunkPlan,
    folder: Path,
    *,
    name: str,
    progress: Progress,
    label: str | None = None,
) -> WrittenVolume:
    """Write the voxels of `box` (of `source`, z-y-x) as planned: `folder`/volume.ome.zarr and ledger.parquet.

    With `label`, they become labels/`label` of that volume, with a ledger of their own beside the volume's.
    `name` is the multiscale's. What the source lacks (`LazyVolume.missing`) is written as the fill value and
    recorded as absent, at every level. A folder whose volume is complete by the same plan is returned at
    once; one that was begun with another plan starts afresh. The bytes written depend on the voxels and the
    plan's shapes and codec alone. Raises `InputRefused` where plan and source do not fit, `Busy` where
    another process works in the folder, `StorageFailed` where the disk refuses, and whatever reading raises.
    """
    _check_fit(source, box, plan)
    workspace = Workspace(folder, label)
    missing = Missing.of(source.missing, box)
    with workspace.locked():
        digest = plan.digest(name=name, box=box, missing=missing)
        if (complete := _complete_already(workspace, digest, progress)) is not None:
            return complete
        workspace.begin(plan.work_digest(name=name, box=box, missing=missing), progress)
        tally = _Tally()
        started = time.monotonic()
        progress.start(STEP, sum(lv.shape.voxels for lv in plan.levels) * plan.dtype.itemsize, "bytes")
        holes = missing.pyramid([lv.shape for lv in plan.levels]) if missing else [None] * len(plan.levels)
        work = zip(plan.levels, unfinished(plan, workspace, progress), holes, strict=True)
        for level, todo, gone in work:
            _write_level(source, box, plan, level, todo, gone, workspace, progress, tally)
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
    if not workspace.ledger.exists():
        return None
    try:
        ledger = Ledger.read(_blobs(workspace.folder), workspace.ledger.name)
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
    missing: Missing | None,
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
            LevelPass(plan, level, workspace, read, granule, missing, coarser, progress).run(todo)
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


def _complete(
    plan: RechunkPlan, workspace: Workspace, name: str, digest: str, missing: Missing | None
) -> Ledger:
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
        _blobs(workspace.folder),
        workspace.ledger.name,
        np.concatenate([record.rows for level in records for record in level]),
        grids=tuple(level.chunk_grid for level in plan.levels),
        documents=found,
        statistics=combine(finest, counts, plan.dtype),
        plan_digest=digest,
        missing=missing,
    )
    ledger = Ledger.read(_blobs(workspace.folder), workspace.ledger.name)
    workspace.finish()
    return ledger


def _written(workspace: Workspace, ledger: Ledger, tally: _Tally) -> WrittenVolume:
    info = parse(read_documents(_blobs(workspace.volume)))
    return WrittenVolume(
        volume=workspace.volume,
        ledger_sha256=ledger.sha256,
        statistics=ledger.statistics,
        levels=info.levels,
        chunks=ledger.states(),
        bytes_stored=int(ledger.rows["nbytes"].sum()),
        **vars(tally),
    )


def _blobs(folder: Path) -> Any:
    from em_pipeline.storage.local_blobs import LocalBlobs

    return LocalBlobs(folder)
