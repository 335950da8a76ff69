"""Files written past the page cache, as far as the file system lets us.

A volume is written once and not read soon. Through the page cache each of its pages is first found, cleared
and copied to, then written out by the kernel at `fsync`; O_DIRECT (open(2)) hands whole blocks to the device.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections import deque
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple

import numpy as np

BLOCK: Final = 4096
"""Offsets, lengths and memory of direct writes are multiples of this: the largest logical block in use."""

HELD_BACK: Final = 128 << 10
"""Bytes of small appends that are gathered at most: each direct write waits for the device."""

_STAGED: Final = 4 << 20
_STAGES: Final = 3  # one that is filled while the device works on two
_Stage = np.ndarray[tuple[int], np.dtype[np.uint8]]


class AppendedFile:
    """A new file that grows at its end, through the page cache. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._written = 0

    def append(self, payload: bytes | memoryview) -> None:
        """Add bytes at the end."""
        self._write(memoryview(payload).cast("B"))

    def sync(self) -> None:
        """Make everything survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, view: memoryview) -> None:
        while view:
            count = os.pwrite(self._descriptor, view, self._written)
            self._written += count
            view = view[count:]


class DirectFile(AppendedFile):
    """The same past the page cache, where the file system can; up to `HELD_BACK` bytes are held back.

    What is appended is copied, and written while whoever appends goes on: `append` may raise what went wrong
    with an earlier one, `sync` raises what went wrong with any.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._device = _device()
            self._shared = _Descriptor(os.dup(self._descriptor))
        except BaseException:
            os.close(self._descriptor)
            path.unlink()
            raise
        self._direct = _set_direct(self._descriptor)
        self._tail = b""
        self._writing: deque[Future[None]] = deque()

    def append(self, payload: bytes | memoryview) -> None:
        self._raise_failed()
        view = memoryview(payload).cast("B")
        if not self._direct:
            self._write(view)
            return
        while len(self._tail) + len(view) >= HELD_BACK:
            view = self._append_some(view)
        self._tail += bytes(view)

    def sync(self) -> None:
        while self._writing:
            # Taken out only once it is done: whoever is interrupted meanwhile may come again.
            self._writing[0].result()
            self._writing.popleft()
        if self._tail:
            _unset_direct(self._descriptor)
            self._direct = False
            self._write(memoryview(self._tail))
            self._tail = b""
        super().sync()

    def close(self) -> None:
        # What is still being written keeps a descriptor of its own.
        del self._shared
        super().close()

    def _raise_failed(self) -> None:
        while self._writing and self._writing[0].done():
            self._writing[0].result()
            self._writing.popleft()

    def _append_some(self, view: memoryview) -> memoryview:
        """Have whole blocks written of what is held back and what fits behind it; the rest of `view`."""
        held = len(self._tail)
        taken = min(len(view), _STAGED - held)
        whole = (held + taken) // BLOCK * BLOCK
        stage = self._device.free_stage()
        try:
            stage[:held] = np.frombuffer(self._tail, np.uint8)
            stage[held : held + taken] = np.frombuffer(view[:taken], np.uint8)
            self._tail = stage[whole : held + taken].tobytes()
        except BaseException:
            self._device.give_back(stage)
            raise
        self._writing.append(self._device.write(self._shared, stage, whole, self._written))
        self._written += whole
        return view[taken:]


class _Descriptor:
    """An open file of which whole blocks are written, closed when nobody has it any more.

    Closed while a write is on its way, its number would soon be another file's.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        os.close(self._number)

    def write(self, view: memoryview, offset: int) -> None:
        while view:
            count = self._write_some(view, offset)
            offset += count
            view = view[count:]

    def _write_some(self, view: memoryview, offset: int) -> int:
        try:
            return os.pwrite(self._number, view, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Some file systems take the flag and refuse the write; so do all after a write that fell short.
        # What is raised from here has no context, whose traceback would keep the file open.
        _unset_direct(self._number)
        return os.pwrite(self._number, view, offset)


class _Job(NamedTuple):
    done: Future[None]
    file: _Descriptor
    stage: _Stage
    nbytes: int
    offset: int


class _Device:
    """Threads that write for all files of the process, and the block-aligned memory that they write from."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._free: SimpleQueue[_Stage] = SimpleQueue()
        for _ in range(_STAGES):
            private = mmap.mmap(-1, _STAGED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_DONTFORK"):
                # open(2): memory that is being written from must not be shared with a child.
                private.madvise(mmap.MADV_DONTFORK)
            self._free.put(np.frombuffer(private, np.uint8))
        for number in range(_STAGES - 1):
            # Daemons: nothing waits for a file that nobody synced.
            threading.Thread(target=self._work, name=f"direct-{number}", daemon=True).start()

    def free_stage(self) -> _Stage:
        """Memory to fill, of `_STAGED` bytes; waits until some is written. For `write` or `give_back`."""
        return self._free.get()

    def give_back(self, stage: _Stage) -> None:
        self._free.put(stage)

    def write(self, file: _Descriptor, stage: _Stage, nbytes: int, offset: int) -> Future[None]:
        """Write the first bytes of `stage` (whole blocks), and free it. The future has what went wrong."""
        done: Future[None] = Future()
        self._jobs.put(_Job(done, file, stage, nbytes, offset))
        return done

    def _work(self) -> None:
        while True:
            self._do(self._jobs.get())

    def _do(self, job: _Job) -> None:
        try:
            job.file.write(job.stage[: job.nbytes].data, job.offset)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the write raises it
            # Its traceback would keep the file open.
            job.done.set_exception(error.with_traceback(None))
        else:
            job.done.set_result(None)
        finally:
            self._free.put(job.stage)


@cache
def _device() -> _Device:
    return _Device()


# A forked child has none of the threads.
os.register_at_fork(after_in_child=_device.cache_clear)


def _set_direct(descriptor: int) -> bool:
    """Whether writes go past the page cache from now on."""
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:  # tmpfs and some network file systems
        return False
    return True


def _unset_direct(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
