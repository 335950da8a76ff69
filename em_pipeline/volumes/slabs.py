"""Which part of a level is read at once, and how many such slabs are held: what costs least of what fits."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import Shape
from em_pipeline.domain.wording import counted
from em_pipeline.volumes.memory import (
    MOST_SLABS,
    SHARDS_OF_A_UNIT,
    Footprint,
    Held,
    Means,
    budget_of,
    of_process,
)
from em_pipeline.volumes.tiling import clipped, grid, padded

_CHUNKS_PER_THREAD: Final = 4
"""Chunks' worth of voxels in a slab that leave no thread idle for long at its end, while the next is read."""

_CHUNKS_PER_THREAD_ALONE: Final = 16
"""The same of a slab held alone, at whose end threads wait for the last chunk, then for the last granule of
the next slab: if half a chunk's time each, then a sixteenth of what they do in between."""

_MODEST: Final = 128 << 20
"""Bytes of slabs that are held without a second thought: 64 planes of 1024² bytes that are encoded while 64
are read, or one slab of 128 such planes that the source compressed whole."""


@dataclass(frozen=True)
class Slab:
    """A slab weighed: its shape, how many are held, what these and what a pass then take, what is decoded.

    Shape in voxels z-y-x; it may reach past the level. `bytes` are those of all `count` slabs; `decoded` is
    voxels that the source decodes, of all slabs of the level together.
    """

    shape: Shape
    count: int
    bytes: int
    held: Held
    decoded: int


@dataclass(frozen=True)
class Cut:
    """A level that is to be cut into slabs.

    All shapes are voxels z-y-x: the level's, a shard's, and what the source decodes whole (None where the
    level below gives the voxels).
    """

    level: Shape
    shard: Shape
    stored: Shape | None
    footprint: Footprint

    def least_bytes(self, threads: int) -> int:
        """What a pass holds with the slab that holds least, held by threes: alone would save little."""
        return min(slab.held.on(threads) for slab in self._all() if slab.count == MOST_SLABS)

    def choose(self, means: Means) -> Slab:
        """The slab that makes the source decode least, keeps all threads busy, and is modest.

        Of modest ones as many are held as may be, and the smallest. The memory must be enough for the
        smallest (`check_memory`).
        """
        chunk, tile = self.footprint.chunk, self.footprint.tile
        fitting = [slab for slab in self._all() if slab.held.on(means.threads) <= means.memory_budget]

        def score(slab: Slab) -> tuple[int, float, int, int, int, Shape]:
            extent = clipped(slab.shape, self.level)
            # Many thin chunks are as much to do as a few whole ones.
            work = grid(extent, chunk).voxels * tile.voxels
            each = _CHUNKS_PER_THREAD_ALONE if slab.count == 1 else _CHUNKS_PER_THREAD
            idle = max(0.0, 1 - work / (each * means.threads * chunk.voxels))
            immodest = max(0, slab.bytes - _MODEST)
            return slab.decoded, idle, immodest, -slab.count, extent.voxels, slab.shape

        return min(fitting, key=score)

    def _all(self) -> Iterator[Slab]:
        for shape in _slabs(self.level, self.footprint.chunk, self.shard):
            yield from self._weighed(shape)

    def _weighed(self, slab: Shape) -> Iterator[Slab]:
        """A slab held alone, and with others of its kind."""
        shards = grid(clipped(padded(slab, self.shard), self.level), self.shard).voxels
        whole = padded(clipped(slab, self.level), self.footprint.tile)
        pieces = self.stored or Shape(1, 1, 1)
        decoded = math.prod(_decoded(n, s, c) for n, s, c in zip(self.level, slab, pieces, strict=True))
        for count in range(1, MOST_SLABS + 1):
            held = self.footprint.held(whole, count, shards, self.shard, self.stored)
            yield Slab(slab, count, count * self.footprint.slab_bytes(whole), held, decoded)


def check_memory(cuts: Sequence[Cut], means: Means) -> None:
    """Raises `InputRefused`, with what is enough for the level that needs most, where there is less."""
    neediest = max(cuts, key=lambda cut: cut.least_bytes(means.threads))
    least = neediest.least_bytes(means.threads)
    if least <= means.memory_budget:
        return
    chunk, itemsize = neediest.footprint.chunk, neediest.footprint.dtype.itemsize
    raise InputRefused(
        f"Plan a volume within {means.memory_budget / 2**20:.0f} MiB of voxels in flight",
        f"chunks of {chunk.voxels * itemsize / 2**20:.1f} MiB need "
        f"{least / 2**20:.0f} MiB on {counted(means.threads, 'thread')}",
        budget_of(of_process(least, means.threads)),
    )


def _slabs(level: Shape, chunk: Shape, shard: Shape) -> Iterator[Shape]:
    """Boxes that are runs of every shard's chunks in C order: above a partial axis, the box is one chunk."""
    parts = [
        [c * k for k in range(1, s // c) if (s // c) % k == 0] for c, s in zip(chunk, shard, strict=True)
    ]
    wholes = [list(_runs(s, math.ceil(n / s))) for n, s in zip(level, shard, strict=True)]
    yield from (Shape(chunk.z, chunk.y, x) for x in parts[2])
    widest = [x for x in wholes[2] if x <= SHARDS_OF_A_UNIT * shard.x]
    yield from (Shape(chunk.z, y, x) for y, x in product(parts[1], widest))
    for z, y, x in product([*parts[0], shard.z], wholes[1], widest):
        if y * x <= SHARDS_OF_A_UNIT * shard.y * shard.x:
            yield Shape(z, y, x)


def _runs(shard: int, count: int) -> Iterator[int]:
    """1, 2, 4, … shards, and all of them."""
    run = 1
    while run < count:
        yield run * shard
        run *= 2
    yield count * shard


def _decoded(extent: int, tile: int, stored: int) -> int:
    """Voxels along one axis that a source stored in pieces of `stored` decodes, read tile by tile."""
    touched = 0
    for start in range(0, extent, tile):
        stop = min(start + tile, extent)
        touched += min(math.ceil(stop / stored) * stored, extent) - start // stored * stored
    return touched
