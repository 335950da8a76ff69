"""Every real file: voxels as an independent reader gives them and the voxel size of SOURCES.md, or refused.

A new file under the folder fails `test_every_file_is_listed` until it is listed here.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
from PIL import Image
from rsciio.digitalmicrograph import file_reader

from em_pipeline.domain.errors import UnsupportedFormat
from em_pipeline.formats.open import open_volume
from em_pipeline_tests.formats.helpers import check_volume

pytestmark = pytest.mark.shared_data

UNKNOWN = (None, None, None)
# z, y, x in nm.
FILES: dict[str, tuple[float | None, ...]] = {
    "derived/fibsem.ome.tif": (10, 10, 10),
    "derived/fibsem_bigtiff_imagej_like.tif": UNKNOWN,
    "derived/fibsem_vol.mrc": (10, 10, 10),
    "dm/DMReader_Image_SI-Survey.dm3": UNKNOWN,
    "dm/dmTest_3D_int16_64,65,66.dm3": (4000, 3, 0.002),
    "dm/dmTest_float32_nonSquare_diffPixelSize.dm4": (None, 0.2, 1),
    "dm/multi_signal.dm3": (None, 0.0177516, 0.0177516),
    "dm/test_stackbuilder_imagestack.dm3": (None, 59.9829, 59.9829),
    "mrc/20241021_00405_movie.mrc": UNKNOWN,
    "mrc/EMD-3001.map": (0.045875, 0.03925, 0.044825),
    "mrc/EMD-3197.map": (1.14, 1.14, 1.14),
    "mrc/HAADFscan.mrc": (None, 5.67913, 5.67913),
    "mrc/julian-test.mrc": (223.6, 1788.8, 1788.8),
    "ometiff/phenom_sem_sh_hole_up.ome.tiff": (None, 1054.872311755274, 1049.118481965147),
    "tiff/TVIPS_bin4.tif": (None, 1.4208036661148071, 1.4208036661148071),
    "tiff/fei_helios_fibsem_test_image_2.tif": (None, 97.6562, 97.6562),
    "tiff/isbi2012_test-volume_first15.tif": (50, 4, 4),
    "tiff/test_loading_image_saved_with_DM_stack.tif": (None, 1686.74, 168.674),
    "tiff/test_loading_image_saved_with_imageJ_stack.tif": (2500, 168.6747, 168.6747),
    "tiff/test_tiff_Zeiss_SEM_1k.tif": (None, 2615, 2615),
    "tiff/xy_8bit__em_mitochondria_er.tif": (None, 8, 8),
}
# Containers and files that test_shared_arrays reads.
ELSEWHERE = (
    "derived/fibsem.n5/",
    "derived/fibsem_v04.ome.zarr/",
    "derived/precomputed_image_jpeg/",
    "derived/precomputed_seg_compressed_segmentation/",
    "derived/precomputed_seg_sharded/",
    "hdf5/delmic_sem_hole.h5",
    "n5/paintera_export_test.n5/",
    "omezarr/S000_000_000.ome.zarr/",
    "omezarr/S000_000_001.ome.zarr/",
    "omezarr/mri-stack.ome.zarr/",
    "precomputed/pinky40_seg_mip2/",
)
STACKS = (
    "flyem_fibsem_sample2/grayscale_maps",
    "vnc_sstem_stack1/labels",
    "vnc_sstem_stack1/membranes",
    "vnc_sstem_stack1/mitochondria",
    "vnc_sstem_stack1/raw",
)
REFUSED = {
    "dm/EELS_SI.dm4": "spectrum image.*Export the image",
    "derived/truth.npz": "ZIP.*Unpack",
    "dvid_raw/cx-64x64x64-sample1.dat.gz": "gzip.*Unpack",
    "dvid_raw/fib19-64x64x64-sample1-block.dat.gz": "gzip.*Unpack",
    "dvid_raw/fib19-64x64x64-sample1.dat.gz": "gzip.*Unpack",
    "flyem_fibsem_sample2/groundtruth.h5.gz": "gzip.*Unpack",
    "precomputed/flyem_mcns-ng-specs.json": "JSON.*Give the image",
    "ser_emd/16_STOimage_1.ser": "FEI SER.*Convert",
    "ser_emd/STEM HAADF Diffraction Micro.emd": r"EMD \(HDF5\).*Export",
}
PROSE = re.compile(r"(^|/)(SOURCES\.md|README\.(md|txt)|LICENSE\.txt)$")
# The notes of SOURCES.md say where a file's own axes are not z, y, x.
STORED_AXES = {"mrc/EMD-3001.map": (2, 0, 1)}


def by_rsciio(path: Path) -> np.ndarray[Any, Any]:
    images = [signal["data"] for signal in file_reader(str(path)) if signal["data"].ndim in (2, 3)]
    return np.asarray(images[0])


def by_mrcfile(path: Path) -> np.ndarray[Any, Any]:
    with mrcfile.open(path, permissive=True) as file:
        return np.array(file.data)


def by_pillow(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


READERS: dict[str, Callable[[Path], np.ndarray[Any, Any]]] = {
    ".tif": tifffile.imread,
    ".tiff": tifffile.imread,
    ".dm3": by_rsciio,
    ".dm4": by_rsciio,
    ".mrc": by_mrcfile,
    ".map": by_mrcfile,
    ".png": by_pillow,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning:mrcfile")
def test_a_real_file_reads_as_another_reader_gives_it(shared_data: Path, name: str) -> None:
    path = shared_data / name
    voxels = READERS[path.suffix](path)
    axes = STORED_AXES.get(name, (0, 1, 2))
    expected = voxels.reshape((1,) * (3 - voxels.ndim) + voxels.shape).transpose(axes)
    volume = open_volume([path])
    check_volume(volume, expected.astype(volume.dtype, casting="equiv"))
    for found, wanted in zip(volume.voxel_size_nm, FILES[name], strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-5))


@pytest.mark.parametrize("name", ["derived/fibsem.ome.tif", "derived/fibsem_vol.mrc"])
def test_a_derived_file_equals_the_array_it_was_made_from(shared_data: Path, name: str) -> None:
    with np.load(shared_data / "derived/truth.npz") as truth:
        volume = open_volume([shared_data / name])
        check_volume(volume, truth["image"].astype(volume.dtype))


@pytest.mark.parametrize("name", STACKS)
def test_a_real_stack_reads_as_another_reader_gives_it(shared_data: Path, name: str) -> None:
    paths = sorted((shared_data / name).iterdir())
    expected = np.stack([READERS[path.suffix](path) for path in paths])
    volume = open_volume([shared_data / name])
    check_volume(volume, expected)
    assert tuple(volume.voxel_size_nm) == UNKNOWN
    assert volume.metadata["notes"] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_with_what_to_do(shared_data: Path, name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=REFUSED[name]) as refusal:
        open_volume([shared_data / name])
    assert refusal.value.to_do


def test_every_file_is_listed(shared_data: Path) -> None:
    folders = (*(f"{stack}/" for stack in STACKS), *ELSEWHERE)
    names = [path.relative_to(shared_data).as_posix() for path in shared_data.rglob("*") if path.is_file()]
    listed = {*FILES, *REFUSED}
    unknown = [
        name
        for name in names
        if name not in listed and not PROSE.search(name) and not name.startswith(folders)
    ]
    assert unknown == []
    assert listed <= set(names)
