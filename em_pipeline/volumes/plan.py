"""How a volume will be cut and written, decided before any voxel is read.

A *unit* is what one pass writes and what a restart skips or repeats: whole shards, one deep in z.
A *slab* is what is read at once: a box of whole chunks inside a unit. Slabs are runs of chunks in the order
in which a shard stores them, so that the bytes of a shard do not depend on how much memory there was.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.volumes.codec import ChunkCodec, check_data_type
from em_pipeline.volumes.memory import SHARDS_OF_A_UNIT, Footprint, Held
from em_pipeline.volumes.missing import Missing

CHUNK: Final = Shape(128, 128, 128)
SHARD: Final = Shape(512, 512, 512)
WRITER: Final = 1
"""Counts changes of the bytes written for the same voxels and plan."""


@dataclass(frozen=True)
class Unit:
    """Whole shards written in one pass. `box` is in voxels of the level, clipped to it."""

    index: int
    box: BoundingBox
    slabs: tuple[BoundingBox, ...]

    def chunks(self, chunk_shape: Shape) -> Iterator[tuple[Shape, Shape]]:
        """Index and shape (voxels, clipped to the level) of each chunk, in the order they are written."""
        for slab in self.slabs:
            yield from chunks_of(slab, chunk_shape)


@dataclass(frozen=True)
class LevelPlan:
    """One pyramid level. `factors` lead to the next coarser level: 1 or 2 per axis, all 1 at the last.

    Shapes are voxels, z-y-x. `translation_nm` is the centre of the first voxel.
    `slab_shape` is what is read at once; `bytes_to_read` what the source must decode for it, or what the
    level below gives; `held` the voxels in flight while the level is written.
    """

    index: int
    shape: Shape
    chunk_shape: Shape
    shard_shape: Shape
    factors: Shape
    voxel_size: VoxelSize
    translation_nm: tuple[float, float, float]
    slab_shape: Shape
    bytes_to_read: int
    held: Held

    @property
    def unit_shape(self) -> Shape:
        """The smallest multiple of a shard that holds a slab."""
        return _padded(self.slab_shape, self.shard_shape)

    @property
    def unit_count(self) -> int:
        return grid(self.shape, self.unit_shape).voxels

    def units(self) -> Iterator[Unit]:
        """Every unit of the level, in C order."""
        return (self.unit(index) for index in range(self.unit_count))

    def unit(self, index: int) -> Unit:
        """The unit of that index, in C order."""
        place = np.unravel_index(index, grid(self.shape, self.unit_shape))
        start = [int(i) * n for i, n in zip(place, self.unit_shape, strict=True)]
        stop = (min(a + n, end) for a, n, end in zip(start, self.unit_shape, self.shape, strict=True))
        box = BoundingBox(start=Shape(*start), stop=Shape(*stop))
        return Unit(index, box, tuple(box.tiles(self.slab_shape)))

    def unit_of(self, chunk: Shape) -> int:
        """Index of the unit that writes a chunk (index z, y, x)."""
        units = grid(self.shape, self.unit_shape)
        z, y, x = (i * c // u for i, c, u in zip(chunk, self.chunk_shape, self.unit_shape, strict=True))
        return (z * units.y + y) * units.x + x

    @property
    def chunk_grid(self) -> Shape:
        return grid(self.shape, self.chunk_shape)

    @property
    def shard_grid(self) -> Shape:
        return grid(self.shape, self.shard_shape)


@dataclass(frozen=True)
class RechunkPlan:
    """Everything that decides the bytes of a volume, and how it is worked through.

    `labels` are the folders of the label images that go with it.
    """

    shape: Shape
    dtype: np.dtype[Any]
    kind: Kind
    codec: str
    levels: tuple[LevelPlan, ...]
    threads: int
    labels: tuple[str, ...] = ()

    @property
    def bytes_held(self) -> int:
        """Voxels in flight at most, on the plan's threads."""
        return self.bytes_in_flight(self.threads)

    def is_last(self, level: LevelPlan) -> bool:
        """Whether no coarser level is made from it."""
        return level.index + 1 == len(self.levels)

    @property
    def chunk_codec(self) -> ChunkCodec:
        return ChunkCodec(self.codec, self.dtype)

    def bytes_in_flight(self, threads: int) -> int:
        """Bytes that the voxels of the level that takes most of them take while `threads` work on it."""
        return max(level.held.on(threads) for level in self.levels)

    def digest(self, *, name: str, box: BoundingBox, missing: Missing | None = None) -> str:
        """SHA-256 of what decides the bytes written; equal digests give equal volumes."""
        return _sha256(self._content(name, box, missing))

    def work_digest(self, *, name: str, box: BoundingBox, missing: Missing | None = None) -> str:
        """SHA-256 of that and of the division into units, which a resumed run must share.

        Slabs do not count: whatever they are, a unit's chunks are worked through in C order.
        """
        units = [list(level.unit_shape) for level in self.levels]
        return _sha256([self._content(name, box, missing), units])

    def _content(self, name: str, box: BoundingBox, missing: Missing | None) -> list[Any]:
        levels = [
            [
                list(v)
                for v in (
                    lv.shape,
                    lv.chunk_shape,
                    lv.shard_shape,
                    lv.factors,
                    lv.voxel_size,
                    lv.translation_nm,
                )
            ]
            for lv in self.levels
        ]
        content = [WRITER, name, box.model_dump(mode="json"), self.dtype.str, self.kind, self.codec, levels]
        if self.labels:
            content.append({"labels": self.labels})
        if missing is not None:
            content.append({"missing": missing.to_json()})
        return content


