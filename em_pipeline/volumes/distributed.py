"""Units written by the workers of a Dask scheduler (https://distributed.dask.org), on any number of machines.

Voxels never cross Dask's network: workers read the source and write the place themselves. Each worker is
told of a job once, says what it cannot reach, and is then given a few units at a time, by name. Whom to give
what is decided here and not by the scheduler, which would give a worker a task per thread and hold a task
whose worker was killed several times to be bad: here its units go to another worker, and a unit that was
finished before is not written again.
"""

import itertools
import queue
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from distributed import Client, Future, KilledWorker

from em_pipeline.domain.errors import EmError, InputRefused, ServiceUnavailable
from em_pipeline.domain.progress import Progress
from em_pipeline.volumes.compute import Job
from em_pipeline.volumes.hand import NotIntroduced, introduce, packed, write
from em_pipeline.volumes.passes import STEP
from em_pipeline.volumes.plan import LevelPlan, Unit

_ANSWER_S: Final = 5.0
"""How long the scheduler may take to answer a small question."""

_LOOK_S: Final = 1.0
"""How often the scheduler is asked who its workers are."""

_BATCH_BYTES: Final = 1 << 30
"""Voxels of units given at once: seconds of work, much to start a task for and little to lose."""

_SHARES: Final = 4
"""While units are left, a worker gets at most this part (1/4) of its share of them: all end together."""

DEATHS_BORNE: Final = 3
"""Workers that may end while they write one unit. Machines are taken away; more than that is no accident."""

_SAME: Final = ("em-pipeline", "distributed", "dask", "msgpack", "cloudpickle", "numpy", "imagecodecs")
"""Packages of one version everywhere: to understand one another, and the last two for equal bytes."""


