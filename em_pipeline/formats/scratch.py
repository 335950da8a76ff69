"""Memory that readers use again: fresh pages cost more than the bytes decoded into them."""

import math
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LARGEST_KEPT: Final = 16 << 20
"""Bytes of one buffer that a thread keeps between reads. Larger ones are freed when the read ends."""

BAND_BYTES: Final = 256 << 10
"""Voxels that are read or decoded at once on their way into an array: they stay in a core's cache."""

_held = threading.local()


def scratch(purpose: str, count: int) -> NDArray[np.uint8]:
    """`count` bytes of this thread, whose content is arbitrary; valid until it asks for `purpose` again.

    A thread keeps one buffer for each purpose, of at most `LARGEST_KEPT` bytes, until it ends.
    """
    buffers: dict[str, NDArray[np.uint8]] = _held.__dict__
    kept = buffers.get(purpose)
    if kept is None or len(kept) < count:
        kept = np.empty(count, np.uint8)
        if count <= LARGEST_KEPT:
            buffers[purpose] = kept
    return kept[:count]


def scratch_array(purpose: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`scratch` as a C-contiguous array."""
    array: NDArray[Any] = scratch(purpose, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    return array
