"""Whether the coarser levels of a stored volume are what downsampling the finer ones gives."""

import random
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.downsample import reduction
from em_pipeline.volumes.metadata import LevelInfo
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.tiling import grid

_PLANES: Final = 8  # coarser planes downsampled at once, whose temporaries are several times their voxels


def coarser_faults(volume: Blobs, ledgers: Blobs, name: str, *, sample: int, seed: str) -> list[str]:
    """What differs, one line per chunk; empty where nothing does.

    Of each level but the finest up to `sample` chunks are compared, voxel by voxel, with the downsampling
    of the stored level before it; the same `seed` compares the same chunks. Holds about four chunks of
    voxels. Raises `NotFound` where the volume or ledger is missing, `ChunkCorrupt` where either is altered or
    a chunk cannot be read.
    """
    with VolumeReader.open(volume, ledgers, name) as reader:
        chosen = random.Random(seed)  # noqa: S311 - a sample, not a secret
        return [
            fault
            for finer, coarser in pairwise(reader.levels)
            for fault in _level_faults(reader, finer, coarser, sample, chosen)
        ]


def _level_faults(
    reader: VolumeReader, finer: LevelInfo, coarser: LevelInfo, sample: int, chosen: random.Random
) -> Iterator[str]:
    # An axis that is halved gets shorter: one of a single voxel never is.
    factors = Shape(*(2 if c < f else 1 for c, f in zip(coarser.shape, finer.shape, strict=True)))
    if grid(finer.shape, factors) != coarser.shape:
        yield f"level {coarser.index} has {tuple(coarser.shape)} voxels (z, y, x), not half of {finer.shape}"
        return
    chunks = coarser.chunk_grid
    for place in sorted(chosen.sample(range(chunks.voxels), min(sample, chunks.voxels))):
        chunk = Shape(*(int(n) for n in np.unravel_index(place, chunks)))
        if differing := _differing_voxels(reader, finer, coarser, factors, chunk):
            yield (
                f"level {coarser.index} chunk {tuple(chunk)} (z, y, x): {differing} of its voxels are not "
                f"the downsampling of level {finer.index}"
            )


def _differing_voxels(
    reader: VolumeReader, finer: LevelInfo, coarser: LevelInfo, factors: Shape, chunk: Shape
) -> int:
    """Compared part by part, each of one finer chunk, so that few chunks are in memory at once."""
    start = Shape(*(i * c for i, c in zip(chunk, coarser.chunk_shape, strict=True)))
    box = BoundingBox.at(start, coarser.valid_shape(chunk))
    stored = reader.read_block(coarser.index, box).data
    part = Shape(*(max(1, c // f) for c, f in zip(finer.chunk_shape, factors, strict=True)))
    reduce = partial(_reduced, reader, finer, factors)
    return sum(
        _unequal(stored[inside.slices], reduce(inside.shifted(start)))
        for inside in BoundingBox.of_shape(box.shape).tiles(part)
    )


def _reduced(reader: VolumeReader, finer: LevelInfo, factors: Shape, box: BoundingBox) -> NDArray[Any]:
    """What `box` (coarser voxels z-y-x) should hold, made a few planes at a time."""
    origin = Shape(*(a * f for a, f in zip(box.start, factors, strict=True)))
    ends = zip(box.stop, factors, finer.shape, strict=True)
    stop = Shape(*(min(b * f, end) for b, f, end in ends))
    voxels = reader.read_block(finer.index, BoundingBox(start=origin, stop=stop)).data
    expected = np.empty(box.shape, voxels.dtype)
    for first in range(0, box.shape.z, _PLANES):
        planes = voxels[first * factors.z : (first + _PLANES) * factors.z]
        expected[first : first + _PLANES] = reduction(reader.info.kind)(planes, factors)
    return expected


def _unequal(stored: NDArray[Any], expected: NDArray[Any]) -> int:
    same = stored == expected
    if stored.dtype.kind == "f":
        same |= np.isnan(stored) & np.isnan(expected)
    return int(same.size - np.count_nonzero(same))
