"""Containers on this machine: every box as numpy gives it, what is missing named, what is damaged refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings

from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox
from em_pipeline.formats.mirror import folder_fetch, images_in, open_array, open_container
from em_pipeline.formats.multiscale import read_multiscale
from em_pipeline.formats.open import open_volume, sniff
from em_pipeline_tests.formats.containers import (
    CHUNKS,
    WRITERS,
    Write,
    dump,
    n5,
    ngff,
    same,
    stored_files,
    zarr2,
    zarr2_nested,
    zarr3,
    zarr3_sharded,
)
from em_pipeline_tests.formats.helpers import boxes, check_volume, ramp

SHAPE = (10, 21, 18)
by_writer = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


@pytest.fixture(scope="module", params=WRITERS, ids=lambda write: write.__name__)
def container(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write: Write = request.param
    return write(tmp_path_factory.mktemp("container") / "a", ramp(SHAPE))


@given(box=boxes(SHAPE))
def test_any_box_reads_as_numpy_gives_it(container: Path, box: BoundingBox) -> None:
    assert same(open_array(container).read(box), ramp(SHAPE)[box.slices])


@given(box=boxes(SHAPE))
def test_a_box_meets_exactly_the_objects_that_hold_its_voxels(container: Path, box: BoundingBox) -> None:
    (layout,) = read_multiscale(folder_fetch(container))
    objects = list(layout.objects(box))
    assert all((container / key).is_file() for key, _ in objects)
    owners = np.zeros(SHAPE, int)
    for _, covered in objects:
        owners[covered.slices] += 1
    assert owners[box.slices].min() == owners.max() == 1  # each voxel of the box in one object
    for _, covered in objects:
        meets = zip(covered.start, covered.stop, box.start, box.stop, strict=True)
        assert all(a < d and c < b for a, b, c, d in meets)


@settings(max_examples=20)
@given(box=boxes(SHAPE))
def test_a_mirror_of_the_objects_of_a_box_reads_that_box(container: Path, box: BoundingBox) -> None:
    """What a source downloads: the documents, and the objects that meet the box."""
    (layout,) = read_multiscale(folder_fetch(container))
    mirror = container.parent / "mirror"
    shutil.rmtree(mirror, ignore_errors=True)
    objects = list(layout.objects(box))
    for key in [*layout.documents, *(key for key, _ in objects)]:
        (mirror / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(container / key, mirror / key)
    volume = open_array(mirror)
    assert volume.shape == SHAPE
    assert same(volume.read(box), ramp(SHAPE)[box.slices])
    held = np.zeros(SHAPE, bool)
    for _, covered in objects:
        held[covered.slices] = True
    told = np.zeros(SHAPE, int)
    for gap in volume.missing:
        told[gap.slices] += 1
    assert np.array_equal(told, ~held)  # all that is not held, and no voxel twice


@by_writer
def test_a_container_is_a_volume(tmp_path: Path, write: Write) -> None:
    volume = open_volume([write(tmp_path / "a", ramp(SHAPE))])
    check_volume(volume, ramp(SHAPE))
    assert volume.chunk_shape == CHUNKS
    assert tuple(volume.missing) == ()


@pytest.mark.parametrize("dtype", ["<i2", ">i2", ">u4", "<u8", ">f4", "<f8", "|i1"])
@pytest.mark.parametrize("write", [zarr2, zarr3, zarr3_sharded, n5], ids=lambda write: write.__name__)
def test_voxels_keep_their_type_in_native_byte_order(tmp_path: Path, write: Write, dtype: str) -> None:
    voxels = ramp(SHAPE, dtype)
    if np.dtype(dtype).kind != "u":
        voxels -= 60
    check_volume(open_array(write(tmp_path / "a", voxels)), voxels.astype(voxels.dtype.newbyteorder("=")))


@pytest.mark.parametrize(("stored", "read"), [(np.bool_, np.uint8), (np.float16, np.float32)])
@pytest.mark.parametrize("write", [zarr2, zarr3], ids=lambda write: write.__name__)
def test_bool_and_half_precision_are_widened(tmp_path: Path, write: Write, stored: Any, read: Any) -> None:
    voxels = (ramp(SHAPE) % 2).astype(stored)
    check_volume(open_array(write(tmp_path / "a", voxels)), voxels.astype(read))


def test_fortran_order(tmp_path: Path) -> None:
    check_volume(open_array(zarr2(tmp_path / "a", ramp(SHAPE), order="F")), ramp(SHAPE))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_of_an_image(tmp_path: Path, version: str) -> None:
    root = ngff(tmp_path / "a.zarr", ramp(SHAPE), version=version)
    assert sniff(root) == "zarr"
    fine, coarse = open_volume([root]), open_volume([root], level="s1")
    check_volume(fine, ramp(SHAPE))
    check_volume(coarse, ramp(SHAPE)[::2, ::2, ::2].copy())
    assert tuple(fine.voxel_size_nm) == (4, 8, 8)
    assert tuple(coarse.voxel_size_nm) == (8, 16, 16)
    assert coarse.translation_nm == (2, 4, 4)
    assert coarse.metadata["format"] == f"OME-Zarr {version}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_image_as_ome_zarr_writes_it(tmp_path: Path) -> None:
    from ome_zarr.writer import write_image  # type: ignore[import-untyped]

    root = tmp_path / "a.zarr"
    write_image(ramp((1, *SHAPE), np.uint16), str(root), axes="czyx", scale_factors=[2])
    volume = open_volume([root])
    check_volume(volume, ramp(SHAPE, np.uint16))
    assert open_volume([root], level=1).shape == (10, 10, 9)


def test_a_channel_is_read_where_one_is_named(tmp_path: Path) -> None:
    voxels = ramp((2, *SHAPE))
    root = zarr3(tmp_path / "a", voxels, chunks=(1, *CHUNKS), dimension_names=("c", "z", "y", "x"))
    with pytest.raises(UnsupportedFormat, match="axis c has 2 entries"):
        open_array(root)
    check_volume(open_array(root, at={"c": 1}), voxels[1])


def test_a_plane_of_two_stored_axes(tmp_path: Path) -> None:
    root = zarr2(tmp_path / "a", ramp((30, 40)), chunks=(8, 16))
    check_volume(open_array(root), ramp((1, 30, 40)))


@by_writer
def test_a_missing_object_is_told_and_never_taken_for_voxels(tmp_path: Path, write: Write) -> None:
    root = write(tmp_path / "a", ramp(SHAPE))
    (layout,) = read_multiscale(folder_fetch(root))
    key, gone = list(layout.objects(BoundingBox.of_shape(SHAPE)))[1]
    (root / key).unlink()
    volume = open_array(root)
    assert tuple(volume.missing) == (gone,)
    assert volume.missing == (gone,)
    assert not volume.read(gone).any()


def test_the_fill_value_of_the_array_stands_for_what_is_missing(tmp_path: Path) -> None:
    root = zarr3(tmp_path / "a", ramp(SHAPE), fill_value=200)
    stored_files(root)[0].unlink()
    volume = open_array(root)
    assert (volume.read(volume.missing[0]) == 200).all()


@by_writer
def test_an_object_that_vanishes_after_it_was_listed_is_refused(tmp_path: Path, write: Write) -> None:
    root = write(tmp_path / "a", ramp(SHAPE))
    volume = open_array(root)
    assert tuple(volume.missing) == ()
    gone = stored_files(root)[0]
    gone.unlink()
    with pytest.raises(NotFound, match=str(gone.relative_to(root))):
        volume.read(BoundingBox.of_shape(SHAPE))


def _emptied(data: bytes) -> bytes:
    return data[:0]


def _cut(data: bytes) -> bytes:
    return data[:-5]


def _overwritten(data: bytes) -> bytes:
    return bytes(255 - byte for byte in data)


@pytest.mark.parametrize("damage", [_emptied, _cut, _overwritten])
@by_writer
def test_a_damaged_object_is_named(tmp_path: Path, write: Write, damage: Any) -> None:
    root = write(tmp_path / "a", ramp(SHAPE))
    damaged = stored_files(root)[-1]
    damaged.write_bytes(damage(damaged.read_bytes()))
    with pytest.raises(UnsupportedFormat, match=str(damaged.relative_to(root))) as refusal:
        open_array(root).read(BoundingBox.of_shape(SHAPE))
    assert str(tmp_path) not in refusal.value.tried
    assert "again" in refusal.value.to_do


def test_an_n5_block_shorter_than_its_place_is_refused(tmp_path: Path) -> None:
    """Its decoder would give zeros for the rest."""
    root = n5(tmp_path / "a", np.full(SHAPE, 7, np.uint8), compression={"type": "raw"})
    block = root / "0/0/0"
    data = bytearray(block.read_bytes())
    data[12:16] = (2).to_bytes(4, "big")
    block.write_bytes(data[: 16 + 8 * 8 * 2])
    with pytest.raises(UnsupportedFormat, match=r"0/0/0.*promises \[8, 8, 2\].*\[8, 8, 4\]"):
        open_array(root).read(BoundingBox.at((0, 0, 0), (1, 1, 1)))


def test_n5_blocks_of_variable_length_are_refused_when_opened(tmp_path: Path) -> None:
    root = n5(tmp_path / "a", ramp(SHAPE))
    for block in stored_files(root):
        block.write_bytes(b"\0\1" + block.read_bytes()[2:])
    with pytest.raises(UnsupportedFormat, match="mode 1: lists of variable length"):
        open_array(root)


@pytest.mark.parametrize("name", ["gzip", "zlib"])
def test_the_compression_level_of_fiji_is_read(tmp_path: Path, name: str) -> None:
    from numcodecs import GZip, Zlib

    codec = {"gzip": GZip, "zlib": Zlib}[name](1)
    root = zarr2(tmp_path / "a", ramp(SHAPE), compressors=codec)
    document = json.loads((root / ".zarray").read_text())
    document["compressor"]["level"] = -1
    document["filters"] = []
    dump(root / ".zarray", document)
    check_volume(open_array(root), ramp(SHAPE))


def test_chunks_nested_without_saying_so_are_found(tmp_path: Path) -> None:
    """As zarr-python before 2.8 wrote them."""
    root = zarr2_nested(tmp_path / "a", ramp(SHAPE))
    document = json.loads((root / ".zarray").read_text())
    del document["dimension_separator"]
    dump(root / ".zarray", document)
    volume = open_array(root)
    check_volume(volume, ramp(SHAPE))
    assert tuple(volume.missing) == ()


def test_codecs_that_tensorstore_lacks_are_read(tmp_path: Path) -> None:
    from numcodecs import LZ4, Delta

    voxels = ramp(SHAPE, np.int16)
    root = zarr2(tmp_path / "a", voxels, compressors=LZ4(), filters=[Delta("<i2")])
    volume = open_array(root)
    check_volume(volume, voxels)
    damaged = stored_files(root)[0]
    damaged.write_bytes(damaged.read_bytes()[:4])
    with pytest.raises(UnsupportedFormat, match=damaged.name):
        volume.read(BoundingBox.of_shape(SHAPE))


def test_codecs_that_run_code_are_refused(tmp_path: Path) -> None:
    root = zarr2(tmp_path / "a", ramp(SHAPE))
    document = json.loads((root / ".zarray").read_text())
    document["filters"] = [{"id": "pickle", "protocol": 5}]
    dump(root / ".zarray", document)
    with pytest.raises(UnsupportedFormat, match="stored as pickle"):
        open_array(root)


def test_a_small_box_decodes_its_own_chunks_only(tmp_path: Path) -> None:
    """Every other chunk is damaged, and nobody notices."""
    root = zarr2_nested(tmp_path / "a", ramp(SHAPE))
    for path in stored_files(root):
        if path != root / "1/2/0":
            path.write_bytes(b"damaged")
    box = BoundingBox.at((4, 16, 0), (4, 5, 8))
    assert same(open_array(root).read(box), ramp(SHAPE)[box.slices])


def test_what_a_region_of_a_huge_array_lacks_is_few_boxes(tmp_path: Path) -> None:
    """10¹² chunks, three of them held."""
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{tmp_path}/"},
        "metadata": {"shape": [10**6] * 3, "chunks": [100] * 3, "dtype": "|u1", "dimension_separator": "/"},
    }
    store = tensorstore.open(spec, create=True).result()
    store[5000:5100, 7000:7100, 9000:9300] = 1
    volume = open_array(tmp_path)
    assert len(volume.missing) == 6
    assert sum(box.shape.voxels for box in volume.missing) == 10**18 - 3 * 10**6


def test_several_images_are_listed_and_one_is_chosen(tmp_path: Path) -> None:
    root = tmp_path / "a.zarr"
    zarr.create_group(root, zarr_format=2)
    ngff(root / "em/fine", ramp(SHAPE))
    ngff(root / "em/coarse", ramp((4, 8, 8)))
    zarr2_nested(root / "masks", ramp((2, 8, 8)))
    assert images_in(root) == ("em/coarse", "em/fine", "masks")
    with pytest.raises(InputRefused, match=r"3 images.*--image-set: em/coarse, em/fine, masks"):
        open_container(root)
    check_volume(open_volume([root], image="masks"), ramp((2, 8, 8)))
    assert open_volume([root], image="em/fine", level="s1").shape == (5, 11, 9)


def test_the_only_image_of_a_container_is_found_below_its_groups(tmp_path: Path) -> None:
    """Also where nothing but folders lies outermost, as in a mirror."""
    root = tmp_path / "a.n5"
    n5(root / "em/fibsem/s0", ramp(SHAPE), pixelResolution=None)
    assert sniff(root) == "n5"
    check_volume(open_volume([root]), ramp(SHAPE))


def test_why_the_only_image_is_not_read_is_said(tmp_path: Path) -> None:
    ngff(tmp_path / "a.zarr/em", ramp(SHAPE))
    (tmp_path / "a.zarr/em/s0/.zarray").write_text("{}")
    with pytest.raises(UnsupportedFormat, match=r"em/s0/\.zarray"):
        open_container(tmp_path / "a.zarr")
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(NotFound, match="no image or array"):
        open_container(tmp_path / "b.zarr")


def test_what_is_no_object_of_the_grid_is_passed_over(container: Path) -> None:
    (layout,) = read_multiscale(folder_fetch(container))
    for key, covered in layout.objects(BoundingBox.of_shape(SHAPE)):
        cell = layout.grid_index(key)
        assert cell is not None
        assert layout.key(cell) == key
        assert covered.start == tuple(i * n for i, n in zip(cell, layout.object_shape, strict=True))
        assert layout.grid_index(f"{key}.partial") is None
    for name in ("", "0", "c", "-1/0/0", "99/99/99", "99.99.99", "c/99/99/99", "c.99.99.99"):
        assert layout.grid_index(name) is None
