"""Levels, boxes and random crops: how they are written, drawn and named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.ingest.regions import (
    RandomCrop,
    parse_level,
    parse_random_crop,
    parse_raw_layout,
    parse_roi,
    parse_shape,
    part_name,
)

extents = st.integers(1, 10**6)


@pytest.mark.parametrize(("text", "level"), [("2", 2), ("s4", "s4"), (" 0 ", 0), ("em/s1", "em/s1")])
def test_levels(text: str, level: int | str) -> None:
    assert parse_level(text) == level


@pytest.mark.parametrize("text", ["", " ", "-1"])
def test_what_is_no_level_is_refused(text: str) -> None:
    with pytest.raises(InputRefused, match="s4"):
        parse_level(text)


def test_a_region_is_half_open_and_z_first() -> None:
    box = parse_roi("12000:12600, 11000:11400, 10000:10200")
    assert (box.start, box.shape) == ((12000, 11000, 10000), (600, 400, 200))


@pytest.mark.parametrize(
    "text", ["", "0:1", "0:1,0:1", "0:1,0:1,0:1,0:1", "0-1,0-1,0-1", "a:b,0:1,0:1", "0:1.5,0:1,0:1", ":,:,:"]
)
def test_what_is_no_region_shows_the_right_form(text: str) -> None:
    with pytest.raises(InputRefused, match="z0:z1,y0:y1,x0:x1"):
        parse_roi(text)


@pytest.mark.parametrize("text", ["0:0,0:1,0:1", "0:1,5:4,0:1", "-1:1,0:1,0:1"])
def test_empty_and_negative_regions_are_refused(text: str) -> None:
    with pytest.raises(InputRefused, match="below its stop"):
        parse_roi(text)


@pytest.mark.parametrize("text", ["", "1,2", "0,1,1", "-1,1,1", "1,2,3,4", "a,b,c"])
def test_sizes_are_three_numbers_above_zero(text: str) -> None:
    with pytest.raises(InputRefused, match="--raw-shape"):
        parse_shape(text, "--raw-shape")


@pytest.mark.parametrize(("size", "seed"), [("1,1,1", None), (None, 7)])
def test_a_crop_without_a_seed_could_not_be_drawn_again(size: str | None, seed: int | None) -> None:
    with pytest.raises(InputRefused, match="missing"):
        parse_random_crop(size, seed)


def test_a_file_without_a_header_is_described_by_two_options() -> None:
    layout = parse_raw_layout("4,5,6", ">u2")
    assert layout is not None
    assert (layout.shape, layout.dtype) == ((4, 5, 6), ">u2")
    assert parse_raw_layout(None, None) is None


@pytest.mark.parametrize(("shape", "dtype"), [("1,1,1", None), (None, "u1"), ("1,1,1", "colour")])
def test_what_describes_no_voxels_is_refused(shape: str | None, dtype: str | None) -> None:
    with pytest.raises(InputRefused, match="--raw-"):
        parse_raw_layout(shape, dtype)


@given(st.tuples(extents, extents, extents), st.data(), st.integers())
def test_a_crop_lies_inside_and_is_the_same_again(
    shape: tuple[int, int, int], data: st.DataObject, seed: int
) -> None:
    size = Shape(*(data.draw(st.integers(1, n)) for n in shape))
    box = RandomCrop(size, seed).box_in(Shape(*shape))
    assert box.shape == size
    assert box.within(shape)
    assert RandomCrop(size, seed).box_in(Shape(*shape)) == box


def test_seeds_reach_every_place() -> None:
    starts = {RandomCrop(Shape(1, 2, 3), seed).box_in(Shape(1, 4, 4)).start for seed in range(200)}
    assert starts == {(0, y, x) for y in range(3) for x in range(2)}


def test_where_seed_7_lies_never_changes() -> None:
    crop = RandomCrop(Shape(128, 128, 128), 7)
    assert crop.box_in(Shape(1000, 2000, 3000)).start == (819, 1837, 2435)
    assert crop.reason(Shape(1000, 2000, 3000)) == "random crop, seed 7, of (1000, 2000, 3000)"


def test_a_crop_larger_than_the_volume_is_refused() -> None:
    with pytest.raises(InputRefused, match="the volume is only 4,5,6"):
        RandomCrop(Shape(4, 5, 7), 0).box_in(Shape(4, 5, 6))


@pytest.mark.parametrize(
    ("level", "box", "crop", "name"),
    [
        (None, None, None, ""),
        ("s4", None, None, "s4"),
        (2, None, None, "l2"),
        (None, BoundingBox.at((1, 20, 300), (4, 5, 6)), None, "z1-5_y20-25_x300-306"),
        (None, None, RandomCrop(Shape(1, 2, 3), 7), "1x2x3-seed7"),
        ("s4", None, RandomCrop(Shape(1, 2, 3), 7), "s4-1x2x3-seed7"),
    ],
)
def test_names_of_parts(
    level: int | str | None, box: BoundingBox | None, crop: RandomCrop | None, name: str
) -> None:
    assert part_name(level, box, crop) == name
