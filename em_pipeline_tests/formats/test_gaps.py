"""The part of a grid where nothing lies."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.gaps import LazyBoxes, gaps, in_voxels
from em_pipeline_tests.formats.helpers import boxes

GRID = (5, 6, 7)


@given(st.sets(st.tuples(*(st.integers(0, n - 1) for n in GRID))))
def test_gaps_and_what_is_present_tile_the_grid(cells: set[tuple[int, int, int]]) -> None:
    covered = np.zeros(GRID, int)
    for cell in cells:
        covered[cell] += 1
    present = np.array(sorted(cells), np.int64).reshape(-1, 3)
    for box in gaps(BoundingBox.of_shape(GRID), present):
        covered[box.slices] += 1
    assert (covered == 1).all()


@given(boxes(GRID))
def test_what_lacks_a_box_is_at_most_six_boxes(held: BoundingBox) -> None:
    present = np.argwhere(np.ones(held.shape)) + np.array(held.start)
    found = list(gaps(BoundingBox.of_shape(GRID), present))
    assert len(found) <= 6


def test_nothing_and_everything() -> None:
    grid = BoundingBox.of_shape(GRID)
    assert list(gaps(grid, np.empty((0, 3), np.int64))) == [grid]
    assert list(gaps(grid, np.argwhere(np.ones(GRID)))) == []


def test_cells_are_clipped_to_the_volume() -> None:
    box = in_voxels(BoundingBox.at((1, 0, 2), (1, 2, 1)), Shape(10, 10, 10), Shape(15, 30, 25))
    assert box == BoundingBox(start=Shape(10, 0, 20), stop=Shape(15, 20, 25))


def test_lazy_boxes_are_found_once_and_when_asked_for() -> None:
    asked = []

    def find() -> tuple[BoundingBox, ...]:
        asked.append(1)
        return (BoundingBox.of_shape(GRID),)

    found = LazyBoxes(find)
    assert asked == []
    assert len(found) == 1
    assert found[0] == BoundingBox.of_shape(GRID)
    assert found == (BoundingBox.of_shape(GRID),)
    assert found != ()
    assert pickle.loads(pickle.dumps(found)) == found
    assert asked == [1]
