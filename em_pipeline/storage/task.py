"""What a download consists of: files to hold, pieces of work, and who gives some of them away."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from em_pipeline.domain.errors import SourceUnavailable
from em_pipeline.domain.files import RemoteFile
from em_pipeline.domain.progress import Progress
from em_pipeline.storage.holdings import Holdings
from em_pipeline.storage.journal import Places
from em_pipeline.storage.transport import Transport

# One piece of work of a pool's thread; what it returns is to be done next.
Unit: TypeAlias = Callable[[], "list[Unit]"]


class Restart(Exception):
    """What was fetched of a file so far is of no use; it must be fetched from its beginning."""


class Absent(Exception):
    """The portal does not have a file that it may lack."""


class Tally:
    """Tells a watcher of one file's bytes; bytes that are fetched again do not count twice."""

    def __init__(self, progress: Progress, step: str) -> None:
        self._progress = progress
        self._step = step
        self._told = 0
        self._lock = threading.Lock()

    def reached(self, count: int) -> None:
        with self._lock:
            new, self._told = count - self._told, max(count, self._told)
        if new > 0:
            self._progress.advance(self._step, new)

    def note(self, message: str) -> None:
        self._progress.note(message)


class Sharer(Protocol):
    """Something that is fetched, of which others may take over a part."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to fetch here."""
        ...

    def share(self) -> Unit | None:
        """Some of what is left, for a connection that has nothing else to do; None where that is no use."""
        ...


class Sharers:
    """Transfers that may give away some of what they fetch, once there is nothing else to do.

    Before that, a connection that is done is of more use to another file: who takes over asks once more, and
    who gives away has to connect anew.
    """

    def __init__(self) -> None:
        self._transfers: list[Sharer] = []
        self._lock = threading.Lock()

    def join(self, transfer: Sharer) -> None:
        with self._lock:
            self._transfers.append(transfer)

    def unit(self) -> Unit | None:
        """A piece of work that one of them gives away."""
        with self._lock:
            self._transfers = [transfer for transfer in self._transfers if not transfer.over]
            giving = list(self._transfers)
        return next((unit for transfer in giving if (unit := transfer.share())), None)


@dataclass(frozen=True)
class Task:
    """A file to be held. `addresses` are those of its bytes that are still to be tried, the next one first.

    `part_size` is that of the largest part, `request_size` the most bytes that one request asks for.
    `outage` is why the addresses before were given up; `restarts` counts how often the file changed.
    """

    remote: RemoteFile
    addresses: tuple[str, ...]
    places: Places
    transport: Transport
    holdings: Holdings
    part_size: int
    request_size: int
    tally: Tally
    sharers: Sharers
    begin: "Callable[[Task], list[Unit]]"
    outage: SourceUnavailable | None = None
    restarts: int = 0
