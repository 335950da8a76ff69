"""Precomputed volumes as other software writes them, and what damages them."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import compressed_segmentation
import compresso
import imagecodecs
import numpy as np
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from em_pipeline.demo.specimen import specimen
from em_pipeline.domain.errors import InputRefused, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.formats.precomputed import open_precomputed
from em_pipeline.formats.precomputed_grid import ChunkGrid
from em_pipeline.formats.precomputed_info import parse_info
from em_pipeline.formats.precomputed_segmentation import decode_compressed_segmentation
from em_pipeline.formats.sharded import Sharding
from em_pipeline_tests.formats.helpers import boxes, check_volume, ramp

SHAPE = Shape(21, 37, 50)
OFFSET = (-3, 1000, 7)  # z-y-x
SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "hash": "identity",
    "preshift_bits": 1,
    "minishard_bits": 2,
    "shard_bits": 3,
    "minishard_index_encoding": "gzip",
    "data_encoding": "gzip",
}


def written(
    folder: Path, voxels: NDArray[Any], part: BoundingBox | None = None, *, kind: str = "image", **scale: Any
) -> Path:
    """`voxels` (z-y-x), or only those of `part`, as tensorstore writes them into `folder`."""
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "create": True,
        "multiscale_metadata": {"data_type": voxels.dtype.name, "num_channels": 1, "type": kind},
        "scale_metadata": {
            "size": list(voxels.shape[::-1]),
            "voxel_offset": list(OFFSET[::-1]),
            "chunk_size": [16, 12, 8],
            "resolution": [4, 4, 30],
            "encoding": "raw",
            **scale,
        },
    }
    store = tensorstore.open(spec).result()[..., 0].translate_to[0, 0, 0]
    z, y, x = (part or BoundingBox.of_shape(Shape(*voxels.shape))).slices
    with tensorstore.Transaction() as transaction:
        store.with_transaction(transaction)[x, y, z] = voxels[z, y, x].T
    return folder


def edited(folder: Path, change: Any) -> None:
    """Rewrite the `info` of `folder` after `change` was made to its first scale and the whole."""
    info = json.loads((folder / "info").read_text())
    change(info["scales"][0], info)
    (folder / "info").write_text(json.dumps(info))


def labels() -> NDArray[np.uint64]:
    """Ids that neither 32 bits nor a double can hold, in clumps."""
    return ramp(SHAPE, np.uint64) // 9 + np.uint64(2**53 + 1)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "uint64", "float32"])
def test_raw_chunks_of_every_type(tmp_path: Path, dtype: str) -> None:
    voxels = ramp(SHAPE, dtype)
    volume = open_precomputed(written(tmp_path, voxels))
    check_volume(volume, voxels)
    assert volume.chunk_shape == (8, 12, 16)
    assert tuple(volume.voxel_size_nm) == (30, 4, 4)


def test_a_voxel_offset_places_the_centre_of_the_first_voxel(tmp_path: Path) -> None:
    volume = open_precomputed(written(tmp_path, ramp(SHAPE)))
    assert volume.translation_nm == (-2.5 * 30, 1000.5 * 4, 7.5 * 4)


@pytest.mark.parametrize("hashing", ["identity", "murmurhash3_x86_128"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_shards_with_every_hash_and_encoding(tmp_path: Path, hashing: str, encoding: str) -> None:
    sharding = {
        **SHARDING, "hash": hashing, "minishard_index_encoding": encoding, "data_encoding": encoding
    }  # fmt: skip
    voxels = labels()
    check_volume(open_precomputed(written(tmp_path, voxels, kind="segmentation", sharding=sharding)), voxels)
    assert len(list(tmp_path.rglob("*.shard"))) > 3


@given(st.data())
@settings(max_examples=12)
def test_shards_of_any_bits_and_any_shape(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = Shape(*data.draw(st.tuples(*[st.integers(1, 60)] * 3)))
    bits = {name: data.draw(st.integers(0, 4)) for name in ("preshift_bits", "minishard_bits", "shard_bits")}
    hashing = data.draw(st.sampled_from(["identity", "murmurhash3_x86_128"]))
    voxels = ramp(shape)
    folder = tmp_path_factory.mktemp("sharded")
    volume = open_precomputed(written(folder, voxels, sharding={**SHARDING, **bits, "hash": hashing}))
    box = data.draw(boxes(shape))
    np.testing.assert_array_equal(volume.read(box), voxels[box.slices])
    assert volume.missing == ()


@pytest.mark.parametrize("sharding", [None, SHARDING])
def test_chunks_never_written_are_missing_and_no_others(tmp_path: Path, sharding: Any) -> None:
    voxels = ramp(SHAPE)
    part = BoundingBox.at((8, 12, 16), (8, 24, 32))
    scale = {"sharding": sharding} if sharding else {}
    volume = open_precomputed(written(tmp_path, voxels, part, **scale))
    absent = np.ones(SHAPE, bool)
    absent[part.slices] = False
    listed = np.zeros(SHAPE, int)
    for box in volume.missing:
        listed[box.slices] += 1
    np.testing.assert_array_equal(listed, absent)
    np.testing.assert_array_equal(volume.read(BoundingBox.of_shape(SHAPE)), np.where(absent, 0, voxels))


def test_a_folder_without_any_chunk_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, ramp(SHAPE))
    for chunk in (folder / "4_4_30").iterdir():
        chunk.unlink()
    with pytest.raises(UnsupportedFormat, match="none of the 48 chunks"):
        open_precomputed(folder)


def test_a_part_that_was_downloaded_opens_as_the_whole_level(tmp_path: Path) -> None:
    voxels, part = ramp(SHAPE), BoundingBox.at((9, 13, 17), (3, 3, 3))
    volume = open_precomputed(written(tmp_path, voxels, BoundingBox.at((8, 12, 16), (8, 12, 16))), box=part)
    assert volume.shape == SHAPE
    assert volume.missing == ()
    np.testing.assert_array_equal(volume.read(part), voxels[part.slices])
    with pytest.raises(NotFound, match=r"only those of \(9, 13, 17\)\.\.\(12, 16, 20\)"):
        volume.read(BoundingBox.at((0, 0, 0), (4, 4, 4)))


def test_names_with_the_suffix_of_gzip_are_found(tmp_path: Path) -> None:
    voxels = ramp(SHAPE)
    folder = written(tmp_path, voxels)
    for chunk in list((folder / "4_4_30").iterdir()):
        chunk.with_name(f"{chunk.name}.gz").write_bytes(gzip.compress(chunk.read_bytes()))
        chunk.unlink()
    check_volume(open_precomputed(folder), voxels)


def test_raw_voxels_that_begin_like_gzip_are_voxels(tmp_path: Path) -> None:
    voxels = ramp(SHAPE)
    voxels[0, 0, :3] = (0x1F, 0x8B, 8)
    check_volume(open_precomputed(written(tmp_path, voxels)), voxels)


def test_gzip_as_long_as_raw_voxels_is_gzip(tmp_path: Path) -> None:
    """It happens: 7×1×16 voxels of a ramp do it. Here a file name in its header makes up the length."""
    voxels = np.full(SHAPE, 7, np.uint8)
    folder = written(tmp_path, voxels)
    chunk = folder / "4_4_30" / CHUNK
    raw, packed = chunk.read_bytes(), io.BytesIO()
    with gzip.GzipFile("n" * (len(raw) - len(gzip.compress(raw)) - 1), "wb", fileobj=packed) as file:
        file.write(raw)
    assert len(packed.getvalue()) == len(raw)
    chunk.write_bytes(packed.getvalue())
    check_volume(open_precomputed(folder), voxels)


def test_jpeg_shards_without_data_encoding_and_voxel_offset(tmp_path: Path) -> None:
    voxels = specimen(SHAPE, seed=1)
    sharding = {**SHARDING, "data_encoding": "raw"}
    folder = written(
        tmp_path, voxels, encoding="jpeg", jpeg_quality=95, sharding=sharding, voxel_offset=[0] * 3
    )

    def as_hemibrain(scale: Any, info: Any) -> None:
        del scale["sharding"]["data_encoding"], scale["voxel_offset"], info["num_channels"]

    edited(folder, as_hemibrain)
    volume = open_precomputed(folder)
    assert volume.translation_nm == (15, 2, 2)
    read = volume.read(BoundingBox.of_shape(SHAPE)).astype(int)
    assert np.abs(read - voxels).mean() < 4
    assert np.abs(read - voxels.transpose(0, 2, 1)[:, :37, :37].mean()).mean() > 6  # not any grey would do


def test_a_clipped_jpeg_is_x_wide_and_y_times_z_high(tmp_path: Path) -> None:
    """Exactly the pixels, edge chunks included, as another JPEG decoder reads them."""
    voxels = specimen(SHAPE, seed=2)
    folder = written(tmp_path, voxels, encoding="jpeg", voxel_offset=[0] * 3)
    picture = imagecodecs.jpeg8_decode((folder / "4_4_30" / "48-50_36-37_16-21").read_bytes())
    assert picture.shape == (5, 2)
    corner = open_precomputed(folder).read(BoundingBox.at((16, 36, 48), (5, 1, 2)))
    np.testing.assert_array_equal(corner[:, 0, :], picture)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_chunks(tmp_path: Path, dtype: str) -> None:
    voxels = ramp(SHAPE, dtype)
    check_volume(open_precomputed(written(tmp_path, voxels, encoding="png")), voxels)


@pytest.mark.parametrize("sharding", [None, SHARDING])
@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_compressed_segmentation(tmp_path: Path, dtype: str, sharding: Any) -> None:
    voxels = (labels() % np.uint64(2**31 if dtype == "uint32" else 2**63)).astype(dtype)
    scale: dict[str, Any] = {
        "encoding": "compressed_segmentation",
        "compressed_segmentation_block_size": [8, 4, 2],
    }
    if sharding:
        scale["sharding"] = sharding
    check_volume(open_precomputed(written(tmp_path, voxels, kind="segmentation", **scale)), voxels)


@given(st.data())
def test_compressed_segmentation_as_its_library_writes_it(data: st.DataObject) -> None:
    shape = Shape(*data.draw(st.tuples(*[st.integers(1, 20)] * 3)))
    block = data.draw(st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 3))
    dtype = np.dtype(data.draw(st.sampled_from(["uint32", "uint64"])))
    ids = data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    voxels = rng.integers(0, ids, shape).astype(dtype) * dtype.type(2**dtype.itemsize * 3 + 1)
    packed = compressed_segmentation.compress(np.asfortranarray(voxels.T), block_size=block, order="F")
    np.testing.assert_array_equal(decode_compressed_segmentation(packed, shape, dtype, block), voxels)


@given(st.data())
def test_damaged_compressed_segmentation_never_reads_beyond_its_end(data: st.DataObject) -> None:
    voxels = ramp((8, 8, 8), np.uint64)
    packed = bytearray(
        compressed_segmentation.compress(np.asfortranarray(voxels.T), block_size=(8, 8, 8), order="F")
    )
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), max_size=4)):
        packed[at] = value
    cut = data.draw(st.integers(0, len(packed)))
    try:
        decoded = decode_compressed_segmentation(bytes(packed[:cut]), Shape(8, 8, 8), voxels.dtype, (8, 8, 8))
    except ValueError:
        return
    assert decoded.shape == (8, 8, 8)


def in_compresso(folder: Path) -> tuple[Path, NDArray[np.uint32]]:
    """A volume in compresso, which tensorstore does not write, and its labels."""
    voxels = (labels() % np.uint64(2**31)).astype(np.uint32)
    written(folder, voxels, kind="segmentation")
    grid = ChunkGrid(SHAPE, Shape(8, 12, 16), OFFSET)
    for box in grid.boxes(BoundingBox.of_shape(SHAPE)):
        packed = compresso.compress(np.asfortranarray(voxels[box.slices].T))
        (folder / "4_4_30" / grid.name(box)).write_bytes(packed)
    edited(folder, lambda scale, _: scale.update(encoding="compresso"))
    return folder, voxels


def test_compresso(tmp_path: Path) -> None:
    folder, voxels = in_compresso(tmp_path)
    check_volume(open_precomputed(folder), voxels)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_truncated_compresso_chunk_is_named(tmp_path: Path, keep: int) -> None:
    """Before the library, which would read beyond its end, sees it."""
    folder, _ = in_compresso(tmp_path)
    chunk = folder / "4_4_30" / CHUNK
    chunk.write_bytes(chunk.read_bytes()[:keep])
    with pytest.raises(UnsupportedFormat, match=f"4_4_30/{CHUNK}"):
        open_precomputed(folder).read(BoundingBox.at((0, 0, 0), (1, 1, 1)))


CHUNK = "7-23_1000-1012_-3-5"


@pytest.mark.parametrize(
    ("encoding", "dtype"),
    [("raw", "uint8"), ("jpeg", "uint8"), ("png", "uint8"), ("compressed_segmentation", "uint64")],
)
def test_a_truncated_chunk_is_named(tmp_path: Path, encoding: str, dtype: str) -> None:
    extra: dict[str, Any] = {}
    if encoding == "compressed_segmentation":
        extra["compressed_segmentation_block_size"] = [8, 8, 8]
    folder = written(tmp_path, ramp(SHAPE, dtype), encoding=encoding, **extra)
    chunk = folder / "4_4_30" / CHUNK
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 3])
    with pytest.raises(UnsupportedFormat, match=f"4_4_30/{CHUNK}"):
        open_precomputed(folder).read(BoundingBox.at((0, 0, 0), (1, 1, 1)))


def test_a_chunk_of_another_size_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, specimen(SHAPE, seed=3), encoding="jpeg")
    other = folder / "4_4_30" / "55-57_1036-1037_13-18"
    other.rename(folder / "4_4_30" / CHUNK)
    with pytest.raises(UnsupportedFormat, match=f"{CHUNK}: it holds"):
        open_precomputed(folder).read(BoundingBox.at((0, 0, 0), (1, 1, 1)))


def test_a_page_in_place_of_a_chunk_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, specimen(SHAPE, seed=3), encoding="jpeg")
    (folder / "4_4_30" / CHUNK).write_bytes(b"<html>busy</html>")
    with pytest.raises(UnsupportedFormat, match=CHUNK):
        open_precomputed(folder).read(BoundingBox.at((0, 0, 0), (1, 1, 1)))


def test_a_gzip_stream_cut_short_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, ramp(SHAPE))
    chunk = folder / "4_4_30" / CHUNK
    chunk.write_bytes(gzip.compress(chunk.read_bytes())[:-9])
    with pytest.raises(UnsupportedFormat, match="gzip"):
        open_precomputed(folder).read(BoundingBox.at((0, 0, 0), (1, 1, 1)))


@pytest.mark.parametrize("keep", [10, 40])
def test_a_truncated_shard_is_damaged_not_empty(tmp_path: Path, keep: int) -> None:
    folder = written(tmp_path, ramp(SHAPE), sharding=SHARDING)
    for shard in folder.rglob("*.shard"):
        shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(UnsupportedFormat, match=r"\.shard"):
        open_precomputed(folder)


def test_a_scale_is_chosen_by_number_or_key(tmp_path: Path) -> None:
    def with_coarser_first(scale: Any, info: Any) -> None:
        info["scales"].insert(0, {**scale, "key": "1", "resolution": [8, 8, 30], "size": [25, 18, 21]})

    folder = written(tmp_path, ramp(SHAPE))
    edited(folder, with_coarser_first)
    info = parse_info((folder / "info").read_bytes(), "info")
    assert info.scale(None).key == "4_4_30"  # the finest, wherever it is listed
    assert info.scale(0).key == info.scale("1").key == "1"  # a key beats a number that reads the same
    assert info.scale(1).key == info.scale("4_4_30").key == "4_4_30"
    with pytest.raises(NotFound, match="4_4_30"):
        info.scale("s4")


@pytest.mark.parametrize(
    ("of_scale", "of_volume", "found"),
    [
        ({"encoding": "kempressed"}, {}, "kempressed"),
        ({"encoding": "compressed_segmentation"}, {}, "cannot hold uint8"),
        ({"size": None}, {}, "incomplete"),
        ({"key": "../other"}, {}, "leads out"),
        ({"chunk_sizes": [[0, 1, 1]]}, {}, "its chunks"),
        ({"resolution": [0, 4, 4]}, {}, "voxels"),
        ({"sharding": {**SHARDING, "hash": "md5"}}, {}, "md5"),
        ({"sharding": {**SHARDING, "minishard_bits": 60}}, {}, "bits"),
        ({}, {"num_channels": 3}, "3 channels"),
        ({}, {"data_type": "complex64"}, "complex64"),
        ({}, {"@type": "neuroglancer_legacy_mesh"}, "legacy_mesh"),
        ({}, {"scales": []}, "no scales"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    tmp_path: Path, of_scale: dict[str, Any], of_volume: dict[str, Any], found: str
) -> None:
    folder = written(tmp_path, ramp(SHAPE))

    def change(scale: Any, info: Any) -> None:
        scale.update(of_scale)
        info.update(of_volume)

    edited(folder, change)
    with pytest.raises(UnsupportedFormat, match=found):
        open_precomputed(folder)


def test_a_box_outside_the_level_is_refused(tmp_path: Path) -> None:
    volume = open_precomputed(written(tmp_path, ramp(SHAPE)))
    with pytest.raises(InputRefused):
        volume.read(BoundingBox.at((0, 0, 0), (22, 1, 1)))


def test_the_morton_code_drops_bits_of_axes_that_have_no_more_chunks() -> None:
    """The specification's rule by hand: 5×2×1 chunks in x, y, z; x=4 is binary 100, y=1."""
    grid = ChunkGrid(Shape(8, 16, 40), Shape(8, 8, 8))
    codes = [grid.morton(box) for box in grid.boxes(BoundingBox.of_shape(grid.shape))]
    assert codes == [0, 1, 4, 5, 8, 2, 3, 6, 7, 10]


