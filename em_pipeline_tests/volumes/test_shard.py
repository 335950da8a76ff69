from pathlib import Path

import numpy as np
import pytest

from em_pipeline.domain.errors import ChunkCorrupt
from em_pipeline.domain.geometry import Shape
from em_pipeline.storage.local_blobs import LocalBlobs
from em_pipeline.volumes.shard import NOT_STORED, ShardWriter, encode_index, index_nbytes, read_shard_index

CHUNKS = Shape(1, 2, 2)
PATH = "c/0"


@pytest.fixture
def volume(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path)


def test_chunks_lie_one_after_the_other_and_the_index_is_last(volume: LocalBlobs) -> None:
    shard = ShardWriter(volume, PATH, CHUNKS)
    shard.append((0, 0, 1), b"first")
    shard.append((0, 1, 1), b"second!")
    assert volume.size(PATH) is None
    shard.publish()
    whole = volume.read(PATH)
    assert whole[:12] == b"firstsecond!"
    assert len(whole) == 12 + index_nbytes(CHUNKS)
    missing = [NOT_STORED, NOT_STORED]
    assert read_shard_index(volume, PATH, CHUNKS, 12).tolist() == [missing, [0, 5], missing, [5, 7]]


def test_chunks_out_of_order_are_a_mistake(volume: LocalBlobs) -> None:
    shard = ShardWriter(volume, PATH, CHUNKS)
    shard.append((0, 1, 0), b"x")
    for place in ((0, 1, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="C order"):
            shard.append(place, b"y")
    shard.abandon()
    assert not list(volume.root.iterdir())


def test_a_shard_without_chunks_is_no_blob(volume: LocalBlobs) -> None:
    ShardWriter(volume, PATH, CHUNKS).publish()
    assert not list(volume.root.iterdir())


def test_damaged_indices_are_corrupt(volume: LocalBlobs) -> None:
    with pytest.raises(ChunkCorrupt, match="missing"):
        read_shard_index(volume, PATH, CHUNKS, 100)
    shard = ShardWriter(volume, PATH, CHUNKS)
    shard.append((0, 0, 0), bytes(100))
    shard.publish()
    whole = bytearray(volume.read(PATH))
    for place in np.random.default_rng(0).integers(100, len(whole), 10):
        altered = whole.copy()
        altered[place] ^= 1
        volume.write(PATH, bytes(altered))
        with pytest.raises(ChunkCorrupt, match="checksum"):
            read_shard_index(volume, PATH, CHUNKS, 100)
    volume.write(PATH, bytes(whole[:20]))
    with pytest.raises(ChunkCorrupt, match="ends before byte"):
        read_shard_index(volume, PATH, CHUNKS, 100)


def test_an_index_that_leads_past_the_chunks_is_corrupt(volume: LocalBlobs) -> None:
    for beyond in (101, 1 << 63):
        index = np.full((CHUNKS.voxels, 2), NOT_STORED, np.uint64)
        index[0] = (beyond, 5)
        volume.write(PATH, bytes(100) + encode_index(index))
        with pytest.raises(ChunkCorrupt, match="none were written"):
            read_shard_index(volume, PATH, CHUNKS, 100)
