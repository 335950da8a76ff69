"""How well and how fast some chunks of a source encode here: what an estimate of a whole rechunk rests on."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.domain.lazy_volume import LazyVolume
from em_pipeline.volumes.allocator import keep_freed_memory
from em_pipeline.volumes.codec import ChunkCodec
from em_pipeline.volumes.encode import ChunkEncoder, Slot
from em_pipeline.volumes.plan import RechunkPlan

SECONDS: Final = 1.0
"""No chunk is begun later than this after the first."""
_CHUNKS_PER_THREAD: Final = 8
_MOST_DECODED: Final = 32 << 20
"""Bytes that the source decodes for one sample: of deep or wide source chunks, fewer planes are taken."""
_PADDED_CHUNKS: Final = 8
_STEPS: Final = (0.8191725133961645, 0.6710436067037893, 0.5497004779019702)
"""Powers of the inverse of the root of x⁴ = x + 1: multiples of them, modulo 1, are spread evenly in a cube
(M. Roberts, The unreasonable effectiveness of quasirandom sequences, 2018)."""


@dataclass(frozen=True)
class Sample:
    """Chunks of a source, read and encoded in `threads` threads.

    `voxel_bytes` of them, without padding, became `stored_bytes`; reading them made the source decode
    `decoded_bytes`. Apart from that, `padding_bytes` of padding became `padding_stored_bytes`. Seconds are
    the sums over the threads.
    """

    chunks: int
    threads: int
    voxel_bytes: int
    stored_bytes: int
    decoded_bytes: int
    read_seconds: float
    encode_seconds: float
    padding_bytes: int
    padding_stored_bytes: int
    padding_seconds: float

    @property
    def ratio(self) -> float:
        """Stored bytes per byte of voxels."""
        return self.stored_bytes / self.voxel_bytes

    @property
    def read_rate(self) -> float:
        """Bytes per second that the source decodes for all threads."""
        return self.decoded_bytes * self.threads / self.read_seconds

    @property
    def encode_rate(self) -> float:
        """Bytes of voxels per second that all threads measure, downsample and encode."""
        return self.voxel_bytes * self.threads / self.encode_seconds

    @property
    def padding_ratio(self) -> float:
        """Stored bytes per byte of padding: next to nothing, or all where chunks are not compressed."""
        return self.padding_stored_bytes / self.padding_bytes

    @property
    def padding_rate(self) -> float:
        """Bytes of padding per second that all threads encode; what any chunk takes is in it."""
        return self.padding_bytes * self.threads / self.padding_seconds


def take_sample(source: LazyVolume, box: BoundingBox, plan: RechunkPlan) -> Sample:
    """Read and encode chunks spread over `box` (of `source`, z-y-x) for about a second; nothing is written.

    Raises what reading raises.
    """
    keep_freed_memory()
    boxes = _boxes(plan, source.decode_shape)
    until = time.monotonic() + SECONDS

    def work(number: int) -> tuple[int, ...] | tuple[float, ...]:
        if number >= plan.threads and time.monotonic() > until:
            return ()
        part = boxes[number]
        started = time.perf_counter()
        voxels = source.read(part.shifted(box.start), np.empty(part.shape, plan.dtype))
        read = time.perf_counter()
        stored = _stored_bytes(plan, part, voxels)
        done = time.perf_counter()
        decoded = _decoded(part.shifted(box.start), source) * plan.dtype.itemsize
        return voxels.nbytes, stored, decoded, read - started, done - read

    with ThreadPoolExecutor(plan.threads, "sample") as pool:
        found = [one for one in pool.map(work, range(len(boxes))) if one]
        padded = list(pool.map(lambda _: _padding(plan), range(plan.threads)))
    voxel_bytes, stored, decoded, reading, encoding = (sum(column) for column in zip(*found, strict=True))
    padding, padding_stored, padding_seconds = (sum(column) for column in zip(*padded, strict=True))
    return Sample(
        chunks=len(found),
        threads=plan.threads,
        voxel_bytes=int(voxel_bytes),
        stored_bytes=int(stored),
        decoded_bytes=int(decoded),
        read_seconds=max(reading, 1e-6),
        encode_seconds=max(encoding, 1e-6),
        padding_bytes=int(padding),
        padding_stored_bytes=int(padding_stored),
        padding_seconds=max(padding_seconds, 1e-6),
    )


def _boxes(plan: RechunkPlan, stored: Shape) -> list[BoundingBox]:
    """Chunks to read, in voxels of the finest level, each once."""
    level = plan.levels[0]
    across = math.prod(
        max(a, min(c, n)) for a, c, n in zip(stored[1:], level.chunk_shape[1:], level.shape[1:], strict=True)
    )
    planes = max(1, _MOST_DECODED // (across * plan.dtype.itemsize * min(stored.z, level.chunk_shape.z)))
    depth = min(level.chunk_shape.z, planes * min(stored.z, level.chunk_shape.z))
    taken = {}
    for number in range(1, _CHUNKS_PER_THREAD * plan.threads + 1):
        index = Shape(*(int(number * s % 1 * n) for s, n in zip(_STEPS, level.chunk_grid, strict=True)))
        start = Shape(*(i * c for i, c in zip(index, level.chunk_shape, strict=True)))
        size = (depth, *level.chunk_shape[1:])
        stop = Shape(*(min(a + c, n) for a, c, n in zip(start, size, level.shape, strict=True)))
        taken[index] = BoundingBox(start=start, stop=stop)
    return list(taken.values())


def _stored_bytes(plan: RechunkPlan, part: BoundingBox, voxels: NDArray[Any]) -> int:
    """Bytes of voxels as the chunk of their shape, with all else that happens to a chunk."""
    level = replace(plan.levels[0], chunk_shape=part.shape)
    slot = Slot(np.empty(ChunkCodec.bound(voxels.nbytes), np.uint8))
    encoded = ChunkEncoder(plan, level, None).encode(Shape(0, 0, 0), part.shape, voxels, slot)
    return 0 if encoded.payload is None else encoded.payload.nbytes


def _padding(plan: RechunkPlan) -> tuple[int, int, float]:
    """Bytes of padding, those stored of them, and the seconds that took, of some chunks of a single voxel."""
    level = plan.levels[0]
    encoder, slot = ChunkEncoder(plan, level, None), Slot.of(plan, level)
    one = Shape(1, 1, 1)
    # The first one finds its memory fresh.
    started, stored = 0.0, 0
    for number in range(1 + _PADDED_CHUNKS):
        if number == 1:
            started = time.perf_counter()
        encoded = encoder.encode(Shape(0, 0, 0), one, np.ones(one, plan.dtype), slot)
        stored = 0 if encoded.payload is None else encoded.payload.nbytes
    seconds = time.perf_counter() - started
    nbytes = (level.chunk_shape.voxels - 1) * plan.dtype.itemsize
    return _PADDED_CHUNKS * nbytes, _PADDED_CHUNKS * stored, seconds


def _decoded(part: BoundingBox, source: LazyVolume) -> int:
    """Voxels that the source decodes for a box of its own."""
    return math.prod(
        min(-(-b // c) * c, n) - a // c * c
        for a, b, c, n in zip(part.start, part.stop, source.decode_shape, source.shape, strict=True)
    )
