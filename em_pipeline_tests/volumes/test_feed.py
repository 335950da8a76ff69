"""Slab buffers hold exactly the voxels of their slab, whatever the source's chunks, and each is read once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.volumes import memory
from em_pipeline.volumes.feed import SourceFeed
from em_pipeline.volumes.tiling import grid
from em_pipeline_tests.volumes.arrays import ArrayVolume
from em_pipeline_tests.volumes.planned import plan_with

CHUNK = Shape(4, 4, 4)
EXTENT = st.integers(1, 21)


@settings(deadline=None)
@given(
    shape=st.builds(Shape, EXTENT, EXTENT, EXTENT),
    stored=st.builds(Shape, EXTENT, EXTENT, EXTENT),
    origin=st.builds(Shape, *[st.integers(0, 7)] * 3),
    threads=st.integers(1, 4),
    granule=st.sampled_from([16, 64, 1 << 20]),
)
def test_slabs_are_filled_from_granules_of_any_shape(
    shape: Shape, stored: Shape, origin: Shape, threads: int, granule: int
) -> None:
    whole = tuple(n + o for n, o in zip(shape, origin, strict=True))
    array = np.arange(np.prod(whole), dtype=np.uint16).reshape(whole)
    source = ArrayVolume(array, chunk_shape=stored)
    plan = plan_with(
        shape, "uint16", VoxelSize(z=1, y=1, x=1), source_chunk=stored, memory_budget=1 << 20, threads=1,
        chunk_shape=CHUNK, shard_shape=Shape(8, 8, 8),
    )  # fmt: skip
    feed = SourceFeed(source, origin, plan.levels[0])
    wanted = array[origin.z :, origin.y :, origin.x :]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "GRANULE", granule)
        for unit in plan.levels[0].units():
            for slab in unit.slabs:
                source.reads.clear()
                chunks = grid(slab.shape, CHUNK)
                tile = plan.levels[0].tile_shape
                tiles = np.zeros((*chunks, *tile), np.uint16)
                for piece in feed.pieces(slab, threads):
                    piece(tiles)
                padded = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(np.multiply(chunks, tile))
                z, y, x = slab.shape
                np.testing.assert_array_equal(padded[:z, :y, :x], wanted[slab.slices])
                assert not padded[z:].any()
                assert not padded[:, y:].any()
                assert not padded[:, :, x:].any()
                _check_decoded_once(source, slab.shifted(origin), stored)


def _check_decoded_once(source: ArrayVolume, slab: BoundingBox, stored: Shape) -> None:
    touched = np.zeros(grid(source.shape, stored), int)
    for box in source.reads:
        touched[
            tuple(slice(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, stored, strict=True))
        ] += 1
    assert touched.max() == 1
    assert sum(box.shape.voxels for box in source.reads) == slab.shape.voxels
