"""Chunks of thin levels are padded in memory that goes round: what was in it before never shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_pipeline.domain.geometry import Shape
from em_pipeline.volumes.encode import ChunkEncoder, Slot
from em_pipeline_tests.volumes.written import random_voxels, small_plan

CHUNK = Shape(8, 8, 8)


@settings(deadline=None, max_examples=30)
@given(shapes=st.lists(st.builds(Shape, st.integers(1, 2), st.integers(1, 8), st.integers(1, 8)), min_size=1))
def test_a_thin_tile_is_encoded_as_the_padded_chunk(shapes: list[Shape]) -> None:
    plan = small_plan(np.zeros((2, 20, 20), np.uint16), chunk_shape=CHUNK, shard_shape=CHUNK, codec="none")
    level = plan.levels[0]
    assert level.tile_shape == (2, 8, 8)
    encoder, slot = ChunkEncoder(plan, level, None), Slot.of(plan, level)
    for number, shape in enumerate(shapes, 1):
        tile = random_voxels(level.tile_shape, "uint16", number) | np.uint16(1)
        whole = np.zeros(CHUNK, np.uint16)
        inside = tuple(slice(n) for n in shape)
        whole[inside] = tile[inside]
        encoded = encoder.encode(Shape(0, 0, 0), shape, tile, slot)
        assert encoded.payload is not None
        assert encoded.payload.tobytes() == whole.tobytes()
        assert encoded.valid_fraction == shape.voxels / CHUNK.voxels
        assert (encoded.summary.count, encoded.summary.max) == (shape.voxels, whole.max())


@pytest.mark.parametrize(
    ("shape", "tile"),
    [((4, 9, 9), (4, 8, 8)), ((5, 9, 9), (8, 8, 8)), ((9, 1, 3), (8, 1, 3)), ((9, 7, 8), (8, 8, 8))],
)
def test_levels_that_fill_half_of_a_chunk_are_thin(
    shape: tuple[int, int, int], tile: tuple[int, int, int]
) -> None:
    plan = small_plan(np.zeros(shape, np.uint8), chunk_shape=CHUNK, shard_shape=CHUNK)
    assert plan.levels[0].tile_shape == tile
