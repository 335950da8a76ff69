"""What a rechunk holds in memory at once, counted from what it allocates, so that a plan can keep a budget.

A process that rechunks holds, of a budget,

- `PROCESS_BYTES`: the interpreter with its libraries, and what a unit leaves (rows of the ledger);
- `THREAD_BYTES` for each thread: what compressors and the allocator keep, whatever the voxels are;
- *voxels in flight*, all the rest, which is what a plan divides (`Footprint`):
  - slabs: up to `MOST_SLABS` buffers of chunks (`slabs.Cut.choose`), without their padding where a level is
    thin;
  - of each reading thread a granule, and what the source's reader needs to decode it, or of scratch a part,
    and where requests are under way at once, the parts of `CHUNKS_AHEAD` chunks;
  - of each encoding thread `CHUNKS_IN_FLIGHT` chunks, encoded and downsampled, its temporaries, and the chunk
    in which it pads those of a thin level;
  - what blobs hold back while they are written, for every shard of two units: the one that is written and
    the one before, which is being published.

An ingest goes on without voxels in flight, but with the rows of all chunks (`of_publication`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, NamedTuple, Self

import numpy as np

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import Shape
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.volumes.tiling import held_of_chunks

PROCESS_BYTES: Final = 224 << 20
"""Resident in a process that holds no voxel yet: 68 MiB with what a rechunk imports, 157 MiB in an
`em ingest` with Dagster, the catalogue and the portals (measured, CPython 3.11 on x86-64), and what grows
with neither voxels nor threads: aligned memory of direct writes, rows of units of many shards."""

CHUNKS_COMPARED: Final = 10
"""Chunks' worth of memory that validation takes, the libraries among it that only it needs. Measured: 246 MiB
in all for chunks of 2 MiB, 267 of 4, 304 of 8, 346 of 16."""

ROW_BYTES: Final = 1 << 10
"""Of each chunk then: its row is put together, sealed, and read again to validate and to publish. Measured
with 33 000 and 130 000 chunks: 0.9 and 0.8 KiB."""

THREAD_BYTES: Final = 6 << 20
"""Of each pair of a reading and an encoding thread: contexts of the compressors, four histograms of 65536
bins (`statistics.KEY_BINS`) of 8 bytes, slack of three encoded chunks (`ChunkCodec.bound`), stacks, and pages
that the allocator has not handed out again."""

MOST_SLABS: Final = 3
"""Slabs in memory at most: one being encoded, one that is read and one being read."""

CHUNKS_IN_FLIGHT: Final = 3
"""Chunks of each encoding thread that are being encoded or wait to be stored in their order."""

CHUNKS_AHEAD: Final = 2
"""Chunks' worth of scratch that a reading thread asks an object store for at once: of parts by twos, eight
requests, so that two threads use all its connections (`object_client.ObjectPolicy`)."""

SHARDS_OF_A_UNIT: Final = 128
"""At most, however large the memory: each is a file with two descriptors (`direct_io.DirectFile`), those of
two units at once, of the 1024 that a process may have by default (RLIMIT_NOFILE, getrlimit(2))."""

GRANULE: Final = 1 << 20
"""Bytes read from a source before they are dealt out to their chunks: still in a core's cache by then."""

_MEAN_CHUNKS: Final = 3.0


class Held(NamedTuple):
    """Bytes of voxels in flight: `shared` by all threads, and of `each`."""

    shared: int
    each: int

    def on(self, threads: int) -> int:
        return self.shared + threads * self.each


@dataclass(frozen=True)
class Means:
    """What a rechunk may take of a machine. Bytes, but for `threads`.

    `memory_budget` is for voxels in flight (`for_voxels`). `read_scratch` is what the source's reader takes
    in each thread besides the voxels asked for (`LazyVolume.scratch_bytes`), `sink_bytes` what a blob holds
    while it is written (`Blobs.sink_bytes`), `requests_at_once` how many requests of a thread that reads
    from it may be under way (`Blobs.requests_at_once`).
    """

    memory_budget: int
    threads: int
    read_scratch: int = 0
    sink_bytes: int = 0
    requests_at_once: int = 0

    def affordable(self, footprint: "Footprint") -> Self:
        """With as many threads as half the memory serves: the other half is for the slabs they work on."""
        most = self.memory_budget // (2 * footprint.least_of_a_thread)
        return replace(self, threads=max(1, min(self.threads, most)))


