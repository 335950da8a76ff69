"""The workers of a Dask scheduler and one job: who was asked, who can write for it, who was left out.

A worker that comes is told of the job (`hand.introduce`); one that has to fetch raw files first then does so
(`hand.reach`), for as long as it takes. Whoever answered both is a *hand*.
"""

import time
import uuid
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Final

from distributed import Future, KilledWorker

from em_pipeline.domain.errors import EmError, InputRefused, ServiceUnavailable
from em_pipeline.domain.progress import Progress
from em_pipeline.domain.wording import counted
from em_pipeline.volumes.compute import Job
from em_pipeline.volumes.hand import Introduced, NotIntroduced, introduce, packed, reach, write
from em_pipeline.volumes.plan import LevelPlan, Unit
from em_pipeline.volumes.scheduler_link import ANSWER_S, SchedulerLink

_DO: Final = "See the worker's log"


@dataclass(frozen=True)
class _Asked:
    """A question to a worker: who it is, or, where it is fetching files, whether it has them."""

    address: str
    since: float
    is_fetching: bool


class Crew:
    """The workers that know `job`. One is given `patience_s` seconds to answer, and as many to come."""

    def __init__(self, link: SchedulerLink, job: Job, patience_s: float, progress: Progress) -> None:
        self.job = job
        self._link = link
        self._patience_s = patience_s
        self._progress = progress
        self._hands: dict[str, int] = {}  # threads, by address
        self._left_out: dict[str, InputRefused] = {}
        self._asked: dict[Future, _Asked] = {}
        self._new: dict[str, float] = {}  # since when those are there that have not told their versions
        self._met = False
        self._alone_since: float | None = None
        self._payload = packed(job)
        self._token = uuid.uuid4().hex

    def idle(self, busy: set[str]) -> set[str]:
        """Addresses of hands that have nothing to do; none before all that were there at first answered."""
        if not self._met:
            if not self._hands or any(not asked.is_fetching for asked in self._asked.values()):
                return set()
            self._met = True
            threads = sum(self._hands.values())
            workers = counted(len(self._hands), "Dask worker writes", "Dask workers write")
            self._progress.note(f"{workers}, with {counted(threads, 'thread')} in all")
        return self._hands.keys() - busy - self._link.occupied

    def write(self, address: str, level: LevelPlan, units: Sequence[Unit]) -> Future:
        """Have a hand write units of a level."""
        numbers = [unit.index for unit in units]
        return self._link.submit(address, write, self._token, level.index, numbers)

    def look_round(self, busy: set[str]) -> set[str]:
        """Miss the workers that went, introduce the job to those that came; the addresses there are.

        Raises `ServiceUnavailable` where the scheduler does not answer, or nobody can write, with none of
        `busy` at work, for too long; `InputRefused` where one that was there from the start cannot help.
        """
        present = self._link.present()
        for address in self._hands.keys() - present:
            self.forgot(address)
            self._progress.note(f"the Dask worker {address} went away")
        for address in self._left_out.keys() - present:
            del self._left_out[address]  # whoever comes to that address is another worker
        for future, asked in list(self._asked.items()):
            if asked.address not in present:
                self._withdraw(future)
            elif not asked.is_fetching and time.monotonic() - asked.since > self._patience_s:
                self._withdraw(future)
                self._leave_out(asked.address, self._silence("Introduce the job"))
        self._introduce(present - self._link.occupied)
        self._check_company(busy)
        return present

    def answered(self, future: Future) -> bool:
        """Take in what a task says that ended, if it was a question. Raises `InputRefused` as above."""
        asked = self._asked.pop(future, None)
        if asked is None:
            return False
        if future.status == "error":
            error = future.exception(timeout=ANSWER_S)
            # One that was killed may be there again, and one that forgot the job is: they are asked anew.
            if error is not None and not isinstance(error, KilledWorker | NotIntroduced):
                self._leave_out(asked.address, error)
            return True
        try:
            hand: Introduced = future.result(timeout=ANSWER_S)
        except (TimeoutError, CancelledError):
            self._link.present()  # what it said went with its worker, or all of it with the scheduler
            return True
        if hand.lacks_files:
            self._progress.note(f"the Dask worker {asked.address} fetches raw files")
            self._ask(asked.address, reach, self._token, is_fetching=True)
        else:
            self._hands[asked.address] = hand.threads
        return True

    def forgot(self, address: str) -> None:
        """A worker no longer knows the job: if it is there, it is asked again."""
        self._hands.pop(address, None)

    def close(self) -> None:
        """Ask no more."""
        self._link.cancel(list(self._asked))
        self._asked.clear()

    def _introduce(self, present: set[str]) -> None:
        asked = {each.address for each in self._asked.values()}
        new = present - self._hands.keys() - self._left_out.keys() - asked
        now = time.monotonic()
        self._new = {address: self._new.get(address, now) for address in new}
        for address, since in self._new.items():
            difference = self._link.difference_at(address)
            if difference is None:
                if now - since > self._patience_s:
                    self._leave_out(address, self._silence("Compare versions"))
            elif difference:
                to_do = "Install from one lock file everywhere"
                self._leave_out(address, InputRefused("Compare versions", difference, to_do))
            else:
                self._ask(address, introduce, self._token, self._payload)

    def _ask(self, address: str, function: Any, *arguments: Any, is_fetching: bool = False) -> None:
        future = self._link.submit(address, function, *arguments)
        self._asked[future] = _Asked(address, time.monotonic(), is_fetching)

    def _withdraw(self, future: Future) -> None:
        del self._asked[future]
        self._link.cancel([future])

    def _leave_out(self, address: str, error: BaseException) -> None:
        """Do without a worker that cannot help. Raises `InputRefused` where it was there from the start."""
        refusal = self._left_out[address] = _refusal(address, error)
        if not self._met:
            raise refusal from error
        self._progress.note(f"{refusal.tried}: {refusal.found}; it is left out")

    def _silence(self, tried: str) -> InputRefused:
        return InputRefused(tried, f"it has not answered for {self._patience_s:.0f} s", _DO)

    def _check_company(self, busy: set[str]) -> None:
        if busy or self._asked or self._hands.keys() - self._link.occupied:
            self._alone_since = None
            return
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
            self._progress.note(f"waiting {self._patience_s:.0f} s for a Dask worker")
        if now - self._alone_since < self._patience_s:
            return
        without = f"without the {len(self._left_out)} that were left out"
        if stuck := len(self._link.occupied):
            without += f" and the {stuck} that do not come back from earlier work"
        if self._left_out:
            without += f" (the last: {list(self._left_out.values())[-1].found})"
        raise ServiceUnavailable(
            "Have units written by Dask workers",
            f"there was none for {self._patience_s:.0f} s, {without}",
            "Start some (`dask worker` with the scheduler's address), and run the same again: what is "
            "finished is kept",
        )


def _refusal(address: str, error: BaseException) -> InputRefused:
    """What a worker cannot do, and which worker it is."""
    tried = f"Have the Dask worker {address} write units"
    if isinstance(error, EmError):
        return InputRefused(tried, f"{error.tried}: {error.found}", error.to_do)
    return InputRefused(tried, f"{type(error).__name__}: {error}", _DO)
