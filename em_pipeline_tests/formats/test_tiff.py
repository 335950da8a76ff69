"""TIFF in every layout that microscopes and ImageJ write, against the arrays they were made from."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_pipeline.domain.errors import InputRefused, StorageFailed, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.tiff import open_tiff
from em_pipeline.formats.tiff_segments import SegmentVoxels
from em_pipeline_tests.formats.helpers import boxes, check_volume, cut, ramp, shapes, values

layouts = st.fixed_dictionaries(
    {
        "byteorder": st.sampled_from("<>"),
        "bigtiff": st.booleans(),
        "compression": st.sampled_from([None, "lzw", "zlib"]),
        "predictor": st.booleans(),
        "tile": st.sampled_from([None, (16, 16), (16, 32)]),
        "rowsperstrip": st.sampled_from([None, 1, 3]),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=shapes,
    layout=layouts,
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "f4", "f8"]),
    data=st.data(),
)
def test_any_layout_reads_as_written(
    tmp_path: Path, shape: tuple[int, int, int], layout: dict[str, Any], dtype: str, data: st.DataObject
) -> None:
    if layout["compression"] is None or np.dtype(dtype).kind == "f":
        layout = {**layout, "predictor": False}
    if layout["tile"]:
        layout = {**layout, "rowsperstrip": None}
    expected = ramp(shape, dtype)
    path = tmp_path / "any.tif"
    tifffile.imwrite(path, expected, photometric="minisblack", metadata=None, **layout)
    volume = open_tiff(path)
    assert volume.shape == shape
    box = data.draw(boxes(shape))
    np.testing.assert_array_equal(volume.read(box), expected[box.slices])


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_compressed_tiles_with_predictor(tmp_path: Path, dtype: Any, predictor: bool) -> None:
    expected = ramp((3, 50, 70), dtype)
    path = tmp_path / "tiled.tif"
    tifffile.imwrite(
        path, expected, tile=(32, 16), compression="zlib", predictor=predictor, photometric="minisblack"
    )
    volume = open_tiff(path)
    assert volume.chunk_shape == (1, 32, 16)
    assert values(volume)["technical.compression"] == "deflate"
    check_volume(volume, expected)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_separate_pages(tmp_path: Path, byteorder: Any, bigtiff: bool) -> None:
    expected = ramp((4, 20, 30), np.uint16)
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as writer:
        for plane in expected:
            writer.write(plane, contiguous=False, metadata=None, rowsperstrip=7)
    check_volume(open_tiff(path), expected)


def test_one_plane(tmp_path: Path) -> None:
    expected = ramp((20, 30))
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, expected, resolution=(300, 300), resolutionunit="INCH")
    volume = open_tiff(path)
    check_volume(volume, expected[None])
    assert tuple(volume.voxel_size_nm) == (None, None, None)


def test_one_imagej_ifd_for_all_planes(tmp_path: Path) -> None:
    """ImageJ writes stacks above 4 GB with one directory and the planes behind each other."""
    expected = ramp((6, 20, 30), np.uint16)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, expected, imagej=True, metadata={"axes": "ZYX", "unit": "nm", "spacing": 40.0},
                     resolution=(0.25, 0.125))  # fmt: skip
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        next_ifd = tif.pages[0].offset + 2 + 12 * len(tif.pages[0].tags)
        end = tif.pages[0].dataoffsets[0] + expected.nbytes
    data[next_ifd : next_ifd + 4] = bytes(4)
    path.write_bytes(data)
    volume = open_tiff(path)
    check_volume(volume, expected)
    assert tuple(volume.voxel_size_nm) == (40.0, 8.0, 4.0)
    with pytest.raises(UnsupportedFormat, match="truncated"):
        open_tiff(cut(path, len(data) - end + 1))


@pytest.mark.parametrize(
    ("unit", "nanometres"),
    [("nm", 1.0), ("micron", 1e3), ("\\u00B5m", 1e3), ("um", 1e3), ("mm", 1e6), ("inch", None),
     ("cm", None), ("pixel", None)],
)  # fmt: skip
def test_imagej_units(tmp_path: Path, unit: str, nanometres: float | None) -> None:
    path = tmp_path / "scaled.tif"
    tifffile.imwrite(path, ramp((2, 8, 8)), imagej=True, resolution=(0.25, 0.5),
                     metadata={"axes": "ZYX", "unit": unit, "spacing": 3.0})  # fmt: skip
    size = tuple(open_tiff(path).voxel_size_nm)
    wanted = (None,) * 3 if nanometres is None else (3 * nanometres, 2 * nanometres, 4 * nanometres)
    assert size == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("unit", "factor"), [(None, 1e3), ("nm", 1.0), ("µm", 1e3), ("Å", 0.1), ("pixel", None)]
)
def test_ome_physical_size(tmp_path: Path, unit: str | None, factor: float | None) -> None:
    expected = ramp((3, 16, 16))
    metadata: dict[str, Any] = {"axes": "ZYX"}
    for axis, size in zip("XYZ", (4.0, 5.0, 40.0), strict=True):
        metadata[f"PhysicalSize{axis}"] = size
        if unit:
            metadata[f"PhysicalSize{axis}Unit"] = unit
    path = tmp_path / "small.ome.tif"
    tifffile.imwrite(path, expected, metadata=metadata, compression="lzw")
    volume = open_tiff(path)
    check_volume(volume, expected)
    wanted = (None,) * 3 if factor is None else (40 * factor, 5 * factor, 4 * factor)
    assert tuple(volume.voxel_size_nm) == pytest.approx(wanted)


def test_ome_plane_of_a_set_reads_its_own_plane(tmp_path: Path) -> None:
    """One OME-XML in each of many files must not open the others: the stack reader puts them together."""
    planes = ramp((2, 16, 16))
    pixels = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="p{z}.ome.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(2)
    )
    xml = (
        '<?xml version="1.0"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="16" SizeY="16" '
        'SizeZ="2" SizeC="1" SizeT="1" PhysicalSizeX="0.004" PhysicalSizeY="0.004" PhysicalSizeZ="0.05">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{pixels}</Pixels></Image></OME>'
    )
    path = tmp_path / "p1.ome.tif"
    tifffile.imwrite(path, planes[1], description=xml, metadata=None)
    volume = open_tiff(path)
    check_volume(volume, planes[1:])
    assert tuple(volume.voxel_size_nm) == pytest.approx((50.0, 4.0, 4.0))


@pytest.mark.parametrize(
    ("per_cm", "nanometres"), [(2.5e6, 4.0), (1e4, 1000.0), (118.11, None), (1890.0, None)]
)
def test_centimetres_count_only_at_the_scale_of_microscopes(
    tmp_path: Path, per_cm: float, nanometres: float | None
) -> None:
    path = tmp_path / "cm.tif"
    tifffile.imwrite(path, ramp((8, 8)), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
    assert open_tiff(path).voxel_size_nm.x == (None if nanometres is None else pytest.approx(nanometres))


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [
        (ramp((8, 8, 3)), {"photometric": "rgb"}, "RGB"),
        (ramp((2, 3, 8, 8)), {"imagej": True, "metadata": {"axes": "ZCYX"}}, "several channels"),
        (ramp((3, 8, 8)), {"imagej": True, "metadata": {"axes": "TYX"}}, "several time points"),
        (ramp((3, 8, 8)), {"ome": True, "metadata": {"axes": "CYX"}}, "several channels"),
        (ramp((8, 8), np.complex64), {}, "complex"),
    ],
)
def test_what_is_no_grey_volume_is_refused(
    tmp_path: Path, array: Any, options: dict[str, Any], says: str
) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, array, **options)
    with pytest.raises(UnsupportedFormat, match=says):
        open_tiff(path)


def test_images_of_different_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(ramp((8, 8)), metadata=None)
        writer.write(ramp((9, 9)), metadata=None)
    with pytest.raises(UnsupportedFormat, match="one file per image"):
        open_tiff(path)


def test_bits_and_halves_are_widened(tmp_path: Path) -> None:
    bits, halves = ramp((9, 13)) % 2 == 0, ramp((2, 9, 13), np.float16)
    tifffile.imwrite(tmp_path / "bits.tif", bits)
    tifffile.imwrite(tmp_path / "halves.tif", halves)
    check_volume(open_tiff(tmp_path / "bits.tif"), bits[None].astype(np.uint8))
    check_volume(open_tiff(tmp_path / "halves.tif"), halves.astype(np.float32))


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_a_cut_file_is_refused_at_opening(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, ramp((40, 60)), compression=compression, metadata=None)
    with pytest.raises(UnsupportedFormat, match="again"):
        open_tiff(cut(path, 20))


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_cut_chain_of_directories_is_refused_not_shortened(tmp_path: Path, bigtiff: bool) -> None:
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for plane in ramp((4, 20, 30)):
            writer.write(plane, contiguous=False, metadata=None)
    with tifffile.TiffFile(path) as tif:
        third = tif.pages[2].offset
    with pytest.raises(UnsupportedFormat, match="truncated"):
        open_tiff(cut(path, path.stat().st_size - third))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_file_cut_after_opening_is_refused_not_zeros(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, ramp((40, 60)), compression=compression, metadata=None)
    volume = open_tiff(path)
    cut(path, 20)
    with pytest.raises(UnsupportedFormat, match="truncated"):
        volume.read(BoundingBox.of_shape(volume.shape))


@pytest.mark.parametrize("compression", ["lzw", "zlib"])
def test_damaged_segments_are_refused_not_zeros(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "damaged.tif"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    tifffile.imwrite(path, noise, compression=compression, rowsperstrip=64, metadata=None)
    volume = open_tiff(path)
    assert isinstance(volume.voxels, SegmentVoxels)
    offset, length = (int(n) for n in volume.voxels.segments[0, 0])
    data = bytearray(path.read_bytes())
    data[offset + length // 2 : offset + length] = b"\xff" * (length - length // 2)
    path.write_bytes(data)
    with pytest.raises(UnsupportedFormat, match="Decode strip or tile 0 of plane 0 of damaged"):
        volume.read(BoundingBox.of_shape(volume.shape))


def test_empty_strips_are_refused_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, ramp((32, 16)), compression="zlib", rowsperstrip=16, metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tag = tif.pages.first.tags["StripByteCounts"]
        tag.overwrite([tag.value[0], 0])
    with pytest.raises(UnsupportedFormat, match="1 of 2 strips"):
        open_tiff(path)


def test_boxes_and_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp((8, 8)))
    volume = open_tiff(tmp_path / "a.tif")
    with pytest.raises(InputRefused, match="only"):
        volume.read(BoundingBox.at((0, 0, 0), (1, 8, 9)))
    with pytest.raises(InputRefused, match="`out`"):
        volume.read(BoundingBox.at((0, 0, 0), (1, 8, 8)), np.empty((1, 8, 7), np.uint8))
    with pytest.raises(InputRefused, match="`out`"):
        volume.read(BoundingBox.at((0, 0, 0), (1, 8, 8)), np.empty((1, 8, 8), np.uint16))


def test_an_image_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flat.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8))
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags["ImageLength"].overwrite(0)
    with pytest.raises(UnsupportedFormat):
        open_tiff(path)


def test_plain_rows_are_read_alone_and_compressed_strips_decoded_whole(tmp_path: Path) -> None:
    array = ramp((3, 40, 30), "uint8")
    tifffile.imwrite(tmp_path / "plain.tif", array, rowsperstrip=8, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "packed.tif", array, rowsperstrip=8, photometric="minisblack", compression="zlib"
    )
    assert open_tiff(tmp_path / "plain.tif").decode_shape == (1, 1, 30)
    packed = open_tiff(tmp_path / "packed.tif")
    assert packed.decode_shape == packed.chunk_shape == (1, 8, 30)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ((129, 300, 1), (1, 129, 300)),
        ((1, 1, 1), (1, 1, 1)),
        ((129, 1, 1), (1, 129, 1)),
        ((1, 129, 1), (1, 1, 129)),
        ((129, 1, 30), (129, 1, 30)),
        ((3, 5, 4, 1), (3, 5, 4)),
        ((1, 3, 5, 4, 1), (3, 5, 4)),
        ((1, 1, 5, 4), (1, 5, 4)),
        ((7, 5, 1, 1), (1, 7, 5)),
    ],
)
def test_axes_of_one_entry_that_tifffile_makes_up_do_not_matter(
    tmp_path: Path, written: tuple[int, ...], read: tuple[int, int, int], compression: str | None
) -> None:
    path = tmp_path / "made.tif"
    voxels = np.arange(np.prod(written), dtype=np.uint16).reshape(written)
    tifffile.imwrite(path, voxels, photometric="minisblack", compression=compression)
    volume = open_tiff(path)
    assert volume.shape == read
    np.testing.assert_array_equal(volume.read(BoundingBox.of_shape(volume.shape)), voxels.reshape(read))
    with tifffile.TiffFile(path) as tif:  # as every other program sees its pages
        planes = np.stack([page.asarray().reshape(read[1:]) for page in tif.pages])
    np.testing.assert_array_equal(planes, voxels.reshape(read))


def test_axes_of_more_than_one_entry_beside_the_page_s_are_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, np.zeros((2, 3, 5, 4, 1), np.uint8), photometric="minisblack")
    with pytest.raises(UnsupportedFormat, match="axes that are not z, y, x"):
        open_tiff(path)


def test_a_disk_that_cannot_give_the_headers_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp((8, 9), np.uint8))

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(tifffile.FileHandle, "read", fail)
    with pytest.raises(StorageFailed, match=r"^Read a\.tif: Input/output error"):
        open_tiff(tmp_path / "a.tif")
