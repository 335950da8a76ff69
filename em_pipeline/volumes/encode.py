"""Everything that happens to one chunk: measured, downsampled, encoded, in one thread."""

import threading
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.codec import ChunkCodec, crc32c
from em_pipeline.volumes.downsample import reduction
from em_pipeline.volumes.missing import Missing
from em_pipeline.volumes.plan import LevelPlan, RechunkPlan
from em_pipeline.volumes.statistics import Counts, Summary, measure, measure_padded


@dataclass(frozen=True)
class Slot:
    """Memory for what comes out of one chunk, used again and again: fresh pages cost more than a copy."""

    payload: NDArray[np.uint8]

    @classmethod
    def of(cls, plan: RechunkPlan, level: LevelPlan) -> Self:
        nbytes = level.chunk_shape.voxels * plan.dtype.itemsize
        return cls(np.empty(ChunkCodec.bound(nbytes), np.uint8))


@dataclass(frozen=True)
class Encoded:
    """A chunk ready to be stored; `payload` is None where no voxel of the source is in it but fill values.

    `coarse` are its voxels downsampled for the next level, None at the last; the checksums are CRC-32C.
    """

    index: Shape
    payload: NDArray[np.uint8] | None
    checksum: int
    valid_fraction: float
    summary: Summary
    counts: Counts
    coarse: NDArray[Any] | None
    coarse_checksum: int


class ChunkEncoder:
    """Encodes chunks of one level. Safe in several threads. `missing` is what the source does not hold."""

    def __init__(self, plan: RechunkPlan, level: LevelPlan, missing: Missing | None) -> None:
        self._codec = plan.chunk_codec
        self._chunk_shape = level.chunk_shape
        self._factors = None if plan.is_last(level) else level.factors
        self._reduce = reduction(plan.kind)
        self._missing = missing
        self._local = threading.local()

    def encode(self, index: Shape, shape: Shape, chunk: NDArray[Any], slot: Slot) -> Encoded:
        """`chunk` holds `shape` voxels at its start; past them it may hold anything, and is cleared.

        It is of the level's `tile_shape`: what of a chunk the level fills, where that is little.
        """
        valid = self._padded(chunk, shape)
        gone = self._missing.within(self._box(index, shape)) if self._missing else None
        if gone is None:
            held = valid.size
            summary, counts = measure_padded(chunk, shape)
        else:
            valid[gone] = 0  # the source's own fill value may be another
            held = valid.size - int(np.count_nonzero(gone))
            summary, counts = measure(valid[~gone])
        payload = None
        if held and not _is_fill(summary, chunk):
            payload = self._codec.encode_into(self._whole(chunk, shape), slot.payload)
        coarse = None if self._factors is None else np.ascontiguousarray(self._reduce(valid, self._factors))
        return Encoded(
            index=index,
            payload=payload,
            checksum=0 if payload is None else crc32c(payload),
            valid_fraction=held / self._chunk_shape.voxels,
            summary=summary,
            counts=counts,
            coarse=coarse,
            coarse_checksum=0 if coarse is None else crc32c(coarse.reshape(-1).view(np.uint8)),
        )

    def _box(self, index: Shape, shape: Shape) -> BoundingBox:
        z, y, x = (i * n for i, n in zip(index, self._chunk_shape, strict=True))
        return BoundingBox.at((z, y, x), shape)

    def _padded(self, chunk: NDArray[Any], valid: Shape) -> NDArray[Any]:
        """Clear what lies past the valid voxels; a view of those."""
        if valid == chunk.shape:
            return chunk
        chunk[valid.z :] = 0
        chunk[: valid.z, valid.y :] = 0
        chunk[: valid.z, : valid.y, valid.x :] = 0
        return chunk[: valid.z, : valid.y, : valid.x]

    def _whole(self, tile: NDArray[Any], valid: Shape) -> NDArray[Any]:
        """The chunk that a tile with `valid` voxels is of: itself, or in this thread's own, with padding."""
        if tile.shape == self._chunk_shape:
            return tile
        padded: _PaddedChunk | None = getattr(self._local, "padded", None)
        if padded is None:
            padded = self._local.padded = _PaddedChunk(self._chunk_shape, tile.dtype)
        return padded.around(tile, valid)


class _PaddedChunk:
    """A chunk that is zeros but for the first voxels along each axis, used again and again."""

    def __init__(self, shape: Shape, dtype: np.dtype[Any]) -> None:
        self._chunk = np.zeros(shape, dtype)
        self._filled = Shape(0, 0, 0)

    def around(self, tile: NDArray[Any], valid: Shape) -> NDArray[Any]:
        """The chunk with the first `valid` voxels of a tile, valid until the next call."""
        if any(a > b for a, b in zip(self._filled, valid, strict=True)):
            self._chunk[_first(self._filled)] = 0
        self._chunk[_first(valid)] = tile[_first(valid)]
        self._filled = valid
        return self._chunk


def _first(shape: Shape) -> tuple[slice, slice, slice]:
    return slice(shape.z), slice(shape.y), slice(shape.x)


def _is_fill(summary: Summary, chunk: NDArray[Any]) -> bool:
    """Whether every byte is zero; negative zeros are data."""
    if not summary.min == summary.max == 0 or summary.nonfinite:
        return False
    return chunk.dtype.kind != "f" or not chunk.view(np.uint8).any()
