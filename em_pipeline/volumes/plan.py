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
from em_pipeline.volumes.codec import ChunkCodec, Kind, check_data_type
from em_pipeline.volumes.missing import Missing

CHUNK: Final = Shape(128, 128, 128)
SHARD: Final = Shape(512, 512, 512)
WRITER: Final = 1
"""Counts changes of the bytes written for the same voxels and plan."""

SLABS_HELD: Final = 3
"""Slabs in memory: one being encoded, one that is read and one being read."""

_SLABS_COUNTED: Final = SLABS_HELD + 1  # what readers hold before it is dealt out to chunks
_CHUNKS_PER_THREAD: Final = 6  # three encoded, and the wide sums of one


@dataclass(frozen=True)
class Unit:
    """Whole shards written in one pass. `box` is in voxels of the level, clipped to it."""

    index: int
    box: BoundingBox
    slabs: tuple[BoundingBox, ...]

    def chunks(self, chunk_shape: Shape) -> Iterator[tuple[Shape, BoundingBox]]:
        """Index and box (voxels of the level, clipped to it) of each chunk, in the order they are written."""
        for slab in self.slabs:
            yield from chunks_of(slab, chunk_shape)


@dataclass(frozen=True)
class LevelPlan:
    """One pyramid level. `factors` lead to the next coarser level: 1 or 2 per axis, all 1 at the last.

    Shapes are voxels, z-y-x. `translation_nm` is the centre of the first voxel.
    `slab_shape` is the unit of reading; `bytes_to_read` a rough estimate of what the source must decode.
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

    @property
    def unit_shape(self) -> Shape:
        """The smallest multiple of a shard that holds a slab."""
        return Shape(
            *(
                math.ceil(slab / shard) * shard
                for slab, shard in zip(self.slab_shape, self.shard_shape, strict=True)
            )
        )

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

    def is_last(self, level: LevelPlan) -> bool:
        """Whether no coarser level is made from it."""
        return level.index + 1 == len(self.levels)

    @property
    def chunk_codec(self) -> ChunkCodec:
        return ChunkCodec(self.codec, self.dtype)

    def bytes_in_flight(self, threads: int) -> int:
        """Bytes that the voxels of the level that takes most of them take while `threads` work on it."""
        chunk = max(lv.chunk_shape.voxels for lv in self.levels)
        slab = max(_held(lv.slab_shape, lv.shape, lv.chunk_shape) for lv in self.levels)
        return (_SLABS_COUNTED * slab + threads * _CHUNKS_PER_THREAD * chunk) * self.dtype.itemsize

    def digest(self, *, name: str, box: BoundingBox, missing: Missing | None = None) -> str:
        """SHA-256 of what decides the bytes written; equal digests give equal volumes."""
        return _sha256(self._content(name, box, missing))

    def work_digest(self, *, name: str, box: BoundingBox, missing: Missing | None = None) -> str:
        """SHA-256 of that and of the division into units, which a resumed run must share."""
        units = [[list(level.slab_shape), list(level.unit_shape)] for level in self.levels]
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


def chunks_of(box: BoundingBox, chunk_shape: Shape) -> Iterator[tuple[Shape, BoundingBox]]:
    """Index and box of each chunk that `box`, which starts at one, is cut into; C order."""
    for tile in box.tiles(chunk_shape):
        z, y, x = (a // c for a, c in zip(tile.start, chunk_shape, strict=True))
        yield Shape(z, y, x), tile


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
    codec: str | None = None,
    kind: Kind = "image",
    labels: tuple[str, ...] = (),
    level_count: int | None = None,
    chunk_shape: Shape = CHUNK,
    shard_shape: Shape = SHARD,
) -> RechunkPlan:
    """Plan the pyramid and the passes for a volume of `shape` voxels (z-y-x).

    `source_chunk` is what the source decodes whole (z-y-x voxels), `memory_budget` the bytes that voxels in
    flight may take (where `threads` would need most of it, fewer work), `translation_nm` the centre of the
    first voxel, `labels` the folders of the label images that go with it. The pyramid has `level_count`
    levels, without one as many as lead to a single chunk. Raises `InputRefused` for an unknown codec, a type
    that volumes are not written in, or a budget too small for a chunk.
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
    threads = _affordable_threads(memory_budget, threads, chunk_shape, native.itemsize)
    slab_voxels = _slab_limit(memory_budget, threads, chunk_shape, native.itemsize)
    levels: list[LevelPlan] = []
    size, first = tuple(voxel_size), translation_nm
    while True:
        last = len(levels) + 1 == level_count if level_count else _fits(shape, chunk_shape)
        factors = Shape(1, 1, 1) if last else _factors(shape, size)
        shard = Shape(
            *(min(s, math.ceil(n / c) * c) for n, c, s in zip(shape, chunk_shape, shard_shape, strict=True))
        )
        # Coarser levels come from raw parts of chunks, of which none is read for another's sake.
        stored = source_chunk if not levels else Shape(1, 1, 1)
        slab, decoded = _choose_slab(shape, chunk_shape, shard, stored, slab_voxels, threads)
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