def chunks_of(box: BoundingBox, chunk_shape: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Index and shape (voxels, clipped to the box) of each chunk of `box`, which starts at one; C order."""
    spans = [
        [(at // size, min(size, b - at)) for at in range(a, b, size)]
        for a, b, size in zip(box.start, box.stop, chunk_shape, strict=True)
    ]
    for (z, depth), (y, rows), (x, columns) in product(*spans):
        yield Shape(z, y, x), Shape(depth, rows, columns)


def grid(shape: tuple[int, int, int], tile: tuple[int, int, int]) -> Shape:
    """How many tiles cover `shape` along each axis."""
    return Shape(*(-(-n // t) for n, t in zip(shape, tile, strict=True)))


def plan_rechunk(
    shape: Shape,
    dtype: DTypeLike,
    voxel_size: VoxelSize,
    *,
    translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    source_chunk: Shape,
    memory_budget: int,
    threads: int,
    read_scratch: int = 0,
    sink_bytes: int = 0,
    codec: str | None = None,
    kind: Kind = "image",
    labels: tuple[str, ...] = (),
    level_count: int | None = None,
    chunk_shape: Shape = CHUNK,
    shard_shape: Shape = SHARD,
) -> RechunkPlan:
    """Plan the pyramid and the passes for a volume of `shape` voxels (z-y-x).

    `source_chunk` is what the source decodes whole (z-y-x voxels), `read_scratch` the bytes that takes in
    each thread, `sink_bytes` what a blob holds while it is written. `memory_budget` are the bytes that voxels
    in flight may take (`memory.for_voxels`); where `threads` would need most of them, fewer work.
    `translation_nm` is the centre of the first voxel, `labels` the folders of the label images with it. The
    pyramid has `level_count` levels, without one as many as lead to a single chunk. Raises `InputRefused` for
    an unknown codec, a type that volumes are not written in, or a budget too small for a chunk.
    """
    native = check_data_type(dtype)
    chosen = ChunkCodec.for_dtype(native, kind, codec)
    if threads < 1 or min(shape) < 1 or min(source_chunk) < 1:
        raise InputRefused(
            "Plan a volume", f"shape {tuple(shape)}, source chunk {tuple(source_chunk)}, {threads} threads"
        )
    if any(c % 2 or s % c for c, s in zip(chunk_shape, shard_shape, strict=True)):
        raise InputRefused(
            "Plan a volume", f"chunk {chunk_shape} is odd or does not divide shard {shard_shape}"
        )
    footprint = Footprint(native, kind, chunk_shape, read_scratch, sink_bytes)
    threads = _affordable_threads(memory_budget, threads, footprint)
    levels: list[LevelPlan] = []
    size, first = tuple(voxel_size), translation_nm
    while True:
        last = len(levels) + 1 == level_count if level_count else _fits(shape, chunk_shape)
        factors = Shape(1, 1, 1) if last else _factors(shape, size)
        shard = Shape(
            *(min(s, math.ceil(n / c) * c) for n, c, s in zip(shape, chunk_shape, shard_shape, strict=True))
        )
        # Coarser levels come from raw parts of chunks, of which none is read for another's sake.
        stored = None if levels else source_chunk
        slab, held, decoded = _choose_slab(shape, shard, stored, memory_budget, footprint, threads)
        levels.append(
            LevelPlan(
                index=len(levels),
                shape=Shape(*shape),
                chunk_shape=chunk_shape,
                shard_shape=shard,
                factors=factors,
                voxel_size=VoxelSize(z=size[0], y=size[1], x=size[2]),
                translation_nm=(first[0], first[1], first[2]),
                slab_shape=slab,
                bytes_to_read=decoded * native.itemsize,
                held=held,
            )
        )
        if last:
            return RechunkPlan(levels[0].shape, native, kind, chosen.name, tuple(levels), threads, labels)
        first = tuple(t + (f - 1) / 2 * v for t, f, v in zip(first, factors, size, strict=True))  # type: ignore[assignment]
        size = tuple(v * f for v, f in zip(size, factors, strict=True))
        shape = grid(shape, factors)


def _fits(shape: Shape, chunk: Shape) -> bool:
    return all(n <= c for n, c in zip(shape, chunk, strict=True))


def _factors(shape: Shape, size: tuple[float, ...]) -> Shape:
    """Halve toward isotropy: an axis is halved where its voxels are at most √2 times the smallest.

    √2 is the geometric midpoint between a factor of 1 and of 2. Axes of one voxel stay.
    """
    limit = math.sqrt(2) * min((v for v, n in zip(size, shape, strict=True) if n > 1), default=0.0)
    return Shape(*(2 if n > 1 and v <= limit else 1 for v, n in zip(size, shape, strict=True)))


def _affordable_threads(memory_budget: int, threads: int, footprint: Footprint) -> int:
    """As many threads as half the memory serves: the other half is for the slabs they work on."""
    return max(1, min(threads, memory_budget // (2 * footprint.least_of_a_thread)))


def _choose_slab(
    shape: Shape,
    shard: Shape,
    stored: Shape | None,
    memory_budget: int,
    footprint: Footprint,
    threads: int,
) -> tuple[Shape, Held, int]:
    """The slab that makes the source decode least, keeps all threads busy and is small.

    With what it makes a pass hold, and the voxels decoded. Raises `InputRefused` where the smallest
    needs more memory than there is.
    """
    chunk = footprint.chunk
    whole = _padded(shape, chunk)

    def held(slab: Shape) -> Held:
        shards = grid(_clipped(_padded(slab, shard), shape), shard).voxels
        return footprint.held(_clipped(slab, whole), shards, shard, stored)

    def score(slab: Shape) -> tuple[int, int, int, Shape]:
        clipped = _clipped(slab, shape)
        idle = max(0, 4 * threads - grid(clipped, chunk).voxels)
        return decoded(slab), idle, clipped.voxels, slab

    def decoded(slab: Shape) -> int:
        pieces = stored or Shape(1, 1, 1)
        return math.prod(_decoded(n, s, c) for n, s, c in zip(shape, slab, pieces, strict=True))

    sizes = {slab: held(slab) for slab in _slabs(shape, chunk, shard)}
    fitting = [slab for slab, needed in sizes.items() if needed.on(threads) <= memory_budget]
    if not fitting:
        least = min(needed.on(threads) for needed in sizes.values())
        raise InputRefused(
            f"Plan a volume within {memory_budget / 2**20:.0f} MiB of voxels in flight",
            f"chunks of {chunk.voxels * footprint.dtype.itemsize / 2**20:.1f} MiB need "
            f"{least / 2**20:.0f} MiB on {threads} threads",
            f"Give {math.ceil((least - memory_budget) / 2**20)} MiB more memory than now (EM_MEMORY_BUDGET)",
        )
    best = min(fitting, key=score)
    return best, sizes[best], decoded(best)


def _padded(shape: Shape, tile: Shape) -> Shape:
    """The smallest multiple of a tile that holds `shape`."""
    return Shape(*(math.ceil(n / t) * t for n, t in zip(shape, tile, strict=True)))


def _clipped(shape: Shape, within: Shape) -> Shape:
    return Shape(*(min(a, n) for a, n in zip(shape, within, strict=True)))


def _slabs(shape: Shape, chunk: Shape, shard: Shape) -> Iterator[Shape]:
    """Boxes that are runs of every shard's chunks in C order: above a partial axis, the box is one chunk."""
    parts = [
        [c * k for k in range(1, s // c) if (s // c) % k == 0] for c, s in zip(chunk, shard, strict=True)
    ]
    wholes = [list(_runs(s, math.ceil(n / s))) for n, s in zip(shape, shard, strict=True)]
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


def _sha256(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
