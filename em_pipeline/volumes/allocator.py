"""Memory that is freed and soon wanted again stays with the process."""

import ctypes
import sys
from functools import cache
from typing import Final

# malloc.h of the GNU C library.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_BUFFER: Final = 32 << 20
"""The most that glibc lets `M_MMAP_THRESHOLD` be (HEAP_MAX_SIZE / 2)."""


@cache
def keep_freed_memory() -> None:
    """Let glibc hand out freed buffers of up to 32 MiB again instead of giving them back to the kernel.

    Encoders and array sums take and free a few MiB for each chunk. By default every page of that is given
    back, found, cleared and mapped again: half of the CPU time of a rechunk. At most 64 MiB per thread stay
    with the process for it. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_BUFFER)