class DaskCluster:
    """Implements `Compute` with the workers of `scheduler` (tcp://host:port), which come and go as they like.

    Connects when it is first needed. It waits `patience_s` seconds for a worker where there is none, or for
    one that says nothing; `deaths_borne` workers may end while they write one unit.
    """

    def __init__(self, scheduler: str, *, patience_s: float = 60.0, deaths_borne: int = DEATHS_BORNE) -> None:
        self.scheduler = scheduler
        self._patience = _Patience(patience_s, deaths_borne)
        self._client: Client | None = None
        self._crew: _Crew | None = None

    def run(self, job: Job, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        """See `Compute.run`. Raises besides `ServiceUnavailable` where the scheduler or its workers are gone,
        and `InputRefused` where a worker has other versions, too little memory, or cannot reach the source or
        the place.
        """
        if self._client is None or self._client.status != "running":
            self.close()
            with _answers(self.scheduler):
                self._client = Client(self.scheduler, timeout=_ANSWER_S, set_as_default=False)
        if self._crew is None or self._crew.job is not job:
            self._crew = _Crew(self.scheduler, self._client, job, self._patience)
        _LevelRun(self._crew, level, units, progress).run()

    def close(self) -> None:
        """Let go of the scheduler, which stays."""
        client, self._client, self._crew = self._client, None, None
        if client is not None:
            client.close(timeout=_ANSWER_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def _answers(scheduler: str) -> Iterator[None]:
    """Raises `ServiceUnavailable` for a scheduler that does not answer."""
    try:
        yield
    except OSError as error:
        raise ServiceUnavailable(
            f"Have units written by the Dask scheduler {scheduler}",
            f"it does not answer ({str(error) or type(error).__name__})",
            "Start it (`dask scheduler`) or correct EM_DASK_SCHEDULER, and run the same again: what is "
            "finished is kept. EM_COMPUTE=threads needs no scheduler",
        ) from error


@dataclass(frozen=True)
class _Patience:
    """How long to wait for a worker, and how many may end while they write one unit."""

    seconds: float
    deaths: int


@dataclass(frozen=True)
class _Work:
    """A task: an introduction where there are no units."""

    address: str
    units: tuple[Unit, ...]
    since: float


class _Crew:
    """The workers that know one job, by address, with the threads each works on it with."""

    def __init__(self, scheduler: str, client: Client, job: Job, patience: "_Patience") -> None:
        self.scheduler = scheduler
        self.client = client
        self.job = job
        self.patience = patience
        self.hands: dict[str, int] = {}
        self.left_out: set[str] = set()
        self.met = False
        self.payload = packed(job)
        self._numbers = itertools.count()
        self.token = uuid.uuid4().hex

    def submit(self, address: str, function: Any, *arguments: Any) -> Future:
        """Have a function called in one worker, and nowhere else."""
        return self.client.submit(
            function,
            self.token,
            *arguments,
            key=f"em-{self.token}-{next(self._numbers)}",
            workers=[address],
            allow_other_workers=False,
            pure=False,
        )

    def present(self) -> set[str]:
        """Addresses of the workers that the scheduler has now. Raises `ServiceUnavailable`."""
        with _answers(self.scheduler):
            if self.client.status != "running":
                raise ConnectionError("the connection was lost")
            return set(self.client.nthreads(callback_timeout=_ANSWER_S))

    def differences(self, addresses: set[str]) -> dict[str, str]:
        """Of each of those workers that answers, what is of another version there than here, or ""."""
        with _answers(self.scheduler):
            found = self.client.get_versions(packages=_SAME)
        here = found["client"]["packages"]
        return {
            address: difference(here, versions["packages"])
            for address, versions in found["workers"].items()
            if address in addresses
        }


def difference(here: dict[str, str | None], there: dict[str, str | None]) -> str:
    ours, theirs = ({**found, "python": _minor(found["python"])} for found in (here, there))
    return ", ".join(
        f"{package} {theirs.get(package) or 'is missing'} (here {ours.get(package) or 'missing'})"
        for package in ("python", *_SAME)
        if theirs.get(package) != ours.get(package)
    )


def _minor(python: str | None) -> str | None:
    return python and ".".join(python.split(".")[:2])


class _LevelRun:
    """The units of one level on their way to the workers of a crew and back."""

    def __init__(self, crew: _Crew, level: LevelPlan, units: Sequence[Unit], progress: Progress) -> None:
        self._crew = crew
        self._level = level
        self._waiting = deque(units)
        self._progress = progress
        self._flying: dict[Future, _Work] = {}
        self._landed: queue.Queue[Future] = queue.Queue()
        self._deaths: Counter[int] = Counter()
        self._alone_since: float | None = None
        self._itemsize = crew.job.plan.dtype.itemsize

    def run(self) -> None:
        try:
            looked = -_LOOK_S
            while self._waiting or any(work.units for work in self._flying.values()):
                if time.monotonic() - looked >= _LOOK_S:
                    self._look_round()
                    looked = time.monotonic()
                self._hand_out()
                self._take_in()
        finally:
            if self._flying and self._crew.client.status == "running":
                self._crew.client.cancel(list(self._flying), force=True)

    def _look_round(self) -> None:
        """Miss the workers that went, and introduce the job to those that came."""
        crew = self._crew
        present = crew.present()
        for address in crew.hands.keys() - present:
            del crew.hands[address]
            self._progress.note(f"the Dask worker {address} went away")
        for future, work in list(self._flying.items()):
            if work.address not in present:
                self._lose(future)
            elif not work.units and time.monotonic() - work.since > crew.patience.seconds:
                self._give_up(future)
        asked = {work.address for work in self._flying.values()}
        if new := present - crew.hands.keys() - crew.left_out - asked:
            for address, difference in crew.differences(new).items():
                if difference:
                    self._leave_out(address, _other_versions(difference))
                else:
                    self._fly(address, (), introduce, crew.payload)
        self._check_company()

    def _hand_out(self) -> None:
        """Give units to every worker that has none, once all that were there at first have answered."""
        crew = self._crew
        if not crew.met:
            if not crew.hands or any(not work.units for work in self._flying.values()):
                return
            crew.met = True
            threads = sum(crew.hands.values())
            self._progress.note(f"{len(crew.hands)} Dask workers write, with {threads} threads in all")
        busy = {work.address for work in self._flying.values()}
        for address in crew.hands.keys() - busy:
            if units := self._next_units():
                self._fly(address, units, write, self._level.index, [unit.index for unit in units])

    def _next_units(self) -> tuple[Unit, ...]:
        """A few, that follow one another; a unit that workers ended with goes alone."""
        share = -(-len(self._waiting) // (_SHARES * len(self._crew.hands)))
        units: list[Unit] = []
        while self._waiting and len(units) < share:
            alone = self._deaths[self._waiting[0].index] > 0
            if units and (alone or self._nbytes(units) >= _BATCH_BYTES):
                break
            units.append(self._waiting.popleft())
            if alone:
                break
        return tuple(units)

    def _fly(self, address: str, units: tuple[Unit, ...], function: Any, *arguments: Any) -> None:
        future = self._crew.submit(address, function, *arguments)
        self._flying[future] = _Work(address, units, time.monotonic())
        future.add_done_callback(self._landed.put)

    def _take_in(self) -> None:
        """Wait for a task to end, but not for long, and take in what came of it."""
        try:
            future = self._landed.get(timeout=_LOOK_S)
        except queue.Empty:
            return
        work = self._flying.get(future)
        if work is None:  # cancelled by us
            return
        if future.status == "error":
            self._fail(future, work, future.exception(timeout=_ANSWER_S))
            return
        try:
            found = future.result(timeout=_ANSWER_S)
        except (TimeoutError, CancelledError):
            # What it gave went with its worker, or all of it with the scheduler.
            self._crew.present()
            self._lose(future)
            return
        del self._flying[future]
        if not work.units:
            self._crew.hands[work.address] = found
            return
        for note in found:
            self._progress.note(note)
        self._progress.advance(STEP, self._nbytes(work.units))

    def _fail(self, future: Future, work: _Work, error: BaseException | None) -> None:
        """Raises what stopped a task, unless others can do without it."""
        if isinstance(error, KilledWorker):
            self._lose(future)
            return
        del self._flying[future]
        if isinstance(error, NotIntroduced):
            self._crew.hands.pop(work.address, None)
            self._waiting.extendleft(reversed(work.units))
            return
        if work.units and error is not None:
            error.add_note(f"on the Dask worker {work.address}")
            raise error
        self._leave_out(work.address, error)

    def _leave_out(self, address: str, error: BaseException | None) -> None:
        """Do without a worker that cannot help. Raises `InputRefused` where it was there from the start."""
        self._crew.left_out.add(address)
        refusal = _refusal(address, error)
        if not self._crew.met:
            raise refusal from error
        self._progress.note(f"{refusal.tried}: {refusal.found}; it is left out")

    def _lose(self, future: Future) -> None:
        """Give the units of a task whose worker is gone to others."""
        work = self._flying.pop(future)
        self._crew.client.cancel([future], force=True)
        self._deaths.update(unit.index for unit in work.units)
        self._waiting.extendleft(reversed(work.units))
        for unit in work.units:
            # Its fellows in the task may have been as innocent.
            if self._deaths[unit.index] > self._crew.patience.deaths and len(work.units) == 1:
                raise ServiceUnavailable(
                    f"Write unit {unit.index} of level {self._level.index}",
                    f"{self._deaths[unit.index]} Dask workers ended while they were at it, the last one "
                    f"{work.address}",
                    "See the workers' logs; where they were killed for their memory, lower EM_MEMORY_BUDGET. "
                    "Then run the same again: what is finished is kept",
                )

    def _give_up(self, future: Future) -> None:
        """Do without a worker that does not say whether it can help."""
        work = self._flying.pop(future)
        self._crew.client.cancel([future], force=True)
        silence = f"it has not answered for {self._crew.patience.seconds:.0f} s"
        self._leave_out(work.address, InputRefused("Introduce the job", silence, "See the worker's log"))

    def _check_company(self) -> None:
        """Raises `ServiceUnavailable` where there has been nobody to write for too long."""
        if self._crew.hands or self._flying:
            self._alone_since = None
            return
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
            self._progress.note(f"waiting {self._crew.patience.seconds:.0f} s for a Dask worker")
        if now - self._alone_since >= self._crew.patience.seconds:
            raise ServiceUnavailable(
                "Have units written by Dask workers",
                f"there was none for {self._crew.patience.seconds:.0f} s, without the "
                f"{len(self._crew.left_out)} that were left out",
                "Start some (`dask worker` with the scheduler's address), and run the same again: what is "
                "finished is kept",
            )

    def _nbytes(self, units: Sequence[Unit]) -> int:
        return sum(unit.box.shape.voxels for unit in units) * self._itemsize


def _other_versions(difference: str) -> InputRefused:
    return InputRefused(
        "Compare versions",
        difference,
        "Install from one lock file everywhere",
    )


def _refusal(address: str, error: BaseException | None) -> InputRefused:
    """What a worker cannot do, and which worker it is."""
    tried = f"Have the Dask worker {address} write units"
    if isinstance(error, EmError):
        return InputRefused(tried, f"{error.tried}: {error.found}", error.to_do)
    return InputRefused(tried, f"{type(error).__name__}: {error}", "See the worker's log")
