"""Locks in an object store, which knows none: objects that their holder renews, put where none is valid.

Times are the store's own (its Date and Last-Modified): hosts whose clocks differ agree on what has expired.
Conditional puts: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html and
https://cloud.google.com/storage/docs/request-preconditions.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from em_pipeline.domain.errors import Busy, EmError, StorageFailed
from em_pipeline.storage.local_files import TEMPORARY
from em_pipeline.storage.object_client import Leased, ObjectClient

LOCK: Final = f"{TEMPORARY}lock"
"""The lock of a folder, among the names that are never listed."""

LEASE_S: Final = 60.0
RENEWALS: Final = 4
"""In the time of a lease, so that three may fail."""

WHOLE_S: Final = 1.0
"""By which an age may look too great: Date and Last-Modified are whole seconds (RFC 9110, section 5.6.7)."""


@dataclass(frozen=True)
class Holder:
    """What a lock says of who holds it. `renewal` makes each content, and so each tag, another."""

    token: str
    host: str
    machine: str
    pid: int
    started: str
    lease_s: float
    renewal: int = 0

    def encoded(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    def is_dead(self) -> bool:
        """Whether it was a process of this machine that is no more."""
        return self.machine == _machine() and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def lease(client: ObjectClient, key: str, tried: str, seconds: float = LEASE_S) -> Iterator[None]:
    """Hold the lock `key`. A holder that was killed blocks others for `seconds` and `WHOLE_S` more, on its
    own machine not at all. Raises `Busy`, naming the holder, and at the end `StorageFailed` where the lock
    could not be renewed in time and may be another's.
    """
    held = _Lease(client, key, tried, seconds)
    held.take()
    renewing = threading.Thread(target=held.renew, name=f"lease of {key}", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        held.over.set()
        renewing.join()
        lost = held.lost or held.is_overdue()
        held.release()
    if lost:
        raise StorageFailed(
            tried,
            f"the lock {client.access.url(key)} could not be renewed and may be another's since",
            "What was written is checked when it is read; run the same again",
        )


class _Lease:
    def __init__(self, client: ObjectClient, key: str, tried: str, seconds: float) -> None:
        self._client, self._key, self._tried, self._seconds = client, key, tried, seconds
        self._token = secrets.token_hex(16)
        self._renewal = 0
        self._tag: str | None = None
        self._since = 0.0
        self.lost = False
        self.over = threading.Event()

    def take(self) -> None:
        for _ in range(3):
            found = self._client.look(self._key)
            holder = _holder(found)
            if found is not None and not _is_over(found, holder, self._seconds):
                raise Busy(
                    self._tried,
                    f"{holder or 'another process'} is at it, heard of {max(0.0, found.age_s):.0f} s ago",
                    "Wait for it to end, or end it; what it finished is kept",
                )
            if self._put(found.tag if found else None):
                return
        raise Busy(self._tried, "other processes took it first", "Wait for them to end")

    def renew(self) -> None:
        while not self.over.wait(self._seconds / RENEWALS):
            try:
                self.lost = not self._put(self._tag)
            except EmError:
                self.lost = self.is_overdue()
            if self.lost:
                return

    def is_overdue(self) -> bool:
        """Whether the lease has ended since it was last renewed."""
        return time.monotonic() - self._since > self._seconds

    def release(self) -> None:
        # A lock near its end may be another's before the request arrives, and not every server heeds the tag.
        if self._tag is not None and time.monotonic() - self._since < self._seconds / 2:
            with suppress(EmError):  # it ends by itself
                self._client.delete_if(self._key, self._tag)

    def _put(self, replaced: str | None) -> bool:
        """Whether the lock is ours now, having been `replaced` or not there before."""
        asked = time.monotonic()
        tag = self._client.put_if(self._key, self._payload(), replaced)
        if tag is None:  # refused, or done by an earlier attempt whose answer was lost
            found = self._client.look(self._key)
            holder = _holder(found)
            if found is None or holder is None or holder.token != self._token:
                self._tag = None
                return False
            tag = found.tag
        self._tag, self._since = tag, asked
        return True

    def _payload(self) -> bytes:
        self._renewal += 1
        return Holder(
            token=self._token,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            lease_s=self._seconds,
            renewal=self._renewal,
        ).encoded()


def _holder(found: Leased | None) -> Holder | None:
    try:
        return Holder(**json.loads(found.payload)) if found else None
    except (ValueError, TypeError):  # a lock of another kind: whoever put it may hold it
        return None


def _is_over(found: Leased, holder: Holder | None, seconds: float) -> bool:
    if holder is None:
        return found.age_s > seconds + WHOLE_S
    return found.age_s > holder.lease_s + WHOLE_S or holder.is_dead()


def _machine() -> str:
    """Where a process id means the same process: one boot of one host, one namespace of processes."""
    told = [socket.gethostname()]
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        told.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(told)


def _started(pid: int) -> str:
    """When the process began, as the system counts (proc(5), stat, field 22); empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _exists(pid)
    after_name = stat.rpartition(")")[2].split()
    return "" if after_name[0] in "ZX" else after_name[19]


def _exists(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "?"
    return "?"
