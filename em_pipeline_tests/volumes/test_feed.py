"""Slab buffers hold exactly the voxels of their slab, whatever the source's chunks, and each is read once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from em_pipeline.domain.errors import EmError, NotFound, UnsupportedFormat
from em_pipeline.domain.geometry import BoundingBox, Shape, VoxelSize
from em_pipeline.formats.base import FileVolume, RawVoxels
from em_pipeline.volumes import memory
from em_pipeline.volumes.feed import SourceFeed
from em_pipeline.volumes.kernels import COMPILED
from em_pipeline.volumes.tiling import grid
from em_pipeline_tests.volumes.arrays import ArrayVolume
from em_pipeline_tests.volumes.planned import plan_with

CHUNK = Shape(4, 4, 4)
EXTENT = st.integers(1, 21)


@settings(deadline=None)
@given(
    shape=st.builds(Shape, EXTENT, EXTENT, EXTENT),
    stored=st.builds(Shape, EXTENT, EXTENT, EXTENT),
    origin=st.builds(Shape, *[st.integers(0, 7)] * 3),
    threads=st.integers(1, 4),
    granule=st.sampled_from([16, 64, 1 << 20]),
)
def test_slabs_are_filled_from_granules_of_any_shape(
    shape: Shape, stored: Shape, origin: Shape, threads: int, granule: int
) -> None:
    whole = tuple(n + o for n, o in zip(shape, origin, strict=True))
    array = np.arange(np.prod(whole), dtype=np.uint16).reshape(whole)
    source = ArrayVolume(array, chunk_shape=stored)
    plan = plan_with(
        shape, "uint16", VoxelSize(z=1, y=1, x=1), source_chunk=stored, memory_budget=1 << 20, threads=1,
        chunk_shape=CHUNK, shard_shape=Shape(8, 8, 8),
    )  # fmt: skip
    feed = SourceFeed(source, origin, plan.levels[0])
    wanted = array[origin.z :, origin.y :, origin.x :]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "GRANULE", granule)
        for unit in plan.levels[0].units():
            for slab in unit.slabs:
                source.reads.clear()
                chunks = grid(slab.shape, CHUNK)
                tile = plan.levels[0].tile_shape
                tiles = np.zeros((*chunks, *tile), np.uint16)
                for piece in feed.pieces(slab, threads):
                    piece(tiles)
                padded = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(np.multiply(chunks, tile))
                z, y, x = slab.shape
                np.testing.assert_array_equal(padded[:z, :y, :x], wanted[slab.slices])
                assert not padded[z:].any()
                assert not padded[:, y:].any()
                assert not padded[:, :, x:].any()
                _check_decoded_once(source, slab.shifted(origin), stored)


def _check_decoded_once(source: ArrayVolume, slab: BoundingBox, stored: Shape) -> None:
    touched = np.zeros(grid(source.shape, stored), int)
    for box in source.reads:
        touched[
            tuple(slice(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, stored, strict=True))
        ] += 1
    assert touched.max() == 1
    assert sum(box.shape.voxels for box in source.reads) == slab.shape.voxels


@pytest.fixture
def plain(tmp_path: Path) -> tuple[FileVolume, NDArray[np.int16]]:
    """A volume whose planes follow each other in a file after a header, and its voxels."""
    voxels = np.arange(9 * 10 * 11, dtype=np.int16).reshape(9, 10, 11)
    (tmp_path / "plain.raw").write_bytes(b"header" + voxels.tobytes())
    raw = RawVoxels.contiguous(tmp_path / "plain.raw", 6, Shape(9, 10, 11), voxels.dtype)
    return FileVolume(Shape(9, 10, 11), voxels.dtype, Shape(1, 10, 11), raw, (), {}), voxels


def _filled(source: FileVolume, origin: Shape, shape: Shape) -> NDArray[np.int16]:
    """The only slab of a level of `shape` voxels from `origin` (z, y, x) on."""
    plan = plan_with(
        shape, "int16", VoxelSize(z=1, y=1, x=1), source_chunk=source.decode_shape, memory_budget=1 << 20,
        threads=1, chunk_shape=CHUNK, shard_shape=Shape(12, 12, 12),
    )  # fmt: skip
    level = plan.levels[0]
    tiles = np.zeros((*grid(shape, CHUNK), *level.tile_shape), np.int16)
    for piece in SourceFeed(source, origin, level).pieces(BoundingBox.of_shape(shape), 2):
        piece(tiles)
    padded = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(np.multiply(tiles.shape[:3], tiles.shape[3:]))
    return padded[: shape.z, : shape.y, : shape.x]


@pytest.mark.parametrize("width", [11, 5])
def test_plain_rows_go_from_their_file_to_the_chunks(
    plain: tuple[FileVolume, NDArray[np.int16]],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, voxels = plain
    if COMPILED:
        monkeypatch.setattr(FileVolume, "read", None)  # no array in between
    origin, shape = Shape(0, 1, 11 - width), Shape(9, 9, width)
    np.testing.assert_array_equal(_filled(source, origin, shape), voxels[:, 1:, 11 - width :])


@pytest.mark.parametrize(("kept", "error"), [(500, UnsupportedFormat), (None, NotFound)])
def test_a_plain_file_that_was_cut_or_lost_says_so(
    plain: tuple[FileVolume, NDArray[np.int16]],
    tmp_path: Path,
    kept: int | None,
    error: type[EmError],
) -> None:
    source, _ = plain
    file = tmp_path / "plain.raw"
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(error, match=r"plain\.raw"):
        _filled(source, Shape(0, 0, 0), Shape(9, 10, 11))


def test_rows_of_another_byte_order_are_no_plain_ones(
    plain: tuple[FileVolume, NDArray[np.int16]], tmp_path: Path
) -> None:
    source, voxels = plain
    swapped = RawVoxels.contiguous(tmp_path / "plain.raw", 6, source.shape, voxels.dtype.newbyteorder())
    foreign = FileVolume(source.shape, voxels.dtype, source.chunk_shape, swapped, (), {})
    assert foreign.plain_rows(BoundingBox.of_shape(source.shape)) is None
    np.testing.assert_array_equal(_filled(foreign, Shape(0, 0, 0), source.shape), voxels.byteswap())
