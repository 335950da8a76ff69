"""Who writes the units of a level. Units share nothing but the place, so anybody may write any of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.feed import Feed, ScratchFeed, SourceFeed
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.passes import LevelPass
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan, Unit
from em_pipeline.volumes.scratch import ScratchReader
from em_pipeline.volumes.workspace import Workspace


@dataclass(frozen=True)
class Job:
    """All that writing a unit takes: the voxels of `box` (of `source`, z-y-x), the plan, and the place.

    `missing` are, level by level, the voxels that the source does not hold. Pickled, a job can be worked on
    by any process that reaches the source's files and the place.
    """

    source: LazyVolume
    box: BoundingBox
    plan: RechunkPlan
    workspace: Workspace
    missing: tuple[Missing | None, ...]

    def write(self, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        """Write units of one level in this process, each finer level being complete.

        Raises `StorageFailed`, `ChunkCorrupt` where the finer level's voxels are lost, and whatever reading
        the source raises.
        """
        missing = self.missing[level.index]
        LevelPass(self.plan, level, self.workspace, self._feed(level), missing, progress).run(units)

    def _feed(self, level: LevelPlan) -> Feed:
        if level.index == 0:
            return SourceFeed(self.source, self.box.start, level)
        finer = self.plan.levels[level.index - 1]
        return ScratchFeed(ScratchReader(finer, self.plan.dtype, self.workspace), level)


class Compute(Protocol):
    """Something that has units written, and returns when all of them are.

    `elsewhere` names the machines that do it; it is empty where this process does.
    """

    @property
    def elsewhere(self) -> str: ...

    def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        """Raises what `Job.write` raises."""
        ...


class ThisProcess:
    """Writes every unit here, with the threads that the plan has."""

    elsewhere = ""

    def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        job.write(level, units, progress)
