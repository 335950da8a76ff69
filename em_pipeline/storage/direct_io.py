"""Files written past the page cache, as far as the file system lets us.

A volume is written once and not read soon. Through the page cache each of its pages is first found, cleared
and copied to, then written out by the kernel at `fsync`; O_DIRECT (open(2)) hands whole blocks to the device.
"""

import errno
import fcntl
import mmap
import os
import threading
from pathlib import Path
from typing import Final

import numpy as np

BLOCK: Final = 4096
"""Offsets, lengths and memory of direct writes are multiples of this: the largest logical block in use."""

HELD_BACK: Final = 128 << 10
"""Bytes of small appends that are gathered at most: each direct write waits for the device."""

_STAGED: Final = 4 << 20
_local = threading.local()


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
            count = self._write_some(view)
            self._written += count
            view = view[count:]

    def _write_some(self, view: memoryview) -> int:
        return os.pwrite(self._descriptor, view, self._written)


class DirectFile(AppendedFile):
    """The same past the page cache, where the file system can; up to `HELD_BACK` bytes are held back."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._direct = _set_direct(self._descriptor)
        self._tail = b""

    def append(self, payload: bytes | memoryview) -> None:
        view = memoryview(payload).cast("B")
        if not self._direct:
            self._write(view)
            return
        staged = _staging()
        while view:
            held = len(self._tail)
            taken = min(len(view), _STAGED - held)
            staged[:held] = np.frombuffer(self._tail, np.uint8)
            staged[held : held + taken] = np.frombuffer(view[:taken], np.uint8)
            whole = (held + taken) // BLOCK * BLOCK if held + taken >= HELD_BACK else 0
            if whole:
                self._write(staged[:whole].data)
            self._tail = staged[whole : held + taken].tobytes()
            view = view[taken:]

    def sync(self) -> None:
        if self._tail:
            _unset_direct(self._descriptor)
            self._direct = False
            self._write(memoryview(self._tail))
            self._tail = b""
        super().sync()

    def _write_some(self, view: memoryview) -> int:
        try:
            return super()._write_some(view)
        except OSError as error:
            # Some file systems take the flag and refuse the write; so do all after a write that fell short.
            if not self._direct or error.errno != errno.EINVAL:
                raise
            # `_direct` stays as it is: what is held back has to come before whatever is appended next.
            _unset_direct(self._descriptor)
            return super()._write_some(view)


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


def _staging() -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """This thread's block-aligned memory, used for every file it writes."""
    if not hasattr(_local, "staged"):
        # Private: memory that a forked child shares would carry its bytes into our files.
        private = mmap.mmap(-1, _STAGED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _local.staged = np.frombuffer(private, np.uint8)
    staged: np.ndarray[tuple[int], np.dtype[np.uint8]] = _local.staged
    return staged