def test_the_name_of_a_shard_is_padded_to_whole_hexadecimal_digits() -> None:
    names = [Sharding.parse({**SHARDING, "shard_bits": bits}, "test").shard_name(11) for bits in (4, 15, 16)]
    assert names == ["b.shard", "000b.shard", "000b.shard"]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["image_jpeg", "seg_compressed_segmentation", "seg_sharded"])
def test_volumes_of_other_writers(shared_data: Path, name: str) -> None:
    truth = np.load(shared_data / "derived" / "truth.npz")["image" if name == "image_jpeg" else "labels"]
    volume = open_precomputed(shared_data / "derived" / f"precomputed_{name}")
    voxels = volume.read(BoundingBox.of_shape(volume.shape))
    assert voxels.shape == truth.shape
    assert np.abs(voxels.astype(np.int64) - truth.astype(np.int64)).mean() < (
        3 if name == "image_jpeg" else 1e-9
    )
    assert volume.translation_nm == (26005, 10005, 30005)


@pytest.mark.shared_data
def test_real_labels_in_compresso(shared_data: Path) -> None:
    volume = open_precomputed(shared_data / "precomputed" / "pinky40_seg_mip2", level=2)
    voxels = volume.read(BoundingBox.of_shape(volume.shape))
    assert (voxels.shape, voxels.dtype) == ((512, 256, 256), np.dtype("uint32"))
    assert (len(np.unique(voxels)), voxels.max()) == (2512, 98340797)


@pytest.mark.shared_data
def test_real_shard_parameters(shared_data: Path) -> None:
    info = parse_info((shared_data / "precomputed" / "flyem_mcns-ng-specs.json").read_bytes(), "info")
    finest = info.scale(None)
    assert (finest.shape, finest.dtype, finest.voxel_offset) == (
        (134576, 78317, 94088),
        np.dtype("u8"),
        (0, 0, 0),
    )
    assert finest.sharding is not None
    assert finest.sharding.data_encoding == "raw"
    assert finest.sharding.shard_name(2**19 - 1) == "7ffff.shard"
