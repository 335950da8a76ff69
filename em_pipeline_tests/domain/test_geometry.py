"""Boxes and voxel sizes."""

import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.domain.geometry import BoundingBox, PartialVoxelSize, Shape, VoxelSize

sizes = st.integers(1, 40)
shapes = st.tuples(sizes, sizes, sizes)


@given(shapes, shapes)
def test_tiles_cover_every_voxel_once(shape: tuple[int, int, int], tile: tuple[int, int, int]) -> None:
    seen = np.zeros(shape, int)
    for box in BoundingBox.of_shape(shape).tiles(tile):
        seen[box.slices] += 1
        assert all(n <= t for n, t in zip(box.shape, tile, strict=True))
    assert (seen == 1).all()


@given(shapes, shapes, shapes, shapes)
def test_tiles_of_a_box_off_the_grid_stay_inside_it(
    start: tuple[int, int, int],
    size: tuple[int, int, int],
    tile: tuple[int, int, int],
    by: tuple[int, int, int],
) -> None:
    box = BoundingBox.at(start, size)
    assert sum(part.shape.voxels for part in box.tiles(tile)) == box.shape.voxels
    assert box.shifted(by).shape == box.shape


@pytest.mark.parametrize("stop", [(1, 1, 0), (0, 1, 1), (-1, 1, 1)])
def test_an_empty_box_is_refused(stop: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="empty or negative"):
        BoundingBox(start=Shape(0, 0, 0), stop=Shape(*stop))


def test_clipping() -> None:
    box = BoundingBox.at((2, 2, 2), (128, 128, 128))
    clipped = box.clipped((10, 200, 50))
    assert clipped is not None
    assert clipped.shape == (8, 128, 48)
    assert box.clipped((2, 200, 50)) is None


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 10**400])
def test_a_voxel_size_is_positive_and_finite(value: float) -> None:
    with pytest.raises(ValueError, match="no length"):
        VoxelSize(z=value, y=8, x=8)


def test_partial_voxel_sizes_fill_each_other() -> None:
    file = PartialVoxelSize(y=8, x=8)
    assert file.complete() is None
    merged = PartialVoxelSize(z=50).filled_from(file)
    assert merged.complete() == VoxelSize(z=50, y=8, x=8)


@pytest.mark.parametrize("start", [[0, 1, 2], (0, 1, 2), Shape(*np.arange(3))])
def test_the_corners_of_a_box_are_shapes_of_int(start: Any) -> None:
    box = BoundingBox(start=start, stop=np.array([3, 4, 5]))
    assert box == BoundingBox.at((0, 1, 2), (3, 3, 3))
    assert isinstance(box.start, Shape)
    assert {type(n) for n in (*box.start, *box.stop)} == {int}


@pytest.mark.parametrize("stop", [Shape(1, 1, 1.5), (1, 1), (1, 1, 1, 1), None])
def test_what_is_no_corner_is_refused(stop: Any) -> None:
    with pytest.raises(ValueError, match="not three whole numbers"):
        BoundingBox(start=Shape(0, 0, 0), stop=stop)


def test_lengths_are_floats() -> None:
    size = VoxelSize(z=np.float32(8), y=4, x="0.5")
    assert [(type(n), n) for n in size] == [(float, 8.0), (float, 4.0), (float, 0.5)]
    with pytest.raises(ValueError, match="y = "):
        PartialVoxelSize(z=1, y=[])


def test_boxes_are_values() -> None:
    box = BoundingBox.at((1, 2, 3), (4, 5, 6))
    assert pickle.loads(pickle.dumps(box)) == box
    assert len({box, box.shifted((0, 0, 0)), box.shifted((1, 0, 0))}) == 2
    with pytest.raises(FrozenInstanceError):
        box.start = Shape(0, 0, 0)
