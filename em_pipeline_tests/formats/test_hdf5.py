"""HDF5 files of every writer's convention: the image found, placed, and read box by box."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats import hdf5_chunks
from em_pipeline.formats.hdf5 import open_hdf5
from em_pipeline.formats.hdf5_headers import hdf5_headers
from em_pipeline.formats.open import open_volume, sniff
from em_pipeline_tests.formats.helpers import boxes, check_volume, cut, ramp

SHAPE = (9, 21, 18)
CHUNKS = (4, 8, 8)
STORED: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "plain": {"chunks": CHUNKS},
    "gzip": {"chunks": CHUNKS, "compression": "gzip"},
    "shuffled": {"chunks": CHUNKS, "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": CHUNKS, "compression": "lzf"},
    "checked": {"chunks": CHUNKS, "compression": "gzip", "fletcher32": True},
}


def written(path: Path, voxels: Any, name: str = "volumes/raw", **how: Any) -> Path:
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=voxels, **how)
    return path


@pytest.fixture(scope="module", params=STORED)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hdf5")
    return written(folder / "a.h5", ramp(SHAPE, np.uint16), **STORED[request.param])


@given(box=boxes(SHAPE))
def test_any_box_reads_as_numpy_gives_it(file: Path, box: BoundingBox) -> None:
    assert np.array_equal(open_volume([file]).read(box), ramp(SHAPE, np.uint16)[box.slices])


@pytest.mark.parametrize("how", STORED)
def test_an_image_is_a_volume(tmp_path: Path, how: str) -> None:
    path = written(tmp_path / "a.hdf5", ramp(SHAPE, np.uint16), **STORED[how])
    assert sniff(path) == "hdf5"
    volume = open_volume([path])
    check_volume(volume, ramp(SHAPE, np.uint16))
    assert volume.chunk_shape == (CHUNKS if "chunks" in STORED[how] else (1, *SHAPE[1:]))
    assert tuple(volume.missing) == ()
    assert tuple(volume.voxel_size_nm) == (None, None, None)


@pytest.mark.parametrize("dtype", [">i2", "<u8", ">f4", "|i1"])
def test_voxels_keep_their_type_in_native_byte_order(tmp_path: Path, dtype: str) -> None:
    voxels = ramp(SHAPE, dtype)
    path = written(tmp_path / "a.h5", voxels, chunks=CHUNKS, compression="gzip", shuffle=True)
    check_volume(open_volume([path]), voxels.astype(voxels.dtype.newbyteorder("=")))


@pytest.mark.parametrize(("stored", "read"), [(np.bool_, np.uint8), (np.float16, np.float32)])
def test_bool_and_half_precision_are_widened(tmp_path: Path, stored: Any, read: Any) -> None:
    voxels = (ramp(SHAPE) % 2).astype(stored)
    check_volume(open_volume([written(tmp_path / "a.h5", voxels)]), voxels.astype(read))


def test_chunks_that_were_never_written_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        image = file.create_dataset("a", SHAPE, "u1", chunks=CHUNKS, compression="gzip", fillvalue=9)
        image[0:4] = ramp((4, *SHAPE[1:]))
    volume = open_volume([path])
    assert tuple(volume.missing) == (BoundingBox.at((4, 0, 0), (5, 21, 18)),)
    assert (volume.read(volume.missing[0]) == 9).all()


def test_a_contiguous_image_that_was_never_written_is_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", SHAPE, "u1")
    assert tuple(open_volume([tmp_path / "a.h5"]).missing) == (BoundingBox.of_shape(SHAPE),)


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", ramp(SHAPE), chunks=CHUNKS, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["volumes/raw"].id.get_chunk_info(3)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\0" * chunk.size
    path.write_bytes(data)
    with pytest.raises(UnsupportedFormat, match=r"cannot be decoded.*again"):
        open_volume([path]).read(BoundingBox.of_shape(SHAPE))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormat, match="truncated"):
        open_volume([cut(written(tmp_path / "a.h5", ramp(SHAPE)), 100)])


def test_a_small_box_decodes_its_own_chunks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.h5", ramp(SHAPE), chunks=CHUNKS, compression="gzip")
    decoded = []
    decode = hdf5_chunks._chunk

    def counted(stored: Any, filters: list[int], corner: tuple[int, ...]) -> Any:
        decoded.append(corner)
        return decode(stored, filters, corner)

    monkeypatch.setattr(hdf5_chunks, "_chunk", counted)
    open_volume([path]).read(BoundingBox.at((3, 8, 8), (2, 8, 8)))
    assert decoded == [(0, 8, 8), (4, 8, 8)]


@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan])
def test_a_place_that_is_none_is_0(tmp_path: Path, offset: float) -> None:
    path = written(tmp_path / "cremi.hdf", ramp(SHAPE))
    with h5py.File(path, "a") as file:
        file["volumes/raw"].attrs["resolution"] = [40.0, 4.0, 4.0]
        file["volumes/raw"].attrs["offset"] = [1520.0, offset, 3644.0]
    assert open_volume([path]).translation_nm == (1520, 0, 3644)


def test_cremi_says_its_voxel_size_and_place(tmp_path: Path) -> None:
    path = written(tmp_path / "cremi.hdf", ramp(SHAPE))
    with h5py.File(path, "a") as file:
        file["volumes/raw"].attrs["resolution"] = [40.0, 4.0, 4.0]
        file["volumes/raw"].attrs["offset"] = [1520.0, 3644.0, 3644.0]
        file["annotations/ids"] = np.arange(20)
    volume = open_volume([path])
    assert tuple(volume.voxel_size_nm) == (40, 4, 4)
    assert volume.translation_nm == (1520, 3644, 3644)
    evidence = next(c.evidence for c in volume.claims if c.field == "core.voxel_size_nm.z")
    assert (evidence.where, evidence.field) == ("cremi.hdf", "volumes/raw@resolution")
    check_volume(volume, ramp(SHAPE))


def test_ilastik_says_micrometres(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", ramp((*SHAPE, 1)), "exported_data")
    with h5py.File(path, "a") as file:
        file["exported_data"].attrs["element_size_um"] = [0.05, 0.008, 0.008]
    volume = open_volume([path])
    assert tuple(volume.voxel_size_nm) == pytest.approx((50, 8, 8))
    check_volume(volume, ramp(SHAPE))


def svi(path: Path, state: int) -> Path:
    """A plane as Odemis writes it: five labelled axes, dimension scales with units and the state of each."""
    name = "Acquisition0/ImageData/Image"
    written(path, ramp((1, 1, 1, 30, 40)), name)
    with h5py.File(path, "a") as file:
        for number, axis in enumerate("CTZYX"):
            file[name].dims[number].label = axis
        for number, axis, value in ((2, "Z", 1.0), (3, "Y", 2e-8), (4, "X", 1e-8)):
            scale = f"Acquisition0/ImageData/DimensionScale{axis}"
            file[scale] = value
            file[scale].attrs["UNIT"] = "m"
            file[scale].attrs["State"] = np.int32(112 if axis == "Z" else state)
            file[scale].make_scale(axis)
            file[name].dims[number].attach_scale(file[scale])
        file["Acquisition0/PhysicalData/Magnification"] = np.ones(1)
    return path


@pytest.mark.parametrize(("state", "size"), [(114, (None, 20, 10)), (112, (None, None, None))])
def test_svi_says_sizes_that_somebody_set(tmp_path: Path, state: int, size: tuple[Any, ...]) -> None:
    volume = open_volume([svi(tmp_path / "a.h5", state)])
    assert tuple(volume.voxel_size_nm) == tuple(None if n is None else pytest.approx(n) for n in size)
    check_volume(volume, ramp((1, 30, 40)))


def characters(value: object) -> NDArray[Any]:
    return np.array(list(str(value)), "S1")


def imaris(path: Path) -> Path:
    """Two levels of one channel, padded to whole chunks, numbers written as arrays of characters."""
    for level, shape in enumerate([(8, 16, 16), (4, 8, 8)]):
        channel = f"DataSet/ResolutionLevel {level}/TimePoint 0/Channel 0"
        written(path, ramp(shape), f"{channel}/Data", chunks=(4, 8, 8), compression="gzip")
        with h5py.File(path, "a") as file:
            for axis, length in zip("ZYX", (5, 13, 12), strict=True):
                file[channel].attrs[f"ImageSize{axis}"] = characters(length // (level + 1))
    with h5py.File(path, "a") as file:
        about = file.create_group("DataSetInfo/Image").attrs
        about["Unit"] = characters("um")
        for number, (low, high) in enumerate([(0, 0.12), (-1, 0.3), (0.0, 0.25)]):
            about[f"ExtMin{number}"], about[f"ExtMax{number}"] = characters(low), characters(high)
    return path


def test_imaris_is_read_at_its_finest_without_padding(tmp_path: Path) -> None:
    path = imaris(tmp_path / "a.ims")
    volume = open_volume([path])
    assert tuple(volume.voxel_size_nm) == pytest.approx((50, 100, 10))
    check_volume(volume, ramp((8, 16, 16))[:5, :13, :12].copy())
    assert tuple(volume.missing) == ()
    coarse = open_volume([path], image="DataSet/ResolutionLevel 1/TimePoint 0/Channel 0/Data")
    assert coarse.shape == (2, 6, 6)


def test_several_images_are_listed_and_one_is_chosen(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", ramp(SHAPE))
    written(path, ramp(SHAPE, np.uint64), "volumes/labels")
    written(path, np.ones((3, 2)), "table")
    says = r"2 images.*--image-set: volumes/labels \(9×21×18\), volumes/raw \(9×21×18\)"
    with pytest.raises(InputRefused, match=says):
        open_volume([path])
    check_volume(open_volume([path], image="volumes/labels"), ramp(SHAPE, np.uint64))
    with pytest.raises(NotFound, match=r"no such dataset.*volumes/raw"):
        open_volume([path], image="volumes/row")


def test_a_plane_is_an_image_where_nothing_else_is(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", ramp((30, 40)), "plane")
    written(path, np.arange(1000), "spectrum")
    check_volume(open_volume([path]), ramp((1, 30, 40)))


def test_voxels_in_other_files_are_refused(tmp_path: Path) -> None:
    """HDF5 reads zeros where the other file is gone, and would read any file of this machine."""
    other = written(tmp_path / "other.h5", ramp(SHAPE), "a")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(SHAPE, "u1")
        layout[...] = h5py.VirtualSource(other.name, "a", SHAPE)
        file.create_virtual_dataset("a", layout)
    (tmp_path / "secret.bin").write_bytes(bytes(np.prod(SHAPE)))
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("a", SHAPE, "u1", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])
    for name in ("virtual.h5", "external.h5"):
        with pytest.raises(UnsupportedFormat, match="other files"):
            open_volume([tmp_path / name])
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["a"] = h5py.ExternalLink("other.h5", "a")
        file["whole"] = h5py.ExternalLink("other.h5", "/")
    for name in ("a", "whole/a", "", "/"):
        with pytest.raises(NotFound, match="no such dataset"):
            open_volume([tmp_path / "linked.h5"], image=name)


@pytest.mark.parametrize(
    ("voxels", "says"),
    [
        (np.ones((2, 9, 9, 9)), "no 3-D or 2-D"),
        (np.ones(SHAPE, complex), "no 3-D or 2-D"),
        (np.ones((0, 9, 9)), "no 3-D or 2-D"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, voxels: Any, says: str) -> None:
    path = written(tmp_path / "a.h5", voxels, "a")
    with pytest.raises(UnsupportedFormat, match=says):
        open_volume([path])
    with pytest.raises(UnsupportedFormat):
        open_volume([path], image="a")


def test_what_h5py_raises_for_a_damaged_heap_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "heap.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("volume", data=np.zeros((4, 4, 4), np.uint8))
    data = path.read_bytes()
    assert b"HEAP" in data
    path.write_bytes(data.replace(b"HEAP", b"PAEH"))
    with pytest.raises(UnsupportedFormat, match="truncated or damaged"):
        open_volume([path])


def test_an_image_whose_name_is_not_utf_8_is_refused_with_that(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("Größe".encode("latin-1"), data=ramp(SHAPE, np.uint8))
        file.create_dataset(b"\xb5m", data=[8.0, 4.0, 4.0])
    says = r"names are not UTF-8 \(as Latin-1: Größe\)\. "
    with pytest.raises(UnsupportedFormat, match=says + "Rename them"):
        open_volume([path])
    with path.open("rb") as opened, pytest.raises(UnsupportedFormat, match=r"Größe .* is not UTF-8"):
        hdf5_headers(opened, path)
    written(path, ramp(SHAPE, np.uint16))
    with pytest.raises(UnsupportedFormat, match=says + r"Choose .* volumes/raw \(9×21×18\)"):
        open_volume([path])
    check_volume(open_hdf5(path, "volumes/raw"), ramp(SHAPE, np.uint16))
