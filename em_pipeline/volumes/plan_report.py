"""What a plan will take, said before anything is written: bytes, memory, requests and time."""

from dataclasses import dataclass
from itertools import pairwise

from em_pipeline.domain.geometry import Shape, VoxelSize
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.domain.wording import binary_size, counted
from em_pipeline.volumes.cost import Machine, Ratios, Requests, rechunk_cost
from em_pipeline.volumes.memory import of_process, of_publication
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan
from em_pipeline.volumes.sampling import Sample


@dataclass(frozen=True)
class LevelReport:
    """One level: shapes in voxels z-y-x, counts of what covers it, the factors to the next coarser level.

    `slabs_held` slabs of `slab_shape` are in memory at once.
    """

    index: int
    shape: Shape
    voxel_size: VoxelSize
    factors: Shape
    chunks: int
    shards: int
    units: int
    unit_shape: Shape
    slab_shape: Shape
    slabs_held: int

    @property
    def halved(self) -> str:
        """The axes that the next level has half as many voxels along."""
        return "".join(axis for axis, factor in zip("zyx", self.factors, strict=True) if factor == 2)


@dataclass(frozen=True)
class PlanReport:
    """What one image takes. Bytes, but for `amplification` (decoded per voxel that is wanted) and `seconds`.

    `unit_bytes` are voxels that a restart reads and writes again at most for each unit under way. What rests
    on a sample (`write_bytes`, `seconds`) is None without one; `requests` then assume `cost.Ratios`.
    `process_bytes` is what the process holds at most, to be compared with its budget. `threads_asked` are
    those of the settings, of which the budget may serve fewer: `threads`.
    """

    levels: tuple[LevelReport, ...]
    dtype: str
    kind: Kind
    codec: str
    threads: int
    threads_asked: int
    voxel_bytes: int
    read_bytes: int
    unit_bytes: int
    scratch_bytes: int
    process_bytes: int
    requests: Requests
    sample: Sample | None
    write_bytes: int | None
    seconds: float | None

    @property
    def amplification(self) -> float:
        return self.read_bytes / self.voxel_bytes

    @property
    def fewer_threads(self) -> str:
        """Of how many, and why, to follow the number of threads; empty where all work that were asked for."""
        fewer = self.threads < self.threads_asked
        return f" of {self.threads_asked:,}: EM_MEMORY_BUDGET serves no more" if fewer else ""

    def __str__(self) -> str:
        """One line for logs."""
        finest = self.levels[0]
        size = "×".join(map(str, finest.unit_shape))
        return (
            f"plan: {counted(len(self.levels), 'level')}, "
            f"{counted(sum(level.units for level in self.levels), 'unit')} "
            f"(of {size} voxels at level 0), {binary_size(self.read_bytes)} to read "
            f"({self.amplification:.2f}×), {binary_size(self.scratch_bytes)} of scratch, "
            f"{binary_size(self.process_bytes)} of memory on {counted(self.threads, 'thread')}"
            f"{self.fewer_threads}"
        )


def report(plan: RechunkPlan, sample: Sample | None = None, *, threads_asked: int = 1) -> PlanReport:
    """What `plan` takes; with a sample of its source also what it writes, and how long that takes.

    `threads_asked` are those that it could have had.
    """
    itemsize = plan.dtype.itemsize
    finest = plan.levels[0]
    every_voxel = sum(level.shape.voxels for level in plan.levels) * itemsize
    padding = sum(level.padding for level in plan.levels) * itemsize
    ratios = Ratios() if sample is None else Ratios(stored=sample.ratio, padding=sample.padding_ratio)
    write_bytes = seconds = None
    if sample is not None:
        write_bytes = round(every_voxel * sample.ratio + padding * sample.padding_ratio)
        # The same cores do both, in turn; what the disk needs beyond that is not known before it is tried.
        encoding = every_voxel / sample.encode_rate + padding / sample.padding_rate
        seconds = finest.bytes_to_read / sample.read_rate + encoding
    return PlanReport(
        levels=tuple(map(_level, plan.levels)),
        dtype=plan.dtype.name,
        kind=plan.kind,
        codec=plan.codec,
        threads=plan.threads,
        threads_asked=max(threads_asked, plan.threads),
        voxel_bytes=finest.shape.voxels * itemsize,
        read_bytes=finest.bytes_to_read,
        unit_bytes=max(_unit_voxels(level) for level in plan.levels) * itemsize,
        scratch_bytes=_scratch_voxels(plan) * itemsize,
        process_bytes=max(
            of_process(plan.bytes_held, plan.threads), of_publication(plan.chunk_count, plan.chunk_bytes)
        ),
        requests=rechunk_cost(plan, Machine(cores=plan.threads), 1, ratios=ratios).requests,
        sample=sample,
        write_bytes=write_bytes,
        seconds=seconds,
    )


def _level(level: LevelPlan) -> LevelReport:
    return LevelReport(
        index=level.index,
        shape=level.shape,
        voxel_size=level.voxel_size,
        factors=level.factors,
        chunks=level.chunk_grid.voxels,
        shards=level.shard_grid.voxels,
        units=level.unit_count,
        unit_shape=level.unit_shape,
        slab_shape=level.slab_shape,
        slabs_held=level.slabs_held,
    )


def _unit_voxels(level: LevelPlan) -> int:
    return Shape(*map(min, level.unit_shape, level.shape)).voxels


def _scratch_voxels(plan: RechunkPlan) -> int:
    """At most: a level's scratch is read while the next one's is written."""
    coarser = [level.shape.voxels for level in plan.levels[1:]]
    return max((a + b for a, b in pairwise([*coarser, 0])), default=0)
