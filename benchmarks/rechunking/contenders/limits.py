"""What no rechunk can beat: `limits.py encode|decode|read INPUT THREADS`; prints its `seconds` as JSON.

`encode`: imagecodecs with the codec that we write with (8-bit: zstd 1; wider: blosc with lz4 and bitshuffle),
on the chunks of level 0 (128³, zeros beyond the edge), from memory and to nowhere. `decode`: the strips of a
TIFF, from memory and to nowhere. `read`: our reader, on every chunk of the source, to nowhere. Start-up, and
what must be in memory first, is not timed.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.formats.open import open_volume

CHUNK = Shape(128, 128, 128)
# A read of less than this costs more in Python than in the reader.
LEAST_READ = 4 << 20
# Planes whose strips are in memory at once.
PAGES = 128


def encode(source: Path, threads: int) -> float:
    """Seconds of encoding."""
    with open_volume([source]) as volume:
        encoder = _zstd if volume.dtype.itemsize == 1 else _blosc
        depth = (CHUNK.z, volume.shape.y, volume.shape.x)
        return sum(
            _timed(encoder, _chunks(volume, slab), threads)
            for slab in BoundingBox.of_shape(volume.shape).tiles(depth)
        )


def _zstd(chunk: NDArray[Any]) -> Any:
    return imagecodecs.zstd_encode(chunk, level=1)


def _blosc(chunk: NDArray[Any]) -> Any:
    size = chunk.dtype.itemsize
    return imagecodecs.blosc_encode(
        chunk, level=5, compressor="lz4", shuffle="bitshuffle", typesize=size, numthreads=1
    )


def _chunks(volume: LazyVolume, slab: BoundingBox) -> list[NDArray[Any]]:
    voxels = volume.read(slab)
    chunks = []
    for tile in BoundingBox.of_shape(slab.shape).tiles(CHUNK):
        chunk = np.zeros(CHUNK, volume.dtype)
        chunk[BoundingBox.of_shape(tile.shape).slices] = voxels[tile.slices]
        chunks.append(chunk)
    return chunks


def decode(source: Path, threads: int) -> float:
    """Seconds of decoding the strips, into memory that is used again."""
    with tifffile.TiffFile(source) as file:
        pages = list(file.pages)
        compression = file.pages.first.compression.name
        rows, columns = file.pages.first.rowsperstrip, file.pages.first.imagewidth
        decoder: Callable[..., Any] = {
            "LZW": imagecodecs.lzw_decode,
            "ADOBE_DEFLATE": imagecodecs.deflate_decode,
        }[compression]
        local = threading.local()

        def one(strip: bytes) -> None:
            if not hasattr(local, "out"):
                local.out = np.empty(rows * columns, np.uint8)
            decoder(strip, out=local.out)

        seconds = 0.0
        for first in range(0, len(pages), PAGES):
            strips = [strip for page in pages[first : first + PAGES] for strip in _strips(file, page)]
            seconds += _timed(one, strips, threads)
        return seconds


def _strips(file: Any, page: Any) -> list[bytes]:
    found = []
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.filehandle.seek(offset)
        found.append(file.filehandle.read(count))
    return found


def read(source: Path, threads: int) -> float:
    """Seconds of reading every source chunk once, into memory that is used again."""
    with open_volume([source]) as volume:
        local = threading.local()

        def one(box: BoundingBox) -> None:
            if not hasattr(local, "out"):
                local.out = np.empty(tile.voxels, volume.dtype)
            volume.read(box, local.out[: box.shape.voxels].reshape(box.shape))

        tile = _tile(volume)
        return _timed(one, list(BoundingBox.of_shape(volume.shape).tiles(tile)), threads)


def _tile(volume: LazyVolume) -> Shape:
    """Whole source chunks, along x, then y, then z, until they are worth a call."""
    tile = list(volume.chunk_shape)
    for axis in (2, 1, 0):
        while np.prod(tile) * volume.dtype.itemsize < LEAST_READ and tile[axis] < volume.shape[axis]:
            tile[axis] += volume.chunk_shape[axis]
    return Shape(*(min(t, n) for t, n in zip(tile, volume.shape, strict=True)))


def _timed(work: Callable[[Any], object], things: Iterable[Any], threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        for _ in pool.map(work, things):
            pass
        return time.perf_counter() - started


def main() -> None:
    limit, source, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    seconds = {"encode": encode, "decode": decode, "read": read}[limit](source, threads)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
