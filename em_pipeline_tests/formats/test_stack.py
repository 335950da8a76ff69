"""Many files of one plane: natural order, odd files, only the needed ones are read."""

import pickle
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.open import FORMATS, open_volume, sniff
from em_pipeline.formats.stack import lost_sections, natural_key
from em_pipeline.formats.tiff import open_tiff, open_tiff_plane
from em_pipeline_tests.formats.helpers import calls, check_volume, cut, ramp, values


def write_planes(folder: Path, voxels: Any, **options: Any) -> list[Path]:
    """`slice_1.tif`, `slice_2.tif` … `slice_12.tif`."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"slice_{z}.tif" for z in range(1, len(voxels) + 1)]
    for path, plane in zip(paths, voxels, strict=True):
        tifffile.imwrite(path, plane, **options)
    return paths


def test_natural_order() -> None:
    names = ["s_10.tif", "s_2.tif", "S_1.tif", "s_2b.tif", "1.tif", "a.tif"]
    ordered = sorted((Path(name) for name in names), key=natural_key)
    assert [p.name for p in ordered] == ["1.tif", "a.tif", "S_1.tif", "s_2.tif", "s_2b.tif", "s_10.tif"]


def test_files_and_folder_are_one_volume(tmp_path: Path) -> None:
    expected = ramp((12, 20, 30), np.uint16)
    paths = write_planes(tmp_path / "planes", expected, imagej=True, resolution=(0.25, 0.25),
                         metadata={"unit": "nm"})  # fmt: skip
    (tmp_path / "planes" / "README.txt").write_text("not a plane")
    for given in (paths, paths[::-1], [tmp_path / "planes"]):
        volume = open_volume(given)
        check_volume(volume, expected)
        assert tuple(volume.voxel_size_nm) == (None, 4.0, 4.0)
        assert volume.chunk_shape == (1, 20, 30)
        assert volume.metadata["notes"] == []
    assert values(volume)["technical.file_format"] == "TIFF"
    assert volume.claims[0].evidence.where == "planes"


def test_only_planes_that_the_box_meets_are_opened(tmp_path: Path) -> None:
    expected = ramp((6, 20, 30))
    paths = write_planes(tmp_path / "planes", expected)
    volume = open_volume(paths)
    for path in (*paths[:2], *paths[4:]):
        path.unlink()
    box = BoundingBox.at((2, 3, 4), (2, 5, 6))
    np.testing.assert_array_equal(volume.read(box), expected[box.slices])
    with pytest.raises(NotFound, match=r"slice_5\.tif"):
        volume.read(BoundingBox.at((2, 0, 0), (3, 2, 2)))


def test_more_files_than_handles(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    expected = ramp((80, 4, 4))
    paths = write_planes(tmp_path / "planes", expected)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Tests before this one may have left files open.
    held = max(int(path.name) for path in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 32, hard))
    try:
        check_volume(open_volume(paths), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (ramp((20, 31)), r"slice_3.tif.*\(20, 31\) uint8.*slice_1.tif is \(20, 30\) uint8"),
        (ramp((20, 30), np.uint16), r"slice_3.tif.*uint16.*slice_1.tif is \(20, 30\) uint8"),
        (ramp((2, 20, 30)), "slice_3.tif holds 2 planes"),
        (ramp((20, 30, 3)), "RGB"),
    ],
)
def test_the_first_odd_file_is_named(tmp_path: Path, odd: Any, says: str) -> None:
    paths = write_planes(tmp_path / "planes", ramp((5, 20, 30)))
    tifffile.imwrite(paths[2], odd)
    tifffile.imwrite(paths[3], ramp((1, 1)))
    with pytest.raises(UnsupportedFormat, match=says):
        open_volume(paths)


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    paths = write_planes(tmp_path, ramp((2, 8, 8)))
    (tmp_path / "slice_3.png").write_bytes(imagecodecs.png_encode(ramp((8, 8))))
    with pytest.raises(UnsupportedFormat, match=r"slice_3.png.*PNG"):
        open_volume([*paths, tmp_path / "slice_3.png"])


def test_several_3d_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormat, match="one 3-D file"):
        open_volume(write_planes(tmp_path, ramp((2, 3, 8, 8)), photometric="minisblack"))


TEN = ", ".join(map(str, range(3, 13)))


def test_differing_voxel_sizes_and_missing_numbers_are_noted(tmp_path: Path) -> None:
    paths = write_planes(tmp_path, ramp((6, 8, 8)), imagej=True, resolution=(0.25, 0.25),
                         metadata={"unit": "nm"})  # fmt: skip
    tifffile.imwrite(paths[4], ramp((8, 8)), imagej=True, resolution=(0.125, 0.25), metadata={"unit": "nm"})
    notes = open_volume([p for p in paths if p.name != "slice_3.tif"]).metadata["notes"]
    assert notes == [
        "slice_5.tif: voxel size (None, 4.0, 8.0) nm, first file (None, 4.0, 4.0) nm (z, y, x)",
        "1 number is missing in the file names: 3",
    ]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([1, 2, 3, 5], "1 number is missing in the file names: 4"),
        ([9, 10, 12, 13, 14, 16], "2 numbers are missing in the file names: 11, 15"),
        ([1, 2, 10**15], f"{10**15 - 3:,} numbers are missing in the file names: {TEN}, …"),
        ([1, 2, 3, 4], None),
        ([10, 20, 30, 50], None),
        ([7], None),
    ],
)  # fmt: skip
def test_numbers_that_are_missing_in_names_that_count_up_by_one(numbers: list[int], said: str | None) -> None:
    assert lost_sections([Path(f"slice_{number}.tif") for number in numbers]) == said


def test_of_planes_behind_the_first_only_what_is_compared_is_read(tmp_path: Path) -> None:
    paths = write_planes(tmp_path, ramp((12, 8, 8)), imagej=True, resolution=(0.25, 0.25),
                         metadata={"unit": "nm"})  # fmt: skip
    whole, plane = open_tiff(paths[0]), open_tiff_plane(paths[0])
    assert (plane.shape, plane.dtype, plane.chunk_shape) == (whole.shape, whole.dtype, whole.chunk_shape)
    assert (plane.format, plane.voxel_size_nm) == (whole.format, whole.voxel_size_nm)
    np.testing.assert_array_equal(plane.read(BoundingBox.of_shape(plane.shape)), ramp((12, 8, 8))[:1])
    assert all(claim in whole.claims for claim in plane.claims)
    assert open_volume(paths).metadata["first_header"] == whole.metadata
    few, many = calls(lambda: open_volume(paths[:2])), calls(lambda: open_volume(paths))
    assert (many - few) / 10 < 0.9 * calls(lambda: open_tiff(paths[1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_planes(tmp_path: Path, dtype: Any) -> None:
    expected = ramp((3, 20, 30), dtype)
    for z, plane in enumerate(expected):
        (tmp_path / f"{z}.png").write_bytes(imagecodecs.png_encode(plane))
    volume = open_volume([tmp_path])
    check_volume(volume, expected)
    check_volume(pickle.loads(pickle.dumps(volume)), expected)


def test_jpeg_planes(tmp_path: Path) -> None:
    planes = [imagecodecs.jpeg8_encode(plane) for plane in ramp((3, 20, 30))]
    for z, data in enumerate(planes):
        (tmp_path / f"{z}.jpg").write_bytes(data)
    check_volume(open_volume([tmp_path]), np.stack([imagecodecs.jpeg8_decode(data) for data in planes]))


@pytest.mark.parametrize(
    ("name", "encode"), [("a.png", imagecodecs.png_encode), ("a.jpg", imagecodecs.jpeg8_encode)]
)
def test_encoded_images_that_are_cut_or_coloured_are_refused(tmp_path: Path, name: str, encode: Any) -> None:
    path = tmp_path / name
    path.write_bytes(encode(ramp((64, 64))))
    volume = open_volume([cut(path, 5)])
    with pytest.raises(UnsupportedFormat, match="truncated or damaged"):
        volume.read(BoundingBox.of_shape(volume.shape))
    path.write_bytes(encode(ramp((64, 64, 3))))
    with pytest.raises(UnsupportedFormat, match="grey"):
        open_volume([path])


@pytest.mark.parametrize(
    ("content", "slug", "says"),
    [
        (b"<!DOCTYPE html><html>404</html>", "html", "server answered with a page"),
        (b"\n <html lang='en'>", "html", "server answered with a page"),
        (b"<?xml version='1.0'?><entry/>", "xml", "it is XML"),
        (b'{"detail": "not found"}', "json", "it is JSON"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "hdf5", "truncated or damaged"),
        (b"II\x97\x01" + bytes(99), "ser", "formats read: TIFF, DM3/DM4, PNG, JPEG, HDF5, MRC, OME-Zarr, N5"),
        (b"\x1f\x8b" + bytes(99), "gzip", "Unpack"),
        (b"version https://git-lfs.github.com/spec/v1", "lfs", "git lfs pull"),
    ],
)
def test_what_came_in_place_of_data_is_named(tmp_path: Path, content: bytes, slug: str, says: str) -> None:
    path = tmp_path / "slice_0001.tif"
    path.write_bytes(content)
    assert sniff(path) == slug
    with pytest.raises(UnsupportedFormat, match=says):
        open_volume([path])


@pytest.mark.parametrize("content", [b"", b"\0", b"nonsense", bytes(4096)])
def test_unknown_content_is_refused(tmp_path: Path, content: bytes) -> None:
    for suffix in (".tif", ".dm3", ".mrc"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        with pytest.raises(UnsupportedFormat, match="Formats read: TIFF"):
            open_volume([path])


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "really_a_tiff.mrc"
    tifffile.imwrite(path, ramp((4, 5)))
    assert sniff(path) == "tiff"
    check_volume(open_volume([path]), ramp((4, 5))[None])


@pytest.mark.parametrize(
    ("marker", "slug"),
    [("zarr.json", "zarr"), (".zgroup", "zarr"), ("attributes.json", "n5"), ("info", "precomputed")],
)
def test_array_folders_are_named(tmp_path: Path, marker: str, slug: str) -> None:
    (tmp_path / marker).write_text("{}")
    assert sniff(tmp_path) == slug
    with pytest.raises((UnsupportedFormat, NotFound), match=r"no image or array|info"):
        open_volume([tmp_path])


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="no files"):
        open_volume([])
    with pytest.raises(InputRefused, match="no files"):
        open_volume([tmp_path])
    with pytest.raises(NotFound, match="gone"):
        open_volume([tmp_path / "gone.tif"])


def test_every_reader_of_the_table_exists() -> None:
    from importlib import import_module

    for entry in FORMATS:
        if entry.reader:
            module, function = entry.reader.split(":")
            assert callable(getattr(import_module(f"em_pipeline.formats.{module}"), function))
        else:
            assert entry.to_do
