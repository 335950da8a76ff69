"""Whether the coarser levels of a stored volume are what downsampling the finer ones gives."""

import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from em_pipeline.domain.blobs import Blobs
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.downsample import reduction
from em_pipeline.volumes.metadata import LevelInfo
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline.volumes.tiling import grid


def coarser_faults(volume: Blobs, ledgers: Blobs, name: str, *, sample: int, seed: str) -> list[str]:
    """What differs, one line per chunk; empty where nothing does.

    Of each level but the finest up to `sample` chunks are compared, voxel by voxel, with the downsampling
    of the stored level before it; the same `seed` compares the same chunks. Raises `NotFound` where the
    volume or ledger is missing, `ChunkCorrupt` where either is altered or a chunk cannot be read.
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
    start = Shape(*(i * c for i, c in zip(chunk, coarser.chunk_shape, strict=True)))
    box = BoundingBox.at(start, coarser.valid_shape(chunk))
    origin = Shape(*(a * f for a, f in zip(start, factors, strict=True)))
    extent = Shape(*(n * f for n, f in zip(box.shape, factors, strict=True)))
    stop = Shape(*(min(a + n, end) for a, n, end in zip(origin, extent, finer.shape, strict=True)))
    source = BoundingBox(start=origin, stop=stop)
    expected = reduction(reader.info.kind)(reader.read_block(finer.index, source).data, factors)
    stored = reader.read_block(coarser.index, box).data
    same = stored == expected
    if stored.dtype.kind == "f":
        same |= np.isnan(stored) & np.isnan(expected)
    return int(same.size - np.count_nonzero(same))
