from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_pipeline.domain.errors import ChunkCorrupt, InputRefused, NotFound
from em_pipeline.domain.geometry import BoundingBox, Shape
from em_pipeline.volumes.ledger import ChunkState
from em_pipeline.volumes.reader import VolumeReader
from em_pipeline_tests.volumes.written import (
    open_in,
    places,
    random_voxels,
    reference_pyramid,
    small_plan,
    write,
)

ARRAY = random_voxels((13, 20, 33), "uint16")
REFERENCE = reference_pyramid(ARRAY, small_plan(ARRAY))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    write(ARRAY, folder)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A volume that the test may damage."""
    write(ARRAY, tmp_path)
    return tmp_path


def padded(level: int, box: BoundingBox) -> Any:
    """The box of the reference, zero where it reaches past the volume."""
    whole = np.zeros(
        tuple(max(a, b) for a, b in zip(REFERENCE[level].shape, box.stop, strict=True)), np.uint16
    )
    whole[BoundingBox.of_shape(REFERENCE[level].shape).slices] = REFERENCE[level]
    return whole[box.slices]


def test_levels_are_as_written(stored: Path) -> None:
    with open_in(stored) as reader:
        assert [level.shape for level in reader.levels] == [array.shape for array in REFERENCE]
        assert reader.levels[1].voxel_size.z == 16
        assert reader.levels[1].translation_nm == (4, 4, 4)
        assert reader.levels[0].dtype == np.uint16


def test_every_chunk_of_every_level(stored: Path) -> None:
    with open_in(stored) as reader:
        for level in reader.levels:
            for index in np.ndindex(*level.chunk_grid):
                chunk = reader.read_chunk(level.index, index)
                box = BoundingBox.at(Shape(*(i * 4 for i in index)), Shape(4, 4, 4))
                np.testing.assert_array_equal(chunk.data, padded(level.index, box))
                assert (chunk.state is ChunkState.FILL) == (not chunk.data.any())


@given(
    level=st.sampled_from([0, 1]),
    start=st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 16)),
    size=st.tuples(*[st.integers(1, 20)] * 3),
)
def test_any_block(stored: Path, level: int, start: Any, size: Any) -> None:
    box = BoundingBox.at(start, size)
    with open_in(stored) as reader:
        block = reader.read_block(level, box)
    np.testing.assert_array_equal(block.data, padded(level, box))
    inside = box.clipped(REFERENCE[level].shape)
    assert inside is not None
    assert block.valid_fraction == inside.shape.voxels / box.shape.voxels
    assert len(block.states) == len(list(inside.tiles((4, 4, 4))))


def test_what_does_not_exist_is_not_found(stored: Path) -> None:
    with open_in(stored) as reader:
        for level, index in ((9, (0, 0, 0)), (-1, (0, 0, 0)), (0, (0, 0, 9)), (0, (-1, 0, 0))):
            with pytest.raises(NotFound):
                reader.read_chunk(level, index)
        with pytest.raises(InputRefused, match="outside"):
            reader.read_block(0, BoundingBox.at((13, 0, 0), (1, 1, 1)))
        with pytest.raises(NotFound):
            reader.read_block(9, BoundingBox.at((0, 0, 0), (1, 1, 1)))
    _, ledgers, name = places(stored)
    with pytest.raises(NotFound):
        VolumeReader.open(ledgers.below("none.ome.zarr"), ledgers, name)


def test_a_missing_shard_is_an_error_and_never_zeros(own: Path) -> None:
    with open_in(own) as reader:
        (own / "volume.ome.zarr/0/c/1/0/0").unlink()
        with pytest.raises(ChunkCorrupt, match=r"chunk \(2, 0, 0\) of level 0 in shard 0/c/1/0/0") as found:
            reader.read_chunk(0, (2, 0, 0))
        assert "`em verify ID --discard`, then `em ingest ID`" in found.value.to_do
        with pytest.raises(ChunkCorrupt):
            reader.read_block(0, BoundingBox.at((6, 0, 0), (4, 4, 4)))
        reader.read_chunk(0, (0, 0, 1))


def test_a_shard_lost_after_its_index_was_read_is_an_error(own: Path) -> None:
    with open_in(own) as reader:
        reader.read_chunk(0, (2, 0, 0))
        (own / "volume.ome.zarr/0/c/1/0/0").unlink()
        with pytest.raises(ChunkCorrupt):
            reader.read_chunk(0, (2, 0, 1))


@pytest.mark.parametrize("place", [0, 300, -1, -10, -400])
def test_a_flipped_byte_is_never_returned(own: Path, place: int) -> None:
    shard = own / "volume.ome.zarr/0/c/0/0/1"
    altered = bytearray(shard.read_bytes())
    altered[place] ^= 1
    shard.write_bytes(altered)
    refused = 0
    with open_in(own) as reader:
        for index in ((z, y, x) for z in (0, 1) for y in (0, 1) for x in (2, 3)):
            try:
                chunk = reader.read_chunk(0, index)
            except ChunkCorrupt:
                refused += 1
                continue
            box = BoundingBox.at(Shape(*(i * 4 for i in index)), Shape(4, 4, 4))
            np.testing.assert_array_equal(chunk.data, padded(0, box))
    assert refused >= 1


def test_altered_documents_are_refused(own: Path) -> None:
    document = own / "volume.ome.zarr/1/zarr.json"
    document.write_text(document.read_text().replace('"fill_value": 0', '"fill_value": 1'))
    with pytest.raises(ChunkCorrupt, match=r"1/zarr\.json"):
        open_in(own)


def test_many_threads_read_the_same_and_hold_no_files(stored: Path) -> None:
    process = psutil.Process()
    before = process.num_fds()
    with open_in(stored) as reader, ThreadPoolExecutor(8) as pool:
        boxes = [BoundingBox.at((z, y, x), (7, 6, 5)) for z in range(6) for y in range(6) for x in range(6)]
        for box, block in zip(boxes, pool.map(lambda b: reader.read_block(0, b), boxes), strict=True):
            np.testing.assert_array_equal(block.data, padded(0, box))
        assert process.num_fds() <= before + 1


def test_a_closed_reader_says_so(stored: Path) -> None:
    reader = open_in(stored)
    reader.close()
    with pytest.raises(InputRefused, match="closed"):
        reader.read_chunk(0, (1, 1, 1))
