"""DM3: thumbnails first, offsets that move, dates of two locales, what is no image."""

import errno
import os
import struct
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rsciio.digitalmicrograph import file_reader

from em_pipeline.demo import dm3
from em_pipeline.domain.errors import StorageFailed, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats import dm
from em_pipeline.formats.dm import open_dm
from em_pipeline.formats.dm_claims import origin_nm, read_date
from em_pipeline.formats.open import open_volume
from em_pipeline_tests.formats.helpers import boxes, calls, check_volume, cut, ramp, values

ELEVENTH_OF_JUNE = datetime(2018, 6, 11, 22, 38, 6)  # noqa: DTZ001


def write(path: Path, plane: Any, **changes: Any) -> Path:
    section = dm3.Section(
        name=path.stem, plane=plane, pixel_size_nm=8.0, thickness_nm=50.0, acquired=ELEVENTH_OF_JUNE
    )
    dm3.write_dm3(path, dm3.Section(**{**section.__dict__, **changes}))
    return path


def write_images(path: Path, *images: dict[str, Any], thumbnails: tuple[int, ...] = ()) -> Path:
    """A DM3 file of any images."""
    tags = dm3._group(
        {
            "ImageList": list(images),
            "ImageSourceList": [{"ImageRef": n} for n in range(len(images)) if n not in thumbnails],
            "Thumbnails": [{"ImageIndex": n} for n in thumbnails],
        }
    )
    path.write_bytes(struct.pack(">III", 3, len(tags) + 4, 1) + tags + bytes(8))
    return path


