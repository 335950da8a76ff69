"""What decodes the chunks of zarr and N5 arrays on this machine.

tensorstore decodes zarr; the few codecs and filters that it lacks are decoded by zarr-python, and N5 by
`n5_blocks`.
"""

import json
import math
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.arrays import ArrayLayout, StoredArray
from em_pipeline.formats.n5_blocks import N5Blocks, codec_of

# numcodecs would also run pickles; these only decode numbers.
SAFE_CODECS = frozenset(
    (
        *("zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "blosc", "delta", "shuffle", "fixedscaleoffset"),
        *("packbits", "astype", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"),
    )
)
# What the two libraries raise for damaged chunks and for documents that they do not take.
REFUSALS = (ValueError, RuntimeError, NotImplementedError, KeyError, TypeError, OSError)
DEFAULT_LEVEL = 6
# Voxels that tensorstore is asked for at once, and how often before the first are there.
GROUP_BYTES = 2 << 20
IN_FLIGHT = 2


class Decoder(Protocol):
    """Reads voxels of an array. Safe in several threads, and may be pickled."""

    @property
    def scratch_bytes(self) -> int:
        """Bytes that one read takes at most, besides the array it fills."""
        ...

    def read(self, index: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Write the voxels at `index` (stored axes) into `out`. Raises one of `REFUSALS` where damaged."""
        ...


def decoder(root: Path, layout: ArrayLayout) -> Decoder:
    """A decoder of the array of `layout` below `root`. Raises `UnsupportedFormat` for codecs not read."""
    array = layout.array
    if array.driver == "n5":
        return _of_n5(root, array)
    try:
        return _by_tensorstore(root, layout)
    except REFUSALS as error:
        if not _codecs_of(array) <= SAFE_CODECS:
            raise _not_read(array, said(error)) from error
    return ByZarrPython(root / array.path, 2 if array.driver == "zarr" else 3, _chunk_bytes(array))


def _of_n5(root: Path, array: StoredArray) -> Decoder:
    codec = codec_of(array)
    if codec is None:
        raise _not_read(array, f"its compression is {array.compression}")
    return N5Blocks(root / array.path, array, codec)


def _not_read(array: StoredArray, found: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"Open the array {array.path or '/'!r}", found,
        f"It is stored as {array.compression}: store it anew with gzip, zstd or blosc",
    )  # fmt: skip


def _chunk_bytes(array: StoredArray) -> int:
    return math.prod(array.chunk) * array.dtype.itemsize


def said(error: Exception) -> str:
    """What a library says, without the places and settings of its own that it appends."""
    return str(error).partition(" [")[0].partition("\n")[0] or repr(error)


class ByTensorstore:
    """Decodes only the chunks that a read meets, straight into their place, and keeps none of them.

    tensorstore reads stored chunks faster than it decodes them, and holds those that wait: it is asked for
    some at a time. What it holds open is opened again where this is unpickled; it ends a process that forks.
    """

    def __init__(self, spec: dict[str, Any], dtype: np.dtype[Any], chunk: tuple[int, ...]) -> None:
        self._spec = spec
        self._dtype = dtype
        self._chunk = chunk
        self._lock = threading.Lock()
        self._opened: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ByTensorstore, (self._spec, self._dtype, self._chunk)

    @property
    def scratch_bytes(self) -> int:
        """What is asked for at a time, as stored and decoded, and tensorstore's own buffers."""
        chunk_bytes = math.prod(self._chunk) * self._dtype.itemsize
        return 3 * IN_FLIGHT * max(GROUP_BYTES, chunk_bytes)

    @property
    def store(self) -> Any:
        """The open array of tensorstore, its voxels of the type that is read."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Any:
        import tensorstore

        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        store = tensorstore.open(
            self._spec, open=True, read=True, context=context, assume_metadata="metadata" in self._spec
        ).result()
        return store if store.dtype.numpy_dtype == self._dtype else tensorstore.cast(store, self._dtype)

    def read(self, index: tuple[slice, ...], out: NDArray[Any]) -> None:
        import tensorstore

        source = self.store
        waiting: deque[Any] = deque()
        try:
            for part, into in parts(index, self._group(index)):
                if len(waiting) == IN_FLIGHT:
                    waiting.popleft().result()
                # An array of tensorstore that shares memory with `out`: voxels are decoded into their place.
                target = tensorstore.array(out[into], copy=False)
                waiting.append(target.write(source[part][tensorstore.d[:].translate_to[0]]))
            while waiting:
                waiting.popleft().result()
        finally:
            # After a failure too, nothing writes into `out` any more once this returns.
            for write in waiting:
                write.exception()

    def _group(self, index: tuple[slice, ...]) -> tuple[int, ...]:
        """Whole chunks of about `GROUP_BYTES`, as many as possible along the fastest axes."""
        group = list(self._chunk)
        count = max(1, GROUP_BYTES // (math.prod(group) * self._dtype.itemsize))
        for axis in reversed(range(len(group))):
            wanted = -(-index[axis].stop // group[axis]) - index[axis].start // group[axis]
            taken = min(count, wanted)
            group[axis] *= taken
            count //= taken
        return tuple(group)


@dataclass(frozen=True)
class ByZarrPython:
    """Decodes what tensorstore refuses, a box of whole chunks at a time."""

    folder: Path
    version: Literal[2, 3]
    chunk_bytes: int

    @property
    def scratch_bytes(self) -> int:
        return 3 * self.chunk_bytes

    def read(self, index: tuple[slice, ...], out: NDArray[Any]) -> None:
        import zarr

        array = zarr.open_array(store=str(self.folder), mode="r", zarr_format=self.version)
        for part, into in parts(index, array.chunks):
            out[into] = array[part]


def parts(
    index: tuple[slice, ...], size: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """What of each tile of `size` is at `index`, as an index of the array and of what lies at `index`."""
    ranges = (range(s.start - s.start % n, s.stop, n) for s, n in zip(index, size, strict=True))
    for corner in product(*ranges):
        spans = zip(index, corner, size, strict=True)
        part = tuple(slice(max(s.start, c), min(s.stop, c + n)) for s, c, n in spans)
        yield (
            part,
            tuple(slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, index, strict=True)),
        )


def _by_tensorstore(root: Path, layout: ArrayLayout) -> ByTensorstore:
    array = layout.array
    spec: dict[str, Any] = {
        "driver": array.driver,
        "kvstore": {"driver": "file", "path": f"{(root / array.path).absolute()}/"},
    }
    corrected = _corrected(layout)
    if corrected:
        spec["metadata"] = corrected
    opened = ByTensorstore(spec, layout.dtype, array.chunk)
    opened.store  # noqa: B018  # refuses now what it cannot decode
    return opened


def _corrected(layout: ArrayLayout) -> dict[str, Any]:
    """The document of a zarr v2 array where it needs correction, as tensorstore takes it; else nothing.

    Fiji writes zlib's default level -1, which tensorstore refuses and no decoder needs. Old writers leave out
    the separator, which the layout knows.
    """
    array = layout.array
    document: dict[str, Any] = json.loads(layout.documents[array.document])
    compressor = document.get("compressor") or {}
    levelless = compressor.get("level") == -1
    if array.driver != "zarr" or (array.separator_said and not levelless):
        return {}
    if levelless:
        document["compressor"] = {**compressor, "level": DEFAULT_LEVEL}
    return {**document, "dimension_separator": array.separator}


def _codecs_of(array: StoredArray) -> set[str]:
    names = array.compression.split("+") if array.compression != "none" else []
    return {name.removeprefix("numcodecs.").partition("-")[0] for name in names}
