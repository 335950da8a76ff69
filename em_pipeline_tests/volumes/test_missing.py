"""Missing voxels, held to masks of every voxel."""

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.missing import Missing

EXTENT = 11
WHOLE = BoundingBox.of_shape((EXTENT, EXTENT, EXTENT))


@st.composite
def boxes(draw: Any) -> BoundingBox:
    start = draw(st.tuples(*[st.integers(0, EXTENT - 1)] * 3))
    stop = tuple(draw(st.integers(a + 1, EXTENT)) for a in start)
    return BoundingBox(start=Shape(*start), stop=Shape(*stop))


def mask_of(listed: list[BoundingBox]) -> NDArray[np.bool_]:
    mask = np.zeros(WHOLE.shape, bool)
    for box in listed:
        mask[box.slices] = True
    return mask


def mask_in(missing: Missing | None, box: BoundingBox) -> NDArray[np.bool_]:
    found = missing.within(box) if missing else None
    return np.zeros(box.shape, bool) if found is None else found


@given(listed=st.lists(boxes(), max_size=5), within=boxes(), asked=boxes())
def test_any_boxes_in_any_part(listed: list[BoundingBox], within: BoundingBox, asked: BoundingBox) -> None:
    expected = mask_of(listed)[within.slices]
    missing = Missing.of(listed, within)
    assert (missing is None) == (not expected.any())
    if missing is None:
        return
    assert missing.shape == within.shape
    assert missing.voxels == expected.sum()
    part = asked.clipped(within.shape)
    if part is not None:
        np.testing.assert_array_equal(mask_in(missing, part), expected[part.slices])


@given(listed=st.lists(boxes(), min_size=1, max_size=4), axes=st.permutations([True, True, False]))
def test_coarser_voxels_are_missing_where_all_finer_ones_are(
    listed: list[BoundingBox], axes: list[bool]
) -> None:
    mask = mask_of(listed)
    shapes, masks = [WHOLE.shape], [mask]
    for _ in range(3):
        for axis, halved in enumerate(axes):
            if halved:
                mask = np.logical_and.reduceat(mask, np.arange(0, mask.shape[axis], 2), axis)
        shapes.append(Shape(*mask.shape))
        masks.append(mask)
    missing = Missing.of(listed, WHOLE)
    assert missing is not None
    for level, expected in zip(missing.pyramid(shapes), masks, strict=True):
        np.testing.assert_array_equal(mask_in(level, BoundingBox.of_shape(expected.shape)), expected)


@given(listed=st.lists(boxes(), min_size=1, max_size=4), seed=st.randoms(use_true_random=False))
def test_the_same_voxels_are_written_the_same(listed: list[BoundingBox], seed: Any) -> None:
    missing = Missing.of(listed, WHOLE)
    assert missing is not None
    pieces = [piece for box in listed for piece in box.tiles((2, 3, 4))]
    seed.shuffle(pieces)
    otherwise = Missing.of(pieces, WHOLE)
    assert otherwise is not None
    assert otherwise.to_json() == missing.to_json()
    again = Missing.from_json(json.loads(json.dumps(missing.to_json())))
    np.testing.assert_array_equal(mask_in(again, WHOLE), mask_of(listed))


def test_a_box_that_only_touches_is_not_missing() -> None:
    assert Missing.of([BoundingBox.at((0, 0, 0), (4, 4, 4))], BoundingBox.at((4, 0, 0), (4, 4, 4))) is None
