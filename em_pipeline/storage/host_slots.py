"""At most so many connections to a host at once, whichever processes of this machine have them.

A portal counts the connections of an address, not of a process. A slot is a flock(2) on a file, so the kernel
frees those of a process that is killed.
"""

import fcntl
import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from em_pipeline.domain.errors import SourceUnavailable, StorageFailed
from em_pipeline.storage.local_files import storage_errors

# How often a slot that another process has is asked for again.
POLL_SECONDS = 0.05
# A wait that a person would wonder about, and one far beyond the turns that others take.
SAID_AFTER_S = 3.0
LONGEST_WAIT_S = 600.0
_dice = random.SystemRandom()


class Slot:
    """The right to one connection, until `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def release(self) -> None:
        # Unlinked while held: whoever locks it next sees that it is no longer the one by that name.
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class HostSlots:
    """The slots of `host`, of which there are `limit`; where processes differ, the largest limit holds."""

    def __init__(self, folder: Path, host: str, limit: int) -> None:
        self._folder = folder
        self._host = host
        self._name = quote(host, safe="")
        self._limit = limit

    def acquire(self, sleep: Callable[[float], None], note: Callable[[str], None] = lambda _: None) -> Slot:
        """A slot, as soon as there is one; `sleep` may raise to give up, and `note` is told of a long wait.

        Raises `StorageFailed`, and `SourceUnavailable` where there is none for `LONGEST_WAIT_S`.
        """
        with storage_errors("Keep to a portal's limit of connections"):
            _private_folder(self._folder)
            if not self.wanted() and (slot := self._take()):
                return slot
            with self._waiting():
                waited, said = 0.0, False
                while waited < LONGEST_WAIT_S:
                    # At random, or those who ask in step would shut others out.
                    pause = POLL_SECONDS * _dice.uniform(0.5, 1.5)
                    sleep(pause)
                    if slot := self._take():
                        return slot
                    waited += pause
                    if waited > SAID_AFTER_S and not said:
                        note(f"waiting for a connection to {self._host}: {self._taken}")
                        said = True
        raise SourceUnavailable(
            f"Connect to {self._host}",
            f"{self._taken}, for {LONGEST_WAIT_S / 60:g} minutes now",
            "Wait until the other downloads are done, or end one",
        )

    @property
    def _taken(self) -> str:
        return f"other work on this machine has all {self._limit} that are allowed"

    def wanted(self) -> bool:
        """Whether somebody waits for a slot."""
        try:
            descriptor = os.open(self._folder / f"{self._name}.waiting", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _take(self) -> Slot | None:
        for number in range(self._limit):
            path = self._folder / f"{self._name}.{number}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if _locked(descriptor) and _is_at(descriptor, path):
                return Slot(path, descriptor)
            os.close(descriptor)
        return None

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        path = self._folder / f"{self._name}.waiting"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)


def machine_folder() -> Path:
    """Where this user's processes on this machine meet, whatever store or home they work on."""
    return Path(tempfile.gettempdir()) / f"em-pipeline-{os.getuid()}" / "hosts"


def _private_folder(folder: Path) -> None:
    """Make the folder for this user alone: others may write where temporary files go."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StorageFailed(
            f"Keep locks in {folder}", "it is not a folder of this user", "Remove it, or set TMPDIR"
        )
    folder.mkdir(mode=0o700, exist_ok=True)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return there.st_ino == os.fstat(descriptor).st_ino
