"""How a volume will be cut and written, decided before any voxel is read.

A *unit* is what one pass writes and what a restart skips or repeats: whole shards, one deep in z.
A *slab* is what is read at once: a box of whole chunks inside a unit. Slabs are runs of chunks in the order
in which a shard stores them, so that the bytes of a shard do not depend on how much memory there was.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.domain.lazy_volume import Kind
from em_pipeline.domain.wording import counted
from em_pipeline.volumes.codec import ChunkCodec, check_data_type
from em_pipeline.volumes.memory import Footprint, Held, Means
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.slabs import Cut, check_memory
from em_pipeline.volumes.tiling import chunks_of, clipped, grid, held_of_chunks, padded

CHUNK: Final = Shape(128, 128, 128)
SHARD: Final = Shape(512, 512, 512)
_KEPT: Final = Shape(1, 1, 1)
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
    `slab_shape` is what is read at once, `slabs_held` how many of these are in memory; `bytes_to_read` what
    the source must decode for them, or what the level below gives; `held` the voxels in flight while the
    level is written.
    """

    index: int
    shape: Shape
    chunk_shape: Shape
    shard_shape: Shape
    factors: Shape
    voxel_size: VoxelSize
    translation_nm: tuple[float, float, float]
    slab_shape: Shape
    slabs_held: int
    bytes_to_read: int
    held: Held

    @property
    def tile_shape(self) -> Shape:
        """What a slab buffer holds of each chunk (voxels z-y-x): of thin levels no padding."""
        return held_of_chunks(self.shape, self.chunk_shape)

    @property
    def padding(self) -> int:
        """Voxels of chunks that lie past the level."""
        return self.chunk_grid.voxels * self.chunk_shape.voxels - self.shape.voxels

    @property
    def unit_shape(self) -> Shape:
        """The smallest multiple of a shard that holds a slab."""
        return padded(self.slab_shape, self.shard_shape)

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

    @property
    def chunk_count(self) -> int:
        """Chunks of all levels, stored or not: rows of the ledger."""
        return sum(level.chunk_grid.voxels for level in self.levels)

    @property
    def chunk_bytes(self) -> int:
        """Of one chunk in memory."""
        return self.levels[0].chunk_shape.voxels * self.dtype.itemsize

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

        Slabs do not count: whatever they are, and however many are held, a unit's chunks are worked through
        in C order.
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
        content = [
            WRITER,
            name,
            {"start": box.start, "stop": box.stop},
            self.dtype.str,
            self.kind,
            self.codec,
            levels,
        ]
        if self.labels:
            content.append({"labels": self.labels})
        if missing is not None:
            content.append({"missing": missing.to_json()})
        return content


@dataclass(frozen=True)
class Layout:
    """How a volume is to be written.

    `codec` is a name that `codec.RECIPES` has, None the one that suits voxels of that type and kind; `labels`
    the folders of the label images that go with it. The pyramid has `level_count` levels, None as many as
    lead to a single chunk. Chunks and shards are voxels z-y-x.
    """

    kind: Kind = "image"
    codec: str | None = None
    labels: tuple[str, ...] = ()
    level_count: int | None = None
    chunk_shape: Shape = CHUNK
    shard_shape: Shape = SHARD


def plan_rechunk(
    shape: Shape,
    dtype: DTypeLike,
    voxel_size: VoxelSize,
    *,
    translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    source_chunk: Shape,
    means: Means,
    layout: Layout | None = None,
) -> RechunkPlan:
    """Plan the pyramid and the passes for a volume of `shape` voxels (z-y-x).

    `source_chunk` is what the source decodes whole (z-y-x voxels), `translation_nm` the centre of the first
    voxel. Where the means' threads would need most of the memory, fewer work. Raises `InputRefused` for an
    unknown codec, a type that volumes are not written in, or too little memory for a chunk.
    """
    layout = layout or Layout()
    _check(shape, source_chunk, means, layout)
    native = check_data_type(dtype)
    codec = ChunkCodec.for_dtype(native, layout.kind, layout.codec)
    chunk, tile = layout.chunk_shape, held_of_chunks(shape, layout.chunk_shape)
    footprint = Footprint(
        native, layout.kind, chunk, tile, means.read_scratch, means.sink_bytes, means.requests_at_once
    )
    means = means.affordable(footprint)
    scales = list(_pyramid(_Scale(shape, voxel_size, translation_nm), layout))
    # Coarser levels come from raw parts of chunks, of which none is read for another's sake.
    stored = [source_chunk, *[None] * (len(scales) - 1)]
    cuts = [_cut(scale, layout, piece, footprint) for scale, piece in zip(scales, stored, strict=True)]
    check_memory(cuts, means)
    levels = tuple(
        _level_plan(index, scale, cut, means)
        for index, scale, cut in zip(count(), scales, cuts, strict=False)
    )
    return RechunkPlan(Shape(*shape), native, layout.kind, codec.name, levels, means.threads, layout.labels)