def image(
    pixels: Any, kind: int, *axes: tuple[float, str], tags: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Axes are x, y, z: scale and unit."""
    return {
        "ImageData": {
            "Calibrations": {
                "Dimension": [{"Origin": np.float32(0), "Scale": np.float32(s), "Units": u} for s, u in axes]
            },
            "Data": pixels.reshape(-1),
            "DataType": kind,
            "Dimensions": list(pixels.shape[::-1]),
            "PixelDepth": pixels.itemsize,
        },
        "ImageTags": tags or {},
        "Name": "an image",
    }


@pytest.mark.parametrize("origin", [np.inf, np.nan])
def test_an_origin_that_is_none_is_0(origin: float) -> None:
    entries = {name: {"Origin": at, "Scale": 8.0, "Units": "nm"} for name, at in (("0", 2.0), ("1", origin))}
    tags = {"ImageData": {"Calibrations": {"Dimension": entries}}}
    assert origin_nm(tags, 2) == (0.0, 0.0, -16.0)


def test_a_section_and_all_that_its_tags_say(tmp_path: Path) -> None:
    plane = ramp((60, 70))
    volume = open_dm(write(tmp_path / "slice_0000.dm3", plane))
    check_volume(volume, plane[None])
    assert tuple(volume.voxel_size_nm) == pytest.approx((50.0, 8.0, 8.0))
    assert str(volume.translation_nm) == "(0.0, 0.0, 0.0)"
    found = values(volume)
    assert str(found["core.imaging_start_date"]) == "2018-06-11"
    assert found["core.modality"] == "SBF-SEM"
    assert found["technical.file_format"] == "DM3"
    assert found["acquisition.microscope"] == "FEI Quanta"
    assert found["acquisition.accelerating_voltage_kv"] == pytest.approx(1.9)
    assert found["acquisition.dwell_time_us"] == 0.5
    assert found["acquisition.magnification"] == 2159.0
    assert "acquisition.beam_current_pa" not in found
    size = next(claim for claim in volume.claims if claim.field == "core.voxel_size_nm.x")
    assert size.evidence.where == "slice_0000.dm3"
    assert size.evidence.field == "ImageList.1.ImageData.Calibrations.Dimension.0.Scale"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_box_of_any_plane(tmp_path: Path, data: st.DataObject) -> None:
    shape = (1, data.draw(st.integers(2, 40)), data.draw(st.integers(2, 40)))
    plane = ramp(shape)[0]
    volume = open_dm(write(tmp_path / "any.dm3", plane, thumbnail=(2, data.draw(st.integers(1, 9)))))
    box = data.draw(boxes(shape))
    np.testing.assert_array_equal(volume.read(box), plane[None][box.slices])


def test_a_stack_whose_offsets_move(tmp_path: Path) -> None:
    planes = ramp((12, 30, 40))
    paths = [
        write(tmp_path / f"slice_{z}.dm3", plane, thumbnail=(19, 19) if z < 7 else (38, 39))
        for z, plane in enumerate(planes)
    ]
    volume = open_volume(paths[::-1], name="a stack")
    check_volume(volume, planes)
    assert tuple(volume.voxel_size_nm) == pytest.approx((50.0, 8.0, 8.0))


def test_a_stack_says_of_its_first_file_what_that_says_alone(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"slice_{z}.dm3", ramp((30, 40)), voltage_v=1900.0 + z) for z in range(3)]
    alone, volume = open_dm(paths[0]), open_volume(paths)
    assert volume.metadata["first_header"] == alone.metadata
    depth = ("core.volume_shape.z", "core.axes", "core.channels")
    assert [c for c in volume.claims if c in alone.claims] == [
        c for c in alone.claims if c.field not in depth
    ]


def test_planes_that_differ_are_seen_whatever_is_read_of_them(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"slice_{z}.dm3", ramp((30, 40)), thickness_nm=25.0 if z == 2 else 50.0)
        for z in range(4)
    ]
    volume = open_volume(paths)
    (note,) = volume.metadata["notes"]
    assert note.startswith("slice_2.dm3: voxel size (25.0, 8.0")
    write(paths[1], ramp((30, 41)))
    with pytest.raises(UnsupportedFormat, match=r"slice_1.dm3.*\(30, 41\) uint8 DM3.*\(30, 40\)"):
        open_volume(paths)
    cut(write(paths[1], ramp((30, 40))), 900)
    with pytest.raises(UnsupportedFormat, match=r"slice_1.dm3.*again"):
        open_volume(paths)


def test_one_more_file_of_a_stack_costs_little(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"slice_{z}.dm3", ramp((30, 40))) for z in range(12)]
    open_volume(paths)  # whatever is done once
    few, many = calls(lambda: open_volume(paths[:2])), calls(lambda: open_volume(paths))
    assert (many - few) / 10 < 5000


def test_a_3d_image_takes_z_from_its_own_calibration(tmp_path: Path) -> None:
    voxels = ramp((4, 9, 11), np.uint16)
    thumbnail = image(np.zeros((3, 3), np.uint32), 23, (1.0, ""), (1.0, ""))
    volume = image(voxels, 10, (4.0, "nm"), (0.005, "um"), (30.0, "nm"))
    path = write_images(tmp_path / "volume.dm3", thumbnail, volume, thumbnails=(0,))
    opened = open_dm(path)
    check_volume(opened, voxels)
    assert tuple(opened.voxel_size_nm) == pytest.approx((30.0, 5.0, 4.0))
    np.testing.assert_array_equal(file_reader(path)[0]["data"], voxels)


@pytest.mark.parametrize(
    ("pixels", "kind", "axes", "tags", "says"),
    [
        (ramp((9,), np.uint16), 10, ((1.0, "eV"),), {}, "a spectrum"),
        (ramp((4, 3, 3), np.uint16), 10, ((1.0, "nm"), (1.0, "nm"), (0.5, "eV")), {}, "spectrum image"),
        (ramp((4, 3), np.uint16), 10, ((1.0, "nm"), (1.0, "nm")),
         {"Meta Data": {"Format": "Spectrum image"}}, "spectrum image"),
        (ramp((4, 4), np.uint32), 23, ((1.0, "nm"), (1.0, "nm")), {}, "RGB"),
        (ramp((4, 4), np.uint32), 3, ((1.0, "nm"), (1.0, "nm")), {}, "complex"),
        (ramp((2, 2, 2, 2), np.uint16), 10, ((1.0, "nm"),) * 4, {}, "4 dimensions"),
    ],
)  # fmt: skip
def test_what_is_no_grey_image_is_refused(
    tmp_path: Path, pixels: Any, kind: int, axes: Any, tags: dict[str, Any], says: str
) -> None:
    path = write_images(tmp_path / "odd.dm3", image(pixels, kind, *axes, tags=tags))
    with pytest.raises(UnsupportedFormat, match=says):
        open_dm(path)


def test_the_image_among_spectra_is_taken(tmp_path: Path) -> None:
    plane = ramp((5, 6), np.uint16)
    spectrum = image(ramp((9,), np.uint16), 10, (1.0, "eV"))
    path = write_images(tmp_path / "both.dm3", spectrum, image(plane, 10, (1.0, "nm"), (1.0, "nm")))
    volume = open_dm(path)
    check_volume(volume, plane[None])
    assert volume.metadata["notes"] == ["ImageList.0 (9,) not read"]


@pytest.mark.parametrize("count", [1, 500, 5000, 9000])
def test_a_cut_file_is_refused(tmp_path: Path, count: int) -> None:
    path = cut(write(tmp_path / "cut.dm3", ramp((60, 70)), thumbnail=(30, 30)), count)
    if count == 1:  # only the padding after the tags
        assert open_dm(path).shape == (1, 60, 70)
        return
    with pytest.raises(UnsupportedFormat, match="again"):
        open_dm(path)


def test_planes_that_cannot_be_in_the_file_are_not_counted_up(tmp_path: Path) -> None:
    planes = 2**31
    data = {"DataType": 6, "Dimensions": [1, 1, planes], "Data": np.zeros(16, np.uint8)}
    path = tmp_path / "bomb.dm3"
    tags = dm3._group({"ImageList": [{"ImageTags": {}, "ImageData": data}]})
    tags = tags.replace(struct.pack(">III", 20, 10, 16), struct.pack(">III", 20, 10, planes))
    path.write_bytes(struct.pack(">III", 3, len(tags) + 4, 1) + tags)
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedFormat, match="promises voxels up to byte 2,147,483"):
            open_dm(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_file_cut_after_opening_is_refused_not_zeros(tmp_path: Path) -> None:
    volume = open_dm(write(tmp_path / "cut.dm3", ramp((60, 70))))
    cut(tmp_path / "cut.dm3", 6000)
    with pytest.raises(UnsupportedFormat, match="truncated"):
        volume.read(BoundingBox.of_shape(volume.shape))


@pytest.mark.parametrize(
    ("text", "iso"),
    [("11.06.2018", "2018-06-11"), ("12/14/2019", "2019-12-14"), ("14/12/2019", "2019-12-14"),
     ("5/5/2015", "2015-05-05"), ("12/10/2019", None),
     ("32.01.2018", None), ("13/13/2018", None), ("", None)],
)  # fmt: skip
def test_dates(text: str, iso: str | None) -> None:
    found = read_date(text)
    assert (found and found.isoformat()) == iso


def test_a_disk_that_cannot_give_the_tags_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.dm3", ramp((8, 9), np.uint16))

    def fail(_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(dm, "read_tags", fail)
    with pytest.raises(StorageFailed, match=r"^Read a\.dm3: Input/output error"):
        open_dm(path)
