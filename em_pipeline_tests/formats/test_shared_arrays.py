"""Every real container and HDF5 file: voxels as another reader gives them, or refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from em_pipeline.domain.errors import EmError, InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.raw_layout import RawLayout
from em_pipeline.formats.mirror import images_in
from em_pipeline.formats.open import open_volume
from em_pipeline_tests.formats.helpers import check_volume

pytestmark = pytest.mark.shared_data

UNKNOWN = (None, None, None)
PAINTERA = "n5/paintera_export_test.n5"


@pytest.fixture(scope="module")
def truth(shared_data: Path) -> Any:
    """The arrays that the derived containers were made from."""
    with np.load(shared_data / "derived/truth.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", ["derived/fibsem_v04.ome.zarr", "derived/fibsem.n5"])
def test_a_derived_container_equals_the_array_it_was_made_from(
    shared_data: Path, truth: dict[str, Any], name: str
) -> None:
    volume = open_volume([shared_data / name])
    check_volume(volume, truth["image"])
    assert tuple(volume.voxel_size_nm) == (10, 10, 10)
    assert tuple(volume.missing) == ()
    coarse = open_volume([shared_data / name], level="s1")
    assert coarse.shape == (20, 48, 56)
    assert tuple(coarse.voxel_size_nm) == (20, 20, 20)
    assert coarse.translation_nm == (5, 5, 5)


@pytest.mark.filterwarnings("ignore:Found an empty list of filters")
@pytest.mark.parametrize(
    ("name", "levels", "size", "place"),
    [
        ("S000_000_000.ome.zarr", "012", (1000, 32, 32), (0, 0, 0)),
        ("S000_000_001.ome.zarr", "012", (1000, 32, 32), (0, 0, 24000)),
        ("mri-stack.ome.zarr", ["s0", "s1"], UNKNOWN, (0, 0, 0)),
    ],
)
def test_a_real_image_reads_as_zarr_python_gives_it(
    shared_data: Path, name: str, levels: str, size: tuple[Any, ...], place: tuple[float, ...]
) -> None:
    root = shared_data / "omezarr" / name
    for level in levels:
        expected = np.asarray(zarr.open_array(root / level, mode="r")[...])
        volume = open_volume([root], level=level)
        check_volume(volume, expected.reshape(expected.shape[-3:]))
        assert tuple(volume.missing) == ()
    finest = open_volume([root])
    for found, wanted in zip(finest.voxel_size_nm, size, strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted))
    assert finest.translation_nm == place


def blocks(folder: Path) -> NDArray[Any]:
    """An N5 array of gzipped uint8 by its specification: header, voxels, x fastest; blocks may overhang."""
    about = json.loads((folder / "attributes.json").read_text())
    x, y, z = about["dimensions"]
    voxels = np.zeros((z + 32, y + 32, x + 32), np.uint8)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "attributes.json":
            data = path.read_bytes()
            size = np.frombuffer(data[4:16], ">u4")[::-1]
            start = np.array(path.relative_to(folder).parts[::-1], int) * about["blockSize"][::-1]
            block = np.frombuffer(gzip.decompress(data[16:]), np.uint8).reshape(size)
            voxels[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = block
    return voxels[:z, :y, :x].copy()


@pytest.mark.parametrize("name", ["scalar_export_s0/s0", "scalar_export_s2/s2"])
def test_real_n5_reads_as_its_specification_says(shared_data: Path, name: str) -> None:
    volume = open_volume([shared_data / PAINTERA], image=name.partition("/")[0])
    expected = blocks(shared_data / PAINTERA / name)
    assert expected.any()
    check_volume(volume, expected)
    assert tuple(volume.voxel_size_nm) == UNKNOWN
    for gap in volume.missing:
        assert not expected[gap.slices].any()


def test_what_of_a_real_n5_container_is_no_image_is_refused(shared_data: Path) -> None:
    root = shared_data / PAINTERA
    assert images_in(root) == ("paintera_labels/unique-labels", "scalar_export_s0", "scalar_export_s2")
    refused: dict[str, tuple[type[EmError], str]] = {
        "paintera_labels/data": (UnsupportedFormat, "label multisets"),
        "paintera_labels/unique-labels": (UnsupportedFormat, "mode 1: lists of variable length"),
        "paintera_labels/label-to-block-mapping": (UnsupportedFormat, "9223372036854775807"),
        "paintera_labels": (NotFound, "neither a multiscale image nor an array"),
    }
    for name, (error, says) in refused.items():
        with pytest.raises(error, match=says):
            open_volume([root], image=name)
    with pytest.raises(InputRefused, match=r"3 images.*--image-set"):
        open_volume([root])


def test_real_svi_hdf5_reads_as_h5py_gives_it(shared_data: Path) -> None:
    path = shared_data / "hdf5/delmic_sem_hole.h5"
    with h5py.File(path) as file:
        expected = file["Acquisition0/ImageData/Image"][0, 0]
    volume = open_volume([path])
    check_volume(volume, expected)
    size = volume.voxel_size_nm
    assert size.z is None
    assert (size.y, size.x) == pytest.approx((127_000, 127_000))


def test_real_labels_in_hdf5_read_as_h5py_gives_them(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "groundtruth.h5"
    path.write_bytes(gzip.decompress((shared_data / "flyem_fibsem_sample2/groundtruth.h5.gz").read_bytes()))
    with h5py.File(path) as file:
        expected = file["stack"][...]
    check_volume(open_volume([path]), expected)


@pytest.mark.parametrize("name", ["fib19-64x64x64-sample1", "cx-64x64x64-sample1"])
def test_real_voxels_without_a_header(shared_data: Path, name: str) -> None:
    path = shared_data / f"dvid_raw/{name}.dat.gz"
    expected = np.frombuffer(gzip.decompress(path.read_bytes()), "<u8").reshape(64, 64, 64)
    check_volume(open_volume([path], raw=RawLayout(shape=(64, 64, 64), dtype="uint64")), expected)


def test_a_compressed_block_is_not_taken_for_voxels(shared_data: Path) -> None:
    path = shared_data / "dvid_raw/fib19-64x64x64-sample1-block.dat.gz"
    with pytest.raises(InputRefused, match="bytes, and it has"):
        open_volume([path], raw=RawLayout(shape=(64, 64, 64), dtype="uint64"))
