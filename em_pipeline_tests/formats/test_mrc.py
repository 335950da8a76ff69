"""MRC of every mode, byte order and axis order, written by mrcfile or by hand."""

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import NDArray

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.mrc import IMOD_SIGNED, IMOD_STAMP, open_mrc
from em_pipeline.formats.open import sniff
from em_pipeline_tests.formats.helpers import boxes, check_volume, cut, ramp, shapes, values

MODES = {"i1": 0, "i2": 1, "f4": 2, "u2": 6, "f2": 12}


def write(path: Path, voxels: NDArray[Any], extended: int = 0, byte_order: str = "<", **fields: Any) -> Path:
    """A header by hand: `fields` are set last, `extended` zero bytes follow it."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder(byte_order))
    header["nz"], header["ny"], header["nx"] = voxels.shape
    header["mz"], header["my"], header["mx"] = voxels.shape
    header["mode"] = MODES[voxels.dtype.str[1:]]
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"], header["nsymbt"], header["map"] = 1, extended, b"MAP "
    header["cella"] = tuple(80.0 * n for n in voxels.shape[::-1])
    header["cellb"] = (90, 90, 90)
    for name, value in fields.items():
        header[name] = value
    stored = voxels.astype(voxels.dtype.newbyteorder(byte_order))
    path.write_bytes(header.tobytes() + bytes(extended) + stored.tobytes())
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=shapes,
    dtype=st.sampled_from(sorted(MODES)),
    byte_order=st.sampled_from("<>"),
    extended=st.sampled_from([0, 80, 1000]),
    axes=st.permutations([1, 2, 3]),
    data=st.data(),
)
def test_any_header_reads_as_written(
    tmp_path: Path,
    shape: Any,
    dtype: str,
    byte_order: str,
    extended: int,
    axes: list[int],
    data: st.DataObject,
) -> None:
    stored = ramp(shape, dtype)
    mapc, mapr, maps = axes
    path = write(tmp_path / "any.mrc", stored, extended, byte_order, mapc=mapc, mapr=mapr, maps=maps)
    expected = stored.transpose([[maps, mapr, mapc].index(axis) for axis in (3, 2, 1)])
    volume = open_mrc(path)
    assert volume.shape == expected.shape
    assert volume.dtype == (np.float32 if dtype == "f2" else np.dtype(dtype))
    box = data.draw(boxes(volume.shape))
    np.testing.assert_array_equal(volume.read(box), expected[box.slices])


@pytest.mark.parametrize("dtype", ["i1", "i2", "u2", "f4"])
def test_files_of_mrcfile(tmp_path: Path, dtype: str) -> None:
    expected = ramp((5, 7, 9), dtype)
    path = tmp_path / "volume.mrc"
    with mrcfile.new(path, data=expected) as file:
        file.voxel_size = (40.0, 50.0, 300.0)
    volume = open_mrc(path)
    check_volume(volume, expected)
    assert tuple(volume.voxel_size_nm) == pytest.approx((30.0, 5.0, 4.0))
    assert values(volume)["technical.file_format"] == "MRC"


def test_axes_in_another_order(tmp_path: Path) -> None:
    stored = ramp((3, 5, 7), np.int16)
    path = write(tmp_path / "xzy.map", stored, mapc=3, mapr=1, maps=2)
    check_volume(open_mrc(path), stored.transpose(2, 0, 1))


def test_sampling_of_another_number_than_sections(tmp_path: Path) -> None:
    path = write(tmp_path / "part.mrc", ramp((4, 6, 8), "i2"), mz=40, cella=(80 * 8, 80 * 6, 400 * 40))
    assert tuple(open_mrc(path).voxel_size_nm) == pytest.approx((40.0, 8.0, 8.0))


def test_unset_voxel_sizes_are_unknown_with_a_note(tmp_path: Path) -> None:
    volume = open_mrc(write(tmp_path / "unset.mrc", ramp((4, 6, 8), "i2"), cella=(0, -60, 0)))
    assert tuple(volume.voxel_size_nm) == (None, None, None)
    assert len(volume.metadata["notes"]) == 3


@pytest.mark.parametrize(
    ("name", "fields", "z"),
    [
        ("tilts.st", {"ispg": 0}, None),
        ("movie.mrc", {"ispg": 0, "mz": 1}, None),
        ("tomogram.rec", {"ispg": 0}, 8.0),
        ("tomogram.rec", {"ispg": 1}, 8.0),
    ],
)
def test_only_volumes_have_spacing_along_z(
    tmp_path: Path, name: str, fields: dict[str, int], z: float | None
) -> None:
    volume = open_mrc(write(tmp_path / name, ramp((4, 6, 8), "i2"), **fields))
    assert tuple(volume.voxel_size_nm) == (z, 8.0, 8.0)
    assert (z is None) == ("stack of images" in str(volume.metadata["notes"]))


@pytest.mark.parametrize(("flags", "dtype"), [(IMOD_SIGNED, np.int8), (0, np.uint8)])
def test_imod_says_whether_bytes_are_signed(tmp_path: Path, flags: int, dtype: Any) -> None:
    voxels = np.arange(-60, 60, dtype=np.int8).reshape(4, 5, 6)
    path = write(tmp_path / "imod.rec", voxels)
    data = bytearray(path.read_bytes())
    data[152:160] = np.array([IMOD_STAMP, flags], "<i4").tobytes()
    path.write_bytes(data)
    check_volume(open_mrc(path), voxels.view(dtype))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mode": 4}, "complex"),
        ({"mode": 3}, "complex"),
        ({"mode": 101}, "4-bit"),
        ({"mode": 77}, "make no sense"),
        ({"nx": -5}, "make no sense"),
        ({"mapc": 2}, "no order of three axes"),
        ({"ispg": 401, "mz": 2}, "stack of volumes"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, fields: dict[str, int], says: str) -> None:
    path = write(tmp_path / "odd.mrc", ramp((4, 6, 8), "i2"), **fields)
    with pytest.raises(UnsupportedFormat, match=says):
        open_mrc(path)


@pytest.mark.parametrize("count", [1, 300, 384 + 100])
def test_a_cut_file_is_refused(tmp_path: Path, count: int) -> None:
    path = cut(write(tmp_path / "cut.mrc", ramp((4, 6, 8), "i2")), count)
    with pytest.raises(UnsupportedFormat, match="truncated"):
        open_mrc(path)


def test_a_file_cut_after_opening_is_refused_not_zeros(tmp_path: Path) -> None:
    volume = open_mrc(write(tmp_path / "cut.mrc", ramp((4, 6, 8), "i2")))
    cut(tmp_path / "cut.mrc", 1)
    with pytest.raises(UnsupportedFormat, match="truncated"):
        volume.read(BoundingBox.of_shape(volume.shape))


def test_files_older_than_the_magic_number_are_known_by_suffix_and_header(tmp_path: Path) -> None:
    path = write(tmp_path / "old.rec", ramp((4, 6, 8), "i2"), map=b"\0\0\0\0")
    assert sniff(path) == "mrc"
    with pytest.raises(UnsupportedFormat, match="no format we know"):
        sniff(path.rename(tmp_path / "old.bin"))