def _check(shape: Shape, source_chunk: Shape, means: Means, layout: Layout) -> None:
    if means.threads < 1 or min(shape) < 1 or min(source_chunk) < 1:
        raise InputRefused(
            "Plan a volume",
            f"shape {tuple(shape)}, source chunk {tuple(source_chunk)}, {counted(means.threads, 'thread')}",
        )
    if any(c % 2 or s % c for c, s in zip(layout.chunk_shape, layout.shard_shape, strict=True)):
        raise InputRefused(
            "Plan a volume",
            f"chunk {layout.chunk_shape} is odd or does not divide shard {layout.shard_shape}",
        )


@dataclass(frozen=True)
class _Scale:
    """One level as space: `factors` lead to the next coarser one. Voxels and nanometres, z-y-x."""

    shape: Shape
    voxel_size: VoxelSize
    translation_nm: tuple[float, float, float]
    factors: Shape = _KEPT

    def halved(self) -> "_Scale":
        """The next coarser level. The centre of its first voxel is that of the voxels it is made from."""
        z, y, x = (
            (t + (f - 1) / 2 * v, v * f)
            for t, f, v in zip(self.translation_nm, self.factors, self.voxel_size, strict=True)
        )
        size = VoxelSize(z=z[1], y=y[1], x=x[1])
        return _Scale(grid(self.shape, self.factors), size, (z[0], y[0], x[0]))


def _pyramid(scale: _Scale, layout: Layout) -> Iterator[_Scale]:
    """Every level from `scale`, the finest, each with the factors that lead on."""
    for number in count(1):
        fits = all(n <= c for n, c in zip(scale.shape, layout.chunk_shape, strict=True))
        if number == layout.level_count if layout.level_count else fits:
            yield scale
            return
        scale = replace(scale, factors=_factors(scale.shape, scale.voxel_size))
        yield scale
        scale = scale.halved()


def _factors(shape: Shape, size: VoxelSize) -> Shape:
    """Halve toward isotropy: an axis is halved where its voxels are at most √2 times the smallest.

    √2 is the geometric midpoint between a factor of 1 and of 2. Axes of one voxel stay.
    """
    limit = math.sqrt(2) * min((v for v, n in zip(size, shape, strict=True) if n > 1), default=0.0)
    return Shape(*(2 if n > 1 and v <= limit else 1 for v, n in zip(size, shape, strict=True)))


def _cut(scale: _Scale, layout: Layout, stored: Shape | None, footprint: Footprint) -> Cut:
    """A level to be cut; `stored` is what its source decodes whole, if it has one."""
    shard = clipped(layout.shard_shape, padded(scale.shape, layout.chunk_shape))
    return Cut(scale.shape, shard, stored, footprint.of_level(scale.shape))


def _level_plan(index: int, scale: _Scale, cut: Cut, means: Means) -> LevelPlan:
    slab = cut.choose(means)
    return LevelPlan(
        index=index,
        shape=Shape(*scale.shape),
        chunk_shape=cut.footprint.chunk,
        shard_shape=cut.shard,
        factors=scale.factors,
        voxel_size=scale.voxel_size,
        translation_nm=scale.translation_nm,
        slab_shape=slab.shape,
        slabs_held=slab.count,
        bytes_to_read=slab.decoded * cut.footprint.dtype.itemsize,
        held=slab.held,
    )


def _sha256(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
