"""The connection to a Dask scheduler, and the tasks that it has: from its first use to its end or loss."""

import itertools
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final
from uuid import uuid4

from distributed import Client, Future
from distributed.versions import get_versions

from em_pipeline.domain.errors import ServiceUnavailable

ANSWER_S: Final = 5.0
"""How long the scheduler may take to answer a small question."""

_SAME: Final = ("em-pipeline", "distributed", "dask", "msgpack", "cloudpickle", "numpy", "imagecodecs")
"""Packages of one version everywhere: to understand one another, and the last two for equal bytes."""


class SchedulerLink:
    """A connection to `scheduler` (tcp://host:port). Raises `ServiceUnavailable` where it does not answer."""

    def __init__(self, scheduler: str) -> None:
        self.scheduler = scheduler
        self._landed: queue.Queue[Future] = queue.Queue()
        self._left: dict[str, Future] = {}
        self._name = f"em-{uuid4().hex}"
        self._numbers = itertools.count()
        with self._answers():
            self._client = Client(scheduler, timeout=ANSWER_S, set_as_default=False)

    @property
    def is_up(self) -> bool:
        return bool(self._client.status == "running")

    def close(self) -> None:
        """Let go of the scheduler, which stays, and of every task."""
        self._client.close(timeout=ANSWER_S)

    def present(self) -> set[str]:
        """Addresses of the workers that the scheduler has now. Raises `ServiceUnavailable`."""
        with self._answers():
            if not self.is_up:
                raise ConnectionError("the connection was lost")
            return set(self._client.nthreads(callback_timeout=ANSWER_S))

    def difference_at(self, address: str) -> str | None:
        """What is of another version in a worker than here, "" for nothing; None where it does not answer."""
        with self._answers():
            try:
                found = self._client.sync(
                    self._client.scheduler.broadcast,
                    msg={"op": "versions", "packages": _SAME},
                    workers=[address],
                    on_error="ignore",
                    callback_timeout=ANSWER_S,
                )
            except TimeoutError:
                self.present()  # is it the scheduler that does not answer?
                return None
        return difference(self._here, found[address]["packages"]) if address in found else None

    @cached_property
    def _here(self) -> dict[str, str | None]:
        packages: dict[str, str | None] = get_versions(packages=_SAME)["packages"]
        return packages

    def submit(self, address: str, function: Any, *arguments: Any) -> Future:
        """Have a function called in one worker, and nowhere else; it lands when it ends, however it ends."""
        future = self._client.submit(
            function,
            *arguments,
            key=f"{self._name}-{next(self._numbers)}",
            workers=[address],
            allow_other_workers=False,
            pure=False,
        )
        future.add_done_callback(self._landed.put)
        return future

    def next_landed(self, timeout_s: float) -> Future | None:
        """A task that ended, whoever is waiting for it."""
        try:
            return self._landed.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def cancel(self, futures: Sequence[Future]) -> None:
        """Have tasks end, those that have not begun at once. Nothing to do where the connection is lost."""
        if futures and self.is_up:
            self._client.cancel(list(futures), force=True)

    def leave(self, address: str, future: Future) -> None:
        """Wait no longer for a task, which keeps its worker occupied until it ends."""
        self._left[address] = future

    @property
    def occupied(self) -> set[str]:
        """Addresses of workers that are still at tasks that were left."""
        self._left = {address: future for address, future in self._left.items() if not future.done()}
        return set(self._left)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ServiceUnavailable(
                f"Have units written by the Dask scheduler {self.scheduler}",
                f"it does not answer ({str(error) or type(error).__name__})",
                "Start it (`dask scheduler`) or correct EM_DASK_SCHEDULER, and run the same again: what is "
                "finished is kept. EM_COMPUTE=threads needs no scheduler",
            ) from error


def difference(here: dict[str, str | None], there: dict[str, str | None]) -> str:
    """What is of another version `there`, by package and for Python, in words; "" for nothing."""
    ours, theirs = ({**found, "python": _minor(found["python"])} for found in (here, there))
    return ", ".join(
        f"{package} {theirs.get(package) or 'is missing'} (here {ours.get(package) or 'missing'})"
        for package in ("python", *_SAME)
        if theirs.get(package) != ours.get(package)
    )


def _minor(python: str | None) -> str | None:
    return python and ".".join(python.split(".")[:2])
