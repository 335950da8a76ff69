"""Raw boxes of a DVID server, and what its instances say of themselves."""

import json
from pathlib import Path
from typing import Any

import pytest

from em_pipeline.domain.errors import NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.dvid import INFO_NAME, open_dvid, parse_instance
from em_pipeline_tests.formats.helpers import check_volume, ramp

SHAPE = Shape(20, 37, 70)


def instance(**extended: Any) -> dict[str, Any]:
    """An instance whose first voxel is x, y, z = 32, 16, 8."""
    return {
        "Base": {"TypeName": "uint8blk", "Name": "grayscale"},
        "Extended": {
            "BlockSize": [8, 8, 8],
            "VoxelSize": [8, 8, 8],
            "VoxelUnits": ["nanometers"] * 3,
            "MinPoint": [32, 16, 8],
            "MaxPoint": [32 + SHAPE.x - 1, 16 + SHAPE.y - 1, 8 + SHAPE.z - 1],
            **extended,
        },
    }


def held(folder: Path, part: BoundingBox | None = None) -> Path:
    """The boxes that meet `part` as the server would have sent them."""
    (folder / INFO_NAME).write_text(json.dumps(instance()))
    parsed = parse_instance((folder / INFO_NAME).read_bytes(), INFO_NAME)
    voxels = ramp(SHAPE)
    for box in parsed.grid.boxes(part or BoundingBox.of_shape(SHAPE)):
        (folder / parsed.grid.name(box)).write_bytes(voxels[box.slices].tobytes())
    return folder


def test_boxes_make_the_volume(tmp_path: Path) -> None:
    volume = open_dvid(held(tmp_path))
    check_volume(volume, ramp(SHAPE))
    assert tuple(volume.voxel_size_nm) == (8, 8, 8)
    assert volume.translation_nm == (8.5 * 8, 16.5 * 8, 32.5 * 8)
    assert volume.missing == ()


def test_max_point_is_the_last_voxel() -> None:
    assert parse_instance(json.dumps(instance()), "info").shape == SHAPE


def test_boxes_are_asked_for_in_x_y_z_and_politely() -> None:
    parsed = parse_instance(json.dumps(instance()), "info")
    box = BoundingBox.at((1, 2, 3), (4, 5, 6))
    assert parsed.raw_path(box) == "raw/0_1_2/6_5_4/35_18_9?throttle=true"


def test_a_part_opens_as_the_whole(tmp_path: Path) -> None:
    part = BoundingBox.at((0, 33, 0), (3, 3, 3))
    volume = open_dvid(held(tmp_path, part), box=part)
    assert volume.shape == SHAPE
    assert (volume.read(part) == ramp(SHAPE)[part.slices]).all()
    with pytest.raises(NotFound, match="not held"):
        volume.read(BoundingBox.at((0, 0, 0), (1, 1, 1)))


def test_a_box_that_was_lost_is_no_background(tmp_path: Path) -> None:
    held(tmp_path)
    (tmp_path / "32-48_16-32_8-24").unlink()
    with pytest.raises(NotFound, match="32-48_16-32_8-24"):
        open_dvid(tmp_path)


def test_a_short_box_is_named(tmp_path: Path) -> None:
    held(tmp_path)
    (tmp_path / "32-48_16-32_8-24").write_bytes(b"busy")
    with pytest.raises(UnsupportedFormat, match="32-48_16-32_8-24"):
        open_dvid(tmp_path).read(BoundingBox.of_shape(SHAPE))


@pytest.mark.parametrize(
    ("document", "found"),
    [
        (instance(MinPoint=None, MaxPoint=None), "nothing was ever written"),
        (instance(MaxPoint=[0, 0, 0]), "reaches from"),
        (instance(MaxPoint=["a", 0, 0]), "damaged"),
        ({**instance(), "Base": {"TypeName": "labelmap"}}, "labelmap"),
        ({"error": "no such node"}, "no answer of a DVID instance"),
        ([], "no answer of a DVID instance"),
    ],
)
def test_other_instances_are_refused_by_name(document: Any, found: str) -> None:
    with pytest.raises(UnsupportedFormat, match=found):
        parse_instance(json.dumps(document), "info")