@dataclass(frozen=True)
class Footprint:
    """What passes hold of voxels in flight, in bytes.

    `chunk` is voxels z-y-x, `tile` what a slab buffer holds of it; `read_scratch`, `sink_bytes` and
    `requests_at_once` are as in `Means`.
    """

    dtype: np.dtype[Any]
    kind: Kind
    chunk: Shape
    tile: Shape
    read_scratch: int = 0
    sink_bytes: int = 0
    requests_at_once: int = 0

    def of_level(self, shape: Shape) -> Self:
        """Of passes over a level of `shape` voxels."""
        return replace(self, tile=held_of_chunks(shape, self.chunk))

    @property
    def encoder(self) -> int:
        """Of one encoding thread."""
        encoded = CHUNKS_IN_FLIGHT * (self._chunk_bytes * (1 + 1 / 256) + self._part_bytes)
        padded = 0 if self.tile == self.chunk else self._chunk_bytes
        # Halves of an odd extent are rounded up.
        measured = min(self._chunk_bytes, 2 * self._tile_bytes)
        return math.ceil(encoded + padded + self._temporaries * measured)

    @property
    def least_of_a_thread(self) -> int:
        """Of one pair of threads that reads and encodes, whatever the slabs."""
        return self.encoder + self.read_scratch

    def slab_bytes(self, slab: Shape) -> int:
        """Of one slab of whole tiles (voxels z-y-x)."""
        return slab.voxels * self.dtype.itemsize

    def held(self, slab: Shape, count: int, shards: int, shard: Shape, stored: Shape | None) -> Held:
        """Of a pass with `count` slabs of whole tiles in units of so many shards.

        `slab` and `shard` are voxels z-y-x. `stored` is what the source decodes whole (z-y-x voxels), None
        where the level below gives the voxels.
        """
        if stored is None:
            reader = self._parts_read
        else:
            reader = (
                granule(slab, stored, self.dtype.itemsize).voxels * self.dtype.itemsize + self.read_scratch
            )
        slabs = count * self.slab_bytes(slab)
        # Besides a unit's shards, the voxels that it leaves for the next level.
        sinks = 2 * (shards + 1) * min(self.sink_bytes, shard.voxels * self.dtype.itemsize)
        return Held(slabs + sinks, reader + self.encoder)

    @property
    def _chunk_bytes(self) -> int:
        return self.chunk.voxels * self.dtype.itemsize

    @property
    def _tile_bytes(self) -> int:
        return self.tile.voxels * self.dtype.itemsize

    @property
    def _part_bytes(self) -> int:
        """Of a chunk downsampled, at most: half, or all of a thin one of which only that axis is halved."""
        return min(self._chunk_bytes // 2, self._tile_bytes)

    @property
    def _parts_read(self) -> int:
        """Of a thread that puts chunks together: whole ones where it asks ahead, else a part."""
        return CHUNKS_AHEAD * self._tile_bytes if self.requests_at_once else self._part_bytes

    @property
    def _temporaries(self) -> float:
        """Chunks that measuring or downsampling one takes at most, as `statistics` and `downsample` do it.

        Means: pairs widened, their odd halves, half of a sum. Values of more than 16 bits are measured as a
        copy without padding, one without what is not finite, both masks, and one in float64. Modes: corners,
        a mask, indices of 8 bytes for each mixed cell, their corners and those sorted, runs.
        """
        itemsize = self.dtype.itemsize
        exact = self.dtype.kind in "iu" and itemsize <= 2
        measured = 0.0 if exact else 2 + 10 / itemsize
        reduced = 3.5 + 2 / itemsize if self.kind == "labels" else _MEAN_CHUNKS
        return max(measured, reduced)


def for_voxels(memory_budget: int, threads: int) -> tuple[int, int]:
    """What of a process's budget of bytes is left for voxels in flight, and for how many of `threads`.

    Threads themselves take at most a quarter of what the process leaves. Raises `InputRefused` where it
    leaves nothing.
    """
    left = memory_budget - PROCESS_BYTES
    if left <= THREAD_BYTES:
        raise InputRefused(
            f"Rechunk within {memory_budget / 2**20:.0f} MiB",
            f"a process takes {(PROCESS_BYTES + THREAD_BYTES) / 2**20:.0f} MiB before it holds a voxel",
            "Give more memory (EM_MEMORY_BUDGET)",
        )
    threads = max(1, min(threads, left // 4 // THREAD_BYTES))
    return left - threads * THREAD_BYTES, threads


def of_process(bytes_held: int, threads: int) -> int:
    """Bytes that a process takes which holds so many of voxels in flight."""
    return PROCESS_BYTES + threads * THREAD_BYTES + bytes_held


def of_publication(chunks: int, chunk_bytes: int) -> int:
    """Bytes that a process takes which validates and publishes a volume of so many chunks, of all levels."""
    return PROCESS_BYTES + CHUNKS_COMPARED * chunk_bytes + chunks * ROW_BYTES


def check_publication(chunks: int, chunk_bytes: int, memory_budget: int) -> None:
    """Raises `InputRefused` where a process's budget of bytes is too little to publish so many chunks."""
    least = of_publication(chunks, chunk_bytes)
    if least > memory_budget:
        raise InputRefused(
            f"Ingest {chunks:,} chunks within {memory_budget / 2**20:.0f} MiB",
            f"to validate and publish them takes {math.ceil(least / 2**20)} MiB, whatever they hold",
            budget_of(least),
        )


def budget_of(nbytes: int) -> str:
    """What to do for a process that takes so many bytes."""
    enough = math.ceil(nbytes / 2**20)
    return f"Give {enough} MiB (EM_MEMORY_BUDGET={enough}MiB)"


def granule(slab: Shape, stored: Shape, itemsize: int) -> Shape:
    """What of a slab is read in one call, at most: whole chunks of the source, about `GRANULE` bytes of them.

    All are voxels z-y-x. Grown along x first, then y, then z, as they lie in most files.
    """
    extent = [min(a, n) for a, n in zip(stored, slab, strict=True)]
    for axis in (2, 1, 0):
        room = max(1, GRANULE // (math.prod(extent) * itemsize))
        extent[axis] = min(slab[axis], room * extent[axis])
        if extent[axis] < slab[axis]:
            break
    return Shape(*extent)


def spans(start: int, stop: int, step: int, stored: int, origin: int) -> Iterator[tuple[int, int]]:
    """[start, stop) cut into at most `step` each, but only where chunks of the source (`stored` long) end.

    `origin` is the source's index of 0. Where `step` is less than a chunk, it is a chunk.
    """
    if step >= stop - start:
        return iter([(start, stop)])
    stride = max(1, step // stored) * stored
    cuts = range((start + origin) // stored * stored + stride, stop + origin, stride)
    return pairwise([start, *(cut - origin for cut in cuts), stop])
