"""Units written by the workers of a Dask scheduler (https://distributed.dask.org), on any number of machines.

Voxels never cross Dask's network: workers read the source and write the place themselves. Each worker is
told of a job once, says what it cannot reach, and is then given a few units at a time, by name. Whom to give
what is decided here and not by the scheduler, which would give a worker a task per thread and hold a task
whose worker was killed several times to be bad: here its units go to another worker, and a unit that was
finished before is not written again.

`SchedulerLink` is the connection, `Crew` the workers that can write for a job, `UnitQueue` what is left to
write; this module moves units between the last two.
"""

import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Final, Self

from distributed import Future, KilledWorker

from em_pipeline.domain.errors import ServiceUnavailable
from em_pipeline.domain.progress import Progress
from em_pipeline.domain.wording import counted
from em_pipeline.volumes.compute import Job
from em_pipeline.volumes.crew import Crew
from em_pipeline.volumes.hand import NotIntroduced
from em_pipeline.volumes.passes import STEP
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline.volumes.scheduler_link import ANSWER_S, SchedulerLink
from em_pipeline.volumes.unit_queue import Batch, Bounds, UnitQueue

_LOOK_S: Final = 1.0
"""How often the scheduler is asked who its workers are."""

_USUAL: Final = Bounds()


class DaskCluster:
    """Implements `Compute` with the workers of `scheduler` (tcp://host:port), which come and go as they like.

    Connects when it is first needed. It waits `patience_s` seconds for a worker where there is none, or for
    one that says nothing; `bounds` say what else is borne.
    """

    def __init__(self, scheduler: str, *, patience_s: float = 60.0, bounds: Bounds = _USUAL) -> None:
        self.scheduler = scheduler
        self._patience_s = patience_s
        self._bounds = bounds
        self._link: SchedulerLink | None = None
        self._crew: Crew | None = None

    @property
    def elsewhere(self) -> str:
        return f"the workers of the Dask scheduler {self.scheduler}"

    def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        """See `Compute.run`. Raises besides `ServiceUnavailable` where the scheduler or its workers are gone,
        and `InputRefused` where a worker has other versions, too little memory, or cannot reach the source or
        the place.
        """
        if self._link is None or not self._link.is_up:
            self.close()
            self._link = SchedulerLink(self.scheduler)
        if self._crew is None or self._crew.job is not job:
            self._dismiss()
            self._crew = Crew(self._link, job, self._patience_s, progress)
        queue = UnitQueue(units, job.plan.dtype.itemsize, self._bounds)
        try:
            _LevelRun(self._link, self._crew, level, queue, progress).run()
        except BaseException:
            self._dismiss()
            raise

    def close(self) -> None:
        """Let go of the scheduler, which stays."""
        link, self._link, self._crew = self._link, None, None
        if link is not None:
            link.close()

    def _dismiss(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _LevelRun:
    """The units of one level on their way to the workers of a crew and back."""

    def __init__(
        self, link: SchedulerLink, crew: Crew, level: LevelPlan, queue: UnitQueue, progress: Progress
    ) -> None:
        self._link = link
        self._crew = crew
        self._level = level
        self._queue = queue
        self._progress = progress
        self._flying: dict[Future, Batch] = {}

    def run(self) -> None:
        looked = -_LOOK_S
        try:
            while not self._queue.is_done:
                if time.monotonic() - looked >= _LOOK_S:
                    self._look_round()
                    looked = time.monotonic()
                self._hand_out()
                self._take_in()
        except BaseException:
            self._link.cancel(list(self._flying))
            raise
        # What others wrote meanwhile: cancelled, nobody would know when the worker is free again.
        for future, batch in self._flying.items():
            self._link.leave(batch.worker, future)

    @property
    def _busy(self) -> set[str]:
        return {batch.worker for batch in self._flying.values()}

    def _look_round(self) -> None:
        present = self._crew.look_round(self._busy)
        for future, batch in list(self._flying.items()):
            if batch.worker not in present:
                self._lose(future)
        for batch in self._queue.let_late_wait(time.monotonic()):
            self._progress.note(
                f"the Dask worker {batch.worker} has been at {counted(len(batch.units), 'unit')} for "
                f"{time.monotonic() - batch.since:.0f} s, far longer than is usual: others get them, too"
            )

    def _hand_out(self) -> None:
        """Give units to every worker that has none."""
        idle = self._crew.idle(self._busy)
        hands = len(idle) + len(self._flying)
        for address in idle:
            if batch := self._queue.take(address, hands, time.monotonic()):
                self._flying[self._crew.write(address, self._level, batch.units)] = batch

    def _take_in(self) -> None:
        """Wait for a task to end, but not for long, and take in what came of it."""
        future = self._link.next_landed(_LOOK_S)
        if future is None or self._crew.answered(future):
            return
        batch = self._flying.get(future)
        if batch is None:  # cancelled, or left
            return
        if future.status == "error":
            self._fail(future, future.exception(timeout=ANSWER_S))
            return
        try:
            notes = future.result(timeout=ANSWER_S)
        except (TimeoutError, CancelledError):
            # What it gave went with its worker, or all of it with the scheduler.
            self._link.present()
            self._lose(future)
            return
        del self._flying[future]
        for note in notes:
            self._progress.note(note)
        if new := self._queue.came_back(batch, time.monotonic()):
            self._progress.advance(STEP, new)

    def _fail(self, future: Future, error: BaseException | None) -> None:
        """Raises what stopped a task, unless others can do without it."""
        if isinstance(error, KilledWorker):
            self._lose(future)
            return
        batch = self._flying.pop(future)
        if isinstance(error, NotIntroduced):
            self._crew.forgot(batch.worker)
            self._queue.give_back(batch)
        elif self._queue.failed(batch) and error is not None:
            error.add_note(f"on the Dask worker {batch.worker}")
            raise error
        else:
            self._progress.note(f"the Dask worker {batch.worker} was late and failed: {error}")

    def _lose(self, future: Future) -> None:
        """Give the units of a task whose worker is gone to others."""
        batch = self._flying.pop(future)
        self._link.cancel([future])
        if (unit := self._queue.worker_ended(batch)) is not None:
            raise ServiceUnavailable(
                f"Write unit {unit.index} of level {self._level.index}",
                f"{self._queue.deaths_at(unit)} Dask workers ended while they were at it, the last one "
                f"{batch.worker}",
                "See the workers' logs; where they were killed for their memory, lower EM_MEMORY_BUDGET. "
                "Then run the same again: what is finished is kept",
            )
