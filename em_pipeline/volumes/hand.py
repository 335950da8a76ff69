"""What a Dask worker does for a run elsewhere: it learns of a job once, then writes the units it is given.

A *hand* is one worker process. It writes with all its threads at once, so one piece of work at a time.
"""

import math
import pickle
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from distributed import get_worker

from em_pipeline.domain.errors import Busy, EmError, InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import Fetching
from em_pipeline.domain.progress import Silent
from em_pipeline.domain.wording import counted
from em_pipeline.volumes.compute import Job
from em_pipeline.volumes.memory import of_process
from em_pipeline.volumes.resume import is_finished

_JOBS_KNOWN: Final = 4  # a few runs may share a worker; one that is forgotten is sent again
_SHARE: Final = (
    "Give every worker the raw files at the paths that they have where the run is started "
    "(a shared file system)."
)
_jobs: OrderedDict[str, Job] = OrderedDict()
_knowing = threading.Lock()
_writing = threading.Lock()


class NotIntroduced(Exception):
    """A worker was asked to write for a job that it does not know: it was started anew, or forgot."""


@dataclass(frozen=True)
class Introduced:
    """What a worker says once it knows a job: its threads, and whether it is yet to fetch raw files."""

    threads: int
    lacks_files: bool


def packed(job: Job) -> bytes:
    """A job for `introduce`. Raises `InputRefused` where its source cannot be sent to another process."""
    try:
        return zlib.compress(pickle.dumps(job, protocol=5), 1)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise InputRefused(
            "Send the source to Dask workers",
            f"{type(job.source).__name__} cannot be pickled: {error}",
            "Set EM_COMPUTE=threads for this dataset",
        ) from error


def introduce(token: str, payload: bytes) -> Introduced:
    """Learn of a job, and see that it can be worked on here, but for files that are yet to be fetched.

    Raises `InputRefused` where the voxels in flight do not fit the worker's memory, or where its source or
    its place cannot be reached from here.
    """
    job: Job = pickle.loads(zlib.decompress(payload))  # noqa: S301 - the scheduler's clients run code anyway
    worker = get_worker()
    manager = worker.memory_manager
    threads = worker.state.nthreads
    check_memory(
        bytes_needed(job, threads), threads, manager.memory_limit, manager.memory_pause_fraction or 1.0
    )
    _check_place(job)
    lacks_files = isinstance(job.source, Fetching) and job.source.lacks(_first_voxel(job))
    if not lacks_files:
        _check_source(job)
    job = replace(job, plan=replace(job.plan, threads=threads))
    with _knowing:
        _jobs[token] = job
        _jobs.move_to_end(token)
        while len(_jobs) > _JOBS_KNOWN:
            _jobs.popitem(last=False)
    return Introduced(threads, lacks_files)


def reach(token: str) -> Introduced:
    """Fetch what reading a voxel of the source takes.

    Raises `NotIntroduced`, and `InputRefused` where it cannot be read here.
    """
    job = _known(token)
    _check_source(job)
    return Introduced(job.plan.threads, lacks_files=False)


def write(token: str, level: int, units: Sequence[int]) -> tuple[str, ...]:
    """Write units of a level, but for those that somebody has finished; the notes taken on the way.

    Raises `NotIntroduced`, and what `Job.write` raises.
    """
    job = _known(token)
    notes = _Notes()
    # Dask would begin a task per thread; another run's, or a cancelled one, may still be at work here.
    with _writing:
        of = job.plan.levels[level]
        asked = [of.unit(index) for index in units]
        job.write(of, [u for u in asked if not is_finished(job.plan, of, job.workspace, u)], notes)
    return tuple(notes.taken)


def _known(token: str) -> Job:
    with _knowing:
        job = _jobs.get(token)
    if job is None:
        raise NotIntroduced
    return job


class _Notes(Silent):
    """Keeps the notes; how far the work is, whoever gave it knows from the tasks that are done."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def note(self, message: str) -> None:
        self.taken.append(message)


def bytes_needed(job: Job, threads: int) -> int:
    """What a worker takes at most while it writes for a job."""
    fetching = job.source.fetch_bytes if isinstance(job.source, Fetching) else 0
    return of_process(job.plan.bytes_in_flight(threads), threads) + fetching


def check_memory(needed: int, threads: int, limit: int | None, usable: float) -> None:
    """`limit` is in bytes, None where there is none; past `usable` (a fraction) of it Dask pauses a worker.

    Raises `InputRefused` where that is less than the bytes that are needed.
    """
    if limit and needed > usable * limit:
        raise InputRefused(
            f"Write on {counted(threads, 'thread')} within {usable * limit / 2**20:.0f} MiB",
            f"voxels in flight, the source's decoder and the process itself take {needed / 2**20:.0f} MiB",
            f"Start the worker with `--memory-limit {math.ceil(needed / usable / 2**20)}MiB` or more, or "
            "with fewer threads (`--nthreads`), or lower EM_MEMORY_BUDGET where the run is started",
        )


def _check_place(job: Job) -> None:
    place = job.workspace.place
    try:
        job.workspace.check_begun()
        place.create_scratch(f"{job.workspace.work}/reached").abandon()
    except Busy as error:
        raise InputRefused(
            f"Find the work that was begun in {place.url}",
            "it is not seen from here",
            "Give every worker the same store: an object store, or a shared file system mounted at one path",
        ) from error


def _first_voxel(job: Job) -> BoundingBox:
    first = job.box.start
    return BoundingBox(start=first, stop=Shape(*(a + 1 for a in first)))


def _check_source(job: Job) -> None:
    voxel = _first_voxel(job)
    try:
        job.source.read(voxel, np.empty(voxel.shape, job.source.dtype))
    except EmError as error:
        raise InputRefused(
            f"Read a voxel of the source: {error.tried}",
            error.found,
            error.to_do if isinstance(job.source, Fetching) else f"{_SHARE} {error.to_do}".strip(),
        ) from error
