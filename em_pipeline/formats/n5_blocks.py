"""Blocks of N5 arrays into voxels.

Format: https://github.com/saalfeldlab/n5#file-system-specification. A block is a header (see `check_block`)
and its voxels, big-endian, the first axis fastest, compressed as one. At the array's end it may reach beyond
it; one that is not there is 0.
"""

import bz2
import lzma
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from em_pipeline.formats.arrays import StoredArray
from em_pipeline.formats.n5 import check_block
from em_pipeline.formats.scratch import scratch

# Memory that unpacking takes: of xz's strongest preset 65 MiB (xz(1)), of bzip2 3.7 MB (bzip2(1)).
XZ_BYTES = 80 << 20
BZIP2_BYTES = 4 << 20
# Decoders of a compressed block into an array of bytes, which is returned as far as it was filled.
Decode = Callable[[memoryview, NDArray[np.uint8]], NDArray[np.uint8]]


def _whole(decode: Callable[..., Any]) -> Decode:
    return lambda data, out: decode(data, out=out)


def _bzip2(data: memoryview, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _copied(bz2.BZ2Decompressor().decompress(data, len(out)), out)


def _xz(data: memoryview, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    try:
        return _copied(lzma.LZMADecompressor(memlimit=XZ_BYTES).decompress(data, len(out)), out)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error


def _copied(found: bytes, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out[: len(found)] = np.frombuffer(found, np.uint8)
    return out[: len(found)]


def _blosc(data: memoryview, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # Bytes 4 to 8 of its header are the size unpacked, which is taken as memory before anything is read.
    if len(data) < 16 or int.from_bytes(data[4:8], "little") > len(out):
        raise ValueError("it holds more voxels than its header promises")
    decode: Any = imagecodecs.blosc_decode
    found: NDArray[np.uint8] = decode(data, out=out, numthreads=1)
    return found


DECODERS: Mapping[str, Decode] = {
    "gzip": _whole(imagecodecs.gzip_decode),
    "zlib": _whole(imagecodecs.deflate_decode),
    "zstd": _whole(imagecodecs.zstd_decode),
    "bzip2": _bzip2,
    "xz": _xz,
    "blosc": _blosc,
}


def codec_of(array: StoredArray) -> str | None:
    """Key of `DECODERS`, "raw", or None for a compression that is not read."""
    compression = array.attributes.get("compression") or {"type": "raw"}
    name = str(compression["type"])
    if name == "gzip" and compression.get("useZlib"):
        name = "zlib"
    return name if name == "raw" or name in DECODERS else None


@dataclass(frozen=True)
class N5Blocks:
    """The blocks of an array below `folder`, each of which a read takes from the disk and decodes once."""

    folder: Path
    array: StoredArray
    codec: str

    @property
    def scratch_bytes(self) -> int:
        """A block as stored, and decoded; twice by those decoders that give bytes of their own."""
        return 3 * self._block_bytes + {"xz": XZ_BYTES, "bzip2": BZIP2_BYTES}.get(self.codec, 0)

    @property
    def _block_bytes(self) -> int:
        return int(np.prod(self.array.chunk, dtype=np.int64)) * self.array.dtype.itemsize

    def read(self, index: tuple[slice, ...], out: NDArray[Any]) -> None:
        ranges = (range(s.start // n, -(-s.stop // n)) for s, n in zip(index, self.array.chunk, strict=True))
        for place in product(*ranges):
            inner, outer, lengths = [], [], []
            for span, number, size, whole in zip(
                index, place, self.array.chunk, self.array.shape, strict=True
            ):
                first, last = number * size, min((number + 1) * size, whole)
                start, stop = max(span.start, first), min(span.stop, last)
                inner.append(slice(start - first, stop - first))
                outer.append(slice(start - span.start, stop - span.start))
                lengths.append(last - first)
            voxels = self._block(place, lengths)
            out[tuple(outer)] = 0 if voxels is None else voxels[tuple(inner)]

    def _block(self, place: tuple[int, ...], lengths: list[int]) -> NDArray[Any] | None:
        """The voxels of a block, its axes as stored; None where it is not there."""
        name = self.array.separator.join(map(str, place))
        try:
            data = (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        shape = check_block(self.array.key(place), data, lengths)
        if any(n > most for n, most in zip(shape, self.array.chunk, strict=True)):
            raise ValueError(
                f"its header promises {list(shape)} voxels, blocks have {list(self.array.chunk)}"
            )
        dtype = self.array.dtype.newbyteorder(">")
        size = int(np.prod(shape)) * dtype.itemsize
        payload = memoryview(data)[4 + 4 * len(shape) :]
        if self.codec == "raw":
            plain = np.frombuffer(payload, np.uint8)[:size]
        else:
            plain = DECODERS[self.codec](payload, scratch("block", size))
        if len(plain) != size:
            raise ValueError(f"it holds {len(plain):,} bytes, not {size:,}")
        voxels: NDArray[Any] = plain.view(dtype).reshape(shape[::-1])
        return voxels.T
