"""Memory that is freed and soon wanted again stays with the process, until the work is over."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Final

# malloc.h of the GNU C library.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGEST_BUFFER: Final = 32 << 20
"""The most that glibc lets `M_MMAP_THRESHOLD` be (HEAP_MAX_SIZE / 2)."""


@cache
def keep_freed_memory() -> None:
    """Let glibc hand out freed buffers of up to 32 MiB again instead of giving them back to the kernel.

    Encoders and array sums take and free a few MiB for each chunk. By default every page of that is given
    back, found, cleared and mapped again: half of the CPU time of a rechunk. What is freed stays with the
    process until `give_freed_memory_back`. Other C libraries are left as they are.
    """
    share_freed_memory()
    _mallopt(_M_MMAP_THRESHOLD, _LARGEST_BUFFER)
    _mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_BUFFER)


@cache
def share_freed_memory() -> None:
    """Let threads that begin from now on take what others freed, from one arena of glibc.

    By default each thread has an arena, which keeps what was freed after the thread has ended: `malloc_trim`
    gives no end of such an arena back. Few allocations of many bytes hardly wait for each other. To be called
    before a process begins threads: an arena that is there already is used again. Other C libraries are left
    as they are.
    """
    _mallopt(_M_ARENA_MAX, 1)


def give_freed_memory_back() -> None:
    """Give the kernel every page of freed buffers, in the arenas of all threads.

    After work for which `keep_freed_memory` let them stay: the next step of the same process takes other
    buffers. Takes milliseconds. Other C libraries are left as they are.
    """
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)


def _mallopt(parameter: int, value: int) -> None:
    if (mallopt := _glibc("mallopt")) is not None:
        mallopt(parameter, value)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function that only the GNU C library has; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
