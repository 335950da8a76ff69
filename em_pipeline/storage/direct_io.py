"""Files written past the page cache, as far as the file system lets us.

A volume is written once and not read soon. Through the page cache each of its pages is first found, cleared
and copied to, then written out by the kernel at `fsync`; O_DIRECT (open(2)) hands whole blocks to the device.
"""

import errno
import fcntl
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Final

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
        self._write_at(view, self._written)
        self._written += len(view)

    def _write_at(self, view: memoryview, offset: int) -> None:
        while view:
            count = self._write_some(view, offset)
            offset += count
            view = view[count:]

    def _write_some(self, view: memoryview, offset: int) -> int:
        return os.pwrite(self._descriptor, view, offset)


class DirectFile(AppendedFile):
    """The same past the page cache, where the file system can; up to `HELD_BACK` bytes are held back.

    What is appended is copied, and written while whoever appends goes on: `append` may raise what went wrong
    with an earlier one, `sync` raises what went wrong with any.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._direct = _set_direct(self._descriptor)
        self._tail = b""
        self._device = _device()
        self._writing: deque[Future[None]] = deque()

    def append(self, payload: bytes | memoryview) -> None:
        while self._writing and self._writing[0].done():
            self._writing.popleft().result()
        view = memoryview(payload).cast("B")
        if not self._direct:
            self._write(view)
            return
        while view:
            stage, held = self._device.free_stage(), len(self._tail)
            taken = min(len(view), _STAGED - held)
            stage[:held] = np.frombuffer(self._tail, np.uint8)
            stage[held : held + taken] = np.frombuffer(view[:taken], np.uint8)
            whole = (held + taken) // BLOCK * BLOCK if held + taken >= HELD_BACK else 0
            self._tail = stage[whole : held + taken].tobytes()
            self._writing.append(self._device.submit(self, stage, whole, self._written))
            self._written += whole
            view = view[taken:]

    def sync(self) -> None:
        while self._writing:
            self._writing.popleft().result()
        if self._tail:
            _unset_direct(self._descriptor)
            self._direct = False
            self._write(memoryview(self._tail))
            self._tail = b""
        super().sync()

    def close(self) -> None:
        # Another file may have the descriptor's number soon.
        wait(self._writing)
        super().close()

    def write_stage(self, stage: _Stage, count: int, offset: int) -> None:
        """Write the first `count` bytes of `stage` (whole blocks) at `offset`; for the device's threads."""
        self._write_at(stage[:count].data, offset)

    def _write_some(self, view: memoryview, offset: int) -> int:
        try:
            return super()._write_some(view, offset)
        except OSError as error:
            # Some file systems take the flag and refuse the write; so do all after a write that fell short.
            if not self._direct or error.errno != errno.EINVAL:
                raise
            # `_direct` stays as it is: what is held back has to come before whatever is appended next.
            _unset_direct(self._descriptor)
            return super()._write_some(view, offset)


class _Device:
    """Threads that write for all files of the process, and the block-aligned memory that they write from."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_STAGES - 1, "direct")
        self._free: SimpleQueue[_Stage] = SimpleQueue()
        for _ in range(_STAGES):
            # Private: memory that a forked child shares would carry its bytes into our files.
            private = mmap.mmap(-1, _STAGED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._free.put(np.frombuffer(private, np.uint8))

    def free_stage(self) -> _Stage:
        """Memory to fill, of `_STAGED` bytes; waits until some is written. To be given to `submit`."""
        return self._free.get()

    def submit(self, file: DirectFile, stage: _Stage, count: int, offset: int) -> Future[None]:
        """Write the first `count` bytes of `stage`, and free it. The future has what went wrong."""
        return self._pool.submit(self._write, file, stage, count, offset)

    def _write(self, file: DirectFile, stage: _Stage, count: int, offset: int) -> None:
        try:
            file.write_stage(stage, count, offset)
        finally:
            self._free.put(stage)


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