def _affordable_threads(memory_budget: int, threads: int, chunk: Shape, itemsize: int) -> int:
    """As many threads as half the memory serves: the other half is for the slabs they work on."""
    each = _CHUNKS_PER_THREAD * chunk.voxels * itemsize
    return max(1, min(threads, memory_budget // (2 * each)))


def _slab_limit(memory_budget: int, threads: int, chunk: Shape, itemsize: int) -> int:
    """Voxels that one slab may have. Raises `InputRefused` where that is less than a chunk."""
    chunk_bytes = chunk.voxels * itemsize
    working = threads * _CHUNKS_PER_THREAD * chunk_bytes
    if (limit := int((memory_budget - working) / _SLABS_COUNTED)) < chunk_bytes:
        needed = working + _SLABS_COUNTED * chunk_bytes
        raise InputRefused(
            f"Plan a volume within {memory_budget / 2**20:.0f} MiB on {threads} threads",
            f"chunks of {chunk_bytes / 2**20:.1f} MiB need {needed / 2**20:.0f} MiB",
            "Give more memory (EM_MEMORY_BUDGET)",
        )
    return limit // itemsize


def _choose_slab(
    shape: Shape, chunk: Shape, shard: Shape, stored: Shape, limit: int, threads: int
) -> tuple[Shape, int]:
    """The slab that makes the source decode least, keeps all threads busy and is small; voxels decoded."""

    def score(slab: Shape) -> tuple[int, int, int, Shape]:
        clipped = Shape(*(min(a, n) for a, n in zip(slab, shape, strict=True)))
        idle = max(0, 4 * threads - grid(clipped, chunk).voxels)
        return decoded(slab), idle, clipped.voxels, slab

    def decoded(slab: Shape) -> int:
        return math.prod(_decoded(n, s, c) for n, s, c in zip(shape, slab, stored, strict=True))

    fitting = (slab for slab in _slabs(shape, chunk, shard) if _held(slab, shape, chunk) <= limit)
    best = min(fitting, key=score)
    return best, decoded(best)


def _held(slab: Shape, shape: Shape, chunk: Shape) -> int:
    """Voxels in memory: a slab is held in whole chunks."""
    return math.prod(min(a, math.ceil(n / c) * c) for a, n, c in zip(slab, shape, chunk, strict=True))


def _slabs(shape: Shape, chunk: Shape, shard: Shape) -> Iterator[Shape]:
    """Boxes that are runs of every shard's chunks in C order: above a partial axis, the box is one chunk."""
    parts = [
        [c * k for k in range(1, s // c) if (s // c) % k == 0] for c, s in zip(chunk, shard, strict=True)
    ]
    wholes = [list(_runs(s, math.ceil(n / s))) for n, s in zip(shape, shard, strict=True)]
    yield from (Shape(chunk.z, chunk.y, x) for x in parts[2])
    yield from (Shape(chunk.z, y, x) for y, x in product(parts[1], wholes[2]))
    yield from (Shape(z, y, x) for z, y, x in product([*parts[0], shard.z], wholes[1], wholes[2]))


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
